"""What SECURITY.md says of files from strangers, tried."""

import os
import pathlib
import socket
import struct
import subprocess
import sys
import zlib

import cv2
import numpy as np
import pytest
from writers import make_cropped, make_pandora, write_sequence

from facedepth_jax import photos
from facedepth_jax.data import images
from facedepth_jax.data.readers.biwi import BiwiSource
from facedepth_jax.data.readers.pandora import PandoraSource
from facedepth_jax.errors import FaceDepthError

ROOT = pathlib.Path(__file__).parents[1]


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_bomb(width, height):
    """A whole PNG of 16-bit gray whose pixels are not there: a few bytes that ask for gigabytes."""
    header = struct.pack(">IIBBBBB", width, height, 16, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg_bomb():
    content = bytearray(cv2.imencode(".jpg", np.zeros((16, 16), np.uint8))[1].tobytes())
    at = content.index(b"\xff\xc0")
    content[at + 5 : at + 9] = struct.pack(">HH", 65500, 65500)
    return bytes(content)


READ_BOMBS = """
import pathlib, resource, sys
from facedepth_jax import photos
from facedepth_jax.data import images
from facedepth_jax.errors import FaceDepthError
import cv2
root, used = pathlib.Path(sys.argv[1]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sys.argv[2:]:
    for read in (
        lambda: images.read_gray(root, name),
        lambda: images.read_depth(root, name),
        lambda: next(photos.read(root / name)).rgb,
    ):
        try:
            print("read", read().shape)
        except (images.Unusable, FaceDepthError) as error:
            print("refused")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used)
"""


def test_an_image_of_too_many_pixels_takes_no_memory(tmp_path):
    (tmp_path / "a.png").write_bytes(png_bomb(60_000, 60_000))
    (tmp_path / "b.png").write_bytes(png_bomb(8_193, 8_192))  # just above 64 Mi
    (tmp_path / "c.jpg").write_bytes(jpeg_bomb())
    command = [sys.executable, "-c", READ_BOMBS, str(tmp_path), "a.png", "b.png", "c.jpg"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("OPENCV")}  # predict sets it
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=env)
    *said, grown_kb = done.stdout.splitlines()
    assert said == ["refused"] * 9 and int(grown_kb) < 60_000  # 64 Mi pixels of 16 bits are 128 MB


def test_the_limit_of_pixels_is_no_lower(tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((1, 2**16), np.uint8))
    assert images.read_gray(tmp_path, "a.png").shape == (1, 2**16)


def test_a_video_of_too_large_frames_is_not_decoded(tmp_path, monkeypatch):
    file = tmp_path / "clip.avi"
    video = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 10, (48, 40))
    video.write(np.zeros((40, 48, 3), np.uint8))
    video.release()
    assert [photo.rgb.shape for photo in photos.read(file)] == [(40, 48, 3)]
    monkeypatch.setattr(photos, "MAX_PIXELS", 48 * 40 - 1)
    with pytest.raises(FaceDepthError, match="clip.avi has frames of 48 x 40 pixels, over 1919"):
        next(photos.read(file))


@pytest.mark.parametrize("suffix", sorted(photos.VIDEO_SUFFIXES))
def test_a_playlist_that_calls_itself_a_video_opens_no_connection(tmp_path, suffix):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.05)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        playlists = (
            f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{address}\n#EXT-X-ENDLIST\n",
            f"ffconcat version 1.0\nfile {address}\n",
            f"ffconcat version 1.0\nfile {ROOT / 'docs' / 'demo.png'}\n",
            f"RTSPtext\r\n{address.replace('http', 'rtsp')}\r\n",
        )
        for text in playlists:
            (tmp_path / f"a{suffix}").write_text(text)
            with pytest.raises(FaceDepthError, match="holds no frame"):
                list(photos.read(tmp_path / f"a{suffix}"))
        with pytest.raises(TimeoutError):
            server.accept()


def make_biwi(root):
    return write_sequence(root / "hpdb" / "03")


def make_masks(root):
    make_biwi(root)
    (root / "head_pose_masks" / "03").mkdir(parents=True)
    return root / "head_pose_masks" / "03"


RAW = {
    "biwi": (make_biwi, BiwiSource, {}, "frame_00003_rgb.png"),
    "biwi's masks": (make_masks, BiwiSource, {"mask": True}, "frame_00003_depth_mask.png"),
    "pandora": (make_pandora, PandoraSource, {}, "RGB/000000_RGB.png"),
    "pandora, cropped": (lambda root: make_cropped(root)[2], PandoraSource, {}, "frame_000000_face_rgb.png"),
}


def place(path, target):
    path.unlink(missing_ok=True)
    path.symlink_to(target)


TRICKS = {
    "a file": lambda folder, image, out: place(folder / image, out / "private.png"),
    "a file, relative": lambda folder, image, out: place(
        folder / image, os.path.relpath(out / "private.png", (folder / image).parent)
    ),
    "a text": lambda folder, image, out: place(folder / "data.json", out / "private.png"),
    "a circle": lambda folder, image, out: place(folder / image, (folder / image).name),
    "the folder": lambda folder, image, out: (folder.rename(out / folder.name), folder.symlink_to(out / folder.name)),
    "the folder above": lambda folder, image, out: (
        folder.parent.rename(out / "above"),
        folder.parent.symlink_to(out / "above"),
    ),
}


@pytest.mark.parametrize("trick", TRICKS)
@pytest.mark.parametrize("raw", RAW)
def test_a_link_out_of_a_raw_directory_is_refused(tmp_path, raw, trick):
    make, source, options, image = RAW[raw]
    (tmp_path / "out").mkdir()
    cv2.imwrite(str(tmp_path / "out" / "private.png"), np.zeros((4, 4), np.uint8))
    root = tmp_path / "raw"
    folder = make(root)
    source(str(root), **options)
    if (folder.parent, trick) == (root, "the folder above"):
        root.rename(tmp_path / "out" / "raw")  # who gives a link as --raw means where it leads
        root.symlink_to(tmp_path / "out" / "raw")
        source(str(root), **options)
        return
    if (raw, trick) == ("biwi's masks", "the folder above"):
        TRICKS[trick](folder, image, tmp_path / "out")
        source(str(root), **options)  # the same of the masks: they may lie beside the data anyway
        return
    TRICKS[trick](folder, image, tmp_path / "out")
    with pytest.raises(FaceDepthError, match="leads out of .* by a symbolic link"):
        source(str(root), **options)


@pytest.mark.parametrize("raw", RAW)
def test_links_inside_are_followed_and_pipes_are_not_read(tmp_path, raw):
    make, source, options, image = RAW[raw]
    folder = make(tmp_path / "raw")
    (folder / image).unlink(missing_ok=True)
    (folder / "kept.png").write_bytes(png_bomb(3, 3))
    (folder / image).symlink_to(folder / "kept.png")
    source(str(tmp_path / "raw"), **options)
    os.mkfifo(folder / "pipe")
    with pytest.raises(FaceDepthError, match="pipe is neither a file nor a folder"):
        source(str(tmp_path / "raw"), **options)
