"""Write small raw data sets and arrays, and damage files, for several tests."""

import contextlib
import json
import math
import os
import shutil
import struct
from pathlib import Path

import cv2
import numpy as np

from facedepth_jax.data import arrays, images
from facedepth_jax.data.readers.biwi_files import decode_depth

# --- arrays ---

ARRAYS_SIZE, ARRAYS_COUNT = 8, 10


def make_arrays(path, seed=0):
    rng = np.random.default_rng(seed)
    gray = rng.integers(0, 256, (ARRAYS_COUNT, ARRAYS_SIZE, ARRAYS_SIZE), dtype=np.uint8)
    depth_mm = rng.integers(0, 65536, (ARRAYS_COUNT, ARRAYS_SIZE, ARRAYS_SIZE), dtype=np.uint16)
    frames = {
        "frame": [f"f-{i}.x" for i in range(ARRAYS_COUNT)],
        "subject": [f'the "{i // 2}", é' for i in range(ARRAYS_COUNT)],
        "sequence": [1 + i % 5 for i in range(ARRAYS_COUNT)],
        "split": ["train"] * 6 + ["validation"] * 2 + ["test"] * 2,
        "yaw": [float("nan")] + [i / 3 for i in range(1, ARRAYS_COUNT)],
        **{
            name: list(rng.normal(size=ARRAYS_COUNT))
            for name, kind in arrays.COLUMNS.items()
            if kind is float and name != "yaw"
        },
        **{name: list(rng.integers(-9, 99, ARRAYS_COUNT)) for name in arrays.COLUMNS if "box" in name},
    }
    pair_lists = {"validation": [("f-6.x", "f-7.x", 1)], "test": [("f-8.x", "f-9.x", 1)]}
    images = ((gray[i : i + 4], depth_mm[i : i + 4]) for i in range(0, ARRAYS_COUNT, 4))
    arrays.write(
        path, frames=frames, images=images, size_px=ARRAYS_SIZE, pair_lists=pair_lists, meta={"dataset": {"name": "t"}}
    )
    return gray, depth_mm, frames


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir() if not file.name.startswith(".")}


# --- damage ---


def flip(path, place):
    """Flip a bit of the byte at a share of the file; an empty file gets a byte."""
    content = bytearray(path.read_bytes() or b"x")
    content[int(place * (len(content) - 1))] ^= 1 << int(place * 7)
    path.write_bytes(content)


def link(path, target):
    """Replace a file or directory by a symbolic link to the very same content."""
    shutil.move(path, target)
    path.symlink_to(target)


KINDS = {
    "flipped at the start": lambda path, _: flip(path, 0.0),
    "flipped in the middle": lambda path, _: flip(path, 0.5),
    "flipped at the end": lambda path, _: flip(path, 0.9),
    "truncated": lambda path, _: path.write_bytes(path.read_bytes()[:-2] or b"xx"),
    "emptied": lambda path, _: path.write_bytes(b"" if path.stat().st_size else b"x"),
    "missing": lambda path, _: path.unlink(),
    "a folder": lambda path, _: (path.unlink(), path.mkdir()),
    "a link": link,
    "a pipe": lambda path, _: (path.unlink(), os.mkfifo(path)),
}


@contextlib.contextmanager
def damaged(path, kind, tmp_path):
    """Damage a file, and put the very same one back at the end."""
    kept = tmp_path / "kept"
    shutil.move(path, kept)
    shutil.copyfile(kept, path)
    KINDS[kind](path, tmp_path / "target")
    try:
        yield
    finally:
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        shutil.move(kept, path)


# --- Biwi ---

WIDTH, HEIGHT, FOCAL = 64, 48, 57.0


TURN = 0.03  # of the colour camera, radians


SHIFT_MM = (-24.02, 5.89, -13.23)


