"""folder.py: what is read, and one sentence for each thing that can be wrong with an index or an image."""

import collections
import csv
import math
import pickle

import cv2
import numpy as np
import pytest

from facedepth_jax.data.frames import Frame, Reject
from facedepth_jax.data.readers.folder import REQUIRED, FolderSource
from facedepth_jax.errors import FaceDepthError

HEIGHT, WIDTH = 24, 20


def make(path, lines=None, count=6, **columns):
    """A folder of `count` frames, two a subject; `lines` changes cells of single frames, `columns` adds columns."""
    rng = np.random.default_rng(0)
    path.mkdir(exist_ok=True)
    rows = []
    for i in range(count):
        cv2.imwrite(str(path / f"g{i}.png"), rng.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8))
        cv2.imwrite(str(path / f"d{i}.png"), rng.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16))
        row = dict(
            frame=f"f{i}",
            subject=f"s{i // 2}",
            sequence="1",
            gray=f"g{i}.png",
            depth=f"d{i}.png",
            head_x="9.5",
            head_y="12",
        )
        rows.append(row | {name: values[i] for name, values in columns.items()} | (lines or {}).get(i, {}))
    with (path / "index.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*REQUIRED, *columns])
        writer.writeheader()
        writer.writerows(rows)
    return path


def load(path, **settings):
    source = FolderSource(str(path), **({"focal": 365.0} | settings))
    return list(source.load(0, len(source.index())))


def test_frames_are_what_the_files_hold(tmp_path):
    split = ["train"] * 2 + ["validation"] * 2 + ["test"] * 2
    path = make(
        tmp_path / "raw",
        split=split,
        yaw=["-3.5", "", "nan", "1", "1", "1"],
        fx=["500"] * 6,
        fy=["510"] * 5 + [""],
        kind=["", *"aabbb"],
    )
    source = FolderSource(str(path), focal=365.0)
    frames = list(source.load(0, 6))
    assert [frame.info for frame in frames] == source.index()
    assert [(info.split, info.kind) for info in source.index()] == list(zip(split, ["", *"aabbb"], strict=True))
    first = frames[0]
    assert (first.info.frame, first.info.subject, first.info.sequence) == ("f0", "s0", 1)
    assert first.head_xy == (9.5, 12.0) and first.focal_px == (500.0, 510.0) and frames[5].focal_px == (500.0, 365.0)
    assert first.yaw == -3.5 and math.isnan(frames[1].yaw) and math.isnan(frames[2].yaw) and math.isnan(first.pitch)
    rng = np.random.default_rng(0)
    np.testing.assert_array_equal(first.gray, rng.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8))
    np.testing.assert_array_equal(first.depth_mm, rng.integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16))
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(next(again.load(3, 4)).gray, frames[3].gray)
    assert again.settings == source.settings


def test_colour_and_jpeg_become_gray(tmp_path):
    path = make(tmp_path / "raw", {0: {"gray": "c.png"}, 1: {"gray": "c.jpg"}, 2: {"gray": "a.png"}})
    blue = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    blue[..., 0] = 200
    cv2.imwrite(str(path / "c.png"), blue)
    cv2.imwrite(str(path / "c.jpg"), blue)
    cv2.imwrite(str(path / "a.png"), np.dstack([blue, np.full((HEIGHT, WIDTH), 9, np.uint8)]))
    for frame in load(path)[:3]:
        assert frame.gray.shape == (HEIGHT, WIDTH) and np.abs(frame.gray - 0.114 * 200).max() < 2


def test_a_byte_order_mark_and_blank_lines_are_no_hindrance(tmp_path):
    index = make(tmp_path / "raw") / "index.csv"
    index.write_bytes(b"\xef\xbb\xbf" + index.read_bytes().replace(b"\nf3", b"\n\r\nf3"))
    assert len(load(tmp_path / "raw")) == 6


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: text.replace(",", ";").encode(),  # a spreadsheet's, in half of Europe
        lambda text: text.replace(",", "\t").encode(),
        lambda text: text.replace(",", ", ").encode(),
        lambda text: text.replace(",", ",  ").replace("\r\n", " \r\n").encode(),
        lambda text: text.encode("utf-16"),  # "Unicode text", with tabs or without
    ],
)
def test_an_index_as_other_programs_write_it(tmp_path, rewrite):
    path = make(tmp_path / "raw")
    plain = [(frame.info, frame.head_xy, frame.depth_mm.tolist()) for frame in load(path)]
    text = (path / "index.csv").read_bytes().decode()
    (path / "index.csv").write_bytes(rewrite(text))
    assert [(frame.info, frame.head_xy, frame.depth_mm.tolist()) for frame in load(path)] == plain


