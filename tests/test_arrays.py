"""arrays.py: what is written is what is read, and what is wrong is said."""

import hashlib
import json
import os
import shutil
import stat

import numpy as np
import pytest
from writers import ARRAYS_COUNT, ARRAYS_SIZE, KINDS, contents, damaged, make_arrays

from facedepth_jax import files
from facedepth_jax.data import arrays
from facedepth_jax.errors import FaceDepthError


@pytest.fixture
def made(tmp_path):
    make_arrays(tmp_path / "a")
    return tmp_path / "a"


def test_reads_what_was_written(tmp_path):
    gray, depth_mm, frames = make_arrays(tmp_path / "in" / "a")
    opened = arrays.open(tmp_path / "in" / "a")
    assert opened.gray.dtype == np.uint8 and opened.depth_mm.dtype == np.uint16 and len(opened) == ARRAYS_COUNT
    np.testing.assert_array_equal(opened.gray, gray)
    np.testing.assert_array_equal(opened.depth_mm, depth_mm)
    assert list(opened.frames) == list(arrays.COLUMNS)
    for name, values in frames.items():
        np.testing.assert_array_equal(opened.frames[name], values)  # floats to the bit
    assert opened.frames["sequence"].dtype == np.int64 and opened.frames["yaw"].dtype == np.float64
    np.testing.assert_array_equal(opened.rows("validation"), [6, 7])
    assert opened.meta["counts"]["train"] == {"frames": 6, "subjects": 3}
    assert (tmp_path / "in" / "a" / "pairs_validation.tsv").read_text() == "f-6.x\tf-7.x\t1\n"
    assert isinstance(opened.gray, np.memmap) and not opened.gray.flags.writeable


def test_the_files_are_plain_npy_and_the_hashes_are_sha256(made):
    for name in ("gray.npy", "depth_mm.npy"):
        assert np.load(made / name, allow_pickle=False).shape == (ARRAYS_COUNT, ARRAYS_SIZE, ARRAYS_SIZE)
    for name, entry in json.loads((made / "meta.json").read_text())["files"].items():
        content = (made / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_the_same_input_gives_the_same_bytes_and_fingerprint(made, tmp_path):
    make_arrays(tmp_path / "b")
    make_arrays(tmp_path / "c", seed=1)
    assert contents(made) == contents(tmp_path / "b")
    assert arrays.open(made).fingerprint == arrays.open(tmp_path / "b").fingerprint
    assert arrays.open(made).fingerprint != arrays.open(tmp_path / "c").fingerprint


def test_an_empty_split_is_said(tmp_path, made):
    with pytest.raises(FaceDepthError, match="no frame in the split 'nonsense'; it has 6 train, 2 validation, 2 test"):
        arrays.open(made).rows("nonsense")


@pytest.mark.parametrize("name", arrays.FILES)
def test_a_changed_byte_is_found_and_the_file_named(made, name):
    arrays.open(made)  # so that it was verified once
    content = bytearray((made / name).read_bytes())
    content[-2] ^= 1
    (made / name).write_bytes(content)
    with pytest.raises(FaceDepthError, match=f"{name} is damaged: its SHA-256"):
        arrays.open(made)


@pytest.mark.parametrize("name", ["gray.npy", "depth_mm.npy", "frames.csv"])
def test_a_truncated_or_missing_file_is_named(made, name):
    content = (made / name).read_bytes()
    (made / name).write_bytes(content[:-5])
    with pytest.raises(
        FaceDepthError, match=f"{name} has {len(content) - 5} bytes where meta.json says {len(content)}"
    ):
        arrays.open(made)
    (made / name).unlink()
    with pytest.raises(FaceDepthError, match=f"{name} cannot be read"):
        arrays.open(made)


def test_hashes_are_remembered_until_a_file_changes(made, monkeypatch):
    hashed = []
    original = arrays.files.sha256
    monkeypatch.setattr(arrays.files, "sha256", lambda file: hashed.append(file.name) or original(file))
    arrays.open(made)
    assert sorted(hashed) == sorted(arrays.FILES)
    hashed.clear()
    arrays.open(made)
    assert hashed == []
    os.utime(made / "gray.npy")
    arrays.open(made)
    assert hashed == ["gray.npy"]
    (made / ".verified.json").write_text("[")
    hashed.clear()
    arrays.open(made)
    assert len(hashed) == len(arrays.FILES)


def test_a_change_that_keeps_size_and_time_of_modification_is_found(made):
    arrays.open(made)
    before = (made / "gray.npy").stat()
    content = bytearray((made / "gray.npy").read_bytes())
    content[-1] ^= 1
    (made / "gray.npy").write_bytes(content)
    os.utime(made / "gray.npy", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(FaceDepthError, match="gray.npy is damaged"):
        arrays.open(made)


def test_a_directory_that_cannot_be_written_opens(made, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(arrays.files, "atomically", refuse)  # a test that runs as root may write anywhere
    mode = stat.S_IMODE(made.stat().st_mode)
    made.chmod(0o555)
    try:
        assert len(arrays.open(made)) == ARRAYS_COUNT
    finally:
        made.chmod(mode)
    assert not (made / ".verified.json").exists()


def edit_meta(path, change):
    meta = json.loads((path / "meta.json").read_text())
    change(meta)
    del meta["sha256"]
    (path / "meta.json").write_text(json.dumps(files.sealed(meta)))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda m: m.update(format_version=99), "format version 99, this program reads 2"),
        (lambda m: m.pop("format"), "is not a prepared data set"),
        (lambda m: m.pop("files"), "the files in .* cannot be read"),
        (lambda m: m["files"].pop("gray.npy"), "the files in .* cannot be read"),
        (lambda m: m["files"].update({"gray.npy": 7}), "the files in .* cannot be read"),
        (lambda m: m.update(counts=[]), "counts of meta.json"),
        (lambda m: m.update(size_px=None), "gray.npy is uint8"),
        (lambda m: m.update(size_px=9), r"gray.npy is uint8 \(10, 8, 8\), not uint8 \(10, 9, 9\)"),
        (lambda m: m["counts"]["train"].update(frames=7), "counts of meta.json"),
    ],
)
def test_another_meta_is_said(made, change, message):
    edit_meta(made, change)
    with pytest.raises(FaceDepthError, match=message):
        arrays.open(made)


