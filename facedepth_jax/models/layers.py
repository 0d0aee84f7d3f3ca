"""Convolutions with flax's parameters and XLA's results, arranged so that a CPU is fast too.

XLA's CPU backend is slow at convolutions with a dilated input: transposed convolutions, and the gradient of every
stride-2 convolution by its input. A stride-2 convolution and a transposed one are each other's adjoints, so two maps,
`_down` and `_up`, and the gradient by the weights serve both, forward and backward; `_up` is written without dilation,
in the way that was measured to be the fastest for its shape. The nets' first and last layers, from one channel and to
one, are sums of shifted maps. On other backends XLA's own convolutions are used.

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
    """Four plain convolutions, one for each parity of row and column: best for many channels."""
    k = w.shape[0]
    taps = w.transpose(0, 1, 3, 2)

    def pad(p):
        first, shift = _phase(k, p)
        return len(range(first, k, 2)) - 1 - shift, shift

    def phase(p, q):
        turned = taps[_phase(k, p)[0] :: 2, _phase(k, q)[0] :: 2][::-1, ::-1]
        return lax.conv_general_dilated(y, turned, (1, 1), (pad(p), pad(q)), dimension_numbers=DIMENSIONS)

    return _interleave([[phase(p, q) for q in (0, 1)] for p in (0, 1)])


def _wide(x):
    """The type to sum in: float32 at least."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _shift(x, rows, columns):
    """Pixel (i, j) of the result is x (N, H, W, ...) at (i + rows, j + columns), 0 outside."""
    rest = [(0, 0, 0)] * (x.ndim - 3)
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (-rows, rows, 0), (-columns, columns, 0), *rest])


def _product(x, w):
    """(N, H, W, I), (O, I) -> (N, H, W, O), not rounded to a narrow type."""
    return lax.dot_general(x, w, (((3,), (1,)), ((), ())), preferred_element_type=_wide(x))


def _up_by_products(y, w):
    """A matrix product for each tap (one for all of them if they have one channel), then sums of shifted maps."""
    n, h, v, o = y.shape
    k, i = w.shape[0], w.shape[2]
    if i == 1:
        maps = _product(y, w.reshape(k * k, o)).reshape(n, h, v, k, k, 1)

    def tap(r, s):
        return maps[:, :, :, r, s] if i == 1 else _product(y, w[r, s])

    def phase(p, q):
        (first_r, shift_r), (first_s, shift_s) = _phase(k, p), _phase(k, q)
        return sum(
            _shift(tap(r, s), shift_r - a, shift_s - b)
            for a, r in enumerate(range(first_r, k, 2))
            for b, s in enumerate(range(first_s, k, 2))
        ).astype(y.dtype)

    return _interleave([[phase(p, q) for q in (0, 1)] for p in (0, 1)])


def _up_at_once(y, w):
    """One convolution for the four phases, with zeros for the taps that a phase lacks: best for few channels."""
    n, h, v, o = y.shape
    k, i = w.shape[0], w.shape[2]
    reach = (1 + _before(k)) // 2  # output 2m + p is the sum over offsets d <= reach: input m + d, tap p + before - 2d
    front = 2 * reach - _before(k)
    size = (front + k + 1) // 2
    pad = front, 2 * size - front - k
    taps = jnp.pad(w, (pad, pad, (0, 0), (0, 0))).reshape(size, 2, size, 2, i, o)[::-1, :, ::-1]
    taps = taps.transpose(0, 2, 5, 1, 3, 4).reshape(size, size, o, 4 * i)
    pad = size - 1 - reach, reach
    maps = lax.conv_general_dilated(y, taps, (1, 1), (pad, pad), dimension_numbers=DIMENSIONS)
    return maps.reshape(n, h, v, 2, 2, i).swapaxes(2, 3).reshape(n, 2 * h, 2 * v, i)


