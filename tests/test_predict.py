"""The predict program, with a net whose estimate is known: level = gray."""

import dataclasses

import cv2
import imageio.v3 as iio
import numpy as np
import pytest
from small import gray_net, head_net

from facedepth_jax import estimator, predict
from facedepth_jax.errors import FaceDepthError

SIZE = 24


@pytest.fixture(autouse=True)
def net(monkeypatch):
    loaded = gray_net(SIZE)
    monkeypatch.setattr(estimator, "load", lambda run: loaded)
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
    """The map of one image in mm, after comparing its three files."""
    depth_mm = np.load(out / f"{name}_depth.npy", allow_pickle=False)
    png = iio.imread(out / f"{name}_depth.png")
    assert depth_mm.dtype == np.float32 and png.dtype == np.uint16
    np.testing.assert_array_equal(png, np.round(depth_mm))
    assert iio.imread(out / f"{name}_depth_color.png").shape == (SIZE, SIZE, 3)
    return depth_mm


def to_mm(gray):
    return gray * 8.0 + 500.0


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_an_image_of_the_nets_size_comes_through_pixel_by_pixel(tmp_path, out, capsys):
    gray = picture()
    iio.imwrite(tmp_path / "face.png", gray)
    assert run("--run=r", f"--out={out}", tmp_path / "face.png") == 0
    np.testing.assert_allclose(read_map(out, "face"), to_mm(gray), rtol=1e-6)
    assert names(out) == ["face_depth.npy", "face_depth.png", "face_depth_color.png"]
    said = capsys.readouterr().out
    assert "500..2540" in said and "8 mm a level" in said and "2052 where there is no depth" in said
    assert "map pixel (0, 0) is source pixel (x=0.00, y=0.00), one map pixel is 1.000 x 1.000 source pixels" in said


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp"])
def test_colour_of_many_formats(tmp_path, out, suffix):
    color = np.repeat(picture(30, 30)[..., None], 3, axis=-1)  # gray in colour: its gray image is beyond doubt
    ok, content = cv2.imencode(f".{suffix}", color, [cv2.IMWRITE_WEBP_QUALITY, 101] if suffix == "webp" else [])
    assert ok
    (tmp_path / f"face.{suffix}").write_bytes(content)
    assert run("--run=r", f"--out={out}", "--box=3,2,24,24", tmp_path / f"face.{suffix}") == 0
    np.testing.assert_allclose(read_map(out, "face"), to_mm(color[2:26, 3:27, 0]), rtol=1e-6)


def test_colour_becomes_luma_and_transparency_is_ignored(tmp_path, out):
    color = picture(SIZE, SIZE, channels=4)
    iio.imwrite(tmp_path / "face.png", color)
    assert run("--run=r", f"--out={out}", tmp_path / "face.png") == 0
    luma = color[..., :3] @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read_map(out, "face") - to_mm(luma)).max() <= 8 * 0.51


