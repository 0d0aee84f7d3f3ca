"""Convolutions with flax's parameters and XLA's results, arranged so that a CPU is fast too.

XLA's CPU backend is slow at convolutions with a dilated input: transposed convolutions, and the gradient of every
stride-2 convolution by its input. A stride-2 convolution and a transposed one are each other's adjoints, so two maps,
`_down` and `_up`, and the gradient by the weights serve both, forward and backward; `_up` is written without dilation.
On other backends XLA's own convolutions are used.

Images are (N, H, W, C); kernels are square, of side k >= 2; SAME padding as in flax: with stride 2 an even size gets
k - 2 pixels, the odd one behind.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
KERNEL_INIT = nn.initializers.normal(0.02)  # not in the paper; usual for such GANs since DCGAN


def _before(k):
    """Rows of padding before an image of even size."""
    return (k - 2) // 2


def _down(x, w):
    """(N, 2H, 2W, I), (k, k, I, O) -> (N, H, W, O): XLA's own."""
    k = w.shape[0]
    pad = _before(k), k - 2 - _before(k)
    return lax.conv_general_dilated(x, w, (2, 2), (pad, pad), dimension_numbers=DIMENSIONS)


def _weight_gradient(x, dy, k):
    """Gradient of `_down` by its weights at input x (N, 2H, 2W, I) for dy (N, H, W, O): XLA's own."""
    w = jnp.zeros((k, k, x.shape[3], dy.shape[3]), x.dtype)
    return jax.vjp(lambda w: _down(x, w), w)[1](dy)[0]


def _interleave(rows):
    """rows[p][q] (N, H, W, C) are the pixels (2i + p, 2j + q) of the result (N, 2H, 2W, C)."""
    n, h, v, c = rows[0][0].shape
    return jnp.stack([jnp.stack(columns, 3) for columns in rows], 2).reshape(n, 2 * h, 2 * v, c)


def _phase(k, p):
    """Output 2m + p is the sum over taps r = first, first + 2, ... of input m + shift, m + shift - 1, ..."""
    return (p + _before(k)) % 2, (p + _before(k)) // 2


def _up_by_phases(y, w):
    """Four plain convolutions, one for each parity of row and column."""
    k = w.shape[0]
    taps = w.transpose(0, 1, 3, 2)

    def pad(p):
        first, shift = _phase(k, p)
        return len(range(first, k, 2)) - 1 - shift, shift

    def phase(p, q):
        turned = taps[_phase(k, p)[0] :: 2, _phase(k, q)[0] :: 2][::-1, ::-1]
        return lax.conv_general_dilated(y, turned, (1, 1), (pad(p), pad(q)), dimension_numbers=DIMENSIONS)

    return _interleave([[phase(p, q) for q in (0, 1)] for p in (0, 1)])


def _up_by_product(y, w):
    """One matrix product with all the taps, then shifted sums: best on small maps and for one channel."""
    n, h, v, o = y.shape
    k, i = w.shape[0], w.shape[2]
    taps = lax.dot_general(y, w.reshape(k * k * i, o), (((3,), (1,)), ((), ()))).reshape(n, h, v, k, k, i)
    edge = k // 2  # no shift is larger
    padded = jnp.pad(taps, ((0, 0), (edge, edge), (edge, edge), (0, 0), (0, 0), (0, 0)))

    def phase(p, q):
        (first_r, shift_r), (first_s, shift_s) = _phase(k, p), _phase(k, q)
        total = 0
        for a, r in enumerate(range(first_r, k, 2)):
            for b, s in enumerate(range(first_s, k, 2)):
                top, left = edge + shift_r - a, edge + shift_s - b
                total = total + padded[:, top : top + h, left : left + v, r, s]
        return total

    return _interleave([[phase(p, q) for q in (0, 1)] for p in (0, 1)])


def _up(y, w):
    """Adjoint of `_down` by its input: (N, H, W, O), (k, k, I, O) -> (N, 2H, 2W, I)."""
    return _up_by_product(y, w) if y.shape[1] <= 6 or w.shape[2] == 1 else _up_by_phases(y, w)


