"""Read Pandora (Borghi et al., POSEidon, CVPR 2017): 22 people before a Kinect v2, in five sequences each.

Two releases are read, recognised by their layout:
  whole    NN/{base_1,base_2,free_1,free_2,free_3}_IDNN/ with RGB/%06d_RGB.png (1920x1080), DEPTH/%06d_DEPTH.png
           (512x424, 16 bits, mm, 0 = none) and data.json: angles, and joints in the pixels of both images
  cropped  NNN/frame_%06d_face_depth.png (levels of 8 bits in 16), NNN/frame_%06d_face_rgb.png and one .txt with frame,
           roll, pitch, yaw, separated by tabs
NN is the subject, NNN = 5 (subject - 1) + sequence. See docs/pandora.md.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from facedepth_jax.data import images
from facedepth_jax.data.frames import MAX_FOCAL_PX, Fault, Frame, FrameInfo, Source, Unusable, counted, option
from facedepth_jax.data.readers.pandora_annotations import (
    COLOUR_SIZE,
    COLUMNS,
    DEPTH_SIZE,
    TWICE,
    read_angles,
    read_annotations,
    read_entry,
)
from facedepth_jax.data.readers.raw import find_copies, list_files, list_folders, split_of
from facedepth_jax.errors import FaceDepthError

# Sources, of what the paper does not say itself (P): the code of the authors' group (C) and our own choice (A).

# By subject (section 4.1.1; validation: C). All others train.
SPLITS = {"test": (10, 14, 16, 20), "validation": (9, 18, 21, 22)}
SUBJECTS = 22
SEQUENCES = 108  # one subject has three of the five
# Frames that the group leaves out of the test subjects, "extreme head poses and occlusions" (C): {folder: ranges of
# frames}, first and last inclusive; the folder counts 5 (subject - 1) + sequence.
EXCLUDED = {
    48: ((140, 319), (764, 809)),
    49: ((0, 1420),),
    66: ((623, 674), (810, 822)),
    69: ((0, 1403),),
    70: ((1623, 1641), (1698, 1709), (2010, 2020)),
    80: ((710, 730), (932, 980)),
    96: ((396, 426), (1416, 1437), (1817, 1859), (1896, 1935)),
    97: ((39, 57), (113, 139), (173, 206), (809, 837), (1102, 1127)),
    98: ((112, 140), (319, 350), (386, 423), (512, 551), (687, 712), (836, 861), (1434, 1484), (1527, 1605)),
    100: ((18, 44), (260, 315), (386, 424), (593, 602), (1006, 1042), (1096, 1121), (1287, 1371), (1822, 1845)),
}
REGISTER = ("head", "joints")
NAMES = ("base_1", "base_2", "free_1", "free_2", "free_3")  # S1..S5 (A)
# The cropped release's levels (C): (mm - 500) / 8, cut to a whole number of 8 bits, so that 0 mm is 194.
LEVEL_OFFSET_MM, LEVEL_STEP_MM, LEVEL_NONE = 500, 8, 194

_SKIPPED = ("frame is not annotated", "gray image is missing", "depth image is missing")


@dataclasses.dataclass
class _Sequence:
    """A folder and what is known of its frames.

    Attributes:
      path: relative to the raw directory.
      number: NNN, 1..110.
      frames: int32 (F,), ascending: all that an image or the annotation names.
      values: float64 (F, len(COLUMNS)), NaN where unknown or rejected.
      fault: (reason, detail) that rejects all frames, or None.
      faults: the faults of single rows.
      unread: annotations without a frame's number.
      annotation: SHA-256 of the annotation, "" where it holds nothing.
    """

    path: str
    number: int
    frames: np.ndarray | None = None
    values: np.ndarray | None = None
    fault: Fault | None = None
    faults: dict[int, Fault] = dataclasses.field(default_factory=dict)
    unread: int = 0
    annotation: str = ""

    @property
    def subject(self) -> int:
        return (self.number - 1) // 5 + 1


@dataclasses.dataclass
class PandoraSource(Source):
    """Pandora as a `frames.Source`, by sequence and number: 'NNN_FFFFFF'.

    All annotations and folders are read at once, the images when they are loaded. The directory is that of the folders
    01..22, or 001..110 of the cropped release.

    Raises FaceDepthError for an option that is out of its range or not for this release, for a directory that does not
    hold Pandora, and for a symbolic link that leads out of it.
    """

    raw: str
    register: str = option(
        "head",
        'Where the face is in the colour image. "head": around its own head joint (P); "joints": where the 2D map '
        "fitted to the frame's joints puts the depth image's head joint (A). Not for the cropped release.",
    )
    focal: float = option(
        365.0, "Of the depth camera in pixels, by default the paper's; the calibration's is about 365.456."
    )
    gray_focal: float = option(1081.37, "Of the colour camera in pixels, by default Kinect v2's.")
    max_angle: float = option(
        90.0, "Frames with an angle beyond, in degrees, are extreme poses (A; the paper gives no limit)."
    )

    name = "pandora"
    expected = (
        f"{SUBJECTS} people in {SEQUENCES} sequences, some 250,000 frames; test people "
        f"{', '.join(f'{number:02d}' for number in SPLITS['test'])}"
    )

    def __post_init__(self):
        if self.register not in REGISTER:
            raise FaceDepthError(f"register is '{self.register}', not one of {', '.join(REGISTER)}")
        for name in ("focal", "gray_focal", "max_angle"):
            setattr(self, name, float(getattr(self, name)))
            if name != "max_angle" and not 1 <= getattr(self, name) <= MAX_FOCAL_PX:
                raise FaceDepthError(f"{name} is {getattr(self, name)}, not 1 to {MAX_FOCAL_PX} pixels")
        if not 0 < self.max_angle <= 180:
            raise FaceDepthError(f"max_angle is {self.max_angle}, not above 0 and up to 180 degrees")
        self._raw = Path(self.raw)
        self._cropped, folders, self._unknown = _find(self._raw)
        joints = self.register == "joints"
        if self._cropped and joints:
            raise FaceDepthError(f"register=joints needs joints, which the cropped release in {self.raw} does not have")
        self._sequences = [_Sequence(path, number) for number, path in folders.items()]
        for sequence in self._sequences:
            images.check_links(self._raw / sequence.path, self._raw)
            if self._cropped:
                _read_cropped(self._raw, sequence)
            else:
                _read_whole(self._raw, sequence, self.gray_focal / self.focal if joints else None)
                # Each image has its own focal length; with a map, the map's scale times the depth image's.
                values = sequence.values
                values[:, 7:9] = values[:, 7:9] * self.focal if joints else self.gray_focal
            turned = np.abs(sequence.values[:, :3]).max(1)
            for row in np.flatnonzero(turned > self.max_angle).tolist():
                sequence.faults[row] = ("extreme pose", f"{turned[row]:g} degrees")
            for first, last in EXCLUDED.get(sequence.number, ()):
                for row in np.flatnonzero((sequence.frames >= first) & (sequence.frames <= last)).tolist():
                    sequence.faults[row] = ("excluded by the group's list", "")
        _mark_copies(self._sequences)
        self._rows = [(sequence, row) for sequence in self._sequences for row in range(len(sequence.frames))]
        self.settings = {
            "release": "cropped" if self._cropped else "whole",
            "files_sha256": _digest(self._sequences),
            "focal": self.focal,
            "max_angle": self.max_angle,
        }
        if not self._cropped:
            self.settings |= {"register": self.register, "gray_focal": self.gray_focal}

    def __len__(self) -> int:
        return len(self._rows)

    def _info(self, row: int) -> FrameInfo:
        sequence, row = self._rows[row]
        number, subject = sequence.number, sequence.subject
        name = f"{number:03d}_{sequence.frames[row]:06d}"
        return FrameInfo(name, f"{subject:02d}", (number - 1) % 5 + 1, split_of(subject, SPLITS))

    def _fault(self, row: int) -> Fault | None:
        sequence, row = self._rows[row]
        return sequence.fault or sequence.faults.get(row)

    def notes(self) -> list[str]:
        """Name missing sequences, folders that are not read, and sequences without frames or with a fault."""
        there = {sequence.number for sequence in self._sequences}
        missing = collections.defaultdict(list)
        for number in sorted(set(range(1, 5 * SUBJECTS + 1)) - there):
            missing[(number - 1) // 5 + 1].append(f"{number:03d}" if self._cropped else NAMES[(number - 1) % 5])
        notes = []
        if len(there) != SEQUENCES:
            names = [f"{s:02d}" + f" ({' '.join(gone)})" * (len(gone) < 5) for s, gone in missing.items()]
            notes.append(f"{counted(len(there), 'sequence')} here, {SEQUENCES} expected; missing: {', '.join(names)}")
        if self._unknown:
            notes.append(f"folders that are not read, unknown or there twice: {', '.join(self._unknown)}")
        for sequence in self._sequences:
            where = f"{sequence.path}, {counted(len(sequence.frames), 'frame')}"
            if sequence.fault:
                notes.append(f"{where}: {' - '.join(filter(None, sequence.fault))}")
            elif not len(sequence.frames):
                notes.append(f"{sequence.path} holds no frame")
            if sequence.unread:
                notes.append(f"{where}: {sequence.unread} annotations without a frame's number")
        return notes

    def _read(self, row: int) -> Frame:
        info = self._info(row)
        sequence, row = self._rows[row]
        number = sequence.frames[row]
        known = dict(zip(COLUMNS, sequence.values[row].tolist(), strict=True))
        angles = {name: known[name] for name in ("yaw", "pitch", "roll")}
        focal_px = (self.focal, self.focal)
        if self._cropped:
            gray = images.read_gray(self._raw, f"{sequence.path}/frame_{number:06d}_face_rgb.png")
            depth_mm = _mm(images.read_depth(self._raw, f"{sequence.path}/frame_{number:06d}_face_depth.png"))
            middles = [((image.shape[1] - 1) / 2, (image.shape[0] - 1) / 2) for image in (depth_mm, gray)]
            return Frame(info, gray, depth_mm, middles[0], focal_px, middles[1], focal_px, **angles, cropped=True)
        gray = images.read_gray(self._raw, f"{sequence.path}/RGB/{number:06d}_RGB.png")
        depth_mm = images.read_depth(self._raw, f"{sequence.path}/DEPTH/{number:06d}_DEPTH.png")
        images.check_size("gray image", gray.shape[::-1], COLOUR_SIZE[::-1])
        images.check_size("depth image", depth_mm.shape[::-1], DEPTH_SIZE[::-1])
        return Frame(
            info,
            gray,
            depth_mm,
            (known["x"], known["y"]),
            focal_px,
            (known["gray_x"], known["gray_y"]),
            (known["gray_fx"], known["gray_fy"]),
            **angles,
            head_mm=(known["x_mm"], known["y_mm"], known["z_mm"]),
        )


def _mm(levels: np.ndarray) -> np.ndarray:
    """Decode the cropped release's levels, uint16, to mm, uint16. Its "none" is also 2052 mm, where no face is."""
    if levels.max(initial=0) > 255:
        raise Unusable("depth is not a level of 8 bits", f"{levels.max()}")
    return np.where(levels == LEVEL_NONE, 0, LEVEL_OFFSET_MM + LEVEL_STEP_MM * levels).astype(np.uint16)