def encode(depth_mm):
    """depth.bin, pixel by pixel: count zeros, then values up to the next zero."""
    height, width = depth_mm.shape
    pixels, out, at = [int(x) for row in depth_mm for x in row], [struct.pack("<ii", width, height)], 0
    while at < len(pixels):
        zeros, values = 0, []
        while at < len(pixels) and pixels[at] == 0:
            zeros, at = zeros + 1, at + 1
        while at < len(pixels) and pixels[at] != 0:
            values.append(pixels[at])
            at += 1
        out.append(struct.pack("<ii", zeros, len(values)) + struct.pack(f"<{len(values)}h", *values))
    return b"".join(out)


def turn(yaw=0.0, pitch=0.0, roll=0.0):
    """Rz(roll) Ry(yaw) Rx(pitch) of degrees, each matrix written out."""
    (cx, sx), (cy, sy), (cz, sz) = ((math.cos(math.radians(a)), math.sin(math.radians(a))) for a in (pitch, yaw, roll))
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return rz @ ry @ rx


def pose_text(rotation, head_mm):
    rows = "".join(" ".join(f"{x:.8f}" for x in row) + " \n" for row in rotation)
    return rows + "\n" + " ".join(f"{x:.4f}" for x in head_mm) + " \n"


def cal_text(focal=FOCAL, rotation=None, shift=(0, 0, 0), distortion=(0, 0, 0, 0), size=(WIDTH, HEIGHT), centre=None):
    centre = centre or ((size[0]) / 2, (size[1]) / 2)
    lines = [
        f"{focal} 0 {centre[0]} ",
        f"0 {focal} {centre[1]} ",
        "0 0 1 ",
        "",
        " ".join(map(str, distortion)) + " ",
        "",
    ]
    lines += [" ".join(f"{x:.9f}" for x in row) + " " for row in (np.eye(3) if rotation is None else rotation)]
    return "\n".join([*lines, "", " ".join(map(str, shift)) + " ", "", f"{size[0]} {size[1]} ", ""])


def write_sequence(folder, numbers=(3, 4, 7), rgb=None, depth=None, pose=None, depth_cal=None, rgb_cal=None, seed=0):
    """A sequence of random images; a pose in front of the camera that no other sequence or frame has."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, *folder.name.encode()])
    (folder / "depth.cal").write_text(depth_cal or cal_text())
    (folder / "rgb.cal").write_text(rgb_cal or cal_text(0.9 * FOCAL, turn(math.degrees(TURN)), SHIFT_MM))
    for number in numbers:
        stem = folder / f"frame_{number:05d}"
        gray = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) if rgb is None else rgb
        cv2.imwrite(f"{stem}_rgb.png", gray)
        there = rng.integers(0, 3, (HEIGHT, WIDTH)) > 0
        values = np.where(there, rng.integers(700, 1100, (HEIGHT, WIDTH)), 0) if depth is None else depth
        stem.with_name(f"{stem.name}_depth.bin").write_bytes(encode(values))
        text = pose_text(turn(*rng.uniform(-60, 60, 3)), (*rng.uniform(-40, 40, 2), rng.uniform(850, 950)))
        stem.with_name(f"{stem.name}_pose.txt").write_text(pose or text)
    return folder


GOOD_POSE = "1 0 0 \n0 1 0 \n0 0 1 \n\n1 2 900 \n"


def slow_decode(content, size):
    """The definition, pixel by pixel; None where the file breaks it."""
    try:
        if struct.unpack_from("<ii", content) != size:
            return None
        at, pixels = 8, []
        while len(pixels) < size[0] * size[1]:
            zeros, values = struct.unpack_from("<ii", content, at)
            if zeros < 0 or values < 0:
                return None
            pixels += [0] * min(zeros, 1000) + list(struct.unpack_from(f"<{values}h", content, at + 8))
            at += 8 + 2 * values
    except (struct.error, MemoryError, OverflowError):
        return None
    good = at == len(content) and len(pixels) == size[0] * size[1] and min(pixels) >= 0
    return np.array(pixels).reshape(size[::-1]) if good else None


def check_against_slow(content, size):
    want = slow_decode(content, size)
    try:
        got = decode_depth(content, size)
    except images.Unusable as error:
        assert want is None and len(error.args) == 2
    else:
        assert want is not None
        np.testing.assert_array_equal(got, want)


# --- Pandora ---

NAMES = ("base_1", "base_2", "free_1", "free_2", "free_3")


# Two pinhole cameras side by side: focal length and principal point in pixels, place on the x axis in mm.
DEPTH_CAMERA = (365.0, 256.0, 212.0, 0.0)


COLOUR_CAMERA = (1081.37, 959.5, 539.5, 52.0)


HEAD_MM = np.array([30.0, -60.0, 900.0])


# Spine, neck, head, arms, hands: from the head, mm, x right and y down.
BODY_MM = np.array([
    [0, 300], [0, 250], [0, 150], [0, 0], [-150, 180], [-180, 250], [-190, 290], [-195, 310], [150, 180],
    [180, 250], [190, 290], [195, 310], [0, 190], [-200, 330], [-170, 320], [200, 330], [170, 320],
])  # fmt: skip


def project(points_mm, camera):
    focal, x, y, place = camera
    points_mm = np.asarray(points_mm, float)
    return np.stack(
        [
            (points_mm[..., 0] - place) / points_mm[..., 2] * focal + x,
            points_mm[..., 1] / points_mm[..., 2] * focal + y,
        ],
        -1,
    )


def entry(frame, joints_mm=None, euler=None):
    """A frame's annotation."""
    if joints_mm is None:
        joints_mm = HEAD_MM + np.concatenate([BODY_MM, np.zeros((17, 1))], 1)
    return {
        "ts": 1478000000000 + frame,
        "frame_num": frame,
        "orientation": {
            "euler": euler or {"roll": -1.5, "pitch": 20.25, "yaw": 3.0 + frame},
            "quaternion": [0, 0, 0, 1],
        },
        "joints": project(joints_mm, DEPTH_CAMERA).tolist(),
        "joints3D": (joints_mm * [1e-3, -1e-3, 1e-3]).tolist(),
        "jointsRGB": project(joints_mm, COLOUR_CAMERA).tolist(),
        "jointsState": [2] * 17,
    }


