"""layers.py, cpu_convolutions.py: XLA's convolutions with flax's parameters, however they are computed."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from facedepth_jax.methods import METHODS
from facedepth_jax.models import cpu_convolutions, layers

# Kernel, (height, width) on the fine side of the layer, input and output channels: one of each way to compute it, for
# even and odd kernels.
DOWN = [
    (5, (24, 24), 1, 3),
    (5, (12, 12), 3, 2),
    (5, (2, 2), 2, 3),
    (5, (6, 10), 17, 3),
    (5, (4, 6), 17, 12),
    (4, (8, 4), 2, 3),
    (4, (2, 2), 2, 3),
    (4, (6, 10), 17, 3),
    (3, (4, 6), 1, 3),
    (6, (4, 30), 2, 3),
]
UP = [
    (5, (6, 6), 3, 2),
    (5, (5, 17), 2, 3),
    (5, (1, 1), 2, 3),
    (5, (3, 5), 2, 17),
    (4, (8, 16), 2, 1),
    (4, (3, 5), 2, 17),
    (6, (1, 2), 2, 3),
    (3, (8, 7), 3, 2),
]
# The shapes of the nets' layers, then what a user may bring, then enough channels for the other ways, at every size.
KERNELS = (2, 3, 4, 5, 6, 7)
MORE_DOWN = [
    (5, (96, 96), 1, 3),
    (5, (48, 48), 2, 3),
    (5, (24, 24), 2, 3),
    (5, (32, 48), 2, 3),
    (5, (4, 30), 2, 1),
    (4, (64, 32), 2, 3),
    (3, (16, 20), 2, 3),
    *((k, size, 17, o) for k in KERNELS for size, o in (((6, 10), 3), ((4, 6), 12))),
    *((k, (4, 6), 1, 3) for k in KERNELS),
]
MORE_UP = [
    (5, (12, 12), 3, 2),
    (5, (24, 24), 2, 3),
    (5, (48, 48), 2, 1),
    (5, (17, 5), 3, 2),
    (4, (32, 32), 2, 1),
    (4, (8, 16), 3, 2),
    (4, (1, 1), 2, 3),
    (6, (12, 12), 3, 2),
    (6, (48, 48), 2, 1),
    (3, (8, 7), 3, 2),
    (2, (7, 3), 2, 3),
    (7, (8, 7), 3, 2),
    (7, (3, 7), 3, 2),
    *((k, (3, 5), 2, 17) for k in KERNELS),
]
TO_ONE = [((6, 6), 2), ((16, 9), 2), ((1, 3), 2)]


def slow(shapes):
    return [pytest.param(*shape, marks=pytest.mark.slow) for shape in shapes]


def value_and_gradients(function, x, w, dy):
    y, pull_back = jax.vjp(function, x, w)
    return y, *pull_back(dy)


def check(function, reference, x_shape, w_shape, y_shape):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, w, dy = (jnp.asarray(rng.normal(size=shape)) for shape in (x_shape, w_shape, y_shape))
        got, expected = jax.jit(lambda *a: [value_and_gradients(f, *a) for f in (function, reference)])(x, w, dy)
        for name, a, b in zip(("output", "gradient by x", "gradient by w"), got, expected, strict=True):
            assert a.dtype == b.dtype == np.float64 and a.shape == b.shape, name
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11, err_msg=name)


def xlas_down(x, w, stride=2):
    return lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=cpu_convolutions.DIMENSIONS)


def xlas_up(x, w):
    return lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=cpu_convolutions.DIMENSIONS)


@pytest.mark.parametrize("k, size, i, o", DOWN + slow(MORE_DOWN))
def test_conv_s2_is_xlas(k, size, i, o):
    h, v = size
    check(cpu_convolutions.conv_s2, xlas_down, (2, h, v, i), (k, k, i, o), (2, h // 2, v // 2, o))


@pytest.mark.parametrize("k, size, i, o", UP + slow(MORE_UP))
def test_conv_transpose_s2_is_xlas(k, size, i, o):
    h, v = size
    check(cpu_convolutions.conv_transpose_s2, xlas_up, (2, h, v, i), (k, k, i, o), (2, 2 * h, 2 * v, o))


@pytest.mark.parametrize("size, i", TO_ONE + slow([((96, 96), 3)]))
def test_conv5s1_to_one_is_xlas(size, i):
    h, v = size
    reference = functools.partial(xlas_down, stride=1)
    check(cpu_convolutions.conv5s1_to_one, reference, (2, h, v, i), (5, 5, i, 1), (2, h, v, 1))


@pytest.mark.parametrize(
    "function, w_shape, x_shape",
    [
        (cpu_convolutions.conv_s2, (5, 5, 1, 8), (2, 12, 12, 1)),
        (cpu_convolutions.conv_s2, (5, 5, 17, 32), (2, 6, 6, 17)),
        (cpu_convolutions.conv_s2, (5, 5, 17, 8), (2, 12, 12, 17)),
        (cpu_convolutions.conv_transpose_s2, (5, 5, 8, 4), (2, 12, 12, 8)),
        (cpu_convolutions.conv5s1_to_one, (5, 5, 8, 1), (2, 24, 24, 8)),
    ],
)
def test_bfloat16_is_summed_in_float32(function, w_shape, x_shape):
    """Each value and gradient to the rounding of bfloat16, 2**-8 of its size and of what cancels in it."""
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.uniform(0.5, 1, shape), jnp.bfloat16) for shape in (x_shape, w_shape))
    dy = jnp.ones(jax.eval_shape(function, x, w).shape, jnp.bfloat16)
    strict = {"xla_allow_excess_precision": False}  # or XLA would sum in float32 by itself
    run = jax.jit(functools.partial(value_and_gradients, function), compiler_options=strict)
    wide = (leaf.astype(jnp.float32) for leaf in (x, w, dy))
    for got, expected in zip(run(x, w, dy), run(*wide), strict=True):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(got.astype(jnp.float32), expected, rtol=2**-8)


WAYS = "_up_by_phases", "_up_at_once", "_up_by_products"


def ways_taken(function, shapes):
    """(name, kernel size) of each way that a function and its gradients are computed at these shapes."""
    taken = set()
    with pytest.MonkeyPatch.context() as patch:
        for way in WAYS:
            original = getattr(cpu_convolutions, way)
            patch.setattr(cpu_convolutions, way, lambda y, w, way=way, f=original: taken.add((way, len(w))) or f(y, w))
        for k, (h, v), i, o in shapes:
            x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, h, v, i), (k, k, i, o)))
            jax.eval_shape(jax.grad(lambda x, w: function(x, w).sum(), (0, 1)), x, w)
    return taken


def test_every_way_up_is_taken():
    """By the shapes above: else it is not tested."""
    down, up = ways_taken(cpu_convolutions.conv_s2, DOWN), ways_taken(cpu_convolutions.conv_transpose_s2, UP)
    assert {way for way, _ in down} == set(WAYS)
    assert up >= {(way, k) for way in WAYS[:2] for k in (4, 5)}


@pytest.mark.slow
def test_every_way_up_is_taken_by_every_kernel():
    down = ways_taken(cpu_convolutions.conv_s2, MORE_DOWN)
    up = ways_taken(cpu_convolutions.conv_transpose_s2, MORE_UP)
    phases, at_once, products = WAYS
    assert down >= {(way, k) for way in (phases, products) for k in KERNELS}
    assert up >= {(way, k) for way in (phases, at_once) for k in KERNELS}


def test_conv_transpose_of_one_pixel():
    """By hand, as the meaning of SAME has changed before: of the kernel turned half round, rows and columns 1 and 2."""
    w = np.arange(25, dtype=np.float32).reshape(5, 5, 1, 1)
    y = cpu_convolutions.conv_transpose_s2(jnp.ones((1, 1, 1, 1)), w)
    np.testing.assert_array_equal(y[0, :, :, 0], [[18, 17], [13, 12]])


def modules():
    """(ours, flax's, input shape): those of the networks, then whatever takes XLA's own."""
    for shape in ((2, 8, 8, 3), (1, 6, 10, 1)):
        for bias in (False, True):
            yield layers.Conv(4, strides=2, use_bias=bias), nn.Conv(4, (5, 5), (2, 2), use_bias=bias), shape
            yield layers.Conv(1, use_bias=bias), nn.Conv(1, (5, 5), use_bias=bias), shape
        yield layers.ConvTranspose(4), nn.ConvTranspose(4, (5, 5), (2, 2), use_bias=False), shape
    for shape in ((2, 7, 9, 2), (1, 8, 9, 2), (1, 9, 8, 2)):  # odd sides
        yield layers.Conv(3, strides=2), nn.Conv(3, (5, 5), (2, 2), use_bias=False), shape
    yield layers.ConvTranspose(2), nn.ConvTranspose(2, (5, 5), (2, 2), use_bias=False), (2, 3, 7, 2)
    yield layers.Conv(3), nn.Conv(3, (5, 5), use_bias=False), (2, 8, 7, 2)
    yield layers.Conv(1, strides=2), nn.Conv(1, (5, 5), (2, 2), use_bias=False), (2, 8, 6, 2)
    yield layers.Conv(1, kernel_size=3), nn.Conv(1, (3, 3), use_bias=False), (2, 8, 7, 2)
    for shape in ((2, 8, 6, 2), (2, 8, 6, 1)):
        yield layers.Conv(2, 1, 2), nn.Conv(2, (1, 1), (2, 2), use_bias=False), shape
    yield layers.ConvTranspose(2, 1), nn.ConvTranspose(2, (1, 1), (2, 2), use_bias=False), (2, 3, 7, 2)
    yield layers.Conv(2, 4, 2), nn.Conv(2, (4, 4), (2, 2), use_bias=False), (2, 8, 6, 2)
    for strides, padding in ((1, (1, 1)), (2, (1, 2)), (2, "VALID")):
        theirs = padding if isinstance(padding, str) else (padding, padding)
        plain = nn.Conv(2, (4, 4), strides, padding=theirs, use_bias=False)
        yield layers.Conv(2, 4, strides, padding), plain, (2, 8, 6, 2)
    for k in (4, 6):
        for bias in (False, True):
            yield layers.ConvTranspose(2, k, bias), nn.ConvTranspose(2, (k, k), (2, 2), use_bias=bias), (2, 3, 7, 2)


@pytest.mark.parametrize("ours, flaxs, shape", list(modules()), ids=lambda x: str(x) if isinstance(x, tuple) else "")
def test_modules_are_flaxs(ours, flaxs, shape):
    rng = np.random.default_rng(1)
    variables, expected = (jax.eval_shape(m.init, jax.random.key(0), jnp.zeros(shape)) for m in (ours, flaxs))
    assert variables == expected  # names, shapes, dtypes
    x = rng.normal(size=shape).astype(np.float32)
    variables = jax.tree.map(lambda v: rng.normal(size=v.shape).astype(np.float32), expected)
    a, b = jax.jit(lambda v, x: (ours.apply(v, x), flaxs.apply(v, x)))(variables, x)
    assert a.shape == b.shape and a.dtype == b.dtype
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "method",
    ["cgan", pytest.param("cui", marks=pytest.mark.slow), pytest.param("pix2pix", marks=pytest.mark.slow)],
)
def test_every_convolution_of_the_nets_is_flaxs(method):
    """Output and both gradients in float64, at the shapes with which the method's nets call them, width 8."""
    calls = {}

    def record(call, args, kwargs, context):
        module = context.module
        if isinstance(module, (layers.Conv, layers.ConvTranspose)) and context.method_name == "__call__":
            calls[module.clone(parent=None, name=None, dtype=jnp.float64), args[0].shape] = None
        return call(*args, **kwargs)

    for net in METHODS[method].modules(8, jnp.float32, 3).values():
        shape = 1, 96, 96, getattr(net, "channels", 1)
        with nn.intercept_methods(record):
            jax.eval_shape(functools.partial(net.init, train=False), jax.random.key(0), jnp.zeros(shape))
    assert calls
    for ours, shape in calls:
        given = {name: getattr(ours, name) for name in ("features", "use_bias", "dtype")}
        given |= {"kernel_size": (ours.kernel_size,) * 2, "param_dtype": jnp.float64}
        if isinstance(ours, layers.ConvTranspose):
            flaxs = nn.ConvTranspose(strides=(2, 2), **given)
        else:
            padding = ours.padding if isinstance(ours.padding, str) else (ours.padding,) * 2
            flaxs = nn.Conv(strides=ours.strides, padding=padding, **given)
        with jax.enable_x64(True):
            rng = np.random.default_rng(0)
            x, v = jnp.asarray(rng.normal(size=shape)), jax.eval_shape(flaxs.init, jax.random.key(0), jnp.zeros(shape))
            v = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), v)  # noqa: B023
            dy = jnp.asarray(rng.normal(size=jax.eval_shape(flaxs.apply, v, x).shape))
            both = jax.jit(lambda *a: [value_and_gradients(m.apply, *a) for m in (ours, flaxs)])  # noqa: B023
            got, expected = (jax.tree.leaves(values) for values in both(v, x, dy))
            for a, b in zip(got, expected, strict=True):
                assert a.dtype == b.dtype == np.float64
                np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10, err_msg=f"{ours} on {shape}")


