"""The Biwi Kinect Head Pose Database (Fanelli et al., IJCV 2013) as ETH gives it out; docs/biwi.md has the terms.

hpdb/01 .. hpdb/24 (in a copy on the web faces_0/01 ..), each with
  frame_00003_rgb.png     colour, 8 bits
  frame_00003_depth.bin   depth, see `decode_depth`
  frame_00003_pose.txt    the head's rotation, three rows, and its centre in mm in the depth camera's frame
  rgb.cal, depth.cal      the cameras, see `_parse_camera`; X_rgb = R X_depth + T with R and T of rgb.cal
head_pose_masks/01 ..     beside it, optional: frame_00003_depth_mask.png, not 0 on the head
"""

import hashlib
import itertools
import math
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from facedepth_jax.data import images, registration, splits
from facedepth_jax.data.frames import Frame, FrameInfo, Reject
from facedepth_jax.errors import FaceDepthError

REGISTER = ("depth_to_gray", "gray_to_depth")
LAYOUTS = ("hpdb", "faces_0", ".")
MASKS = "head_pose_masks"
FILES = {"pose": "pose.txt", "depth": "depth.bin", "rgb": "rgb.png"}  # of each frame
MAX_FOCAL_PX = 1_000_000
MAX_SIZE_PX = 4096
MAX_HEAD_MM = 100_000.0
ROTATION_TOLERANCE = 1e-3  # the files have six digits

_LAYOUT_TEXT = (
    "the layout is hpdb/01 .. hpdb/24 (or faces_0/01 ..) with frame_00003_rgb.png, frame_00003_depth.bin, "
    "frame_00003_pose.txt, ..., rgb.cal and depth.cal in each; --raw is the folder that holds hpdb, or hpdb itself"
)
_DAMAGED = "depth file is truncated or damaged"
_RUN = struct.Struct("<ii")


