"""methods.py and state.py: nets, steps and optimisers as a config says. The steps themselves: test_steps.py."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facedepth_jax import config as configs
from facedepth_jax import methods
from facedepth_jax.depth_code import DepthCode
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.state import TrainState, init_state

SIZE = 32


def values_of(method, **changes):
    values = configs.base(method)
    values.width = 2
    values.update_from_flattened_dict(changes)
    return values


def batch(seed, n=4):
    rng = np.random.default_rng(seed)
    shape = (n, SIZE, SIZE)
    return {
        "gray": rng.integers(0, 256, shape, np.uint8),
        "depth_mm": rng.integers(450, 2700, shape).astype(np.uint16),
        "distance_mm": rng.uniform(600, 1300, n).astype(np.float32),
        "subject": np.arange(n, dtype=np.int32) % 2,
    }


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_method_has_a_net_to_export_and_says_its_loss_values(name):
    """And no other net's: a value of another method in a config file is a misspelling."""
    values = values_of(name)
    nets = methods.build(values, subjects=3)
    assert methods.METHODS[name].net in nets
    assert values.loss.to_dict() == methods.METHODS[name].loss
    others = {key for method in methods.METHODS.values() for key in method.loss} - set(values.loss)
    for key in others:
        with pytest.raises(KeyError):
            values.loss[key] = 1.0


def test_a_method_that_is_not_there():
    with pytest.raises(
        FaceDepthError, match="There is no method 'gan': take one of cgan, ae, pix2pix, cui, relief, verifier"
    ):
        configs.base("gan")


def rates(**changes):
    """Read the learning rate of each step: Adam's update for a gradient that is always 1."""
    values = values_of("ae", **{"train.learning_rate": 0.01, "train.steps": 12} | changes)
    optimizer = methods.build(values, 1)["generator"].optimizer
    params = {"x": jnp.zeros(())}
    state, found = optimizer.init(params), []
    for _ in range(values.train.steps):
        updates, state = optimizer.update({"x": jnp.ones(())}, state, params)
        found.append(-float(updates["x"]))
    return found


def test_the_rate_is_constant_as_in_the_paper():
    np.testing.assert_allclose(rates(), [0.01] * 12, rtol=1e-5)


def test_the_rate_warms_up():
    np.testing.assert_allclose(rates(**{"train.warmup_steps": 4}), [0, 0.0025, 0.005, 0.0075] + [0.01] * 8, rtol=1e-5)


def test_the_rate_falls_by_a_cosine_to_a_hundredth():
    found = rates(**{"train.schedule": "cosine", "train.warmup_steps": 2})
    fall = [0.0001 + 0.0099 * (1 + math.cos(math.pi * k / 10)) / 2 for k in range(10)]
    np.testing.assert_allclose(found, [0, 0.005, *fall], rtol=1e-5)
    found = rates(**{"train.schedule": "cosine"})
    assert found[0] == pytest.approx(0.01, rel=1e-5) and found[6] == pytest.approx(0.00505, rel=1e-5)


def test_a_gradient_above_the_norm_is_scaled_down_as_a_whole():
    plain, clipped = (
        methods.build(values_of("ae", **{"train.clip_norm": norm}), 1)["generator"].optimizer for norm in (0.0, 2.0)
    )
    rng = np.random.default_rng(0)
    params = {"a": jnp.zeros((3, 2)), "b": jnp.zeros(4)}
    states = plain.init(params), clipped.init(params)
    for size in (3.0, 0.01, 50.0, 0.5):  # not once: Adam's first step is the same for any length
        gradients = jax.tree.map(lambda x: np.float32(size * rng.normal(size=x.shape)), params)  # noqa: B023
        norm = math.sqrt(sum((x.astype(np.float64) ** 2).sum() for x in jax.tree.leaves(gradients)))
        assert (norm > 2) == (size > 1)
        by_hand = jax.tree.map(lambda x: x * np.float32(min(1, 2 / norm)), gradients)  # noqa: B023
        found, states = zip(
            plain.update(by_hand, states[0], params), clipped.update(gradients, states[1], params), strict=True
        )
        for name in params:
            np.testing.assert_allclose(found[1][name], found[0][name], rtol=1e-5)


def test_averaged_weights_equal_numpys():
    """Batch statistics too. The decay 0.3 holds from the third step on, the ramp before."""
    decay = 0.3
    values = values_of("ae", **{"train.average_decay": decay})
    nets = methods.build(values, 1)
    step = jax.jit(methods.make_step(values, nets, DepthCode()))
    plain = jax.jit(methods.make_step(values_of("ae"), nets, DepthCode()))

    def weights(net):
        return jax.device_get({"params": net.params, "batch_stats": net.batch_stats})

    state = other = init_state(nets, 3, SIZE)
    average = weights(state.nets["generator"])
    state = TrainState(state.step, state.nets, average)
    for k in (1, 2, 3, 4):
        state, metrics = step(state, batch(k))
        other, expected = plain(other, batch(k))
        left = min(decay, (1 + k) / (10 + k))
        average = jax.tree.map(lambda a, new: left * a + (1 - left) * new, average, weights(other.nets["generator"]))  # noqa: B023
        for a, b in zip(jax.tree.leaves(state.average), jax.tree.leaves(average), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        assert metrics["loss_g"] == pytest.approx(float(expected["loss_g"]), rel=1e-5)  # training does not see them
    assert not other.average


def test_the_step_gets_the_configs_values(monkeypatch):
    """Seed and loss values, closed over."""
    seen = []

    def step(state, batch, **options):
        seen.append(options)
        return state, {}

    row = methods.METHODS["cgan"]
    monkeypatch.setitem(methods.METHODS, "cgan", methods.Method(row.modules, step, row.loss))
    values = values_of("cgan", **{"loss.lam": 7.0, "seed": 11})
    nets = methods.build(values, 1)
    methods.make_step(values, nets, DepthCode(step_mm=4.0))("state", "batch")
    assert seen == [
        {"nets": nets, "code": DepthCode(step_mm=4.0), "seed": 11, "lam": 7.0, "discriminator_pixels": "learnt"}
    ]
