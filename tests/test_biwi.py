"""biwi.py against files from a writer of our own: formats, poses, registration, and what can be wrong with each."""

import math
import pickle
import shutil
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from writers import (
    GOOD_POSE,
    HEIGHT,
    SHIFT_MM,
    WIDTH,
    cal_text,
    check_against_slow,
    encode,
    pose_text,
    turn,
    write_sequence,
)

from facedepth_jax import config as configs
from facedepth_jax.data.frames import Frame, Reject
from facedepth_jax.data.readers import biwi, biwi_files
from facedepth_jax.data.readers.biwi import BiwiSource
from facedepth_jax.data.readers.biwi_files import decode_depth
from facedepth_jax.errors import FaceDepthError


def load(raw, **options):
    source = BiwiSource(str(raw), **options)
    return list(source.load(0, len(source.index())))


# --- depth.bin


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_depth_comes_back(data):
    width, height = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    values = st.one_of(st.just(0), st.integers(0, 32767))
    pixels = data.draw(st.lists(values, min_size=width * height, max_size=width * height))
    depth = np.array(pixels).reshape(height, width)
    decoded = decode_depth(encode(depth), (width, height))
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, depth)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=40), st.booleans())
def test_any_bytes_are_an_image_or_unusable(content, header):
    check_against_slow(struct.pack("<ii", 3, 2) * header + content, (3, 2))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 3), st.integers(0, 4)), max_size=4), st.booleans())
def test_runs_of_any_lengths_are_an_image_or_unusable(runs, odd):
    content = struct.pack("<ii", 3, 2)
    for zeros, values, written in runs:
        content += struct.pack("<ii", zeros, values) + struct.pack(f"<{written}h", *range(0, written))
    check_against_slow(content + b"\0" * odd, (3, 2))


BAD_DEPTH = {
    "no bytes": (b"", biwi_files._DAMAGED),
    "half a header": (struct.pack("<i", WIDTH), biwi_files._DAMAGED),
    "no runs": (struct.pack("<ii", WIDTH, HEIGHT), biwi_files._DAMAGED),
    "absurd size": (struct.pack("<iiii", 2**31 - 1, 2**31 - 1, 2**31 - 1, 0), f"depth image is not {WIDTH}x{HEIGHT}"),
    "negative size": (struct.pack("<iiii", -WIDTH, -HEIGHT, WIDTH * HEIGHT, 0), f"depth image is not {WIDTH}x{HEIGHT}"),
    "transposed": (struct.pack("<iiii", HEIGHT, WIDTH, WIDTH * HEIGHT, 0), f"depth image is not {WIDTH}x{HEIGHT}"),
    "too many zeros": (struct.pack("<iiii", WIDTH, HEIGHT, WIDTH * HEIGHT + 1, 0), biwi_files._DAMAGED),
    "huge counts": (struct.pack("<iiii", WIDTH, HEIGHT, 2**31 - 1, 2**31 - 1), biwi_files._DAMAGED),
    "negative zeros": (struct.pack("<iiiiii", WIDTH, HEIGHT, -1, 0, WIDTH * HEIGHT + 1, 0), biwi_files._DAMAGED),
    "negative values": (struct.pack("<iiii", WIDTH, HEIGHT, WIDTH * HEIGHT, -4), biwi_files._DAMAGED),
    "negative depth": (struct.pack("<iiiih", WIDTH, HEIGHT, WIDTH * HEIGHT - 1, 1, -900), biwi_files._DAMAGED),
    "too many values": (
        struct.pack("<iiii", WIDTH, HEIGHT, 0, WIDTH * HEIGHT + 1) + bytes(2 * WIDTH * HEIGHT + 2),
        biwi_files._DAMAGED,
    ),
}


@pytest.mark.parametrize("name", BAD_DEPTH)
def test_a_bad_depth_file_is_a_reject(tmp_path, name):
    content, reason = BAD_DEPTH[name]
    folder = write_sequence(tmp_path / "hpdb" / "03")
    (folder / "frame_00004_depth.bin").write_bytes(content)
    first, bad, last = load(tmp_path)
    assert isinstance(first, Frame) and isinstance(last, Frame)
    assert isinstance(bad, Reject) and bad.reason.startswith(reason) and "frame_00004_depth.bin" in bad.detail


