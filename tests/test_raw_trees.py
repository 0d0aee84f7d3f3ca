"""The generated raw directories: formats read by a few slow lines here, known points at their places; then the readers
and the crop, and a training.

Two kinds of trees: faces, some of them black on a white wall so that their outline is the same thing in gray and in
depth; and discs, cast here in NumPy, of which every pixel is known.
"""

import functools
import json
import pathlib
import struct
import sys

import jax
import numpy as np
import pytest
import trimesh
from PIL import Image

from facedepth_jax import config, prepare, train
from facedepth_jax.data import arrays
from facedepth_jax.data.synthetic.accessories import topology
from facedepth_jax.data.synthetic.scene import camera_vertices, frame_scene

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import raw_trees  # noqa: E402

RIGS = {"biwi": raw_trees.BIWI, "pandora": raw_trees.PANDORA}
# Radius, centre from the head's, both in mm, and gray of each disc; the second is before the first.
DISCS = {"far": (90.0, (0, 0, 0), 150), "near": (15.0, (30, -40, -100), 250)}
DARK, WALL_MM = 40, 1600


@pytest.fixture(scope="module", autouse=True)
def ranks():
    """The pictures' code broadcasts as NumPy does, which the tests of training forbid."""
    with jax.numpy_rank_promotion("allow"):
        yield


def black(scene):
    """The figure black, the wall white."""
    nothing = {"skin", "lips", "hair", "brow", "iris", "gloss"}
    return scene._replace(
        part_albedo=np.zeros_like(scene.part_albedo),
        paint=scene.paint._replace(**dict.fromkeys(nothing, np.float32(0))),
        cloth=scene.cloth._replace(reflectance=np.float32(0), second=np.float32(0)),
        room=scene.room._replace(
            reflectance=np.float32(16), panel_contrast=np.float32(0), pictured=np.float32(0), seen=np.float32(1)
        ),
        lens=scene.lens._replace(
            exposure=np.float32(0.25), offset=np.float32(0), noise=np.float32(0), blur=np.float32(0)
        ),
    )


def disc_shot(rig, scene):
    """What both cameras see of DISCS, which face the depth camera."""
    images = []
    for optics, turn, shift in (
        (rig.depth, np.eye(3), np.zeros(3)),
        (rig.colour, rig.rotation, rig.translation_mm),
    ):
        y, x = np.mgrid[: optics.size_px[0], : optics.size_px[1]]
        rays = np.stack([(x - optics.center_px[0]), (y - optics.center_px[1])], -1) / optics.focal_px
        rays = np.concatenate([rays, np.ones((*x.shape, 1))], -1) @ turn  # in the depth camera's axes
        origin = -turn.T @ shift
        depth = np.full(x.shape, float(WALL_MM if rig.sensor == "kinect_v2" else 0))
        gray = np.full(x.shape, DARK, np.uint8)
        for radius, offset, tone in DISCS.values():
            centre = scene.head_mm + offset
            at = origin + rays * ((centre[2] - origin[2]) / rays[..., 2:])
            hit = np.hypot(*np.moveaxis(at[..., :2] - centre[:2], -1, 0)) < radius
            depth[hit], gray[hit] = centre[2], tone
        images.append((np.round(depth).astype(np.uint16), gray))
    return raw_trees.Shot(images[1][1], images[0][0], scene)


def write_faces(place, **numbers):
    """{data set: (directory, shots)}; those of the test split are black."""

    def scene(seed, subject, sequence, frame, frames):
        drawn = frame_scene(seed, subject, sequence, frame, frames)
        return black(drawn) if subject in (1, 10) else drawn

    biwi, pandora = place / "biwi", place / "pandora"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw_trees, "frame_scene", scene)
        shots = raw_trees.write_biwi(biwi, numbers["biwi"], frames=1, repeat=4)
        more = raw_trees.write_pandora(pandora, numbers["pandora"], frames=1, repeat=6, sequences=["base_2"])
    return {"biwi": (biwi, shots), "pandora": (pandora, more)}


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    return write_faces(tmp_path_factory.mktemp("faces"), biwi=[1], pandora=[10])


@pytest.fixture(scope="module")
def more_faces(tmp_path_factory):
    """People of all three splits."""
    return write_faces(tmp_path_factory.mktemp("more_faces"), biwi=[1, 3, 12, 15], pandora=[1, 9, 10])


