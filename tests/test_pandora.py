"""pandora.py against a writer of its own: scenes of known geometry, and all that can be wrong with the files."""

import json
import math
import os
import pickle
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from writers import (
    BODY_MM,
    COLOUR_CAMERA,
    DEPTH_CAMERA,
    HEAD_MM,
    entry,
    make_cropped,
    make_pandora,
    project,
    sequence_folder,
)

from facedepth_jax.data import images
from facedepth_jax.data.chunks import prepare_frame
from facedepth_jax.data.frames import Frame, Reject
from facedepth_jax.data.readers.pandora import EXCLUDED, SPLITS, PandoraSource
from facedepth_jax.errors import FaceDepthError


def write_images(folder, frame, gray, depth_mm, channels=3):
    colour = np.dstack([gray] * 3 + [np.full_like(gray, 255)] * (channels == 4))
    fast = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    assert cv2.imwrite(str(folder / "RGB" / f"{frame:06d}_RGB.png"), colour, fast)
    assert cv2.imwrite(str(folder / "DEPTH" / f"{frame:06d}_DEPTH.png"), depth_mm, fast)


def sampled(camera, shape, mask_of_xy, z_mm):
    """bool (H, W): whether the ray through each pixel meets the plane z where `mask_of_xy` (x, y in mm) is true."""
    focal, x, y, place = camera
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return mask_of_xy((columns - x) / focal * z_mm + place, (rows - y) / focal * z_mm)


def plate(x_mm, y_mm):
    """A plate 200 mm wide around the head, with a slit to the left and a window above."""
    x, y = x_mm - HEAD_MM[0], y_mm - HEAD_MM[1]
    slit = (np.abs(x + 60) < 12) & (np.abs(y - 10) < 70)
    window = (np.abs(x - 30) < 30) & (np.abs(y + 70) < 15)
    return (np.abs(x) < 100) & (np.abs(y) < 120) & ~slit & ~window


def plate_images():
    """gray (200 on the plate, 20 on the wall) and depth (900 mm and 1500 mm)."""
    z = HEAD_MM[2]
    gray = np.where(sampled(COLOUR_CAMERA, (1080, 1920), plate, z), 200, 20).astype(np.uint8)
    depth_mm = np.where(sampled(DEPTH_CAMERA, (424, 512), plate, z), 900, 1500).astype(np.uint16)
    return gray, depth_mm


def load(root, **options):
    source = PandoraSource(str(root), **options)
    return list(source.load(0, len(source.index())))


def rejected(root, **options):
    """{frame: reason}, the same from known_rejects as from load for what the images are not needed for."""
    source = PandoraSource(str(root), **options)
    found = {r.info.frame: r.reason for r in source.known_rejects()}
    loaded = {r.info.frame: r.reason for r in source.load(0, len(source.index())) if isinstance(r, Reject)}
    assert found.items() <= loaded.items()
    return found


@pytest.fixture(scope="module")
def plate_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("plate")
    for sequence, channels in ((1, 3), (2, 4)):
        folder = make_pandora(root, 1, sequence, count=1, keyed=channels == 4)
        write_images(folder, 0, *plate_images(), channels=channels)
    return root


def test_a_frame_is_what_the_files_hold(plate_root):
    gray, depth_mm = plate_images()
    source = PandoraSource(str(plate_root))
    three, four = source.load(0, 2)  # colour with three channels and a list; with four and an object of strings
    assert [info.frame for info in source.index()] == ["001_000000", "002_000000"]
    for frame, sequence in ((three, 1), (four, 2)):
        assert (frame.info.subject, frame.info.sequence, frame.info.split) == ("01", sequence, "train")
        np.testing.assert_array_equal(frame.gray, gray)
        np.testing.assert_array_equal(frame.depth_mm, depth_mm)
        assert (frame.yaw, frame.pitch, frame.roll) == (3.0, 20.25, -1.5)
        np.testing.assert_allclose(frame.head_xy, project(HEAD_MM, DEPTH_CAMERA), rtol=1e-12)
        np.testing.assert_allclose(frame.gray_head_xy, project(HEAD_MM, COLOUR_CAMERA), rtol=1e-12)
        np.testing.assert_allclose(frame.head_mm, HEAD_MM, rtol=1e-12)
        assert frame.focal_px == (365.0, 365.0) and frame.gray_focal_px == (1081.37, 1081.37)
    assert source.known_rejects() == []
    again = pickle.loads(pickle.dumps(source))
    assert again.index() == source.index() and again.settings == source.settings
    np.testing.assert_array_equal(next(again.load(1, 2)).depth_mm, depth_mm)


