"""Pandora (Borghi et al., POSEidon, CVPR 2017): 22 people before a Kinect v2, in five sequences each.

Two releases are read, told apart by their layout:
  whole    NN/{base_1,base_2,free_1,free_2,free_3}_IDNN/ with RGB/%06d_RGB.png (1920x1080), DEPTH/%06d_DEPTH.png
           (512x424, 16 bits, mm, 0 = none) and data.json: angles, and joints in the pixels of both images
  cropped  NNN/frame_%06d_face_depth.png (levels of 8 bits in 16), NNN/frame_%06d_face_rgb.png and one .txt with frame,
           roll, pitch, yaw, separated by tabs
NN is the subject, NNN = 5 (subject - 1) + sequence. See docs/pandora.md.
"""

import bisect
import collections
import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from facedepth_jax.data import geometry, images, splits
from facedepth_jax.data.frames import Frame, FrameInfo, Reject
from facedepth_jax.errors import FaceDepthError

REGISTER = ("head", "joints")
SEQUENCES = ("base_1", "base_2", "free_1", "free_2", "free_3")  # S1..S5 (A)
DEPTH_SIZE, COLOUR_SIZE = (424, 512), (1080, 1920)  # Kinect v2's, (H, W)
JOINTS, HEAD = 17, 3
# The map of `register="joints"` (A): joints at least, and slopes between joints at least so far apart.
MIN_JOINTS, MIN_SLOPES, MIN_SPAN_PX = 6, 6, 10.0
MAX_SCALE_ERROR = 1.25  # of the map's scale against the ratio of the focal lengths
MAX_FOCAL_PX = 1_000_000
# The cropped release's levels (C): (mm - 500) / 8, cut to a whole number of 8 bits, so that 0 mm is 194.
LEVEL_OFFSET_MM, LEVEL_STEP_MM, LEVEL_NONE = 500, 8, 194

_COLUMNS = ("yaw", "pitch", "roll", "x", "y", "gray_x", "gray_y", "gray_fx", "gray_fy", "x_mm", "y_mm", "z_mm")
_COPY = "copy of another sequence"


@dataclasses.dataclass(frozen=True)
class _Sequence:
    """A folder and what is known of its frames.

    Attributes:
      path: relative to the raw directory.
      number: NNN, 1..110.
      copy: 0, or counts further folders of the same number, all of whose frames are rejected.
      frames: int32 (F,), ascending: all that an image or the annotation names.
      values: float64 (F, len(_COLUMNS)), NaN where unknown or rejected.
      fault: (reason, detail) that rejects all frames, or None.
      faults: the same of single rows.
      unread: annotations without a frame's number.
      annotation: SHA-256 of the annotation, "" where it holds nothing.
    """

    path: str
    number: int
    copy: int
    frames: np.ndarray
    values: np.ndarray
    fault: tuple[str, str] | None
    faults: dict[int, tuple[str, str]]
    unread: int
    annotation: str

    @property
    def subject(self) -> int:
        return (self.number - 1) // 5 + 1


