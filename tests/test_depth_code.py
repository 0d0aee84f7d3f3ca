"""depth_code.py: the paper's 8-bit depth, by hand and against plain NumPy."""

import jax
import numpy as np
import pytest

from facedepth_jax.depth_code import DepthCode, encode_gray, true_foreground, without_background

CODE = DepthCode()
ODD = DepthCode(offset_mm=300.5, step_mm=7.3, none_level=3)
FAR = np.zeros(1)  # where the head is does not matter to absolute depth


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
    got = CODE.quantize(np.array([[mm]], np.uint16))
    assert got.dtype == np.float32 and got.shape == (1, 1) and got[0, 0] == level


@pytest.mark.parametrize("code", [CODE, ODD])
def test_equals_plain_numpy(code):
    mm = np.arange(65536, dtype=np.uint16)
    exact = (mm.astype(np.float64) - code.offset_mm) / code.step_mm
    np.testing.assert_allclose(code.levels(mm), exact, rtol=1e-6, atol=1e-5)
    clipped = np.clip(exact, 0, 255)
    got = np.asarray(jax.jit(code.quantize)(mm), np.float64)
    assert (got == np.round(got)).all() and got[0] == code.none_level
    assert np.abs(got - clipped)[1:].max() <= 0.5 + 1e-4


@pytest.mark.parametrize("code", [CODE, ODD])
def test_there_and_back(code):
    """A map of all depths: what the levels can express comes back to half a level, the rest to the nearest end."""
    mm = np.arange(65536, dtype=np.uint16).reshape(1, 256, 256)
    image = jax.jit(code.encode)(mm, FAR)
    assert image.shape == (1, 256, 256, 1) and image.dtype == np.float32
    assert image.min() == -1 and image.max() == 1
    back = np.asarray(code.decode(image, FAR)[0])
    assert back.shape == mm.shape and back.dtype == np.float32
    low, high = code.range_mm
    assert (low, high) == (code.offset_mm, code.offset_mm + 255 * code.step_mm)
    assert np.abs(back - np.clip(mm, low, high))[mm > 0].max() <= code.step_mm / 2 + 1e-3
    assert back.flat[0] == pytest.approx(code.offset_mm + code.none_level * code.step_mm)


def test_the_tanhs_ends_are_the_first_and_the_last_level():
    image = np.array([-1.0, 0.0, 1.0]).reshape(1, 1, 3, 1)
    np.testing.assert_array_equal(CODE.decode(image, FAR)[0][0, 0], [500, 500 + 127.5 * 8, 2540])
    np.testing.assert_array_equal(CODE.encode(np.array([[[500, 2540]]], np.uint16), FAR)[0, 0, :, 0], [-1, 1])


def test_gray():
    gray = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    image = encode_gray(gray)
    assert image.dtype == np.float32 and image.shape == (1, 16, 16, 1)
    assert image.min() == -1 and image.max() == 1
    np.testing.assert_allclose(image[..., 0], (gray - 127.5) / 127.5, rtol=1e-6, atol=2e-7)


# --- depth from the head ---------------------------------------------------------------------------------------------

HEAD = DepthCode(origin="head")


def test_the_head_is_the_middle():
    depth_mm = np.array([[[900, 600, 1200, 599, 1201, 0, 930, 1]]], np.uint16)
    distance_mm = np.array([900.0])
    image = HEAD.encode(depth_mm, distance_mm)
    assert image.dtype == np.float32 and image.shape == (1, 1, 8, 1)
    np.testing.assert_allclose(image.ravel(), [0, -1, 1, -1, 1, 1, 0.1, -1], atol=1e-6)
    np.testing.assert_allclose(HEAD.decode(image, distance_mm)[0].ravel(), [900, 600, 1200, 600, 1200, 1200, 930, 600])
    np.testing.assert_array_equal(HEAD.learnt(depth_mm).ravel(), depth_mm.ravel() > 0)
    assert np.asarray(CODE.learnt(depth_mm)).all()


def test_head_code_there_and_back():
    """Within the clip nothing is lost, at any distance; a depth beyond becomes the clip."""
    mm = np.arange(1, 65536, dtype=np.uint16)[: 255 * 257].reshape(1, 255, 257)
    for distance in (412.7, 980.0, 3000.3):
        distance_mm = np.array([distance])
        back = np.asarray(HEAD.decode(jax.jit(HEAD.encode)(mm, distance_mm), distance_mm)[0])
        np.testing.assert_allclose(back, np.clip(mm, distance - 300, distance + 300), rtol=1e-6)


def test_the_foregrounds_logit_stands_behind():
    image = np.stack([np.full((1, 2, 2), 0.5), [[[3.0, -0.1], [0.1, -9.0]]]], -1)
    depth_mm, foreground = HEAD.decode(image, np.array([1000.0]))
    np.testing.assert_allclose(depth_mm, np.full((1, 2, 2), 1150))
    np.testing.assert_array_equal(foreground, [[[True, False], [True, False]]])
    np.testing.assert_allclose(without_background(depth_mm, foreground), [[[1150, 0], [1150, 0]]])


def test_without_that_logit_the_farthest_is_background():
    depth_mm = np.array([[[700, 1269, 1271, 1600]]], np.uint16)
    back, foreground = HEAD.decode(HEAD.encode(depth_mm, np.array([1000.0])), np.array([1000.0]))
    np.testing.assert_array_equal(foreground, [[[True, True, False, False]]])
    np.testing.assert_allclose(without_background(back, foreground), [[[700, 1269, 0, 0]]], rtol=1e-6)
    back, foreground = CODE.decode(CODE.encode(depth_mm, FAR), FAR)
    assert foreground is None and without_background(back, foreground) is back


def test_the_foreground_is_near_and_has_depth():
    depth_mm = np.array([[[0, 1, 1199, 1200]], [[0, 1, 1199, 1499]]], np.uint16)
    got = true_foreground(depth_mm, np.array([900, 1200], np.float32))
    np.testing.assert_array_equal(got, [[[False, True, True, False]], [[False, True, True, True]]])


@pytest.mark.parametrize("code", [CODE, ODD, HEAD])
def test_pictures_are_of_8_bits(code):
    mm = np.arange(65536, dtype=np.uint16).reshape(1, 256, 256)
    got = np.asarray(jax.jit(code.picture)(mm, np.array([1000.0])))
    want = np.asarray(code.quantize(mm), np.float64)  # the paper's
    if code is HEAD:
        want = np.where(mm > 0, np.clip((mm - 700.0) / 600 * 255, 0, 255), 255)
    assert (got == np.round(got)).all() and np.abs(got - want).max() <= (0.5001 if code is HEAD else 0)
