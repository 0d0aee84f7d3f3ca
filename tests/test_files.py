"""files.py: whole or not there."""

import json
import os
import stat

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


def test_what_a_killed_write_left_is_removed(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    files.write_bytes(tmp_path / "new" / "a", b"old")
    (tmp_path / ".data.partial").mkdir()  # of prepared arrays, and somebody else's
    (tmp_path / ".partial").write_text("somebody's")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(Killed):
            files.write_bytes(tmp_path / "new" / "a", b"new")
    assert len(os.listdir(tmp_path / "new")) == 2 and (tmp_path / "new" / "a").read_bytes() == b"old"
    files.remove_partial(tmp_path)
    assert os.listdir(tmp_path / "new") == ["a"]
    assert sorted(os.listdir(tmp_path)) == [".data.partial", ".partial", "new"]


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