def test_a_truncated_or_over_long_depth_file_is_a_reject(tmp_path):
    folder = write_sequence(tmp_path / "hpdb" / "03", numbers=range(6))
    for number, change in enumerate(
        [lambda x: x[:-1], lambda x: x[:-2], lambda x: x[:40], lambda x: x + b"\0", lambda x: x + bytes(8)]
    ):
        file = folder / f"frame_{number:05d}_depth.bin"
        file.write_bytes(change(file.read_bytes()))
    (folder / "frame_00005_depth.bin").write_bytes(encode(np.zeros((HEIGHT, WIDTH), int)) + bytes(10**6))
    assert {item.reason for item in load(tmp_path)} == {"depth file is truncated or damaged"}


# --- poses, people, layout


def test_poses_come_back(tmp_path):
    angles = {3: (12.34, -56.78, 33.3), 4: (-74.9, 59.5, -49.9), 7: (0.0, 0.0, 0.0)}
    folder = write_sequence(tmp_path / "hpdb" / "03", numbers=angles)
    for number, (yaw, pitch, roll) in angles.items():
        text = pose_text(turn(yaw, pitch, roll), (12.3456, -78.9012, 901.2345))
        (folder / f"frame_{number:05d}_pose.txt").write_text(text)
    for frame, want in zip(load(tmp_path), angles.values(), strict=True):
        np.testing.assert_allclose((frame.yaw, frame.pitch, frame.roll), want, atol=1e-4)
        assert frame.head_mm == (12.3456, -78.9012, 901.2345)
        assert all(type(x) is float for x in (frame.yaw, *frame.head_mm, *frame.head_xy, *frame.focal_px))
        assert frame.gray_head_xy is None and frame.gray_focal_px is None


def test_the_signs_of_the_angles(tmp_path):
    """Typed by hand, for the axes x right, y down, z away from the camera: the nose, which points to -z in front."""
    down = "1 0 0 \n0 0.866025 -0.5 \n0 0.5 0.866025 \n"  # nose to y = 0.5
    left = "0.866025 0 0.5 \n0 1 0 \n-0.5 0 0.866025 \n"  # nose to x = -0.5
    clockwise = "0.866025 -0.5 0 \n0.5 0.866025 0 \n0 0 1 \n"  # x, the face's side, turns towards y
    folder = write_sequence(tmp_path / "hpdb" / "03", numbers=[3, 4, 5])
    for number, text in zip((3, 4, 5), (down, left, clockwise), strict=True):
        (folder / f"frame_{number:05d}_pose.txt").write_text(text + "\n0 0 900 \n")
    angles = [(frame.yaw, frame.pitch, frame.roll) for frame in load(tmp_path)]
    np.testing.assert_allclose(angles, [(0, 30, 0), (30, 0, 0), (0, 0, 30)], atol=1e-3)


def test_names_people_and_splits(tmp_path):
    for number in (1, 3, 10, 12, 15, 18, 21, 22, 24):
        write_sequence(tmp_path / "hpdb" / f"{number:02d}", numbers=[3, 11])
    source = BiwiSource(str(tmp_path))
    index = source.index()
    assert [info.frame for info in index[:4]] == ["01_00003", "01_00011", "03_00003", "03_00011"]
    assert {info.frame[:2]: info.subject for info in index} == {
        **{"01": "01", "03": "03", "10": "10", "12": "12", "24": "24"},
        **{"15": "03", "18": "05", "21": "02", "22": "07"},
    }
    assert {info.frame[:2]: info.split for info in index} == {
        **{"01": "test", "10": "test", "12": "validation"},
        **{number: "train" for number in ("03", "15", "18", "21", "22", "24")},
    }
    assert {info.sequence for info in index} == {0} and source.known_rejects() == []
    assert source.notes() == [
        "15 of 24 sequences are missing: 02, 04, 05, 06, 07, 08, 09, 11, 13, 14, 16, 17, 19, 20, 23",
        "test sequence 01 has 2 frames, not 498 as published",
        "test sequence 10 has 2 frames, not 726 as published",
        "focal=370 where the calibration says 51.3 px: the window shows 721% of face_mm, see docs/biwi.md",
    ]
    assert "57.0 px: the window shows 649%" in BiwiSource(str(tmp_path), register="gray_to_depth").notes()[-1]
    assert "focal" not in str(BiwiSource(str(tmp_path), focal=0.0).notes())


