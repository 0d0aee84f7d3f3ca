"""files.py: whole or not there."""

import json
import os
import stat
import subprocess
import sys

import numpy as np
import pytest

from facedepth_jax import files
from facedepth_jax.errors import FaceDepthError


def test_writes_and_reads_back(tmp_path):
    path = tmp_path / "new" / "a.json"
    files.write_json(path, {"b": [1, 0.1], "a": "é"})
    assert files.read_json(path) == {"a": "é", "b": [1, 0.1]}
    assert path.read_text().index('"a"') < path.read_text().index('"b"') and path.read_text().endswith("}\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    files.write_bytes(path, b"x")
    assert path.read_bytes() == b"x" and os.listdir(path.parent) == ["a.json"]


def test_npz(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.uint16).reshape(2, 3), "names": np.array(["x", "yé"])}
    files.write_npz(tmp_path / "a.npz", arrays)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as read:
        assert read.keys() == arrays.keys()
        for name, array in arrays.items():
            assert read[name].dtype == array.dtype
            np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_failure_leaves_the_old_file_alone(tmp_path, monkeypatch, call):
    files.write_bytes(tmp_path / "a", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(FaceDepthError, match="a cannot be written: No space left on device"):
        files.write_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old" and os.listdir(tmp_path) == ["a"]


def test_what_a_killed_write_left_is_removed(tmp_path):
    with files.atomically(tmp_path / "a") as file, files.atomically(tmp_path / "b") as folder:
        file.write_text("whole")
        folder.mkdir()
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]
    file.write_text("half")
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / folder.name).mkdir()
    (tmp_path / "new" / folder.name / "half").write_text("half")
    (tmp_path / ".partial").write_text("somebody's")
    files.remove_partial(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".partial", "a", "b", "new"] and not os.listdir(tmp_path / "new")
    assert (tmp_path / "a").read_text() == "whole"


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_all_or_nothing(tmp_path, kind):
    """Nobody sees a half, an error leaves nothing, and a directory replaces none with something in it."""

    def write(path, fails=False):
        with files.atomically(path) as partial:
            if kind == "directory":
                partial.mkdir()
            (partial / "content" if kind == "directory" else partial).write_text("new")
            assert not path.exists()
            if fails:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a", fails=True)
    assert not os.listdir(tmp_path)
    write(tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]
    if kind == "directory":
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "theirs").write_text("")
        with pytest.raises(OSError), files.atomically(tmp_path / "b") as partial:
            partial.mkdir()
        assert sorted(os.listdir(tmp_path)) == ["a", "b"] and os.listdir(tmp_path / "b") == ["theirs"]


def test_a_clean_up_that_fails_hides_nothing(tmp_path, monkeypatch):
    """As on a disk that has become read-only: what is raised is why the write failed."""

    def refuse(path, **_):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(files.pathlib.Path, "unlink", refuse)
    with pytest.raises(OSError, match="No space left"), files.atomically(tmp_path / "a"):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3:/bucket"])
def test_a_buckets_address_is_no_directory(address):
    with pytest.raises(FaceDepthError, match="is an address .*, no directory"):
        files.check_local(address)
    with pytest.raises(FaceDepthError, match="is an address .*, no directory"):
        files.write_bytes(address, b"")
    files.check_local("/a/b:/c")


def test_seals():
    content = files.sealed({"a": [1, 0.1], "b": {"c": "é"}})
    assert files.is_sealed(content) and files.is_sealed(json.loads(json.dumps(content)))
    assert not files.is_sealed(content | {"a": [1, 0.2]}) and not files.is_sealed({"a": 1})


def test_nan_is_no_json(tmp_path):
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "a.json", {"a": float("nan")})
    assert not os.listdir(tmp_path)


def test_a_folder_that_is_a_file_is_said(tmp_path):
    (tmp_path / "f").write_text("")
    with pytest.raises(FaceDepthError, match="cannot be written"):
        files.write_bytes(tmp_path / "f" / "a", b"")


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe", json.dumps({})[:1].encode()])
def test_what_cannot_be_read_is_said(tmp_path, content):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FaceDepthError, match=r"a\.json (cannot be read|is not JSON)"):
        files.read_json(path)


def test_a_lock_is_held_by_one_and_ends_with_a_kill(tmp_path):
    folder = tmp_path / "runs/a"
    code = f"""
import time
from facedepth_jax import files
with files.locked({str(folder)!r}):
    print("held", flush=True)
    time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(FaceDepthError, match=rf"{folder} is in use by another process \({other.pid} on .+\): wait"):
            with files.locked(folder):
                pass
        other.kill()
    assert os.listdir(folder) == ["lock"]
    with files.locked(folder):
        (folder / "result").write_text("")
    assert os.listdir(folder) == ["result"]
    with files.locked(tmp_path / "b"):
        pass
    assert not (tmp_path / "b").exists()
