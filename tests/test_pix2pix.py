"""pix2pix.py: sizes as published, a small U-Net against its own computation, dropout, the PatchGAN's field of view."""

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from PIL import Image

from facedepth_jax.errors import FaceDepthError
from facedepth_jax.models import pix2pix
from facedepth_jax.state import Net, NetState, adam, forward, forward_train, init_net


def count(module, size):
    net = jax.eval_shape(lambda: init_net(Net(module, adam(2e-4, 0.5, 0.999)), jax.random.key(0), size))
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(net.params))


def u_net(features, inputs, outputs):
    """Kernels 4 x 4 x in x out and batch norm's two numbers a map; none at the first, the innermost and the last."""
    down = sum(16 * i * o for i, o in zip([inputs, *features], features, strict=False))
    down += sum(2 * f for f in features[1:-1])
    up = 16 * features[-1] * features[-2] + sum(
        16 * 2 * i * o for i, o in zip(features[-2::-1], features[-3::-1], strict=False)
    )
    up += sum(2 * f for f in features[:-1])
    return down + up + 16 * 2 * features[0] * outputs + outputs


def test_number_of_parameters():
    eight = [64, 128, 256, 512, 512, 512, 512, 512]
    assert u_net(eight, 3, 3) == 54_413_955  # the authors' code prints 54.414 M for 256 px and colours
    assert count(pix2pix.Generator(), 256) == u_net(eight, 1, 1)
    assert count(pix2pix.Generator(), 96) == count(pix2pix.Generator(), 128) == u_net(eight[:7], 1, 1)
    assert u_net(eight[:7], 3, 3) == 41_828_995  # their 128 px net
    kernels = {inputs: 16 * (inputs * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512) for inputs in (2, 6)}
    others = 64 + 1 + 2 * (128 + 256 + 512)
    assert kernels[6] + others == 2_768_705  # 2.769 M there, for two colour images
    assert count(pix2pix.Discriminator(), 96) == kernels[2] + others


def seen(module, size):
    def run():
        x = jnp.zeros((2, size, size, getattr(module, "channels", 1)))
        return module.init_with_output(jax.random.key(0), x, train=False, capture_intermediates=True)

    return jax.eval_shape(run)[1]["intermediates"]


def test_shapes_of_the_layers():
    layers = seen(pix2pix.Generator(), 96)
    features = [64, 128, 256, 512, 512, 512, 512]
    for i, f in enumerate(features, 1):
        assert layers[f"down{i}"]["__call__"][0].shape == (2, 128 >> i, 128 >> i, f)
    for i, f in enumerate([1, *features[:-1]], 1):
        assert layers[f"up{i}"]["__call__"][0].shape == (2, 256 >> i, 256 >> i, f)
    assert {f"down_norm{i}" for i in range(2, 7)} | {f"up_norm{i}" for i in range(2, 8)} == {
        k for k in layers if "norm" in k
    }
    dropouts = [layers[f"Dropout_{i}"]["__call__"][0].shape for i in range(3)]
    assert dropouts == [(2, 2, 2, 512), (2, 4, 4, 512), (2, 8, 8, 512)] and "Dropout_3" not in layers
    assert layers["__call__"][0].shape == (2, 96, 96, 1)
    layers = seen(pix2pix.Discriminator(), 96)
    for i, shape in enumerate([(48, 48, 64), (24, 24, 128), (12, 12, 256), (11, 11, 512)], 1):
        assert layers[f"conv{i}"]["__call__"][0].shape == (2, *shape)
    assert layers["__call__"][0].shape == (2, 10, 10)


