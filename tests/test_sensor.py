"""The sensors' noise against the formulas of the literature, computed by hand or in plain numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facedepth_jax.data.synthetic import sensor

SIZE = (160, 160)
SENSORS = ("kinect_v1", "kinect_v2")


@functools.cache
def kinect(name):
    draw, measure = sensor.KINECTS[name]
    return lambda key, depth_mm, *rest: measure(draw(key, depth_mm.shape), depth_mm, *rest)


@pytest.fixture(scope="module", autouse=True)
def ranks():
    """The pictures' code broadcasts as NumPy does, which the tests of training forbid."""
    with jax.numpy_rank_promotion("allow"):
        yield


def capture(name, depth_mm, degrees=0.0, reflectance=0.5, seed=0):
    depth_mm = np.broadcast_to(np.float32(depth_mm), SIZE)
    cos = np.broadcast_to(np.float32(np.cos(np.deg2rad(degrees))), SIZE)
    reflectance = np.broadcast_to(np.float32(reflectance), SIZE)
    out = jax.jit(kinect(name))(jax.random.key(seed), depth_mm, cos, reflectance)
    assert out.dtype == jnp.uint16 and out.shape == SIZE
    return np.asarray(out)


def step(near_mm=800.0, far_mm=1500.0, column=80):
    return np.where(np.arange(SIZE[1]) < column, far_mm, near_mm) * np.ones(SIZE)


@pytest.mark.parametrize("z_mm, degrees", [(770, 0), (770, 40), (1000, 70), (2500, 0), (4000, 60)])
def test_v2_noise_is_that_of_the_paper(z_mm, degrees):
    z, a = z_mm / 1000, np.deg2rad(degrees)
    sigma = 1.5 - 0.5 * z + 0.3 * z**2 + 0.1 * z**1.5 * a**2 / (np.pi / 2 - a) ** 2
    if (z_mm, degrees) == (770, 0):
        assert sigma == pytest.approx(1.29, abs=0.005)
    measured = capture("kinect_v2", z_mm, degrees).astype(float)
    assert (measured > 0).all()
    assert measured.mean() == pytest.approx(z_mm, abs=5 * sigma / 160)
    rounding = 1 / 12
    assert np.sqrt(measured.var() - rounding) == pytest.approx(sigma, rel=0.02)
    noise = measured - z_mm
    assert abs((noise[:, 1:] * noise[:, :-1]).mean()) < 0.05 * sigma**2  # white


def test_v2_noise_stays_finite_at_grazing_angles():
    a = np.deg2rad(85)
    at_85 = 1.5 - 0.5 + 0.3 + 0.1 * a**2 / (np.pi / 2 - a) ** 2
    np.testing.assert_allclose(sensor.v2_axial_sigma_mm(1000.0, np.array([0.0, 0.02])), at_85, rtol=1e-4)


def test_v1_depth_comes_in_steps_of_an_eighth_of_a_pixel():
    measured = np.unique(capture("kinect_v1", 870.0))
    disparity = 575.816 * 75 / measured.astype(float)
    # Whole millimetres leave a quarter of a step of play.
    np.testing.assert_allclose(disparity * 8, np.round(disparity * 8), atol=0.5 / 2.19 + 0.02)
    exact = 575.816 * 75 / (np.arange(380, 420) / 8)
    spacing = -np.diff(exact)[np.abs(exact[:-1] - 870).argmin()]
    assert spacing == pytest.approx(2.19, abs=0.01)
    assert set(measured) <= set(np.round(exact).astype(int))
    assert len(measured) > 3


def test_v1_noise_is_that_of_the_paper_and_correlated():
    # Rounding to steps adds its own variance.
    noise = np.concatenate([capture("kinect_v1", 1200.0, seed=s).astype(float) - 1200.0 for s in range(6)])
    step_mm = 1200**2 / (575.816 * 75) / 8
    sigma = 1.2 + 1.9 * (1.2 - 0.4) ** 2
    assert noise.std() == pytest.approx(np.sqrt(sigma**2 + step_mm**2 / 12), rel=0.06)
    noise -= noise.mean()

    def correlation(lag):
        return (noise[:, lag:] * noise[:, :-lag]).mean() / noise.var()

    assert correlation(1) > 0.6
    assert 0.2 < correlation(3) < 0.7
    assert abs(correlation(12)) < 0.1


def test_shadow_is_left_of_the_near_surface_and_as_wide_as_the_disparities_differ():
    for focal, baseline, near, far in ((575.816, 75.0, 800.0, 1500.0), (400.0, 50.0, 600.0, 2000.0)):
        shadow = np.asarray(sensor.shadow(jnp.float32(step(near, far, 80)), focal, baseline))
        width = focal * baseline * (1 / near - 1 / far)
        columns = np.flatnonzero(shadow[0])
        assert (shadow == shadow[0]).all()
        assert columns.max() == 79  # up to the edge
        assert len(columns) == int(width)  # the pixel at 80 is the first near one: 80 - k is dark while k < width
    assert not sensor.shadow(jnp.float32(step(1500.0, 800.0)), 575.816, 75.0).any()  # nearer on the left
    assert not sensor.shadow(jnp.full(SIZE, 900.0), 575.816, 75.0).any()