def test_exif_that_would_turn_an_image_is_noted_and_ignored(tmp_path):
    """A JPEG with the orientation 6, a quarter turn, as phones write it; EXIF by hand, from its specification."""
    path = make(tmp_path / "raw", {0: {"gray": "c.jpg"}, 1: {"gray": "u.jpg"}})
    gray = cv2.imread(str(path / "g0.png"), cv2.IMREAD_UNCHANGED)
    plain = cv2.imencode(".jpg", gray)[1].tobytes()
    for name, orientation in (("c.jpg", 6), ("u.jpg", 1)):
        entry = (0x112).to_bytes(2) + (3).to_bytes(2) + (1).to_bytes(4) + orientation.to_bytes(2) + bytes(2)
        payload = b"Exif\0\0MM\0*" + (8).to_bytes(4) + (1).to_bytes(2) + entry + bytes(4)
        (path / name).write_bytes(plain[:2] + b"\xff\xe1" + (len(payload) + 2).to_bytes(2) + payload + plain[2:])
    source = FolderSource(str(path))
    (note,) = source.notes()
    assert note.startswith("1 of 6 gray images looked at would be turned by EXIF data, which is not done (c.jpg)")
    assert next(iter(source.load(0, 1))).gray.shape == gray.shape


def test_splits_are_by_subject_seeded_and_of_the_fractions(tmp_path):
    path = make(tmp_path / "raw", count=40)  # 20 subjects

    def splits(**settings):
        index = FolderSource(str(path), focal=365.0, **settings).index()
        found = {info.subject: info.split for info in index}
        assert all(found[info.subject] == info.split for info in index)
        return found

    drawn = splits()
    assert {name: list(drawn.values()).count(name) for name in set(drawn.values())} == {
        "train": 14,
        "validation": 2,
        "test": 4,
    }
    assert drawn == splits() and drawn != splits(seed=1)
    assert set(splits(validation_fraction=0.0, test_fraction=0.0).values()) == {"train"}
    assert list(splits(validation_fraction=0.001).values()).count("validation") == 1
    assert FolderSource(str(path), focal=1, seed=0).settings != FolderSource(str(path), focal=1, seed=1).settings


@pytest.mark.parametrize("people, test_fraction", [(20, 0.2), (31, 0.2), (7, 1 / 3)])
def test_over_all_folds_everyone_is_tested_once(tmp_path, people, test_fraction):
    path = make(tmp_path / "raw", count=2 * people)
    folds = [
        {info.subject: info.split for info in FolderSource(str(path), fold=fold, test_fraction=test_fraction).index()}
        for fold in range(round(1 / test_fraction))
    ]
    tested = [subject for split in folds for subject in split if split[subject] == "test"]
    assert sorted(tested) == sorted(folds[0]) and len(tested) == people
    for split in folds:
        counts = collections.Counter(split.values())
        assert abs(counts["test"] - people * test_fraction) <= 1
        assert counts["validation"] == max(1, round(0.1 * people)) and counts["train"] > people / 3
    for fold in (-1, len(folds)):
        with pytest.raises(FaceDepthError, match=f"there is no fold {fold}"):
            FolderSource(str(path), fold=fold, test_fraction=test_fraction)


def outside(path):
    """A file next to the folder, and a link to it inside."""
    cv2.imwrite(str(path.parent / "secret.png"), np.zeros((HEIGHT, WIDTH), np.uint8))
    (path / "link.png").symlink_to(path.parent / "secret.png")
    (path / "circle.png").symlink_to("circle.png")


