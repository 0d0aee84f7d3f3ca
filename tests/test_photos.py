"""photos.py: files as people have them, against Pillow's and imageio's writers and what the format says."""

import io

import cv2
import imageio.v3 as iio
import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.TiffImagePlugin
import pytest
from small import sample_photo

from facedepth_jax import photos
from facedepth_jax.errors import FaceDepthError


def picture(height=24, width=24, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def read_one(path):
    (photo,) = photos.read(path)
    assert photo.name == path.stem and not photo.is_frame
    return photo.rgb


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp", "gif"])
def test_formats_without_loss(tmp_path, suffix):
    rgb = picture() // 128 * 255  # eight colours, for the palette
    options = {"lossless": True} if suffix == "webp" else {}
    PIL.Image.fromarray(rgb).save(tmp_path / f"a.{suffix}", **options)
    np.testing.assert_array_equal(read_one(tmp_path / f"a.{suffix}"), rgb)


@pytest.mark.parametrize(
    "suffix, mode", [("jpg", "RGB"), ("jpg", "CMYK"), ("jpg", "L"), ("avif", "RGB"), ("jp2", "RGB")]
)
def test_formats_with_loss(tmp_path, suffix, mode):
    rgb = sample_photo()[::4, ::4]
    image = PIL.Image.fromarray(rgb).convert(mode)
    image.save(tmp_path / f"a.{suffix}", quality=95)
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(read_one(tmp_path / f"a.{suffix}") - expected).mean() < 6


def test_transparency_lies_over_gray(tmp_path):
    rgba = picture(channels=4)
    iio.imwrite(tmp_path / "a.png", rgba)
    color, alpha = rgba[..., :3].astype(float), rgba[..., 3:] / 255
    assert np.abs(read_one(tmp_path / "a.png") - (color * alpha + 128 * (1 - alpha))).max() <= 1


def test_exif_orientation_is_followed(tmp_path):
    """6: turn by 90 degrees clockwise."""
    gray = np.zeros((24, 16), np.uint8)
    gray[:, :8] = 200
    jpeg = cv2.imencode(".jpg", gray)[1].tobytes()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (tmp_path / "phone.jpg").write_bytes(jpeg[:2] + segment + jpeg[2:])
    rgb = read_one(tmp_path / "phone.jpg")
    assert rgb.shape == (16, 24, 3) and rgb[:7].min() > 180 and rgb[9:].max() < 20  # left is on top now


@pytest.mark.parametrize("suffix", ["gif", "webp", "tiff", "png"])
def test_pages_and_animations_are_frames(tmp_path, suffix):
    pages = [np.full((8, 8, 3), value, np.uint8) for value in (0, 128, 255)]
    first, *rest = map(PIL.Image.fromarray, pages)
    options = {"lossless": True} if suffix == "webp" else {}
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=rest, **options)
    found = list(photos.read(tmp_path / f"a.{suffix}"))
    assert [photo.name for photo in found] == ["a_000001", "a_000002", "a_000003"]
    assert all(photo.is_frame for photo in found)
    np.testing.assert_array_equal([photo.rgb for photo in found], pages)


def test_a_phones_second_picture_is_none_of_ours(tmp_path):
    first, second = PIL.Image.fromarray(picture()), PIL.Image.fromarray(picture(seed=1))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert read_one(tmp_path / "a.jpg").shape == (24, 24, 3)


def test_a_truncated_file_is_never_taken_for_a_whole_one(tmp_path):
    rgb = cv2.resize(picture(4, 4), (16, 16))
    for suffix in ("jpg", "png"):
        buffer = io.BytesIO()
        PIL.Image.fromarray(rgb).save(buffer, format={"jpg": "JPEG"}.get(suffix, suffix))
        whole, file = buffer.getvalue(), tmp_path / f"a.{suffix}"
        file.write_bytes(whole)
        want = read_one(file)
        for length in range(0, len(whole), 3):
            file.write_bytes(whole[:length])
            try:
                np.testing.assert_array_equal(read_one(file), want)  # only check sums and an end marker are missing
            except FaceDepthError:
                continue
            assert length >= len(whole) - 20


def test_what_may_start_other_programs_is_not_read(tmp_path):
    PIL.Image.fromarray(picture()).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.jpg")
    with pytest.raises(FaceDepthError, match=r"a.jpg cannot be decoded: it is truncated or none of PNG, JPEG"):
        read_one(tmp_path / "a.jpg")


def test_too_many_pixels(tmp_path):
    PIL.Image.new("1", (10_000, 10_000)).save(tmp_path / "a.png")
    with pytest.raises(FaceDepthError, match=r"a.png has 10000 x 10000 pixels, over 67108864; shrink it\."):
        read_one(tmp_path / "a.png")


def test_above_pillows_own_limit_too(tmp_path, monkeypatch):
    PIL.Image.fromarray(picture()).save(tmp_path / "a.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 200)
    with pytest.raises(FaceDepthError, match=r"a.png has over 67108864 pixels; shrink it\."):
        read_one(tmp_path / "a.png")


@pytest.mark.parametrize(
    "second, sentence",
    [
        (PIL.Image.new("1", (10_000, 10_000)), r"a.tiff has 10000 x 10000 pixels, over 67108864; shrink it\."),
        (PIL.Image.new("I;16", (8, 8)), r"a.tiff is no 8-bit image \(its mode is I;16\); convert it first\."),
    ],
)
def test_every_page_is_looked_at(tmp_path, second, sentence):
    PIL.Image.fromarray(picture()).save(
        tmp_path / "a.tiff", save_all=True, append_images=[second], compression="tiff_lzw"
    )
    pages = photos.read(tmp_path / "a.tiff")
    np.testing.assert_array_equal(next(pages).rgb, picture())
    with pytest.raises(FaceDepthError, match=sentence):
        next(pages)


NOT_A_NUMBER = PIL.TiffImagePlugin.IFDRational(0, 0)


@pytest.mark.parametrize(
    "value, focal_px", [(54, 36.0), ("28 mm", None), ((28, 28), None), (NOT_A_NUMBER, None), (-3, None), (0, None)]
)
def test_the_focal_length_of_exif(tmp_path, value, focal_px):
    """54 / 36 of 24 pixels; other things than a length are none."""
    exif = PIL.Image.Exif()
    exif.get_ifd(PIL.ExifTags.IFD.Exif)[PIL.ExifTags.Base.FocalLengthIn35mmFilm] = value
    PIL.Image.fromarray(picture()).save(tmp_path / "a.jpg", exif=exif)
    (photo,) = photos.read(tmp_path / "a.jpg")
    assert photo.focal_px == focal_px


def test_a_name_that_is_too_long(tmp_path):
    with pytest.raises(FaceDepthError, match="x.png does not exist; give an image"):
        photos.list_files([tmp_path / ("x" * 300 + ".png")])