@pytest.mark.parametrize("layout, given", [("hpdb", "."), ("faces_0", "."), ("hpdb", "hpdb"), ("faces_0", "faces_0")])
def test_the_root_at_either_level(tmp_path, layout, given):
    write_sequence(tmp_path / layout / "03")
    (tmp_path / layout / "03.obj").write_text("a head")
    (tmp_path / layout / "readme.txt").write_text("read me")
    source = BiwiSource(str(tmp_path / given))
    assert [info.frame for info in source.index()] == ["03_00003", "03_00004", "03_00007"]
    assert all(isinstance(item, Frame) for item in source.load(0, 9))


def test_pieces_are_as_the_whole_and_a_copy_is_as_the_source(tmp_path):
    write_sequence(tmp_path / "hpdb" / "03")
    write_sequence(tmp_path / "hpdb" / "04")
    source = BiwiSource(str(tmp_path))
    whole = list(source.load(0, 6))
    again = pickle.loads(pickle.dumps(source))
    assert again.settings == source.settings and again.index() == source.index()
    for start, stop in ((0, 2), (2, 5), (5, 99)):
        for a, b in zip(again.load(start, stop), whole[start:stop], strict=True):
            np.testing.assert_array_equal(a.gray, b.gray)
            np.testing.assert_array_equal(a.depth_mm, b.depth_mm)
            assert a.info == b.info and a.head_xy == b.head_xy


def test_the_groups_crops_by_the_command_in_the_config(tmp_path):
    """In the depth image, f R / D wide by its camera's own f."""
    folder = write_sequence(tmp_path / "hpdb" / "03", numbers=[3])
    path = Path(__file__).parents[1] / "configs/biwi.py"
    given = [word for word in path.read_text().split() if word.startswith("--config.data.options.")]
    config = configs.load(str(path), [*given, "data.dir=d"])
    (frame,) = load(tmp_path, **config.data.options.to_dict())
    stored = decode_depth((folder / "frame_00003_depth.bin").read_bytes(), (WIDTH, HEIGHT))
    kept = frame.depth_mm > 0  # but for what the colour camera cannot see
    np.testing.assert_array_equal(frame.depth_mm[kept], stored[kept])
    assert 0.8 < kept.sum() / (stored > 0).sum() < 1
    own = float((folder / "depth.cal").read_text().split()[0])
    assert frame.focal_px == (own, own)


def test_settings_tell_annotations_apart(tmp_path):
    folder = write_sequence(tmp_path / "hpdb" / "03")
    first = BiwiSource(str(tmp_path)).settings
    assert first == BiwiSource(str(tmp_path / "hpdb")).settings  # not where, but what
    assert first != BiwiSource(str(tmp_path), focal=0.0).settings
    assert first != BiwiSource(str(tmp_path), register="gray_to_depth").settings
    pose = folder / "frame_00004_pose.txt"
    text = pose.read_text()
    pose.write_text(text.replace("9", "8", 1))
    assert first != BiwiSource(str(tmp_path)).settings
    pose.write_text(text)
    assert first == BiwiSource(str(tmp_path)).settings
    (folder / "frame_00004_rgb.png").unlink()
    assert first != BiwiSource(str(tmp_path)).settings


def test_both_layouts_together(tmp_path):
    write_sequence(tmp_path / "hpdb" / "03")
    write_sequence(tmp_path / "faces_0" / "04")
    source = BiwiSource(str(tmp_path))
    assert {info.subject for info in source.index()} == {"03", "04"}
    write_sequence(tmp_path / "faces_0" / "03")
    with pytest.raises(FaceDepthError, match="sequence 03 is in .*hpdb/03 and in .*faces_0/03; remove one"):
        BiwiSource(str(tmp_path))


def test_a_copy_under_another_number_is_counted(tmp_path):
    folder = write_sequence(tmp_path / "hpdb" / "03")
    write_sequence(tmp_path / "hpdb" / "04")
    shutil.copytree(folder, tmp_path / "hpdb" / "15")
    # 15 is the person of 03: the first stays, the copy is left out.
    found = [(item.info.frame[:2], getattr(item, "reason", None)) for item in load(tmp_path)]
    assert found == [("03", None)] * 3 + [("04", None)] * 3 + [("15", "copy of sequence 03")] * 3


