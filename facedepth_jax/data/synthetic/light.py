"""Real surroundings (Poly Haven's, CC0): their light in spherical harmonics, and their pictures behind a person.

Directions are unit vectors in a camera's axes: x to its right, y down, z forward.
"""

import functools
from pathlib import Path

import cv2
import numpy as np

WHITE = 4.0  # radiance of a panorama's white, as a multiple of the mean
BACKDROP_PX, BACKDROP_REACH = 256, 0.36  # of a picture behind a person: x and y of its rays reach so far about the head
COSINE = np.repeat([1, 2 / 3, 1 / 4], [1, 3, 5])  # of the first nine harmonics: what a matt surface makes of light


def harmonics(x, y, z):
    """Evaluate the sixteen real spherical harmonics up to degree 3 at unit vectors: a tuple, for NumPy or JAX."""
    return (
        0 * x + 0.282095, 0.488603 * y, 0.488603 * z, 0.488603 * x,
        1.092548 * x * y, 1.092548 * y * z, 0.315392 * (3 * z * z - 1), 1.092548 * x * z, 0.546274 * (x * x - y * y),
        0.590044 * y * (3 * x * x - y * y), 2.890611 * x * y * z, 0.457046 * y * (5 * z * z - 1),
        0.373176 * z * (5 * z * z - 3), 0.457046 * x * (5 * z * z - 1), 1.445306 * z * (x * x - y * y),
        0.590044 * x * (x * x - 3 * y * y),
    )  # fmt: skip


def basis(d):
    """Stack the harmonics at unit vectors (..., 3): (..., 16)."""
    return np.stack(harmonics(*np.moveaxis(d, -1, 0)), -1)


@functools.cache
def environments():
    """Read light (N, 16), of mean radiance 1, and panoramas uint8 (N, H, W), gamma 2.2 up to WHITE."""
    with np.load(Path(__file__).with_name("environments.npz"), allow_pickle=False) as f:
        light, strip = f["light"].astype(np.float64), cv2.imdecode(f["panoramas"], cv2.IMREAD_GRAYSCALE)
    return light, strip.reshape(len(light), -1, strip.shape[1])


@functools.cache
def _sphere(count):
    """Return `count` even directions (count, 3) and their harmonics (count, 16)."""
    i = np.arange(count) + 0.5
    z, angle = 1 - 2 * i / count, np.pi * (1 + 5**0.5) * i
    d = np.stack([np.sqrt(1 - z * z) * np.cos(angle), np.sqrt(1 - z * z) * np.sin(angle), z], 1)
    return d, basis(d)


@functools.cache
def products():
    """Return the integrals of products of three harmonics, (9, 16, 16): from light and visibility to what arrives."""
    y = _sphere(4000)[1]
    return (np.einsum("dj,di,dk->jik", y[:, :9], y, y) * (4 * np.pi / len(y))).astype(np.float32)


@functools.cache
def _fit():
    d, y = _sphere(100)
    return d, np.linalg.pinv(y)


def turned(light, rotation):
    """Turn a light (16,) by a rotation matrix: what came from d comes from `rotation` d."""
    d, fit = _fit()
    return fit @ (basis(d @ rotation) @ light)


def irradiance(light, normal):
    """Return the light on an open matt surface of a unit normal, 1 where all directions have radiance 1."""
    return float(basis(np.asarray(normal, np.float64))[:9] @ (COSINE * light[:9]))


@functools.lru_cache(maxsize=4)
def backdrop(number, rotation, centre, zoom, blur_px):
    """Take a picture of an environment: radiance, float32 (BACKDROP_PX, BACKDROP_PX).

    Args:
      rotation: a tuple of nine numbers, from the environment to the camera.
      centre: (x, y) of the ray through the middle.
      zoom: below 1, more of the environment is seen, and sharper.
      blur_px: standard deviation.
    """
    panorama = environments()[1][number]
    height, width = panorama.shape
    x, y = np.meshgrid(*(2 * [np.linspace(-BACKDROP_REACH, BACKDROP_REACH, BACKDROP_PX, dtype=np.float32) / zoom]))
    d = np.stack([x + centre[0], y + centre[1], np.ones_like(x)], -1) @ np.float32(rotation).reshape(3, 3)
    d /= np.linalg.norm(d, axis=-1, keepdims=True)
    u = (np.arctan2(d[..., 0], d[..., 2]) / (2 * np.pi) + 0.5) * width - 0.5
    v = (0.5 + np.arcsin(np.clip(d[..., 1], -1, 1)) / np.pi) * height - 0.5
    places = np.float32(u), np.float32(v)
    seen = cv2.remap(panorama.astype(np.float32), *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    radiance = WHITE * (seen / 255) ** 2.2
    return cv2.GaussianBlur(radiance, (0, 0), blur_px) if blur_px > 0.3 else radiance