class BiwiSource:
    """The database as a `frames.Source` of registered pairs. All text files are checked at once, images when loaded.

    The subject is the person (sequence 15 shows subject "03" again); `sequence` is 0, for Biwi's recordings are not
    Pandora's S1..S5. Angles are those of the binary annotation: R = Rz Ry Rx, pitch = rx, yaw = ry, roll = rz.
    """

    name = "biwi"

    def __init__(self, raw: str, *, register: str = "depth_to_gray", focal: float = 370.0, mask: bool = False):
        """
        Args:
          raw: the directory that holds `hpdb` or `faces_0`, or one of those.
          register: "depth_to_gray" carries the depth over to the colour camera and leaves the gray image as it was
            taken; "gray_to_depth" samples gray where each depth pixel is seen and leaves the depth image.
          focal: focal length in pixels for Eq. 6; the default is the paper's, 0 takes the calibration's of the camera
            that the pair is registered to.
          mask: take away the depth outside of the head masks that come with the database.

        Raises:
          FaceDepthError: an option makes no sense; there is no sequence, or one twice; masks are wanted but not there.
        """
        self._raw, self._register = Path(raw), register
        focal, mask = float(focal), bool(mask)
        if register not in REGISTER:
            raise FaceDepthError(f"register is '{register}', not one of {', '.join(REGISTER)}")
        if focal and not 1 <= focal <= MAX_FOCAL_PX:
            raise FaceDepthError(f"focal is {focal}, not 1 to {MAX_FOCAL_PX} pixels or 0 (the calibration's)")
        folders, self._notes = _find_sequences(self._raw)
        self._masks = _find_masks(self._raw) if mask else None
        self._index, self._numbers, self._rejects, self._cameras = [], [], {}, {}
        poses, digest, self._folders = [], hashlib.sha256(), {}
        listings = {number: _listing(folder) for number, folder in folders.items()}
        pose_texts = {n: _read_poses(folder, listings[n]["pose"]) for n, folder in folders.items()}
        copies = _find_copies(pose_texts)
        for number, folder in folders.items():
            listing, contents = listings[number], pose_texts[number]
            frames = sorted(set().union(*(listing[kind] for kind in FILES)))
            if not frames:
                self._notes.append(f"{folder} holds no frame")
                continue
            self._folders[number] = folder
            cameras, texts, reason, detail = _read_cameras(folder)
            if cameras and not cameras[0].is_reference:
                self._notes.append(f"{folder / 'depth.cal'} has an R or T of its own, which is not used")
            if number in copies:
                reason, detail = copies[number]
            masks = _listing_masks(self._masks, number) if mask else None
            for frame in frames:
                info = _info(number, frame)
                pose, lack = _parse_pose(contents.get(frame))
                missing = [name for kind, name in FILES.items() if frame not in listing[kind]]
                if reason:
                    self._rejects[info.frame] = Reject(info, reason, detail)
                elif missing:
                    names = ", ".join(f"{folder.name}/frame_{frame}_{name}" for name in missing)
                    self._rejects[info.frame] = Reject(info, f"{missing[0]} is missing", names)
                elif lack:
                    self._rejects[info.frame] = Reject(info, *lack)
                elif mask and frame not in masks:
                    self._rejects[info.frame] = Reject(info, "mask is missing", f"{MASKS}/{number:02d}")
                self._index.append(info)
                self._numbers.append((number, frame))
                poses.append(pose)
                digest.update(f"{info.frame} {missing} {mask and frame in masks}\n".encode())
                digest.update(contents.get(frame) or b"")
            digest.update(b"".join(texts))
            self._cameras[number] = cameras
        if not self._index:
            raise FaceDepthError(f"{raw} holds no frame of Biwi; {_LAYOUT_TEXT}")
        poses = np.array(poses)
        self._head_mm = poses[:, 9:]
        self._angles_deg = _angles_deg(poses[:, :9].reshape(-1, 3, 3))
        for row in np.flatnonzero(~_is_rotation(poses[:, :9].reshape(-1, 3, 3))):
            info = self._index[row]
            self._rejects.setdefault(info.frame, Reject(info, "pose is no rotation", f"frame_{self._numbers[row][1]}"))
        self._focal = focal
        self._notes += _count_notes(self._folders, self._index)
        self.settings = {"annotations_sha256": digest.hexdigest(), "register": register, "focal": focal, "mask": mask}

    def index(self) -> list[FrameInfo]:
        """All frames of which there is any file, by sequence and number."""
        return list(self._index)

    def known_rejects(self) -> list[Reject]:
        """Files that are not there, poses and calibrations that cannot be used, copied sequences."""
        return [self._rejects[info.frame] for info in self._index if info.frame in self._rejects]

    def notes(self) -> list[str]:
        """Missing and foreign sequences, mixed layouts, test sequences of another length than the paper's, and how wide
        the window is where Eq. 6 takes another focal length than the camera has."""
        notes = list(self._notes)
        which = self._register == "depth_to_gray"  # the second camera is the colour camera
        own = np.mean([cameras[which].focal_px for cameras in self._cameras.values() if cameras] or [[self._focal]])
        if self._focal and abs(self._focal / own - 1) > 0.01:
            notes.append(
                f"focal={self._focal:g} where the calibration says {own:.1f} px: "
                f"the window shows {self._focal / own:.0%} of face_mm, see docs/biwi.md"
            )
        return notes

    def load(self, start: int, stop: int) -> Iterator[Frame | Reject]:
        """One item for each entry of `index()[start:stop]`; a Reject where a file cannot be used."""
        for row, info in list(enumerate(self._index))[start:stop]:
            try:
                yield self._rejects.get(info.frame) or self._load(row)
            except images.Unusable as error:
                yield Reject(info, *error.args)

    def _load(self, row: int) -> Frame:
        number, frame = self._numbers[row]
        depth_camera, gray_camera = self._cameras[number]
        folder = self._folders[number]
        depth_mm = _read_depth(folder / f"frame_{frame}_depth.bin", depth_camera.size)
        gray = images.read_gray(folder, f"frame_{frame}_rgb.png")
        _check_size("gray image", gray, gray_camera)
        if self._masks:
            depth_mm = np.where(_read_mask(self._masks, number, frame, depth_camera), depth_mm, np.uint16(0))
        head_mm = self._head_mm[row]
        if self._register == "depth_to_gray":
            depth_mm = registration.depth_to_gray(depth_mm, depth_camera, gray_camera)
            camera, head = gray_camera, gray_camera.from_depth_frame(head_mm)
        else:
            gray, depth_mm = registration.gray_to_depth(gray, depth_mm, depth_camera, gray_camera, head_mm[2])
            camera, head = depth_camera, head_mm
        if head[2] <= 0:
            raise images.Unusable("head centre is behind the colour camera", f"frame_{frame}")
        (x, y), (yaw, pitch, roll) = camera.project(head), self._angles_deg[row]
        return Frame(
            self._index[row],
            gray,
            depth_mm,
            (float(x), float(y)),
            (self._focal, self._focal) if self._focal else camera.focal_px,
            yaw=float(yaw),
            pitch=float(pitch),
            roll=float(roll),
            head_mm=tuple(head_mm.tolist()),
        )