def test_exif_orientation_is_followed(tmp_path, out):
    gray = np.zeros((SIZE, SIZE), np.uint8)
    gray[:, : SIZE // 2] = 200
    jpeg = cv2.imencode(".jpg", gray)[1].tobytes()
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # 6: turn by 90 degrees clockwise
    segment = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    (tmp_path / "phone.jpg").write_bytes(jpeg[:2] + segment + jpeg[2:])
    assert run("--run=r", f"--out={out}", tmp_path / "phone.jpg") == 0
    depth_mm = read_map(out, "phone")
    assert depth_mm[: SIZE // 2 - 1].min() > 1900 and depth_mm[SIZE // 2 + 1 :].max() < 600  # left is on top now


def test_a_whole_image_that_is_not_square_is_filled_up_not_squeezed(tmp_path, out, capsys):
    gray = picture(SIZE, SIZE // 2)
    iio.imwrite(tmp_path / "face.png", gray)
    assert run("--run=r", f"--out={out}", tmp_path / "face.png") == 0
    want = np.zeros((SIZE, SIZE))
    want[:, 6:18] = gray
    np.testing.assert_allclose(read_map(out, "face"), to_mm(want), rtol=1e-6)
    assert "source pixel (x=-6.00, y=0.00)" in capsys.readouterr().out


def test_a_box_over_the_border_is_padded(tmp_path, out):
    gray = picture(50, 60)
    iio.imwrite(tmp_path / "a.png", gray)
    assert run("--run=r", f"--out={out}", "--box=-10,30,24,24", tmp_path / "a.png") == 0
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
    assert "13.33 mm at the head's distance" in said  # 320 mm / 24


@pytest.fixture
def head(monkeypatch):
    loaded = head_net(SIZE)
    monkeypatch.setattr(estimator, "load", lambda run: loaded)
    return loaded


def relief_of(gray):
    """The relief of `head_net` and its foreground."""
    return (gray - 127.5) / 127.5 * 300, gray > 100


def test_depth_from_the_head_without_its_distance_is_relief(head, tmp_path, out, capsys):
    gray = picture(30, 30)
    iio.imwrite(tmp_path / "face.png", gray)
    assert run("--run=r", f"--out={out}", "--box=3,2,24,24", tmp_path / "face.png") == 0
    assert names(out) == ["face_relief.npy", "face_relief_color.png"]
    relief_mm, front = relief_of(gray[2:26, 3:27])
    found = np.load(out / "face_relief.npy", allow_pickle=False)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.where(front, relief_mm, np.nan), atol=1e-3)
    color = iio.imread(out / "face_relief_color.png")
    np.testing.assert_array_equal(color.any(-1), front)
    nearest, farthest = (color[relief_mm == edge(relief_mm[front])][0].astype(int) for edge in (np.min, np.max))
    assert nearest[0] > nearest[2] and farthest[2] > farthest[0]  # red, blue
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("no distance is given: relief in mm from the head's distance, no depth")
    low, high = relief_mm[front].min(), relief_mm[front].max()
    assert f"face.png -> face_relief.npy: {low:.0f}..{high:.0f} mm; map pixel (0, 0) is source pixel (x=3.00" in said[2]


@pytest.mark.parametrize(
    "args, crop",
    [
        (["--distance_mm=800"], np.s_[:, :]),
        (["--distance_mm=800", "--box=6,5,24,24"], np.s_[5:29, 6:30]),
        # w = 60 * 320 / 800 = 24
        (["--distance_mm=800", "--center=17.5,16.5", "--focal_px=60"], np.s_[5:29, 6:30]),
    ],
)
def test_depth_from_the_head_with_its_distance(head, tmp_path, out, capsys, args, crop):
    gray = picture() if crop == np.s_[:, :] else picture(40, 40)
    iio.imwrite(tmp_path / "face.png", gray)
    assert run("--run=r", f"--out={out}", *args, tmp_path / "face.png") == 0
    assert names(out) == ["face_depth.npy", "face_depth.png", "face_depth_color.png"]
    relief_mm, front = relief_of(gray[crop])
    np.testing.assert_allclose(read_map(out, "face"), np.where(front, relief_mm + 800, 0), rtol=1e-6)
    np.testing.assert_array_equal(iio.imread(out / "face_depth_color.png").any(-1), front)
    said = capsys.readouterr().out
    assert "values in mm, D - 300 to D + 300 in training, D = 800; 0 = background" in said
    low, high = relief_mm[front].min() + 800, relief_mm[front].max() + 800
    assert f"face_depth.png: {low:.0f}..{high:.0f} mm;" in said


@pytest.mark.parametrize("args", [[], ["--distance_mm=800"]])
def test_a_map_of_background_alone(head, tmp_path, out, capsys, args):
    iio.imwrite(tmp_path / "dark.png", np.zeros((SIZE, SIZE), np.uint8))
    assert run("--run=r", f"--out={out}", *args, tmp_path / "dark.png") == 0
    captured = capsys.readouterr()
    assert ": nothing but background; map pixel" in captured.out and captured.err == ""
    assert not any(iio.imread(path).any() for path in out.glob("*.png"))


def test_a_folder_in_batches(tmp_path, out, monkeypatch):
    sizes, batch = [], estimator.FaceDepth.batch
    monkeypatch.setattr(estimator.FaceDepth, "batch", lambda net, gray, _: sizes.append(len(gray)) or batch(net, gray))
    folder = tmp_path / "faces"
    folder.mkdir()
    for i in range(5):
        iio.imwrite(folder / f"f{i}.png", picture(seed=i))
    (folder / "notes.txt").write_text("no image")
    assert run("--run=r", f"--out={out}", "--batch_size=2", folder) == 0
    assert sizes == [2, 2, 1]
    for i in range(5):
        np.testing.assert_allclose(read_map(out, f"f{i}"), to_mm(picture(seed=i)), rtol=1e-6)


def test_equal_names_do_not_overwrite_one_another(tmp_path, out):
    files = [tmp_path / "a" / "x.png", tmp_path / "a" / "x.bmp", tmp_path / "b" / "x.png", tmp_path / "b" / "X_2.png"]
    for i, file in enumerate(files):
        file.parent.mkdir(exist_ok=True)
        iio.imwrite(file, picture(seed=i))
    assert run("--run=r", f"--out={out}", *files) == 0
    for i, name in enumerate(["x", "x_2", "x_3", "X_2_2"]):
        np.testing.assert_allclose(read_map(out, name), to_mm(picture(seed=i)), rtol=1e-6)


def test_a_video(tmp_path, out):
    video = cv2.VideoWriter(str(tmp_path / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (48, 48))
    for value in (50, 100, 150):
        video.write(np.full((48, 48, 3), value, np.uint8))
    video.release()
    assert run("--run=r", f"--out={out}", tmp_path / "clip.avi") == 0
    assert len(names(out)) == 9
    for number, value in enumerate((50, 100, 150), 1):
        assert np.abs(read_map(out, f"clip_{number:06d}") - to_mm(value)).max() <= 8 * 4


def test_a_truncated_file_is_never_taken_for_a_whole_one(tmp_path):
    gray = cv2.resize(picture(4, 4), (16, 16))
    for suffix in ("jpg", "png"):
        whole = cv2.imencode(f".{suffix}", gray)[1].tobytes()
        file = tmp_path / f"a.{suffix}"
        file.write_bytes(whole)
        want = predict.read_gray(file)
        for length in range(0, len(whole), 3):
            file.write_bytes(whole[:length])
            try:
                np.testing.assert_array_equal(predict.read_gray(file), want)  # only an end marker is missing
            except FaceDepthError:
                continue
            assert length >= len(whole) - 16


def bad_inputs(tmp_path):
    good = tmp_path / "good.png"
    iio.imwrite(good, picture())
    (tmp_path / "empty").mkdir()
    (tmp_path / "zero.png").touch()
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:200])
    (tmp_path / "text.jpg").write_text("this is no picture")
    (tmp_path / "text.mp4").write_text("this is no video")
    iio.imwrite(tmp_path / "deep.png", picture().astype(np.uint16) * 200)
    return good


@pytest.mark.parametrize(
    "args,sentence",
    [
        (["missing.png"], "missing.png does not exist"),
        (["empty"], "empty holds no image"),
        (["zero.png"], "zero.png cannot be decoded"),
        (["cut.png"], "cut.png cannot be decoded"),
        (["text.jpg"], "text.jpg cannot be decoded"),
        (["text.mp4"], "text.mp4 holds no frame"),
        (["deep.png"], "deep.png is a uint16 image"),
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
    assert run("--run=r", f"--out={out}", tmp_path / "text.jpg", good, tmp_path / "deep.png") == 1
    captured = capsys.readouterr()
    assert len(captured.err.splitlines()) == 2
    read_map(out, "good")
    assert len(names(out)) == 3


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
    assert run("--run=r", f"--out={out}", good) == 1
    assert "not finite" in capsys.readouterr().err
    assert not out.exists()


def test_absolute_depth_has_no_use_for_the_distance_of_a_finished_crop(tmp_path, out, capsys):
    good = bad_inputs(tmp_path)
    assert run("--run=r", f"--out={out}", "--distance_mm=800", good) == 1
    assert "r estimates absolute depth: --distance_mm is for the crop" in capsys.readouterr().err
    assert not out.exists()


def test_a_place_that_cannot_be_written(tmp_path, out, capsys):
    good = bad_inputs(tmp_path)
    out.write_text("a file where the directory should be")
    assert run("--run=r", f"--out={out}", good) == 1
    assert "cannot be written" in capsys.readouterr().err


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
        ["--focal_px=300"],
        ["--focal_px=300", "--distance_mm=900"],
        ["--box=1,2,3,4", "--focal_px=300"],
        ["--batch_size=0"],
        ["--box=1,2,3,4", "--center=1,2", "--distance_mm=900", "--focal_px=300"],
    ],
)
def test_flags_that_make_no_sense(tmp_path, out, capsys, args):
    good = bad_inputs(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        run("--run=r", f"--out={out}", *args, good)
    assert exit_.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]
    assert not out.exists()