@pytest.mark.parametrize("register", ["head", "joints"])
def test_gray_and_depth_agree_to_a_pixel_at_the_heads_distance(plate_root, register):
    frame = load(plate_root, register=register)[0]
    gray, depth_mm, row = prepare_frame(frame, 320.0, 96)
    bright, near = gray > 110, depth_mm == 900
    # The truth: 320 mm around the head, straight ahead.
    y, x = (np.mgrid[:96, :96] - 47.5) / 96 * 320
    truth = plate(x + HEAD_MM[0], y + HEAD_MM[1])
    sure = cv2.erode(truth.astype(np.uint8), np.ones((3, 3))) > 0
    maybe = cv2.dilate(truth.astype(np.uint8), np.ones((3, 3))) > 0
    for mask in (bright, near):
        assert mask[sure].all() and not mask[~maybe].any()
    edges = cv2.morphologyEx(near.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
    assert not ((bright != near) & ~edges).any()
    assert (bright != near).mean() < 0.02
    assert row["distance_mm"] == 900 and (row["box_w"], row["gray_box_w"]) == (130, 384)


def shift_px(root, **options):
    """How far the plate of the prepared gray image lies to the right of that of the depth, pixels of 96."""
    gray, depth_mm, _ = prepare_frame(load(root, **options)[0], 320.0, 96)
    rows = slice(60, 75)  # where the plate has no hole
    centre = [np.average(np.arange(96), weights=mask[rows].sum(0)) for mask in (gray > 110, depth_mm == 900)]
    return centre[0] - centre[1]


def test_a_joint_inside_the_head_costs_the_parallax_that_the_docs_state(tmp_path):
    behind = HEAD_MM * 1000 / 900  # on the same ray of the depth camera, 100 mm behind the plate
    joints_mm = behind + np.concatenate([BODY_MM, np.zeros((17, 1))], 1)
    write_images(make_pandora(tmp_path, entries=[entry(0, joints_mm)], count=1), 0, *plate_images())
    expected = 52 * (900 / 1000 - 1) * 96 / 320  # to the left, for the colour camera stands to the right
    assert shift_px(tmp_path) == pytest.approx(expected, abs=0.6)
    assert expected == pytest.approx(-1.56)


def test_the_map_of_the_joints_stands_some_bad_ones(tmp_path):
    bad = entry(0)
    for joint in (1, 9, 14):
        bad["jointsRGB"][joint] = [1700.0, 80.0]
    bad["joints"][11] = [math.nan, math.inf]  # as Kinect's mapper says of what it does not see
    bad["jointsRGB"][13] = [0, 0]
    bad["jointsRGB"][3] = [700.0, 300.0]  # the head's own is not needed
    root = tmp_path / "bad"
    write_images(make_pandora(root, entries=[bad], count=1), 0, *plate_images())
    frame = load(root, register="joints")[0]
    np.testing.assert_allclose(frame.gray_head_xy, project(HEAD_MM, COLOUR_CAMERA), atol=1e-6)
    np.testing.assert_allclose(frame.gray_focal_px, [1081.37] * 2, rtol=1e-9)
    assert load(root)[0].gray_head_xy == (700.0, 300.0)
    # The scale is the joints', for each axis; what was not tracked is at (0, 0), in either image.
    wide = entry(0)
    wide["jointsRGB"] = (np.array(wide["jointsRGB"]) * [1.1, 0.95]).tolist()
    for joint in (0, 1, 4, 5, 6):
        wide["jointsRGB"][joint] = [0, 0]
    for joint in (8, 9, 10, 16):
        wide["joints"][joint] = [0, 0]
    root = tmp_path / "wide"
    write_images(make_pandora(root, entries=[wide], count=1), 0, *plate_images())
    frame = load(root, register="joints")[0]
    np.testing.assert_allclose(frame.gray_focal_px, [1.1 * 1081.37, 0.95 * 1081.37], rtol=1e-9)
    np.testing.assert_allclose(frame.gray_head_xy, project(HEAD_MM, COLOUR_CAMERA) * [1.1, 0.95], atol=1e-6)
    # Joints at many depths, shaken: near what least squares make of the same joints.
    rng = np.random.default_rng(0)
    joints_mm = HEAD_MM + np.concatenate([BODY_MM, rng.uniform(-80, 60, (17, 1))], 1)
    shaken = entry(0, joints_mm)
    shaken["jointsRGB"] = (np.array(shaken["jointsRGB"]) + rng.normal(0, 2, (17, 2))).tolist()
    root = tmp_path / "shaken"
    write_images(make_pandora(root, entries=[shaken], count=1), 0, *plate_images())
    frame = load(root, register="joints")[0]
    for axis in (0, 1):
        a, b = (np.array(shaken[name])[:, axis] for name in ("joints", "jointsRGB"))
        slope, shift = np.polyfit(a, b, 1)
        assert frame.gray_focal_px[axis] == pytest.approx(365 * slope, rel=0.03)
        assert frame.gray_head_xy[axis] == pytest.approx(slope * shaken["joints"][3][axis] + shift, abs=8)


def test_joints_out_of_view_count(tmp_path):
    joints_mm = HEAD_MM + np.concatenate([3 * BODY_MM, np.zeros((17, 1))], 1)
    close = entry(0, joints_mm)
    assert (np.array(close["joints"])[:, 1] > 424).sum() == 12
    close["joints"][5] = [1e7, 1e7]
    write_images(make_pandora(tmp_path, entries=[close], count=1), 0, *plate_images())
    frame = load(tmp_path, register="joints")[0]
    np.testing.assert_allclose(frame.gray_head_xy, project(HEAD_MM, COLOUR_CAMERA), atol=1e-6)


def test_joints_that_give_no_map(tmp_path):
    few, line, scale, flipped, flat = (entry(frame) for frame in range(5))
    for joint in range(5, 17):
        few["joints"][joint] = [math.inf, math.inf]
    for joint in range(17):
        line["joints"][joint][0] = 200.0
        scale["jointsRGB"][joint][1] = 200 + scale["joints"][joint][1]
        flipped["jointsRGB"][joint][0] = 1919 - flipped["jointsRGB"][joint][0]
        flat["jointsRGB"][joint] = [900.0, 500.0]
    make_pandora(tmp_path, entries=[few, line, scale, flipped, flat], count=5)
    assert rejected(tmp_path, register="joints") == {
        "001_000000": "too few joints for a map",
        "001_000001": "too few joints for a map",
        "001_000002": "joints give no map",
        "001_000003": "joints give no map",
        "001_000004": "joints give no map",
    }
    assert rejected(tmp_path) == {}


def test_splits_and_subsets_are_by_person(tmp_path):
    for subject in range(1, 23):
        make_pandora(tmp_path, subject, 1 + subject % 5, count=1, keyed=subject % 2 == 0)
    index = PandoraSource(str(tmp_path)).index()
    split_of = {int(info.subject): info.split for info in index}
    assert [s for s in split_of if split_of[s] == "test"] == [10, 14, 16, 20]
    assert [s for s in split_of if split_of[s] == "validation"] == [9, 18, 21, 22]
    assert len(split_of) == 22 and set(split_of.values()) == {"train", "validation", "test"}
    for info in index:
        assert info.sequence == 1 + int(info.subject) % 5
        assert info.frame == f"{5 * (int(info.subject) - 1) + info.sequence:03d}_000000"


def test_frames_missing_in_the_json_or_on_disk(tmp_path):
    folder = make_pandora(tmp_path, entries=[entry(frame) for frame in (0, 1, 2, 3, 7)], count=5)
    (folder / "RGB" / "000001_RGB.png").unlink()
    (folder / "DEPTH" / "000002_DEPTH.png").unlink()
    (folder / "RGB" / "Thumbs.db").touch()
    assert rejected(tmp_path) == {
        "001_000001": "gray image is missing",
        "001_000002": "depth image is missing",
        "001_000004": "frame is not annotated",
        "001_000007": "gray image is missing",
    }
    source = PandoraSource(str(tmp_path))
    assert [info.frame[-1] for info in source.index()] == ["0", "1", "2", "3", "4", "7"]
    notes = "\n".join(source.notes())
    assert "1 sequence here, 108 expected; missing: 01 (base_2 free_1 free_2 free_3), 02, 03, 04" in notes


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda folder: shutil.rmtree(folder / "RGB"), "folder RGB is missing"),
        (lambda folder: shutil.rmtree(folder / "DEPTH"), "folder DEPTH is missing"),
        (lambda folder: (folder / "data.json").unlink(), "data.json is missing"),
        (lambda folder: cut(folder / "data.json", 0.6), "data.json is damaged"),
        (lambda folder: (folder / "data.json").write_bytes(b""), "data.json is damaged"),
        (lambda folder: (folder / "data.json").write_text("17"), "data.json is damaged"),
        (lambda folder: (folder / "data.json").write_text("[" * 100_000), "data.json is damaged"),
        (lambda folder: (folder / "data.json").write_bytes(b'["\xff\xfe"]'), "data.json is damaged"),
    ],
)
@pytest.mark.parametrize("keyed", [False, True])
def test_a_sequence_without_a_part_is_rejected_and_named(tmp_path, spoil, reason, keyed):
    make_pandora(tmp_path, 1, 1, keyed=keyed)
    make_pandora(tmp_path, 1, 2, keyed=keyed)
    spoil(sequence_folder(tmp_path, 1, 2))
    assert rejected(tmp_path) == {f"002_{frame:06d}": reason for frame in range(4)}
    assert any(note.startswith(f"01/base_2_ID01, 4 frames: {reason}") for note in PandoraSource(str(tmp_path)).notes())


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def without(name):
    return lambda e: e.pop(name)