def decode_depth(content: bytes, size: tuple[int, int]) -> np.ndarray:
    """A depth.bin -> uint16 (H, W), millimetres, 0 = none.

    Little-endian int32 width and height, then runs until all pixels are filled, row by row: int32 count of zeros, int32
    count of values, that many int16.

    Args:
      content: the file.
      size: (width, height) that it must have.

    Raises:
      images.Unusable: anything else.
    """
    if len(content) < 8:
        raise images.Unusable(_DAMAGED, f"it has {len(content)} bytes")
    if (there := _RUN.unpack_from(content)) != size:
        raise images.Unusable("depth image has another size than depth.cal says", _sizes(there, size))
    depth_mm = np.zeros((size[1], size[0]), "<i2")
    # Where a run begins is known from the run before alone, so the loop is Python's: a turn a run, about a thousand in
    # a frame. Slices of unequal lengths, where a run leaves the file or the image, are an error of the memoryview.
    target, source, unpack = memoryview(depth_mm.reshape(-1).view(np.uint8)), memoryview(content), _RUN.unpack_from
    at, filled, whole = 8, 0, len(target)
    try:
        while filled < whole:
            zeros, values = unpack(content, at)
            if zeros < 0 or values < 0:
                raise images.Unusable(_DAMAGED, "a count is negative")
            at += 8
            filled += 2 * zeros
            end, filled_end = at + 2 * values, filled + 2 * values
            target[filled:filled_end] = source[at:end]
            at, filled = end, filled_end
    except (struct.error, ValueError):
        raise images.Unusable(_DAMAGED, "it ends within a run, or a run leaves the image") from None
    if filled > whole:
        raise images.Unusable(_DAMAGED, "a run leaves the image")
    if at != len(content):
        raise images.Unusable(_DAMAGED, f"{len(content) - at} bytes follow the last pixel")
    if depth_mm.min() < 0:
        raise images.Unusable(_DAMAGED, f"a depth is negative ({depth_mm.min()} mm)")
    return depth_mm.view("<u2").astype(np.uint16, copy=False)


def _find_sequences(raw: Path) -> tuple[dict[int, Path], list[str]]:
    """Sequence number -> folder, ascending; notes."""
    if not raw.is_dir():
        raise FaceDepthError(f"the raw directory {raw} does not exist")
    found, notes, used = {}, [], []
    for layout in LAYOUTS:
        try:
            names = sorted(entry.name for entry in os.scandir(raw / layout) if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise FaceDepthError(f"{raw / layout} cannot be read ({error.strerror})") from None
        names = [name for name in names if re.fullmatch("[0-9]{2}", name)]
        if names:
            used.append(str(raw / layout))
        for name in names:
            if not 1 <= int(name) <= splits.BIWI_SEQUENCES:
                notes.append(f"{raw / layout / name} is none of Biwi's {splits.BIWI_SEQUENCES} sequences and not used")
            elif int(name) in found:
                raise FaceDepthError(
                    f"sequence {name} is in {found[int(name)]} and in {raw / layout / name}; remove one of them, or "
                    f"give --raw the folder to read"
                )
            else:
                found[int(name)] = raw / layout / name
    if not found:
        raise FaceDepthError(f"{raw} holds no sequence of Biwi; {_LAYOUT_TEXT}")
    if len(used) > 1:
        notes.append(f"the sequences are taken from {' and '.join(used)} together")
    return dict(sorted(found.items())), notes


def _find_masks(raw: Path) -> Path:
    for folder in (raw / MASKS, raw / ".." / MASKS):
        if folder.is_dir():
            return folder
    raise FaceDepthError(f"there is no folder {MASKS} in or beside {raw}; get the masks, or leave mask off")


def _listing(folder: Path) -> dict[str, set[str]]:
    """Kind of FILES -> the numbers ("00003") of the frames that have such a file."""
    found = {kind: set() for kind in FILES}
    kinds = {name: kind for kind, name in FILES.items()}
    for name in _file_names(folder):
        if (match := re.fullmatch(r"frame_([0-9]{5})_(.*)", name)) and match[2] in kinds:
            found[kinds[match[2]]].add(match[1])
    return found


def _listing_masks(masks: Path, number: int) -> set[str]:
    names = _file_names(masks / f"{number:02d}")
    return {m[1] for name in names if (m := re.fullmatch(r"frame_([0-9]{5})_depth_mask\.png", name))}


def _file_names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder) if entry.is_file()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FaceDepthError(f"{folder} cannot be read ({error.strerror})") from None


