"""Strange files for every reader: each ends in right data, or in our own error with one sentence.

Files are either any bytes, or whole ones in which bytes, words or JSON values were changed. Where a hash guards a file,
it is made to fit as often as not, so that the reader behind it is tried too.
"""

import csv
import functools
import hashlib
import io
import json
import math
import os
import re
import struct
import zlib
from unittest import mock

import cv2
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_checkpoint import IDENTITY, same, save, state
from writers import (
    ARRAYS_COUNT,
    ARRAYS_SIZE,
    GOOD_POSE,
    cal_text,
    check_against_slow,
    encode,
    entry,
    make_arrays,
    make_cropped,
    make_pandora,
    write_sequence,
)

from facedepth_jax import files, photos
from facedepth_jax.checkpoint import Checkpoints
from facedepth_jax.data import arrays, chunks, images, pairs
from facedepth_jax.data.frames import SPLITS, Frame, Reject
from facedepth_jax.data.readers import biwi, biwi_files
from facedepth_jax.data.readers.biwi import BiwiSource
from facedepth_jax.data.readers.folder import REQUIRED, FolderSource
from facedepth_jax.data.readers.pandora import PandoraSource
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.weight_files import load_weights

pytestmark = pytest.mark.fuzz
# By default 25; `make test-slow` sets a thousand.
thousand = settings(
    max_examples=int(os.environ.get("FACEDEPTH_FUZZ_EXAMPLES", 25)),
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")  # as other languages read them

# ---- strange files ----

WORDS = [b"nan", b"-inf", b"1e999", b"1e-999", b"-0", b"1_0", b"0x10", b"\xd9\xa3", b"9" * 5000, b"", b" ", b"\n",
         b"\r", b"\t", b",", b'"', b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"../x", b"/etc/passwd", b"true", b"null",
         b"[" * 3000, b"{" * 3000, b'{"a":' * 3000]  # fmt: skip
VALUES = [None, True, False, 0, -1, 1, 8, 10**30, -(10**400), 0.5, 1e308, math.nan, math.inf, "", "x", "1", "\ud800",
          "../../x", "/etc/passwd", [], {}, [[]], [None] * 20, {"": {}}, {"a": [1]}]  # fmt: skip


def deep(levels):
    return functools.reduce(lambda inner, _: [inner], range(levels), [])


CHANGES = ("flip", "byte", "insert", "delete", "cut", "twice", "word")
places = st.floats(0, 1, exclude_max=True)
byte_changes = st.lists(
    st.tuples(st.sampled_from(CHANGES), places, st.integers(0, 255), st.sampled_from(WORDS)), min_size=1, max_size=3
)


def change_bytes(content, changes):
    content = bytearray(content)
    for change, place, value, word in changes:
        at = int(place * max(len(content), 1))
        if change == "cut":
            del content[at:]
        elif change == "insert":
            content[at:at] = bytes([value]) * (1 + value % 9)
        elif change == "twice":
            content[at:at] = content[at : at + value]
        elif change == "delete":
            del content[at : at + 1 + value % 9]
        elif change == "word" and (words := [m for m in re.finditer(rb"[^\s,:\[\]{}\t]+", bytes(content))]):
            found = words[int(place * len(words))]
            content[found.start() : found.end()] = word
        elif at < len(content):
            content[at] = content[at] ^ (1 << value % 8) if change == "flip" else value
    return bytes(content)


def strange(whole):
    """Any bytes, or `whole`, a file's content, changed."""
    return st.binary(max_size=80) | byte_changes.map(lambda changes: change_bytes(whole, changes))


json_changes = st.lists(
    st.tuples(
        st.sampled_from(["replace", "remove", "rename", "twice"]),
        places,
        st.sampled_from(VALUES) | st.sampled_from([200, 900, 990]).map(deep) | st.integers() | st.floats(),
    ),
    min_size=1,
    max_size=3,
)


def nodes(value):
    """(container, key) of every value inside."""
    found, todo = [], [value]
    while todo:
        at = todo.pop(0)
        for key in list(at) if isinstance(at, dict) else range(len(at)) if isinstance(at, list) else ():
            found.append((at, key))
            todo.append(at[key])
    return found


def change_json(whole, changes):
    """A copy of plain values with other values, without some, with other keys."""
    value = json.loads(json.dumps(whole))
    for change, place, new in changes:
        places = nodes(value)
        if not places:
            return new
        at, key = places[int(place * len(places))]
        if change == "replace":
            at[key] = new
        elif change == "twice" and isinstance(at, list):
            at.insert(key, at[key])
        elif change == "rename" and isinstance(at, dict):
            at[str(new)[:50]] = at.pop(key)
        else:
            del at[key]
    return value


def write_strange_json(path, whole, changes):
    try:
        path.write_bytes(json.dumps(change_json(whole, changes)).encode("utf-8", "surrogatepass"))
    except (RecursionError, ValueError):  # too deep, or too many digits, for our own writing
        path.write_bytes(b"[" * 100_000)


def strange_json(whole):
    """A function that writes a file: JSON with other values, any bytes, or the text changed."""
    text = json.dumps(whole).encode()
    other = st.sampled_from(["utf-16", "utf-32", "utf-8-sig"]).map(text.decode().encode)
    as_bytes = (strange(text) | other).map(lambda content: lambda path: path.write_bytes(content))
    return json_changes.map(lambda changes: lambda path: write_strange_json(path, whole, changes)) | as_bytes


def numbers_of(content):
    """The numbers of a text by NUMBER, None where anything else is in it."""
    words = [word.decode("latin-1") for word in content.split()]
    return [float(word) for word in words] if all(map(NUMBER.fullmatch, words)) else None


def check_items(source):
    """All items of a source; what is no Frame is a Reject with a reason, and what is known before comes to pass."""
    index = source.index()
    items = list(source.load(0, len(index)))
    assert [item.info for item in items] == index and all(isinstance(item, Frame | Reject) for item in items)
    rejects = {item.info: item for item in items if isinstance(item, Reject)}
    assert all(item.reason for item in rejects.values())
    assert all(known.info in rejects for known in source.known_rejects())
    assert all(isinstance(note, str) for note in source.notes())
    for item in items:
        if isinstance(item, Frame):
            assert item.gray.dtype == np.uint8 and item.depth_mm.dtype == np.uint16
            assert np.isfinite([*item.head_xy, *item.focal_px]).all()
    return {item.info.frame: item for item in items}


# ---- Biwi ----

DEPTH = np.array([[0, 0, 7, 900, 0], [0, 0, 0, 0, 0], [1, 2, 3, 0, 32767], [0, 5, 0, 5, 0]])


@thousand
@given(strange(encode(DEPTH)))
def test_biwi_depth(content):
    check_against_slow(content, (5, 4))


@thousand
@given(strange(GOOD_POSE.encode()))
def test_biwi_pose(content):
    try:
        numbers = biwi_files.parse_pose(content)
    except images.Unusable as error:
        assert all(isinstance(text, str) for text in error.args)
    else:
        assert numbers == numbers_of(content) and len(numbers) == 12 and 0 < numbers[11] <= biwi_files.MAX_HEAD_MM


@thousand
@given(content=strange(cal_text(distortion=(0.1, -0.2, 0.001, 0.002)).encode()))
def test_biwi_calibration(content):
    try:
        cameras = biwi_files.parse_cameras("03", [cal_text().encode(), content])
    except images.Unusable as error:
        reason, detail = error.args
        assert reason == "rgb.cal cannot be used" and detail
    else:
        numbers = numbers_of(content)
        assert [*cameras[1].focal_px, *cameras[1].centre_px] == [numbers[i] for i in (0, 4, 2, 5)]
        assert list(cameras[1].size) == numbers[25:] and max(numbers[25:]) <= biwi_files.MAX_SIZE_PX


@pytest.fixture(scope="module")
def biwi_raw(tmp_path_factory):
    raw = tmp_path_factory.mktemp("biwi")
    write_sequence(raw / "hpdb" / "03", numbers=[3, 4])
    return raw


@thousand
@given(
    name=st.sampled_from(["depth.cal", "rgb.cal", *(f"frame_00003_{kind}" for kind in biwi.FILES)]),
    changes=byte_changes,
)
def test_biwi_as_a_whole(biwi_raw, name, changes):
    file = biwi_raw / "hpdb" / "03" / name
    whole = file.read_bytes()
    file.write_bytes(change_bytes(whole, changes))
    try:
        items = check_items(BiwiSource(str(biwi_raw)))
        assert len(items) == 2 and (name.endswith(".cal") or isinstance(items["03_00004"], Frame))
    finally:
        file.write_bytes(whole)


# ---- Pandora ----


@pytest.fixture(scope="module")
def pandora_raw(tmp_path_factory):
    raw = tmp_path_factory.mktemp("pandora")
    return raw, make_pandora(raw, entries=[], count=3) / "data.json"


BLACK = {"read_gray": np.zeros((1080, 1920), np.uint8), "read_depth": np.zeros((424, 512), np.uint16)}
ENTRIES = [entry(frame) for frame in range(3)]


@thousand
@given(
    write=strange_json(ENTRIES) | strange_json({f"{frame:06d}": json.dumps(e) for frame, e in enumerate(ENTRIES)}),
    register=st.sampled_from(["head", "joints"]),
)
def test_pandora_json(pandora_raw, write, register):
    raw, file = pandora_raw
    write(file)
    with mock.patch.multiple(images, **{name: mock.Mock(return_value=image) for name, image in BLACK.items()}):
        items = check_items(PandoraSource(str(raw), register=register))
    assert len(items) >= 3
    for name, item in items.items():
        if isinstance(item, Frame):
            assert any(
                item.yaw == true["orientation"]["euler"]["yaw"] and list(item.head_xy) == true["joints"][3]
                for true in entries_of(file)
            ), name


def entries_of(file):
    """What a plain reading of a data.json gives, in either shape."""
    parsed = json.loads(file.read_bytes())
    for value in parsed.values() if isinstance(parsed, dict) else parsed:
        try:
            value = json.loads(value) if isinstance(value, str) else value
            yield value if value["orientation"]["euler"]["yaw"] is not None and value["joints"][3] else None
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            continue


@pytest.fixture(scope="module")
def cropped_raw(tmp_path_factory):
    raw = tmp_path_factory.mktemp("cropped")
    return raw, make_cropped(raw, count=3, size=9)[2] / "angles.txt"


@thousand
@given(content=strange(b"0\t1.5\t-2.5\t47\n000001\t1.5\t-2.5\t47.125\n2\t0\t0\t1e1\n"))
def test_pandora_angles(cropped_raw, content):
    raw, file = cropped_raw
    file.write_bytes(content)
    for item in check_items(PandoraSource(str(raw))).values():
        if isinstance(item, Frame):
            number = int(item.info.frame[-6:])
            lines = [line.split("\t") for line in content.decode("utf-8-sig").splitlines()]
            (line,) = (cells for cells in lines if re.fullmatch(f"0*{number}", cells[0].strip()))
            assert all(NUMBER.fullmatch(cell.strip()) for cell in line[1:4])
            assert [item.roll, item.pitch, item.yaw] == [float(cell) for cell in line[1:4]]


# ---- folder ----

INDEX = [
    dict(frame="a", subject="s", sequence="1", gray="g.png", depth="d.png", head_x="3.5", head_y="2", split="train"),
    dict(frame="b.1", subject="t", sequence="0", gray="in/g.png", depth="d.png", head_x="1e0", head_y="2", split="test")
]  # fmt: skip


@pytest.fixture(scope="module")
def folder_raw(tmp_path_factory):
    raw = tmp_path_factory.mktemp("folder")
    (raw / "in").mkdir()
    for name in ("g.png", "in/g.png"):
        cv2.imwrite(str(raw / name), np.arange(48, dtype=np.uint8).reshape(6, 8))
    cv2.imwrite(str(raw / "d.png"), np.arange(48, dtype=np.uint16).reshape(6, 8) * 100)
    cv2.imwrite(str(raw.parent / "secret.png"), np.zeros((6, 8), np.uint8))
    (raw / "link.png").symlink_to(raw.parent / "secret.png")
    return raw


def csv_text(rows):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*REQUIRED, "split"])
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


