"""Write raw directories of Biwi and Pandora, in their formats, from our synthetic faces: the truth is known exactly.

    python tools/raw_trees.py --dataset=biwi --out=DIR [--numbers=1,3,12,15] [--frames=20] [--repeat=1] [--seed=0]

Full frames of a depth camera and of a colour camera with a pose of its own, annotations, and what is irregular in the
real data. The formats are written here from their description, apart from the readers in facedepth_jax/data.
"""

import argparse
import functools
import json
import os
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from PIL import Image

from facedepth_jax.data.synthetic.picture import fragment_capacity, render_batch
from facedepth_jax.data.synthetic.scene import Camera, Scene, frame_scene


class Optics(NamedTuple):
    """A pinhole without distortion: focal length (both axes), principal point (x, y), image (height, width), pixels."""

    focal_px: float
    center_px: tuple[float, float]
    size_px: tuple[int, int]

    def project(self, points_mm):
        """(..., 3) in the camera's frame -> (..., 2) x, y in pixels, pixel centres at whole numbers; float64."""
        points_mm = np.asarray(points_mm, np.float64)
        return points_mm[..., :2] / points_mm[..., 2:] * self.focal_px + self.center_px


class Rig(NamedTuple):
    """A sensor's two cameras; `X_colour = rotation X_depth + translation_mm`. `sensor` as in synthetic.SENSORS."""

    sensor: str
    depth: Optics
    colour: Optics
    rotation: np.ndarray
    translation_mm: np.ndarray

    def to_colour(self, points_mm):
        """(..., 3) from the depth camera's frame to the colour camera's, mm, float64."""
        return np.asarray(points_mm, np.float64) @ self.rotation.T + self.translation_mm


class Shot(NamedTuple):
    """A frame: uint8 (H, W) of the colour camera before it is tinted, uint16 (H', W') mm, and the scene in the depth
    camera's frame, which is the truth."""

    gray: np.ndarray
    depth_mm: np.ndarray
    scene: Scene


def rotation(yaw_deg, pitch_deg, roll_deg):
    """Rz(roll) Ry(yaw) Rx(pitch), float64 (3, 3), as in Biwi."""
    y, x, z = np.radians([yaw_deg, pitch_deg, roll_deg])
    about_x = [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
    about_y = [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]
    about_z = [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]]
    return np.array(about_z) @ about_y @ about_x


# Biwi's calibration as in its files; that of Kinect v2 as the sensor's own drivers report it.
BIWI = Rig(
    "kinect_v1",
    Optics(575.816, (320.0, 240.0), (480, 640)),
    Optics(517.679, (320.0, 240.5), (480, 640)),
    rotation(0.53, -0.86, -0.26),
    np.array([-24.02, 5.89, -13.23]),
)
PANDORA = Rig(
    "kinect_v2",
    Optics(365.456, (254.878, 205.395), (424, 512)),
    Optics(1081.37, (959.5, 539.5), (1080, 1920)),
    rotation(-0.3, 0.2, 0.1),
    np.array([52.0, 0.4, -1.0]),
)
TINT = np.array([1.1, 1.0, 0.8])  # red, green, blue of a gray

BIWI_NUMBERS, PANDORA_NUMBERS = range(1, 25), range(1, 23)
BIWI_SAME_PERSON = {15: 3, 18: 5, 21: 2, 22: 7}
PANDORA_SEQUENCES = ("base_1", "base_2", "free_1", "free_2", "free_3")
# The irregularities of the real data, at places of our choice.
THREE_SEQUENCES = 2  # the subject with three sequences only
WITHOUT_COLOUR = (4, "free_3")  # the sequence without its folder RGB
DICTIONARIES = (10, 14, 20)  # subjects whose data.json is an object of strings
FOUR_CHANNELS = "base_2"
NOT_IN_JSON, NOT_ON_DISK = 4, 6  # of each ten frames

# Kinect's seventeen joints above the hips, mm from the head centre in the depth camera's axes: a person who sits
# with raised hands.
JOINTS_MM = np.array([
    [0, 620, 60], [0, 360, 50], [0, 170, 30], [0, 0, 0], [-190, 250, 40], [-230, 350, -60], [-170, 280, -180],
    [-150, 240, -200], [190, 250, 40], [230, 350, -60], [170, 280, -180], [150, 240, -200], [0, 220, 40],
    [-140, 190, -210], [-120, 230, -220], [140, 190, -210], [120, 230, -220],
])  # fmt: skip


# --- rendering -------------------------------------------------------------------------------------------------------


