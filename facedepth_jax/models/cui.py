"""Define the nets of Cui et al., "Improving 2D Face Recognition via Discriminative Face Depth Estimation", ICB 2018, as
Table 1's authors rebuilt them: a generator, and a net that recognises the training people in its maps.

The two nets and their joint training are the paper's. Sizes, the order convolution - pool - batch norm - PReLU, one
slope a layer, dense layers that all end in sigmoids, and PyTorch's default start are those of the public code of Table
1's group. Convolutions have no bias: the batch norm behind each takes it away.

`width` is the number of feature maps of the generator's first layer, 32 there; all others follow from it.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from facedepth_jax.errors import FaceDepthError
from facedepth_jax.models.layers import BatchNorm, Conv, ConvTranspose

# PyTorch's default start, uniform within 1 / sqrt(fan_in). Of a transposed convolution it counts the output's maps.
_START = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
_TRANSPOSED_START = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform", in_axis=-1, out_axis=-2)


class _PReLU(nn.Module):
    """Multiply negative x by a learnt slope, one for all feature maps, 0.25 at the start (PyTorch's default)."""

    @nn.compact
    def __call__(self, x):
        slope = self.param("slope", nn.initializers.constant(0.25), ())
        return jnp.where(x >= 0, x, slope.astype(x.dtype) * x)


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
            x = Conv(features * self.width, 3, kernel_init=_START, dtype=self.dtype, name=f"conv{i}")(x)
            x = _pool(x) if pool else x  # (B, S/2, ..), (B, S/4, ..), (B, S/8, ..)
            x = _PReLU(name=f"prelu{i}")(norm(x, f"norm{i}"))
        for i, features in enumerate([4 * self.width, 2 * self.width, 1], 1):  # each twice the size: (B, S, S, 1)
            x = ConvTranspose(features, 6, kernel_init=_TRANSPOSED_START, dtype=self.dtype, name=f"up{i}")(x)
            x = norm(x, f"up_norm{i}")
            x = _PReLU(name=f"up_prelu{i}")(x) if i < 3 else jnp.tanh(x.astype(jnp.float32))
        return x


class Identity(nn.Module):
    """Map a depth image (B, S, S, 1) in [-1, 1] to a score in [0, 1] of each training person (B, subjects), float32.

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
            x = Conv(features * self.width, 3, kernel_init=_START, dtype=self.dtype, name=f"conv{i}")(x)
            x = _pool(x) if pool else x
            x = nn.relu(BatchNorm(self.dtype, name=f"norm{i}")(x, train))
        x = x.reshape(x.shape[0], -1)  # (B, (S/32)^2 16 width)
        for name, features in (("dense1", 64 * self.width), ("dense2", 64 * self.width), ("out", self.subjects)):
            bound = x.shape[-1] ** -0.5
            bias_init = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
            dense = nn.Dense(features, dtype=self.dtype, kernel_init=_START, bias_init=bias_init, name=name)
            x = nn.sigmoid(dense(x).astype(jnp.float32))
        return x