CELLS = ["", "nan", "inf", "1e999", "1_0", "-1", "../secret.png", "link.png", "/etc/passwd", "a\0b", "x" * 300, "in",
         ".", "1\n2", 'a"b', "\u0663", "é", "train", "9" * 400, "d.png"]  # fmt: skip
cell_changes = st.lists(
    st.tuples(st.integers(0, 1), st.sampled_from(list(INDEX[0])), st.sampled_from(CELLS)), min_size=1, max_size=2
)


def change_cells(changes):
    rows = [dict(row) for row in INDEX]
    for row, name, value in changes:
        rows[row][name] = value
    return csv_text(rows)


@thousand
@given(content=strange(csv_text(INDEX)) | cell_changes.map(change_cells))
def test_index_csv(folder_raw, content):
    (folder_raw / "index.csv").write_bytes(content)
    try:
        source = FolderSource(str(folder_raw))
    except FaceDepthError:
        return
    for item in check_items(source).values():
        info = item.info
        assert re.fullmatch("[A-Za-z0-9_.-]+", info.frame) and info.split in SPLITS and info.sequence >= 0
        assert info.frame.encode() in content and info.subject.encode() in content.replace(b'""', b'"')
        if isinstance(item, Frame):  # the two images that are in the folder, and never the one beside it
            assert item.gray[1, 1] == 9 and item.depth_mm[1, 1] == 900
            cells = next(row for row in csv.reader(content.decode("utf-8-sig").splitlines()) if info.frame in row)
            assert all(any(NUMBER.fullmatch(c.strip()) and float(c) == x for c in cells) for x in item.head_xy)