# --- folders ---------------------------------------------------------------------------------------------------------


def _find(raw: Path) -> tuple[bool, dict[int, str], list[str]]:
    """Return whether it is the cropped release, the folder of each sequence by its number, and the other folders."""
    top, found, unknown = list_folders(raw), {}, []
    subjects = [name for name in top if re.fullmatch("[0-9]{2}", name) and 1 <= int(name) <= SUBJECTS]
    numbered = [name for name in top if re.fullmatch("[0-9]{3}", name) and 1 <= int(name) <= 5 * SUBJECTS]
    if subjects and numbered:
        raise FaceDepthError(
            f"{raw} holds folders of both releases of Pandora ({subjects[0]}, {numbered[0]}); give each a directory"
        )
    for subject in subjects:
        for name in list_folders(raw / subject):
            path, match = f"{subject}/{name}", re.fullmatch(f"({'|'.join(NAMES)})_id{subject}", name, re.IGNORECASE)
            number = match and 5 * (int(subject) - 1) + NAMES.index(match[1].lower()) + 1
            if not number or found.setdefault(number, path) != path:
                unknown.append(path)
    found |= {int(name): name for name in numbered}
    if not found:
        raise FaceDepthError(
            f"{raw} holds no sequence of Pandora, as 01/base_1_ID01 or, cropped, 001; give the directory above them"
        )
    return bool(numbered), dict(sorted(found.items())), sorted(unknown + list(set(top) - {*subjects, *numbered}))


