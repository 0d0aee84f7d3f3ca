"""estimator.py: a trained net in a user's hands. From a real run's files: test_train.py and test_end_to_end.py."""

import dataclasses
import functools
import re

import cv2
import jax
import numpy as np
import pytest
from small import gray_net, head_net, sample_photo

import facedepth_jax
from facedepth_jax import estimator, runtime
from facedepth_jax.data.crop import Box, Window
from facedepth_jax.errors import FaceDepthError

SIZE = 24


@pytest.fixture(scope="module")
def net():
    return gray_net(SIZE)


def image(height=SIZE, width=SIZE, *channels):
    return np.random.default_rng(0).integers(0, 256, (height, width, *channels), np.uint8)


def to_mm(gray):
    return gray * 8.0 + 500.0


def test_a_gray_image_of_the_nets_size(net):
    gray = image()
    depth_mm = net(gray)
    assert depth_mm.shape == (SIZE, SIZE) and depth_mm.dtype == np.float32
    np.testing.assert_allclose(depth_mm, to_mm(gray), rtol=1e-6)


def test_colours_are_red_green_and_blue(net):
    color = image(SIZE, SIZE, 3)
    luma = color @ np.array([0.299, 0.587, 0.114])
    assert np.abs(net(color) - to_mm(luma)).max() <= 8 * 0.51


def test_the_net_takes_part_in_a_program_of_the_users(net, monkeypatch):
    """There the compiler's options are the user's; JAX takes them for the outermost program alone."""
    gray, distance_mm = image()[None], np.float32([900])
    expected, _ = net.estimate(gray, distance_mm)
    monkeypatch.setattr(estimator, "_estimate_depth", functools.cache(estimator._estimate_depth.__wrapped__))
    monkeypatch.setattr(runtime, "inference_options", lambda: {"no_such_option": True})
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        net.estimate(gray, distance_mm)
    found, _ = jax.jit(net.estimate)(gray, distance_mm)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_box(net):
    gray = image(60, 50)
    np.testing.assert_allclose(net(gray, box=(10, 20, SIZE, SIZE)), to_mm(gray[20:44, 10:34]), rtol=1e-6)
    beyond = np.zeros((SIZE, SIZE))
    beyond[:, 4:] = gray[20:44, :20]
    np.testing.assert_allclose(net(gray, box=(-4, 20, SIZE, SIZE)), to_mm(beyond), rtol=1e-6)


def test_center_and_distance_give_the_crop_of_eq_6(net):
    """w = 300 * 320 / 1000 = 96 pixels, four to a map pixel."""
    gray = image(200, 260)
    depth_mm = net(gray, center=(129.5, 99.5), distance_mm=1000.0, focal_px=300.0)
    want = gray[52:148, 82:178].reshape(SIZE, 4, SIZE, 4).mean(axis=(1, 3))
    assert np.abs(depth_mm - to_mm(want)).max() <= 8 * 0.51


def test_a_whole_image_becomes_the_smallest_square_around_it(net):
    assert net.box_of((30, 20)) == Box(-5, 0, 30, 30)
    assert net.box_of((20, 31)) == Box(0, -5, 31, 31)