def _up(y, w):
    """Adjoint of `_down` by its input: (N, H, W, O), (k, k, I, O) -> (N, 2H, 2W, I)."""
    # This limit and that in `_input_gradient` were measured at the nets' shapes, widths 16 to 128, batches of 1 and 16.
    return _up_at_once(y, w) if w.shape[2] <= 16 else _up_by_phases(y, w)


def _input_gradient(dy, w):
    """Gradient of `_down` by its input: `_up`, but for one channel, and for small maps, where turning the weights for a
    convolution costs the most. N is that of all devices together."""
    n, h, v, o = dy.shape
    return _up_by_products(dy, w) if w.shape[2] == 1 or n * h * v <= o else _up(dy, w)


def _from_one(x, w, stride, before):
    """Convolution of one channel as a sum of shifts: (N, H, W, 1), (k, k, 1, O) -> (N, H / stride, W / stride, O).

    `before`: pixels of padding above and to the left.
    """
    k, (h, v) = len(w), (side // stride for side in x.shape[1:3])
    pad = before, k - stride - before
    padded = jnp.pad(x, ((0, 0), pad, pad, (0, 0))).astype(_wide(x))
    rows, columns = stride * (h - 1) + 1, stride * (v - 1) + 1
    taps = (padded[:, r : r + rows : stride, s : s + columns : stride] * w[r, s, 0] for r in range(k) for s in range(k))
    return sum(taps).astype(x.dtype)


def _conv_s2(x, w):
    return _from_one(x, w, 2, _before(len(w))) if x.shape[3] == 1 else _down(x, w)


@jax.custom_vjp
def conv_s2(x, w):
    """Stride-2 convolution of an image with even sides: (N, 2H, 2W, I), (k, k, I, O) -> (N, H, W, O)."""
    return _conv_s2(x, w)


conv_s2.defvjp(
    lambda x, w: (_conv_s2(x, w), (x, w)),
    lambda saved, dy: (_input_gradient(dy, saved[1]), _weight_gradient(saved[0], dy, len(saved[1]))),
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


def _to_one(x, w):
    """One matrix product with the 25 taps, then a sum of shifted maps."""
    maps = _product(x, w.reshape(25, x.shape[3]))
    total = sum(_shift(maps[..., 5 * r + s], r - 2, s - 2) for r in range(5) for s in range(5))
    return total[..., None].astype(x.dtype)


def _to_one_weight_gradient(x, dy):
    """One matrix product with the 25 shifted dy (N, H, W, 1) for x (N, H, W, I): (5, 5, I, 1)."""
    n, h, v, i = x.shape
    dy = jnp.pad(dy[..., 0], ((0, 0), (2, 2), (2, 2)))
    shifted = jnp.stack([dy[:, r : r + h, s : s + v] for r in range(5) for s in range(5)])
    return (shifted.reshape(25, n * h * v) @ x.reshape(n * h * v, i)).reshape(5, 5, i, 1)[::-1, ::-1]


@jax.custom_vjp
def conv5s1_to_one(x, w):
    """k5 s1 convolution to one channel: (N, H, W, I), (5, 5, I, 1) -> (N, H, W, 1)."""
    return _to_one(x, w)


conv5s1_to_one.defvjp(
    lambda x, w: (_to_one(x, w), (x, w)),
    lambda saved, dy: (
        _from_one(dy, saved[1][::-1, ::-1].swapaxes(2, 3), 1, 2),
        _to_one_weight_gradient(saved[0], dy),
    ),
)


def _on_cpu():
    return jax.default_backend() == "cpu"


class Conv(nn.Module):
    """`nn.Conv` with square kernels: (N, H, W, I) -> (N, H / s, W / s, features) with SAME padding.

    Attributes: `features`, `kernel_size` and `strides` in pixels, `padding` ("SAME", "VALID" or the pixels before and
    behind, on rows and columns alike), `use_bias`, `dtype` of the computation.
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
        if cpu_same and s == 2 and k > 1 and x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0:
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
        if _on_cpu() and k > 1:
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