# ---- images ----

GRAY = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)
PNG8, PNG16 = (cv2.imencode(".png", image)[1].tobytes() for image in (GRAY, GRAY.astype(np.uint16) * 200))
JPEG = cv2.imencode(".jpg", GRAY)[1].tobytes()


def change_header(values):
    """A PNG whose header says something else and has the right check sum."""
    width, height, *rest = values
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, *rest)
    return PNG16[:12] + header + struct.pack(">I", zlib.crc32(header)) + PNG16[33:]


# Nothing between small and over the limit: it would be allowed, and take its time.
sides = st.sampled_from([0, 1, 7, 9, 300, 2**31 - 1, 2**31, 2**32 - 1])
headers = st.tuples(sides, sides, *[st.integers(0, 17) | st.integers(0, 255)] * 5)


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


def read_photo(root, name):
    return [photo.rgb for photo in photos.read(root / name)][0]


@thousand
@given(
    content=st.sampled_from([PNG8, PNG16, JPEG]).flatmap(strange) | headers.map(change_header),
    read=st.sampled_from([images.read_gray, images.read_depth, read_photo]),
)
def test_images(image_folder, content, read):
    (image_folder / "a").write_bytes(content)
    try:
        image = read(image_folder, "a")
    except (images.Unusable, FaceDepthError) as error:
        assert all(isinstance(text, str) for text in error.args)
    else:
        assert image.ndim == (3 if read is read_photo else 2)
        assert image.dtype == (np.uint16 if read is images.read_depth else np.uint8)


