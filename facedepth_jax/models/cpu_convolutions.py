"""Compute XLA's convolutions in ways that are fast on a CPU.

XLA's CPU backend is slow at convolutions with a dilated input: transposed convolutions, and the gradient of every
stride-2 convolution by its input. A stride-2 convolution and a transposed one are each other's adjoints, so two maps,
`_down` and `_up`, and the gradient by the weights serve both, forward and backward; `_up` is written without dilation,
in the way that was measured to be the fastest for its shape. The nets' first and last layers, from one channel and to
one, are sums of shifted maps.

Images are (N, H, W, C); kernels are square, of side k >= 2; SAME padding as in flax: with stride 2 an even size gets
k - 2 pixels, the odd one behind.
"""

import jax
import jax.numpy as jnp
from jax import lax

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def _before(k):
    """Return the rows of padding before an image of even size."""
    return (k - 2) // 2


def _down(x, w):
    """Convolve with stride 2 by XLA: (N, 2H, 2W, I), (k, k, I, O) -> (N, H, W, O)."""
    k = w.shape[0]
    pad = _before(k), k - 2 - _before(k)
    return lax.conv_general_dilated(x, w, (2, 2), (pad, pad), dimension_numbers=DIMENSIONS)


def _weight_gradient(x, dy, k):
    """Differentiate `_down` by its weights, by XLA, at input x (N, 2H, 2W, I) for dy (N, H, W, O)."""
    w = jnp.zeros((k, k, x.shape[3], dy.shape[3]), x.dtype)
    return jax.vjp(lambda w: _down(x, w), w)[1](dy)[0]


def _interleave(rows):
    """Put rows[p][q] (N, H, W, C) at the pixels (2i + p, 2j + q) of the result (N, 2H, 2W, C)."""
    n, h, v, c = rows[0][0].shape
    return jnp.stack([jnp.stack(columns, 3) for columns in rows], 2).reshape(n, 2 * h, 2 * v, c)


def _phase(k, p):
    """Return (first, shift): output 2m + p sums taps first, first + 2, ... of inputs m + shift, m + shift - 1, ..."""
    return (p + _before(k)) % 2, (p + _before(k)) // 2


def _up_by_phases(y, w):
    """Compute `_up` by a plain convolution for each parity of row and column: best for many channels."""
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
    """Return the type to sum in: float32 at least."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _shift(x, rows, columns):
    """Shift x (N, H, W, ...): pixel (i, j) of the result is x at (i + rows, j + columns), 0 outside."""
    rest = [(0, 0, 0)] * (x.ndim - 3)
    return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), (-rows, rows, 0), (-columns, columns, 0), *rest])


def _product(x, w):
    """Multiply (N, H, W, I), (O, I) -> (N, H, W, O), not rounded to a narrow type."""
    return lax.dot_general(x, w, (((3,), (1,)), ((), ())), preferred_element_type=_wide(x))


def _up_by_products(y, w):
    """Compute `_up` by matrix products, one for each tap (one for all if I = 1), and sums of shifted maps."""
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
    """Compute `_up` by one convolution for all four phases, with zeros for missing taps: best for few channels."""
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
    """Apply the adjoint of `_down`: (N, H, W, O), (k, k, I, O) -> (N, 2H, 2W, I)."""
    # This limit and that in `_input_gradient` were measured at the nets' shapes, widths 16 to 128, batches of 1 and 16.
    return _up_at_once(y, w) if w.shape[2] <= 16 else _up_by_phases(y, w)


def _input_gradient(dy, w):
    """Differentiate `_down` by its input: `_up`, except for one channel or small maps, where turning the weights for a
    convolution costs the most. N is the batch over all devices."""
    n, h, v, o = dy.shape
    return _up_by_products(dy, w) if w.shape[2] == 1 or n * h * v <= o else _up(dy, w)


def _from_one(x, w, stride, before):
    """Convolve one channel by a sum of shifts: (N, H, W, 1), (k, k, 1, O) -> (N, H / stride, W / stride, O).

    `before` is the padding above and to the left in pixels.
    """
    k, (h, v) = len(w), (side // stride for side in x.shape[1:3])
    pad = before, k - stride - before
    padded = jnp.pad(x, ((0, 0), pad, pad, (0, 0))).astype(_wide(x))
    rows, columns = stride * (h - 1) + 1, stride * (v - 1) + 1
    w = w[:, :, None, None]
    taps = (padded[:, r : r + rows : stride, s : s + columns : stride] * w[r, s] for r in range(k) for s in range(k))
    return sum(taps).astype(x.dtype)


def _conv_s2(x, w):
    return _from_one(x, w, 2, _before(len(w))) if x.shape[3] == 1 else _down(x, w)


@jax.custom_vjp
def conv_s2(x, w):
    """Convolve an image of even sides with stride 2: (N, 2H, 2W, I), (k, k, I, O) -> (N, H, W, O)."""
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
    """Apply `lax.conv_transpose` with stride 2: (N, H, W, I), (k, k, I, O) -> (N, 2H, 2W, O)."""
    return _transpose_s2(x, w[::-1, ::-1].swapaxes(2, 3))


def _to_one(x, w):
    """Compute `conv5s1_to_one` by one matrix product with the 25 taps and a sum of shifted maps."""
    maps = _product(x, w.reshape(25, x.shape[3]))
    total = sum(_shift(maps[..., 5 * r + s], r - 2, s - 2) for r in range(5) for s in range(5))
    return total[..., None].astype(x.dtype)


def _to_one_weight_gradient(x, dy):
    """Multiply x (N, H, W, I) by the 25 shifted dy (N, H, W, 1): (5, 5, I, 1)."""
    n, h, v, i = x.shape
    dy = jnp.pad(dy[..., 0], ((0, 0), (2, 2), (2, 2)))
    shifted = jnp.stack([dy[:, r : r + h, s : s + v] for r in range(5) for s in range(5)])
    return (shifted.reshape(25, n * h * v) @ x.reshape(n * h * v, i)).reshape(5, 5, i, 1)[::-1, ::-1]


@jax.custom_vjp
def conv5s1_to_one(x, w):
    """Convolve to one channel with k = 5 and stride 1: (N, H, W, I), (5, 5, I, 1) -> (N, H, W, 1)."""
    return _to_one(x, w)


conv5s1_to_one.defvjp(
    lambda x, w: (_to_one(x, w), (x, w)),
    lambda saved, dy: (
        _from_one(dy, saved[1][::-1, ::-1].swapaxes(2, 3), 1, 2),
        _to_one_weight_gradient(saved[0], dy),
    ),
)
