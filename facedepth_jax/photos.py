"""Read photos and videos as people have them: files and folders in, RGB images out."""

import dataclasses
import io
import itertools
import math
import numbers
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps

from facedepth_jax.errors import FaceDepthError

MAX_PIXELS = 64 * 1024 * 1024  # of an image and of a frame of a video; looked at before they are decoded
IMAGE_SUFFIXES = set(".png .apng .jpg .jpeg .jfif .bmp .webp .tif .tiff .pgm .ppm .pnm .gif .avif .jp2".split())
VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}
# Not all that Pillow knows: for some it starts other programs.
FORMATS = ["PNG", "JPEG", "MPO", "BMP", "WEBP", "TIFF", "PPM", "GIF", "AVIF", "JPEG2000"]
BEHIND_ALPHA = (128, 128, 128, 255)
WHOLE_VIDEO = 0.95  # of the frames that a file tells of: some tell of a few too many


@dataclasses.dataclass(frozen=True)
class Photo:
    """An image of a file.

    Attributes:
      name: the file's without its suffix; of several images in a file with a number.
      rgb: uint8 (H, W, 3), turned as EXIF says, transparency over gray.
      focal_px: the focal length in pixels of the image by EXIF, None where it is not said.
      is_frame: whether the file holds several.
    """

    name: str
    rgb: np.ndarray
    focal_px: float | None = None
    is_frame: bool = False


def list_files(inputs: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """List images and videos as given, each folder replaced by those in it (not deeper), by name.

    Returns:
      the files, and what else is in the folders; hidden files are not looked at.

    Raises:
      FaceDepthError: an input does not exist, a folder holds neither image nor video or cannot be read.
    """
    paths, others = [], []
    for path in inputs:
        if not os.path.exists(path):  # Path.exists raises for a name that is too long
            raise FaceDepthError(f"{path} does not exist; give an image, a folder of images or a video.")
        if not path.is_dir():
            paths.append(path)
            continue
        try:
            inside = sorted(p for p in path.iterdir() if not p.name.startswith("."))
            found = [p for p in inside if p.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES and p.is_file()]
        except OSError as error:
            raise FaceDepthError(f"{path} cannot be read: {error.strerror}.") from error
        if not found:
            raise FaceDepthError(f"{path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}) and no video.")
        paths += found
        others += sorted(set(inside) - set(found))
    return paths, others


def read(path: Path) -> Iterator[Photo]:
    """Read the image of a file, or each page or frame of an animation or a video.

    Raises FaceDepthError if it cannot be read, is truncated (after what is whole), too large, not 8-bit or no image.
    """
    return _read_video(path) if path.suffix.lower() in VIDEO_SUFFIXES else _read_images(path)


def _read_images(path):
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FaceDepthError(f"{path} cannot be read: {error.strerror}.") from error
    image, count = _decode(path, lambda: _open(content))
    with image:
        for number in range(count):
            _decode(path, lambda number=number: image.seek(number))
            if image.width * image.height > MAX_PIXELS:
                raise FaceDepthError(f"{path} has {image.width} x {image.height} pixels, over {MAX_PIXELS}; shrink it.")
            if image.mode[0] in "IF":
                raise FaceDepthError(f"{path} is no 8-bit image (its mode is {image.mode}); convert it first.")
            rgb, focal_px = _decode(path, lambda: _page(image))
            name = f"{path.stem}_{number + 1:06d}" if count > 1 else path.stem
            yield Photo(name, rgb, focal_px, count > 1)


def _decode(path, decode):
    """Call a part of Pillow, which raises errors of any kind for damaged files, and warns of harmless faults."""
    try:
        with warnings.catch_warnings(action="ignore"):
            return decode()
    except PIL.Image.DecompressionBombError:  # Pillow's own limit is higher, and comes first
        raise FaceDepthError(f"{path} has over {MAX_PIXELS} pixels; shrink it.") from None
    except Exception as error:
        kinds = ", ".join(_formats())
        raise FaceDepthError(f"{path} cannot be decoded: it is truncated or none of {kinds}.") from error


def _formats():
    PIL.Image.init()
    return [name for name in FORMATS if name in PIL.Image.OPEN]


def _open(content):
    image = PIL.Image.open(io.BytesIO(content), formats=_formats())
    # The other pictures of a phone's JPEG are previews and depth.
    return image, 1 if image.format == "MPO" else getattr(image, "n_frames", 1)


def _page(image):
    exif = image.getexif().get_ifd(PIL.ExifTags.IFD.Exif)
    focal_35mm = exif.get(PIL.ExifTags.Base.FocalLengthIn35mmFilm)
    page = PIL.ImageOps.exif_transpose(image)
    if page.has_transparency_data:
        behind = PIL.Image.new("RGBA", page.size, BEHIND_ALPHA)
        page = PIL.Image.alpha_composite(behind, page.convert("RGBA"))
    # EXIF holds texts, lists and 0 / 0 there too.
    known = isinstance(focal_35mm, numbers.Real) and 0 < focal_35mm < math.inf
    return np.array(page.convert("RGB")), focal_of(float(focal_35mm), page.size) if known else None


def focal_of(focal_35mm: float, shape: tuple[int, ...]) -> float:
    """Convert a focal length on 35 mm film (36 mm wide) to pixels of an image of a shape (H, W, ...)."""
    return focal_35mm / 36 * max(shape[:2])


def count_frames(path: Path) -> int:
    """Count the frames of a video as it says itself, 1 for an image and where it says nothing."""
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        return 1
    capture = cv2.VideoCapture(os.fspath(path))
    try:
        return max(1, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    finally:
        capture.release()


def _read_video(path):
    capture = cv2.VideoCapture(os.fspath(path))
    try:
        expected = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        for number in itertools.count(1):
            width, height = (capture.get(side) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
            if width * height > MAX_PIXELS:  # sizes may change from frame to frame
                raise FaceDepthError(f"{path} has frames of {width:.0f} x {height:.0f} pixels, over {MAX_PIXELS}.")
            ok, image = capture.read()
            if not ok:
                break
            yield Photo(f"{path.stem}_{number:06d}", cv2.cvtColor(image, cv2.COLOR_BGR2RGB), is_frame=True)
    finally:
        capture.release()
    if number == 1:
        raise FaceDepthError(f"{path} holds no frame that can be decoded; it is truncated or not a video.")
    if number - 1 < WHOLE_VIDEO * expected - 1:
        raise FaceDepthError(f"{path} breaks off after {number - 1} of {expected:.0f} frames; it is truncated.")
