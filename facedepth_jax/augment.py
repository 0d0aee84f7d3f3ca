"""Augment batches of faces, so that a net trained on faces of our making works on photographs.

`augment` turns a batch of stored arrays into another one, on the devices, within the training step. Every example draws
from its own key, so the result depends on nothing else: not on the devices, processes or batches that it is shared
among. What was found to matter: Wood et al., "Fake it till you make it" (2021), section 3.2.

The picture is turned, scaled, shifted and flipped, depth and all; then what it shows behind the head and the light are
changed, and last the camera. A face that is twice as large in a window of the same millimetres is twice as deep: the
relief is scaled with it, while the distance of the head stays.

XLA sums in another order for a batch of another size. So the factors of every longer sum are rounded to few bits first
(`_in_bits`), and float32 holds the sum exactly in any order: the bits are the same on any number of devices.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from facedepth_jax.depth_code import true_foreground

# Standard deviations: degrees, of the logarithm, of the image's side.
ROTATION_DEG, SCALE, SHIFT = 12.0, 0.12, 5 / 96
# Standard deviations: of the light from the middle to the edge, of both logarithms, of white.
SIDE_LIGHT, GAMMA, CONTRAST, BRIGHTNESS = 0.25, 0.35, 0.3, 0.12
# Shares of the images.
BLACK, EXCHANGED, HIDDEN, BLURRED, COARSE, COMPRESSED = 0.35, 0.25, 0.2, 0.4, 0.15, 0.3
NOISE = 0.05  # the largest standard deviation, of white
EDGE_MM = 50.0  # neighbours farther apart in depth are not mixed; nor 0 = none, which is as far from any depth
# Annex K of ITU-T T.81, table K.1: quantisation of luminance.
_JPEG = """
16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99
"""
JPEG_TABLE = np.array(_JPEG.split(), np.float32).reshape(8, 8)
_FREQUENCY, _PLACE = np.mgrid[:8, :8]
DCT = np.sqrt(np.where(_FREQUENCY, 2, 1) / 8) * np.cos((2 * _PLACE + 1) * _FREQUENCY * np.pi / 16)
DCT = (np.round(2**12 * DCT) / 2**12).astype(np.float32)  # as `_in_bits`


def augment(batch: dict, key) -> dict:
    """Augment a batch.

    Args:
      batch: with gray uint8 (B, S, S), depth_mm uint16 (B, S, S), 0 = none, distance_mm float32 (B,).
      key: of the draws.

    Returns:
      The batch with another gray and depth_mm of the same types.
    """
    keys = jax.random.split(key, len(batch["gray"]))
    with jax.default_matmul_precision("highest"):
        gray, depth_mm = jax.vmap(_augment_one)(batch["gray"], batch["depth_mm"], batch["distance_mm"], keys)
    return batch | {"gray": gray, "depth_mm": depth_mm}


def _augment_one(gray, depth_mm, distance_mm, key):
    move, behind, light, hide, camera = jax.random.split(key, 5)
    gray, depth_mm = gray.astype(jnp.float32), depth_mm.astype(jnp.float32)
    gray, depth_mm = _move(gray, depth_mm, distance_mm, *_draw_move(len(gray), move))
    head = _close(true_foreground(depth_mm[None], distance_mm[None])[0])
    gray = _change_background(gray / 255, head, behind)
    gray = _hide_part(_change_light(gray, light), hide)
    gray = _photograph(gray, camera)
    return jnp.round(255 * gray).astype(jnp.uint8), jnp.round(depth_mm).astype(jnp.uint16)


def _in_bits(x, bits):
    """Round to so many bits after the binary point."""
    return jnp.round(x * 2**bits) / 2**bits


def _draw_move(size, key):
    """Draw an angle in radians, a scale, a shift (y, x) in pixels and a side, -1 for a mirrored image."""
    a, b, c, d = jax.random.split(key, 4)
    angle = jnp.deg2rad(ROTATION_DEG) * jax.random.normal(a)
    scale = jnp.exp(SCALE * jax.random.normal(b))
    return angle, scale, SHIFT * size * jax.random.normal(c, (2,)), jax.random.rademacher(d, dtype=jnp.float32)


def _move(gray, depth_mm, distance_mm, angle, scale, shift, side):
    """Flip, turn, scale and shift; what comes from outside is black and without depth."""
    size = len(gray)
    middle = (size - 1) / 2
    shift = _in_bits(shift, 4)
    y, x = (jnp.arange(size) - middle - shift[0])[:, None], (jnp.arange(size) - middle - shift[1])[None]
    cos, sin = _in_bits(jnp.cos(angle) / scale, 12), _in_bits(jnp.sin(angle) / scale, 12)
    # Destination pixel -> source pixel, in steps of 1/32 as OpenCV's.
    from_y = _in_bits(cos * y - sin * x + middle, 5)
    from_x = _in_bits(side * (sin * y + cos * x) + middle, 5)
    row, column = jnp.floor(from_y), jnp.floor(from_x)
    down, right = from_y - row, from_x - column
    # A border of two pixels holds whatever lies outside.
    row, column = (jnp.clip(at, -2, size).astype(jnp.int32) + 2 for at in (row, column))
    first = row * (size + 4) + column

    def corners(image):  # a list: XLA does not fuse a stack of gathers with what follows, six times as slow on a CPU
        image = jnp.pad(image, 2).reshape(-1)
        return [image[first + step] for step in (0, 1, size + 4, size + 5)]

    def mix(a, b, c, d):
        return (1 - down) * ((1 - right) * a + right * b) + down * ((1 - right) * c + right * d)

    a, b, c, d = depths = corners(depth_mm)
    nearest = jnp.where(down < 0.5, jnp.where(right < 0.5, a, b), jnp.where(right < 0.5, c, d))
    least, most = functools.reduce(jnp.minimum, depths), functools.reduce(jnp.maximum, depths)
    depth_mm = jnp.where(most - least < EDGE_MM, mix(*depths), nearest)
    moved = jnp.clip(distance_mm + _in_bits(scale, 10) * _in_bits(depth_mm - distance_mm, 2), 1, 65535)
    return mix(*corners(gray)), jnp.where(depth_mm > 0, moved, 0)


def _close(mask):
    """Fill small holes in a mask, bool (S, S)."""

    def widen(x):
        for window in ((5, 1), (1, 5)):
            x = jax.lax.reduce_window(x, False, jax.lax.bitwise_or, window, (1, 1), "SAME")
        return x

    return ~widen(~widen(mask))


def _texture(size, key):
    """Make a smooth random pattern in [0, 1], (S, S)."""
    a, b, c = jax.random.split(key, 3)
    coarse = jax.image.resize(jax.random.uniform(a, (5, 5)), (size, size), "linear")
    fine = jax.image.resize(jax.random.uniform(b, (16, 16)), (size, size), "linear")
    level, contrast, share = jax.random.uniform(c, (3,))
    return jnp.clip(level + contrast * ((1 - share) * coarse + share * fine - 0.5), 0, 1)


def _change_background(gray, head, key):
    a, b = jax.random.split(key)
    draw = jax.random.uniform(a)
    behind = jnp.where(draw < BLACK, 0.0, jnp.where(draw < BLACK + EXCHANGED, _texture(len(gray), b), gray))
    return jnp.where(head, gray, behind)


def _change_light(gray, key):
    """Light one side more than the other; then change gamma, contrast and brightness."""
    a, b, c, d, e = jax.random.split(key, 5)
    towards = 2 * jnp.pi * jax.random.uniform(a)
    at = jnp.linspace(-1.0, 1.0, len(gray))
    slope = SIDE_LIGHT * jax.random.normal(b) * (jnp.sin(towards) * at[:, None] + jnp.cos(towards) * at[None])
    gray = jnp.clip(gray * jnp.maximum(1 + slope, 0.05), 0, 1)
    gray = jnp.maximum(gray, 1e-6) ** jnp.exp(GAMMA * jax.random.normal(c))
    mean = _in_bits(gray, 10).mean()
    gray = mean + (gray - mean) * jnp.exp(CONTRAST * jax.random.normal(d)) + BRIGHTNESS * jax.random.normal(e)
    return jnp.clip(gray, 0, 1)


def _hide_part(gray, key):
    """Put a rectangle of a random pattern over some images."""
    a, b, c, d = jax.random.split(key, 4)
    at = jnp.arange(len(gray)) / len(gray)
    centre, reach = jax.random.uniform(a, (2,)), jax.random.uniform(b, (2,), minval=0.05, maxval=0.25)
    inside = jnp.abs(at[None] - centre[:, None]) < reach[:, None]
    hidden = inside[0][:, None] & inside[1][None] & (jax.random.uniform(c) < HIDDEN)
    return jnp.where(hidden, _texture(len(gray), d), gray)


def _photograph(gray, key):
    """Blur, lower the resolution, add noise and compress as JPEG: all but the noise in some images."""
    size = len(gray)
    sigma, factor, amount, quality, which, noise = jax.random.split(key, 6)
    blurred, coarse, compressed = jax.random.uniform(which, (3,)) < jnp.array([BLURRED, COARSE, COMPRESSED])
    blur = jnp.where(blurred, _blur(size, jax.random.uniform(sigma, minval=0.4, maxval=1.5)), jnp.eye(size))
    coarser = _coarsen(size, jax.random.uniform(factor, minval=1.5, maxval=3.5))
    change = _in_bits(jnp.where(coarse, coarser, jnp.eye(size)) @ blur, 12)
    gray = _in_bits(change @ jnp.round(255 * gray), 4) @ change.T
    amount = _in_bits(255 * NOISE * jax.random.uniform(amount), 6)
    gray = jnp.clip(gray + amount * _in_bits(jax.random.normal(noise, gray.shape), 6), 0, 255) / 255
    lossy = _compress(gray, jax.random.uniform(quality, minval=30.0, maxval=95.0))
    return jnp.clip(jnp.where(compressed, lossy, gray), 0, 1)


def _blur(size, sigma):
    """Make the matrix (S, S) that blurs a column of pixels."""
    at = jnp.arange(size, dtype=jnp.float32)
    return _rows_to_one(jnp.exp(-((at[:, None] - at[None]) ** 2) / (2 * sigma**2)))


def _coarsen(size, factor):
    """Make the matrix (S, S) that shrinks a column of pixels by `factor` and enlarges it again, linearly both."""
    at = jnp.arange(size, dtype=jnp.float32)
    factor = _in_bits(factor, 8)
    # Coarse pixel k covers `factor` fine ones; the last ones may lie outside.
    tent = jnp.maximum(factor - jnp.abs(at[:, None] - ((at[None] + 0.5) * factor - 0.5)), 0)
    return _in_bits(_rows_to_one(tent) @ _rows_to_one(tent.T), 12)


def _rows_to_one(weights):
    weights = _in_bits(weights, 12)
    return _in_bits(weights / jnp.maximum(weights.sum(1, keepdims=True), 1e-6), 12)


def _compress(gray, quality):
    """Lose what a JPEG of this quality loses."""
    percent = jnp.where(quality < 50, 5000 / quality, 200 - 2 * quality)  # as the IJG's library scales its table
    table = jnp.maximum(jnp.round(JPEG_TABLE * percent / 100), 1.0)[None, None]
    blocks = (jnp.round(255 * gray) - 128).reshape(len(gray) // 8, 8, -1, 8).swapaxes(1, 2)
    blocks = jnp.round(_in_bits(DCT @ blocks, 2) @ DCT.T / table) * table
    blocks = _in_bits(DCT.T @ blocks, 2) @ DCT
    return (blocks.swapaxes(1, 2).reshape(gray.shape) + 128) / 255