def euler(**angles):
    return lambda e: e["orientation"]["euler"].update(angles)


def joint(name, value, index=3):
    return lambda e: e[name].__setitem__(index, value)


@pytest.mark.parametrize(
    "change, reason",
    [
        (without("orientation"), "angles are missing or not numbers"),
        (lambda e: e["orientation"]["euler"].pop("roll"), "angles are missing or not numbers"),
        (lambda e: e.update(orientation=[1, 2, 3]), "angles are missing or not numbers"),
        (lambda e: e["orientation"].update(euler=7), "angles are missing or not numbers"),
        (euler(yaw="3"), "angles are missing or not numbers"),
        (euler(yaw=True), "angles are missing or not numbers"),
        (euler(pitch=math.nan), "angles are missing or not numbers"),
        (euler(roll=None), "angles are missing or not numbers"),
        (euler(roll=10**400), "angles are missing or not numbers"),
        (without("joints"), "joints are missing"),
        (without("jointsRGB"), "joints are missing"),
        (lambda e: e["joints"].pop(), "joints are missing"),
        (lambda e: e.update(jointsRGB=[]), "joints are missing"),
        (lambda e: e.update(jointsRGB={"3": [1, 2]}), "joints are missing"),
        (joint("joints", None), "head joint is missing"),
        (joint("joints", [1.0]), "head joint is missing"),
        (joint("joints", ["1", "2"]), "head joint is missing"),
        (joint("jointsRGB", [math.inf, 500.0]), "head joint is missing"),
        (joint("jointsRGB", [0, 0]), "head joint is missing"),
        (joint("joints", [-1.0, 200.0]), "head joint outside the image"),
        (joint("joints", [511.6, 200.0]), "head joint outside the image"),
        (joint("jointsRGB", [800.0, 1079.6]), "head joint outside the image"),
        (joint("joints", [511.4, 423.4]), None),
        (joint("joints", None, index=9), None),
        (without("joints3D"), None),
        (joint("joints3D", [1, 2]), None),
        (joint("joints3D", [1, 2, math.nan]), None),
        (euler(yaw=90.0), None),
        (euler(yaw=-90.5), "extreme pose"),
        (euler(pitch=91), "extreme pose"),
        (euler(roll=math.nextafter(90, 91)), "extreme pose"),
    ],
)
@pytest.mark.parametrize("keyed", [False, True])
def test_an_annotation_that_cannot_be_used_is_counted(tmp_path, change, reason, keyed):
    entries = [entry(0), entry(1)]
    change(entries[1])
    make_pandora(tmp_path, entries=entries, count=2, keyed=keyed)
    assert rejected(tmp_path) == ({"001_000001": reason} if reason else {})