def _person(number: int) -> int:
    return splits.BIWI_SAME_PERSON.get(number, number)


def _info(number: int, frame: str) -> FrameInfo:
    person = _person(number)
    return FrameInfo(f"{number:02d}_{frame}", f"{person:02d}", 0, splits.split_of(person, splits.BIWI_SPLITS))


def _read_poses(folder: Path, frames: set[str]) -> dict[str, bytes | None]:
    return {frame: _read_text(folder / f"frame_{frame}_pose.txt") for frame in frames}


def _find_copies(pose_texts: dict[int, dict[str, bytes | None]]) -> dict[int, tuple[str, str]]:
    """Sequence -> (reason, detail), where two have half of the poses of the shorter one in common, to the byte.

    Of one person the first stays; of two people none does, as it cannot be told whom they show.
    """
    poses = {number: {text for text in texts.values() if text} for number, texts in pose_texts.items()}
    copies = {}
    for one, other in itertools.combinations(poses, 2):
        common = len(poses[one] & poses[other])
        if common and 2 * common >= min(len(poses[one]), len(poses[other])):
            detail = f"{common} poses are the same to the byte"
            copies.setdefault(other, (f"copy of sequence {one:02d}", detail))
            if _person(one) != _person(other):
                copies.setdefault(one, (f"copy of sequence {other:02d}", detail))
    return copies


def _count_notes(folders: dict, index: list[FrameInfo]) -> list[str]:
    notes = []
    missing = [f"{number:02d}" for number in range(1, splits.BIWI_SEQUENCES + 1) if number not in folders]
    if missing:
        notes.append(f"{len(missing)} of {splits.BIWI_SEQUENCES} sequences are missing: {', '.join(missing)}")
    for number, want in splits.BIWI_TEST_FRAMES.items():
        count = sum(info.frame.startswith(f"{number:02d}_") for info in index)
        if number in folders and count != want:
            notes.append(f"test sequence {number:02d} has {count} frames, not {want} as published")
    return notes