def test_starts_as_there():
    module = pix2pix.Discriminator(16)
    key = jax.random.key(0, impl="rbg")  # compiles faster
    params = jax.jit(lambda key: module.init(key, jnp.zeros((1, 32, 32, 2)), train=False))(key)["params"]
    scale = params["norm4"]["norm"]["scale"]
    assert np.std(params["conv3"]["kernel"]) == pytest.approx(0.02, rel=0.05)
    assert np.std(scale) == pytest.approx(0.02, rel=0.3) and np.mean(scale) == pytest.approx(1, abs=0.01)
    assert not np.any(params["conv1"]["bias"]) and not np.any(params["norm4"]["norm"]["bias"])


def test_resize_is_other_libraries():
    x = np.random.default_rng(0).uniform(-1, 1, (2, 96, 96, 1)).astype(np.float32)
    up = jax.jit(lambda x: pix2pix._resize(x, 128))(x)
    down = jax.jit(lambda x: pix2pix._resize(x, 96))(up)
    for k in range(2):
        np.testing.assert_allclose(up[k, ..., 0], cv2.resize(x[k], (128, 128)), atol=1e-5)
        small = Image.fromarray(np.array(up[k, ..., 0])).resize((96, 96), Image.Resampling.BILINEAR)
        np.testing.assert_allclose(down[k, ..., 0], np.asarray(small), atol=1e-5)


# ---- the same U-Net as the authors nest it: each level holds the next ----


def conv(x, w, s, pad):
    return lax.conv_general_dilated(x, w, (s, s), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC"))


def norm(x, variables, name, train):
    params, stats = variables["params"][name]["norm"], variables["batch_stats"][name]["norm"]
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (stats["mean"], stats["var"])
    mean, var, scale, bias = (v.reshape(1, 1, 1, -1) for v in (mean, var, params["scale"], params["bias"]))
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + bias


def nested(x, variables, train, level, levels):
    params = variables["params"]
    y = conv(x, params[f"down{level}"]["kernel"], 2, (1, 1))
    if 1 < level < levels:
        y = norm(y, variables, f"down_norm{level}", train)
    if level < levels:
        y = jnp.concatenate([nested(jnp.where(y > 0, y, 0.2 * y), variables, train, level + 1, levels), y], -1)
    y = lax.conv_transpose(
        jnp.maximum(y, 0), params[f"up{level}"]["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return (
        norm(y, variables, f"up_norm{level}", train)
        if level > 1
        else jnp.tanh(y + params["up1"]["bias"].reshape(1, 1, 1, -1))
    )


def patches(x, variables, train):
    params = variables["params"]
    x = conv(x, params["conv1"]["kernel"], 2, (1, 1)) + params["conv1"]["bias"].reshape(1, 1, 1, -1)
    for i, stride in ((2, 2), (3, 2), (4, 1)):
        x = jnp.where(x > 0, x, 0.2 * x)
        x = norm(conv(x, params[f"conv{i}"]["kernel"], stride, (1, 1)), variables, f"norm{i}", train)
    x = jnp.where(x > 0, x, 0.2 * x)
    return (conv(x, params["out"]["kernel"], 1, (1, 1)) + params["out"]["bias"].reshape(1, 1, 1, -1))[..., 0]


def random_variables(net, size):
    rng = np.random.default_rng(1)
    state = jax.eval_shape(lambda: init_net(net, jax.random.key(0), size))

    def fill(leaf):
        signs = rng.choice([-1, 1], leaf.shape) if leaf.ndim > 1 else 1
        return rng.uniform(0.1, 0.5, leaf.shape).astype(np.float32) * signs

    return jax.tree.map(fill, {"params": state.params, "batch_stats": state.batch_stats})


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", ["generator", "discriminator"])
def test_nets_are_the_plain_ones(kind, dtype):
    """At 16 px there are four levels, none with dropout, so that training can be compared too."""
    if kind == "generator":
        module, twin, size = pix2pix.Generator(2, dtype), lambda x, v, t: nested(x, v, t, 1, 4), 16
    else:
        module, twin, size = pix2pix.Discriminator(2, dtype), patches, 32
    net = Net(module, adam(2e-4, 0.5, 0.999))
    variables = random_variables(net, size)
    x = np.random.default_rng(0).uniform(-1, 1, (3, size, size, getattr(module, "channels", 1))).astype(np.float32)

    @jax.jit
    def run(v, x):
        state = NetState(v["params"], v["batch_stats"], None)
        got = forward_train(net, v["params"], v["batch_stats"], x)[0], forward(net.module, state, x)
        return got, tuple(twin(x, v, train) for train in (True, False))

    for got, expected in zip(*run(variables, x), strict=True):
        assert got.dtype == np.float32 and got.shape == expected.shape and np.std(expected) > 0.05
        if dtype == jnp.float32:
            np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
        else:
            assert 1e-5 < np.abs(got - expected).mean() < 0.05 * np.std(expected)


# ---- dropout ----


@pytest.fixture(scope="module")
def dropped():
    """A U-Net of five levels, one with dropout; images, of which two are equal."""
    net = Net(pix2pix.Generator(2), adam(2e-4, 0.5, 0.999))
    x = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 1)).astype(np.float32)
    x[1] = x[0]
    return net, random_variables(net, 32), x


