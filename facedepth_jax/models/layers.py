"""Layers of the nets: flax's parameters and XLA's results, but fast on a CPU too (see cpu_convolutions.py)."""

import contextlib
import contextvars

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from facedepth_jax.models import cpu_convolutions

KERNEL_INIT = nn.initializers.normal(0.02)  # not in the paper; usual for such GANs since DCGAN


_platform = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def traced_for(platform: str):
    """Let layers compute as on a platform ("cpu" or another), whatever this process runs on: for exports."""
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)


def _on_cpu():
    return (_platform.get() or jax.default_backend()) == "cpu"


def _add_bias(module, x):
    bias = module.param("bias", nn.initializers.zeros, (module.features,)).astype(module.dtype)
    return x + bias.reshape(1, 1, 1, -1)


class Conv(nn.Module):
    """Compute `nn.Conv` with square kernels: (N, H, W, I) -> (N, H / s, W / s, features) with SAME padding.

    `padding` is "SAME", "VALID" or the pixels before and behind, the same for rows and columns.
    """

    features: int
    kernel_size: int = 5
    strides: int = 1
    padding: str | tuple[int, int] = "SAME"
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = KERNEL_INIT
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        k, s = self.kernel_size, self.strides
        w = self.param("kernel", self.kernel_init, (k, k, x.shape[-1], self.features)).astype(self.dtype)
        x = x.astype(self.dtype)
        cpu_same = _on_cpu() and self.padding == "SAME"
        if cpu_same and s == 2 and k > 1 and x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0:
            x = cpu_convolutions.conv_s2(x, w)
        elif cpu_same and (k, s, self.features) == (5, 1, 1):
            x = cpu_convolutions.conv5s1_to_one(x, w)
        else:
            padding = self.padding if isinstance(self.padding, str) else (self.padding, self.padding)
            x = lax.conv_general_dilated(x, w, (s, s), padding, dimension_numbers=cpu_convolutions.DIMENSIONS)
        return _add_bias(self, x) if self.use_bias else x


class ConvTranspose(nn.Module):
    """Compute `nn.ConvTranspose`, SAME, square kernels, stride 2: (N, H, W, I) -> (N, 2H, 2W, features)."""

    features: int
    kernel_size: int = 5
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = KERNEL_INIT
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        k = self.kernel_size
        w = self.param("kernel", self.kernel_init, (k, k, x.shape[-1], self.features)).astype(self.dtype)
        x = x.astype(self.dtype)
        if _on_cpu() and k > 1:
            x = cpu_convolutions.conv_transpose_s2(x, w)
        else:
            x = lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=cpu_convolutions.DIMENSIONS)
        return _add_bias(self, x) if self.use_bias else x


class BatchNorm(nn.Module):
    """Normalise over the global batch, statistics in float32; momentum 0.9 (flax's convention), epsilon 1e-5."""

    dtype: jnp.dtype = jnp.float32
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x, train):
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            scale_init=self.scale_init,
            name="norm",
        )(x)