def test_a_batch_is_its_images(net):
    crops = np.stack([image(), 255 - image(), image() // 2])
    depth_mm = net.batch(crops, [700.0, 800.0, 900.0])
    assert depth_mm.shape == (3, SIZE, SIZE) and depth_mm.dtype == np.float32
    for crop, found in zip(crops, depth_mm, strict=True):
        np.testing.assert_array_equal(found, net(crop))
    np.testing.assert_array_equal(net.batch(crops), depth_mm)  # absolute depth does not ask for the distance


def test_depth_from_the_head_needs_its_distance():
    """Without it there is relief; a mask's background is 0 in depth and NaN in relief."""
    net, crops = head_net(SIZE), np.stack([image(), 255 - image()])
    relief_mm = (crops - 127.5) / 127.5 * 300
    front = crops > 100
    assert front.any() and not front.all()
    depth_mm = net.batch(crops, [700.0, 900.0])
    assert depth_mm.dtype == np.float32
    np.testing.assert_allclose(depth_mm, np.where(front, relief_mm + [[[700]], [[900]]], 0), rtol=1e-6)
    found = net.batch(crops)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.where(front, relief_mm, np.nan), atol=1e-3)
    np.testing.assert_array_equal(net(crops[0]), found[0])
    np.testing.assert_array_equal(net(crops[0], box=(0, 0, SIZE, SIZE), distance_mm=700.0), depth_mm[0])
    unmasked = head_net(SIZE, mask=False).batch(crops)
    np.testing.assert_allclose(unmasked, np.where(relief_mm < 270, relief_mm, np.nan), atol=1e-3)


@pytest.mark.parametrize("distance_mm", [0.0, -800.0, np.nan, np.inf])
def test_a_distance_that_is_none(distance_mm, net):
    with pytest.raises(FaceDepthError, match=f"distance_mm is {distance_mm:g}; give the head's, above 0, or none"):
        head_net(SIZE).batch(np.stack([image(), image()]), [700.0, distance_mm])
    net.batch(image()[None], [distance_mm])  # absolute depth does not look at it


def test_a_crop_is_resized_as_prepare_does(net):
    gray = image(96, 96)
    crop = net.crop(gray, Box(0, 0, 96, 96))
    np.testing.assert_array_equal(crop, cv2.resize(gray, (SIZE, SIZE), interpolation=cv2.INTER_AREA))


@pytest.mark.parametrize(
    "image, where, sentence",
    [
        (np.zeros((9, 9), np.float32), {}, "float32 (9, 9); give uint8, (H, W) or RGB (H, W, 3)"),
        (np.zeros((9, 9, 4), np.uint8), {}, "uint8 (9, 9, 4); give uint8"),
        (np.zeros((2, 9, 9, 3), np.uint8), {}, "uint8 (2, 9, 9, 3); give uint8"),
        (np.zeros((9, 9), np.uint8), {"box": (0, 0, 0, 5)}, "is empty"),
        (np.zeros((9, 9), np.uint8), {"box": (9, 0, 5, 5)}, "lies outside the image of 9 x 9 pixels"),
        (np.zeros((9, 9), np.uint8), {"box": (-5, -5, 10**5, 10**5)}, "is too large"),
        (np.zeros((9, 9), np.uint8), {"center": (4, 4)}, "center wants distance_mm and focal_px, to know"),
        (np.zeros((9, 9), np.uint8), {"center": (4, 4), "distance_mm": -900, "focal_px": 300}, "distance_mm is -900"),
        (np.zeros((9, 9), np.uint8), {"box": (0, 0, 5)}, "box is (0, 0, 5); give 4 finite numbers"),
        (np.zeros((9, 9), np.uint8), {"box": "abcd"}, "box is abcd; give 4 finite numbers"),
        (np.zeros((9, 9), np.uint8), {"box": (0, 0, 1e300, 5)}, "give 4 finite numbers"),
        (np.zeros((9, 9), np.uint8), {"box": (np.nan, 0, 5, 5)}, "give 4 finite numbers"),
        (np.zeros((9, 9), np.uint8), {"box": (0, 0, 5, 5), "center": (4, 4)}, "a box and a center; give one"),
        (
            np.zeros((9, 9), np.uint8),
            {"center": (4, np.nan), "distance_mm": 900, "focal_px": 300},
            "center is (4, nan); give 2 finite numbers",
        ),
        (
            np.zeros((9, 9), np.uint8),
            {"center": (4, 4), "distance_mm": 1e-3, "focal_px": 300.0},
            "is too large (over 67108864); give a smaller one, or check distance and focal length",
        ),
    ],
)
def test_what_cannot_be_used_is_one_sentence(net, image, where, sentence):
    with pytest.raises(FaceDepthError, match=re.escape(sentence)):
        net(image, **where)


@pytest.mark.parametrize("crops", [np.zeros((2, SIZE, 25), np.uint8), np.zeros((2, SIZE, SIZE)), image()])
def test_crops_that_the_net_was_not_trained_on(net, crops):
    with pytest.raises(FaceDepthError, match=re.escape(f"{crops.shape}; give uint8, (B, 24, 24).")):
        net.batch(crops)


@pytest.mark.parametrize("distance_mm", [800.0, [800.0]])
def test_a_distance_for_each_crop(net, distance_mm):
    with pytest.raises(FaceDepthError, match="distance_mm is of shape .*; give a number for each of 2 crops"):
        net.batch(np.stack([image(), image()]), distance_mm)


def test_an_estimate_that_is_not_finite(net):
    broken = dataclasses.replace(net, code=dataclasses.replace(net.code, step_mm=np.inf))
    with pytest.raises(FaceDepthError, match="The net's estimate is not finite"):
        broken(image())


def test_where_there_is_no_run(tmp_path):
    with pytest.raises(FaceDepthError, match="There is no run in"):
        facedepth_jax.load(tmp_path)
    with pytest.raises(AttributeError, match="no attribute 'loud'"):
        _ = facedepth_jax.loud
    assert facedepth_jax.FaceDepth is type(gray_net(SIZE))


def test_a_face_that_is_found():
    """Its distance is given, or follows from the focal length and the window: f R / D pixels, Eq. 6."""
    net, photo = head_net(SIZE), sample_photo()
    (face,) = net.find(photo, distance_mm=800.0)
    assert (face.distance_mm, face.distance_from) == (800.0, "given")
    assert face.focal_px == pytest.approx(face.window.w / 320 * 800)
    for relief, depth in ((face.relief_mm, face.depth_mm), (face.relief_mm, face.depth_mm)):
        np.testing.assert_array_equal(np.isfinite(relief), face.mask)
        np.testing.assert_allclose(depth, np.where(face.mask, relief + 800, 0), rtol=1e-6)
    gray = cv2.cvtColor(face.photo(SIZE), cv2.COLOR_RGB2GRAY)
    np.testing.assert_allclose(face.relief_mm[face.mask], ((gray - 127.5) / 127.5 * 300)[face.mask], atol=3)

    (by_focal,) = net.find(photo, "all", focal_px=900.0)
    assert by_focal.distance_from == "focal length" and by_focal.focal_px == 900
    assert by_focal.distance_mm == pytest.approx(900 * 320 / face.window.w)
    (guess,) = net.find(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY))
    assert guess.distance_from == "default focal length" and guess.focal_px == pytest.approx(28 / 36 * 600)
    (by_both,) = net.find(photo, focal_px=900.0, distance_mm=800.0)
    assert by_both.window.w == pytest.approx(900 * 320 / 800)
    assert net.find(np.full((60, 60), 90, np.uint8)) == []


