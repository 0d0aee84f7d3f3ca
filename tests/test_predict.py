"""The predict program, with a net whose estimate is known: level = gray. Reading files: test_photos.py."""

import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys

import cv2
import imageio.v3 as iio
import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest
import scipy.ndimage
import scipy.spatial
import trimesh
from small import gray_net, head_net, sample_photo

from facedepth_jax import estimator, predict
from facedepth_jax.data.crop import Window
from facedepth_jax.errors import FaceDepthError

SIZE = 24


@pytest.fixture(autouse=True)
def net(monkeypatch):
    loaded = gray_net(SIZE)
    monkeypatch.setattr(estimator, "load", lambda run=None: loaded)
    return loaded


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def picture(height=SIZE, width=SIZE, seed=0, channels=None):
    shape = (height, width) if channels is None else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def run(*args):
    return predict.main([str(a) for a in args])


def read_map(out, name):
    """The depth of one image in mm, after comparing its files."""
    depth_mm = np.load(out / f"{name}_depth.npy", allow_pickle=False)
    png = iio.imread(out / f"{name}_depth.png")
    assert depth_mm.dtype == np.float32 and png.dtype == np.uint16
    np.testing.assert_array_equal(png, np.round(depth_mm))
    assert iio.imread(out / f"{name}_preview.png").shape == (384, 3 * 384, 3)
    return depth_mm


def files_of(*names, models=True):
    kinds = ["_depth.npy", "_depth.png", "_mask.png", "_preview.png", "_relief.npy", ".json"]
    kinds += [".glb", ".ply"] * models
    return sorted(name + kind for name in names for kind in kinds)