def test_neither_of_two_copies_under_two_people_stays(tmp_path):
    # Sequence 01 tests and 03 trains; if either stayed, the person of the other might be on both sides.
    folder = write_sequence(tmp_path / "hpdb" / "03", numbers=(3, 4, 7, 8))
    copy = shutil.copytree(folder, tmp_path / "hpdb" / "01")
    for file in copy.glob("frame_0000[48]_*"):  # copied in part
        file.unlink()
    with open(copy / "frame_00003_pose.txt", "a") as file:
        file.write("\n")
    write_sequence(tmp_path / "hpdb" / "12")
    found = [(item.info.frame[:2], getattr(item, "reason", None)) for item in load(tmp_path)]
    assert found == [("01", "copy of sequence 03")] * 2 + [("03", "copy of sequence 01")] * 4 + [("12", None)] * 3


def test_no_data_is_one_sentence(tmp_path):
    with pytest.raises(FaceDepthError, match="does not exist"):
        BiwiSource(str(tmp_path / "nothing"))
    with pytest.raises(FaceDepthError, match="holds no sequence of Biwi; the layout is hpdb/01"):
        BiwiSource(str(tmp_path))
    (tmp_path / "hpdb" / "03" / "base_1_ID03").mkdir(parents=True)
    with pytest.raises(FaceDepthError, match="holds no frame of Biwi; the layout is hpdb/01"):
        BiwiSource(str(tmp_path))
    write_sequence(tmp_path / "hpdb" / "04")
    write_sequence(tmp_path / "hpdb" / "25")
    source = BiwiSource(str(tmp_path))
    assert len(source.index()) == 3
    assert any("03 holds no frame" in note for note in source.notes())
    assert any("25 is none of Biwi's 24" in note for note in source.notes())
    for options, message in [
        ({"register": "both"}, "register is 'both'"),
        ({"focal": -1.0}, "focal is -1.0"),
        ({"focal": math.nan}, "focal is nan"),
        ({"mask": True}, "no folder head_pose_masks"),
    ]:
        with pytest.raises(FaceDepthError, match=message):
            BiwiSource(str(tmp_path), **options)


@pytest.mark.parametrize("missing, reason", [(name, f"{name} is missing") for name in biwi.FILES])
def test_a_missing_file_is_known_before(tmp_path, missing, reason):
    folder = write_sequence(tmp_path / "hpdb" / "03")
    (folder / f"frame_00004_{missing}").unlink()
    source = BiwiSource(str(tmp_path))
    (known,) = source.known_rejects()
    assert known == list(source.load(0, 3))[1]
    assert (known.info.frame, known.reason) == ("03_00004", reason)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("", "pose is damaged"),
        (GOOD_POSE[:-7], "pose is damaged"),
        (GOOD_POSE + "4\n", "pose is damaged"),
        (GOOD_POSE.replace("2", "two"), "pose is damaged"),
        (GOOD_POSE.replace("2", "nan"), "pose is damaged"),
        (GOOD_POSE.replace("2", "inf"), "pose is damaged"),
        (GOOD_POSE.replace("900", "1e300"), "pose is damaged"),
        (GOOD_POSE.replace("900", "-900"), "head centre is behind the depth camera"),
        (GOOD_POSE.replace("900", "0"), "head centre is behind the depth camera"),
        (GOOD_POSE.replace("900", "5"), "head centre is behind the colour camera"),
        (GOOD_POSE.replace("0 0 1", "0 0 -1"), "pose is not a rotation"),
        (GOOD_POSE.replace("0 0 1", "0 0 1.01"), "pose is not a rotation"),
        (GOOD_POSE.replace("0 0 1", "0 0.01 1"), "pose is not a rotation"),
        (GOOD_POSE.replace("1 0 0", "0 0 0"), "pose is not a rotation"),
        ("\0\xff", "pose is damaged"),
    ],
)
def test_a_bad_pose_is_a_reject(tmp_path, text, reason):
    folder = write_sequence(tmp_path / "hpdb" / "03")
    (folder / "frame_00004_pose.txt").write_text(text, encoding="latin-1")
    items = load(tmp_path)
    assert [getattr(item, "reason", None) for item in items] == [None, reason, None]