def _read_text(path: Path) -> bytes | None:
    """A small file, None where it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(4096)
    except OSError:
        return None


def _parse_pose(content: bytes | None) -> tuple[list[float], tuple[str, str] | None]:
    """A pose.txt: rotation by rows and head centre in mm, 12 numbers; or zeros and (reason, detail)."""
    useless = [1.0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    if content is None:
        return useless, ("pose cannot be read", "")
    try:
        numbers = [float(text) for text in content.split()]
    except ValueError:
        return useless, ("pose is damaged", "it holds something else than numbers")
    if len(numbers) != 12:
        return useless, ("pose is damaged", f"it has {len(numbers)} numbers, not 12")
    if not all(map(math.isfinite, numbers)) or max(map(abs, numbers)) > MAX_HEAD_MM:
        return useless, ("pose is damaged", "it holds a number that is not finite or far out")
    if numbers[11] <= 0:
        return useless, ("head centre is behind the depth camera", f"z = {numbers[11]:g} mm")
    return numbers, None


def _is_rotation(matrices: np.ndarray) -> np.ndarray:
    """(..., 3, 3) -> bool (...)."""
    off = np.abs(matrices @ np.swapaxes(matrices, -1, -2) - np.eye(3)).max((-1, -2))
    return (off <= ROTATION_TOLERANCE) & (np.linalg.det(matrices) > 0)


def _angles_deg(matrices: np.ndarray) -> np.ndarray:
    """Rotations (N, 3, 3) -> yaw, pitch, roll in degrees (N, 3): ry, rx, rz of R = Rz Ry Rx."""
    r = matrices
    pitch = np.arctan2(r[:, 2, 1], r[:, 2, 2])
    yaw = np.arctan2(-r[:, 2, 0], np.hypot(r[:, 2, 1], r[:, 2, 2]))
    roll = np.arctan2(r[:, 1, 0], r[:, 0, 0])
    return np.degrees(np.stack([yaw, pitch, roll], 1))


def _read_cameras(folder: Path) -> tuple[tuple[registration.Camera, registration.Camera] | None, list[bytes], str, str]:
    """(depth camera, colour camera), the texts, '', ''; or None, the texts, reason, detail."""
    cameras, texts = [], []
    for name in ("depth.cal", "rgb.cal"):
        content = _read_text(folder / name)
        texts.append(content or b"")
        if content is None:
            return None, texts, f"{name} is missing", f"{folder.name}/{name}"
        try:
            cameras.append(_parse_camera(content))
        except ValueError as error:
            return None, texts, f"{name} cannot be used", f"{folder.name}/{name}: {error}"
    return tuple(cameras), texts, "", ""


def _parse_camera(content: bytes) -> registration.Camera:
    """A .cal: 3x3 intrinsics, four distortion coefficients, 3x3 R, T in mm, width and height. ValueError if not so."""
    try:
        numbers = [float(text) for text in content.split()]
    except ValueError:
        raise ValueError("it holds something else than numbers") from None
    if len(numbers) != 27:
        raise ValueError(f"it has {len(numbers)} numbers, not 27")
    if not all(math.isfinite(number) and abs(number) <= MAX_FOCAL_PX for number in numbers):
        raise ValueError("it holds a number that is not finite or far out")
    fx, skew, cx, zero, fy, cy, *last = numbers[:9]
    if not (fx >= 1 and fy >= 1) or skew or zero or last != [0, 0, 1]:
        raise ValueError("its first three lines are no intrinsics (fx 0 cx, 0 fy cy, 0 0 1)")
    rotation = np.array(numbers[13:22]).reshape(3, 3)
    if not _is_rotation(rotation):
        raise ValueError("its R is no rotation")
    width, height = numbers[25:]
    if not all(x == int(x) and 1 <= x <= MAX_SIZE_PX for x in (width, height)):
        raise ValueError(f"its image size is {width:g}x{height:g}, not whole numbers from 1 to {MAX_SIZE_PX}")
    camera = registration.Camera(
        focal_px=(fx, fy),
        centre_px=(cx, cy),
        distortion=tuple(numbers[9:13]),
        rotation=tuple(map(tuple, rotation.tolist())),
        translation_mm=tuple(numbers[22:25]),
        size=(int(width), int(height)),
    )
    x, y = np.meshgrid(np.linspace(0, width - 1, 9), np.linspace(0, height - 1, 9))
    with np.errstate(all="ignore"):
        undone = np.abs(np.subtract(camera.project(camera.rays(x, y)), (x, y))).max() < 0.05
    if not undone:
        raise ValueError("its distortion cannot be undone")
    return camera


def _read_depth(path: Path, size: tuple[int, int]) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            # No file that can be used is larger; a run a pixel is the most there can be, but for empty ones.
            content = file.read(8 + 10 * (size[0] * size[1] + 1))
            if file.read(1):
                raise images.Unusable(_DAMAGED, "it is over-long")
    except OSError as error:
        raise images.Unusable("depth file cannot be read", f"{path.name}: {error.strerror}") from None
    try:
        return decode_depth(content, size)
    except images.Unusable as error:
        reason, detail = error.args
        raise images.Unusable(reason, f"{path.name}: {detail}") from None


def _read_mask(masks: Path, number: int, frame: str, camera: registration.Camera) -> np.ndarray:
    try:
        mask = images.read_gray(masks, f"{number:02d}/frame_{frame}_depth_mask.png")
    except images.Unusable as error:
        reason, detail = error.args
        raise images.Unusable(reason.replace("gray image", "mask"), detail) from None
    _check_size("mask", mask, camera)
    return mask > 0


def _check_size(kind: str, image: np.ndarray, camera: registration.Camera) -> None:
    if image.shape != camera.size[::-1]:
        raise images.Unusable(
            f"{kind} has another size than the calibration says", _sizes(image.shape[::-1], camera.size)
        )


def _sizes(there: tuple[int, int], want: tuple[int, int]) -> str:
    return f"{there[0]}x{there[1]}, not {want[0]}x{want[1]}"
