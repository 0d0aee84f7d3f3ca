"""models/siamese.py and its step: the net against a slow NumPy one, its preprocessing against OpenCV."""

import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facedepth_jax import steps
from facedepth_jax.depth_code import DepthCode
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.models import siamese
from facedepth_jax.state import Net, NetState, TrainState, adam, init_net

equalize = jax.jit(siamese.equalize)


def size_of(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_papers_net_has_the_parameters_it_must_have():
    net = Net(siamese.Siamese(), adam(1e-3, 0.9, 0.999))
    params = jax.eval_shape(lambda: init_net(net, jax.random.key(0), 96)).params
    convolutions = 9 * (1 * 64 + 64 * 128 + 128 * 256 + 256 * 256 + 256 * 256)
    norms = 2 * (64 + 128 + 256 + 256 + 256)
    dense = (512 * 128 + 128) + (128 * 32 + 32) + (32 * 1 + 1)
    assert size_of(params) == convolutions + norms + dense == 1_620_609


@pytest.mark.parametrize("size", [64, 80, 112, 128])
def test_other_sizes_are_one_sentence(size):
    with pytest.raises(FaceDepthError, match=f"96x96 px, not {size}x{size}"):
        init_net(Net(siamese.Siamese(2), adam(1e-3, 0.9, 0.999)), jax.random.key(0), size)


def numpy_features(variables, image):
    """The branch, one image (96, 96), slowly; running statistics."""
    x, params, stats = image[..., None], variables["params"]["branch"], variables["batch_stats"]["branch"]
    for i, size in enumerate([47, 23, 11, 5, 2], 1):
        kernel = np.asarray(params[f"conv{i}"]["kernel"], np.float64)
        out = np.zeros((size, size, kernel.shape[-1]))
        for r in range(size):
            for c in range(size):
                out[r, c] = np.tensordot(x[2 * r : 2 * r + 3, 2 * c : 2 * c + 3], kernel, 3)
        norm, seen = params[f"norm{i}"]["norm"], stats[f"norm{i}"]["norm"]
        out = (out - seen["mean"]) / np.sqrt(np.asarray(seen["var"]) + 1e-5) * norm["scale"] + norm["bias"]
        x = np.maximum(out, 0)
    return (x[0, 0] + x[0, 1] + x[1, 0] + x[1, 1]) / 4


def numpy_logit(variables, a, b):
    x, params = np.concatenate([numpy_features(variables, a), numpy_features(variables, b)]), variables["params"]
    for i in range(3):
        x = x @ np.asarray(params[f"dense_{i}"]["kernel"]) + params[f"dense_{i}"]["bias"]
        x = np.maximum(x, 0) if i < 2 else x
    return x[0]


def variables_of(module, seed=0):
    """Random weights and statistics, none of them at its start value."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 96, 96, 2)), train=False))

    def fill(path, leaf):
        low, high = (0.5, 1.5) if path[-1].key in ("scale", "var") else (-0.3, 0.3)
        return rng.uniform(low, high, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def test_the_net_is_the_slow_one():
    module = siamese.Siamese(width=2)
    variables = variables_of(module)
    pairs = np.random.default_rng(1).normal(size=(3, 96, 96, 2)).astype(np.float32)
    apply = jax.jit(functools.partial(module.apply, variables, train=False))
    logits = apply(pairs)
    expected = [numpy_logit(variables, pair[..., 0], pair[..., 1]) for pair in pairs]
    assert np.ptp(expected) > 0.01
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    swapped = apply(pairs[..., ::-1])
    assert np.abs(np.asarray(swapped) - logits).min() > 1e-3  # a concatenation is not symmetric


def test_the_two_halves_are_the_whole():
    module = siamese.Siamese(width=2)
    variables = variables_of(module)
    pairs = np.random.default_rng(2).normal(size=(4, 96, 96, 2)).astype(np.float32)

    @jax.jit
    def both(pairs):
        a, b = (module.apply(variables, pairs[..., i : i + 1], method="features") for i in (0, 1))
        return module.apply(variables, a, b, method="compare"), module.apply(variables, pairs, train=False)

    halves, whole = both(pairs)
    np.testing.assert_allclose(halves, whole, rtol=1e-5, atol=1e-5)


def images():
    """8-bit images of every kind: noise of many ranges, few levels, faces on "no depth", one level, one odd pixel."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        low, high = np.sort(rng.integers(0, 255, 2))
        yield np.clip(rng.normal(rng.uniform(low, high + 1), rng.uniform(1, 60), (96, 96)), low, high + 1)
    for count in [2, 2, 2, 3, 5, 17, 256] * 5:
        levels = rng.choice(256, count, replace=False)
        yield levels[rng.choice(count, (96, 96), p=rng.dirichlet(np.full(count, 0.3)))]
    for level in (0, 1, 194, 255):
        yield np.full((96, 96), level)
        yield np.where(np.arange(9216).reshape(96, 96) == 5, 255 - level, level)
    y, x = np.mgrid[:96, :96]
    for radius in (10, 30, 45):
        yield np.where(np.hypot(x - 48, y - 48) < radius, 30 + np.hypot(x - 48, y - 48) / 3, 194)


def test_equalisation_is_opencvs_to_the_bit():
    stack = np.stack([image.astype(np.uint8) for image in images()])
    expected = np.stack([cv2.equalizeHist(image) for image in stack])
    result = np.asarray(equalize(stack))
    np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(equalize(stack.astype(np.float32)), expected)  # as levels come
    assert len(np.unique(expected)) == 256


def test_equalisation_of_another_size():
    """The scale is 255 over a count that depends on the size."""
    stack = np.random.default_rng(3).binomial(255, 0.4, (5, 31, 31)).astype(np.uint8)
    np.testing.assert_array_equal(equalize(stack), [cv2.equalizeHist(image) for image in stack])


def test_normalized_maps_have_no_mean_and_unit_deviation():
    stack = np.stack([image.astype(np.uint8) for image in images()])
    seen = np.asarray(jax.jit(siamese.normalize)(stack))
    assert seen.shape == (*stack.shape, 1) and seen.dtype == np.float32
    flat = np.array([np.ptp(image) == 0 for image in stack])
    assert 4 <= flat.sum() < len(flat) / 2
    assert (seen[flat] == 0).all()
    np.testing.assert_allclose(seen[~flat].mean((1, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(seen[~flat].std((1, 2, 3)), 1, atol=1e-4)


def test_augmentation_turns_by_up_to_five_degrees_and_flips_half():
    """Where two marks land says how an image was turned and whether it was flipped."""
    count = 400
    stack = np.zeros((count, 96, 96), np.float32)
    stack[:, 44:52, 84:92] = 100  # right
    stack[:, 4:12, 44:52] = 200  # up
    turned = np.asarray(jax.jit(siamese.augment)(stack, jax.random.key(0)))
    assert set(np.unique(turned)) == {0, 100, 200}  # no level that was not there
    y, x = np.mgrid[:96, :96] - 47.5

    def centre(level):
        mask = turned == level
        return (mask * x).sum((1, 2)) / mask.sum((1, 2)), (mask * y).sum((1, 2)) / mask.sum((1, 2))

    (right_x, right_y), (up_x, up_y) = centre(100), centre(200)
    flipped = right_x < 0
    assert 0.4 < flipped.mean() < 0.6
    angle = np.rad2deg(np.arctan2(up_x, -up_y))
    other = np.rad2deg(np.arctan2(right_y, np.abs(right_x))) * np.where(flipped, -1, 1)
    np.testing.assert_allclose(angle, other, atol=0.6)  # a turn, not a shear
    assert np.abs(angle).max() < 5.4 and angle.max() > 4.5 and angle.min() < -4.5 and np.abs(angle.mean()) < 0.5
    assert len(np.unique(angle.round(1))) > 50  # every image its own draw


def test_augmentation_takes_the_edge_where_nothing_is():
    stack = np.full((8, 96, 96), 7, np.uint8)
    turned = jax.jit(siamese.augment)(stack, jax.random.key(1))
    assert turned.dtype == np.uint8
    np.testing.assert_array_equal(turned, stack)


NET = Net(siamese.Siamese(width=2), adam(1e-3, 0.9, 0.999))
run_step = jax.jit(functools.partial(steps.pairwise_step, nets={"verifier": NET}, code=DepthCode(), seed=7))


def start(step=0):
    """A state that has done `step` steps, and a batch of four pairs."""
    variables = variables_of(NET.module)
    verifier = NetState(variables["params"], variables["batch_stats"], NET.optimizer.init(variables["params"]))
    rng = np.random.default_rng(4)
    coarse = rng.uniform(400, 2700, (4, 2, 8, 8)).repeat(12, 2).repeat(12, 3)
    depth_mm = np.where(rng.random((4, 2, 96, 96)) < 0.05, 0, coarse).astype(np.uint16)
    distance_mm = np.full((4, 2), 1000, np.float32)  # which does not matter to the paper's levels
    batch = {"depth_mm": depth_mm, "distance_mm": distance_mm, "same": np.array([0, 1, 0, 1], np.int32)}
    return TrainState(jnp.int32(step), {"verifier": verifier}), batch


def test_the_step_is_the_plain_one():
    state, batch = start()
    v = state.nets["verifier"]
    maps = np.clip(np.round((batch["depth_mm"].astype(float) - 500) / 8), 0, 255)
    maps = np.where(batch["depth_mm"] > 0, maps, 194)
    key = jax.random.fold_in(jax.random.key(7), 0)
    seen = jax.jit(lambda maps: siamese.normalize(siamese.augment(maps, key)))(maps.reshape(8, 96, 96))
    pair = np.concatenate([seen[0::2], seen[1::2]], -1)  # each map with its partner

    def loss_of(params):
        variables = {"params": params, "batch_stats": v.batch_stats}
        logits, new = NET.module.apply(variables, pair, train=True, mutable=["batch_stats"])
        chance = 1 / (1 + jnp.exp(-logits))
        return -jnp.log(jnp.where(batch["same"] == 1, chance, 1 - chance)).mean(), (chance, new["batch_stats"])

    (loss, (chance, stats)), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(v.params)
    new, metrics = run_step(state, batch)
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-4)
    assert float(metrics["accuracy"]) == np.mean((np.asarray(chance) > 0.5) == batch["same"])
    moved = jax.tree.map(lambda old, grad: old - 1e-3 * np.sign(grad), v.params, gradient)  # Adam's first update
    compared = 0
    for got, want, grad in zip(*map(jax.tree.leaves, (new.nets["verifier"].params, moved, gradient)), strict=True):
        clear = np.abs(grad) > 1e-4
        compared += clear.sum()
        np.testing.assert_allclose(got[clear], want[clear], atol=2e-6)
    assert compared > 500
    for got, want in zip(*map(jax.tree.leaves, (new.nets["verifier"].batch_stats, stats)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    assert new.step == 1


def test_every_step_draws_its_own_augmentation():
    losses = [float(run_step(*start(step))[1]["loss"]) for step in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]
