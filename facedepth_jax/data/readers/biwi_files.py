"""Read single files of Biwi: depth, pose, calibration, mask."""

import struct
from pathlib import Path

import numpy as np

from facedepth_jax.data import images
from facedepth_jax.data.frames import MAX_FOCAL_PX, Unusable, parse_number
from facedepth_jax.data.readers.registration import Camera

CALIBRATIONS = ("depth.cal", "rgb.cal")
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
      Unusable: anything else.
    """
    depth_mm = np.zeros((size[1], size[0]), "<i2")
    # Only the run before says where a run begins, so Python loops over them, about a thousand in a frame. The
    # memoryview raises ValueError for slices of unequal lengths, where a run leaves the file or the image.
    target, source, unpack = memoryview(depth_mm.reshape(-1).view(np.uint8)), memoryview(content), _RUN.unpack_from
    at, filled, whole = 8, 0, len(target)
    try:
        images.check_size("depth image", unpack(content), size)
        while filled < whole:
            zeros, values = unpack(content, at)
            if zeros < 0 or values < 0:
                raise ValueError
            at, filled = at + 8, filled + 2 * zeros
            end, filled_end = at + 2 * values, filled + 2 * values
            target[filled:filled_end] = source[at:end]
            at, filled = end, filled_end
        if filled > whole or at != len(content) or depth_mm.min() < 0:
            raise ValueError
    except (struct.error, ValueError):
        raise Unusable(_DAMAGED, "its runs are not those of an image") from None
    return depth_mm.view("<u2").astype(np.uint16, copy=False)


def read_text(path: Path) -> bytes | None:
    """Return the content of a small file, None if it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(4096)
    except OSError:
        return None


def _parse_numbers(content: bytes, count: int, limit: float) -> list[float]:
    """Parse that many finite numbers. Raises ValueError."""
    try:
        numbers = [parse_number(word.decode("latin-1")) for word in content.split()]
    except ValueError:
        raise ValueError("it holds something else than numbers") from None
    if len(numbers) != count:
        raise ValueError(f"it has {len(numbers)} numbers, not {count}")
    if not all(abs(number) <= limit for number in numbers):
        raise ValueError("it holds a number that is not finite or far out")
    return numbers


def parse_pose(content: bytes | None) -> list[float]:
    """Parse a pose.txt: 12 numbers, rotation by rows and head centre in mm. Raises Unusable."""
    if content is None:
        raise Unusable("pose cannot be read")
    try:
        numbers = _parse_numbers(content, 12, MAX_HEAD_MM)
    except ValueError as error:
        raise Unusable("pose is damaged", str(error)) from None
    if numbers[11] <= 0:
        raise Unusable("head centre is behind the depth camera", f"z = {numbers[11]:g} mm")
    if not _is_rotation(numbers[:9]):
        raise Unusable("pose is not a rotation")
    return numbers


def _is_rotation(numbers: list[float]) -> bool:
    matrix = np.array(numbers).reshape(3, 3)
    return np.abs(matrix @ matrix.T - np.eye(3)).max() <= ROTATION_TOLERANCE and np.linalg.det(matrix) > 0


def angles_deg(matrices: np.ndarray) -> np.ndarray:
    """Return yaw, pitch, roll in degrees (N, 3) of rotations (N, 3, 3): ry, rx, rz of R = Rz Ry Rx."""
    r = matrices
    pitch = np.arctan2(r[:, 2, 1], r[:, 2, 2])
    yaw = np.arctan2(-r[:, 2, 0], np.hypot(r[:, 2, 1], r[:, 2, 2]))
    roll = np.arctan2(r[:, 1, 0], r[:, 0, 0])
    return np.degrees(np.stack([yaw, pitch, roll], 1))


def parse_cameras(folder: str, texts: list[bytes | None]) -> tuple[Camera, Camera]:
    """Return the depth and the colour camera from the contents of CALIBRATIONS. Raises Unusable."""
    cameras = []
    for name, content in zip(CALIBRATIONS, texts, strict=True):
        if content is None:
            raise Unusable(f"{name} is missing", f"{folder}/{name}")
        try:
            cameras.append(_parse_camera(content))
        except ValueError as error:
            raise Unusable(f"{name} cannot be used", f"{folder}/{name}: {error}") from None
    return tuple(cameras)


def _parse_camera(content: bytes) -> Camera:
    """Parse a .cal: 3x3 intrinsics, four distortion coefficients, 3x3 R, T in mm, width, height. Raises ValueError."""
    numbers = _parse_numbers(content, 27, MAX_FOCAL_PX)
    fx, skew, cx, zero, fy, cy, *last = numbers[:9]
    if not (fx >= 1 and fy >= 1) or skew or zero or last != [0, 0, 1]:
        raise ValueError("its first three lines are not intrinsics (fx 0 cx, 0 fy cy, 0 0 1)")
    if not _is_rotation(numbers[13:22]):
        raise ValueError("its R is not a rotation")
    width, height = numbers[25:]
    if not all(x == int(x) and 1 <= x <= MAX_SIZE_PX for x in (width, height)):
        raise ValueError(f"its image size is {width:g}x{height:g}, not whole numbers from 1 to {MAX_SIZE_PX}")
    camera = Camera(
        focal_px=(fx, fy),
        centre_px=(cx, cy),
        distortion=tuple(numbers[9:13]),
        rotation=tuple(tuple(numbers[i : i + 3]) for i in (13, 16, 19)),
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
            return decode_depth(file.read(8 + 10 * (size[0] * size[1] + 1)), size)
    except OSError as error:
        raise Unusable("depth file cannot be read", f"{path.name}: {error.strerror}") from None
    except Unusable as error:
        reason, detail = error.args
        raise Unusable(reason, f"{path.name}: {detail}") from None