def test_extreme_poses_are_an_option(tmp_path):
    entries = [entry(f, euler={"yaw": yaw, "pitch": 0, "roll": 0}) for f, yaw in enumerate((-50.5, 50, 179, -30))]
    make_pandora(tmp_path, entries=entries)
    assert list(rejected(tmp_path, max_angle=50)) == ["001_000000", "001_000002"]
    assert rejected(tmp_path, max_angle=180) == {}


def test_annotations_without_or_with_another_number(tmp_path):
    folder = make_pandora(
        tmp_path, 1, 1, entries=[entry(0), entry(1), entry(2), entry(2), {"a": 1}, 7, entry(3) | {"frame_num": "3"}]
    )
    assert rejected(tmp_path) == {"001_000002": "frame is annotated twice", "001_000003": "frame is not annotated"}
    assert "01/base_1_ID01, 4 frames: 3 annotations without a frame's number" in PandoraSource(str(tmp_path)).notes()
    texts = [f'"{key}": {json.dumps(value)}' for key, value in (
        ("000000", json.dumps(entry(0))), ("000001", json.dumps(entry(2))), ("000002", json.dumps(entry(2))),
        ("000002", json.dumps(entry(2))), ("3", json.dumps(entry(3))), ("000003", json.dumps(entry(3))[:-9]),
    )]  # fmt: skip
    (folder / "data.json").write_text("{" + ", ".join(texts) + "}")
    assert rejected(tmp_path) == {
        "001_000001": "annotation is of another frame",
        "001_000002": "frame is annotated twice",
        "001_000003": "annotation is damaged",
    }
    (folder / "data.json").write_text(json.dumps({"000000": entry(0), "000001": "[1]", "000002": "[" * 100_000}))
    assert rejected(tmp_path) == {
        "001_000001": "annotation is not an object",
        "001_000002": "annotation is damaged",
        "001_000003": "frame is not annotated",
    }


