"""steps.py: one step against the paper's order of things, written plainly; and against yesterday's numbers."""

import functools
import json
import pathlib
import runpy

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facedepth_jax import losses, steps
from facedepth_jax.depth_code import DepthCode
from facedepth_jax.state import Net, TrainState, adam, init_net

CODE = DepthCode()
SEED, SUBJECTS = 7, 3
LAM, LR, B1, B2, EPS = 30.0, 2e-4, 0.5, 0.999, 1e-8
GOLDEN = pathlib.Path(__file__).parent / "golden"
TOOL = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "tools" / "golden.py"))


def stored(seed=0, n=4, size=8):
    rng = np.random.default_rng(seed)
    depth_mm = rng.integers(450, 2700, (n, size, size)).astype(np.uint16)
    depth_mm[rng.random(depth_mm.shape) < 0.2] = 0
    gray = rng.integers(0, 256, (n, size, size), np.uint8)
    distance_mm = rng.uniform(600, 1300, n).astype(np.float32)
    subject = np.arange(n, dtype=np.int32) % SUBJECTS
    return {"gray": gray, "depth_mm": depth_mm, "distance_mm": distance_mm, "subject": subject}


def test_encode():
    batch = stored()
    got = jax.jit(lambda batch: steps.encode(batch, CODE))(batch)
    mm = batch["depth_mm"].astype(np.float64)
    level = np.where(mm == 0, 194, np.clip(np.round((mm - 500) / 8), 0, 255))
    np.testing.assert_allclose(got["gray"][..., 0], batch["gray"] / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(got["depth"][..., 0], level / 127.5 - 1, atol=1e-6)
    assert got["gray"].dtype == got["depth"].dtype == np.float32 and got["gray"].shape == (4, 8, 8, 1)


# ---- the adversarial step, in float64, with the smallest nets that have all the parts ----


class _Net(nn.Module):
    """A convolution, batch norm, and an image or a logit; float64 throughout."""

    image: bool

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(3, (3, 3), use_bias=False, dtype=jnp.float64)(x)
        x = nn.leaky_relu(nn.BatchNorm(not train, momentum=0.9, dtype=jnp.float64)(x), 0.2)
        if self.image:
            return jnp.tanh(nn.Conv(1, (3, 3), dtype=jnp.float64)(x))
        return nn.Dense(1, dtype=jnp.float64)(x.reshape(len(x), -1))[:, 0]


NETS = {name: Net(_Net(name == "generator"), adam(LR, B1, B2)) for name in ("generator", "discriminator")}


def bce(logits, label):
    """Eq. 2's binary cross entropy; the logits here are small."""
    p = 1 / (1 + jnp.exp(-logits))
    return -jnp.mean(jnp.log(p) if label else jnp.log(1 - p))


def plain_adam(params, grads, moments, t):
    """Kingma and Ba's Algorithm 1."""
    m = jax.tree.map(lambda m, g: B1 * m + (1 - B1) * g, moments[0], grads)
    v = jax.tree.map(lambda v, g: B2 * v + (1 - B2) * g**2, moments[1], grads)
    params = jax.tree.map(lambda p, m, v: p - LR * (m / (1 - B1**t)) / (jnp.sqrt(v / (1 - B2**t)) + EPS), params, m, v)
    return params, (m, v)


def apply(name, params, stats, x):
    y, new = NETS[name].module.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
    return y, new["batch_stats"]


@jax.jit
def two_passes(g, d, moments_g, moments_d, t, batch):
    """The paper's step the usual way: `g` and `d` are (params, batch_stats); each net is run for each loss."""
    batch = steps.encode(batch, CODE)

    def loss_d(params):
        generated = jax.lax.stop_gradient(apply("generator", *g, batch["gray"])[0])
        real_logits, stats = apply("discriminator", params, d[1], batch["depth"])
        generated_logits, stats = apply("discriminator", params, stats, generated)
        accuracy = jnp.mean(real_logits > 0), jnp.mean(generated_logits < 0)
        return bce(real_logits, 1) + bce(generated_logits, 0), (stats, accuracy)

    (value_d, (stats_d, accuracy)), grads_d = jax.value_and_grad(loss_d, has_aux=True)(d[0])
    params_d, moments_d = plain_adam(d[0], grads_d, moments_d, t)

    def loss_g(params):
        generated, stats = apply("generator", params, g[1], batch["gray"])
        logits, _ = apply("discriminator", params_d, d[1], generated)
        mse, adv = jnp.mean((generated - batch["depth"]) ** 2), bce(logits, 1)
        return LAM * mse + adv, (stats, mse, adv)

    (value_g, (stats_g, mse, adv)), grads_g = jax.value_and_grad(loss_g, has_aux=True)(g[0])
    params_g, moments_g = plain_adam(g[0], grads_g, moments_g, t)

    def norm(tree):
        return jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree)))

    metrics = {"loss_g": value_g, "loss_mse": mse, "loss_adv": adv, "loss_d": value_d}
    metrics |= {"d_accuracy_real": accuracy[0], "d_accuracy_generated": accuracy[1]}
    metrics |= {"grad_norm_g": norm(grads_g), "grad_norm_d": norm(grads_d)}
    return (params_g, stats_g), (params_d, stats_d), moments_g, moments_d, metrics