@pytest.mark.parametrize(
    "cells, message",
    [
        ({"frame": "f0"}, "line 4: the frame 'f0' is on line 2 already"),
        ({"frame": "a/b"}, "line 4: the frame name 'a/b' has other characters"),
        ({"frame": ""}, "line 4: 'frame' is empty"),
        ({"subject": " "}, "line 4: 'subject' is empty"),
        ({"sequence": "-1"}, "line 4: 'sequence' is '-1', not a whole number"),
        ({"sequence": "1.5"}, "line 4: 'sequence'"),
        ({"head_x": "left"}, "line 4: 'head_x' is 'left', not a number"),
        ({"head_y": "nan"}, "line 4: 'head_y' is 'nan', not a finite number"),
        ({"gray": "../secret.png"}, r"line 4: the path '../secret.png' leaves the folder$"),
        ({"gray": "/etc/hostname"}, "line 4: the path '/etc/hostname' leaves the folder"),
        ({"depth": "link.png"}, "line 4: the path 'link.png' leaves the folder by a symbolic link"),
        ({"depth": "circle.png"}, "line 4: the path 'circle.png' leaves the folder"),
        ({"depth": "a\0b"}, "line 4: the path .* leaves the folder"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path, cells, message):
    outside(make(tmp_path / "raw", {2: cells}))
    with pytest.raises(FaceDepthError, match=f"index.csv, {message}"):
        load(tmp_path / "raw")


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"split": ["train"] * 3 + ["test"] * 3}, "line 5: the subject 's1' is in 'test' and in 'train'"),
        ({"split": ["train"] * 5 + ["val"]}, "line 7: the split 'val' is none of train, validation, test"),
        ({"fx": ["500"] * 6, "fy": ["500", "-1"] + ["500"] * 4}, "line 3: the focal length 'fy' is -1.0"),
        ({"fx": ["inf"] * 6}, "line 2: 'fx' is 'inf'"),
        ({"fx": ["1e308"] * 6}, "line 2: the focal length 'fx' is 1e\\+308"),
        ({"yaw": ["up"] * 6}, "line 2: 'yaw' is 'up', not a number"),
        ({"roll": ["nan", "", "-inf", "1", "1", "1"]}, "line 4: 'roll' is '-inf', not a finite number"),
    ],
)
def test_a_column_that_cannot_be_used_is_named(tmp_path, columns, message):
    make(tmp_path / "raw", **columns)
    with pytest.raises(FaceDepthError, match=message):
        load(tmp_path / "raw")


def test_structure(tmp_path):
    with pytest.raises(FaceDepthError, match="raw directory .* does not exist"):
        load(tmp_path / "raw")
    (tmp_path / "raw").mkdir()
    with pytest.raises(FaceDepthError, match="index.csv does not exist"):
        load(tmp_path / "raw")
    for content, message in [
        (
            b"frame,subject,sequence,gray,head_x\n",
            r"lacks the columns depth, head_y; .* was read as frame \| subject \| sequence \| gray \| head_x",
        ),
        (b"", "lacks the columns frame,"),
        (",".join(REQUIRED).encode(), "lists no frame"),
        (",".join((*REQUIRED, "gray")).encode(), "has a column twice"),
        (",".join(REQUIRED).encode() + b"\na,b\n", "line 2: it has more or fewer cells"),
        (",".join(REQUIRED).encode() + b"\na,s,1,g,d,1,2,3\n", "line 2: it has more or fewer cells"),
        (b"\xff\xfe\x00", "cannot be read as CSV in UTF-8"),
    ]:
        (tmp_path / "raw" / "index.csv").write_bytes(content)
        with pytest.raises(FaceDepthError, match=message):
            load(tmp_path / "raw")
    make(tmp_path / "raw")
    with pytest.raises(FaceDepthError, match="fractions"):
        load(tmp_path / "raw", test_fraction=0.95)
    make(tmp_path / "two", count=4)
    with pytest.raises(
        FaceDepthError, match="2 subjects, 1 to test and 1 to validate, leave none to train; it takes 3"
    ):
        load(tmp_path / "two")
    with pytest.raises(FaceDepthError, match="3 subjects, 1 to test and 2 to .*, leave none to train; give smaller"):
        load(tmp_path / "raw", validation_fraction=0.6)


def damage(path):
    """Seven files, each unusable in its own way."""
    (path / "g0.png").unlink()
    whole = (path / "d1.png").read_bytes()
    (path / "d1.png").write_bytes(whole[:-30])
    cv2.imwrite(str(path / "d2.png"), np.full((HEIGHT, WIDTH), 80, np.uint8))
    cv2.imwrite(str(path / "g3.png"), np.full((HEIGHT, WIDTH), 80, np.uint16))
    cv2.imwrite(str(path / "d4.png"), np.full((HEIGHT, WIDTH + 1), 800, np.uint16))
    cv2.imwrite(str(path / "d5.png"), np.full((HEIGHT, WIDTH, 3), 800, np.uint16))
    (path / "g6.png").write_bytes(b"GIF89a")


