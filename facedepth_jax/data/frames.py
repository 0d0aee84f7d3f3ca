"""The contract of readers and `prepare`: a frame is a raw sample with its annotations, a source yields frames."""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

SPLITS = ("train", "validation", "test")
MAX_FOCAL_PX = 1_000_000  # more is a mistake
Fault = tuple[str, str]  # reason and detail of a Reject
_NUMBER = re.compile(r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf)", re.IGNORECASE)


def parse_number(text: str) -> float:
    """Parse a number of a raw data set. Raises ValueError, also for 1_0 and foreign digits, which `float` takes."""
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is not a number")
    return float(text)


def counted(count: int, noun: str) -> str:
    """Write '1 frame' or '2 frames'."""
    return f"{count} {noun}{'s' * (count != 1)}"


@dataclasses.dataclass(frozen=True)
class FrameInfo:
    """Name, person, sequence and split of a frame, known before its images are read.

    Attributes:
      frame: a name, unique in the data set, letters, digits, '_', '-' and '.' only.
      subject: the person; the same person recorded twice has one name.
      sequence: 1-based number of the person's sequence (Pandora's S1..S5), 0 if the data set has none.
      split: one of SPLITS.
      kind: of file or recording; both frames of a verification pair are of one kind.
    """

    frame: str
    subject: str
    sequence: int
    split: str
    kind: str = ""


@dataclasses.dataclass(frozen=True)
class Frame:
    """A gray and a depth image of one head.

    Either a registered pair, which has one head centre and one focal length, or two images as two cameras took them,
    which have one each; both are cropped to the same millimetres around the head.

    Attributes:
      info: name, subject, sequence, split.
      gray: uint8 (H, W).
      depth_mm: uint16 (H', W'), millimetres, 0 = none.
      head_xy: head centre in the depth image, pixels, x to the right and y down, pixel centres at whole numbers.
      focal_px: (f_x, f_y) of the depth image as Eq. 6 takes them, pixels.
      gray_head_xy, gray_focal_px: the same of the gray image; None where the pair is registered: pixel (y, x) is then
        the same point of the face in both, and both have one size.
      yaw, pitch, roll: degrees; NaN where the data set does not say.
      cropped: the images are crops already, which are resized as they are; the head centre is their middle.
      head_mm: head centre as annotated, in the depth camera's frame (x right, y down, z forward); NaN likewise.
    """

    info: FrameInfo
    gray: np.ndarray
    depth_mm: np.ndarray
    head_xy: tuple[float, float]
    focal_px: tuple[float, float]
    gray_head_xy: tuple[float, float] | None = None
    gray_focal_px: tuple[float, float] | None = None
    yaw: float = math.nan
    pitch: float = math.nan
    roll: float = math.nan
    head_mm: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    cropped: bool = False


@dataclasses.dataclass(frozen=True)
class Reject:
    """A frame that cannot be used.

    Attributes:
      reason: a short phrase that is counted, as "no depth at the head centre".
      detail: the case at hand.
    """

    info: FrameInfo
    reason: str
    detail: str = ""

    def entry(self) -> dict[str, str]:
        """Return the entry of meta.json."""
        return {"frame": self.info.frame, "reason": self.reason, "detail": self.detail}


class Unusable(Exception):
    """A frame cannot be used: reason and detail of its Reject."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason, detail)


def option(default, text: str):
    """Declare an option of a data set: a field of its Source, with the help that `prepare --help` shows."""
    return dataclasses.field(default=default, metadata={"help": text})


class Source:
    """A raw data set. Workers get a copy, so it must pickle.

    A subclass is a dataclass whose fields are its options, see `option`; before them `raw`, if it reads a directory. It
    defines `__len__`, the number of frames, `_info(row) -> FrameInfo` and `_read(row) -> Frame`, which raises Unusable;
    or, where many frames are made at once, `load` itself instead of the latter.

    Attributes:
      name: its name in readers.READERS.
      expected: the size of the complete data set, in words; "" if it has none.
      settings: plain JSON values that, with the raw files, decide every frame; written into meta.json.
    """

    name: str
    expected = ""
    settings: dict

    def _fault(self, row: int) -> Fault | None:
        """Return why a frame cannot be used whatever its images hold: a missing file, an unusable annotation."""
        return None

    def index(self) -> list[FrameInfo]:
        """List all frames in a fixed order, without reading images."""
        return [self._info(row) for row in range(len(self))]

    def load(self, start: int, stop: int) -> Iterator[Frame | Reject]:
        """Yield one item for each entry of `index()[start:stop]`, in order; a Reject where a file cannot be used.

        The items do not depend on how the index is cut; chunk by chunk is fastest.
        """
        for row in range(start, min(stop, len(self))):
            try:
                if fault := self._fault(row):
                    raise Unusable(*fault)
                yield self._read(row)
            except Unusable as error:
                yield Reject(self._info(row), *error.args)

    def known_rejects(self) -> list[Reject]:
        """List the frames with a `_fault`, which `load` rejects."""
        return [Reject(info, *fault) for row, info in enumerate(self.index()) if (fault := self._fault(row))]

    def notes(self) -> list[str]:
        """Say, one sentence each, what is missing or unexpected in the raw directory as a whole."""
        return []