def seen_from(scene: Scene, turn, translation_mm) -> Scene:
    """Move a scene to the frame of a camera with `X' = turn X + translation_mm`: figure, lights and wall.

    The wall's paint and the scene's boxes are given by the first camera's rays and have no exact counterpart; the boxes
    go.
    """

    def angles(angles_deg):
        r = turn @ rotation(*angles_deg.astype(np.float64))
        yaw = np.arctan2(-r[2, 0], np.hypot(r[2, 1], r[2, 2]))
        return np.degrees([yaw, np.arctan2(r[2, 1], r[2, 2]), np.arctan2(r[1, 0], r[0, 0])]).astype(np.float32)

    room = scene.room
    normal = turn @ np.array([room.slope_x, room.slope_y, room.inverse_z], np.float64)  # the wall is normal . X = 1
    slope_x, slope_y, inverse_z = (normal / (1 + normal @ translation_mm)).astype(np.float32)
    return scene._replace(
        angles_deg=angles(scene.angles_deg),
        body_deg=angles(scene.body_deg),
        head_mm=(turn @ scene.head_mm + translation_mm).astype(np.float32),
        lights=np.concatenate([scene.lights[:, :3] @ turn.T, scene.lights[:, 3:]], 1).astype(np.float32),
        room=room._replace(inverse_z=inverse_z, slope_x=slope_x, slope_y=slope_y),
        boxes=np.zeros_like(scene.boxes),
    )


@functools.partial(jax.jit, static_argnames=("size_px", "sensor", "capacity", "image"))
def _render(scene, camera, size_px, sensor, capacity, image):
    """Image 0 (gray) or 1 (depth) alone: the compiler leaves out the work for the other. And whether it overflowed."""
    batch = jax.tree.map(lambda leaf: leaf[None], (scene, camera))
    rendered = render_batch(*batch, 0.0, size_px, sensor, capacity)
    return rendered[image][0], rendered[2][0]


def shoot(scene: Scene, rig: Rig) -> Shot:
    """Render a scene, given in the depth camera's frame, through both cameras of a rig."""
    scene = seen_from(scene, np.eye(3), np.zeros(3))  # without boxes
    images = []
    for image, optics, sensor, view in (
        (0, rig.colour, "none", seen_from(scene, rig.rotation, rig.translation_mm)),
        (1, rig.depth, rig.sensor, scene),
    ):
        camera = Camera(np.float32([optics.focal_px] * 2), np.float32(optics.center_px))
        capacity = int(2.3 * fragment_capacity(optics.focal_px, optics.size_px))  # that is for a head, not half a body
        while True:
            picture, overflow = _render(view, camera, optics.size_px, sensor, capacity, image)
            if not overflow:
                break
            capacity *= 2
        images.append(np.asarray(picture))
    return Shot(*images, scene)


def _shots(rig, seed, subject, sequence, frames, behind):
    for frame in range(frames):
        scene = frame_scene(seed, subject, sequence, frame, frames)
        if not behind:
            scene = scene._replace(room=scene.room._replace(seen=np.float32(0)))
        yield shoot(scene, rig)


def _colour(gray, channels=3):
    colour = np.clip(np.round(gray[..., None] * TINT), 0, 255).astype(np.uint8)
    if channels == 4:
        colour = np.concatenate([colour, np.full_like(colour[..., :1], 255)], -1)
    return Image.fromarray(colour)


def _repeat(folder: Path, names, frames: int, repeat: int):
    """Link the files of the first `frames` under the names of the rest, turn by turn; `names` gives each one's."""
    for index in range(frames, frames * repeat):
        for first, name in zip(names(index % frames), names(index), strict=True):
            if (folder / first).exists() and not (folder / name).exists():
                os.link(folder / first, folder / name)


# --- Biwi ------------------------------------------------------------------------------------------------------------


def run_lengths(depth_mm) -> bytes:
    """Encode a depth.bin: width, height, then count of zeros, count of values, values, and so on."""
    flat = np.concatenate([[0], depth_mm.ravel(), [0]]) > 0
    starts, ends = (np.nonzero(flat[1:] & ~flat[:-1])[0], np.nonzero(~flat[1:] & flat[:-1])[0])
    height, width = depth_mm.shape
    out = [np.array([width, height], "<i4").tobytes()]
    at, values = 0, depth_mm.ravel().astype("<i2")
    for start, end in zip(starts, ends, strict=True):
        out += [np.array([start - at, end - start], "<i4").tobytes(), values[start:end].tobytes()]
        at = end
    if at < values.size:
        out.append(np.array([values.size - at, 0], "<i4").tobytes())
    return b"".join(out)


def biwi_number(index: int) -> int:
    """Return the number of a sequence's frame `index`: from 3 on, every eighth is missing."""
    return 3 + index + index // 7


def _calibration(optics, turn, translation_mm):
    f, (x, y), (height, width) = optics
    blocks = [[[f, 0, x], [0, f, y], [0, 0, 1]], [[0, 0, 0, 0]], turn, [translation_mm], [[width, height]]]
    return "\n".join("".join(" ".join(f"{v:.9g}" for v in row) + " \n" for row in block) for block in blocks)