@pytest.fixture(scope="module")
def discs(tmp_path_factory):
    """{data set: (directory, shots)}"""

    def shots(rig, seed, subject, sequence, frames, behind):
        return (disc_shot(rig, frame_scene(seed, subject, sequence, frame, frames)) for frame in range(frames))

    place = tmp_path_factory.mktemp("discs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw_trees, "_shots", shots)
        return {
            "biwi": (place / "biwi", raw_trees.write_biwi(place / "biwi", [1, 3, 12, 15], frames=4, repeat=2)),
            "pandora": (
                place / "pandora",
                raw_trees.write_pandora(place / "pandora", [2, 4, 9, 10], frames=1, repeat=8),
            ),
        }


def slow_depth_bin(content):
    """depth.bin, value by value."""
    width, height = struct.unpack_from("<ii", content)
    at, out = 8, []
    while len(out) < width * height:
        zeros, values = struct.unpack_from("<ii", content, at)
        out += [0] * zeros + list(struct.unpack_from(f"<{values}h", content, at + 8))
        at += 8 + 2 * values
    assert at == len(content)
    return np.array(out).reshape(height, width)


def blocks(text):
    return [np.array([row.split() for row in block.splitlines()], float) for block in text.split("\n\n")]


def test_biwi_format(discs):
    root, shots = discs["biwi"]
    assert sorted(p.name for p in (root / "hpdb").iterdir()) == ["01", "03", "12", "15"]
    for key, shot in shots.items():
        sequence, number = key.split("/")
        name = root / "hpdb" / sequence / f"frame_{int(number):05d}"
        np.testing.assert_array_equal(slow_depth_bin(pathlib.Path(f"{name}_depth.bin").read_bytes()), shot.depth_mm)
        rgb = np.asarray(Image.open(f"{name}_rgb.png"))
        assert rgb.shape == (480, 640, 3) and (rgb[..., 0] > rgb[..., 2]).all()
        np.testing.assert_array_equal(rgb[..., 1], shot.gray)
        turn, head_mm = blocks(pathlib.Path(f"{name}_pose.txt").read_text())
        pitch, yaw, roll = np.degrees([
            np.arctan2(turn[2, 1], turn[2, 2]),
            np.arctan2(-turn[2, 0], np.hypot(turn[2, 1], turn[2, 2])),
            np.arctan2(turn[1, 0], turn[0, 0]),
        ])  # fmt: skip
        np.testing.assert_allclose([yaw, pitch, roll], shot.scene.angles_deg, atol=1e-3)
        np.testing.assert_allclose(head_mm[0], shot.scene.head_mm, atol=1e-3)
    numbers = sorted(int(p.name[6:11]) for p in (root / "hpdb/01").glob("*_pose.txt"))
    assert numbers == [3, 4, 5, 6, 7, 8, 9, 11]
    matrix, distortion, turn, shift, size = blocks((root / "hpdb/03/rgb.cal").read_text())
    np.testing.assert_allclose(matrix, [[517.679, 0, 320], [0, 517.679, 240.5], [0, 0, 1]])
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-8)
    assert (distortion == 0).all() and distortion.shape == (1, 4) and size.tolist() == [[640, 480]]
    np.testing.assert_allclose(shift, [[-24.02, 5.89, -13.23]])
    assert (blocks((root / "hpdb/03/depth.cal").read_text())[2] == np.eye(3)).all()


def test_run_lengths_of_any_picture():
    rng = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.9, 1.0):
        picture = rng.integers(1, 4000, (7, 9)) * (rng.random((7, 9)) < share)
        np.testing.assert_array_equal(slow_depth_bin(raw_trees.run_lengths(picture.astype(np.uint16))), picture)


def test_pandora_format(discs):
    root, shots = discs["pandora"]
    folders = {p.name: p for p in root.glob("*/*")}
    assert len(folders) == 3 + 5 + 5 + 5
    assert not (folders["free_3_ID04"] / "RGB").exists()
    for name, folder in folders.items():
        listing = json.loads((folder / "data.json").read_text())
        if name.endswith("ID10"):
            assert [*listing] == [f"{n:06d}" for n in (0, 1, 2, 3, 5, 6, 7)]
            listing = [json.loads(text) for text in listing.values()]
        assert [entry["frame_num"] for entry in listing] == [0, 1, 2, 3, 5, 6, 7]
        scene = shots[f"{name}/0"].scene
        for entry in listing:
            assert [len(entry[k]) for k in ("joints", "joints3D", "jointsRGB")] == [17] * 3
            euler = entry["orientation"]["euler"]
            np.testing.assert_allclose([euler["yaw"], euler["pitch"], euler["roll"]], scene.angles_deg, atol=1e-5)
        depth = Image.open(folder / "DEPTH/000003_DEPTH.png")
        assert depth.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(depth), shots[f"{name}/0"].depth_mm)
        assert len(list(folder.glob("DEPTH/*.png"))) == 8
        if name != "free_3_ID04":
            assert not (folder / "RGB/000006_RGB.png").exists()
            rgb = np.asarray(Image.open(folder / "RGB/000003_RGB.png"))
            assert rgb.shape == (1080, 1920, 4 if name.startswith("base_2") else 3)


