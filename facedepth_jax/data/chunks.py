"""Make, write, read and verify chunks: the crops of CHUNK_FRAMES frames in one file.

A chunk names its settings and its place, and zip's check sums cover all of it, so one that is damaged, or of another
place, run or data set, is recognised.
"""

import contextlib
import dataclasses
import json
import math
from pathlib import Path

import numpy as np

from facedepth_jax import files
from facedepth_jax.data import crop
from facedepth_jax.data.frames import Frame, Reject, Source
from facedepth_jax.errors import FaceDepthError

CHUNK_FRAMES = 64
HEAD_WINDOW_PX = 9  # "the depth values around the head center" of section 3.2: about 2 cm at Kinect range
MIN_DEPTH_SHARE = 0.05  # of the crop's pixels; with less there is no face to learn from


@dataclasses.dataclass(frozen=True)
class Job:
    """The work that chunks belong to.

    Attributes:
      source: the raw data set.
      parts: directory of the chunks.
      face_mm, size: see `prepare_frame`.
      settings_sha256: hash of all settings, which ties a chunk to its run.
    """

    source: Source
    parts: Path
    face_mm: float
    size: int
    settings_sha256: str

    def file(self, number: int) -> Path:
        """Return the path of a chunk."""
        return self.parts / f"{number:06d}.npz"


def prepare_frame(frame: Frame, face_mm: float, size: int) -> tuple[np.ndarray, np.ndarray, dict] | Reject:
    """Crop and resize a frame.

    Args:
      face_mm: R of Eq. 6, millimetres.
      size: side of the result, pixels.

    Returns:
      gray uint8 (size, size), depth uint16 (size, size) in mm with 0 = none, and the columns of arrays.COLUMNS; or why
      there is no crop.
    """
    info = frame.info
    gray_head_xy, gray_focal_px = frame.gray_head_xy or frame.head_xy, frame.gray_focal_px or frame.focal_px
    registered = frame.gray_head_xy is None  # then both images are of one camera, perhaps of the colour camera
    names = ("image", "image") if registered else ("depth image", "gray image")
    for name, image, xy in zip(names, (frame.depth_mm, frame.gray), (frame.head_xy, gray_head_xy), strict=True):
        if not crop.inside(image.shape, xy):
            place = f"({xy[0]:g}, {xy[1]:g}) in {image.shape[1]}x{image.shape[0]}"
            return Reject(info, f"head centre outside the {name}", place)
    distance_mm = crop.head_distance_mm(frame.depth_mm, frame.head_xy, HEAD_WINDOW_PX)
    if distance_mm is None:
        return Reject(info, "no depth at the head centre", f"({frame.head_xy[0]:g}, {frame.head_xy[1]:g})")

    def box_of(image, head_xy, focal_px):
        if frame.cropped:
            return crop.Box(0, 0, image.shape[1], image.shape[0])
        return crop.crop_box(head_xy, distance_mm, focal_px, face_mm)

    box = box_of(frame.depth_mm, frame.head_xy, frame.focal_px)
    seen = frame.depth_mm[max(box.y, 0) : box.y + box.h, max(box.x, 0) : box.x + box.w]
    share = np.count_nonzero(seen) / (box.w * box.h)
    if share < MIN_DEPTH_SHARE:  # checked before the crop is made: with depth in a wrong unit it could have any size
        return Reject(info, "almost no depth in the crop", f"{share:.1%} of {box.w}x{box.h} px")
    gray_box = box_of(frame.gray, gray_head_xy, gray_focal_px)
    row = dataclasses.asdict(info) | {"yaw": frame.yaw, "pitch": frame.pitch, "roll": frame.roll}
    row |= dict(zip(("head_x_mm", "head_y_mm", "head_z_mm"), frame.head_mm, strict=True))
    focals = (math.nan,) * 4 if frame.cropped else (*frame.focal_px, *gray_focal_px)
    row |= {"distance_mm": distance_mm} | dict(zip(("fx", "fy", "gray_fx", "gray_fy"), focals, strict=True))
    row |= {f"box_{name}": value for name, value in dataclasses.asdict(box).items()}
    row |= {f"gray_box_{name}": value for name, value in dataclasses.asdict(gray_box).items()}
    gray = crop.resize_gray(crop.crop(frame.gray, gray_box), size)
    return gray, crop.resize_depth(crop.crop(frame.depth_mm, box), size), row


def make(job: Job, number: int) -> list[dict]:
    """Load, crop and write a chunk; return the rejects among its frames, see `Reject.entry`.

    Raises FaceDepthError if the file cannot be written.
    """
    grays, depths, rows, rejects = [], [], [], []
    for item in job.source.load(number * CHUNK_FRAMES, (number + 1) * CHUNK_FRAMES):
        result = item if isinstance(item, Reject) else prepare_frame(item, job.face_mm, job.size)
        if isinstance(result, Reject):
            rejects.append(result.entry())
        else:
            for values, value in zip((grays, depths, rows), result, strict=True):
                values.append(value)
    shape = (len(rows), job.size, job.size)
    listing = {"settings_sha256": job.settings_sha256, "chunk": number, "frames": rows, "rejects": rejects}
    content = {
        "gray": np.array(grays, np.uint8).reshape(shape),
        "depth_mm": np.array(depths, np.uint16).reshape(shape),
        "listing": np.frombuffer(json.dumps(listing).encode(), np.uint8),
    }
    with writing(job.file(number)), files.atomically(job.file(number)) as partial, partial.open("wb") as file:
        np.savez(file, **content)
    return rejects


def read(job: Job, number: int, names: list[str]) -> tuple[np.ndarray, np.ndarray, dict]:
    """Read and verify a chunk: gray, depth_mm, and the listing with "frames" (rows of arrays.COLUMNS) and "rejects".

    Args:
      names: the frames that it must hold, rejects included.

    Raises ValueError, which says what is wrong with it.
    """
    try:
        with job.file(number).open("rb") as file, np.load(file, allow_pickle=False) as chunk:
            gray, depth_mm, listing = (chunk[name] for name in ("gray", "depth_mm", "listing"))
    except Exception as error:  # zipfile and NumPy have many for a damaged file
        raise ValueError(f"it cannot be read: {error}") from None
    listing = json.loads(listing.tobytes())
    if listing["settings_sha256"] != job.settings_sha256:
        raise ValueError("it was made with other settings")
    if listing["chunk"] != number:
        raise ValueError(f"it is chunk {listing['chunk']}")
    if sorted(row["frame"] for row in listing["frames"] + listing["rejects"]) != sorted(names):
        raise ValueError("it holds other frames than the data set")
    return gray, depth_mm, listing


@contextlib.contextmanager
def writing(path: Path):
    """Turn an OSError into the sentence that `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise FaceDepthError(
            f"{path} cannot be written ({error.strerror}); what is finished is kept and the same command continues"
        ) from None
