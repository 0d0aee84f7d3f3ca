"""Colours, the grid and PNG files, read back with another library."""

import imageio.v3 as iio
import numpy as np
import pytest
from matplotlib import colormaps

from facedepth_jax import pictures


def test_color_is_matplotlibs_turbo_reversed_and_black_without_depth():
    depth_mm = np.linspace(800, 1200, 20).reshape(4, 5)
    depth_mm[0, 0] = 0
    got = pictures.color_depth(depth_mm, 900, 1100)
    steps = np.round(np.clip((1100 - depth_mm) / 200, 0, 1) * 255).astype(int)
    want = np.round(colormaps["turbo"](steps)[..., :3] * 255)
    want[0, 0] = 0
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, want)
    near, far = got[0, 1], got[-1, -1]
    assert near[0] > near[2] and far[2] > far[0]  # red and blue


def test_range_follows_the_face_and_ignores_what_is_far_or_missing():
    depth_mm = np.full((20, 20), 3000)
    depth_mm[5:15, 5:15] = 800
    depth_mm[:2] = 0
    assert pictures.depth_range_mm(depth_mm) == (800, 800 + pictures.RELIEF_MM)
    assert pictures.depth_range_mm(np.full((3, 3), 700)) == (700, 701)
    near, far = pictures.depth_range_mm(np.zeros((3, 3)))
    assert near < far


def test_grid_shows_every_image_in_its_cell_with_one_scale_a_column():
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 255, (3, 96, 96), np.uint8)
    truth = rng.uniform(800, 1000, gray.shape) + np.array([0, 300, 600])[:, None, None]
    estimate = truth + 50
    image = pictures.grid(gray, {"truth": truth, "cgan": estimate})
    assert image.dtype == np.uint8 and image.shape[2] == 3
    left = image.shape[1] - 3 * 98
    for column in range(3):
        cells = [image[row * 98 + 1 :, left + column * 98 + 1 :][:96, :96] for row in range(3)]
        near_far = pictures.depth_range_mm(truth[column])
        np.testing.assert_array_equal(cells[0], np.repeat(gray[column][..., None], 3, axis=-1))
        np.testing.assert_array_equal(cells[1], pictures.color_depth(truth[column], *near_far))
        np.testing.assert_array_equal(cells[2], pictures.color_depth(estimate[column], *near_far))
    assert (image[:98, :left] < 128).any() and (image[-20:, left:] < 128).any()  # label, range


def test_small_images_are_enlarged_by_whole_pixels():
    gray = np.random.default_rng(0).integers(0, 255, (1, 40, 40), np.uint8)
    image = pictures.grid(gray, {"truth": np.full((1, 40, 40), 800)})
    cell = image[:126, -126:]  # (40 + a border of 1 on each side) x 3
    np.testing.assert_array_equal(cell[3:-3:3, 3:-3:3, 0], gray[0])


@pytest.mark.parametrize("dtype,shape", [(np.uint8, (5, 7, 3)), (np.uint8, (5, 7)), (np.uint16, (5, 7))])
def test_png_is_what_another_library_reads(tmp_path, dtype, shape):
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    pictures.write_png(tmp_path / "a.png", image)
    got = iio.imread(tmp_path / "a.png")
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, image)


def test_error_colours_are_dark_to_light_and_gray_without_truth():
    truth = np.full((2, 5), 1000.0)
    truth[1, 0] = 0
    estimate = 1000 + np.array([[0, 40, -80, 150, 200], [7, 0, 0, 0, 5000]])
    colors = pictures.color_error(estimate, truth)
    brightness = colors.astype(int).sum(-1)
    assert (np.diff(brightness[0]) > 0).all()
    np.testing.assert_array_equal(colors[0, 0], colors[1, 1])
    assert colors[1, 0].tolist() == [128] * 3 and brightness[1, 4] == brightness[0, 4] == 3 * 255


def test_grid_with_errors_has_a_row_more_for_each_estimate():
    gray = np.zeros((2, 96, 96), np.uint8)
    truth = np.full(gray.shape, 900.0)
    rows = {"truth": truth, "ae": truth, "cgan": truth + 500}
    without, with_errors = pictures.grid(gray, rows), pictures.grid(gray, rows, errors=True)
    assert with_errors.shape[0] == without.shape[0] + 2 * 98
    last = with_errors[-40 - 97 : -40 - 1, -97:-1]
    assert (last == 255).all()
    assert (with_errors[-40 - 3 * 98 + 1 :, -97:-1][:96] == 0).all()