def test_an_image_that_cannot_be_used_is_a_reject(tmp_path):
    damage(make(tmp_path / "raw", count=8))
    items = load(tmp_path / "raw")
    assert [type(item) for item in items] == [Reject] * 7 + [Frame]
    assert [(item.info.frame, item.reason, item.detail) for item in items[:7]] == [
        ("f0", "gray image is missing", "g0.png"),
        ("f1", "depth image is truncated or damaged", "d1.png"),
        ("f2", "depth image is not 16-bit", "d2.png is uint8"),
        ("f3", "gray image is not 8-bit", "g3.png is uint16"),
        ("f4", "gray and depth differ in size", "20x24 and 21x24"),
        ("f5", "depth image has more than one channel", "d5.png has 3"),
        ("f6", "gray image is not a PNG or JPEG", "g6.png"),
    ]


@pytest.mark.parametrize("cut", [1, 12, 40, 300])
def test_a_truncated_png_or_jpeg_is_found(tmp_path, cut):
    path = make(tmp_path / "raw", {0: {"gray": "c.jpg"}})
    cv2.imwrite(str(path / "c.jpg"), cv2.imread(str(path / "g0.png")))
    assert isinstance(load(path)[0], Frame)
    for name in ("c.jpg", "d1.png"):
        (path / name).write_bytes((path / name).read_bytes()[:-cut])
    items = load(path)
    assert [getattr(item, "reason", None) for item in items[:3]] == [
        "gray image is truncated or damaged",
        "depth image is truncated or damaged",
        None,
    ]


def with_thumbnail(content):
    """A JPEG with another one, whole, in a segment of its own, as cameras write it."""
    payload = b"Exif\0\0" + content
    return content[:2] + b"\xff\xe1" + (len(payload) + 2).to_bytes(2) + payload + content[2:]


@pytest.mark.parametrize("progressive", [0, 1])
def test_what_a_camera_writes_around_a_jpeg_is_no_harm_and_hides_no_damage(tmp_path, progressive):
    path = make(tmp_path / "raw", {i: {"gray": f"{i}.jpg"} for i in range(6)})
    gray = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
    flags = [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive, cv2.IMWRITE_JPEG_RST_INTERVAL, 2]
    plain = cv2.imencode(".jpg", gray, flags)[1].tobytes()
    for i, content in enumerate(
        [
            plain,
            plain + b"\0" * 9,
            plain + b"MPF" + plain,  # a second picture
            with_thumbnail(plain) + b"trailer \xff\xd9",
            with_thumbnail(plain)[:-2],  # the thumbnail's end is there
            with_thumbnail(plain)[:-200],
        ]
    ):
        (path / f"{i}.jpg").write_bytes(content)
    items = load(path)
    for frame in items[:4]:
        np.testing.assert_array_equal(frame.gray, cv2.imdecode(np.frombuffer(plain, np.uint8), cv2.IMREAD_UNCHANGED))
    assert [item.reason for item in items[4:]] == ["gray image is truncated or damaged"] * 2


def test_missing_files_are_known_before_they_are_read(tmp_path):
    path = make(tmp_path / "raw", {0: {"depth": "."}, 1: {"gray": "x" * 300}})
    (path / "g3.png").unlink()
    (path / "d5.png").unlink()
    source = FolderSource(str(path), focal=365)
    known = source.known_rejects()
    assert [(reject.info.frame, reject.detail) for reject in known] == [
        ("f0", "."),
        ("f1", "x" * 300),
        ("f3", "g3.png"),
        ("f5", "d5.png"),
    ]
    rejects = [item.info.frame for item in source.load(0, 6) if isinstance(item, Reject)]
    assert rejects == [reject.info.frame for reject in known] and source.notes() == []


def test_a_flipped_bit_in_a_png_is_found(tmp_path):
    path = make(tmp_path / "raw")
    content = bytearray((path / "d0.png").read_bytes())
    content[len(content) // 2] ^= 4
    (path / "d0.png").write_bytes(content)
    assert load(path)[0].reason == "depth image is truncated or damaged"


def test_what_is_no_image_at_all_is_a_reject(tmp_path):
    path = make(tmp_path / "raw", {0: {"depth": "."}, 1: {"gray": "x" * 300}})
    (path / "g2.png").write_bytes(b"")
    (path / "g3.png").write_bytes(b"\xff\xd8 no jpeg \xff\xd9")
    reasons = [getattr(item, "reason", None) for item in load(path)]
    assert reasons == [
        "depth image is missing",
        "gray image is missing",
        "gray image is not a PNG or JPEG",
        "gray image cannot be decoded",
        None,
        None,
    ]
