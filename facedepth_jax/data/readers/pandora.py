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

from facedepth_jax.data import images, splits
from facedepth_jax.data.frames import MAX_FOCAL_PX, Frame, FrameInfo, Reject
from facedepth_jax.data.readers.pandora_annotations import (
    COLOUR_SIZE,
    COLUMNS,
    DEPTH_SIZE,
    JOINTS,
    TWICE,
    fit_maps,
    read_angles,
    read_annotations,
    read_entry,
)
from facedepth_jax.errors import FaceDepthError

REGISTER = ("head", "joints")
SEQUENCES = ("base_1", "base_2", "free_1", "free_2", "free_3")  # S1..S5 (A)
MAX_SCALE_ERROR = 1.25  # of the joints' map against the ratio of the focal lengths (A)
# The cropped release's levels (C): (mm - 500) / 8, cut to a whole number of 8 bits, so that 0 mm is 194.
LEVEL_OFFSET_MM, LEVEL_STEP_MM, LEVEL_NONE = 500, 8, 194

_COPY = "copy of another sequence"
_SKIPPED = _NOT_ANNOTATED, _NO_GRAY, _NO_DEPTH = (
    "frame is not annotated",
    "gray image is missing",
    "depth image is missing",
)


@dataclasses.dataclass(frozen=True)
class _Sequence:
    """A folder and what is known of its frames.

    Attributes:
      path: relative to the raw directory.
      number: NNN, 1..110.
      copy: 0, or counts further folders of the same number, all of whose frames are rejected.
      frames: int32 (F,), ascending: all that an image or the annotation names.
      values: float64 (F, len(COLUMNS)), NaN where unknown or rejected.
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
          FaceDepthError: an option out of its range or not for this release, a directory that is no Pandora, a symbolic
            link that leads out of it.
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
        if self._cropped and register != "head":
            raise FaceDepthError(f"register={register} needs joints, which the cropped release in {raw} does not have")
        found = []
        for path, number, copy, fault in folders:
            images.check_links(self._raw / path, self._raw)
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
                for reason in reasons.keys() & set(_SKIPPED):
                    counts[reason, "frames"] += reasons[reason]
                    counts[reason, "sequences"] += 1
        for reason in _SKIPPED:
            if number := counts[reason, "frames"]:
                notes.append(f"{number} frames of {counts[reason, 'sequences']} sequences: {reason}")
        return notes

    def _load(self, info: FrameInfo, sequence: _Sequence, row: int) -> Frame:
        """Raises images.Unusable."""
        number, folder = int(sequence.frames[row]), sequence.path
        known = dict(zip(COLUMNS, sequence.values[row].tolist(), strict=True))
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
        for name in _folders(raw / subject):
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


def _folders(path: Path) -> list[str]:
    """Sorted names of the folders in `path`."""
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise FaceDepthError(
            f"the raw directory {path} does not exist or cannot be listed ({error.strerror})"
        ) from None


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
    values, faults = np.full((len(frames), len(COLUMNS)), np.nan), {}
    joints = np.full((len(frames), 2, JOINTS, 2), np.nan)
    for row, frame in enumerate(frames if not fault else ()):
        try:
            if frame not in entries:
                raise images.Unusable(_NOT_ANNOTATED)
            if frame not in gray:
                raise images.Unusable(_NO_GRAY)
            if frame not in depth:
                raise images.Unusable(_NO_DEPTH)
            values[row], pairs = read_entry(entries[frame], frame, all_joints=ratio is not None)
            if pairs is not None:
                joints[row] = pairs
        except images.Unusable as error:
            faults[row] = (*error.args, "")[:2]
    if ratio is not None:
        scale, shift, usable = fit_maps(joints[:, 0], joints[:, 1])
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
    values, faults = np.full((len(frames), len(COLUMNS)), np.nan), {}
    for row, frame in enumerate(frames if not fault else ()):
        if frame not in entries:
            faults[row] = (_NOT_ANNOTATED, "")
        elif frame not in gray or frame not in depth:
            faults[row] = (_NO_GRAY if frame not in gray else _NO_DEPTH, "")
        elif (angles := entries[frame]) is TWICE:
            faults[row] = ("frame is annotated twice", "")
        elif not all(map(math.isfinite, angles)):
            faults[row] = ("angles are missing or no numbers", "")
        else:
            values[row, :3] = angles
    return np.array(frames, np.int32), values, fault, faults, unread, annotation if entries else ""