def test_training_draws_noise_for_each_image_from_the_key(dropped):
    net, v, x = dropped
    run = jax.jit(lambda key: forward_train(net, v["params"], v["batch_stats"], x, key)[0])
    first, again, other = (run(jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3 and np.abs(first[0] - first[1]).max() > 1e-3


def test_evaluation_draws_once_for_all_images(dropped):
    net, v, x = dropped
    state = NetState(v["params"], v["batch_stats"], None)
    whole = jax.jit(lambda x: forward(net.module, state, x))(x)
    np.testing.assert_allclose(whole[0], whole[1], atol=1e-6)
    alone = jax.jit(lambda x: forward(net.module, state, x))(x[2:])
    np.testing.assert_allclose(whole[2:], alone, atol=1e-5)
    without = jax.jit(lambda x: nested(x, v, False, 1, 5))(x)
    assert np.abs(whole - without).max() > 1e-3


def test_dropout_keeps_half_and_doubles_it(dropped):
    x, module = dropped[2], pix2pix.Generator(16)
    variables = random_variables(Net(module, adam(1, 0, 0)), 32)

    def run(train):
        rngs, collections = {"dropout": jax.random.key(0)}, ["batch_stats", "intermediates"]
        return module.apply(variables, x, train, mutable=collections, capture_intermediates=True, rngs=rngs)[1]

    for train, out in zip((True, False), jax.jit(lambda: (run(True), run(False)))(), strict=True):
        before, after = (np.asarray(out["intermediates"][name]["__call__"][0]) for name in ("up_norm5", "Dropout_0"))
        kept = after != 0
        assert after.shape == (3, 2, 2, 128)
        np.testing.assert_allclose(after[kept], 2 * before[kept], rtol=1e-5, atol=1e-7)
        assert 0.4 < kept.mean() < 0.6
        assert (kept[0] == kept[2]).all() == (not train)


# ---- the PatchGAN ----


def test_a_logit_sees_70_pixels_of_gray_and_depth():
    module = pix2pix.Discriminator(1)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 128, 128, 2)), train=False))
    ones = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), shapes)  # nothing cancels
    gradient = jax.jit(jax.grad(lambda x: module.apply(ones, x, train=False)[0, 7, 7]))(jnp.ones((1, 128, 128, 2)))[0]
    for channel in range(2):
        rows, columns = np.nonzero(gradient[..., channel])
        assert len(rows) == 70 * 70 and np.ptp(rows) == np.ptp(columns) == 69


def test_too_small_images():
    with pytest.raises(FaceDepthError, match="at least 24 px, data.size is 16"):
        init_net(Net(pix2pix.Discriminator(1), adam(1, 0, 0)), jax.random.key(0), 16)
    assert seen(pix2pix.Discriminator(1), 24)["__call__"][0].shape == (2, 1, 1)