def to_mm(gray):
    return gray * 8.0 + 500.0


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_an_image_of_the_nets_size_comes_through_pixel_by_pixel(tmp_path, out, capsys):
    gray = picture()
    iio.imwrite(tmp_path / "face.png", gray)
    assert run("--run=r", f"--out={out}", "--whole", tmp_path / "face.png") == 0
    np.testing.assert_allclose(read_map(out, "face"), to_mm(gray), rtol=1e-6)
    assert names(out) == files_of("face")
    said = capsys.readouterr().out
    assert "mm, by the net; relief" in said
    assert "map pixel (0, 0) is source pixel (x=0.00, y=0.00), one map pixel is 1.000 x 1.000 source pixels" in said


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp"])
def test_colour_of_many_formats(tmp_path, out, suffix):
    color = np.repeat(picture(30, 30)[..., None], 3, axis=-1)  # gray in colour: its gray image is beyond doubt
    ok, content = cv2.imencode(f".{suffix}", color, [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == "webp" else [])
    assert ok
    (tmp_path / f"face.{suffix}").write_bytes(content)
    assert run("--run=r", f"--out={out}", "--box=3,2,24,24", tmp_path / f"face.{suffix}") == 0
    np.testing.assert_allclose(read_map(out, "face"), to_mm(color[2:26, 3:27, 0]), rtol=1e-6)


def test_a_whole_image_that_is_not_square_is_filled_up_not_squeezed(tmp_path, out, capsys):
    gray = picture(SIZE, SIZE // 2)
    iio.imwrite(tmp_path / "face.png", gray)
    assert run("--run=r", f"--out={out}", "--whole", tmp_path / "face.png") == 0
    want = np.zeros((SIZE, SIZE))
    want[:, 6:18] = gray
    np.testing.assert_allclose(read_map(out, "face"), to_mm(want), rtol=1e-6)
    assert "source pixel (x=-6.00, y=0.00)" in capsys.readouterr().out


def test_a_box_over_the_border_is_padded(tmp_path, out):
    gray = picture(50, 60)
    iio.imwrite(tmp_path / "a.png", gray)
    assert run("--run=r", f"--out={out}", "--box", "-10,30,24,24", tmp_path / "a.png") == 0
    want = np.zeros((SIZE, SIZE))
    want[:20, 10:] = gray[30:, :14]
    np.testing.assert_allclose(read_map(out, "a"), to_mm(want), rtol=1e-6)


def test_center_and_distance_give_the_crop_of_eq_6(tmp_path, out, capsys):
    gray = picture(200, 260)
    iio.imwrite(tmp_path / "a.png", gray)
    # w = 300 * 320 / 1000 = 96 pixels, four to a map pixel; middle at (130, 100.5)
    args = ["--center=129.5,99.5", "--distance_mm=1000", "--focal_px=300"]
    assert run("--run=r", f"--out={out}", *args, tmp_path / "a.png") == 0
    want = gray[52:148, 82:178].reshape(SIZE, 4, SIZE, 4).mean(axis=(1, 3))
    assert np.abs(read_map(out, "a") - to_mm(want)).max() <= 8 * 0.51
    said = capsys.readouterr().out
    assert "source pixel (x=83.50, y=53.50), one map pixel is 4.000 x 4.000 source pixels" in said


@pytest.fixture
def head(monkeypatch):
    loaded = head_net(SIZE)
    monkeypatch.setattr(estimator, "load", lambda run=None: loaded)
    return loaded


def relief_of(gray):
    """The relief of `head_net` and its foreground, of which the largest piece is left."""
    pieces, _ = scipy.ndimage.label(gray > 100)
    return (gray - 127.5) / 127.5 * 300, pieces == np.bincount(pieces.ravel())[1:].argmax() + 1


@pytest.mark.parametrize(
    "args, crop, distance_mm, how",
    [
        (["--whole", "--distance_mm=800"], np.s_[:, :], 800, "as given"),
        (["--box=6,5,24,24", "--distance_mm=800"], np.s_[5:29, 6:30], 800, "as given"),
        # w = 60 * 320 / 800 = 24
        (["--center=17.5,16.5", "--distance_mm=800", "--focal_px=60"], np.s_[5:29, 6:30], 800, "as given"),
        (
            ["--box=6,5,24,24", "--focal_px=75"],
            np.s_[5:29, 6:30],
            1000,
            "by the focal length (given, or EXIF's) and the face's size",
        ),
        (["--box=6,5,24,24"], np.s_[5:29, 6:30], 28 / 36 * 40 * 320 / 24, "a guess: by a phone's focal length, 28 mm"),
    ],
)
def test_depth_from_the_head_and_its_distance(head, tmp_path, out, capsys, args, crop, distance_mm, how):
    gray = picture() if "--whole" in args else picture(40, 40)
    iio.imwrite(tmp_path / "face.png", gray)
    assert run("--run=r", f"--out={out}", *args, tmp_path / "face.png") == 0
    assert names(out) == files_of("face")
    relief_mm, front = relief_of(gray[crop])
    found = np.load(out / "face_relief.npy", allow_pickle=False)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.where(front, relief_mm, np.nan), atol=1e-3)
    np.testing.assert_allclose(read_map(out, "face"), np.where(front, relief_mm + distance_mm, 0), rtol=1e-6)
    np.testing.assert_array_equal(iio.imread(out / "face_mask.png"), front * 255)
    said = capsys.readouterr().out
    low, high = relief_mm[front].min(), relief_mm[front].max()
    assert f"D = {distance_mm:.0f} mm, {how}" in said and f"relief {low:.0f} to {high:.0f} mm;" in said


def test_the_preview_shows_photo_colours_and_shade(head, tmp_path, out):
    """A ramp that is nearest on the left: red there, blue on the right; nothing but black on the background."""
    ramp = np.tile(np.linspace(110, 250, SIZE).astype(np.uint8), (SIZE, 1))
    ramp[:8] = 0
    iio.imwrite(tmp_path / "face.png", ramp)
    assert run("--run=r", f"--out={out}", "--whole", tmp_path / "face.png") == 0
    photo, color, shaded = np.split(iio.imread(out / "face_preview.png").astype(int), 3, axis=1)
    assert abs(photo[200:360, 20:-20, 0] - cv2.resize(ramp, (384, 384))[200:360, 20:-20]).max() <= 2
    assert not color[:110].any() and color[200:].any(-1).all() and (shaded[:110] == 25).all()
    assert color[300, 10, 0] > color[300, 10, 2] and color[300, 370, 2] > color[300, 370, 0]
    assert len(np.unique(shaded[250:350, 50:330])) < 60  # a plane has one shade but for the ramp's rounding


def test_maps_in_place_lie_on_the_photo(head, tmp_path, out, capsys):
    gray = np.full((60, 80), 255, np.uint8)
    gray[20:44, 30:54] = 120
    iio.imwrite(tmp_path / "face.png", gray)
    assert (
        run("--run=r", f"--out={out}", "--in_place", "--box=24,14,48,48", "--distance_mm=900", tmp_path / "face.png")
        == 0
    )
    assert "map pixel" not in capsys.readouterr().out
    relief_mm, depth_mm = np.load(out / "face_relief.npy"), read_map(out, "face")
    assert relief_mm.shape == depth_mm.shape == iio.imread(out / "face_mask.png").shape == (60, 80)
    there = np.isfinite(relief_mm)
    assert there[15:60, 25:71].all() and not there[:13].any() and not there[:, :23].any() and not there[:, 73:].any()
    np.testing.assert_allclose(relief_mm[24:40, 34:50], relief_of(120)[0], atol=1e-3)
    np.testing.assert_allclose(relief_mm[48:58, 58:70], relief_of(255)[0], atol=1e-3)
    np.testing.assert_allclose(depth_mm, np.nan_to_num(relief_mm + 900), atol=1e-3)


@pytest.mark.parametrize("in_place", [False, True])
def test_the_facts_lead_from_a_map_to_the_model(head, tmp_path, out, in_place):
    """Each map pixel's ray, by a pinhole camera at the photo's middle, meets the surface at its depth."""
    gray = np.tile(np.linspace(150, 160, 80).astype(np.uint8), (60, 1))
    iio.imwrite(tmp_path / "face.png", gray)
    args = ["--box=20,2,48,48", "--distance_mm=900", *["--in_place"] * in_place]
    assert run("--run=r", f"--out={out}", *args, tmp_path / "face.png") == 0
    facts = json.loads((out / "face.json").read_text())
    assert facts == {
        "file": "face.png",
        "box": [20, 2, 48, 48],
        "map_to_photo": [[1, 0, 0], [0, 1, 0]] if in_place else [[2, 0, 20.5], [0, 2, 2.5]],
        "distance_mm": 900,
        "distance_from": "given",
        "focal_px": 900 * 48 / 320,
        "middle_px": [39.5, 29.5],
    }
    depth_mm = read_map(out, "face")
    y, x = np.nonzero(depth_mm)
    places = np.stack([x, y, np.ones_like(x)], -1) @ np.transpose(facts["map_to_photo"])
    rays = np.column_stack([(places - facts["middle_px"]) / facts["focal_px"], np.ones(len(x))])
    points = rays * depth_mm[y, x, None]
    found = np.array(trimesh.load(out / "face.ply").vertices)
    assert len(points) >= 500 and len(found) == SIZE**2
    apart, _ = scipy.spatial.cKDTree(found).query(points)
    assert apart.max() < (8 if in_place else 1e-3)  # in place there are more pixels than points, 13 mm apart


def test_a_map_of_background_alone(head, tmp_path, out, capsys):
    iio.imwrite(tmp_path / "dark.png", np.zeros((SIZE, SIZE), np.uint8))
    assert run("--run=r", f"--out={out}", "--whole", tmp_path / "dark.png") == 0
    captured = capsys.readouterr()
    assert "; nothing but background; map pixel" in captured.out and captured.err == ""
    assert names(out) == files_of("dark", models=False)
    assert not any(iio.imread(out / f"dark_{kind}.png").any() for kind in ("depth", "mask"))


def test_a_photo_too_long_for_maps_in_place_does_not_hold_up_the_others(head, tmp_path, out, capsys):
    iio.imwrite(tmp_path / "long.png", np.full((4, 32768), 200, np.uint8))
    iio.imwrite(tmp_path / "face.png", picture())
    inputs = tmp_path / "long.png", tmp_path / "face.png"
    assert run("--run=r", f"--out={out}", "--in_place", "--box=0,0,24,24", *inputs) == 1
    assert re.fullmatch(rf"error: {inputs[0]}: The image is 32768 x 4 pixels.*\n", capsys.readouterr().err)
    assert names(out) == files_of("face")


def test_two_points_make_no_model(head, tmp_path, out):
    gray = np.zeros((SIZE, SIZE), np.uint8)
    gray[10, 10:12] = 200
    iio.imwrite(tmp_path / "dark.png", gray)
    assert run("--run=r", f"--out={out}", "--whole", tmp_path / "dark.png") == 0
    assert names(out) == files_of("dark", models=False)


@pytest.fixture(scope="module")
def hopper():
    return sample_photo()


def test_faces_are_found(head, tmp_path, out, capsys, hopper):
    """Two faces side by side, the second smaller; a plain image has none, and the next file goes on."""
    small = cv2.resize(hopper, None, fx=0.7, fy=0.7, interpolation=cv2.INTER_AREA)
    both = np.zeros((600, 512 + small.shape[1], 3), np.uint8)
    both[:, :512], both[: small.shape[0], 512:] = hopper, small
    iio.imwrite(tmp_path / "two.png", both)
    iio.imwrite(tmp_path / "none.png", picture(200, 200))
    inputs = tmp_path / "none.png", tmp_path / "two.png"
    assert run(f"--out={out}", *inputs) == 1
    captured = capsys.readouterr()
    assert captured.err == (
        f"error: {inputs[0]}: no face is found; give a square around it by --box, or say --whole.\n"
    )
    assert names(out) == files_of("two")
    assert run(f"--out={out}", "--faces=all", inputs[1]) == 0
    assert names(out) == files_of("two", "two_2")
    boxes = re.findall(r"two\w*: face of (\d+) x (\d+) pixels at x=(\d+), y=(\d+)", capsys.readouterr().out)
    (w, h, x, y), (w2, h2, x2, y2) = np.array(boxes, float)
    np.testing.assert_allclose([w2, h2, x2 - 512, y2], 0.7 * np.array([w, h, x, y]), atol=15)
    np.testing.assert_allclose([x + w / 2, y + h / 2], [267, 226], atol=12)  # her nose is at (266, 240)


def test_exifs_focal_length_gives_the_distance(head, tmp_path, out, capsys, hopper):
    exif = PIL.Image.Exif()
    exif.get_ifd(PIL.ExifTags.IFD.Exif)[PIL.ExifTags.Base.FocalLengthIn35mmFilm] = 54
    PIL.Image.fromarray(hopper).save(tmp_path / "phone.jpg", exif=exif, quality=95)
    assert run(f"--out={out}", tmp_path / "phone.jpg") == 0
    said = capsys.readouterr().out
    assert "by the focal length (given, or EXIF's) and the face's size" in said
    w, h = map(int, re.search(r"face of (\d+) x (\d+)", said).groups())
    assert int(re.search(r"D = (\d+) mm", said)[1]) == pytest.approx(54 / 36 * 600 * 158 / np.sqrt(w * h), rel=0.01)
    assert run(f"--out={out}", "--focal_px=900", tmp_path / "phone.jpg") == 0
    assert int(re.search(r"D = (\d+) mm", capsys.readouterr().out)[1]) == pytest.approx(
        900 * 158 / np.sqrt(w * h), rel=0.01
    )
    window = np.load(out / "phone_relief.npy")
    assert run(f"--out={out}", "--distance_mm=900", tmp_path / "phone.jpg") == 0
    np.testing.assert_array_equal(np.load(out / "phone_relief.npy"), window)  # the same: the photo may have been cut


def test_a_folder(tmp_path, out, capsys):
    folder = tmp_path / "faces"
    folder.mkdir()
    for i in range(3):
        iio.imwrite(folder / f"f{i}.png", picture(seed=i) // 8)  # flat enough for triangles
    iio.imwrite(folder / "moves.gif", [picture(seed=i) for i in range(2)], loop=0)
    (folder / "notes.txt").write_text("no image")
    (folder / "deeper").mkdir()
    (folder / "._f0.png").write_bytes(b"a Mac's note on a file")
    assert run("--run=r", f"--out={out}", "--whole", folder) == 0
    assert capsys.readouterr().err == "left out, no image or video of a kind that can be read: deeper/, notes.txt\n"
    moves = files_of("moves_000001", "moves_000002", models=False)
    assert names(out) == sorted(files_of("f0", "f1", "f2") + moves)
    for i in range(3):
        np.testing.assert_allclose(read_map(out, f"f{i}"), to_mm(picture(seed=i) // 8), rtol=1e-6)


def test_equal_names_do_not_overwrite_one_another(tmp_path, out):
    files = [tmp_path / "a" / "x.png", tmp_path / "a" / "x.bmp", tmp_path / "b" / "x.png", tmp_path / "b" / "X_2.png"]
    for i, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        iio.imwrite(file, picture(seed=i))
    assert run("--run=r", f"--out={out}", "--whole", *files) == 0
    for i, name in enumerate(["x", "x_2", "x_3", "X_2_2"]):
        np.testing.assert_allclose(read_map(out, name), to_mm(picture(seed=i)), rtol=1e-6)


def write_video(path, frames):
    height, width = frames[0].shape[:2]
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (width, height))
    for frame in frames:
        video.write(frame[..., ::-1])
    video.release()


def test_a_video(tmp_path, out):
    write_video(tmp_path / "clip.avi", [np.full((48, 48, 3), value, np.uint8) for value in (50, 100, 150)])
    assert run("--run=r", f"--out={out}", "--whole", tmp_path / "clip.avi") == 0
    assert names(out) == files_of(*(f"clip_{number:06d}" for number in (1, 2, 3)), models=False)
    for number, value in enumerate((50, 100, 150), 1):
        assert np.abs(read_map(out, f"clip_{number:06d}") - to_mm(value)).max() <= 8 * 4


def test_a_video_that_breaks_off_is_an_error_and_keeps_what_came(tmp_path, out, capsys):
    write_video(tmp_path / "clip.avi", [picture(160, 160, seed=i, channels=3) for i in range(10)])
    content = (tmp_path / "clip.avi").read_bytes()
    (tmp_path / "clip.avi").write_bytes(content[: len(content) * 7 // 10])
    assert run("--run=r", f"--out={out}", "--whole", tmp_path / "clip.avi") == 1
    found = len(list(out.glob("*_depth.png")))
    assert 0 < found < 10
    assert f"clip.avi breaks off after {found} of 10 frames" in capsys.readouterr().err


def test_a_frame_without_a_face_is_told_of(head, tmp_path, out, capsys, hopper):
    write_video(tmp_path / "clip.avi", [hopper, np.zeros_like(hopper), hopper])
    assert run(f"--out={out}", tmp_path / "clip.avi") == 0
    assert names(out) == files_of("clip_000001", "clip_000003", models=False)
    assert capsys.readouterr().err == f"{tmp_path}/clip.avi: no face is found in 1 of 3 frames\n"


def test_a_face_smoothed_over_time():
    """Window and relief move a quarter of the way; another face, farther away, is no earlier one of this."""
    net = head_net(SIZE)
    images = [np.full((100, 100, 3), value, np.uint8) for value in (120, 200)]
    windows = [Window(50, 50, side, side, roll) for side, roll in ((48, 178), (40, -174))]
    last, new = (net.look(image, window) for image, window in zip(images, windows, strict=True))
    smoothed = predict.smooth(net, new, [net.look(images[0], Window(75, 50, 40, 40)), last], 0.75)
    assert smoothed.window == Window(50, 50, 46, 46, -174 - 6)
    assert len({last.distance_mm, new.distance_mm, smoothed.distance_mm}) == 3
    expected = 0.75 * relief_of(120)[0] + 0.25 * relief_of(200)[0]
    np.testing.assert_allclose(smoothed.relief_mm, expected, atol=1e-2)
    np.testing.assert_allclose(smoothed.depth_mm, expected + smoothed.distance_mm, atol=1e-2)
    assert predict.smooth(net, new, [last], 0) is new
    assert predict.smooth(net, new, [dataclasses.replace(last, window=Window(61, 50, 40, 40))], 0.75) is new


def test_absolute_depth_smoothed_over_time(net):
    images = [np.full((100, 100, 3), value, np.uint8) for value in (20, 40)]
    last, new = (net.look(image, Window(50, 50, 40, 40)) for image in images)
    smoothed = predict.smooth(net, new, [last], 0.75)
    assert smoothed.distance_mm == pytest.approx(to_mm(25))
    np.testing.assert_allclose(smoothed.depth_mm, to_mm(25), rtol=1e-6)
    np.testing.assert_allclose(smoothed.relief_mm, 0, atol=1e-3)


def bad_inputs(tmp_path):
    good = tmp_path / "good.png"
    iio.imwrite(good, picture())
    (tmp_path / "empty").mkdir()
    (tmp_path / "zero.png").touch()
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:200])
    (tmp_path / "text.jpg").write_text("this is no picture")
    (tmp_path / "text.mp4").write_text("this is no video")
    iio.imwrite(tmp_path / "deep.png", picture().astype(np.uint16) * 200)
    iio.imwrite(tmp_path / "dot.png", picture(1, 1))
    return good


@pytest.mark.parametrize(
    "args,sentence",
    [
        (["missing.png"], "missing.png does not exist"),
        (["x" * 300], "x does not exist"),
        (["empty"], "empty holds no image"),
        (["good.png"], "good.png: no face is found"),
        (["dot.png"], "dot.png: no face is found"),
        (["zero.png"], "zero.png cannot be decoded"),
        (["cut.png"], "cut.png cannot be decoded"),
        (["text.jpg"], "text.jpg cannot be decoded"),
        (["text.mp4"], "text.mp4 holds no frame"),
        (["deep.png"], "deep.png is no 8-bit image (its mode is I;16); convert it first"),
        (["good.png", "--box=0,0,0,5"], "at x=0, y=0 is empty"),
        (["good.png", "--box=30,0,5,5"], "lies outside the image of 24 x 24"),
        (["good.png", "--box=-5,0,5,5"], "lies outside the image of 24 x 24"),
        (["good.png", "--box=-5,0,1000000,1000000"], "too large"),
        (["good.png", "--center=12,12", "--distance_mm=0.001", "--focal_px=300"], "too large"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(tmp_path, out, capsys, args, sentence):
    bad_inputs(tmp_path)
    args = [a if a.startswith("--") else tmp_path / a for a in args]
    assert run("--run=r", f"--out={out}", *args) == 1
    said = capsys.readouterr().err.splitlines()  # ours; libpng and FFmpeg write theirs past Python
    assert len(said) == 1 and sentence in said[0]
    assert not out.exists()


def test_one_bad_file_does_not_hold_up_the_others(tmp_path, out, capsys):
    good = bad_inputs(tmp_path)
    assert run("--run=r", f"--out={out}", "--whole", tmp_path / "text.jpg", good, tmp_path / "deep.png") == 1
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 2
    assert names(out) == files_of("good")


def test_a_directory_without_a_run(tmp_path, out, capsys, monkeypatch):
    good = bad_inputs(tmp_path)

    def no_run(run):
        raise FaceDepthError(f"There is no run in {run}.")

    monkeypatch.setattr(estimator, "load", no_run)
    assert run("--run=nowhere", f"--out={out}", good) == 1
    assert capsys.readouterr().err == "error: There is no run in nowhere.\n"
    assert not out.exists()


def test_weights_that_are_not_finite(tmp_path, out, capsys, net, monkeypatch):
    good = bad_inputs(tmp_path)
    code = dataclasses.replace(net.code, step_mm=np.nan)
    monkeypatch.setattr(estimator, "load", lambda run: dataclasses.replace(net, code=code))
    assert run("--run=r", f"--out={out}", "--whole", good) == 1
    assert "not finite" in capsys.readouterr().err
    assert not out.exists()


def test_absolute_depth_has_no_use_for_the_distance_of_a_finished_crop(tmp_path, out, capsys):
    good = bad_inputs(tmp_path)
    assert run("--run=r", f"--out={out}", "--whole", "--distance_mm=800", good) == 1
    assert "r estimates absolute depth: --distance_mm is for the crop" in capsys.readouterr().err
    assert not out.exists()


def test_a_place_that_cannot_be_written(tmp_path, out, capsys, monkeypatch):
    good = bad_inputs(tmp_path)
    out.write_text("a file where the directory should be")
    assert run("--run=r", f"--out={out}", "--whole", good) == 1
    assert capsys.readouterr().err == f"error: --out={out} is a file; give a directory.\n"
    for place in (f"{out}/deeper", tmp_path / ("x" * 300)):
        assert run("--run=r", f"--out={place}", "--whole", good) == 1
        assert "cannot be written" in capsys.readouterr().err


def test_a_tilde_is_the_home(tmp_path, capsys, monkeypatch):
    bad_inputs(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("--run=r", "--out=~/out", "--whole", "~/good.png") == 0
    assert names(tmp_path / "out") == files_of("good")


def test_a_name_that_is_no_utf8(tmp_path, out, capsys):
    file = tmp_path / os.fsdecode(b"caf\xe9.png")
    iio.imwrite(tmp_path / "good.png", picture())
    (tmp_path / "good.png").rename(file)
    sys.stdout.reconfigure(errors="backslashreplace")  # as runtime.tune does for the program
    assert run("--run=r", f"--out={out}", "--whole", file) == 0
    assert r"caf\udce9.png -> caf\udce9: face" in capsys.readouterr().out
    assert names(out) == files_of("caf\udce9")
    assert json.loads((out / file.with_suffix(".json").name).read_text())["file"] == "caf\ufffd.png"


def test_a_reader_that_closes_the_pipe(tmp_path, out):
    """`predict ... | head -1`"""
    for i in range(20):
        iio.imwrite(tmp_path / f"{i}.png", picture())
    (tmp_path / "small").mkdir()
    code = (
        "import sys; sys.path.insert(0, 'tests'); from small import gray_net;"
        "from facedepth_jax import estimator, predict;"
        f"estimator.load = lambda run: gray_net({SIZE}); sys.exit(predict.main())"
    )
    command = [sys.executable, "-c", code, f"--out={out}", "--whole", *map(str, sorted(tmp_path.glob("*.png")))]
    root = pathlib.Path(__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_out_is_not_the_inputs_own_folder(tmp_path, capsys):
    good = bad_inputs(tmp_path)
    before = names(tmp_path)
    assert run("--run=r", f"--out={tmp_path}", good) == 1
    assert "holds the inputs" in capsys.readouterr().err
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    "args",
    [
        ["--box=1,2,3"],
        ["--box=1,2,3,x"],
        ["--center=1,2"],
        ["--center=nan,2", "--distance_mm=900", "--focal_px=300"],
        ["--center=1,2", "--distance_mm=900"],
        ["--center=1,2", "--distance_mm=0", "--focal_px=300"],
        ["--center=1,2", "--distance_mm=1e-308", "--focal_px=300"],
        ["--focal_px=0"],
        ["--smooth=1"],
        ["--box=1,2,3,4", "--center=1,2", "--distance_mm=900", "--focal_px=300"],
        ["--whole", "--faces=all"],
    ],
)
def test_flags_that_make_no_sense(tmp_path, out, capsys, args):
    good = bad_inputs(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        run("--run=r", f"--out={out}", *args, good)
    assert exit_.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()
