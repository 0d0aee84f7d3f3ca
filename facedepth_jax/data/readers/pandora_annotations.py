"""Read Pandora's annotations: data.json, in both shapes, and the cropped release's text of angles.

Nothing here knows of folders or images; `pandora.PandoraSource` does. See docs/pandora.md.
"""

import collections
import json
import math
import re

import numpy as np

from facedepth_jax.data import crop, images
from facedepth_jax.data.frames import parse_number

DEPTH_SIZE, COLOUR_SIZE = (424, 512), (1080, 1920)  # Kinect v2's, (H, W)
JOINTS, HEAD = 17, 3
# The map of `register="joints"` (A): joints at least, and slopes between joints at least so far apart.
MIN_JOINTS, MIN_SLOPES, MIN_SPAN_PX = 6, 6, 10.0
COLUMNS = ("yaw", "pitch", "roll", "x", "y", "gray_x", "gray_y", "gray_fx", "gray_fy", "x_mm", "y_mm", "z_mm")
TWICE = object()  # in place of an annotation that comes twice


def _object(pairs: list[tuple]) -> dict:
    """Make a JSON object in which a key that comes twice has no value that could be used."""
    result = dict(pairs)
    if len(result) < len(pairs):
        for key, count in collections.Counter(key for key, _ in pairs).items():
            if count > 1:
                result[key] = TWICE
    return result


def _parse(content: bytes | str):
    """Parse JSON. Raises ValueError, also if it is nested too deep."""
    try:
        return json.loads(content, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_annotations(content: bytes) -> tuple[dict[int, object], int]:
    """Read a data.json of either shape.

    Args:
      content: a list of objects with `frame_num`, or an object of JSON strings by "%06d".

    Returns:
      {frame: its annotation, not yet parsed}, and the number of annotations without a frame.

    Raises:
      ValueError: no JSON, or of another shape.
    """
    parsed = _parse(content)
    if isinstance(parsed, dict):
        entries = {int(key): value for key, value in parsed.items() if re.fullmatch("[0-9]{6}", key)}
        return entries, len(parsed) - len(entries)
    if not isinstance(parsed, list):
        raise ValueError("it is neither a list nor an object")
    entries, unread = {}, 0
    for entry in parsed:
        frame = entry.get("frame_num") if isinstance(entry, dict) else None
        if type(frame) is not int or not 0 <= frame <= 999_999:
            unread += 1
        else:
            entries[frame] = TWICE if frame in entries else entry
    return entries, unread


def read_entry(entry, frame: int, all_joints: bool) -> tuple[list[float], np.ndarray | None]:
    """Parse a frame's annotation: its COLUMNS and, if wanted, its joints, float64 (2, JOINTS, 2), of depth and colour.

    Raises images.Unusable.
    """
    if isinstance(entry, str):
        try:
            entry = _parse(entry)
        except ValueError as error:
            raise images.Unusable("annotation is damaged", f"{error}") from None
    if not isinstance(entry, dict):
        raise images.Unusable("annotation is no object")
    if entry.get("frame_num", frame) != frame:
        raise images.Unusable("annotation is of another frame", "frame_num and key differ")
    euler = entry.get("orientation")
    euler = euler.get("euler") if isinstance(euler, dict) else None
    angles = [_number(euler.get(name)) if isinstance(euler, dict) else math.nan for name in ("yaw", "pitch", "roll")]
    if not all(map(math.isfinite, angles)):
        raise images.Unusable("angles are missing or no numbers")
    heads, both = [], [entry.get("joints"), entry.get("jointsRGB")]
    for name, joints, size in zip(("joints", "jointsRGB"), both, (DEPTH_SIZE, COLOUR_SIZE), strict=True):
        if not isinstance(joints, list) or len(joints) != JOINTS:
            raise images.Unusable("joints are missing", f"{name} is no list of {JOINTS}")
        head = _point(joints[HEAD])
        if not all(map(math.isfinite, head)) or head == (0, 0):
            raise images.Unusable("head joint is missing", name)
        if not crop.inside(size, head):
            raise images.Unusable("head joint outside the image", f"{name}: ({head[0]:g}, {head[1]:g})")
        heads += head
    joints_3d = entry.get("joints3D")
    head_m = joints_3d[HEAD] if isinstance(joints_3d, list) and len(joints_3d) == JOINTS else None
    head_mm = (math.nan,) * 3
    if isinstance(head_m, list) and len(head_m) == 3:
        # Kinect's camera space (C): metres, y up.
        head_mm = tuple(_number(x) * factor for x, factor in zip(head_m, (1000, -1000, 1000), strict=True))
        if not all(map(math.isfinite, head_mm)):
            head_mm = (math.nan,) * 3
    values = [*angles, *heads, math.nan, math.nan, *head_mm]
    return values, np.array([[_point(p) for p in joints] for joints in both]) if all_joints else None


def _number(value) -> float:
    """Return a JSON number as a float; NaN for everything else."""
    if type(value) not in (int, float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _point(value) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        return math.nan, math.nan
    return _number(value[0]), _number(value[1])


def fit_maps(joints: np.ndarray, colour: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit the line `colour = scale * depth + shift` for each frame and axis.

    By Theil and Sen: the median of the slopes between any two joints, then of what is left. Up to 29 % of the joints
    may be wrong, four of seventeen.

    Args:
      joints, colour: float64 (F, JOINTS, 2), in pixels of the depth and the colour image.

    Returns:
      scale (F, 2) and shift (F, 2), NaN where there are too few; count of usable joints, int (F,).
    """
    good = np.ones(joints.shape[:2], bool)
    for points, (height, width) in ((joints, DEPTH_SIZE), (colour, COLOUR_SIZE)):
        # Kinect projects a point in space into both images, so one out of view is as good, up to some distance. NaN
        # compares false. (0, 0) is a joint that was not tracked.
        beyond = np.abs(points - [width / 2, height / 2]) > [1.5 * width, 1.5 * height]
        good &= np.isfinite(points).all(-1) & ~beyond.any(-1) & points.any(-1)
    usable = good.sum(1)
    a, b = np.triu_indices(JOINTS, 1)
    joints, colour = np.where(good[..., None], joints, 0), np.where(good[..., None], colour, 0)
    span = joints[:, b] - joints[:, a]
    far = (good[:, a] & good[:, b])[..., None] & (np.abs(span) >= MIN_SPAN_PX)
    scale = _median((colour[:, b] - colour[:, a]) / np.where(far, span, 1), far)
    enough = (usable >= MIN_JOINTS)[:, None] & (far.sum(1) >= MIN_SLOPES)
    scale = np.where(enough, scale, np.nan)
    shift = _median(colour - scale[:, None] * joints, np.broadcast_to(good[..., None], joints.shape))
    return scale, np.where(enough, shift, np.nan), usable


def _median(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Take the median (F, 2) of values (F, N, 2), over those of the N `where`; NaN where there is none."""
    count = where.sum(1, keepdims=True)
    ordered = np.sort(np.where(where, values, np.inf), axis=1)
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, values.shape[1] - 1)
    both = [np.take_along_axis(ordered, at, 1) for at in (low, high)]
    return np.where(count > 0, sum(np.where(np.isfinite(x), x, np.nan) for x in both) / 2, np.nan)[:, 0]


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
