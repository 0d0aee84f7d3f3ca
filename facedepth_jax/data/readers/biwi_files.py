"""Read single files of Biwi: depth, pose, calibration, mask."""

import math
import struct
from pathlib import Path

import numpy as np

from facedepth_jax.data import images
from facedepth_jax.data.frames import MAX_FOCAL_PX, parse_number
from facedepth_jax.data.readers.registration import Camera

MAX_SIZE_PX = 4096
MAX_HEAD_MM = 100_000.0
ROTATION_TOLERANCE = 1e-3  # the files have six digits

_DAMAGED = "depth file is truncated or damaged"
_RUN = struct.Struct("<ii")


def decode_depth(content: bytes, size: tuple[int, int]) -> np.ndarray:
    """Decode a depth.bin: uint16 (H, W), millimetres, 0 = none.

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
    # Only the run before says where a run begins, so Python loops over them, about a thousand in a frame. The
    # memoryview raises ValueError for slices of unequal lengths, where a run leaves the file or the image.
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


def read_text(path: Path) -> bytes | None:
    """Return the content of a small file, None if it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(4096)
    except OSError:
        return None


def parse_pose(content: bytes | None) -> tuple[list[float], tuple[str, str] | None]:
    """Parse a pose.txt: 12 numbers, rotation by rows and head centre in mm; and the fault (reason, detail) or None."""
    useless = [1.0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    if content is None:
        return useless, ("pose cannot be read", "")
    try:
        numbers = [parse_number(word.decode("latin-1")) for word in content.split()]
    except ValueError:
        return useless, ("pose is damaged", "it holds something else than numbers")
    if len(numbers) != 12:
        return useless, ("pose is damaged", f"it has {len(numbers)} numbers, not 12")
    if not all(map(math.isfinite, numbers)) or max(map(abs, numbers)) > MAX_HEAD_MM:
        return useless, ("pose is damaged", "it holds a number that is not finite or far out")
    if numbers[11] <= 0:
        return useless, ("head centre is behind the depth camera", f"z = {numbers[11]:g} mm")
    return numbers, None


def is_rotation(matrices: np.ndarray) -> np.ndarray:
    """Check which matrices (..., 3, 3) are rotations: bool (...)."""
    off = np.abs(matrices @ np.swapaxes(matrices, -1, -2) - np.eye(3)).max((-1, -2))
    return (off <= ROTATION_TOLERANCE) & (np.linalg.det(matrices) > 0)


def angles_deg(matrices: np.ndarray) -> np.ndarray:
    """Return yaw, pitch, roll in degrees (N, 3) of rotations (N, 3, 3): ry, rx, rz of R = Rz Ry Rx."""
    r = matrices
    pitch = np.arctan2(r[:, 2, 1], r[:, 2, 2])
    yaw = np.arctan2(-r[:, 2, 0], np.hypot(r[:, 2, 1], r[:, 2, 2]))
    roll = np.arctan2(r[:, 1, 0], r[:, 0, 0])
    return np.degrees(np.stack([yaw, pitch, roll], 1))


def read_cameras(folder: Path) -> tuple[tuple[Camera, Camera] | None, list[bytes], tuple[str, str] | None]:
    """Return (depth camera, colour camera), their files' contents, and None; without cameras the fault."""
    cameras, texts = [], []
    for name in ("depth.cal", "rgb.cal"):
        content = read_text(folder / name)
        texts.append(content or b"")
        if content is None:
            return None, texts, (f"{name} is missing", f"{folder.name}/{name}")
        try:
            cameras.append(_parse_camera(content))
        except ValueError as error:
            return None, texts, (f"{name} cannot be used", f"{folder.name}/{name}: {error}")
    return tuple(cameras), texts, None


def _parse_camera(content: bytes) -> Camera:
    """Parse a .cal: 3x3 intrinsics, four distortion coefficients, 3x3 R, T in mm, width, height. Raises ValueError."""
    try:
        numbers = [parse_number(word.decode("latin-1")) for word in content.split()]
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
    if not is_rotation(rotation):
        raise ValueError("its R is no rotation")
    width, height = numbers[25:]
    if not all(x == int(x) and 1 <= x <= MAX_SIZE_PX for x in (width, height)):
        raise ValueError(f"its image size is {width:g}x{height:g}, not whole numbers from 1 to {MAX_SIZE_PX}")
    camera = Camera(
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


def read_depth(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Read a depth.bin, see `decode_depth`."""
    try:
        with open(path, "rb") as file:
            # A usable file has at most one run for each pixel, but for empty runs.
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


def read_mask(masks: Path, number: int, frame: str, camera: Camera) -> np.ndarray:
    """Read a head mask: bool (H, W). Raises images.Unusable."""
    try:
        mask = images.read_gray(masks, f"{number:02d}/frame_{frame}_depth_mask.png")
    except images.Unusable as error:
        reason, detail = error.args
        raise images.Unusable(reason.replace("gray image", "mask"), detail) from None
    check_size("mask", mask, camera)
    return mask > 0


def check_size(kind: str, image: np.ndarray, camera: Camera) -> None:
    """Raise images.Unusable unless an image has the size of its camera's."""
    if image.shape != camera.size[::-1]:
        raise images.Unusable(
            f"{kind} has another size than the calibration says", _sizes(image.shape[::-1], camera.size)
        )


def _sizes(there: tuple[int, int], want: tuple[int, int]) -> str:
    return f"{there[0]}x{there[1]}, not {want[0]}x{want[1]}"
