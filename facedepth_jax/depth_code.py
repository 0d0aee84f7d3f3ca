"""Convert between millimetres, the paper's 8-bit levels, and the [-1, 1] of the nets.

The paper stores depth maps as 8-bit images and measures every metric in their levels. It does not say which depth a
level stands for; the defaults are those of the authors' group: `level = (mm - 500) / 8`, so 0..255 is 500..2540 mm, and
"no depth" (0 mm) wraps to level 194.

All functions are pure and take NumPy or JAX arrays alike.
"""

import dataclasses

import jax.numpy as jnp

HALF_RANGE = 127.5  # levels a unit of the net's output: [-1, 1] is 0..255


@dataclasses.dataclass(frozen=True)
class DepthCode:
    """The meaning of a net's output: the only way from millimetres to the net and back.

    Attributes:
      offset_mm: depth of level 0.
      step_mm: depth of one level.
      none_level: level written where the sensor saw nothing.
    """

    offset_mm: float = 500.0
    step_mm: float = 8.0
    none_level: int = 194

    @property
    def range_mm(self) -> tuple[float, float]:
        """Return the depths of levels 0 and 255."""
        return self.from_levels(0), self.from_levels(255)

    def encode(self, depth_mm, distance_mm):
        """Turn depth maps into images.

        Args:
          depth_mm: (B, S, S), millimetres, 0 = none.
          distance_mm: (B,), of the head, D of Eq. 6.

        Returns:
          float32 (B, S, S, 1) in [-1, 1].
        """
        return (self.quantize(depth_mm) / HALF_RANGE - 1.0)[..., None]

    def decode(self, image, distance_mm):
        """Turn images (B, S, S, 1) back into depth maps, float32 (B, S, S) in millimetres; a clipped depth stays so."""
        return self.from_levels((jnp.asarray(image, jnp.float32)[..., 0] + 1.0) * HALF_RANGE)

    def levels(self, depth_mm):
        """Convert millimetres to levels, float32, neither rounded nor clipped: the unit of the paper's metrics."""
        return (jnp.asarray(depth_mm).astype(jnp.float32) - self.offset_mm) / self.step_mm

    def from_levels(self, levels):
        """Convert levels to millimetres."""
        return levels * self.step_mm + self.offset_mm

    def quantize(self, depth_mm):
        """Convert millimetres (0 = none) to levels as an 8-bit file has them: whole, 0..255, float32."""
        levels = jnp.clip(jnp.round(self.levels(depth_mm)), 0, 255)
        return jnp.where(jnp.asarray(depth_mm) > 0, levels, jnp.float32(self.none_level))


def encode_gray(gray):
    """Turn gray images uint8 (B, S, S) into what the nets see: float32 (B, S, S, 1), (x - 127.5) / 127.5."""
    return ((jnp.asarray(gray).astype(jnp.float32) - 127.5) / 127.5)[..., None]
