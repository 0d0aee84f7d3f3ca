"""Frame: one raw sample and its annotations, what every reader yields and `prepare` takes."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Protocol

import numpy as np

SPLITS = ("train", "validation", "test")
MAX_FOCAL_PX = 1_000_000  # more is a mistake
_NUMBER = re.compile(r"[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|nan|inf)", re.IGNORECASE)


def parse_number(text: str) -> float:
    """A number in a raw data set's text. ValueError otherwise; `float` also takes 1_0 and digits of other scripts."""
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is no number")
    return float(text)


@dataclasses.dataclass(frozen=True)
class FrameInfo:
    """What is known of a frame before its images are read.

    Attributes:
      frame: a name, unique in the data set, letters, digits, '_', '-' and '.' only.
      subject: the person; the same person recorded twice has one name.
      sequence: 1-based number of the person's sequence (Pandora's S1..S5), 0 if the data set has none.
      split: one of SPLITS.
    """

    frame: str
    subject: str
    sequence: int
    split: str


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


class Source(Protocol):
    """A raw data set. Must be picklable: workers get a copy.

    Attributes:
      name: "synthetic", "folder", "biwi", "pandora".
      settings: plain JSON values that, with the raw files, decide every frame; written into meta.json.
    """

    name: str
    settings: dict

    def index(self) -> list[FrameInfo]:
        """All frames in a fixed order, cheap to make."""
        ...

    def load(self, start: int, stop: int) -> Iterator[Frame | Reject]:
        """One item for each entry of `index()[start:stop]`, in order.

        The items do not depend on how the index is cut; chunk by chunk is fastest.
        """
        ...

    def known_rejects(self) -> list[Reject]:
        """What `load` will reject whatever the images hold: a file that is not there, an unusable annotation."""
        ...

    def notes(self) -> list[str]:
        """What is missing or other than expected in the raw directory as a whole, one sentence each."""
        ...