def test_the_groups_list_at_its_ends(tmp_path):
    entries = [entry(f, euler={"yaw": 0, "pitch": 0, "roll": 0}) for f in (139, 140, 319, 320, 763, 764, 809, 810)]
    entries[2]["orientation"] = None  # on the list it counts as such, whatever else is wrong with it
    for subject, sequence in ((10, 3), (9, 3)):  # folder 48 of the group's count, and another
        root = tmp_path / str(subject)
        folder = make_pandora(root, subject, sequence, entries=entries, count=0)
        for e in entries:
            for kind in ("RGB", "DEPTH"):
                (folder / kind / f"{e['frame_num']:06d}_{kind}.png").touch()
    gone = {f"048_{frame:06d}": "excluded by the group's list" for frame in (140, 319, 764, 809)}
    assert rejected(tmp_path / "10") == gone
    assert rejected(tmp_path / "9") == {"043_000319": "angles are missing or not numbers"}


def test_images_of_another_size_or_kind(tmp_path):
    gray, depth_mm = np.zeros((1080, 1920), np.uint8), np.zeros((424, 512), np.uint16)
    folder = make_pandora(tmp_path, count=5)
    write_images(folder, 0, gray[:-1], depth_mm)
    write_images(folder, 1, gray, depth_mm[:, 1:])
    write_images(folder, 2, gray, depth_mm.astype(np.uint8))
    write_images(folder, 3, gray, depth_mm)
    cut(folder / "DEPTH" / "000003_DEPTH.png", 0.5)
    items = load(tmp_path)
    assert [item.reason for item in items] == [
        "gray image is not 1920x1080",
        "depth image is not 512x424",
        "depth image is not 16-bit",
        "depth image is truncated or damaged",
        "gray image is not a PNG or JPEG",
    ]
    assert items[0].detail == "1920x1079" and items[1].detail == "511x424"