def _list_frames(folder: Path, pattern: str) -> set[int]:
    """Return the numbers, the pattern's group, of the files that match."""
    return {int(match[1]) for name in list_files(folder) if (match := re.fullmatch(pattern, name))}


def _mark_copies(sequences: list[_Sequence]) -> None:
    """Give a fault to sequences with the annotation of another."""
    by_path = {s.path: s for s in sequences if s.annotation and not s.fault}
    annotations = {path: {s.annotation} for path, s in by_path.items()}
    for path, (other, _) in find_copies(annotations, lambda path: by_path[path].subject).items():
        by_path[path].fault = ("copy of another sequence", f"{path} has the annotation of {other}")


def _digest(sequences: list[_Sequence]) -> str:
    """Hash the annotations and the list of the images that are there: SHA-256."""
    digest = hashlib.sha256()
    for s in sequences:
        missing = sorted((row, reason) for row, (reason, _) in s.faults.items() if reason in _SKIPPED)
        digest.update(json.dumps([s.path, s.annotation, s.fault, s.unread, s.frames.tolist(), missing]).encode())
    return digest.hexdigest()


# --- annotations -----------------------------------------------------------------------------------------------------


def _read_sequence(
    sequence: _Sequence, file: Path, kind: str, parse: Callable, gray: set[int], depth: set[int], read: Callable
) -> None:
    """Set the sequence's frames and, unless it has a fault, values and faults.

    Args:
      file, kind: of the annotation.
      parse: its content -> {frame: annotation}, count without a frame.
      gray, depth: frames with an image.
      read: annotation and frame -> a row of values.
    """
    entries = {}
    try:
        content = file.read_bytes()
        entries, sequence.unread = parse(content)
        sequence.annotation = hashlib.sha256(content).hexdigest() if entries else ""
    except OSError as error:
        sequence.fault = (f"{kind} is missing", "" if isinstance(error, FileNotFoundError) else f"{error.strerror}")
    except (ValueError, RecursionError) as error:
        sequence.fault = (f"{kind} is damaged", f"{error}")
    frames = sorted({*entries, *gray, *depth})
    sequence.frames = np.array(frames, np.int32)
    sequence.values = np.full((len(frames), len(COLUMNS)), np.nan)
    for row, frame in enumerate(() if sequence.fault else frames):
        try:
            for reason, there in zip(_SKIPPED, (entries, gray, depth), strict=True):
                if frame not in there:
                    raise Unusable(reason)
            if entries[frame] is TWICE:
                raise Unusable("frame is annotated twice")
            sequence.values[row] = read(entries[frame], frame)
        except Unusable as error:
            sequence.faults[row] = error.args