def test_head_joints_are_where_the_discs_are(discs):
    folder = discs["pandora"][0] / "09/base_1_ID09"
    entry = json.loads((folder / "data.json").read_text())[0]
    rgb = np.asarray(Image.open(folder / "RGB/000000_RGB.png"))[..., 1]
    depth = np.asarray(Image.open(folder / "DEPTH/000000_DEPTH.png"))
    for mask, joint in ((rgb > DARK, entry["jointsRGB"][3]), (depth < WALL_MM, entry["joints"][3])):
        y, x = np.nonzero(mask)
        np.testing.assert_allclose([x.mean(), y.mean()], joint, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", RIGS)
def test_both_cameras_see_the_figure_as_embree_does(faces, dataset):
    """Depth and outline of a black figure against rays cast from each camera's true place."""
    rig = RIGS[dataset]
    shot = next(s for s in faces[dataset][1].values() if s.scene.paint.skin == 0)
    vertices = np.asarray(jax.jit(camera_vertices)(shot.scene), np.float64)
    triangles = topology().triangles
    worn = (vertices[triangles][..., 2] > 0).all(1)
    mesh = trimesh.Trimesh(vertices, triangles[worn], process=False)
    for optics, turn, shift, image, step in (
        (rig.depth, np.eye(3), np.zeros(3), shot.depth_mm, 2),
        (rig.colour, rig.rotation, rig.translation_mm, shot.gray, 1 if dataset == "biwi" else 3),
    ):
        y, x = (v.ravel() for v in np.mgrid[: optics.size_px[0] : step, : optics.size_px[1] : step])
        rays = np.stack([(x - optics.center_px[0]), (y - optics.center_px[1]), np.full(x.shape, optics.focal_px)], -1)
        origins = np.broadcast_to(-turn.T @ shift, rays.shape)
        hits, ray, _ = mesh.ray.intersects_location(origins, rays @ turn, multiple_hits=False)
        z = np.zeros(len(x))
        z[ray] = (hits @ turn.T + shift)[:, 2]
        seen = image[y, x].astype(float)
        if image is shot.depth_mm:
            both = (seen > 0) & (z > 0)
            assert both.mean() > 0.1
            assert np.median(np.abs(seen - z)[both]) < 3  # the sensor's noise
            assert abs(np.median((seen - z)[both])) < 1
        else:
            wrong = ((z > 0) != (seen < 128)).mean()
            aside = np.roll(image, 1, 1)[y, x]
            assert wrong < 5e-4
            assert ((z > 0) != (aside < 128)).mean() > 3 * wrong  # a pixel aside is noticed


@pytest.fixture(scope="module")
def prepared(request, tmp_path_factory):
    """(trees' kind, data set, *flags) -> arrays, by the program."""
    out = tmp_path_factory.mktemp("prepared")

    @functools.cache
    def make(kind, dataset, *flags):
        path = out / "_".join([kind, dataset, *flags])
        raw, _ = request.getfixturevalue(kind)[dataset]
        prepare.main([f"--dataset={dataset}", f"--raw={raw}", f"--out={path}", "--workers=0", *flags])
        return arrays.open(path)

    return make


def truth(dataset, shots, frame):
    """The shot behind a prepared frame's name, NNN_FFFFFF of Pandora, NN_FFFFF of Biwi."""
    folder, number = map(int, frame.split("_"))
    if dataset == "biwi":
        rendered = [key for key in shots if key.startswith(f"{folder:02d}/")]
        numbers = [raw_trees.biwi_number(i) for i in range(100)]
        return shots[rendered[numbers.index(number) % len(rendered)]]
    subject, sequence = divmod(folder - 1, 5)
    return shots[f"{raw_trees.PANDORA_SEQUENCES[sequence]}_ID{subject + 1:02d}/0"]


@pytest.mark.parametrize("kind", ["discs", pytest.param("faces", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dataset", RIGS)
def test_angles_and_head_centres_come_back(request, prepared, dataset, kind):
    made, shots = prepared(kind, dataset), request.getfixturevalue(kind)[dataset][1]
    f = made.frames
    scenes = [truth(dataset, shots, frame).scene for frame in f["frame"]]
    angles = np.stack([f["yaw"], f["pitch"], f["roll"]], 1)
    np.testing.assert_allclose(angles, [s.angles_deg for s in scenes], atol=0.01)
    head_mm = np.stack([f["head_x_mm"], f["head_y_mm"], f["head_z_mm"]], 1)
    np.testing.assert_allclose(head_mm, [s.head_mm for s in scenes], atol=0.1)


def test_what_is_missing_is_left_out_and_the_rest_is_there(prepared):
    biwi = [f"{sequence:02d}_{n:05d}" for sequence in (1, 3, 12, 15) for n in (3, 4, 5, 6, 7, 8, 9, 11)]
    assert sorted(prepared("discs", "biwi").frames["frame"]) == biwi
    people = dict(zip(biwi, prepared("discs", "biwi").frames["subject"], strict=False))
    assert people["03_00003"] == people["15_00003"]
    folders = {6, 7, 8, 16, 17, 18, 19, *range(41, 51)} - {49}  # 49: the group's list leaves it out
    pandora = [f"{folder:03d}_{n:06d}" for folder in sorted(folders) for n in (0, 1, 2, 3, 5, 7)]
    assert sorted(prepared("discs", "pandora").frames["frame"]) == pandora


def place(mask):
    """The middle of what is set, x and y."""
    y, x = np.nonzero(mask)
    return np.array([x.mean(), y.mean()])


def in_crop(frames, i, which, xy):
    """Where pixel `xy` of the raw image lies in the prepared one."""
    x, y, w, h = (frames[f"{which}box_{name}"][i] for name in "xywh")
    return (np.array(xy) - [x, y] + 0.5) * 96 / [w, h] - 0.5


@pytest.mark.parametrize(
    "dataset, how", (("biwi", "depth_to_gray"), ("biwi", "gray_to_depth"), ("pandora", "head"), ("pandora", "joints"))
)
def test_gray_and_depth_agree_on_discs(prepared, discs, dataset, how):
    """The far disc's middle is the head centre. The near one lies 100 mm before it, where only a registered pair can
    agree; two crops around one point differ by the parallax."""
    made, shots, rig = prepared("discs", dataset, f"--register={how}"), discs[dataset][1], RIGS[dataset]
    for i, frame in enumerate(made.frames["frame"]):
        scene = truth(dataset, shots, frame).scene
        depth, gray = made.depth_mm[i].astype(int), made.gray[i]
        masks = {"far": ((depth > 0) & (depth < scene.head_mm[2] + 50), gray > 95),
                 "near": ((depth > 0) & (depth < scene.head_mm[2] - 50), gray > 200)}  # fmt: skip
        for name, (_, offset, _) in DISCS.items():
            centre = scene.head_mm.astype(np.float64) + offset
            in_depth, in_colour = rig.depth.project(centre), rig.colour.project(rig.to_colour(centre))
            by_depth, by_gray = map(place, masks[name])
            want_depth = in_crop(made.frames, i, "", in_colour if how == "depth_to_gray" else in_depth)
            want_gray = in_crop(made.frames, i, "gray_", in_depth if how == "gray_to_depth" else in_colour)
            np.testing.assert_allclose(by_depth, want_depth, atol=0.4)
            if name == "far" or how != "gray_to_depth":
                np.testing.assert_allclose(by_gray, want_gray, atol=0.4)
            else:  # what the near disc hides from the colour camera shows its gray too, so look inside
                inside = masks["near"][0]
                for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
                    inside = inside & np.roll(masks["near"][0], step, axis)
                assert (gray[inside] > 200).all() and inside.sum() > 20
            if name == "far" or how == "depth_to_gray":  # hands before the body bend the map of the joints
                assert np.abs(by_gray - by_depth).max() < (2 if how == "joints" else 0.6)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", RIGS)
def test_outlines_agree_on_faces(prepared, dataset):
    """A black figure on a white wall: its outline in gray is that in depth, and no shift mends it."""
    made = prepared("faces", dataset)
    i = np.nonzero(made.frames["split"] == "test")[0][0]
    figure = made.gray[i] < 128
    depth = made.depth_mm[i]
    seen = (depth > 0) & (depth < made.frames["head_z_mm"][i] + 400 if dataset == "biwi" else depth < 1500)
    wrong = {
        (dx, dy): (np.roll(seen, (dy, dx), (0, 1)) != figure)[4:-4, 4:-4].mean()
        for dx in range(-3, 4) for dy in range(-3, 4)
    }  # fmt: skip
    best = min(wrong, key=wrong.get)
    assert np.abs(best).max() <= 1 and wrong[0, 0] < min(0.08, wrong[best] + 0.006)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", RIGS)
def test_the_config_trains_on_them(prepared, more_faces, tmp_path, capsys, dataset):
    """By the command of the config, on the arrays that `prepare` left; if these differed, it would refuse."""
    raw_dir = more_faces[dataset][0]
    data = {"raw_dir": raw_dir, "dir": prepared("more_faces", dataset).path, "dataset": dataset}
    overrides = [f"--config.data.{name}={value}" for name, value in data.items()]
    overrides += ["--config.width=4", "--config.train.steps=2", "--config.train.batch_size=4"]
    train.run(config.load(dataset, overrides), tmp_path / "run")
    assert "complete already" in capsys.readouterr().out
    assert (tmp_path / "run" / "results.json").exists()