def test_two_folders_of_one_sequence(tmp_path):
    make_pandora(tmp_path, 1, 1, count=2)
    make_pandora(tmp_path, 1, 1, count=2, folder=tmp_path / "01" / "BASE_1_ID01")
    make_pandora(tmp_path, 1, 1, count=1, folder=tmp_path / "02" / "base_1_ID01")
    make_pandora(tmp_path, 3, 1, count=1, folder=tmp_path / "02" / "base_1_ID03")
    make_pandora(tmp_path, 4, 2, count=1, folder=tmp_path / "04" / "Base_2_id04")  # alone: a matter of spelling
    (tmp_path / "23").mkdir()
    (tmp_path / "04" / "base_3_ID04").mkdir()
    assert rejected(tmp_path) == {}
    source = PandoraSource(str(tmp_path))
    assert [info.frame for info in source.index()] == ["001_000000", "001_000001", "017_000000"]
    others = "02/base_1_ID01, 02/base_1_ID03, 04/base_3_ID04, 23"
    assert f"folders that are not read, unknown or there twice: 01/base_1_ID01, {others}" in source.notes()


def test_two_sequences_with_the_same_annotation(tmp_path):
    for number, (subject, sequence) in enumerate(((1, 1), (1, 4), (2, 1), (10, 1))):
        make_pandora(tmp_path, subject, sequence, count=1 + number // 2 * 2)
    # Of one person, the first stays.
    copy = sequence_folder(tmp_path, 1, 4) / "data.json"
    copy.write_bytes((sequence_folder(tmp_path, 1, 1) / "data.json").read_bytes())
    assert rejected(tmp_path) == {"004_000000": "copy of another sequence"}
    # Of two people none does: who is it?
    copy = sequence_folder(tmp_path, 10, 1) / "data.json"
    copy.write_bytes((sequence_folder(tmp_path, 2, 1) / "data.json").read_bytes())
    assert rejected(tmp_path) == {"004_000000": "copy of another sequence"} | {
        f"{number:03d}_{frame:06d}": "copy of another sequence" for number in (6, 46) for frame in range(3)
    }
    # What annotates nothing is no copy of another.
    for subject, sequence in ((1, 1), (1, 4)):
        (sequence_folder(tmp_path, subject, sequence) / "data.json").write_text("[]")
    assert rejected(tmp_path)["001_000000"] == rejected(tmp_path)["004_000000"] == "frame is not annotated"


def test_a_subject_that_cannot_be_listed_is_no_missing_subject(tmp_path, monkeypatch):
    make_pandora(tmp_path, 1)
    make_pandora(tmp_path, 2)
    scandir = os.scandir

    def refuse(path):
        if Path(path).name == "02":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(FaceDepthError, match=r"/02 does not exist or cannot be listed \(Permission denied\)"):
        PandoraSource(str(tmp_path))


def test_a_directory_that_is_no_pandora(tmp_path):
    with pytest.raises(FaceDepthError, match="does not exist"):
        PandoraSource(str(tmp_path / "none"))
    (tmp_path / "file").touch()
    with pytest.raises(FaceDepthError, match="does not exist or cannot be listed"):
        PandoraSource(str(tmp_path / "file"))
    (tmp_path / "01").mkdir()
    with pytest.raises(FaceDepthError, match="holds no sequence of Pandora"):
        PandoraSource(str(tmp_path))
    (tmp_path / "001").mkdir()
    with pytest.raises(FaceDepthError, match="both releases"):
        PandoraSource(str(tmp_path))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"register": "fit"}, "register is 'fit', not one of head, joints"),
        ({"focal": 0.0}, "focal is 0.0"),
        ({"focal": math.nan}, "focal is nan"),
        ({"gray_focal": math.inf}, "gray_focal is inf"),
        ({"max_angle": 0.0}, "max_angle is 0.0"),
        ({"max_angle": math.nan}, "max_angle is nan"),
    ],
)
def test_options_out_of_range(tmp_path, options, message):
    make_pandora(tmp_path)
    with pytest.raises(FaceDepthError, match=message):
        PandoraSource(str(tmp_path), **options)


