"""levels.py: the paper's 8-bit depth, by hand and against plain numpy."""

import jax
import numpy as np
import pytest

from facedepth_jax.depth_code import DepthCode

CODE = DepthCode()
ODD = DepthCode(offset_mm=300.5, step_mm=7.3, half_range=117.5, none_level=3)


@pytest.mark.parametrize(
    "mm, level",
    [
        (0, 194),
        (1, 0),
        (499, 0),
        (500, 0),
        (503, 0),
        (505, 1),
        (508, 1),
        (516, 2),
        (2539, 255),
        (2540, 255),
        (2541, 255),
        (65535, 255),
    ],
)
def test_by_hand(mm, level):
    got = levels.levels_from_mm(np.array([[mm]], np.uint16), CODE)
    assert got.dtype == np.float32 and got.shape == (1, 1) and got[0, 0] == level


@pytest.mark.parametrize("code", [CODE, ODD])
def test_equals_plain_numpy(code):
    mm = np.arange(65536, dtype=np.uint16)
    exact = np.clip((mm.astype(np.float64) - code.offset_mm) / code.step_mm, 0, 255)
    got = np.asarray(jax.jit(lambda mm: levels.levels_from_mm(mm, code))(mm), np.float64)
    assert (got == np.round(got)).all() and got[0] == code.none_level
    assert np.abs(got - exact)[1:].max() <= 0.5 + 1e-4
    back = levels.mm_from_levels(got, code)
    np.testing.assert_allclose(back, got * code.step_mm + code.offset_mm, rtol=1e-6)
    inside = (exact > 0) & (exact < 255) & (mm > 0)
    assert np.abs(np.asarray(back) - mm)[inside].max() <= code.step_mm / 2 + 1e-3


@pytest.mark.parametrize("code", [CODE, ODD])
def test_there_and_back(code):
    level = np.arange(256, dtype=np.float32)
    image = levels.image_from_levels(level, code)
    assert image.dtype == np.float32 and image[0] == -1
    np.testing.assert_allclose(image, level / code.half_range - 1, rtol=1e-6, atol=2e-7)
    np.testing.assert_allclose(levels.levels_from_image(image, code), level, rtol=1e-5, atol=1e-5)
    again = levels.levels_from_mm(np.round(levels.mm_from_levels(level, code)).astype(np.uint16), code)
    np.testing.assert_array_equal(again, level)


def test_the_tanhs_ends_are_the_first_and_the_last_level():
    np.testing.assert_array_equal(levels.levels_from_image(np.array([-1.0, 0.0, 1.0]), CODE), [0, 127.5, 255])
    np.testing.assert_array_equal(levels.image_from_levels(np.array([0.0, 127.5, 255.0]), CODE), [-1, 0, 1])


def test_gray():
    gray = np.arange(256, dtype=np.uint8)
    image = levels.image_from_gray(gray)
    assert image.dtype == np.float32 and image[0] == -1 and image[255] == 1
    np.testing.assert_allclose(image, (np.arange(256) - 127.5) / 127.5, rtol=1e-6, atol=2e-7)
