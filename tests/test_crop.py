"""crop.py against per-pixel loops, OpenCV and hand-made cases."""

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facedepth_jax.data import crop
from facedepth_jax.data.crop import Box


def slow_resize_depth(depth_mm, size):
    """The definition, pixel by pixel: shares of area when shrinking, distance to the centre when enlarging."""
    out = np.zeros((size, size), np.uint16)
    height, width = depth_mm.shape
    for i in range(size):
        for j in range(size):
            nearest = depth_mm[math.floor((i + 0.5) * height / size), math.floor((j + 0.5) * width / size)]
            if not nearest:
                continue
            total = weight = 0.0
            for y in range(-1, height + 1):
                wy = slow_weight(i, y, height, size)
                for x in range(-1, width + 1) if wy > 0 else ():
                    w = wy * slow_weight(j, x, width, size)
                    value = float(depth_mm[min(max(y, 0), height - 1), min(max(x, 0), width - 1)])
                    if w > 0 and value > 0 and abs(value - nearest) <= crop.EDGE_MM:
                        total, weight = total + w * value, weight + w
            out[i, j] = math.floor(total / weight + 0.5)
    return out


def slow_weight(target, source, source_size, target_size):
    scale = source_size / target_size
    if scale >= 1:
        return max(0.0, min(source + 1, (target + 1) * scale) - max(source, target * scale))
    return max(0.0, 1 - abs((target + 0.5) * scale - 0.5 - source))


def random_depth(rng, height, width):
    """A tilted plane with a step of 200 mm, noise and holes."""
    y, x = np.mgrid[:height, :width]
    depth = 800 + 3 * x - 2 * y + rng.normal(0, 4, (height, width)) + 200 * (x + 2 * y > width)
    return np.where(rng.random((height, width)) < 0.2, 0, depth).astype(np.uint16)


@pytest.mark.parametrize(
    "height, width, size", [(30, 30, 12), (24, 24, 12), (17, 23, 12), (12, 12, 12), (7, 9, 12), (9, 20, 12), (1, 1, 12)]
)
def test_resize_depth_equals_the_slow_definition(height, width, size):
    depth = random_depth(np.random.default_rng(height * 100 + width), height, width)
    fast, slow = crop.resize_depth(depth, size), slow_resize_depth(depth, size)
    assert fast.dtype == np.uint16 and fast.shape == (size, size)
    np.testing.assert_array_equal(fast > 0, slow > 0)
    assert np.abs(fast.astype(int) - slow).max() <= 1  # a half may fall to either side in float32
    assert (fast != slow).mean() < 0.02


def test_no_depth_and_edges_never_enter_a_mean():
    depth = np.full((40, 40), 700, np.uint16)
    depth[:, 21:] = 1500  # the edge cuts through the footprint of a target pixel
    depth[5:9] = 0
    for size in (10, 13, 40, 64):
        assert set(np.unique(crop.resize_depth(depth, size))) <= {0, 700, 1500}


def test_a_pixel_without_depth_stays_without_and_a_lone_pixel_stays_itself():
    depth = np.zeros((9, 9), np.uint16)
    depth[4, 4] = 801
    small = crop.resize_depth(depth, 3)
    assert small[1, 1] == 801 and np.count_nonzero(small) == 1
    depth = np.full((9, 9), 801, np.uint16)
    depth[4, 4] = 0
    small = crop.resize_depth(depth, 3)
    assert small[1, 1] == 0 and np.count_nonzero(small == 801) == 8
    assert crop.resize_depth(np.array([[10, 0], [10, 10]], np.uint16), 1) == 10  # none is not a depth near by


def test_depths_within_the_threshold_are_averaged():
    np.testing.assert_array_equal(
        crop.resize_depth(np.array([[700, 700, 710, 710]] * 4, np.uint16), 2), [[700, 710]] * 2
    )
    depth = np.array([[700, 703, 706], [700, 703, 706], [700, 703, 712]], np.uint16)
    assert crop.resize_depth(depth, 1) == round(depth.mean())
    assert crop.resize_depth(np.full((5, 5), 65535, np.uint16), 3).min() == 65535


@pytest.mark.parametrize("source", [37, 60, 96, 131, 152, 240])
def test_depth_and_gray_stay_registered(source):
    """One surface drawn as gray and as depth stays one surface, and the depth is OpenCV's where there is no edge."""
    y, x = np.mgrid[:source, :source] / source
    surface = 100 + 50 * np.sin(x * 5) * np.cos(y * 4) + 60 * x
    depth_mm = np.round(surface * 2 + 400).astype(np.uint16)
    gray = crop.resize_gray(np.round(surface).astype(np.uint8), 96).astype(float)
    depth = crop.resize_depth(depth_mm, 96).astype(float)
    slope_y, slope_x = np.gradient((depth - 400) / 2)
    slopes = np.stack([slope_x.ravel(), slope_y.ravel(), np.ones(96 * 96)], axis=1)
    shift = np.linalg.lstsq(slopes, ((depth - 400) / 2 - gray).ravel(), rcond=None)[0]
    assert np.abs(shift[:2]).max() < 0.03  # pixels
    mode = cv2.INTER_AREA if source >= 96 else cv2.INTER_LINEAR
    reference = cv2.resize(depth_mm.astype(np.float32), (96, 96), interpolation=mode)
    assert np.abs(depth - reference).max() < 0.6


