"""The light of real surroundings against sums over many directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from facedepth_jax.data.synthetic import accessories, light, picture, scene

COUNT = 3000


def directions(seed=0):
    d = np.random.default_rng(seed).normal(size=(COUNT, 3))
    return d / np.linalg.norm(d, axis=1, keepdims=True)


def test_harmonics_are_scipys():
    d = directions()[:50]
    theta, phi = np.arccos(d[:, 2]), np.arctan2(d[:, 1], d[:, 0])
    expected = []
    for degree in range(4):
        for order in range(-degree, degree + 1):
            y = scipy.special.sph_harm_y(degree, abs(order), theta, phi)
            part = y.real if order >= 0 else y.imag
            expected.append(part * (1 if order == 0 else np.sqrt(2) * (-1) ** order))
    np.testing.assert_allclose(light.basis(d), np.stack(expected, -1), atol=2e-5)


def test_environments_light_is_that_of_their_panoramas():
    lights, panoramas = light.environments()
    assert lights.shape == (18, 16) and panoramas.shape == (18, 256, 512)
    np.testing.assert_allclose(lights[:, 0] * 0.282095, 1, atol=1e-5)
    d = directions()
    column = ((np.arctan2(d[:, 0], d[:, 2]) / (2 * np.pi) + 0.5) * 512).astype(int) % 512
    row = np.minimum(((0.5 + np.arcsin(d[:, 1]) / np.pi) * 256).astype(int), 255)
    likeness = []
    for coefficients, panorama in zip(lights, panoramas, strict=True):
        seen = light.WHITE * (panorama[row, column] / 255.0) ** 2.2
        # As it is, and of a panorama seen in a mirror or turned.
        ways = [d, d * [-1, 1, 1], d * [1, -1, 1], d[:, [2, 1, 0]]]
        likeness.append([np.corrcoef(light.basis(way) @ coefficients, seen)[0, 1] for way in ways])
    likeness = np.mean(likeness, 0)  # lamps and suns are cut at white
    assert likeness[0] > 0.5 and likeness[0] > likeness[1:].max() + 0.1


def test_turned_light_comes_from_the_turned_direction():
    d, turn = directions()[:20], accessories.turn_matrix((20, 130, -15))
    coefficients = light.environments()[0][3]
    there = light.basis(d) @ coefficients
    np.testing.assert_allclose(light.basis(d @ turn.T) @ light.turned(coefficients, turn), there, atol=1e-6)


def test_vertices_get_what_they_see_of_the_surroundings():
    """Surroundings alone: the mean over directions of radiance, visibility and cosine, times 4."""
    s = scene.frame_scene(3, 2, 4, 1, 3)._replace(lights=np.zeros((2, 4), np.float32))
    turned = np.asarray(scene.rotation_matrix(s.angles_deg), np.float64)
    some = np.arange(0, 6000, 400)
    normals = directions(1)[: len(picture._sky())].astype(np.float32)
    normals = np.resize(normals, (len(picture._sky()), 3))
    with jax.numpy_rank_promotion("allow"):
        found, gloss = picture._vertex_light(s, jnp.asarray(normals), jnp.asarray(normals))
    d = directions()
    y = light.basis(d)
    arriving = (y @ s.surroundings) * (y @ picture._sky()[some].T).T
    expected = (arriving * np.maximum((normals[some] @ turned) @ d.T, 0)).mean(1) * 4
    assert np.isfinite(gloss).all()
    np.testing.assert_allclose(found[some], np.maximum(expected, 0.02), atol=0.08 * float(s.ambient) * 2)
    assert np.corrcoef(found[some], expected)[0, 1] > 0.98


@pytest.mark.parametrize("zoom", [0.2, 1.0])
def test_backdrop_looks_where_the_camera_does(zoom):
    turn = accessories.turn_matrix((5, 200, 0))
    seen = light.backdrop(2, tuple(turn.ravel().tolist()), (0.1, -0.05), zoom, 0.0)
    row, column = 60, 200
    ray = (np.array([column, row]) / (light.BACKDROP_PX - 1) * 2 - 1) * light.BACKDROP_REACH / zoom + [0.1, -0.05]
    d = turn.T @ [*ray, 1.0]
    d /= np.linalg.norm(d)
    panorama = light.WHITE * (light.environments()[1][2] / 255.0) ** 2.2
    x = int((np.arctan2(d[0], d[2]) / (2 * np.pi) + 0.5) * 512)
    y = int((0.5 + np.arcsin(d[1]) / np.pi) * 256)
    around = panorama[y - 1 : y + 2, x - 1 : x + 2]
    assert around.min() - 1e-3 <= seen[row, column] <= around.max() + 1e-3