def test_settings_say_what_decides_the_frames(tmp_path):
    folder = make_pandora(tmp_path)
    before = PandoraSource(str(tmp_path)).settings
    assert json.loads(json.dumps(before)) == before == PandoraSource(str(tmp_path)).settings
    for option in ({"register": "joints"}, {"focal": 365.456}, {"gray_focal": 1080.0}, {"max_angle": 60.0}):
        assert PandoraSource(str(tmp_path), **option).settings != before
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "01", moved / "01")
    assert PandoraSource(str(moved)).settings == before
    found = [before]
    for frame in (2, 3):
        file = folder / "RGB" / f"{frame:06d}_RGB.png"
        file.unlink()
        found.append(PandoraSource(str(tmp_path)).settings)
        file.touch()
    (folder / "data.json").write_text((folder / "data.json").read_text() + " ")
    found.append(PandoraSource(str(tmp_path)).settings)
    assert len({json.dumps(each) for each in found}) == 4


# --- the cropped release ---------------------------------------------------------------------------------------------


def test_the_cropped_release(tmp_path):
    mm, gray, _ = make_cropped(tmp_path)
    source = PandoraSource(str(tmp_path))
    frame = next(source.load(1, 2))
    assert (frame.info.frame, frame.info.subject, frame.info.sequence, frame.info.split) == (
        "047_000001",
        "10",
        2,
        "test",
    )
    assert (frame.roll, frame.pitch, frame.yaw) == (1.5, -2.5, 47.125)
    np.testing.assert_array_equal(frame.gray, gray)
    seen = mm > 0
    assert not frame.depth_mm[~seen].any()
    lost = mm[seen] - frame.depth_mm[seen].astype(int)
    assert lost.min() >= 0 and lost.max() < 8
    made_gray, made_depth, row = prepare_frame(frame, 320.0, 50)  # whole, at half the size
    np.testing.assert_array_equal(made_gray, cv2.resize(gray, (50, 50), interpolation=cv2.INTER_AREA))
    assert made_depth[25, 25] == pytest.approx(900, abs=8) and made_depth[0, 0] == 0
    assert [row[f"{kind}box_{side}"] for kind in ("", "gray_") for side in "xywh"] == [0, 0, 100, 100] * 2
    assert np.isnan([row[name] for name in ("fx", "fy", "gray_fx", "gray_fy")]).all()
    assert source.settings["release"] == "cropped" and "register" not in source.settings
    with pytest.raises(FaceDepthError, match="register=joints needs joints, which the cropped release"):
        PandoraSource(str(tmp_path), register="joints")


def test_irregularities_of_the_cropped_release(tmp_path):
    lines = ["frame\troll\tpitch\tyaw", "000000\t1\t2\t3", "1\t1\t2", "2\t1\tnan\t3", "3\t0\t0\t0", "3\t0\t0\t0", "",
             "4\t0\t0\t-91", "9\t0\t0\t0"]  # fmt: skip
    *_, folder = make_cropped(tmp_path, 48, 7, lines)
    cv2.imwrite(str(folder / "frame_000000_face_depth.png"), np.full((100, 100), 256, np.uint16))
    make_cropped(tmp_path, 49, 1)
    make_cropped(tmp_path, 50, 1)[2].joinpath("more.TXT").touch()
    (tmp_path / "051").mkdir()
    make_cropped(tmp_path, 52, 1)[2].joinpath("angles.txt").unlink()
    make_cropped(tmp_path, 53, 1)[2].joinpath("angles.txt").write_bytes(b"\xff\xfe\xff")
    make_cropped(tmp_path, 54, 1, ["0\t0\t0\t0"])
    make_cropped(tmp_path, 111, 1)
    assert {item.info.frame: item.reason for item in load(tmp_path) if isinstance(item, Reject)} == {
        "048_000000": "depth is not a level of 8 bits",
        "048_000001": "angles are missing or not numbers",
        "048_000002": "angles are missing or not numbers",
        "048_000003": "frame is annotated twice",
        "048_000004": "extreme pose",
        "048_000005": "frame is not annotated",
        "048_000006": "frame is not annotated",
        "048_000009": "gray image is missing",
        "049_000000": "excluded by the group's list",
        "050_000000": "more than one text of angles",
        "052_000000": "text of the angles is missing",
        "053_000000": "text of the angles is damaged",
    }
    notes = PandoraSource(str(tmp_path)).notes()
    assert "048, 8 frames: 1 annotations without a frame's number" in notes
    assert "folders that are not read, unknown or there twice: 111" in notes
    assert ", 10 (046 047), " in notes[0] and "051, 0 frames: text of the angles is missing" in notes


