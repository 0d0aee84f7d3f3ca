"""arrays.py: what is written is what is read, and what is wrong is said."""

import csv
import hashlib
import json
import shutil

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
    content = bytearray((made / name).read_bytes())
    content[-2] ^= 1
    (made / name).write_bytes(content)
    with pytest.raises(FaceDepthError, match=f"{name} is damaged: its SHA-256"):
        arrays.open(made)


@pytest.mark.parametrize("name", ["gray.npy", "depth_mm.npy", "frames.csv"])
def test_a_truncated_or_missing_file_is_named(made, name):
    (made / name).write_bytes((made / name).read_bytes()[:-5])
    with pytest.raises(FaceDepthError, match=f"{name} is damaged"):
        arrays.open(made)
    (made / name).unlink()
    with pytest.raises(FaceDepthError, match=f"cannot be read .*{name}"):
        arrays.open(made)


def test_opening_writes_nothing(made):
    """So data that may not be written, or that somebody else opens too, are as good."""
    before = {path.name: path.stat().st_mtime_ns for path in [made, *made.iterdir()]}
    arrays.open(made)
    assert {path.name: path.stat().st_mtime_ns for path in [made, *made.iterdir()]} == before


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
        (lambda m: m.pop("files"), "cannot be read"),
        (lambda m: m["files"].pop("gray.npy"), "cannot be read"),
        (lambda m: m["files"].update({"gray.npy": 7}), "cannot be read"),
        (lambda m: m.update(counts=[]), "not those that its meta.json describes"),
        (lambda m: m.update(size_px=None), "not those"),
        (lambda m: m.update(size_px=9), "not those"),
        (lambda m: m["counts"]["train"].update(frames=7), "not those"),
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


def test_a_missing_column_is_named(made):
    """Were it the heads' distance, say; sealed as if it had been written so."""
    with (made / "frames.csv").open(newline="") as file:
        rows = [row[: (at := list(arrays.COLUMNS).index("distance_mm"))] + row[at + 1 :] for row in csv.reader(file)]
    with (made / "frames.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
    edit_meta(made, lambda m: m["files"]["frames.csv"].update(sha256=files.sha256(made / "frames.csv")))
    with pytest.raises(FaceDepthError, match="frames.csv has no column distance_mm; remove .* and prepare or copy it"):
        arrays.open(made)


def test_not_a_data_set_says_how_to_make_one(tmp_path, made):
    (tmp_path / "empty").mkdir()
    for path in ("nowhere", "empty", "a/gray.npy"):
        with pytest.raises(FaceDepthError, match=f"{path} .no meta.json.*python -m facedepth_jax.prepare"):
            arrays.open(tmp_path / path)
    (tmp_path / "empty" / "meta.json").write_bytes(b"\xff\x00{")
    with pytest.raises(FaceDepthError, match="meta.json is not JSON"):
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


@pytest.mark.parametrize("kind", KINDS)
def test_damage_to_any_file_of_the_arrays(tmp_path, kind):
    path = tmp_path / "arrays"
    make_arrays(path)
    for name in [*arrays.FILES, "meta.json"]:
        with damaged(path / name, kind, tmp_path), pytest.raises(FaceDepthError, match=name):
            arrays.open(path)
    assert len(arrays.open(path)) == ARRAYS_COUNT


def test_arrays_that_are_a_link_as_a_whole(tmp_path):
    """A link to the whole directory is meant."""
    make_arrays(tmp_path / "disk")
    (tmp_path / "arrays").symlink_to(tmp_path / "disk")
    assert len(arrays.open(tmp_path / "arrays")) == ARRAYS_COUNT