@pytest.mark.parametrize("source", [71, 96, 131, 152, 192])
def test_the_outline_of_the_depth_stays_on_that_of_the_gray(source):
    y, x = np.mgrid[:source, :source]
    disk = np.hypot(x - 0.47 * source, y - 0.55 * source) < 0.3 * source
    gray = crop.resize_gray(np.where(disk, 255, 0).astype(np.uint8), 96) / 255.0
    valid = crop.resize_depth(np.where(disk, 800, 0).astype(np.uint16), 96) > 0
    y, x = np.mgrid[:96, :96]
    for axis in (y, x):
        assert abs((axis * gray).sum() / gray.sum() - (axis * valid).sum() / valid.sum()) < 0.3
    assert abs(gray.sum() / valid.sum() - 1) < 0.02


@settings(max_examples=60, deadline=None)
@given(st.integers(-30, 30), st.integers(-30, 30), st.integers(1, 40), st.integers(1, 40))
def test_crop_pads_with_zero_and_never_shifts(x, y, w, h):
    image = np.arange(1, 12 * 9 + 1, dtype=np.uint16).reshape(12, 9)
    around = np.pad(image, 80)
    np.testing.assert_array_equal(crop.crop(image, Box(x, y, w, h)), around[y + 80 : y + 80 + h, x + 80 : x + 80 + w])


def test_crop_is_a_copy():
    image = np.ones((4, 4), np.uint8)
    crop.crop(image, Box(0, 0, 4, 4))[:] = 7
    assert image.max() == 1


def test_crop_box_of_the_paper():
    """Eq. 6 by hand: Pandora's 365 px and 320 mm at 1 m are 116.8 px; Kinect v2 at 0.77 m 151.9 px."""
    assert crop.crop_box((200, 150), 1000, (365, 365), 320) == Box(142, 92, 117, 117)
    assert crop.crop_box((60.5, 63), 770, (365.456, 365.456), 320) == Box(-15, -12, 152, 152)
    assert crop.crop_box((10, 10), 1000, (100, 200), 100) == Box(6, 1, 10, 20)
    assert crop.crop_box((10, 10), 1e6, (1, 1), 1) == Box(10, 10, 1, 1)


@settings(deadline=None)
@given(st.floats(-50, 700), st.floats(-50, 700), st.floats(300, 3000), st.floats(200, 1000))
def test_crop_box_is_centred_within_half_a_pixel(x, y, distance_mm, focal):
    box = crop.crop_box((x, y), distance_mm, (focal, 1.3 * focal), 320)
    assert abs(box.x + (box.w - 1) / 2 - x) <= 0.5 + 1e-9 and abs(box.y + (box.h - 1) / 2 - y) <= 0.5 + 1e-9
    assert abs(box.w - focal * 320 / distance_mm) <= 0.5 and abs(box.h - 1.3 * focal * 320 / distance_mm) <= 0.5


def test_head_distance_is_the_mean_of_the_valid_depths():
    depth = np.zeros((20, 20), np.uint16)
    depth[9:12, 4:7] = [[700, 0, 710], [0, 0, 0], [60000, 0, 720]]
    depth[12, 5] = 9999  # outside the window
    assert crop.head_distance_mm(depth, (5.4, 9.6), 3) == pytest.approx((700 + 710 + 60000 + 720) / 4)
    assert crop.head_distance_mm(depth, (15, 15), 3) is None
    depth[0, 0] = 500  # the window is cut at the border
    assert crop.head_distance_mm(depth, (0, 0), 5) == 500
    depth[19, 19] = 600
    assert crop.head_distance_mm(depth, (19.4, 19.4), 5) == 600


def test_inside_is_the_area_of_the_pixels():
    assert crop.inside((4, 8), (-0.5, -0.5)) and crop.inside((4, 8), (7.4, 3.4))
    for place in [(-0.6, 0), (7.5, 0), (0, -0.6), (0, 3.5), (math.nan, 1), (1e300, 1)]:
        assert not crop.inside((4, 8), place)


@pytest.mark.parametrize("side", [768, 1536, 3072])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_window_is_the_mean_over_its_pixels_however_large(side, axis):
    """Stripes of one pixel beside a plain half, on which the window's middle lies, and black outside the image."""
    stripes = np.tile(np.uint8([[0, 255], [0, 255]] if axis else [[0, 0], [255, 255]]), (side // 2, side // 2))
    stripes[:, side // 2 :] = 200
    window = crop.Window(side / 2, side, side, side)  # samples fall on pixels, not between two
    found = window.crop(stripes, 48).astype(int)
    assert not found[25:].any()
    assert np.abs(found[:23, :23] - 127.5).max() < 2 and np.abs(found[:23, 25:-1] - 200).max() < 2
    assert np.abs(found[:23, 23:25].mean() - (127.5 + 200) / 2) < 2  # nothing is shifted