# --- arbitrary input -------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
PATHS = [("frame_num",), ("orientation",), ("orientation", "euler"), ("joints",), ("jointsRGB",), ("joints", 3),
         ("jointsRGB", 3), ("joints", 3, 0), ("jointsRGB", 3, 1), ("orientation", "euler", "yaw"), ("joints3D", 3, 2),
         ("joints3D",), ("joints", 8), ("joints", 8, 0)]  # fmt: skip


def read_json(content, **options):
    """All items of a sequence of three frames with this data.json, its images black."""
    black = {"read_gray": np.zeros((1080, 1920), np.uint8), "read_depth": np.zeros((424, 512), np.uint16)}
    with (
        tempfile.TemporaryDirectory() as root,
        mock.patch.multiple(images, **{name: mock.Mock(return_value=image) for name, image in black.items()}),
    ):
        (make_pandora(root, entries=[], count=3) / "data.json").write_bytes(content)
        source = PandoraSource(root, **options)
        items = list(source.load(0, len(source.index())))
        source.notes()
    assert [item.info for item in items] == source.index() and len(items) >= 3
    assert [item.info for item in items if isinstance(item, Reject)] == [r.info for r in source.known_rejects()]
    return items


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_and_any_json_end_in_rejects(content):
    assert all(isinstance(item, Reject) for item in read_json(content))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PATHS), JSON, st.booleans(), st.sampled_from(["head", "joints"]))
def test_a_strange_value_ends_in_right_data_or_a_reject(path, value, keyed, register):
    entries = [entry(frame) for frame in range(3)]
    at = entries[1]
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    strange = entries[1]
    if keyed:
        entries = {f"{frame:06d}": json.dumps(e) for frame, e in enumerate(entries)}
    items = {item.info.frame: item for item in read_json(json.dumps(entries).encode(), register=register)}
    touched = {"001_000001"} | ({f"001_{value:06d}"} if path == ("frame_num",) and type(value) is int else set())
    for name, item in items.items():
        if name in touched and isinstance(item, Reject):
            continue
        assert isinstance(item, Frame) or name in touched or not int(name[-6:]) < 3, name
        if isinstance(item, Reject):
            continue
        true = strange if name == "001_000001" else entry(int(name[-6:]))
        assert item.yaw == true["orientation"]["euler"]["yaw"] and abs(item.yaw) <= 90
        assert type(true["orientation"]["euler"]["yaw"]) in (int, float)
        assert list(item.head_xy) == true["joints"][3] and 0 <= item.head_xy[0] + 0.5 < 512
        if register == "head":
            assert list(item.gray_head_xy) == true["jointsRGB"][3]
        else:
            np.testing.assert_allclose(item.gray_focal_px, 1081.37, rtol=0.25)
        assert np.isfinite([*item.gray_head_xy, *item.gray_focal_px]).all()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60) | st.lists(st.lists(st.text(max_size=6) | st.floats().map(str), max_size=5)))
def test_any_text_of_angles_ends_in_angles_or_rejects(content):
    if not isinstance(content, bytes):
        content = "\n".join("\t".join(map(str, cells)) for cells in content).encode("utf-8", "replace")
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "001"
        folder.mkdir()
        for kind in ("depth", "rgb"):
            (folder / f"frame_000000_face_{kind}.png").touch()
        (folder / "a.txt").write_bytes(content)
        source = PandoraSource(root)
        for item in source.load(0, len(source.index())):
            assert isinstance(item, Reject)


def test_the_frames_that_the_group_leaves_out_are_of_test_people_and_in_order():
    for folder, ranges in EXCLUDED.items():
        assert (folder - 1) // 5 + 1 in SPLITS["test"]
        ends = [end for limits in ranges for end in limits]
        assert ends == sorted(ends) and len(set(ends)) == len(ends)
    assert sum(len(ranges) for ranges in EXCLUDED.values()) == 36