def fresh_state(nets=NETS):
    """Random everywhere, float64."""
    rng = np.random.default_rng(0)
    shapes = {name: jax.eval_shape(lambda net=net: init_net(net, jax.random.key(0), 8)) for name, net in nets.items()}

    def fill(leaf, low, high):
        return jnp.asarray(rng.uniform(low, high, leaf.shape))

    states = {}
    for name, net in shapes.items():
        params = jax.tree.map(lambda leaf: fill(leaf, -0.3, 0.3), net.params)
        stats = jax.tree.map(lambda leaf: fill(leaf, 0.5, 1.5), net.batch_stats)
        states[name] = type(net)(params, stats, nets[name].optimizer.init(params))
    return TrainState(jnp.zeros((), jnp.int32), states)


def close(got, expected, what, tolerance=1e-10):
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(expected), strict=True):
        name = what + jax.tree_util.keystr(path)
        assert a.shape == b.shape, name
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=name)


def test_adversarial_step_is_the_plain_one_with_two_passes():
    with jax.enable_x64(True):
        numbers = {"seed": SEED, "lam": LAM, "discriminator_pixels": "all"}
        step = jax.jit(functools.partial(steps.adversarial_step, nets=NETS, code=CODE, **numbers))
        state = fresh_state()
        g, d = ((net.params, net.batch_stats) for net in (state.nets["generator"], state.nets["discriminator"]))
        zeros = [jax.tree.map(jnp.zeros_like, params) for params, _ in (g, d)]
        moments_g, moments_d = (zeros[0], zeros[0]), (zeros[1], zeros[1])
        for t in (1, 2, 3):
            state, metrics = step(state, stored(t))
            g, d, moments_g, moments_d, expected = two_passes(g, d, moments_g, moments_d, float(t), stored(t))
            assert state.step == t and metrics.keys() == expected.keys()
            for name, (params, stats) in (("generator", g), ("discriminator", d)):
                net = state.nets[name]
                close(net.params, params, f"step {t} {name} params", 1e-11)
                close(net.batch_stats, stats, f"step {t} {name} batch_stats")
            for name, value in expected.items():
                np.testing.assert_allclose(metrics[name], value, rtol=1e-10, err_msg=f"step {t} {name}")


def test_supervised_step_is_the_generator_on_equation_3():
    with jax.enable_x64(True):
        nets = {"generator": NETS["generator"]}
        step = jax.jit(functools.partial(steps.supervised_step, nets=nets, code=CODE, seed=SEED))
        full = fresh_state()
        before = full.nets["generator"]
        state, metrics = step(TrainState(full.step, {"generator": before}), stored())

        @jax.jit
        def reference(params, batch):
            batch = steps.encode(batch, CODE)

            def loss(params):
                image, stats = apply("generator", params, before.batch_stats, batch["gray"])
                return jnp.mean((image - batch["depth"]) ** 2), stats

            return jax.value_and_grad(loss, has_aux=True)(params)

        (value, stats), grads = reference(before.params, stored())
        zeros = jax.tree.map(jnp.zeros_like, grads)
        params, _ = plain_adam(before.params, grads, (zeros, zeros), 1.0)
        assert state.step == 1 and list(state.nets) == ["generator"]
        close(state.nets["generator"].params, params, "params", 1e-11)
        close(state.nets["generator"].batch_stats, stats, "batch_stats")
        np.testing.assert_allclose(metrics["loss_mse"], value, rtol=1e-10)
        np.testing.assert_allclose(metrics["loss_g"], value, rtol=1e-10)


# ---- the baselines' steps, in the same way ----