def test_absolute_depth_says_the_distance_itself(net):
    image = np.full((60, 60), 50, np.uint8)
    image[:20] = 200
    face = net.look(image, Box(0, 0, 60, 60), focal_px=100)
    assert (face.distance_mm, face.distance_from, face.focal_px) == (900.0, "net", 100)
    np.testing.assert_array_equal(face.depth_mm, net(image))
    assert face.mask[9:].all() and not face.mask[:7].any()  # 1200 mm behind the head


def test_what_lies_apart_from_the_person_is_background():
    image = np.full((SIZE, SIZE), 50, np.uint8)  # what is above 100 is foreground
    image[8:20, 8:20] = 200
    image[2:5, 2:5] = image[7, 7] = 210  # an island, and a pixel that touches by its corner alone
    face = head_net(SIZE).look(image, Box(0, 0, SIZE, SIZE), distance_mm=800.0)
    want = np.zeros((SIZE, SIZE), bool)
    want[8:20, 8:20] = True
    np.testing.assert_array_equal(face.mask, want)
    np.testing.assert_array_equal(face.depth_mm > 0, want)


def test_a_map_goes_back_into_its_image():
    """A window of 24 pixels: pixel for pixel."""
    face = head_net(SIZE).look(np.full((50, 60), 200, np.uint8), Box(20, -4, SIZE, SIZE))
    values = np.arange(SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)
    values[10, 10] = np.nan
    placed = face.in_place(values)
    want = np.full((50, 60), np.nan, np.float32)
    want[:20, 20:44] = values[4:]
    np.testing.assert_allclose(placed, want, rtol=1e-6)


@pytest.mark.parametrize("known", [{"focal_px": 0.0}, {"distance_mm": -1.0}, {"focal_px": np.nan}])
def test_a_number_that_is_none(net, known):
    (name,) = known
    with pytest.raises(FaceDepthError, match=f"{name} is .*; give a number above 0, or none"):
        net.look(image(), Box(0, 0, SIZE, SIZE), **known)
    with pytest.raises(FaceDepthError, match='faces is "none"|faces is \'none\'; give "largest" or "all"'):
        net.find(image(), "none")
    with pytest.raises(FaceDepthError, match=f"{name} is .*; give a number above 0, or none"):
        net.find(np.full((60, 60), 90, np.uint8), **known)  # no face is there


def test_a_place_as_a_tuple_is_a_box():
    net, gray = head_net(SIZE), image(50, 60)
    found, want = net.look(gray, (10, 20, SIZE, SIZE)), net.look(gray, Box(10, 20, SIZE, SIZE))
    assert found.box == want.box == (10, 20, SIZE, SIZE) and found.window == want.window
    np.testing.assert_array_equal(found.relief_mm, want.relief_mm)
    for place, sentence in (((0, 0, 0, 0), "is empty"), ((5000, 5000, 10, 10), "lies outside the image of 60 x 50")):
        for where in (place, Box(*place)):
            with pytest.raises(FaceDepthError, match=sentence):
                net.look(gray, where)
    for window in (Window(200, 20, SIZE, SIZE, 30), Window(np.nan, 20, SIZE, SIZE), Window(30, 20, 0, SIZE)):
        with pytest.raises(FaceDepthError, match="lies outside the image of 60 x 50"):
            net.look(gray, window)
    net.look(gray, Window(-15, 25, SIZE, SIZE, 45))  # a corner
    assert net.look(gray, Window(30, 25, 9000, 9000)).box[2:] == (9000, 9000)  # a face in a picture of 48 megapixels
    assert net.look(gray, (9.6, 20.2, SIZE, SIZE)).box == (10, 20, SIZE, SIZE)  # detectors give fractions
