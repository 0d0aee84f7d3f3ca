"""Check and decode raw image files, for every reader."""

import os
import re
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np

from facedepth_jax.data.frames import Unusable
from facedepth_jax.errors import FaceDepthError

_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in coded data 0xff is followed by 0 or a restart's number


def read_gray(root: Path, path: str, kind: str = "gray image") -> np.ndarray:
    """Read a PNG or JPEG of 8 bits with 1, 3 or 4 channels as uint8 (H, W); `path` is relative to `root`.

    Raises Unusable, with the `kind` of image in its reason, if the file is missing, damaged or something else.
    """
    image = _read_image(root, path, kind)
    if image.dtype != np.uint8:
        raise Unusable(f"{kind} is not 8-bit", f"{path} is {image.dtype}")
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_BGRA2GRAY if image.shape[2] == 4 else cv2.COLOR_BGR2GRAY)
    return image


def read_depth(root: Path, path: str) -> np.ndarray:
    """Read a PNG of 16 bits with one channel as uint16 (H, W). Raises Unusable as `read_gray` does."""
    image = _read_image(root, path, "depth image")
    if image.dtype != np.uint16:
        raise Unusable("depth image is not 16-bit", f"{path} is {image.dtype}")
    if image.ndim != 2:
        raise Unusable("depth image has more than one channel", f"{path} has {image.shape[2]}")
    return image


def is_turned_by_exif(path: Path) -> bool:
    """Check whether an image has EXIF data that turn it, which `read_gray` ignores; False if it cannot be read."""
    try:
        content = path.read_bytes()
        if b"Exif" not in content and b"eXIf" not in content:
            return False
        stored = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
        some, other = (cv2.imdecode(np.frombuffer(content, np.uint8), how) for how in (cv2.IMREAD_GRAYSCALE, stored))
    except (OSError, ValueError, cv2.error):
        return False
    return not np.array_equal(some, other)


def check_size(kind: str, size: tuple[int, int], want: tuple[int, int]) -> None:
    """Raise Unusable unless an image has the (width, height) that it must have."""
    if size != want:
        raise Unusable(f"{kind} is not {want[0]}x{want[1]}", f"{size[0]}x{size[1]}")


def check_links(folder: Path, root: Path) -> None:
    """Raise FaceDepthError if a folder, or an entry of it at any depth, leads out of `root` or is not a file or folder.

    A symbolic link in a stranger's data set may not lead to files outside of it: they would be read into arrays that
    are passed on.
    """
    whole, todo = root.resolve(), [folder]
    _check_inside(folder, whole)
    while todo:
        try:
            entries = list(os.scandir(todo.pop()))
        except OSError:  # the reader reports missing files
            continue
        for entry in entries:
            if entry.is_symlink():
                _check_inside(Path(entry.path), whole)
            elif entry.is_dir():
                todo.append(Path(entry.path))
            elif not entry.is_file():
                raise FaceDepthError(f"{entry.path} is neither a file nor a folder; remove it")


def _check_inside(path: Path, whole: Path) -> None:
    try:
        stays = path.resolve().is_relative_to(whole)
    except (OSError, RuntimeError):  # a circle
        stays = False
    if not stays:
        raise FaceDepthError(
            f"{path} leads out of {whole} by a symbolic link; copy what is there, or give --raw the folder it leads to"
        )


def _read_image(root: Path, path: str, kind: str) -> np.ndarray:
    """Decode an image as stored. OpenCV fills up a cut file, at times silently, so the file is checked first."""
    try:
        if not os.path.isfile(root / path):
            raise Unusable(f"{kind} is missing", path)
        content = (root / path).read_bytes()
    except OSError as error:
        raise Unusable(f"{kind} cannot be read", f"{path}: {error.strerror}") from None
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        whole = _png_is_whole(content)
    elif content.startswith(b"\xff\xd8") and kind != "depth image":
        whole = _jpeg_is_whole(content)
    else:
        raise Unusable(f"{kind} is not a PNG{' or JPEG' * (kind != 'depth image')}", path)
    if not whole:
        raise Unusable(f"{kind} is truncated or damaged", path)
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None:
        raise Unusable(f"{kind} cannot be decoded", path)
    return image


def _png_is_whole(content: bytes) -> bool:
    """Check that every chunk up to IEND is there with its check sum."""
    at = 8
    while at + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        end = at + 8 + length
        if end + 4 > len(content) or struct.unpack_from(">I", content, end)[0] != zlib.crc32(content[at + 4 : end]):
            return False
        if content[at + 4 : at + 8] == b"IEND":
            return True
        at = end + 4
    return False


def _jpeg_is_whole(content: bytes) -> bool:
    """Check that the image's own end is there: not its thumbnail's, and whatever a camera writes behind it."""
    at = 2
    while marker := _JPEG_MARKER.search(content, at):
        at = marker.end()
        if marker[0] == b"\xff\xd9":
            return True
        at += int.from_bytes(content[at : at + 2])  # a segment says its length; coded data follows the one of a scan
    return False
