"""Read a folder data set: bring your own RGB-D faces.

A folder with an `index.csv`, one line a frame:
  frame            a unique name of letters, digits, '_', '-', '.'
  subject          the person
  sequence         0, or the number of the person's sequence from 1
  gray             file in the folder, PNG or JPEG, 8 bits, gray or colour
  depth            file in the folder, PNG, 16 bits, 0 = none, millimetres or `depth_unit_mm`; of the same size and
                   registered to `gray`
  head_x, head_y   head centre in pixels, x to the right, y down
  and if known: yaw, pitch, roll (degrees), fx, fy (focal length in pixels), split (train, validation, test), kind (any
  word: verification pairs are drawn within a kind)
"""

import csv
import dataclasses
import hashlib
import io
import math
import os
import re
from pathlib import Path

import numpy as np

from facedepth_jax.data import images
from facedepth_jax.data.frames import (
    MAX_FOCAL_PX,
    SPLITS,
    Fault,
    Frame,
    FrameInfo,
    Source,
    Unusable,
    counted,
    option,
    parse_number,
)
from facedepth_jax.errors import FaceDepthError

REQUIRED = ("frame", "subject", "sequence", "gray", "depth", "head_x", "head_y")
EXIF_SAMPLE = 20  # images that are looked at for it
_ANGLES = ("yaw", "pitch", "roll")


@dataclasses.dataclass
class FolderSource(Source):
    """The folder as a `frames.Source`, frames in the order of index.csv.

    The whole index is checked at once, the images when they are loaded. Raises FaceDepthError if the folder, its index
    or a line of the index cannot be used.
    """

    raw: str
    focal: float = option(365.456, "Focal length in pixels of frames without fx and fy, by default a Kinect v2's.")
    depth_unit_mm: float = option(1.0, "Millimetres of one count of the depth images: 0.25 for an L515, 0.2 for TUM's.")
    depth_none: int = option(0, "Value of the depth images that stands for no depth, beside 0.")
    validation_fraction: float = option(0.1, "Of the subjects, where the index has no column `split`.")
    test_fraction: float = option(0.2, "Of the subjects, where the index has no column `split`.")
    fold: int = option(0, "Of a cross-validation, 0 to 1 / test_fraction - 1: over all folds everyone is tested once.")
    seed: int = option(0, "Of that split.")

    name = "folder"

    def __post_init__(self):
        self._raw, self.focal, self.depth_unit_mm = Path(self.raw), float(self.focal), float(self.depth_unit_mm)
        if not (0.001 <= self.depth_unit_mm <= 1000 and 0 <= self.depth_none <= 65535):
            raise FaceDepthError(
                f"depth_unit_mm is {self.depth_unit_mm:g} and depth_none {self.depth_none}: "
                "give 0.001 to 1000 millimetres and a value of 0 to 65535"
            )
        index = self._raw / "index.csv"
        content, header, lines = _read_index(index)
        self._rows, root, line_of, split_of = [], self._raw.resolve(), {}, {}
        for number, line in lines:
            try:
                row = _parse(line, root, self.focal)
                frame, subject, split = row["frame"], row["subject"], row.get("split")
                if frame in line_of:
                    raise ValueError(f"the frame '{frame}' is on line {line_of[frame]} already; names are unique")
                if split_of.setdefault(subject, split) != split:
                    both = f"in '{split}' and in '{split_of[subject]}'"
                    raise ValueError(f"the subject '{subject}' is {both}; a person belongs to one split")
            except ValueError as error:
                raise FaceDepthError(f"{index}, line {number}: {error}") from None
            line_of[frame] = number
            self._rows.append(row)
        if max(max(row["head_x"], row["head_y"]) for row in self._rows) <= 1:
            raise FaceDepthError(f"{index}: every head_x and head_y is at most 1; give pixels, not shares of the image")
        self.settings = {"index_sha256": hashlib.sha256(content).hexdigest(), "focal": self.focal}
        if self.depth_unit_mm != 1 or self.depth_none:  # arrays from before these options keep their settings
            self.settings |= {"depth_unit_mm": self.depth_unit_mm, "depth_none": self.depth_none}
        if "split" not in header:
            drawn = {name: getattr(self, name) for name in ("validation_fraction", "test_fraction", "fold", "seed")}
            split_of = _draw_splits(set(split_of), *drawn.values())
            for row in self._rows:
                row["split"] = split_of[row["subject"]]
            self.settings |= drawn

    def __len__(self) -> int:
        return len(self._rows)

    def _info(self, row: int) -> FrameInfo:
        values = self._rows[row]
        return FrameInfo(*(values[name] for name in ("frame", "subject", "sequence", "split")), values.get("kind", ""))

    def _fault(self, row: int) -> Fault | None:
        for kind in ("gray", "depth"):
            if not os.path.isfile(self._raw / self._rows[row][kind]):
                return f"{kind} image is missing", self._rows[row][kind]
        return None

    def _read(self, row: int) -> Frame:
        values = self._rows[row]
        gray = images.read_gray(self._raw, values["gray"])
        depth_mm = self._in_mm(images.read_depth(self._raw, values["depth"]))
        if gray.shape != depth_mm.shape:
            sizes = [f"{image.shape[1]}x{image.shape[0]}" for image in (gray, depth_mm)]
            raise Unusable("gray and depth differ in size", " and ".join(sizes))
        head_xy, focal_px = (values["head_x"], values["head_y"]), (values["fx"], values["fy"])
        angles = {name: values[name] for name in _ANGLES}
        return Frame(self._info(row), gray, depth_mm, head_xy, focal_px, **angles)

    def notes(self) -> list[str]:
        """Say if gray images are to be turned by their EXIF data: that would part them from their depth."""
        rows = np.linspace(0, len(self) - 1, min(len(self), EXIF_SAMPLE)).astype(int)
        turned = [path for row in rows if images.is_turned_by_exif(self._raw / (path := self._rows[row]["gray"]))]
        if not turned:
            return []
        text = f"{len(turned)} of {counted(len(rows), 'gray image')} looked at would be turned by EXIF data"
        return [f"{text}, which is not done ({turned[0]}): head_x, head_y and depth are of the stored pixels"]

    def _in_mm(self, depth: np.ndarray) -> np.ndarray:
        """Convert a depth image's values to uint16 millimetres; none, too, where that is more than 65 m."""
        depth_mm = np.floor(depth * self.depth_unit_mm + 0.5)
        return np.where((depth == self.depth_none) | (depth_mm > 65535), 0, depth_mm).astype(np.uint16)


