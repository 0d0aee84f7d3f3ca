"""Crop faces dynamically (section 3.2, Eq. 6) and resize them to the network's size. NumPy in, NumPy out.

Pixel centres are at whole numbers; resizing maps `source = (target + 0.5) * scale - 0.5` as OpenCV does, for gray and
depth alike, so that the two stay registered.
"""

import dataclasses
import functools
import math

import cv2
import numpy as np

from facedepth_jax.errors import FaceDepthError

# Depths that differ by more are two surfaces, not one: steps on a face at Kinect range are some mm a pixel and the
# sensor's noise is below 3 mm, while ear, shoulder and background lie centimetres behind.
EDGE_MM = 25.0


@dataclasses.dataclass(frozen=True)
class Box:
    """Columns x..x+w-1 and rows y..y+h-1 of an image; may reach outside it."""

    x: int
    y: int
    w: int
    h: int


@dataclasses.dataclass(frozen=True)
class Window:
    """A rectangle of an image around (x, y), w and h pixels wide and high, turned clockwise by `roll` degrees."""

    x: float
    y: float
    w: float
    h: float
    roll: float = 0.0

    def matrix(self, size_px: int) -> np.ndarray:
        """Return the matrix (2, 3) from pixels (x, y, 1) of a map (size_px, size_px) of this window to the image's."""
        roll = math.radians(self.roll)
        turn = np.array([[math.cos(roll), -math.sin(roll)], [math.sin(roll), math.cos(roll)]])
        scale = turn * [self.w / size_px, self.h / size_px]
        return np.column_stack([scale, [self.x, self.y] - scale.sum(axis=1) * (size_px - 1) / 2])

    def shows(self, shape: tuple[int, int]) -> bool:
        """Check that some of it may lie in an image of shape (H, W), by the rectangle around its corners."""
        corners = self.matrix(1) @ [[-0.5, 0.5, -0.5, 0.5], [-0.5, -0.5, 0.5, 0.5], [1, 1, 1, 1]]
        overlap = np.minimum(corners.max(1), (shape[1] - 0.5, shape[0] - 0.5)) > np.maximum(corners.min(1), -0.5)
        return bool(np.isfinite(corners).all() and min(self.w, self.h) > 0 and overlap.all())

    def crop(self, image: np.ndarray, size_px: int) -> np.ndarray:
        """Cut the window out of an image uint8 (H, W[, 3]) and resize it to size_px; outside the image it is black."""
        reach = math.hypot(self.w, self.h) / 2 + 1  # OpenCV turns images below 32768 pixels a side
        left, top = max(0, int(self.x - reach)), max(0, int(self.y - reach))
        image = image[top : math.ceil(self.y + reach) + 1, left : math.ceil(self.x + reach) + 1]
        coarser = max(1, math.ceil(max(self.w, self.h) / (8 * size_px)))
        finer = max(1, math.ceil(max(self.w, self.h) / (coarser * size_px)))  # then the mean: no pixel is skipped
        matrix = self.matrix(finer * size_px) - [[0, 0, left], [0, 0, top]]
        if coarser > 1:  # by a whole factor, so black is added on the right and below
            height, width = image.shape[:2]
            image = cv2.copyMakeBorder(image, 0, -height % coarser, 0, -width % coarser, cv2.BORDER_CONSTANT)
            image = cv2.resize(image, None, fx=1 / coarser, fy=1 / coarser, interpolation=cv2.INTER_AREA)
            matrix = (matrix + [[0, 0, 0.5], [0, 0, 0.5]]) / coarser - [[0, 0, 0.5], [0, 0, 0.5]]
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        fine = cv2.warpAffine(image, matrix, (finer * size_px, finer * size_px), flags=flags)
        return cv2.resize(fine, (size_px, size_px), interpolation=cv2.INTER_AREA) if finer > 1 else fine

    def paste(self, values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
        """Put a map of this window, float32 (S, S), NaN = none, back into its image (H, W): NaN outside and where none.

        Raises FaceDepthError for an image too large for it.
        """
        if max(shape) > 32767:
            raise FaceDepthError(f"The image is {shape[1]} x {shape[0]} pixels: OpenCV turns maps below 32768 a side.")
        there = np.isfinite(values)
        image, weight = (
            cv2.warpAffine(part.astype(np.float32), self.matrix(len(values)), (shape[1], shape[0]))
            for part in (np.where(there, values, 0), there)
        )
        return np.where(weight > 0.5, image / np.maximum(weight, 0.5), np.float32(np.nan))


def window_of(box: Box) -> Window:
    """Return a box as a window."""
    return Window(box.x + (box.w - 1) / 2, box.y + (box.h - 1) / 2, box.w, box.h)


def inside(shape: tuple[int, int], head_xy: tuple[float, float]) -> bool:
    """Check that the head centre (x, y) lies on a pixel of an image of shape (H, W)."""
    x, y = head_xy
    return -0.5 <= x < shape[1] - 0.5 and -0.5 <= y < shape[0] - 0.5


def head_distance_mm(depth_mm: np.ndarray, head_xy: tuple[float, float], window_px: int) -> float | None:
    """Measure D of Eq. 6: the mean of the valid depths in a window around the head centre.

    Args:
      depth_mm: uint16 (H, W), 0 = none.
      head_xy: head centre, inside the image.
      window_px: side of the window, odd; cut where it leaves the image.

    Returns:
      millimetres, None where the window holds no depth.
    """
    x, y = _nearest(head_xy[0]), _nearest(head_xy[1])
    reach = window_px // 2
    window = depth_mm[max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1]
    window = window[window > 0]
    return float(window.mean(dtype=np.float64)) if window.size else None


def crop_box(head_xy: tuple[float, float], distance_mm: float, focal_px: tuple[float, float], face_mm: float) -> Box:
    """Return the box of Eq. 6: `w = f_x R / D`, `h = f_y R / D` around the head centre.

    Sizes are rounded to whole pixels, at least 1; the place is the one whose middle is nearest to the head centre, so
    it is off by half a pixel at most. Halves go up.
    """
    w, h = (max(1, _nearest(f * face_mm / distance_mm)) for f in focal_px)
    return Box(_nearest(head_xy[0] - (w - 1) / 2), _nearest(head_xy[1] - (h - 1) / 2), w, h)


def crop(image: np.ndarray, box: Box) -> np.ndarray:
    """Copy the box (h, w) of an image (H, W); 0 where it leaves the image, never shifted or squeezed."""
    out = np.zeros((box.h, box.w), image.dtype)
    y0, y1 = max(box.y, 0), min(box.y + box.h, image.shape[0])
    x0, x1 = max(box.x, 0), min(box.x + box.w, image.shape[1])
    if y0 < y1 and x0 < x1:
        out[y0 - box.y : y1 - box.y, x0 - box.x : x1 - box.x] = image[y0:y1, x0:x1]
    return out


def resize_gray(gray: np.ndarray, size_px: int) -> np.ndarray:
    """Resize uint8 (H, W) to (size_px, size_px): mean over the pixel's area when shrinking, else bilinear."""
    shrinks = min(gray.shape) >= size_px
    return cv2.resize(gray, (size_px, size_px), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def resize_depth(depth_mm: np.ndarray, size_px: int) -> np.ndarray:
    """Resize uint16 (H, W) in mm, 0 = none, to (size_px, size_px), never averaging "no depth" or two surfaces.

    A target pixel belongs to the surface of the source pixel under its centre: it is the weighted mean of those pixels
    of its footprint that have a depth within EDGE_MM of that one, and none where that one is none. The weights are the
    shares of the area when shrinking, else bilinear, as in `resize_gray`.
    """
    rows, row_weights, row_nearest = _taps(depth_mm.shape[0], size_px)
    columns, column_weights, column_nearest = _taps(depth_mm.shape[1], size_px)
    depth = depth_mm.astype(np.float32)
    centre = depth[row_nearest[:, None], column_nearest]
    total = np.zeros_like(centre)
    weight = np.zeros_like(centre)
    for r, r_weight in zip(rows, row_weights, strict=True):
        line = depth[r]
        for c, c_weight in zip(columns, column_weights, strict=True):
            value = line[:, c]
            w = (r_weight[:, None] * c_weight) * ((value > 0) & (np.abs(value - centre) <= EDGE_MM))
            total += w * (value - centre)  # differences: float32 keeps them exact enough to round
            weight += w
    # The weight is 0 only where the centre has no depth.
    mean = centre + total / np.where(weight > 0, weight, 1)
    return np.where(centre > 0, np.floor(mean + 0.5), 0).astype(np.uint16)


@functools.lru_cache(maxsize=512)
def _taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return, for one axis, source indices and weights (K, target) of each target pixel, and the nearest (target,)."""
    scale = source / target
    first = np.arange(target) * scale  # the target pixel is first..first + scale, edges counted from 0
    middle = (np.arange(target) + 0.5) * scale
    if scale >= 1:
        index = np.floor(first).astype(int) + np.arange(math.ceil(scale) + 1)[:, None]
        weight = np.minimum(index + 1, first + scale) - np.maximum(index, first)
    else:
        index = np.floor(middle - 0.5).astype(int) + np.arange(2)[:, None]
        weight = 1 - np.abs(index + 0.5 - middle)
    nearest = np.minimum(np.floor(middle).astype(int), source - 1)
    return np.clip(index, 0, source - 1), np.clip(weight, 0, None).astype(np.float32), nearest


def _nearest(x: float) -> int:
    return math.floor(x + 0.5)
