"""Define the nets of Cui et al., "Improving 2D Face Recognition via Discriminative Face Depth Estimation", ICB 2018: a
generator and a net that recognises the training people in its maps, in the sizes that Table 1's authors rebuilt.

`width` is the number of feature maps of the generator's first layer, 32 there; all others follow from it. Kernels start
from N(0, 0.02). The hidden dense layers end in sigmoids. Differences from the paper: the last layer gives logits.
Assumed: pools take the largest of 2 x 2; PReLU has one slope per feature map, 0.25 at the start (He et al. 2015).
"""

import flax.linen as nn
import jax.numpy as jnp

from facedepth_jax.errors import FaceDepthError
from facedepth_jax.models.layers import BatchNorm, Conv, ConvTranspose


class _PReLU(nn.Module):
    """Multiply negative x by a learnt slope, one per feature map."""

    @nn.compact
    def __call__(self, x):
        slope = self.param("slope", nn.initializers.constant(0.25), (x.shape[-1],))
        return jnp.where(x >= 0, x, slope.astype(x.dtype).reshape(1, 1, 1, -1) * x)


def _pool(x):
    """Take the largest of 2 x 2, leaving out an odd last row or column."""
    # Not by `jnp.max`: XLA may compute x twice, rounded otherwise, and its gradient is 0 / 0 where no x is the maximum.
    return nn.max_pool(x, (2, 2), (2, 2))


class Generator(nn.Module):
    """Map gray (B, S, S, 1) in [-1, 1] to a depth image (B, S, S, 1) in [-1, 1], float32; S a multiple of 8."""

    width: int = 32
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, gray, train):
        def norm(x, name):
            return BatchNorm(self.dtype, name=name)(x, train)

        x = gray
        for i, (features, pool) in enumerate(
            [(1, True), (2, True), (4, False), (4, False), (4, False), (8, True), (8, False), (8, False)], 1
        ):
            x = Conv(features * self.width, 3, dtype=self.dtype, name=f"conv{i}")(x)
            x = _PReLU(name=f"prelu{i}")(norm(x, f"norm{i}"))
            x = _pool(x) if pool else x  # (B, S/2, ..), (B, S/4, ..), (B, S/8, ..)
        for i, features in enumerate([4, 2], 1):
            x = ConvTranspose(features * self.width, 6, dtype=self.dtype, name=f"up{i}")(x)  # twice the size
            x = _PReLU(name=f"up_prelu{i}")(norm(x, f"up_norm{i}"))
        x = ConvTranspose(1, 6, dtype=self.dtype, name="up3")(x)  # (B, S, S, 1)
        return jnp.tanh(norm(x, "up_norm3").astype(jnp.float32))


class Identity(nn.Module):
    """Map a depth image (B, S, S, 1) in [-1, 1] to logits (B, subjects) over the training people, float32.

    Raises FaceDepthError for images under 32 px, of which five pools leave nothing.
    """

    subjects: int
    width: int = 32
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, depth, train):
        if depth.shape[1] < 32:
            raise FaceDepthError(f"The method cui needs images of at least 32 px, data.size is {depth.shape[1]}.")
        x = depth
        for i, (features, pool) in enumerate(
            [(2, True), (4, True), (8, False), (8, True), (16, False), (16, True), (16, False), (16, True)], 1
        ):
            x = Conv(features * self.width, 3, dtype=self.dtype, name=f"conv{i}")(x)
            x = nn.relu(BatchNorm(self.dtype, name=f"norm{i}")(x, train))
            x = _pool(x) if pool else x
        x = x.reshape(x.shape[0], -1)  # (B, (S/32)^2 16 width)
        for i in (1, 2):
            x = nn.sigmoid(nn.Dense(64 * self.width, dtype=self.dtype, name=f"dense{i}")(x))
        return nn.Dense(self.subjects, dtype=self.dtype, name="out")(x).astype(jnp.float32)
