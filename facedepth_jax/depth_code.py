"""Depth as an image: millimetres <-> 8-bit levels <-> the [-1, 1] of a tanh.

The paper stores depth maps as 8-bit images and measures every metric in their levels. Which depth a level stands for is
not in the paper; the defaults are those of the authors' group: `level = (mm - 500) / 8`, so 0..255 is 500..2540 mm, and
"no depth" (0 mm) wraps to level 194.

All functions are pure and take NumPy or JAX arrays alike.
"""

import dataclasses

import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class DepthCode:
    """How depth becomes an image.

    Attributes:
      offset_mm: depth of level 0.
      step_mm: depth of one level.
      half_range: levels a unit of the network's output; 127.5 maps [-1, 1] to [0, 255].
      none_level: level written where the sensor saw nothing.
    """

    offset_mm: float = 500.0
    step_mm: float = 8.0
    half_range: float = 127.5
    none_level: int = 194


def levels_from_mm(depth_mm, code: DepthCode):
    """Millimetres (any shape, 0 = none) -> whole levels, float32, clipped to 0..255; `none_level` where none."""
    depth_mm = jnp.asarray(depth_mm)
    levels = jnp.clip(jnp.round((depth_mm.astype(jnp.float32) - code.offset_mm) / code.step_mm), 0, 255)
    return jnp.where(depth_mm > 0, levels, jnp.float32(code.none_level))


def mm_from_levels(levels, code: DepthCode):
    """Levels (float) -> millimetres, float32. Not an inverse where the level was clipped or stands for "none"."""
    return jnp.asarray(levels, jnp.float32) * code.step_mm + code.offset_mm


def image_from_levels(levels, code: DepthCode):
    """Levels -> the network's range [-1, 1], float32."""
    return jnp.asarray(levels, jnp.float32) / code.half_range - 1.0


def levels_from_image(image, code: DepthCode):
    """The network's range [-1, 1] -> levels, float32, not rounded."""
    return (jnp.asarray(image, jnp.float32) + 1.0) * code.half_range


def image_from_gray(gray):
    """Gray uint8 -> [-1, 1], float32: (x - 127.5) / 127.5."""
    return (jnp.asarray(gray).astype(jnp.float32) - 127.5) / 127.5
