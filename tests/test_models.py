"""The paper's nets: their size, and a small one against its own computation in plain numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facedepth_jax.models import cgan
from facedepth_jax.state import Net, adam, forward, forward_train, init_net

W, S, B = 2, 32, 3


def parameters(module, size):
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, size, size, 1)), train=False))
    return shapes["params"]


def count(tree):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("w, generator, discriminator", [(128, 34_621_761, 17_247_105), (W, None, None)])
def test_number_of_parameters(w, generator, discriminator):
    """Kernels 5 x 5 x in x out; batch norm 2 a feature map; a bias only in the last layers."""
    channels = [1, w, 2 * w, 4 * w, 8 * w]
    encoder = sum(25 * i * o + 2 * o for i, o in zip(channels, channels[1:], strict=False))
    channels = [8 * w, 4 * w, 2 * w, w, w // 2]
    decoder = sum(25 * i * o + 2 * o for i, o in zip(channels, channels[1:], strict=False))
    expected = encoder + decoder + 25 * (w // 2) + 1, encoder + 6 * 6 * 8 * w + 1
    assert expected == (generator or expected[0], discriminator or expected[1])
    assert tuple(count(parameters(module(w), 96)) for module in (cgan.Generator, cgan.Discriminator)) == expected


def test_shapes_of_the_layers():
    def outputs(module):
        _, state = jax.eval_shape(
            lambda: module.init_with_output(
                jax.random.key(0), jnp.zeros((2, 96, 96, 1)), train=False, capture_intermediates=True
            )
        )
        return state["intermediates"]

    seen = outputs(cgan.Generator())
    encoder = {f"conv{i}": (2, s, s, c) for i, s, c in [(1, 48, 128), (2, 24, 256), (3, 12, 512), (4, 6, 1024)]}
    up = {f"up{i}": (2, s, s, c) for i, s, c in [(1, 12, 512), (2, 24, 256), (3, 48, 128), (4, 96, 64)]}
    for name, shape in encoder.items():
        assert seen["encoder"][name]["__call__"][0].shape == shape
        assert outputs(cgan.Discriminator())["encoder"][name]["__call__"][0].shape == shape
    for name, shape in (up | {"out": (2, 96, 96, 1)}).items():
        assert seen[name]["__call__"][0].shape == shape
    assert seen["__call__"][0].shape == (2, 96, 96, 1)
    assert outputs(cgan.Discriminator())["__call__"][0].shape == (2,)


# ---- the same nets in plain numpy, float64 ----


def conv(x, w, stride):
    """SAME, by hand: (N, H, W, I), (5, 5, I, O)."""
    n, h, v, _ = x.shape
    before, behind = (2, 2) if stride == 1 else (1, 2)
    padded = np.pad(x, ((0, 0), (before, behind), (before, behind), (0, 0)))
    y = np.zeros((n, h // stride, v // stride, w.shape[3]))
    for r in range(5):
        for s in range(5):
            y += padded[:, r : r + h : stride, s : s + v : stride] @ w[r, s]
    return y


def conv_transpose(x, w):
    """Twice the size: zeros between the pixels, then a plain convolution (flax's kernel is not turned)."""
    n, h, v, i = x.shape
    dilated = np.zeros((n, 2 * h + 4, 2 * v + 4, i))
    dilated[:, 3 : 3 + 2 * h : 2, 3 : 3 + 2 * v : 2] = x
    return sum(dilated[:, r : r + 2 * h, s : s + 2 * v] @ w[r, s] for r in range(5) for s in range(5))


def norm(x, variables, new_stats, path, train):
    """Batch norm, epsilon 1e-5; `new_stats[path]` gets the running mean and variance of momentum 0.9."""
    params, stats = variables["params"], variables["batch_stats"]
    for name in (*path, "norm"):
        params, stats = params[name], stats[name]
    mean, var = stats["mean"], stats["var"]
    if train:
        mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
        new_stats[path] = {"mean": 0.9 * stats["mean"] + 0.1 * mean, "var": 0.9 * stats["var"] + 0.1 * var}
    return (x - mean) / np.sqrt(var + 1e-5) * params["scale"] + params["bias"]


def encode(x, variables, new_stats, train):
    for i in range(1, 5):
        x = conv(x, variables["params"]["encoder"][f"conv{i}"]["kernel"], 2)
        x = norm(x, variables, new_stats, ("encoder", f"norm{i}"), train)
        x = np.where(x > 0, x, 0.2 * x)
    return x


def generator(x, variables, train):
    new_stats, params = {}, variables["params"]
    x = encode(x, variables, new_stats, train)
    for i in range(1, 5):
        x = conv_transpose(x, params[f"up{i}"]["kernel"])
        x = np.maximum(norm(x, variables, new_stats, (f"norm{i}",), train), 0)
    return np.tanh(conv(x, params["out"]["kernel"], 1) + params["out"]["bias"]), new_stats


def discriminator(x, variables, train):
    new_stats, out = {}, variables["params"]["out"]
    x = encode(x, variables, new_stats, train)
    return x.reshape(len(x), -1) @ out["kernel"][:, 0] + out["bias"], new_stats


@pytest.fixture(scope="module", params=[(cgan.Generator, generator), (cgan.Discriminator, discriminator)])
def pair(request):
    """A net with random values everywhere, its numpy twin, an input."""
    module, twin = request.param
    net = Net(module(W), adam(2e-4, 0.5, 0.999))
    rng = np.random.default_rng(0)
    state = jax.eval_shape(lambda: init_net(net, jax.random.key(0), S))

    def fill(leaf):
        return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32) * (
            rng.choice([-1, 1], leaf.shape) if leaf.ndim > 1 else 1
        )

    variables = jax.tree.map(fill, {"params": state.params, "batch_stats": state.batch_stats})
    if module is cgan.Generator:  # or the tanh would be at its ends
        variables["params"]["out"]["kernel"] *= 0.05
    return net, twin, variables, rng.uniform(-1, 1, (B, S, S, 1)).astype(np.float32)


