"""Register two calibrated cameras, Biwi's: carry the depth image over to the colour camera, or gray to depth.

Pixel centres are at whole numbers. `X_colour = R X_depth + T`, with R and T of the colour camera.
"""

import dataclasses
import functools

import cv2
import numpy as np

from facedepth_jax.data import crop


@dataclasses.dataclass(frozen=True)
class Camera:
    """A calibrated camera of Biwi.

    Attributes:
      focal_px: (f_x, f_y).
      centre_px: (x, y) of the principal point.
      distortion: k1, k2, p1, p2 as OpenCV counts them.
      rotation, translation_mm: R and T, from the depth camera's frame to this one's.
      size: (width, height) of its image.
    """

    focal_px: tuple[float, float]
    centre_px: tuple[float, float]
    distortion: tuple[float, float, float, float]
    rotation: tuple[tuple[float, ...], ...]
    translation_mm: tuple[float, ...]
    size: tuple[int, int]

    def from_depth_frame(self, points_mm: np.ndarray) -> np.ndarray:
        """Map points (3,) from the depth camera's frame to this one's: R X + T."""
        return np.array(self.rotation) @ points_mm + np.array(self.translation_mm)

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Project points (3, ...) in this camera's frame, z > 0: x and y in pixels, (...) each."""
        x, y = points[0] / points[2], points[1] / points[2]
        if any(self.distortion):
            k1, k2, p1, p2 = self.distortion
            r2 = x**2 + y**2
            radial = 1 + k1 * r2 + k2 * r2**2
            x, y = (
                x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x**2),
                y * radial + 2 * p2 * x * y + p1 * (r2 + 2 * y**2),
            )
        return x * self.focal_px[0] + self.centre_px[0], y * self.focal_px[1] + self.centre_px[1]

    def rays(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return the points (3, ...) with z = 1 that `project` maps to the pixels x and y, (...) each."""
        (fx, fy), (cx, cy) = self.focal_px, self.centre_px
        if not any(self.distortion):
            return np.stack([(x - cx) / fx, (y - cy) / fy, np.ones_like(x)])
        how = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 40, 1e-9)
        pixels = np.stack([x.ravel(), y.ravel()], 1)[:, None]
        matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        xy = cv2.undistortPoints(pixels, matrix, np.array(self.distortion), criteria=how)[:, 0].T
        return np.concatenate([xy, np.ones((1, x.size))]).reshape(3, *x.shape)


@functools.lru_cache(maxsize=2)  # a sequence at a time; most have one calibration in common
def _half_pixel_rays(depth_camera: Camera, gray_camera: Camera) -> np.ndarray:
    """Return rays of the depth image's pixels and of the places half-way between, turned to the colour camera's axes.

    float32 (3, 2 H - 1, 2 W - 1); times the depth, plus T, they are points in the colour camera's frame.
    """
    width, height = depth_camera.size
    rays = depth_camera.rays(*np.meshgrid(np.arange(2 * width - 1) / 2, np.arange(2 * height - 1) / 2))
    return np.einsum("ij,jyx->iyx", np.array(gray_camera.rotation), rays).astype(np.float32)


def _place(rays: np.ndarray, depth_mm: np.ndarray, gray_camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Map pixels (h, w) of the depth image to x, y in the colour image and z; float32 (h, w). (-9, -9): none."""
    points = rays * depth_mm + np.array(gray_camera.translation_mm, np.float32)[:, None, None]
    seen = points[2] > 0.5
    x, y = gray_camera.project(np.where(seen, points, np.float32(1)))
    return np.where(seen, x, np.float32(-9)), np.where(seen, y, np.float32(-9)), points[2]


def depth_to_gray(depth_mm: np.ndarray, depth_camera: Camera, gray_camera: Camera) -> np.ndarray:
    """Carry depth, uint16 (H, W) in mm, to the colour camera: uint16 (H', W'), z in its frame, 0 = none.

    Surfaces are sampled twice as finely as the depth image is, so that a smooth one has no holes after it has moved;
    where depth jumps there is nothing between two pixels. Of the samples in a target pixel those of the nearest surface
    are averaged.
    """
    target = np.zeros(gray_camera.size[::-1], np.uint16)
    place, z, weight = _samples(depth_mm, depth_camera, gray_camera)
    front = z <= _nearest_mm(place, z, target.size)[place] + crop.EDGE_MM
    place, z, weight = place[front], z[front], weight[front]
    total = np.bincount(place, weight, target.size)
    seen = total > 0
    mean = np.bincount(place, weight * z, target.size)[seen] / total[seen]
    target.flat[seen] = np.clip(np.floor(mean + 0.5), 1, 65535)
    return target


def gray_to_depth(
    gray: np.ndarray, depth_mm: np.ndarray, depth_camera: Camera, gray_camera: Camera, head_z_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """Carry gray, uint8 (H', W'), to the depth camera; return it with the depth, uint16 (H, W) in mm, not hidden.

    Gray is 0 where the colour camera does not see. A pixel without depth is taken at the head's distance, or the gray
    image would tell where the depth has holes. Where a nearer surface hides a point from the colour camera, gray is
    that of the nearer surface, and the depth is taken away: the two are not of one point.
    """
    none = depth_mm == 0
    rays = _half_pixel_rays(depth_camera, gray_camera)[:, ::2, ::2]
    x, y, z = _place(rays, np.where(none, np.float32(head_z_mm), depth_mm.astype(np.float32)), gray_camera)
    near = [np.clip(at, -9, size + 9) for at, size in ((x, gray.shape[1]), (y, gray.shape[0]))]  # OpenCV: 16 bits
    sampled = cv2.remap(gray, *near, cv2.INTER_LINEAR)
    there, inside = _pixel_numbers(x, y, gray.shape)
    place, sample_z, _ = _samples(depth_mm, depth_camera, gray_camera)
    nearest = _nearest_mm(place, sample_z, gray.size)
    hidden = inside & ~none
    hidden[hidden] = z[hidden] > nearest[there[hidden]] + crop.EDGE_MM
    return sampled, np.where(hidden, np.uint16(0), depth_mm)


def _samples(
    depth_mm: np.ndarray, depth_camera: Camera, gray_camera: Camera
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sample the surfaces in the colour image: number of the pixel, z in mm, nearness to its centre; (N,) each."""
    rows, columns = (np.flatnonzero(depth_mm.any(axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
    (top, bottom), (left, right) = rows[[0, -1]], columns[[0, -1]]
    fine = _between(depth_mm[top : bottom + 1, left : right + 1].astype(np.float32))
    rays = _half_pixel_rays(depth_camera, gray_camera)[:, 2 * top : 2 * bottom + 1, 2 * left : 2 * right + 1]
    x, y, z = _place(rays, fine, gray_camera)
    place, inside = _pixel_numbers(x, y, gray_camera.size[::-1])
    some = (fine > 0) & inside
    x, y = x[some], y[some]
    weight = (1 - np.abs(x - np.floor(x + 0.5))) * (1 - np.abs(y - np.floor(y + 0.5)))
    return place[some], z[some], weight


def _pixel_numbers(x: np.ndarray, y: np.ndarray, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixel's number, row by row, in an image of `shape`, and whether it is inside (else any number)."""
    inside = (x >= -0.5) & (x < shape[1] - 0.5) & (y >= -0.5) & (y < shape[0] - 0.5)
    column, row = np.where(inside, np.floor(x + 0.5), 0), np.where(inside, np.floor(y + 0.5), 0)
    return row.astype(np.int64) * shape[1] + column.astype(np.int64), inside


def _between(depth_mm: np.ndarray) -> np.ndarray:
    """Refine (h, w) to (2 h - 1, 2 w - 1): means half-way between pixels of one surface, 0 where they are of two."""

    def middle(a, b):
        return np.where((a > 0) & (b > 0) & (np.abs(a - b) <= crop.EDGE_MM), (a + b) / 2, 0)

    fine = np.zeros((2 * depth_mm.shape[0] - 1, 2 * depth_mm.shape[1] - 1), np.float32)
    fine[::2, ::2] = depth_mm
    fine[::2, 1::2] = middle(depth_mm[:, :-1], depth_mm[:, 1:])
    fine[1::2] = middle(fine[:-1:2], fine[2::2])
    return fine


def _nearest_mm(place: np.ndarray, z: np.ndarray, pixels: int) -> np.ndarray:
    """Return the z-buffer: (pixels,) smallest z of each pixel, infinity where there is none."""
    nearest = np.full(pixels, np.inf, np.float32)  # minimum.at is ten times slower for two types
    np.minimum.at(nearest, place, z)
    return nearest