def _read_whole(raw: Path, sequence: _Sequence, ratio: float | None) -> None:
    """Read a sequence of the whole release; `ratio` as `read_entry` takes it."""
    folder = raw / sequence.path
    for kind in ("DEPTH", "RGB"):
        if not (folder / kind).is_dir():
            sequence.fault = (f"folder {kind} is missing", "")
    listings = [_list_frames(folder / kind, f"([0-9]{{6}})_{kind}[.]png") for kind in ("RGB", "DEPTH")]
    read = functools.partial(read_entry, ratio=ratio)
    _read_sequence(sequence, folder / "data.json", "data.json", read_annotations, *listings, read)


def _read_cropped(raw: Path, sequence: _Sequence) -> None:
    """Read a sequence of the cropped release; of the values, the angles."""
    folder = raw / sequence.path
    listings = [_list_frames(folder, f"frame_([0-9]{{6}})_face_{kind}[.]png") for kind in ("rgb", "depth")]
    texts = sorted(name for name in list_files(folder) if name.lower().endswith(".txt"))
    if len(texts) > 1:
        sequence.fault = ("more than one text of angles", ", ".join(texts))

    def read(angles, frame):
        if not all(map(math.isfinite, angles)):
            raise Unusable("angles are missing or not numbers")
        return [*angles, *[math.nan] * (len(COLUMNS) - 3)]

    file = folder / (texts or ["-"])[0]
    _read_sequence(sequence, file, "text of the angles", read_angles, *listings, read)