class PandoraSource:
    """Pandora as a `frames.Source`. All annotations and folders are read at once, the images when they are loaded."""

    name = "pandora"

    def __init__(
        self,
        raw: str,
        *,
        register: str = "head",
        focal: float = 365.0,
        gray_focal: float = 1081.37,
        max_angle: float = 90.0,
    ):
        """
        Args:
          raw: the directory of the folders 01..22, or 001..110 of the cropped release.
          register: where the face is in the colour image. "head": around its own head joint (P); "joints": where the
            2D map fitted to the frame's joints puts the depth image's head joint (A). Not for the cropped release.
          focal: of the depth camera in pixels; the paper's. The calibration's is about 365.456.
          gray_focal: of the colour camera; Kinect v2's.
          max_angle: frames with an angle beyond, in degrees, are extreme poses (A; the paper gives no limit).

        Raises:
          FaceDepthError: an option out of its range, a directory that is no Pandora.
        """
        if register not in REGISTER:
            raise FaceDepthError(f"register is '{register}', not one of {', '.join(REGISTER)}")
        focal, gray_focal, max_angle = float(focal), float(gray_focal), float(max_angle)
        for option, value, most in (("focal", focal, MAX_FOCAL_PX), ("gray_focal", gray_focal, MAX_FOCAL_PX)):
            if not 1 <= value <= most:
                raise FaceDepthError(f"{option} is {value}, not 1 to {most} pixels")
        if not 0 < max_angle <= 180:
            raise FaceDepthError(f"max_angle is {max_angle}, not above 0 and up to 180 degrees")
        self._raw, self._focal = Path(raw), focal
        self._cropped, folders, self._unknown = _find(self._raw)
        found = []
        for path, number, copy, fault in folders:
            if self._cropped:
                frames, values, read_fault, faults, *rest = _read_cropped(self._raw / path)
            else:
                ratio = gray_focal / focal if register == "joints" else None
                frames, values, read_fault, faults, *rest = _read_whole(self._raw / path, ratio)
                # Each image has its own focal length; with a map, the map's scale times the depth image's.
                values[:, 7:9] = gray_focal if ratio is None else values[:, 7:9] * focal
            turned = np.abs(values[:, :3]).max(1)
            for row in np.flatnonzero(turned > max_angle).tolist():
                faults[row] = ("extreme pose", f"{turned[row]:g} degrees")
            for first, last in splits.PANDORA_EXCLUDED.get(number, ()):
                for row in np.flatnonzero((frames >= first) & (frames <= last)).tolist():
                    faults[row] = ("excluded by the group's list", "")
            found.append(_Sequence(path, number, copy, frames, values, fault or read_fault, faults, *rest))
        self._sequences = _without_copies(found)
        counts = [len(sequence.frames) for sequence in self._sequences]
        self._starts = [0, *np.cumsum(counts).tolist()]
        self.settings = {
            "release": "cropped" if self._cropped else "whole",
            "files_sha256": _digest(self._sequences),
            "focal": focal,
            "max_angle": max_angle,
        }
        if not self._cropped:
            self.settings |= {"register": register, "gray_focal": gray_focal}

    def index(self) -> list[FrameInfo]:
        """All frames that an image or an annotation names, by sequence and number: 'NNN_FFFFFF'."""
        return [_info(sequence, frame) for sequence in self._sequences for frame in sequence.frames.tolist()]

    def load(self, start: int, stop: int) -> Iterator[Frame | Reject]:
        """One item for each entry of `index()[start:stop]`; a Reject where a frame cannot be used."""
        for at in range(start, min(stop, self._starts[-1])):
            which = bisect.bisect_right(self._starts, at) - 1
            sequence, row = self._sequences[which], at - self._starts[which]
            info = _info(sequence, int(sequence.frames[row]))
            try:
                if fault := sequence.fault or sequence.faults.get(row):
                    raise images.Unusable(*fault)
                yield self._load(info, sequence, row)
            except images.Unusable as error:
                yield Reject(info, *error.args)

    def known_rejects(self) -> list[Reject]:
        """What needs no image to be rejected: annotations, missing files, extreme poses, the group's list, copies."""
        return [
            Reject(_info(sequence, frame), *fault)
            for sequence in self._sequences
            for row, frame in enumerate(sequence.frames.tolist())
            if (fault := sequence.fault or sequence.faults.get(row))
        ]

    def notes(self) -> list[str]:
        """Missing subjects and sequences, unknown folders, unusable sequences, frames without image or annotation."""
        there = {sequence.number for sequence in self._sequences if not sequence.copy}
        notes = []
        if len(there) != splits.PANDORA_SEQUENCES:
            notes.append(f"{len(there)} sequences are here, {splits.PANDORA_SEQUENCES} are expected")
        missing = collections.defaultdict(list)
        for number in sorted(set(range(1, 5 * splits.PANDORA_SUBJECTS + 1)) - there):
            missing[(number - 1) // 5 + 1].append(f"{number:03d}" if self._cropped else SEQUENCES[(number - 1) % 5])
        if gone := [f"{subject:02d}" for subject, names in missing.items() if len(names) == 5]:
            notes.append(f"no sequence of the subjects {', '.join(gone)}")
        for subject, names in missing.items():
            if len(names) < 5:
                notes.append(f"subject {subject:02d} has no {', '.join(names)}")
        if self._unknown:
            notes.append(f"unknown folders, not read: {', '.join(self._unknown)}")
        for sequence in self._sequences:
            if not len(sequence.frames):
                notes.append(f"{sequence.path} holds no frame")
            if sequence.fault:
                notes.append(
                    f"{sequence.path}, {len(sequence.frames)} frames: {' - '.join(filter(None, sequence.fault))}"
                )
            if sequence.unread:
                notes.append(f"{sequence.path}: {sequence.unread} annotations without a frame's number")
        counts = collections.Counter()
        for sequence in self._sequences:
            if not sequence.fault:
                reasons = collections.Counter(reason for reason, _ in sequence.faults.values())
                for reason in reasons.keys() & _SKIPPED:
                    counts[reason, "frames"] += reasons[reason]
                    counts[reason, "sequences"] += 1
        for reason in _SKIPPED:
            if number := counts[reason, "frames"]:
                notes.append(f"{number} frames of {counts[reason, 'sequences']} sequences: {reason}")
        return notes

    def _load(self, info: FrameInfo, sequence: _Sequence, row: int) -> Frame:
        """Raises images.Unusable."""
        number, folder = int(sequence.frames[row]), sequence.path
        known = dict(zip(_COLUMNS, sequence.values[row].tolist(), strict=True))
        angles = {name: known[name] for name in ("yaw", "pitch", "roll")}
        if self._cropped:
            gray = images.read_gray(self._raw, f"{folder}/frame_{number:06d}_face_rgb.png")
            depth_mm = _mm(images.read_depth(self._raw, f"{folder}/frame_{number:06d}_face_depth.png"))
            middles = [((image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2) for image in (depth_mm, gray)]
            focal_px = (self._focal, self._focal)
            return Frame(info, gray, depth_mm, middles[0], focal_px, middles[1], focal_px, **angles, cropped=True)
        gray = images.read_gray(self._raw, f"{folder}/RGB/{number:06d}_RGB.png")
        depth_mm = images.read_depth(self._raw, f"{folder}/DEPTH/{number:06d}_DEPTH.png")
        for kind, image, (height, width) in (("gray", gray, COLOUR_SIZE), ("depth", depth_mm, DEPTH_SIZE)):
            if image.shape != (height, width):
                raise images.Unusable(f"{kind} image is not {width}x{height}", f"{image.shape[1]}x{image.shape[0]}")
        return Frame(
            info,
            gray,
            depth_mm,
            (known["x"], known["y"]),
            (self._focal, self._focal),
            (known["gray_x"], known["gray_y"]),
            (known["gray_fx"], known["gray_fy"]),
            **angles,
            head_mm=(known["x_mm"], known["y_mm"], known["z_mm"]),
        )


_NOT_ANNOTATED, _NO_GRAY, _NO_DEPTH = "frame is not annotated", "gray image is missing", "depth image is missing"
_SKIPPED = {reason: None for reason in (_NOT_ANNOTATED, _NO_GRAY, _NO_DEPTH)}


def _info(sequence: _Sequence, frame: int) -> FrameInfo:
    name = f"{sequence.number:03d}_{frame:06d}" + (f".copy{sequence.copy}" if sequence.copy else "")
    split = splits.split_of(sequence.subject, splits.PANDORA_SPLITS)
    return FrameInfo(name, f"{sequence.subject:02d}", (sequence.number - 1) % 5 + 1, split)


def _mm(levels: np.ndarray) -> np.ndarray:
    """The cropped release's levels, uint16 -> mm, uint16. Its "none" is also 2052 mm, where no face is."""
    if levels.max(initial=0) > 255:
        raise images.Unusable("depth is no level of 8 bits", f"{levels.max()}")
    return np.where(levels == LEVEL_NONE, 0, LEVEL_OFFSET_MM + LEVEL_STEP_MM * levels).astype(np.uint16)


# --- folders ---------------------------------------------------------------------------------------------------------


def _find(raw: Path) -> tuple[bool, list[tuple[str, int, int, tuple[str, str] | None]], list[str]]:
    """Whether it is the cropped release; (path, number, copy, fault) of its sequences; unknown folders."""
    top = _folders(raw)
    if top is None:
        raise FaceDepthError(f"the raw directory {raw} does not exist or cannot be listed")
    subjects = [name for name in top if re.fullmatch("[0-9]{2}", name) and 1 <= int(name) <= splits.PANDORA_SUBJECTS]
    numbered = [
        name for name in top if re.fullmatch("[0-9]{3}", name) and 1 <= int(name) <= 5 * splits.PANDORA_SUBJECTS
    ]
    if subjects and numbered:
        raise FaceDepthError(
            f"{raw} holds folders of both releases of Pandora ({subjects[0]}, {numbered[0]}); give each a directory"
        )
    unknown = sorted(set(top) - set(subjects) - set(numbered))
    if numbered:
        return True, [(name, int(name), 0, None) for name in numbered], unknown
    pattern = re.compile(f"({'|'.join(SEQUENCES)})_id([0-9]{{2}})", re.IGNORECASE)
    found = []
    for subject in subjects:
        for name in _folders(raw / subject) or ():
            path, match = f"{subject}/{name}", pattern.fullmatch(name)
            if not match or not 1 <= int(match[2]) <= splits.PANDORA_SUBJECTS:
                unknown.append(path)
                continue
            sequence = SEQUENCES.index(match[1].lower())
            expected = f"{SEQUENCES[sequence]}_ID{match[2]}"
            found.append((5 * (int(match[2]) - 1) + sequence + 1, match[2] != subject, name != expected, path))
    if not found:
        raise FaceDepthError(
            f"{raw} holds no sequence of Pandora, as 01/base_1_ID01 or, cropped, 001; give the directory above them"
        )
    result, first, copies = [], {}, collections.Counter()
    for number, elsewhere, _, path in sorted(found):  # the right place and spelling first
        fault = None
        if number in first:
            fault = (_COPY, f"{path} beside {first[number]}")
        elif elsewhere:
            fault = ("sequence lies under another subject", path)
        if fault:
            copies[number] += 1
        first.setdefault(number, path)
        result.append((path, number, copies[number], fault))
    return False, result, unknown


def _folders(path: Path) -> list[str] | None:
    """Sorted names of the folders in `path`; None where it cannot be listed."""
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except OSError:
        return None


def _files(path: Path, pattern: str) -> dict[int, str] | None:
    """{number: name} of the names that match, the number in the first group; None where `path` cannot be listed."""
    try:
        with os.scandir(path) as entries:
            matches = (re.fullmatch(pattern, entry.name) for entry in entries)
            return {int(match[1]): match[0] for match in matches if match}
    except OSError:
        return None


def _without_copies(sequences: list[_Sequence]) -> list[_Sequence]:
    """Faults of sequences with the same annotation.

    Of one subject the first stays; of two none does, as it cannot be told whom they show.
    """
    by_annotation = collections.defaultdict(list)
    for sequence in sequences:
        if sequence.annotation and not sequence.fault:
            by_annotation[sequence.annotation].append(sequence)
    faults = {}
    for group in by_annotation.values():
        stays = len({sequence.subject for sequence in group}) == 1
        for at, sequence in enumerate(group):
            if at or not stays and len(group) > 1:
                other = group[0] if at else group[1]
                faults[sequence.path] = (_COPY, f"{sequence.path} has the annotation of {other.path}")
    return [dataclasses.replace(s, fault=s.fault or faults.get(s.path)) for s in sequences]


def _digest(sequences: list[_Sequence]) -> str:
    """SHA-256 of the annotations and of which images are there."""
    digest = hashlib.sha256()
    for s in sequences:
        missing = sorted((row, reason) for row, (reason, _) in s.faults.items() if reason in _SKIPPED)
        digest.update(json.dumps([s.path, s.annotation, s.fault, s.unread, s.frames.tolist(), missing]).encode())
    return digest.hexdigest()


# --- the whole release -----------------------------------------------------------------------------------------------


def _read_whole(folder: Path, ratio: float | None):
    """frames, values, fault, faults, unread, annotation of a `_Sequence`.

    Args:
      ratio: of the focal lengths, for the map of the joints; None: the head joint of the colour image is taken. With a
        map, gray_fx and gray_fy are its scales.
    """
    gray = _files(folder / "RGB", "([0-9]{6})_RGB[.]png")
    depth = _files(folder / "DEPTH", "([0-9]{6})_DEPTH[.]png")
    fault, entries, unread, annotation = None, {}, 0, ""
    try:
        content = (folder / "data.json").read_bytes()
        annotation = hashlib.sha256(content).hexdigest()
        entries, unread = read_annotations(content)
    except OSError as error:
        fault = ("data.json is missing", "" if isinstance(error, FileNotFoundError) else f"{error.strerror}")
    except ValueError as error:
        fault = ("data.json is damaged", f"{error}")
    for name, listing in (("RGB", gray), ("DEPTH", depth)):
        if listing is None:
            fault = fault or (f"folder {name} is missing", "")
    frames = sorted({*entries, *(gray or ()), *(depth or ())})
    values, faults = np.full((len(frames), len(_COLUMNS)), np.nan), {}
    joints = np.full((len(frames), 2, JOINTS, 2), np.nan)
    for row, frame in enumerate(frames if not fault else ()):
        try:
            if frame not in entries:
                raise images.Unusable(_NOT_ANNOTATED)
            if frame not in gray:
                raise images.Unusable(_NO_GRAY)
            if frame not in depth:
                raise images.Unusable(_NO_DEPTH)
            values[row], pairs = _annotation(entries[frame], frame, all_joints=ratio is not None)
            if pairs is not None:
                joints[row] = pairs
        except images.Unusable as error:
            faults[row] = (*error.args, "")[:2]
    if ratio is not None:
        scale, shift, usable = _maps(joints[:, 0], joints[:, 1])
        likely = ((scale > ratio / MAX_SCALE_ERROR) & (scale < ratio * MAX_SCALE_ERROR)).all(1)
        for row in range(len(frames)):
            if row in faults or fault:
                continue
            if not np.isfinite(scale[row]).all():
                faults[row] = ("too few joints for a map", f"{usable[row]} usable")
            elif not likely[row]:
                faults[row] = ("joints give no map", f"scales {scale[row, 0]:.3g} and {scale[row, 1]:.3g}")
        values[:, 5:7] = values[:, 3:5] * scale + shift
        values[:, 7:9] = scale
    return np.array(frames, np.int32), values, fault, faults, unread, annotation if entries else ""


_TWICE = object()


def _object(pairs: list[tuple]) -> dict:
    """A JSON object in which a key that comes twice has no value that could be used."""
    result = dict(pairs)
    if len(result) < len(pairs):
        for key, count in collections.Counter(key for key, _ in pairs).items():
            if count > 1:
                result[key] = _TWICE
    return result


def _parse(content: bytes | str):
    """JSON. Raises ValueError, also where it is nested too deep."""
    try:
        return json.loads(content, object_pairs_hook=_object)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_annotations(content: bytes) -> tuple[dict[int, object], int]:
    """A data.json of either shape.

    Args:
      content: a list of objects with `frame_num`, or an object of JSON strings by "%06d".

    Returns:
      {frame: its annotation, not yet looked at}, and the count of what has no frame's number.

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
            entries[frame] = _TWICE if frame in entries else entry
    return entries, unread


def _annotation(entry, frame: int, all_joints: bool) -> tuple[list[float], np.ndarray | None]:
    """One frame's annotation -> its _COLUMNS, and where wanted its joints, float64 (2, JOINTS, 2), of depth and colour.

    Raises images.Unusable.
    """
    if entry is _TWICE:
        raise images.Unusable("frame is annotated twice")
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
        if not geometry.inside(size, head):
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
    """A JSON number; NaN for everything else."""
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


def _maps(joints: np.ndarray, colour: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each frame and axis the line `colour = scale * depth + shift`, by Theil and Sen: the median of the slopes
    between any two joints, then of what is left. Up to 29 % of the joints may be wrong, four of seventeen.

    Args:
      joints, colour: float64 (F, JOINTS, 2), in pixels of the depth and the colour image.

    Returns:
      scale (F, 2) and shift (F, 2), NaN where there are too few; count of usable joints, int (F,).
    """
    good = np.ones(joints.shape[:2], bool)
    for points, (height, width) in ((joints, DEPTH_SIZE), (colour, COLOUR_SIZE)):
        # Kinect projects a point in space into both images, so one that is out of view is as good; not any distance.
        # NaN compares false. (0, 0) is a joint that was not tracked.
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
    """(F, N, 2) -> (F, 2), over those of the N; NaN where there is none."""
    count = where.sum(1, keepdims=True)
    ordered = np.sort(np.where(where, values, np.inf), axis=1)
    low, high = np.maximum(count - 1, 0) // 2, np.minimum(count // 2, values.shape[1] - 1)
    both = [np.take_along_axis(ordered, at, 1) for at in (low, high)]
    return np.where(count > 0, sum(np.where(np.isfinite(x), x, np.nan) for x in both) / 2, np.nan)[:, 0]


# --- the cropped release ---------------------------------------------------------------------------------------------


def _read_cropped(folder: Path):
    """frames, values, fault, faults, unread, annotation of a `_Sequence`; of the values, the angles."""
    gray = _files(folder, "frame_([0-9]{6})_face_rgb[.]png") or {}
    depth = _files(folder, "frame_([0-9]{6})_face_depth[.]png") or {}
    fault, entries, unread, annotation = None, {}, 0, ""
    try:
        with os.scandir(folder) as listing:
            texts = sorted(entry.name for entry in listing if entry.name.lower().endswith(".txt"))
        if len(texts) != 1:
            fault = ("text of the angles is missing" if not texts else "more than one text of angles", ", ".join(texts))
        else:
            content = (folder / texts[0]).read_bytes()
            annotation = hashlib.sha256(content).hexdigest()
            entries, unread = read_angles(content)
    except OSError as error:
        fault = ("text of the angles is missing", f"{error.strerror}")
    except ValueError as error:
        fault = ("text of the angles is damaged", f"{error}")
    frames = sorted({*entries, *gray, *depth})
    values, faults = np.full((len(frames), len(_COLUMNS)), np.nan), {}
    for row, frame in enumerate(frames if not fault else ()):
        if frame not in entries:
            faults[row] = (_NOT_ANNOTATED, "")
        elif frame not in gray or frame not in depth:
            faults[row] = (_NO_GRAY if frame not in gray else _NO_DEPTH, "")
        elif (angles := entries[frame]) is _TWICE:
            faults[row] = ("frame is annotated twice", "")
        elif not all(map(math.isfinite, angles)):
            faults[row] = ("angles are missing or no numbers", "")
        else:
            values[row, :3] = angles
    return np.array(frames, np.int32), values, fault, faults, unread, annotation if entries else ""


def read_angles(content: bytes) -> tuple[dict[int, object], int]:
    """The cropped release's text -> {frame: (yaw, pitch, roll)}, NaN where none; count of lines without a frame.

    Raises ValueError where it is no text.
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
            roll, pitch, yaw = map(float, cells[1:4])
        except ValueError:
            roll = pitch = yaw = math.nan
        frame = int(cells[0])
        entries[frame] = _TWICE if frame in entries else (yaw, pitch, roll)
    return entries, unread
