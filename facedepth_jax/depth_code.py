"""Convert between millimetres and what the nets see: the paper's 8-bit levels of depth, or depth from the head.

The paper stores depth maps as 8-bit images and measures every metric in their levels. It does not say which depth a
level stands for; the defaults are those of the authors' group: `level = (mm - 500) / 8`, so 0..255 is 500..2540 mm, and
"no depth" (0 mm) wraps to level 194.

A crop of constant size in millimetres hardly shows how far away the head is, but whoever made it by Eq. 6 knows D, the
head's distance. So the second code asks for depth - D alone, and D is added again. A pixel without depth has no such
value: nothing is learnt from it.

All functions are pure and take NumPy or JAX arrays alike.
"""

import dataclasses

import jax.numpy as jnp

ORIGINS = ("camera", "head")
HALF_RANGE = 127.5  # levels a unit of the net's output: [-1, 1] is 0..255
RELIEF_MM = 300.0  # millimetres a unit of the net's output where depth is counted from the head
BACKGROUND_MM = 270.0  # an estimate that far behind the head's distance means the background, which is taught as 300


@dataclasses.dataclass(frozen=True)
class DepthCode:
    """The meaning of a net's output: the only way from millimetres to the net and back.

    Attributes:
      offset_mm: depth of level 0.
      step_mm: depth of one level.
      none_level: level written where the sensor saw nothing.
      origin: where depth is counted from: "camera", [-1, 1] is levels 0..255 (the paper); "head", [-1, 1] is D - 300 mm
        to D + 300 mm, and what lies beyond counts as the nearer end.
    """

    offset_mm: float = 500.0
    step_mm: float = 8.0
    none_level: int = 194
    origin: str = "camera"

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
          float32 (B, S, S, 1) in [-1, 1]; where there is no depth, `none_level`, or from the head the farthest.
        """
        if self.origin == "camera":
            return (self.quantize(depth_mm) / HALF_RANGE - 1.0)[..., None]
        depth_mm, distance_mm = jnp.asarray(depth_mm), jnp.asarray(distance_mm, jnp.float32)
        relief = (depth_mm.astype(jnp.float32) - distance_mm[:, None, None]) / RELIEF_MM
        return jnp.where(depth_mm > 0, jnp.clip(relief, -1.0, 1.0), 1.0)[..., None]

    def decode(self, image, distance_mm):
        """Turn images back into depth maps.

        Args:
          image: (B, S, S, 1); or (B, S, S, 2) with the foreground's logit behind.
          distance_mm: (B,), as for `encode`.

        Returns:
          float32 (B, S, S), millimetres everywhere; a clipped depth stays so. And the foreground, bool (B, S, S), by
          its logit or else its depth; None where depth is absolute.
        """
        image = jnp.asarray(image, jnp.float32)
        if self.origin == "camera":
            return self.from_levels((image[..., 0] + 1.0) * HALF_RANGE), None
        relief_mm = image[..., 0] * RELIEF_MM
        foreground = relief_mm < BACKGROUND_MM if image.shape[-1] == 1 else image[..., 1] > 0
        return relief_mm + jnp.asarray(distance_mm, jnp.float32)[:, None, None], foreground

    def learnt(self, depth_mm):
        """Mark the pixels that a net learns from, bool (B, S, S, 1): all, or from the head those with depth."""
        depth_mm = jnp.asarray(depth_mm)[..., None]
        return jnp.ones_like(depth_mm, bool) if self.origin == "camera" else depth_mm > 0

    def picture(self, depth_mm, distance_mm):
        """Store depth maps as 8-bit images do: `encode` in whole numbers 0..255, float32 (B, S, S)."""
        return jnp.round((self.encode(depth_mm, distance_mm)[..., 0] + 1.0) * HALF_RANGE)

    def levels(self, depth_mm):
        """Convert millimetres to levels, float32, neither rounded nor clipped: the unit of the paper's metrics."""
        return (jnp.asarray(depth_mm).astype(jnp.float32) - self.offset_mm) / self.step_mm

    def estimated_levels(self, depth_mm):
        """Convert estimates, 0 = none, to levels.

        An image of levels is taken as it is. From the head, depths that are no levels become what an 8-bit file would
        hold, as true depth does; otherwise a perfect estimate would have an error.
        """
        return self.levels(depth_mm) if self.origin == "camera" else self.quantize(depth_mm)

    def from_levels(self, levels):
        """Convert levels to millimetres."""
        return levels * self.step_mm + self.offset_mm

    def quantize(self, depth_mm):
        """Convert millimetres (0 = none) to levels as an 8-bit file has them: whole, 0..255, float32."""
        levels = jnp.clip(jnp.round(self.levels(depth_mm)), 0, 255)
        return jnp.where(jnp.asarray(depth_mm) > 0, levels, jnp.float32(self.none_level))


def true_foreground(depth_mm, distance_mm):
    """Mark what is nearer than the head's distance and 300 mm, bool (B, S, S): a pixel without depth is background.

    Args:
      depth_mm: (B, S, S), millimetres, 0 = none.
      distance_mm: (B,), of the head.
    """
    return (depth_mm > 0) & (depth_mm - distance_mm[:, None, None] < RELIEF_MM)


def without_background(depth_mm, foreground):
    """Set the background of what `decode` gives to 0 = none, (B, S, S)."""
    return depth_mm if foreground is None else jnp.where(foreground, depth_mm, 0.0)


def encode_gray(gray):
    """Turn gray images uint8 (B, S, S) into what the nets see: float32 (B, S, S, 1), (x - 127.5) / 127.5."""
    return ((jnp.asarray(gray).astype(jnp.float32) - 127.5) / 127.5)[..., None]
