"""Read Pandora's annotations: data.json, in both shapes, and the cropped release's text of angles.

Nothing here knows of folders or images; `pandora.PandoraSource` does. See docs/pandora.md.
"""

import collections
import json
import math
import re

import numpy as np

from facedepth_jax.data import crop
from facedepth_jax.data.frames import Unusable, parse_number

DEPTH_SIZE, COLOUR_SIZE = (424, 512), (1080, 1920)  # Kinect v2's, (H, W)
JOINTS, HEAD = 17, 3
# The map of `register="joints"` (A): joints at least, slopes between joints at least so far apart, and how far the
# scale may be off the ratio of the focal lengths.
MIN_JOINTS, MIN_SLOPES, MIN_SPAN_PX, MAX_SCALE_ERROR = 6, 6, 10.0, 1.25
COLUMNS = ("yaw", "pitch", "roll", "x", "y", "gray_x", "gray_y", "gray_fx", "gray_fy", "x_mm", "y_mm", "z_mm")
TWICE = object()  # in place of an annotation that comes twice


def _object(pairs: list[tuple]) -> dict:
    """Make a JSON object in which a key that comes twice has no usable value."""
    counts = collections.Counter(key for key, _ in pairs)
    return {key: value if counts[key] == 1 else TWICE for key, value in pairs}


def read_annotations(content: bytes) -> tuple[dict[int, object], int]:
    """Read a data.json of either shape.

    Args:
      content: a list of objects with `frame_num`, or an object of JSON strings by "%06d".

    Returns:
      {frame: its annotation, not yet parsed}, and the number of annotations without a frame.

    Raises:
      ValueError: no JSON, or of another shape.
      RecursionError: nested too deep.
    """
    parsed = json.loads(content, object_pairs_hook=_object)
    if isinstance(parsed, dict):
        entries = {int(key): value for key, value in parsed.items() if re.fullmatch("[0-9]{6}", key)}
        return entries, len(parsed) - len(entries)
    if not isinstance(parsed, list):
        raise ValueError("it is neither a list nor an object")
    entries, unread = {}, 0
    for entry in parsed:
        frame = _get(entry, "frame_num")
        if type(frame) is not int or not 0 <= frame <= 999_999:
            unread += 1
        else:
            entries[frame] = TWICE if frame in entries else entry
    return entries, unread


def read_entry(entry, frame: int, ratio: float | None) -> list[float]:
    """Parse a frame's annotation: its COLUMNS, NaN where it says nothing. Raises Unusable.

    Args:
      ratio: of the focal lengths, for the map of the joints; None: the head joint of the colour image is taken. With a
        map, gray_fx and gray_fy are its scales.
    """
    try:
        entry = json.loads(entry, object_pairs_hook=_object) if isinstance(entry, str) else entry
    except (ValueError, RecursionError) as error:
        raise Unusable("annotation is damaged", f"{error}") from None
    if not isinstance(entry, dict):
        raise Unusable("annotation is not an object")
    if entry.get("frame_num", frame) != frame:
        raise Unusable("annotation is of another frame", "frame_num and key differ")
    angles = [_number(_get(entry, "orientation", "euler", name)) for name in ("yaw", "pitch", "roll")]
    if not all(map(math.isfinite, angles)):
        raise Unusable("angles are missing or not numbers")
    heads = []
    for name, size in (("joints", DEPTH_SIZE), ("jointsRGB", COLOUR_SIZE)):
        joints = entry.get(name)
        if not isinstance(joints, list) or len(joints) != JOINTS:
            raise Unusable("joints are missing", f"{name} is not a list of {JOINTS}")
        head = _point(joints[HEAD])
        if not all(map(math.isfinite, head)) or head == (0, 0):
            raise Unusable("head joint is missing", name)
        if not crop.inside(size, head):
            raise Unusable("head joint outside the image", f"{name}: ({head[0]:g}, {head[1]:g})")
        heads.append(head)
    scale = (math.nan, math.nan)
    if ratio is not None:
        scale, shift = _fit_map(*(np.array(list(map(_point, entry[name]))) for name in ("joints", "jointsRGB")))
        if not all(ratio / MAX_SCALE_ERROR < s < ratio * MAX_SCALE_ERROR for s in scale):
            raise Unusable("joints give no map", f"scales {scale[0]:.3g} and {scale[1]:.3g}")
        heads[1] = np.array(heads[0]) * scale + shift
    # Kinect's camera space (C): metres, y up.
    head_m = _point(_get(entry, "joints3D", HEAD), 3)
    head_mm = [factor * x for factor, x in zip((1000, -1000, 1000), head_m, strict=True)]
    if not all(map(math.isfinite, head_mm)):
        head_mm = [math.nan] * 3
    return [*angles, *heads[0], *heads[1], *scale, *head_mm]


def _get(value, *keys):
    """Return what lies under the keys in JSON values, None if nothing does."""
    for key in keys:
        try:
            value = value[key]
        except (LookupError, TypeError):
            return None
    return value


def _number(value) -> float:
    """Return a JSON number as a float; NaN for everything else."""
    try:
        return float(value) if type(value) in (int, float) else math.nan
    except OverflowError:
        return math.nan


def _point(value, size: int = 2) -> tuple[float, ...]:
    """Return a point's coordinates; NaN for everything else."""
    if not isinstance(value, list) or len(value) != size:
        return (math.nan,) * size
    return tuple(map(_number, value))


def _fit_map(joints: np.ndarray, colour: np.ndarray) -> tuple[list[float], list[float]]:
    """Fit the line `colour = scale * depth + shift` for each axis. Raises Unusable for too few joints.

    By Theil and Sen: the median of the slopes between any two joints, then of what is left. Up to 29 % of the joints
    may be wrong, four of seventeen.

    Args:
      joints, colour: float64 (JOINTS, 2), in pixels of the depth and the colour image.
    """
    good = np.ones(len(joints), bool)
    for points, (height, width) in ((joints, DEPTH_SIZE), (colour, COLOUR_SIZE)):
        # Kinect projects a point in space into both images, so one out of view is as good, up to some distance. NaN
        # compares false. (0, 0) is a joint that was not tracked.
        near = np.abs(points - [width / 2, height / 2]) <= [1.5 * width, 1.5 * height]
        good &= near.all(-1) & points.any(-1)
    a, b = np.triu_indices(good.sum(), 1)
    scales, shifts = [], []
    for x, y in zip(joints[good].T, colour[good].T, strict=True):
        span = x[b] - x[a]
        far = np.abs(span) >= MIN_SPAN_PX
        if len(x) < MIN_JOINTS or far.sum() < MIN_SLOPES:
            raise Unusable("too few joints for a map", f"{len(x)} usable")
        scales.append(float(np.median((y[b] - y[a])[far] / span[far])))
        shifts.append(float(np.median(y - scales[-1] * x)))
    return scales, shifts


def read_angles(content: bytes) -> tuple[dict[int, object], int]:
    """Read the cropped release's text: {frame: (yaw, pitch, roll)}, NaN for none; count of lines without a frame.

    Raises ValueError if it is not text.
    """
    entries, unread = {}, 0
    for line in content.decode("utf-8-sig").splitlines():
        cells = [cell.strip() for cell in line.split("\t")]
        if cells == [""]:
            continue
        if not re.fullmatch("[0-9]{1,6}", cells[0]):
            unread += 1
            continue
        try:
            roll, pitch, yaw = map(parse_number, cells[1:4])
        except ValueError:
            roll = pitch = yaw = math.nan
        frame = int(cells[0])
        entries[frame] = TWICE if frame in entries else (yaw, pitch, roll)
    return entries, unread
