"""cui.py: sizes as published, small nets against their own computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from facedepth_jax.errors import FaceDepthError
from facedepth_jax.models import cui
from facedepth_jax.state import Net, NetState, adam, forward, forward_train, init_net

SUBJECTS = 5
# Kernel side and features as in the paper's notation; where a pool follows.
GENERATOR = [(32, True), (64, True), (128, False), (128, False), (128, False), (256, True), (256, False), (256, False)]
IDENTITY = [(64, True), (128, True), (256, False), (256, True), (512, False), (512, True), (512, False), (512, True)]


def fresh(module, size):
    net = Net(module, adam(2e-4, 0.5, 0.999))
    return net, jax.eval_shape(lambda: init_net(net, jax.random.key(0), size))


def count(module):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(fresh(module, 96)[1].params))


def test_number_of_parameters():
    """Kernels k x k x in x out; batch norm 2 a feature map, PReLU 1 a layer; dense layers with bias."""
    features = [f for f, _ in GENERATOR]
    encoder = sum(9 * i * o + 2 * o + 1 for i, o in zip([1, *features], features, strict=False))
    decoder = sum(36 * i * o + 2 * o + 1 for i, o in ((256, 128), (128, 64))) + 36 * 64 + 2
    assert count(cui.Generator()) == encoder + decoder == 3_341_676
    features = [f for f, _ in IDENTITY]
    convolutions = sum(9 * i * o + 2 * o for i, o in zip([1, *features], features, strict=False))
    dense = sum(i * o + o for i, o in ((3 * 3 * 512, 2048), (2048, 2048), (2048, SUBJECTS)))
    assert count(cui.Identity(SUBJECTS)) == convolutions + dense == 22_867_909


@pytest.mark.parametrize("kind", ["generator", "identity"])
def test_shapes_of_the_layers(kind):
    module, table = (cui.Generator(), GENERATOR) if kind == "generator" else (cui.Identity(SUBJECTS), IDENTITY)

    def run():
        x = jnp.zeros((2, 96, 96, 1))
        return module.init_with_output(jax.random.key(0), x, train=False, capture_intermediates=True)

    layers, size = jax.eval_shape(run)[1]["intermediates"], 96
    for i, (features, pool) in enumerate(table, 1):
        assert layers[f"conv{i}"]["__call__"][0].shape == (2, size, size, features)
        size //= 1 + pool
        assert layers[f"norm{i}"]["__call__"][0].shape == (2, size, size, features)
    if kind == "generator":
        assert size == 12
        for i, shape in enumerate([(24, 24, 128), (48, 48, 64), (96, 96, 1)], 1):
            assert layers[f"up{i}"]["__call__"][0].shape == (2, *shape)
        assert layers["__call__"][0].shape == (2, 96, 96, 1)
    else:
        assert [layers[name]["__call__"][0].shape for name in ("dense1", "dense2")] == [(2, 2048)] * 2
        assert layers["__call__"][0].shape == (2, SUBJECTS)


@pytest.mark.parametrize("module", [cui.Generator(8), cui.Identity(64, 8)])
def test_the_start_is_pytorchs(module):
    """Uniform within 1 / sqrt(fan_in), whose second axis PyTorch takes for the inputs, in transposed layers too."""
    params = init_net(Net(module, adam(2e-4, 0.5, 0.999)), jax.random.key(0), 64).params
    for name, layer in params.items():
        if not {"kernel", "slope"} & layer.keys():
            continue
        if "slope" in layer:
            assert layer["slope"] == 0.25 and layer["slope"].shape == ()
            continue
        axes = {"conv": (3, 2, 0, 1), "up": (2, 3, 0, 1)}.get(name.rstrip("12345678"), (1, 0))  # to PyTorch's weights
        weight = layer["kernel"].transpose(axes)
        bound = 1 / np.sqrt(np.prod(weight.shape[1:]))
        for leaf in (weight, layer.get("bias", weight)):
            assert 0.9 * bound < np.abs(leaf).max() <= bound, name
            assert np.std(leaf) == pytest.approx(bound / np.sqrt(3), rel=0.2), name


# ---- the same nets, plainly ----

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def norm(x, variables, name, train):
    params, stats = variables["params"][name]["norm"], variables["batch_stats"][name]["norm"]
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (stats["mean"], stats["var"])
    mean, var, scale, bias = (v.reshape(1, 1, 1, -1) for v in (mean, var, params["scale"], params["bias"]))
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


def encode(x, variables, train, table, activation):
    for i, (_, pool) in enumerate(table, 1):
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        x = lax.conv_general_dilated(
            x, variables["params"][f"conv{i}"]["kernel"], (1, 1), "VALID", dimension_numbers=DIMENSIONS
        )
        if pool:
            corners = [x[:, r : x.shape[1] - 1 + r : 2, s : x.shape[2] - 1 + s : 2] for r in (0, 1) for s in (0, 1)]
            x = jnp.stack(corners).max(0)
        x = activation(norm(x, variables, f"norm{i}", train), f"prelu{i}")
    return x


def generator(x, variables, train):
    params = variables["params"]

    def prelu(x, name):
        return jnp.maximum(x, 0) + params[name]["slope"] * jnp.minimum(x, 0)

    x = encode(x, variables, train, GENERATOR, prelu)
    for i in (1, 2, 3):
        x = lax.conv_transpose(x, params[f"up{i}"]["kernel"], (2, 2), "SAME", dimension_numbers=DIMENSIONS)
        x = norm(x, variables, f"up_norm{i}", train)
        x = prelu(x, f"up_prelu{i}") if i < 3 else jnp.tanh(x)
    return x


def identity(x, variables, train):
    params = variables["params"]
    x = encode(x, variables, train, IDENTITY, lambda x, _: jnp.maximum(x, 0))
    x = x.reshape(len(x), -1)
    for name in ("dense1", "dense2", "out"):
        x = 1 / (1 + jnp.exp(-(x @ params[name]["kernel"] + params[name]["bias"][None])))
    return x


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", ["generator", "identity"])
def test_nets_are_the_plain_ones(kind, dtype):
    if kind == "generator":
        module, twin = cui.Generator(2, dtype), generator
    else:
        module, twin = cui.Identity(SUBJECTS, 1, dtype), identity
    net, state = fresh(module, 32)
    rng = np.random.default_rng(0)

    def fill(leaf):
        signs = rng.choice([-1, 1], leaf.shape) if leaf.ndim > 1 else 1
        return rng.uniform(0.1, 0.5, leaf.shape).astype(np.float32) * signs

    variables = jax.tree.map(fill, {"params": state.params, "batch_stats": state.batch_stats})
    x = rng.uniform(-1, 1, (4, 32, 32, 1)).astype(np.float32)

    @jax.jit
    def run(v, x):
        evaluated = forward(net.module, NetState(v["params"], v["batch_stats"], None), x)
        got = forward_train(net, v["params"], v["batch_stats"], x)[0], evaluated
        return got, tuple(twin(x, v, train) for train in (True, False))

    for got, expected in zip(*run(variables, x), strict=True):
        assert got.dtype == np.float32 and got.shape == expected.shape and np.std(expected) > 0.05
        if dtype == jnp.float32:
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
        else:
            assert 1e-5 < np.abs(got - expected).mean() < 0.1 * np.std(expected)


def test_pool_and_its_gradient():
    x = np.array([[1, 2, 9], [4, 3, 9], [9, 9, 9]], np.float32)  # the last row and column have no pair
    x = x[None, :, :, None]
    y, pull_back = jax.vjp(cui._pool, x)
    np.testing.assert_array_equal(y, [[[[4]]]])
    expected = np.zeros((3, 3))
    expected[1, 0] = 7
    np.testing.assert_array_equal(pull_back(jnp.full((1, 1, 1, 1), 7.0))[0][0, ..., 0], expected)


def test_too_small_images():
    with pytest.raises(FaceDepthError, match="at least 32 px, data.size is 16"):
        fresh(cui.Identity(SUBJECTS, 1), 16)