def sequence_folder(root, subject, sequence):
    return Path(root) / f"{subject:02d}" / f"{NAMES[sequence - 1]}_ID{subject:02d}"


def make_pandora(root, subject=1, sequence=1, count=4, entries=None, keyed=False, folder=None):
    """A sequence whose images are empty files, unless they are written later."""
    folder = folder or sequence_folder(root, subject, sequence)
    for kind in ("RGB", "DEPTH"):
        (folder / kind).mkdir(parents=True)
        for frame in range(count):
            (folder / kind / f"{frame:06d}_{kind}.png").touch()
    if entries is None:
        entries = [entry(frame) for frame in range(count)]
        entries[0]["ts"] += 1000 * subject + sequence  # no two recordings have the same bytes
    if keyed:
        entries = {f"{e['frame_num']:06d}": json.dumps(e) for e in entries}
    (folder / "data.json").write_text(json.dumps(entries, indent=2))
    return folder


def make_cropped(root, number=47, count=3, lines=None, size=100):
    """Crops of the group's: levels of 8 bits as 16, (mm - 500) / 8 cut and wrapped as C does."""
    folder = root / f"{number:03d}"
    folder.mkdir(parents=True)
    y, x = np.mgrid[:size, :size]
    mm = np.where((x - 50) ** 2 + (y - 50) ** 2 < 30**2, 900 + x - y, 0)
    levels = (((mm - 500) / 8.0).astype(np.int32) % 256).astype(np.uint16)
    gray = (100 + x).astype(np.uint8)
    for frame in range(count):
        cv2.imwrite(str(folder / f"frame_{frame:06d}_face_depth.png"), levels)
        cv2.imwrite(str(folder / f"frame_{frame:06d}_face_rgb.png"), np.dstack([gray] * 3))
    lines = lines or [f"{frame}\t{1.5}\t{-2.5}\t{number + frame / 8}" for frame in range(count)]
    (folder / "angles.txt").write_text("".join(f"{line}\n" for line in lines))
    return mm, gray, folder