def test_a_meta_that_was_changed_or_has_no_hash_of_its_own(made):
    text = (made / "meta.json").read_text()
    meta = json.loads(text)
    del meta["sha256"]
    for changed in (text.replace('"name": "t"', '"name": "u"'), json.dumps(meta)):
        (made / "meta.json").write_text(changed)
        with pytest.raises(FaceDepthError, match="meta.json is damaged: it is not as it was written"):
            arrays.open(made)


def test_not_a_data_set_says_how_to_make_one(tmp_path, made):
    (tmp_path / "empty").mkdir()
    for path, message in [("nowhere", "does not exist"), ("empty", "no meta.json"), ("a/gray.npy", "does not exist")]:
        with pytest.raises(FaceDepthError, match=f"{message}.*python -m facedepth_jax.prepare"):
            arrays.open(tmp_path / path)
    (tmp_path / "empty" / "meta.json").write_bytes(b"\xff\x00{")
    with pytest.raises(FaceDepthError, match="cannot be read"):
        arrays.open(tmp_path / "empty")
    (tmp_path / "empty" / "meta.json").write_text("[1]")
    with pytest.raises(FaceDepthError, match="of another kind"):
        arrays.open(tmp_path / "empty")


def test_a_failed_write_leaves_nothing(tmp_path):
    def images():
        yield np.zeros((1, ARRAYS_SIZE, ARRAYS_SIZE), np.uint8), np.zeros((1, ARRAYS_SIZE, ARRAYS_SIZE), np.uint16)
        raise OSError(28, "No space left on device")

    frames = {name: [kind()] * 2 for name, kind in arrays.COLUMNS.items()}
    with pytest.raises(OSError, match="No space"):
        arrays.write(
            tmp_path / "a",
            frames=frames,
            images=images(),
            size_px=ARRAYS_SIZE,
            pair_lists={"validation": [], "test": []},
            meta={},
        )
    assert list(tmp_path.iterdir()) == []


def test_a_leftover_of_a_killed_write_is_no_hindrance(tmp_path):
    make_arrays(tmp_path / "b")
    shutil.copytree(tmp_path / "b", tmp_path / ".a.0123.partial")
    make_arrays(tmp_path / "a")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("remembered", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_damage_to_any_file_of_the_arrays(tmp_path, kind, remembered):
    """Before the first opening, and after it has remembered what it hashed."""
    path = tmp_path / "arrays"
    make_arrays(path)
    for name in [*arrays.FILES, "meta.json"]:
        if remembered:
            assert len(arrays.open(path)) == ARRAYS_COUNT
        with damaged(path / name, kind, tmp_path):
            with pytest.raises(FaceDepthError, match="no meta.json" if kind == "missing" and "meta" in name else name):
                arrays.open(path)
    assert len(arrays.open(path)) == ARRAYS_COUNT


def test_arrays_that_are_a_link_as_a_whole(tmp_path):
    """A link to the whole directory is meant."""
    make_arrays(tmp_path / "disk")
    (tmp_path / "arrays").symlink_to(tmp_path / "disk")
    assert len(arrays.open(tmp_path / "arrays")) == ARRAYS_COUNT