def _read_index(index: Path) -> tuple[bytes, list[str], list[tuple[int, dict]]]:
    """Return the content of index.csv, its header, and its lines with their numbers. Raises FaceDepthError."""
    try:
        if not index.parent.is_dir():
            raise FaceDepthError(f"the raw directory {index.parent} does not exist or is a file")
        content = index.read_bytes()
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
        header = reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
        lines = [(reader.line_num, line) for line in reader]
    except FileNotFoundError:
        raise FaceDepthError(f"{index} does not exist; it lists the frames, see the README's folder format") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise FaceDepthError(f"{index} cannot be read as CSV in UTF-8 ({error})") from None
    if missing := [name for name in REQUIRED if name not in header]:
        raise FaceDepthError(
            f"{index} lacks the columns {', '.join(missing)}; its header needs {','.join(REQUIRED)} and was read as "
            + (" | ".join(header) or "empty")
        )
    if len(set(header)) < len(header):
        raise FaceDepthError(f"{index} has a column twice in its header: {','.join(header)}")
    if not lines:
        raise FaceDepthError(f"{index} lists no frame")
    return content, header, lines


def _parse(line: dict, root: Path, focal: float) -> dict:
    """Return a line of the index as typed values. Raises ValueError, which says what is wrong with it."""
    if None in line or None in line.values():
        raise ValueError("it has more or fewer cells than the header")
    row = {name: value.strip() for name, value in line.items()}
    for name in REQUIRED:
        if not row[name]:
            raise ValueError(f"'{name}' is empty")
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", row["frame"]):
        raise ValueError(f"the frame name '{row['frame']}' has other characters than letters, digits, '_', '-' and '.'")
    if not re.fullmatch(r"[0-9]{1,9}", row["sequence"]):
        raise ValueError(f"'sequence' is '{row['sequence']}', not a whole number from 0")
    row["sequence"] = int(row["sequence"])
    for name in ("head_x", "head_y", *_ANGLES, "fx", "fy"):
        text = row.get(name) or str(math.nan if name in _ANGLES else focal)
        try:
            row[name] = parse_number(text)
        except ValueError:
            raise ValueError(f"'{name}' is '{text}', not a number") from None
        if not math.isfinite(row[name]) and not (math.isnan(row[name]) and name in _ANGLES):
            raise ValueError(f"'{name}' is '{text}', not a finite number")
        if name in ("fx", "fy") and not 1 <= row[name] <= MAX_FOCAL_PX:
            raise ValueError(f"the focal length '{name}' is {row[name]}, not 1 to {MAX_FOCAL_PX} pixels")
    for name in ("gray", "depth"):
        _check_path(root, row[name])
    if "split" in row and row["split"] not in SPLITS:
        raise ValueError(f"the split '{row['split']}' is none of {', '.join(SPLITS)}")
    return row


def _check_path(root: Path, path: str) -> None:
    """Raise ValueError if the path, symbolic links followed, is not inside the folder."""
    try:
        stays = (root / path).resolve().is_relative_to(root)
    except (OSError, RuntimeError, ValueError):  # a circle of links, a NUL
        stays = False
    if not stays:
        link = not os.path.isabs(path) and ".." not in Path(path).parts
        raise ValueError(f"the path {path!r} leaves the folder{' by a symbolic link' * link}")


def _draw_splits(subjects: set[str], validation: float, test: float, fold: int, seed: int) -> dict[str, str]:
    """Return {subject: split}, with at least one subject for each split whose fraction is above 0.

    The seed puts everyone into one order. A fold tests its piece of that order and validates on the people that follow,
    from the front again where the order ends.
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise FaceDepthError(
            f"the fractions of validation ({validation}) and test ({test}) must be >= 0 and below 1 together"
        )
    names = np.random.default_rng(seed).permutation(sorted(subjects)).tolist()
    first, last = (round(k * test * len(names)) for k in (fold, fold + 1))
    if fold < 0 or (fold and (fold + 1) * test > 1 + 1e-6):
        most = int(1 / (test or 1) + 1e-6) - 1
        raise FaceDepthError(f"there is no fold {fold}; with a test_fraction of {test} they are numbered 0 to {most}")
    counts = [max(last - first, int(test > 0)), max(round(validation * len(names)), int(validation > 0))]
    if sum(counts) >= len(names):
        raise FaceDepthError(
            f"{counted(len(names), 'subject')}, {counts[0]} to test and {counts[1]} to validate, leave none to train; "
            + ("give smaller fractions" if len(names) > 2 else "it takes 3")
        )
    names = names[first:] + names[:first]
    bounds = [counts[0], sum(counts)]
    return {s: "test" if i < bounds[0] else "validation" if i < bounds[1] else "train" for i, s in enumerate(names)}