CAL = cal_text()


@pytest.mark.parametrize("name", ["depth.cal", "rgb.cal"])
@pytest.mark.parametrize(
    "text, detail",
    [
        (None, ""),
        ("", "0 numbers, not 27"),
        ("\n".join(CAL.splitlines()[:-2]), "25 numbers"),
        ("\n".join(CAL.splitlines()[1:]), "24 numbers"),
        (CAL.replace("57.0", "wide", 1), "something else than numbers"),
        (CAL.replace("57.0", "nan", 1), "not finite"),
        (CAL.replace("57.0", "0", 1), "not intrinsics"),
        (CAL.replace("0 0 1", "0 1 1", 1), "not intrinsics"),
        (CAL.replace("1.000000000", "1.1", 1), "R is not a rotation"),
        (CAL.replace("1.000000000", "-1", 1), "R is not a rotation"),
        (CAL.replace("64 48", "64 48.5"), "image size"),
        (CAL.replace("64 48", "64 100000"), "image size"),
        (CAL.replace("0 0 0 0", "-5 0 0 0", 1), "distortion cannot be undone"),
    ],
)
def test_a_bad_calibration_costs_its_sequence_alone(tmp_path, name, text, detail):
    write_sequence(tmp_path / "hpdb" / "03")
    folder = write_sequence(tmp_path / "hpdb" / "04")
    if text is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(text)
    source = BiwiSource(str(tmp_path))
    items = list(source.load(0, 6))
    assert [type(item) for item in items] == [Frame] * 3 + [Reject] * 3 and items[3:] == source.known_rejects()
    assert items[3].reason == f"{name} {'is missing' if text is None else 'cannot be used'}"
    assert detail in items[3].detail and f"04/{name}" in items[3].detail


@pytest.mark.parametrize("register", biwi.REGISTER)
def test_images_that_cannot_be_used_are_rejects(tmp_path, register):
    folder = write_sequence(tmp_path / "hpdb" / "03", numbers=range(4))
    cv2.imwrite(str(folder / "frame_00000_rgb.png"), np.zeros((HEIGHT, WIDTH + 1), np.uint8))
    (folder / "frame_00001_rgb.png").write_bytes((folder / "frame_00001_rgb.png").read_bytes()[:-20])
    (folder / "frame_00002_depth.bin").write_bytes(encode(np.zeros((HEIGHT, WIDTH), int)))  # prepare rejects it
    size, cut, empty, good = load(tmp_path, register=register)
    assert (size.reason, size.detail) == (f"gray image is not {WIDTH}x{HEIGHT}", f"{WIDTH + 1}x{HEIGHT}")
    assert cut.reason == "gray image is truncated or damaged"
    assert not empty.depth_mm.any() and good.depth_mm.any()


# --- masks