def test_registered_gray_is_black_where_the_colour_camera_saw_nothing():
    """Against points drawn one by one into the colour camera's columns: the nearest of a row's points is seen."""
    rng = np.random.default_rng(0)
    depth = np.where(rng.random((6, 40)) < 0.1, 0, 1500)
    depth[:, 15:25] = 800
    depth[2, 18] = 0
    gray = rng.integers(1, 256, depth.shape).astype(np.uint8)
    for name, focal in (("kinect_v2", 365.456), ("kinect_v1", 575.816)):
        baseline = sensor.COLOUR_MM[name]
        column = np.arange(40) - focal * baseline / np.maximum(depth, 1)
        # Hidden: a nearer point that lies farther towards the colour camera comes out beyond it.
        hidden = np.array([
            [depth[y, x] > 0 and any(depth[y, n] > 0 and (n - x) * baseline > 0 and
             (column[y, n] - column[y, x]) * baseline < 0 for n in range(40)) for x in range(40)] for y in range(6)
        ])  # fmt: skip
        assert hidden[:, 25:].any() == (baseline < 0) and hidden[:, :15].any() == (baseline > 0)
        for masked in (0, 1):
            args = depth.astype(np.uint16), focal, baseline, np.array([2, -1]), masked
            found = jax.jit(sensor.registered, static_argnums=3)(gray, *args)
            black = hidden | (masked & (depth == 0)).astype(bool)
            moved = gray[np.clip(np.arange(6) + 1, 0, 5)][:, np.clip(np.arange(40) - 2, 0, 39)]
            np.testing.assert_array_equal(found, np.where(black, 0, moved))


def test_v1_sees_nothing_in_the_shadow_and_v2_has_none():
    width = int(575.816 * 75 * (1 / 800 - 1 / 1500))
    inside = np.s_[:, 80 - width + 5 : 80 - 5]  # away from jagged edges
    assert (capture("kinect_v1", step())[inside] == 0).all()
    assert (capture("kinect_v2", step())[inside] > 0).all()


def test_v2_edges_are_displaced_mixed_and_removed():
    measured = np.concatenate([capture("kinect_v2", step(), seed=s) for s in range(8)]).astype(float)
    near, far, none = np.abs(measured - 800) < 20, np.abs(measured - 1500) < 20, measured == 0
    between = ~near & ~far & ~none
    assert between[:, 78:82].mean() > 0.01 and none[:, 78:82].mean() > 0.05
    assert near[:, :80].any() and far[:, 80:].any()
    away = np.r_[0:74, 86:160]
    assert not between[:, away].any() and not none[:, away].any()
    assert not near[:, :74].any() and not far[:, 86:].any()
    # 1.6 mm at 800 mm are 0.73 px. Rounded, a normal draw is 1 or more with probability 0.247: then the near pixel
    # at the edge takes the far surface. Half of the pixels at an edge are mixed or removed after that: half of
    # those that took it (0.124 stay), and of the others but for the 14 in 100 with all neighbours on their own side
    # (0.428 stay).
    near_edge, far_edge = near[:, 80].sum(), far[:, 80].sum()
    assert far_edge / (near_edge + far_edge) == pytest.approx(0.124 / (0.124 + 0.428), abs=0.03)


@pytest.mark.parametrize("name", SENSORS)
def test_holes_on_dark_and_grazing_surfaces_only(name):
    assert (capture(name, 800.0, 0, 0.5) > 0).all()
    assert (capture(name, 800.0, 70, 0.13) > 0).all()
    shares = [(capture(name, 800.0, 0, reflectance) == 0).mean() for reflectance in (0.1, 0.06, 0.0)]
    np.testing.assert_allclose(shares, [0.8 / 6, 0.4, 0.8], atol=0.06)
    shares = [(capture(name, 800.0, degrees) == 0).mean() for degrees in (74, 80, 88)]
    assert shares[0] == 0 and 0.2 < shares[1] < 0.6 and shares[2] == 1


@pytest.mark.parametrize("name", SENSORS)
def test_no_depth_stays_none_and_so_does_what_is_out_of_range(name):
    assert (capture(name, 0.0) == 0).all()
    assert (capture(name, 450.0) == 0).all()
    assert (capture(name, 4600.0) == 0).all()
    patch = np.full(SIZE, 800.0)
    patch[40:60, 50:70] = 0
    measured = capture(name, patch)
    assert (measured[40:60, 50:70] == 0).all()
    assert (measured[70:, 80:] > 0).all()


@pytest.mark.parametrize("name", SENSORS)
def test_same_key_same_image_and_a_batch_is_its_images(name):
    depth = step()
    np.testing.assert_array_equal(capture(name, depth, seed=3), capture(name, depth, seed=3))
    assert (capture(name, depth, seed=3) != capture(name, depth, seed=4)).any()
    keys = jnp.stack([jax.random.key(s) for s in (7, 3, 9)])
    depths = np.stack([depth, depth, depth + 30]).astype(np.float32)
    ones = np.ones_like(depths)
    batch = jax.jit(jax.vmap(kinect(name)))(keys, depths, ones, 0.5 * ones)
    single = [capture(name, d, seed=s) for s, d in zip((7, 3, 9), depths, strict=True)]
    # The same draws; compiled otherwise, a sum may round to the other side of a half.
    assert (np.asarray(batch) == np.stack(single)).mean() > 0.9999