def test_training_uses_the_batch_and_moves_the_running_statistics(pair):
    net, twin, variables, x = pair
    output, stats = jax.jit(lambda v, x: forward_train(net, v["params"], v["batch_stats"], x))(variables, x)
    expected, expected_stats = twin(x.astype(np.float64), variables, train=True)
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, expected, rtol=2e-4, atol=2e-4)
    assert len(jax.tree.leaves(stats)) == 2 * len(expected_stats)
    for path, values in expected_stats.items():
        got = stats
        for name in path:
            got = got[name]
        for name, value in values.items():
            np.testing.assert_allclose(got["norm"][name], value, rtol=1e-4, atol=1e-4, err_msg=f"{path} {name}")


def test_evaluation_uses_the_running_statistics(pair):
    net, twin, variables, x = pair
    state = jax.eval_shape(lambda: init_net(net, jax.random.key(0), S))
    state = type(state)(variables["params"], variables["batch_stats"], None)
    predict = jax.jit(lambda x: forward(net.module, state, x))
    expected, _ = twin(x.astype(np.float64), variables, train=False)
    np.testing.assert_allclose(predict(x), expected, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(predict(x)[:1], predict(x[[0, 0, 0]])[:1], rtol=1e-5, atol=1e-6)  # others don't matter


def test_bfloat16_computes_alike_and_keeps_float32(pair):
    net, twin, variables, x = pair
    half = Net(type(net.module)(W, jnp.bfloat16), net.optimizer)
    fresh = jax.eval_shape(lambda: init_net(half, jax.random.key(0), S))
    assert {leaf.dtype for leaf in jax.tree.leaves((fresh.params, fresh.batch_stats))} == {jnp.dtype("float32")}
    output, stats = jax.jit(lambda v, x: forward_train(half, v["params"], v["batch_stats"], x))(variables, x)
    assert {leaf.dtype for leaf in jax.tree.leaves((output, stats))} == {jnp.dtype("float32")}
    expected, _ = twin(x.astype(np.float64), variables, train=True)
    error = np.abs(output - expected)
    assert 1e-5 < error.mean() < 0.03 * np.std(expected)  # not exact, or it was never tried