def write_biwi(out, numbers=BIWI_NUMBERS, frames=20, repeat=1, seed=0) -> dict[str, Shot]:
    """Write sequences `numbers` of Biwi in `out`/hpdb, `frames` * `repeat` frames each.

    Returns {"NN/frame number": Shot}, without those that repeat.
    """
    shots = {}
    for number in numbers:
        folder = Path(out) / "hpdb" / f"{number:02d}"
        folder.mkdir(parents=True)
        (folder / "rgb.cal").write_text(_calibration(BIWI.colour, BIWI.rotation, BIWI.translation_mm))
        (folder / "depth.cal").write_text(_calibration(BIWI.depth, np.eye(3), np.zeros(3)))

        def names(index):
            return [f"frame_{biwi_number(index):05d}_{kind}" for kind in ("rgb.png", "depth.bin", "pose.txt")]

        subject = BIWI_SAME_PERSON.get(number, number)
        sequence = 5 if number in BIWI_SAME_PERSON else 4
        for index, shot in enumerate(_shots(BIWI, seed, subject, sequence, frames, behind=False)):
            rgb, depth, pose = (folder / name for name in names(index))
            _colour(shot.gray).save(rgb, compress_level=1)
            depth.write_bytes(run_lengths(shot.depth_mm))
            rows = rotation(*shot.scene.angles_deg.astype(np.float64))
            lines = [" ".join(f"{v:.6f}" for v in row) + " \n" for row in (*rows, shot.scene.head_mm)]
            pose.write_text("".join([*lines[:3], "\n", lines[3]]))
            shots[f"{number:02d}/{biwi_number(index)}"] = shot
        _repeat(folder, names, frames, repeat)
    return shots


# --- Pandora ---------------------------------------------------------------------------------------------------------


def _entry(number, scene):
    yaw, pitch, roll = map(float, scene.angles_deg)
    joints = scene.head_mm + JOINTS_MM
    return {
        "frame_num": number,
        "orientation": {"euler": {"roll": roll, "pitch": pitch, "yaw": yaw}},
        "joints": PANDORA.depth.project(joints).tolist(),
        "joints3D": (joints * [1e-3, -1e-3, 1e-3]).tolist(),  # metres, y up
        "jointsRGB": PANDORA.colour.project(PANDORA.to_colour(joints)).tolist(),
    }


def write_pandora(
    out, numbers=PANDORA_NUMBERS, frames=20, repeat=1, seed=0, sequences=PANDORA_SEQUENCES
) -> dict[str, Shot]:
    """Write subjects `numbers` of Pandora in `out`, `frames` * `repeat` frames a sequence.

    Returns {"folder/number": Shot}, without those that repeat; the folder is that of the sequence.
    """
    shots = {}
    for subject in numbers:
        for name in sequences:
            sequence = PANDORA_SEQUENCES.index(name) + 1
            if subject == THREE_SEQUENCES and sequence > 3:
                continue
            folder = Path(out) / f"{subject:02d}" / f"{name}_ID{subject:02d}"
            for kind in ("RGB", "DEPTH"):
                (folder / kind).mkdir(parents=True)
            entries = []

            def names(index):
                return [f"{kind}/{index:06d}_{kind}.png" for kind in ("RGB", "DEPTH")]

            for number, shot in enumerate(_shots(PANDORA, seed, subject, sequence, frames, behind=True)):
                rgb, depth = (folder / n for n in names(number))
                _colour(shot.gray, 4 if name == FOUR_CHANNELS else 3).save(rgb, compress_level=1)
                Image.fromarray(shot.depth_mm).save(depth, compress_level=1)
                entries.append(_entry(number, shot.scene))
                shots[f"{folder.name}/{number}"] = shot
            _repeat(folder, names, frames, repeat)
            entries = [entries[n % frames] | {"frame_num": n} for n in range(frames * repeat)]
            for number in range(NOT_ON_DISK, frames * repeat, 10):
                (folder / names(number)[0]).unlink()
            if (subject, name) == WITHOUT_COLOUR:
                for file in (folder / "RGB").iterdir():
                    file.unlink()
                (folder / "RGB").rmdir()
            entries = [e for e in entries if e["frame_num"] % 10 != NOT_IN_JSON]
            if subject in DICTIONARIES:
                entries = {f"{e['frame_num']:06d}": json.dumps(e) for e in entries}
            (folder / "data.json").write_text(json.dumps(entries, indent=2))
    return shots


WRITERS = {"biwi": (write_biwi, BIWI_NUMBERS), "pandora": (write_pandora, PANDORA_NUMBERS)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", required=True, choices=WRITERS)
    parser.add_argument("--out", required=True, help="directory to be made")
    parser.add_argument("--numbers", help="Biwi's sequences or Pandora's subjects, as 1,9,10 (all)")
    parser.add_argument("--frames", type=int, default=20, help="rendered for each sequence (20)")
    parser.add_argument("--repeat", type=int, default=1, help="times each frame is there, as hard links (1)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write, numbers = WRITERS[args.dataset]
    if args.numbers:
        numbers = [int(n) for n in args.numbers.split(",")]
    for number in numbers:
        write(args.out, [number], args.frames, args.repeat, args.seed)
        print(f"{args.dataset} {number}", flush=True)


if __name__ == "__main__":
    main()