# ---- arrays and pairs ----


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "arrays"
    make_arrays(path)
    return path, {file.name: file.read_bytes() for file in path.iterdir()}


def open_changed(made, name, content, reseal):
    """Opens with one file changed, its hash and size in meta.json made to fit or not; undone at the end."""
    path, wholes = made
    (path / name).write_bytes(content)
    if reseal:
        meta = json.loads(wholes["meta.json"])
        del meta["sha256"]
        meta["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (path / "meta.json").write_text(json.dumps(files.sealed(meta)))
    try:
        return arrays.open(path)
    except FaceDepthError:
        return None
    finally:
        for which in (name, "meta.json"):
            (path / which).write_bytes(wholes[which])


def check_opened(opened):
    assert len(opened) == ARRAYS_COUNT and opened.gray.shape == opened.depth_mm.shape == (
        ARRAYS_COUNT,
        ARRAYS_SIZE,
        ARRAYS_SIZE,
    )
    assert opened.gray.dtype == np.uint8 and opened.depth_mm.dtype == np.uint16
    assert [column.shape for column in opened.frames.values()] == [(ARRAYS_COUNT,)] * len(arrays.COLUMNS)
    assert set(opened.frames["split"]) <= set(SPLITS) and len(opened.fingerprint) == 64


@pytest.mark.filterwarnings("ignore:Reading .*npy:UserWarning")  # NumPy's, of headers as Python 2 wrote them
@pytest.mark.parametrize("name", ["frames.csv", "gray.npy"])
@thousand
@given(data=st.data())
def test_a_file_of_the_arrays(made, name, data):
    whole = made[1][name]
    # Of an array only the header is text that is read.
    head, rest = (whole[:128], whole[128:]) if name.endswith("npy") else (whole, b"")
    content, reseal = data.draw(strange(head)) + rest, data.draw(st.booleans())
    opened = open_changed(made, name, content, reseal)
    assert reseal or opened is None or content == whole
    if opened is not None:
        check_opened(opened)


@thousand
@given(data=st.data())
def test_meta_json(made, data):
    path, wholes = made
    whole = json.loads(wholes["meta.json"])
    del whole["sha256"]
    changes, seal = data.draw(json_changes), data.draw(st.booleans())
    if data.draw(st.booleans()):
        write_strange_json(path / "meta.json", whole, changes)
        if seal:
            try:
                meta = json.loads((path / "meta.json").read_bytes())
                (path / "meta.json").write_text(json.dumps(files.sealed(meta)))
            except (ValueError, TypeError, RecursionError, AttributeError):
                pass
    else:
        (path / "meta.json").write_bytes(data.draw(strange(wholes["meta.json"])))
    try:
        check_opened(arrays.open(path))
    except FaceDepthError:
        pass
    finally:
        (path / "meta.json").write_bytes(wholes["meta.json"])


@thousand
@given(content=strange(b"a\tb\t1\nb\tc d\t0\n"))
def test_pair_lists(image_folder, content):
    (image_folder / "pairs.tsv").write_bytes(content)
    try:
        found = pairs.read(image_folder / "pairs.tsv")
    except FaceDepthError:
        return
    text = content.decode("utf-8-sig")
    assert all(same in (0, 1) and f"{a}\t{b}\t{same}" in text for a, b, same in found)


LISTING = {"settings_sha256": "s", "chunk": 0, "frames": [{"frame": "a"}], "rejects": [{"frame": "b"}]}


@pytest.fixture(scope="module")
def chunk(tmp_path_factory):
    """A job, and the bytes of its only chunk."""
    job, packed = chunks.Job(None, tmp_path_factory.mktemp("parts"), 320.0, 4, "s"), io.BytesIO()
    listing = np.frombuffer(json.dumps(LISTING).encode(), np.uint8)
    np.savez(packed, gray=np.ones((1, 4, 4), np.uint8), depth_mm=np.ones((1, 4, 4), np.uint16), listing=listing)
    return job, packed.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning")  # NumPy's and zipfile's
@thousand
@given(changes=byte_changes)
def test_a_chunk_of_a_preparation(chunk, changes):
    """What is not as it was written is made again, whatever zipfile and NumPy say of it."""
    job, whole = chunk
    job.file(0).write_bytes(change_bytes(whole, changes))
    try:
        gray, depth_mm, listing = chunks.read(job, 0, ["a", "b"])
    except ValueError as error:
        assert str(error)
    else:
        assert gray.all() and depth_mm.all() and gray.shape == (1, 4, 4) and listing == LISTING


# ---- checkpoints and weights ----


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    save(folder, 10)
    return folder, json.loads((folder / "00000010" / "_CHECKPOINT_METADATA").read_text())


@thousand
@given(data=st.data())
def test_the_metadata_of_a_checkpoint(saved, data):
    folder, whole = saved
    path = folder / "00000010" / "_CHECKPOINT_METADATA"
    seal = data.draw(st.booleans())
    ours = {name: value for name, value in whole["custom_metadata"].items() if name != "sha256"}
    data.draw(strange_json(ours if seal else whole))(path)
    if seal:
        try:
            path.write_text(json.dumps(whole | {"custom_metadata": files.sealed(json.loads(path.read_bytes()))}))
        except (ValueError, TypeError, RecursionError, AttributeError):
            pass
    try:
        assert same(Checkpoints(folder, IDENTITY).restore(state(0)), state(10))
    except FaceDepthError as error:
        assert "are damaged" in str(error) or seal and "belongs to a run with" in str(error)
    else:
        found = json.loads(path.read_bytes())["custom_metadata"]
        # Who knows the seal can change the notes; checkpoints from before have none.
        assert all(found[name] == ours[name] for name in ours if name != "notes")


WEIGHTS = {"params": {"a": np.ones((2, 3), np.float32)}, "batch_stats": {"m": np.zeros(4, np.float32)}}
SAFETENSORS = safetensors.numpy.save({"params/a": WEIGHTS["params"]["a"], "batch_stats/m": WEIGHTS["batch_stats"]["m"]})
HEADER = json.loads(SAFETENSORS[8 : 8 + struct.unpack("<Q", SAFETENSORS[:8])[0]])


def with_header(changes):
    try:
        header = json.dumps(change_json(HEADER, changes)).encode("utf-8", "surrogatepass")
    except (RecursionError, ValueError):
        header = b"{" * 1000
    return struct.pack("<Q", len(header)) + header + SAFETENSORS[-40:]


def with_dtype(name, bytes_each):
    """The same bytes as numbers of another type, their shapes made to fit."""
    header = json.loads(json.dumps(HEADER))
    for tensor in header.values():
        tensor["dtype"], tensor["shape"][-1] = name, tensor["shape"][-1] * 4 // bytes_each
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + SAFETENSORS[-40:]


dtypes = [("I32", 4), ("U32", 4), ("F16", 2), ("BF16", 2), ("F8_E4M3", 1), ("F8_E8M0", 1), ("BOOL", 1), ("X", 4)]
header_changes = json_changes.map(with_header) | st.sampled_from(dtypes).map(lambda dtype: with_dtype(*dtype))


@thousand
@given(content=strange(SAFETENSORS) | header_changes)
def test_weights(image_folder, content):
    (image_folder / "w.safetensors").write_bytes(content)
    try:
        loaded = load_weights(image_folder / "w.safetensors", WEIGHTS)
    except FaceDepthError:
        return
    assert loaded["params"]["a"].shape == (2, 3) and loaded["batch_stats"]["m"].shape == (4,)
    assert loaded["params"]["a"].dtype == loaded["batch_stats"]["m"].dtype == np.float32