def test_masks_take_the_depth_outside_away(tmp_path):
    folder = write_sequence(tmp_path / "hpdb" / "03", rgb_cal=CAL)
    masks = tmp_path / "head_pose_masks" / "03"
    masks.mkdir(parents=True)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[10:30, 20:40] = 255
    cv2.imwrite(str(masks / "frame_00003_depth_mask.png"), mask)
    cv2.imwrite(str(masks / "frame_00007_depth_mask.png"), mask[1:])
    plain = load(tmp_path, register="gray_to_depth")[0]
    for raw in (tmp_path, folder.parent):
        masked, missing, size = load(raw, mask=True, register="gray_to_depth")
        np.testing.assert_array_equal(masked.depth_mm, np.where(mask, plain.depth_mm, 0))
        np.testing.assert_array_equal(masked.gray, plain.gray)
        assert missing.reason == "mask is missing"
        assert size.reason == f"mask is not {WIDTH}x{HEIGHT}"
    (masks / "frame_00003_depth_mask.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert load(tmp_path, mask=True)[0].reason == "mask is truncated or damaged"
    assert BiwiSource(str(tmp_path), mask=True).settings != BiwiSource(str(tmp_path)).settings


# --- registration: a plate nearer than a wall, both cut by rays from both cameras

BIG = (160, 120)
PLATE_MM, WALL_MM = 500.0, 1000.0
PLATE = (-100.0, 90.0, -80.0, 95.0)  # left, right, top, bottom


def cameras(distortion=(0, 0, 0, 0)):
    """(depth, colour): focal length, centre, R, T, distortion."""
    rotation = turn(1.5, -1.0, 2.0)
    return (144.0, (80.0, 60.0), np.eye(3), np.zeros(3), (0, 0, 0, 0)), (
        130.0,
        (81.0, 59.5),
        rotation,
        np.array(SHIFT_MM),
        distortion,
    )


def undistorted(x, y, distortion):
    """Solves the distortion by iterating."""
    k1, k2, p1, p2 = distortion
    u, v = x, y
    for _ in range(100):
        r2 = u * u + v * v
        radial = 1 + k1 * r2 + k2 * r2 * r2
        u, v = (
            (x - 2 * p1 * u * v - p2 * (r2 + 2 * u * u)) / radial,
            (y - p1 * (r2 + 2 * v * v) - 2 * p2 * u * v) / radial,
        )
    return u, v


def ray_cast(camera, plate=PLATE, wall=True, slope=0.0):
    """For each pixel: what is seen (0 nothing, 1 wall, 2 plate) and its z in this camera's frame.

    The plate is the part of z = PLATE_MM + slope * x with x, y in PLATE, the wall z = WALL_MM, in the depth camera's
    frame.
    """
    focal, centre, rotation, shift, distortion = camera
    x, y = np.meshgrid(np.arange(BIG[0]), np.arange(BIG[1]))
    u, v = undistorted((x - centre[0]) / focal, (y - centre[1]) / focal, distortion)
    directions = np.stack([u, v, np.ones_like(u)], -1) @ rotation  # R^T d: in the depth camera's frame
    origin = -rotation.T @ shift
    on_wall = (WALL_MM - origin[2]) / directions[..., 2]  # z in the camera's frame, as d has z = 1 there
    on_plate = (PLATE_MM + slope * origin[0] - origin[2]) / (directions[..., 2] - slope * directions[..., 0])
    points = origin + on_plate[..., None] * directions
    hit = (points[..., 0] >= plate[0]) & (points[..., 0] <= plate[1])
    hit &= (points[..., 1] >= plate[2]) & (points[..., 1] <= plate[3])
    seen = np.where(hit, 2, int(wall))
    return seen, np.where(hit, on_plate, on_wall if wall else 0)


def scene(tmp_path, distortion=(0, 0, 0, 0), head=(0.0, 5.0, 850.0), **what):
    depth_camera, gray_camera = cameras(distortion)
    _, z = ray_cast(depth_camera, **what)
    seen, _ = ray_cast(gray_camera, **what)
    texts = [cal_text(f, r, tuple(t), d, BIG, c) for f, c, r, t, d in (depth_camera, gray_camera)]
    write_sequence(
        tmp_path / "hpdb" / "03",
        numbers=[3],
        rgb=np.array([10, 100, 200], np.uint8)[seen],
        depth=np.floor(z + 0.5).astype(int),
        pose=pose_text(np.eye(3), head),
        depth_cal=texts[0],
        rgb_cal=texts[1],
    )
    return depth_camera, gray_camera


def around(mask, reach=1):
    """Pixels within `reach` of an edge of the mask."""
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    return cv2.dilate(mask.astype(np.uint8), kernel) != cv2.erode(mask.astype(np.uint8), kernel)


@pytest.mark.parametrize("distortion", [(0, 0, 0, 0), (0.15, -0.1, 0.004, -0.003)])
@pytest.mark.parametrize("slope", [0.0, 0.8])
def test_depth_is_carried_over_to_the_colour_camera(tmp_path, distortion, slope):
    what = {"slope": slope}
    _, gray_camera = scene(tmp_path, distortion, **what)
    (frame,) = load(tmp_path)
    seen, z = ray_cast(gray_camera, **what)
    assert (frame.gray == np.array([10, 100, 200])[seen]).all()  # as it was taken
    plate, edge = seen == 2, around(seen == 2)
    near = (frame.depth_mm > 0) & (np.abs(frame.depth_mm - z) <= 2)  # rounded twice
    assert plate.sum() > 1000 and near[plate & ~edge].all()  # no hole, nothing of the wall
    wall = ~plate & ~edge & (frame.depth_mm > 0)
    assert near[wall].all() and wall.sum() > 5000
    # The wall has depth where the depth camera sees it: beside the plate's shadow and within the image.
    visible = depth_camera_sees(gray_camera, z, slope)
    sure = ~plate & ~edge & ~around(visible)
    assert (visible & sure).sum() > 5000 and (~visible & sure).sum() > 20
    np.testing.assert_array_equal(frame.depth_mm[sure] > 0, visible[sure])


def depth_camera_sees(gray_camera, z, slope):
    """Whether the depth camera sees what the colour camera does, from the geometry."""
    focal, centre, rotation, shift, distortion = gray_camera
    x, y = np.meshgrid(np.arange(BIG[0]), np.arange(BIG[1]))
    u, v = undistorted((x - centre[0]) / focal, (y - centre[1]) / focal, distortion)
    points = (np.stack([u, v, np.ones_like(u)], -1) * z[..., None] - shift) @ rotation
    (focal, centre, *_), _ = cameras()
    a, b = points[..., 0] / points[..., 2], points[..., 1] / points[..., 2]
    column, row = focal * a + centre[0], focal * b + centre[1]
    inside = (column >= 0) & (column <= BIG[0] - 1) & (row >= 0) & (row <= BIG[1] - 1)
    plate_z = PLATE_MM / (1 - slope * a)
    behind = (plate_z * a >= PLATE[0]) & (plate_z * a <= PLATE[1]) & (plate_z * b >= PLATE[2])
    return inside & ~(behind & (plate_z * b <= PLATE[3]) & (plate_z < points[..., 2] - 1))


def test_edges_of_gray_and_depth_agree(tmp_path):
    scene(tmp_path)
    (frame,) = load(tmp_path)
    by_gray, by_depth = frame.gray == 200, (frame.depth_mm > 0) & (frame.depth_mm < 900)
    assert not (by_gray ^ by_depth)[~around(by_gray)].any()
    for axis in (0, 1):  # the middle of the plate, which one wrong edge would shift
        mine, true = (np.argwhere(m)[:, axis].mean() for m in (by_depth, by_gray))
        assert abs(mine - true) < 0.3


def test_a_plate_in_front_of_nothing(tmp_path):
    """As in Biwi, where the background is 0: no hole in it, nothing beside it."""
    _, gray_camera = scene(tmp_path, wall=False)
    (frame,) = load(tmp_path)
    seen, _ = ray_cast(gray_camera, wall=False)
    wrong = (seen == 2) != (frame.depth_mm > 0)
    assert not wrong[~around(seen == 2)].any()


def test_holes_of_the_sensor_stay_and_small_ones_do_not_grow(tmp_path):
    depth_camera, _ = scene(tmp_path, wall=False)
    _, z = ray_cast(depth_camera, wall=False)
    z = np.floor(z + 0.5).astype(int)
    z[55:62, 75:82] = 0
    (tmp_path / "hpdb" / "03" / "frame_00003_depth.bin").write_bytes(encode(z))
    (frame,) = load(tmp_path)
    x0, y0, _, _ = cv2.boundingRect((frame.depth_mm > 0).astype(np.uint8))
    holes = cv2.connectedComponents((frame.depth_mm == 0).astype(np.uint8), connectivity=4)[0] - 1
    assert holes == 2  # outside and the one
    inside = frame.depth_mm[y0 + 3 : y0 + 15, x0 + 3 : x0 + 15]
    assert (inside > 0).all()


def project(camera, point):
    focal, centre, rotation, shift, distortion = camera
    matrix = np.array([[focal, 0, centre[0]], [0, focal, centre[1]], [0, 0, 1.0]])
    vector = cv2.Rodrigues(rotation)[0]
    return cv2.projectPoints(np.array([point]), vector, shift, matrix, np.array(distortion, float))[0].ravel()


@pytest.mark.parametrize("register", biwi.REGISTER)
@pytest.mark.parametrize("distortion", [(0, 0, 0, 0), (0.15, -0.1, 0.004, -0.003)])
def test_the_head_is_where_opencv_projects_it(tmp_path, register, distortion):
    head = (31.0, -22.0, 850.0)
    depth_camera, gray_camera = scene(tmp_path, distortion, head)
    camera = gray_camera if register == "depth_to_gray" else depth_camera
    (frame,) = load(tmp_path, register=register)
    np.testing.assert_allclose(frame.head_xy, project(camera, head), atol=1e-3)
    assert frame.focal_px == (370.0, 370.0) and frame.head_mm == head
    assert load(tmp_path, register=register, focal=0.0)[0].focal_px == (camera[0], camera[0])
    assert load(tmp_path, register=register, focal=500.0)[0].focal_px == (500.0, 500.0)


@pytest.mark.parametrize("distortion", [(0, 0, 0, 0), (0.15, -0.1, 0.004, -0.003)])
def test_gray_is_sampled_where_the_depth_is(tmp_path, distortion):
    depth_camera, gray_camera = scene(tmp_path, distortion)
    (frame,) = load(tmp_path, register="gray_to_depth")
    seen, z = ray_cast(depth_camera)
    kept = frame.depth_mm > 0
    np.testing.assert_array_equal(frame.depth_mm[kept], np.floor(z + 0.5)[kept])
    # What is taken away is wall that the plate hides from the colour camera.
    x, y = np.meshgrid(np.arange(BIG[0]), np.arange(BIG[1]))
    focal, centre, *_ = depth_camera
    points = np.stack([(x - centre[0]) / focal, (y - centre[1]) / focal, np.ones(x.shape)], -1) * WALL_MM
    origin = -gray_camera[2].T @ gray_camera[3]
    across = origin + (points - origin) * ((PLATE_MM - origin[2]) / (WALL_MM - origin[2]))
    hidden = (across[..., 0] >= PLATE[0]) & (across[..., 0] <= PLATE[1]) & (seen == 1)
    hidden &= (across[..., 1] >= PLATE[2]) & (across[..., 1] <= PLATE[3])
    sure = ~around(seen == 2) & ~around(hidden)
    assert (hidden & sure).sum() > 20 and not (hidden == kept)[sure].any()
    assert (seen[~kept] == 1).all()
    inside = kept & ~around(seen == 2, 2) & ~around(kept, 2)
    inside[:14], inside[-14:], inside[:, :14], inside[:, -14:] = False, False, False, False  # seen by both
    assert (frame.gray[inside] == np.where(seen == 2, 200, 100)[inside]).all()


def test_gray_does_not_tell_where_depth_is_missing(tmp_path):
    """A texture on the plate; half of the plate's depth is taken away, at the head's distance gray stays the same."""
    depth_camera, _ = scene(tmp_path, head=(0.0, 5.0, PLATE_MM), wall=False)
    rng = np.random.default_rng(0)
    folder = tmp_path / "hpdb" / "03"
    texture = cv2.resize(rng.integers(0, 256, (12, 16), dtype=np.uint8), BIG, interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(folder / "frame_00003_rgb.png"), texture)
    whole = load(tmp_path, register="gray_to_depth")[0]
    _, z = ray_cast(depth_camera, wall=False)
    z = np.floor(z + 0.5).astype(int)
    z[::2] = 0
    (folder / "frame_00003_depth.bin").write_bytes(encode(z))
    holed = load(tmp_path, register="gray_to_depth")[0]
    np.testing.assert_array_equal(holed.gray, whole.gray)
    # Against a plain bilinear sampling at the projected place of each pixel.
    (focal, centre, *_), gray_camera = cameras()
    for row, column in rng.integers((40, 60), (80, 100), (30, 2)):
        point = np.array([(column - centre[0]) / focal, (row - centre[1]) / focal, 1]) * PLATE_MM
        x, y = project(gray_camera, point)
        i, j = int(y), int(x)
        patch = texture[i : i + 2, j : j + 2].astype(float)
        want = np.array([1 - (y - i), y - i]) @ patch @ np.array([1 - (x - j), x - j])
        assert abs(whole.gray[row, column] - want) < 2.5


def test_people_are_in_one_split():
    for again, first in biwi.SAME_PERSON.items():
        assert again not in sum(biwi.SPLITS.values(), ()) and first not in sum(biwi.SPLITS.values(), ())
    assert biwi.SEQUENCES - len(biwi.SAME_PERSON) == 20 and tuple(biwi.TEST_FRAMES) == biwi.SPLITS["test"]
