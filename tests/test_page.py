"""page.py: a photo's relief in the browser. Chromium drives the page where it, gradio and playwright are there."""

import glob
import importlib.util
import io
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

import imageio.v3 as iio
import numpy as np
import PIL.Image
import pytest
from small import head_net, sample_photo

from facedepth_jax import estimator, page, pictures
from facedepth_jax.errors import FaceDepthError

ROOT = pathlib.Path(__file__).parent.parent


def test_a_photo_becomes_a_preview_a_model_and_a_sentence(tmp_path):
    exif = PIL.Image.Exif()
    exif.get_ifd(0x8769)[41989] = 85  # FocalLengthIn35mmFilm
    PIL.Image.fromarray(sample_photo()).save(tmp_path / "photo.jpg", exif=exif, quality=95)
    iio.imwrite(tmp_path / "photo.png", sample_photo())
    distances = []
    for name, how in (("photo.jpg", ".* EXIF's.*"), ("photo.png", "a guess: .*")):
        preview, glb, sentence = page.process(head_net(96), tmp_path / name)
        assert preview.shape == (pictures.PREVIEW_PX, 3 * pictures.PREVIEW_PX, 3) and preview.dtype == np.uint8
        assert glb.startswith(b"glTF") and np.ptp(preview) > 200
        distances.append(int(re.fullmatch(rf"Relief -?\d+ to \d+ mm; distance (\d+) mm, {how}\.", sentence)[1]))
    assert distances[0] == pytest.approx(distances[1] * 85 / estimator.FOCAL_35MM, rel=0.03)


def test_a_photo_without_a_face(tmp_path):
    iio.imwrite(tmp_path / "wall.png", np.full((200, 200, 3), 130, np.uint8))
    with pytest.raises(FaceDepthError, match="^wall.png: no face is found; give a photo that shows one"):
        page.process(head_net(96), tmp_path / "wall.png")


def test_a_face_without_a_surface_makes_no_model(monkeypatch, tmp_path):
    """Two pixels of foreground make no triangle, and an empty accessor is no glTF."""
    net = head_net(96)
    dark = np.zeros((96, 96, 3), np.uint8)
    dark[40, 40:42] = 200
    monkeypatch.setattr(type(net), "find", lambda self, image, **_: [net.look(image, (0, 0, 96, 96))])
    iio.imwrite(tmp_path / "dark.png", dark)
    with pytest.raises(FaceDepthError, match="no face is found"):
        page.process(net, tmp_path / "dark.png")


def test_without_the_extra(monkeypatch, capsys):
    monkeypatch.setattr(estimator, "load", lambda run: head_net(96))
    monkeypatch.setitem(sys.modules, "gradio", None)
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")  # to be restored
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert page.main([]) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "error: The page needs the extra `page`" in capsys.readouterr().err


class _NoPort:
    def launch(self, **_):
        raise OSError("Cannot find empty port")


def test_a_port_that_is_taken_and_no_other_fault(monkeypatch, capsys):
    monkeypatch.setattr(estimator, "load", lambda run: head_net(96))
    monkeypatch.setattr(page, "build", lambda net, folder: _NoPort())
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "")  # to be restored
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert page.main(["--port=7000"]) == 1
    assert capsys.readouterr().err.startswith("error: Port 7000 cannot be used")

    def full(net, folder):
        raise OSError("No space left on device")

    monkeypatch.setattr(page, "build", full)
    with pytest.raises(OSError, match="No space left"):
        page.main([])


@pytest.fixture
def served():
    """Serve the net that ships, and give the page's address; its files are gone afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = set(glob.glob(f"{tempfile.gettempdir()}/facedepth_page_*"))
    command = [sys.executable, "-u", "-m", "facedepth_jax.page", "--run=shipped", f"--port={port}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as program:
        try:
            said = []
            for line in program.stdout:
                said.append(line)
                if "Running on" in line:
                    break
            else:
                pytest.fail("".join(said))
            yield f"http://127.0.0.1:{port}"
        finally:
            program.terminate()
    assert program.returncode == 0
    assert set(glob.glob(f"{tempfile.gettempdir()}/facedepth_page_*")) <= files


@pytest.mark.skipif(
    not (shutil.which("chromium") and all(map(importlib.util.find_spec, ("gradio", "playwright")))),
    reason="the page is not tried in a browser: chromium, gradio or playwright is not installed",
)
def test_the_page_in_a_browser(served, tmp_path):
    """The sample photo and one of the user's; the model turns; nothing is asked from another host."""
    from playwright.sync_api import sync_playwright

    flags = "--no-sandbox --use-gl=angle --use-angle=swiftshader --enable-unsafe-swiftshader".split()
    elsewhere = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        view = browser.new_page(viewport={"width": 1280, "height": 900})
        view.set_default_timeout(120_000)
        view.on("request", lambda r: r.url.startswith((served, "data:", "blob:")) or elsewhere.append(r.url))
        view.goto(served)
        view.locator("#sample").click()
        view.locator("#preview img").wait_for()
        first = view.locator("#sentence").inner_text()
        assert "distance" in first
        canvas = view.locator("#model canvas")
        canvas.wait_for()
        view.wait_for_timeout(5000)
        front = canvas.screenshot()
        box = canvas.bounding_box()
        view.screenshot(path=tmp_path / "page.png")  # to look at: pytest --basetemp=DIR
        view.mouse.move(box["x"] + 400, box["y"] + 200)
        view.mouse.down()
        view.mouse.move(box["x"] + 520, box["y"] + 200, steps=5)
        view.mouse.up()
        view.wait_for_timeout(2000)
        turned = canvas.screenshot()
        for content in (front, turned):
            assert np.std(iio.imread(io.BytesIO(content))[..., :3]) > 10  # something is there
        assert np.mean(iio.imread(io.BytesIO(front)) != iio.imread(io.BytesIO(turned))) > 0.01

        iio.imwrite(tmp_path / "closer.png", sample_photo()[60:480, 80:420])
        view.locator("input[type=file]").set_input_files(tmp_path / "closer.png")
        view.wait_for_function(
            "old => document.querySelector('#sentence').innerText.trim() != old.trim() && "
            "document.querySelector('#sentence').innerText.includes('distance')",
            arg=first,
        )
        browser.close()
    assert not elsewhere
