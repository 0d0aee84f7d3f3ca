"""Define the project's own net: a residual U-Net to the relief of a face and the mask of its foreground.

Made for a CPU too: all 3x3 convolutions work at half the image's resolution and below, where XLA's are fast, and pixel
shuffles (Shi et al. 2016) lead up again.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from facedepth_jax.models.layers import BatchNorm, Conv


class _Block(nn.Module):
    """Add two k3 convolutions with batch norm to the input (He et al. 2016): (B, H, W, C) -> (B, H, W, C)."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train):
        y = Conv(x.shape[-1], 3, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(BatchNorm(self.dtype, name="norm1")(y, train))
        y = Conv(x.shape[-1], 3, dtype=self.dtype, name="conv2")(y)
        return nn.relu(x + BatchNorm(self.dtype, name="norm2")(y, train))


def _shuffle_pixels(x):
    """Move channels to pixels: (B, H, W, 4 C) -> (B, 2 H, 2 W, C)."""
    b, h, w, c = x.shape
    rows = (lax.slice_in_dim(x, i, i + c // 2, axis=3).reshape(b, h, 1, 2 * w, c // 4) for i in (0, c // 2))
    return jnp.concatenate([*rows], 2).reshape(b, 2 * h, 2 * w, c // 4)  # quicker on a CPU than a transposition


class Generator(nn.Module):
    """Map gray (B, S, S, 1) in [-1, 1] to relief and foreground's logit (B, S, S, 2), float32; S a multiple of 16.

    Relief 1.0 is the depth code's unit; it is not bounded.
    """

    width: int = 128
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, gray, train):
        x = Conv(self.width, 5, 2, dtype=self.dtype, name="down1")(gray)  # (B, S/2, S/2, width)
        x = nn.relu(BatchNorm(self.dtype, name="down_norm1")(x, train))
        x = _Block(self.dtype, name="block1")(x, train)
        skips = []
        for i, times in enumerate([2, 4, 8], 2):  # (B, S/16, S/16, 8 width) at last
            skips.append(x)
            x = Conv(times * self.width, 3, 2, dtype=self.dtype, name=f"down{i}")(x)
            x = nn.relu(BatchNorm(self.dtype, name=f"down_norm{i}")(x, train))
            x = _Block(self.dtype, name=f"block{i}a")(x, train)
            x = _Block(self.dtype, name=f"block{i}b")(x, train)
        for i, skip in reversed(list(enumerate(skips, 1))):
            x = Conv(4 * skip.shape[-1], 1, dtype=self.dtype, name=f"up{i}")(x)
            x = nn.relu(BatchNorm(self.dtype, name=f"up_norm{i}")(_shuffle_pixels(x) + skip, train))
            x = _Block(self.dtype, name=f"up_block{i}")(x, train)
        x = Conv(8, 3, use_bias=True, dtype=self.dtype, name="out")(x)
        return _shuffle_pixels(x).astype(jnp.float32)
