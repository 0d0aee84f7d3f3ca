"""losses.py against the paper's equations, written with probabilities in plain numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facedepth_jax import losses

B, S = 5, 8


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (2, B, S, S, 1)).astype(np.float32)


@pytest.fixture
def logits():
    return np.random.default_rng(1).normal(0, 3, (2, B)).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def test_mse_is_equation_3_an_example(images):
    image, target = images
    expected = [sum((p - t) ** 2 for p, t in zip(image[i].flat, target[i].flat, strict=True)) / S**2 for i in range(B)]
    np.testing.assert_allclose(losses.mse(image, target), expected, rtol=1e-5)


def test_adversarial_is_equation_2_an_example(logits):
    p = sigmoid(logits[0])
    np.testing.assert_allclose(losses.adversarial(logits[0], 1.0), -np.log(p), rtol=1e-5)
    np.testing.assert_allclose(losses.adversarial(logits[0], 0.0), -np.log(1 - p), rtol=1e-5)


def test_discriminator_learns_that_1_is_real(logits):
    real, generated = logits
    expected = -np.log(sigmoid(real)) - np.log(1 - sigmoid(generated))
    np.testing.assert_allclose(losses.discriminator(real, generated), expected, rtol=1e-5)
    right, wrong = (losses.discriminator(jnp.array([x]), jnp.array([-x])) for x in (9.0, -9.0))
    assert right < 0.001 and wrong > 17


def test_generator_is_equation_5(images, logits):
    image, target = images
    expected = 30 * np.mean((image - target) ** 2, (1, 2, 3)) - np.log(sigmoid(logits[0]))
    np.testing.assert_allclose(losses.generator(image, target, logits[0], 30.0), expected, rtol=1e-5)
    fooled, caught = (losses.generator(image, image, jnp.full(B, x), 30.0) for x in (9.0, -9.0))
    assert (fooled < 0.001).all() and (caught > 8).all()


def test_huge_logits_stay_finite():
    x = jnp.array([-1e30, -1e4, -100.0, 0.0, 100.0, 1e4, 1e30])
    for label in (0.0, 1.0):
        value, slope = jax.vmap(jax.value_and_grad(lambda x, label=label: losses.adversarial(x, label)))(x)
        assert np.isfinite(value).all() and np.isfinite(slope).all()
        np.testing.assert_allclose(value, np.maximum(x * (1 - 2 * label), 0) + np.log(2) * (x == 0), rtol=1e-6)


def test_patches_count_by_their_mean():
    patches = jnp.array(np.random.default_rng(2).normal(size=(B, 3, 3)))
    for label in (0.0, 1.0):
        expected = [np.mean(losses.adversarial(row.reshape(-1), label)) for row in patches]
        np.testing.assert_allclose(losses.adversarial(patches, label), expected, rtol=1e-6)


def test_pix2pix(images, logits):
    image, target = images
    real, generated = logits
    error = np.abs(np.asarray(image) - np.asarray(target)).mean((1, 2, 3))
    np.testing.assert_allclose(losses.l1(image, target), error, rtol=1e-5)
    expected = 100 * error - np.log(sigmoid(real))
    np.testing.assert_allclose(losses.conditional_generator(image, target, real, 100.0), expected, rtol=1e-5)
    expected = (-np.log(sigmoid(real)) - np.log(1 - sigmoid(generated))) / 2
    np.testing.assert_allclose(losses.conditional_discriminator(real, generated), expected, rtol=1e-5)


def test_identity_is_the_cross_entropy_of_a_softmax():
    rng = np.random.default_rng(3)
    logits, subject = rng.normal(size=(B, 5)), rng.integers(0, 5, B)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    got = losses.identity(jnp.array(logits), subject)
    np.testing.assert_allclose(
        got, [-np.log(share[who]) for share, who in zip(shares, subject, strict=True)], rtol=1e-5
    )
    assert np.isfinite(losses.identity(jnp.full((1, 3), -1e30), np.array([1]))).all()


# --- relief ----------------------------------------------------------------------------------------------------------


def maps():
    rng = np.random.default_rng(2)
    image, target = rng.normal(0, 0.3, (2, B, S, S)).astype(np.float32)
    counted = rng.random((B, S, S)) < 0.7
    counted[1] = False
    image[~counted] = 1e9  # must not matter
    return image, target, counted


def test_shift_aware_l1_forgives_half_of_a_shift():
    image, target, counted = maps()
    weight = counted * np.where(np.random.default_rng(3).random(counted.shape) < 0.5, 1.0, 0.2)
    want = []
    for p, t, w in zip(image.astype(float), target, weight, strict=True):
        error, w = (p - t)[w > 0], w[w > 0]
        mean = functools.partial(np.average, weights=w)
        want.append((mean(abs(error)) + mean(abs(error - mean(error)))) / 2 if w.any() else 0)
    np.testing.assert_allclose(losses.shift_aware_l1(image, target, weight), want, rtol=1e-5)
    shifted = losses.shift_aware_l1(target + 2.0, target, weight)
    np.testing.assert_allclose(shifted, [1, 0, 1, 1, 1], rtol=1e-5)


def test_gradient_matching_pair_by_pair():
    image, target, counted = maps()
    error, want = image.astype(float) - target, np.zeros(B)
    for i in range(B):
        for step in (1, 2, 4):
            for down, right in ((step, 0), (0, step)):
                changes = [
                    abs(error[i, y + down, x + right] - error[i, y, x])
                    for y in range(S - down)
                    for x in range(S - right)
                    if counted[i, y, x] and counted[i, y + down, x + right]
                ]
                want[i] += np.mean(np.minimum(changes, 0.25)) / 6 if changes else 0
    got = losses.gradient_matching(image, target, counted, 0.25)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(losses.gradient_matching(target + 3.0, target, counted, 0.25), 0, atol=1e-6)


def test_normals_pixel_by_pixel():
    image, target, counted = maps()
    image, counted = np.where(counted, image, 0.5), np.random.default_rng(4).random(counted.shape) < 0.95
    counted[1] = False
    image[~counted] = 1e9  # must not matter
    pitch, steepest, want = 0.1, 3.0, np.zeros(B)

    def normal(depth, y, x):
        down = (0, 2 * pitch, depth[y + 1, x] - depth[y - 1, x])
        right = (2 * pitch, 0, depth[y, x + 1] - depth[y, x - 1])
        n = np.cross(np.float64(down), np.float64(right))
        return n / np.linalg.norm(n), max(abs(down[2]), abs(right[2])) / (2 * pitch)

    for i in range(B):
        errors = []
        for y in range(1, S - 1):
            for x in range(1, S - 1):
                (a, _), (b, slope) = normal(image[i], y, x), normal(target[i], y, x)
                if all(counted[i, y + u, x + v] for u, v in ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))):
                    errors += [1 - a @ b] if slope < steepest else []
        assert 9 < len(errors) < 30 or i == 1
        want[i] = np.mean(errors) if errors else 0
    np.testing.assert_allclose(losses.normals(image, target, counted, pitch, steepest), want, rtol=1e-4)
    np.testing.assert_allclose(losses.normals(target + 3.0, target, counted, pitch, steepest), 0, atol=1e-5)


def test_foreground_is_the_mean_cross_entropy_over_all_pixels():
    _, target, inside = maps()
    p = sigmoid(target)
    want = -np.where(inside, np.log(p), np.log(1 - p)).mean((1, 2))
    np.testing.assert_allclose(losses.foreground(target, inside), want, rtol=1e-5)