@jax.custom_vjp
def conv_s2(x, w):
    """Stride-2 convolution of an image with even sides: (N, 2H, 2W, I), (k, k, I, O) -> (N, H, W, O)."""
    return _down(x, w)


conv_s2.defvjp(
    lambda x, w: (_down(x, w), (x, w)),
    lambda saved, dy: (_up(dy, saved[1]), _weight_gradient(saved[0], dy, len(saved[1]))),
)


@jax.custom_vjp
def _transpose_s2(x, w):
    return _up(x, w)


_transpose_s2.defvjp(
    lambda x, w: (_up(x, w), (x, w)),
    lambda saved, dy: (_down(dy, saved[1]), _weight_gradient(dy, saved[0], len(saved[1]))),
)


def conv_transpose_s2(x, w):
    """Stride-2 transposed convolution as `lax.conv_transpose`: (N, H, W, I), (k, k, I, O) -> (N, 2H, 2W, O)."""
    return _transpose_s2(x, w[::-1, ::-1].swapaxes(2, 3))


def _one(x, w):
    """One matrix product with the 25 taps, then shifted sums."""
    n, h, v, i = x.shape
    taps = lax.dot_general(x, w.reshape(25, i), (((3,), (1,)), ((), ())))
    padded = jnp.pad(taps, ((0, 0), (2, 2), (2, 2), (0, 0)))
    return sum(padded[:, r : r + h, s : s + v, 5 * r + s, None] for r in range(5) for s in range(5))


def _one_by_xla(x, w):
    return lax.conv_general_dilated(x, w, (1, 1), ((2, 2), (2, 2)), dimension_numbers=DIMENSIONS)


@jax.custom_vjp
def conv5s1_to_one(x, w):
    """k5 s1 convolution to one channel: (N, H, W, I), (5, 5, I, 1) -> (N, H, W, 1)."""
    return _one(x, w)


# The gradient of 25 shifted slices would be 25 padded images: backward, XLA's own is the fast one.
conv5s1_to_one.defvjp(lambda x, w: (_one(x, w), (x, w)), lambda saved, dy: jax.vjp(_one_by_xla, *saved)[1](dy))


def _on_cpu():
    return jax.default_backend() == "cpu"


class Conv(nn.Module):
    """`nn.Conv` with square kernels: (N, H, W, I) -> (N, H / s, W / s, features) with SAME padding.

    Attributes: `features`, `kernel_size`, `strides`, `padding` (or the pixels before and behind) in pixels, `use_bias`,
    `dtype` of the computation.
    """

    features: int
    kernel_size: int = 5
    strides: int = 1
    padding: str | tuple[int, int] = "SAME"
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        k, s = self.kernel_size, self.strides
        w = self.param("kernel", KERNEL_INIT, (k, k, x.shape[-1], self.features)).astype(self.dtype)
        x = x.astype(self.dtype)
        cpu_same = _on_cpu() and self.padding == "SAME"
        if cpu_same and s == 2 and x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0:
            x = conv_s2(x, w)
        elif cpu_same and (k, s, self.features) == (5, 1, 1):
            x = conv5s1_to_one(x, w)
        else:
            padding = self.padding if isinstance(self.padding, str) else (self.padding, self.padding)
            x = lax.conv_general_dilated(x, w, (s, s), padding, dimension_numbers=DIMENSIONS)
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return x


class ConvTranspose(nn.Module):
    """`nn.ConvTranspose` with SAME padding, square kernels and stride 2: (N, H, W, I) -> (N, 2H, 2W, features)."""

    features: int
    kernel_size: int = 5
    use_bias: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        k = self.kernel_size
        w = self.param("kernel", KERNEL_INIT, (k, k, x.shape[-1], self.features)).astype(self.dtype)
        x = x.astype(self.dtype)
        if _on_cpu():
            x = conv_transpose_s2(x, w)
        else:
            x = lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=DIMENSIONS)
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
        return x


class BatchNorm(nn.Module):
    """Batch norm over the global batch, statistics in float32; momentum 0.9 (flax's convention), epsilon 1e-5."""

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