def test_kernels_start_as_in_the_paper():
    kernel = layers.Conv(64).init(jax.random.key(0), jnp.zeros((1, 8, 8, 8)))["params"]["kernel"]
    assert np.std(kernel) == pytest.approx(0.02, rel=0.03) and abs(np.mean(kernel)) < 3e-4


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="elsewhere XLA's own are taken")
@pytest.mark.parametrize(
    "module, channels",
    [
        *((layers.Conv(2, strides=2), channels) for channels in (1, 2, 17)),
        *((module, 2) for module in (layers.ConvTranspose(2), layers.ConvTranspose(17), layers.ConvTranspose(1, 6))),
    ],
)
def test_cpu_sees_no_dilated_input(module, channels):
    """Such convolutions are ten times slower on a CPU: the reason for cpu_convolutions.py."""
    x = jnp.zeros((1, 16, 16, channels))
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    text = str(jax.make_jaxpr(jax.grad(lambda v, x: module.apply(v, x).sum(), (0, 1)))(variables, x))
    assert "lhs_dilation=(2, 2)" not in text
    w = jnp.zeros((5, 5, channels, 2))
    plain = jax.make_jaxpr(jax.grad(lambda x: xlas_down(x, w).sum()))(x)
    assert "lhs_dilation=(2, 2)" in str(plain)  # jaxprs do show it
