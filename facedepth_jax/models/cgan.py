"""Define the paper's generator and discriminator (section 3.1.1, Figure 2).

`width` is the number of feature maps of the first layer, 128 in the paper; all others follow from it.
"""

import flax.linen as nn
import jax.numpy as jnp

from facedepth_jax.models.layers import BatchNorm, Conv, ConvTranspose


class _Encoder(nn.Module):
    """Apply k5s2 to width, 2, 4, 8 width, batch norm, LeakyReLU 0.2: (B, S, S, 1) -> (B, S/16, S/16, 8 width)."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train):
        for i, features in enumerate([self.width, 2 * self.width, 4 * self.width, 8 * self.width], 1):
            x = Conv(features, strides=2, dtype=self.dtype, name=f"conv{i}")(x)
            x = BatchNorm(self.dtype, name=f"norm{i}")(x, train)
            x = nn.leaky_relu(x, 0.2)
        return x


class Generator(nn.Module):
    """Map gray (B, S, S, 1) in [-1, 1] to a depth image (B, S, S, 1) in [-1, 1], float32; S a multiple of 16."""

    width: int = 128
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, gray, train):
        x = _Encoder(self.width, self.dtype, name="encoder")(gray, train)  # (B, S/16, S/16, 8 width)
        for i, features in enumerate([4 * self.width, 2 * self.width, self.width, self.width // 2], 1):
            x = ConvTranspose(features, dtype=self.dtype, name=f"up{i}")(x)  # twice the size
            x = BatchNorm(self.dtype, name=f"norm{i}")(x, train)
            x = nn.relu(x)
        x = Conv(1, use_bias=True, dtype=self.dtype, name="out")(x)  # (B, S, S, 1)
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """Map a depth image (B, S, S, 1) in [-1, 1] to the logit (B,) of being real, float32, without the gray image."""

    width: int = 128
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, depth, train):
        x = _Encoder(self.width, self.dtype, name="encoder")(depth, train)
        x = x.reshape(x.shape[0], -1)  # (B, (S/16)^2 8 width)
        x = nn.Dense(1, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02), name="out")(x)
        return x[:, 0].astype(jnp.float32)