class _Noisy(nn.Module):
    """As `_Net` for images, with dropout."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(3, (3, 3), use_bias=False, dtype=jnp.float64)(x)
        x = nn.leaky_relu(nn.BatchNorm(not train, momentum=0.9, dtype=jnp.float64)(x), 0.2)
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return jnp.tanh(nn.Conv(1, (3, 3), dtype=jnp.float64)(x))


class _Logits(nn.Module):
    """Logits of patches (B, 4, 4) of two images, or of people (B, SUBJECTS) in one."""

    channels: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(3, (3, 3), (2, 2), use_bias=False, dtype=jnp.float64)(x)
        x = nn.leaky_relu(nn.BatchNorm(not train, momentum=0.9, dtype=jnp.float64)(x), 0.2)
        if self.channels == 2:
            return nn.Conv(1, (3, 3), dtype=jnp.float64)(x)[..., 0]
        return nn.Dense(SUBJECTS, dtype=jnp.float64)(x.reshape(len(x), -1))


BASELINES = {
    "pix2pix": {"generator": Net(_Noisy(), adam(LR, B1, B2)), "discriminator": Net(_Logits(2), adam(LR, B1, B2))},
    "cui": {"generator": NETS["generator"], "identity": Net(_Logits(1), adam(LR, B1, B2))},
}


def run_net(net, params, stats, x, key=None):
    rngs = {} if key is None else {"dropout": key}
    y, new = net.module.apply({"params": params, "batch_stats": stats}, x, train=True, mutable="batch_stats", rngs=rngs)
    return y, new["batch_stats"]


def norm(tree):
    return jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(tree)))


def plain_pix2pix(nets, g, d, t, batch):
    """Gradients of D's loss and, through the D it gives, of G's; `g` and `d` are (params, stats, moments)."""
    key = jax.random.fold_in(jax.random.key(SEED), t - 1)
    gray, depth = batch["gray"], batch["depth"]

    def judge(params, image):
        return run_net(nets["discriminator"], params, d[1], jnp.concatenate([gray, image], -1))

    def loss_d(params):
        generated = jax.lax.stop_gradient(run_net(nets["generator"], g[0], g[1], gray, key)[0])
        real_logits, stats = judge(params, depth)
        pair = jnp.concatenate([gray, generated], -1)
        generated_logits, stats = run_net(nets["discriminator"], params, stats, pair)
        accuracy = jnp.mean(real_logits > 0), jnp.mean(generated_logits < 0)
        return (bce(real_logits, 1) + bce(generated_logits, 0)) / 2, (stats, accuracy)

    (value_d, (stats_d, accuracy)), grads_d = jax.value_and_grad(loss_d, has_aux=True)(d[0])
    params_d, moments_d = plain_adam(d[0], grads_d, d[2], t)

    def loss_g(params):
        generated, stats = run_net(nets["generator"], params, g[1], gray, key)
        l1, adv = jnp.mean(jnp.abs(generated - depth)), bce(judge(params_d, generated)[0], 1)
        return 50 * l1 + adv, (stats, l1, adv, jnp.mean((generated - depth) ** 2))

    (value_g, (stats_g, l1, adv, mse)), grads_g = jax.value_and_grad(loss_g, has_aux=True)(g[0])
    params_g, moments_g = plain_adam(g[0], grads_g, g[2], t)
    metrics = {"loss_g": value_g, "loss_l1": l1, "loss_mse": mse, "loss_adv": adv, "loss_d": value_d}
    metrics |= {"d_accuracy_real": accuracy[0], "d_accuracy_generated": accuracy[1]}
    metrics |= {"grad_norm_g": norm(grads_g), "grad_norm_d": norm(grads_d)}
    return (params_g, stats_g, moments_g), (params_d, stats_d, moments_d), metrics


def plain_cui(nets, g, i, t, batch):
    """G through the identity net as it is, then the identity net on the maps of the G before; two passes."""

    def entropy(params, image):
        logits, stats = run_net(nets["identity"], params, i[1], image)
        shares = jnp.exp(logits) / jnp.exp(logits).sum(1, keepdims=True)
        right = shares[jnp.arange(len(image)), batch["subject"]]
        return -jnp.mean(jnp.log(right)), (stats, jnp.mean(right == shares.max(1)))

    def loss_g(params):
        generated, stats = run_net(nets["generator"], params, g[1], batch["gray"])
        mse = jnp.mean((generated - batch["depth"]) ** 2)
        return 3 * mse + entropy(i[0], generated)[0], (stats, mse)

    (value_g, (stats_g, mse)), grads_g = jax.value_and_grad(loss_g, has_aux=True)(g[0])
    params_g, moments_g = plain_adam(g[0], grads_g, g[2], t)
    generated = run_net(nets["generator"], g[0], g[1], batch["gray"])[0]
    (value_i, (stats_i, accuracy)), grads_i = jax.value_and_grad(entropy, has_aux=True)(i[0], generated)
    params_i, moments_i = plain_adam(i[0], grads_i, i[2], t)
    metrics = {"loss_g": value_g, "loss_mse": mse, "loss_identity": value_i, "identity_accuracy": accuracy}
    metrics |= {"grad_norm_g": norm(grads_g), "grad_norm_identity": norm(grads_i)}
    return (params_g, stats_g, moments_g), (params_i, stats_i, moments_i), metrics


@pytest.mark.parametrize(
    "name, step, plain, weight",
    [
        ("pix2pix", steps.conditional_adversarial_step, plain_pix2pix, {"l1_weight": 50.0}),
        ("cui", steps.discriminative_step, plain_cui, {"mse_weight": 3.0}),
    ],
)
def test_baseline_steps_are_the_plain_ones(name, step, plain, weight):
    nets = BASELINES[name]
    second = "discriminator" if name == "pix2pix" else "identity"
    with jax.enable_x64(True):
        step = jax.jit(functools.partial(step, nets=nets, code=CODE, seed=SEED, **weight))
        reference = jax.jit(
            lambda a, b, t, batch: plain(nets, a, b, t, steps.encode(batch, CODE) | {"subject": batch["subject"]})
        )
        state = fresh_state(nets)
        two = []
        for net in (state.nets["generator"], state.nets[second]):
            zeros = jax.tree.map(jnp.zeros_like, net.params)
            two.append((net.params, net.batch_stats, (zeros, zeros)))
        for t in (1, 2, 3):
            state, metrics = step(state, stored(t))
            *two, expected = reference(*two, t, stored(t))
            assert state.step == t and metrics.keys() == expected.keys()
            for key, (params, stats, _) in zip(("generator", second), two, strict=True):
                close(state.nets[key].params, params, f"step {t} {key} params", 1e-11)
                close(state.nets[key].batch_stats, stats, f"step {t} {key} batch_stats")
            for key, value in expected.items():
                np.testing.assert_allclose(metrics[key], value, rtol=1e-10, err_msg=f"step {t} {key}")


class Weights(nn.Module):
    """A net whose output, relief and mask, is its weights."""

    @nn.compact
    def __call__(self, x, train):
        return self.param("out", nn.initializers.normal(0.3, jnp.float64), (3, 8, 8, 2))


def test_relief_step_takes_the_losses_of_millimetres():
    """The L1 plainly; the other terms by losses.py, which test_losses.py holds, with masks made here."""
    batch, net = stored(n=3), Net(Weights(), adam(LR, B1, B2))
    behind = np.random.default_rng(5).normal(0, 150, (3, 8, 8)).round()
    distance_mm = batch["distance_mm"].round()
    depth_mm = np.where(batch["depth_mm"] == 0, 0, behind + distance_mm[:, None, None])
    batch |= {"depth_mm": depth_mm.astype(np.uint16), "distance_mm": distance_mm}
    target = np.where(depth_mm == 0, 300, behind.clip(-300, 300))
    inside, near = abs(target) < 250, abs(target) < 100
    assert near.any((1, 2)).all() and 10 < (inside & ~near).sum() < inside.sum() < inside.size - 10
    weights = {"gradient_weight": 0.7, "normals_weight": 0.4, "foreground_weight": 0.3, "far_weight": 0.25}
    with jax.enable_x64(True):
        state = TrainState(jnp.int32(0), {"generator": init_net(net, jax.random.key(1), 8)})
        out = np.array(state.nets["generator"].params["out"])
        code = DepthCode(origin="head")
        step = functools.partial(steps.relief_step, nets={"generator": net}, code=code, seed=SEED, **weights)
        new, found = jax.jit(step)(state, batch)
        relief, l1 = 300 * out[..., 0], 0
        for error, here, w in zip(relief - target, inside, np.where(near, 1, 0.25), strict=True):
            error, mean = error[here], functools.partial(np.average, weights=w[here])
            l1 += (mean(abs(error)) + mean(abs(error - mean(error)))) / 2 / 100 / 3

        @jax.jit
        def others(relief, logits):
            return {
                "loss_gradient": losses.gradient_matching(relief, target, inside, 30.0).mean() / 100,
                "loss_normals": losses.normals(relief, target, inside, 320 / 8, 3.0).mean(),
                "loss_foreground": losses.foreground(logits, (depth_mm > 0) & (behind < 300)).mean(),
            }

        expected = {"loss_relief": l1} | others(relief, out[..., 1])
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)  # the target is float32
    terms = ("loss_relief", 1), *((f"loss_{name.removesuffix('_weight')}", w) for name, w in weights.items())
    total = sum(w * float(expected[name]) for name, w in terms if name != "loss_far")
    np.testing.assert_allclose(found["loss_g"], total, rtol=1e-6)
    assert new.step == 1 and not np.array_equal(new.nets["generator"].params["out"], out)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("cui", "pix2pix"))) for name in TOOL["NAMES"]]
)
def test_golden(name):
    expected = json.loads((GOLDEN / f"{name}.json").read_text())
    for k, (got, golden) in enumerate(zip(TOOL["measure"](name), expected, strict=True), 1):
        assert got == pytest.approx(golden, rel=1e-5), (
            f"Step {k} of {name} gives other numbers than before. If that is meant, run `python tools/golden.py`, "
            "read the diff, and say in the commit why they changed; if not, something broke."
        )
