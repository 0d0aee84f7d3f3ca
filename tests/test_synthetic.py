"""The synthetic faces against embree, Kabsch and plain projection; determinism, splits, spread of identities."""

import dataclasses
import functools
import pathlib
import pickle
import shlex

import jax
import numpy as np
import pytest
import trimesh

from facedepth_jax import prepare
from facedepth_jax.data.frames import SPLITS
from facedepth_jax.data.synthetic import (
    SENSORS,
    TEST_SEED,
    SyntheticSource,
    accessories,
    identity,
    picture,
    scene,
    window,
)
from facedepth_jax.errors import FaceDepthError

ROOT = pathlib.Path(__file__).parents[1]
SIZE_PX = 96
SOURCE = SyntheticSource(subjects=4, frames_per_sequence=3, image_size=SIZE_PX, seed=7)


@pytest.fixture(scope="module", autouse=True)
def ranks():
    """The pictures' code broadcasts as NumPy does, which the tests of training forbid."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def frames():
    return list(SOURCE.load(0, 60))


@pytest.fixture(scope="module")
def exact():
    """The first frames of the same people without a sensor."""
    return list(dataclasses.replace(SOURCE, sensor="none").load(0, 20))


@functools.cache
def posed(source, position):
    """One frame's scene, camera and camera-frame vertices."""
    s = source.scene(position)
    return s, window(s, source.sensor, source.image_size), np.asarray(jax.jit(scene.camera_vertices)(s))


def kabsch(points, moved):
    """The rotation that takes `points` to `moved`, both (N, 3), by singular value decomposition."""
    a, b = points - points.mean(0), moved - moved.mean(0)
    u, _, vt = np.linalg.svd(a.T @ b)
    d = np.diag([1, 1, np.sign(np.linalg.det(vt.T @ u.T))])
    return vt.T @ d @ u.T


@functools.cache
def skull():
    """Indices of head vertices that no expression moves: the back of the head."""
    return np.nonzero((identity.head().vertices[:, 2] > 40) & (identity.head().follow == 1))[0]


def test_index_names_splits_and_pickling():
    source = pickle.loads(pickle.dumps(SyntheticSource(subjects=30, frames_per_sequence=2)))
    index = source.index()
    assert len(index) == 30 * 5 * 2 == len({i.frame for i in index})
    assert index[0].frame == "s0001_1_0000" and index[-1].frame == "s0030_5_0001"
    people = {s: {i.subject for i in index if i.split == s} for s in SPLITS}
    assert [len(people[s]) for s in SPLITS] == [24, 3, 3]
    assert not people["train"] & people["validation"] and not people["train"] & people["test"]
    assert not people["validation"] & people["test"]
    assert SyntheticSource(subjects=30, seed=1).splits() != source.splits()


def test_the_documented_test_set_is_200_people_of_a_seed_of_their_own():
    docs = (ROOT / "docs" / "preparing.md").read_text()
    line = next(line for line in docs.splitlines() if "--out=data/synthetic_test" in line)
    flags, options = prepare._flags(shlex.split(line)[3:])
    source = SyntheticSource(seed=flags.seed, **{name: value for name, value in options.items() if name != "seed"})
    assert len({info.subject for info in source.index()}) == 200 and len(source.index()) == 200 * 5 * 4
    assert flags.seed == TEST_SEED
    for path in ROOT.glob("configs/*.py"):
        assert str(flags.seed) not in path.read_text()


def test_a_frame_is_named_exactly():
    """float32 does not hold every seed."""
    for seed in (7, TEST_SEED, 2**31 - 1):
        numbers = scene.frame_scene(seed, 2, 1, 0, 1).numbers
        assert numbers.tolist() == [seed, 2, 1, 0] and numbers.dtype == np.int32


def test_test_subjects_are_the_same_whoever_is_trained_on():
    few = {"frames_per_sequence": 1, "image_size": SIZE_PX}
    sources = [SyntheticSource(subjects=n, test_subjects=2, seed=seed, **few) for n, seed in ((10, 4), (20, 3))]
    alone = list(SyntheticSource(subjects=2, seed=TEST_SEED, **few).load(0, 10))
    for source in sources:
        index = source.index()
        assert {info.subject for info in index if info.split == "test"} == {"t0001", "t0002"}
        for got, want in zip(source.load(len(index) - 10, len(index)), alone, strict=True):
            assert got.info.split == "test" and got.info.frame[1:] == want.info.frame[1:]
            np.testing.assert_array_equal(got.gray, want.gray)
            np.testing.assert_array_equal(got.depth_mm, want.depth_mm)
    assert sources[0].settings["test_subjects"] == 2 and "test_subjects" not in SyntheticSource().settings
    # The people to train on stay as they were, and those it would have tested on are left out.
    without = dataclasses.replace(sources[0], test_subjects=0)
    stay = [row for row, info in enumerate(without.index()) if info.split != "test"]
    assert sources[0].index()[:-10] == [without.index()[row] for row in stay]
    got, want = next(sources[0].load(44, 45)), next(without.load(stay[44], stay[44] + 1))
    assert got.info == want.info and stay[44] != 44
    np.testing.assert_array_equal(got.gray, want.gray)
    with pytest.raises(FaceDepthError, match="choose another"):
        SyntheticSource(test_subjects=2, seed=TEST_SEED)


def test_frames_are_whole(frames):
    assert len(frames) == 60
    for frame, info in zip(frames, SOURCE.index(), strict=True):
        assert frame.info == info
        assert frame.gray.shape == frame.depth_mm.shape == (SIZE_PX, SIZE_PX)
        assert frame.gray.dtype == np.uint8 and frame.depth_mm.dtype == np.uint16
        seen = frame.depth_mm[frame.depth_mm > 0]
        assert seen.min() >= 500 and seen.max() <= 4500
        assert frame.gray.std() > 8


def test_any_cut_gives_the_same_bits(frames):
    for start, stop in ((16, 17), (30, 35), (59, 60)):
        for got, want in zip(SOURCE.load(start, stop), frames[start:stop], strict=True):
            assert got.info == want.info and got.head_xy == want.head_xy
            np.testing.assert_array_equal(got.gray, want.gray)
            np.testing.assert_array_equal(got.depth_mm, want.depth_mm)


def test_kinect_v1_shows_the_same_scene_larger():
    v2, v1 = (next(SyntheticSource(subjects=1, sensor=s, image_size=SIZE_PX).load(0, 1))
              for s in ("kinect_v2", "kinect_v1"))  # fmt: skip
    assert v1.focal_px == pytest.approx((575.816, 575.816))
    centre = [f.depth_mm[40:56, 40:56].astype(float) for f in (v2, v1)]
    assert all((c > 0).mean() > 0.9 for c in centre)
    z = [np.median(c[c > 0]) for c in centre]
    assert abs(z[0] - z[1]) < 25
    # Steps of 1/8 px in disparity: far fewer depths occur than millimetres.
    used = [len(np.unique(f.depth_mm[f.depth_mm > 0])) for f in (v2, v1)]
    disparity = 575.816 * 75 / np.unique(v1.depth_mm[v1.depth_mm > 0])
    assert used[1] < used[0]
    # Back from whole millimetres: half a millimetre of a disparity of b f / z.
    assert (np.abs(disparity * 8 - np.round(disparity * 8)) <= 8 * 0.51 * disparity**2 / (575.816 * 75)).all()


def test_seed_changes_everything():
    a, b = (SyntheticSource(subjects=4, frames_per_sequence=3, seed=s).scene(0) for s in (7, 8))
    assert np.abs(a.vertices - b.vertices)[: len(identity.head().vertices)].max() > 3
    assert not np.allclose(a.angles_deg, b.angles_deg)


def test_recorded_angles_are_those_of_the_mesh(frames):
    for position in range(0, 60, 7):
        s, _, vertices = posed(SOURCE, position)
        at = skull()
        r = kabsch(s.vertices[at].astype(np.float64), vertices[at].astype(np.float64))
        # Biwi's convention: rx = atan2(R21, R22), ry = atan2(-R20, hypot(R21, R22)), rz = atan2(R10, R00)
        pitch, yaw, roll = np.degrees(
            [
                np.arctan2(r[2, 1], r[2, 2]),
                np.arctan2(-r[2, 0], np.hypot(r[2, 1], r[2, 2])),
                np.arctan2(r[1, 0], r[0, 0]),
            ]
        )
        frame = frames[position]
        np.testing.assert_allclose([frame.yaw, frame.pitch, frame.roll], [yaw, pitch, roll], atol=0.01)


def test_head_xy_is_the_head_centre(frames):
    for position in range(0, 60, 7):
        s, camera, vertices = posed(SOURCE, position)
        at = skull()
        r = kabsch(s.vertices[at].astype(np.float64), vertices[at].astype(np.float64))
        centre = vertices[at].mean(0) - r @ s.vertices[at].mean(0)  # where the head frame's origin went
        xy = centre[:2] / centre[2] * camera.focal_px + camera.center_px
        np.testing.assert_allclose(frames[position].head_xy, xy, atol=0.02)
        np.testing.assert_allclose(xy, (SIZE_PX - 1) / 2, atol=0.6)
        np.testing.assert_array_equal(np.mod(camera.center_px - SENSORS["kinect_v2"][1], 1).round(3) % 1, 0)


def test_depth_lies_on_the_head(frames):
    near = 0
    for position, frame in enumerate(frames):
        z = SOURCE.scene(position).head_mm[2]
        x, y = np.round(frame.head_xy).astype(int)
        patch = frame.depth_mm[y - 3 : y + 4, x - 3 : x + 4]
        assert 600 < z < 1400
        near += z - 160 < np.median(patch[patch > 0]) < z + 20 if (patch > 0).any() else 0
    assert near > 50  # the others have something in front


def test_first_sequences_turn_one_angle_at_a_time():
    source = SyntheticSource(subjects=6, frames_per_sequence=12)
    frontal = []
    for subject in range(6):
        for sequence in range(5):
            first = (subject * 5 + sequence) * 12
            angles = np.array([source.scene(p).angles_deg for p in range(first, first + 12)])
            span = np.ptp(angles, axis=0)
            assert (np.abs(angles) <= [75, 45, 40]).all()
            frontal.append((np.abs(angles) <= 10).all(1).mean())
            if sequence < 3:
                others = np.delete(angles, sequence, 1)
                assert span[sequence] > 24 and np.abs(others).max() < 6.5
                assert np.abs(np.diff(angles[:, sequence])).max() < 0.75 * span[sequence]  # it sweeps, it does not jump
    assert 0.08 < np.mean(frontal) < 0.5


def test_people_differ_more_than_expressions():
    """Root mean square distance of the face's vertices, after the best rigid fit."""
    mesh = identity.head()
    face = (mesh.follow > 0.98) & (mesh.vertices[:, 2] < -20) & (mesh.part == 0) & (np.abs(mesh.vertices[:, 0]) < 65)

    def distance(a, b):
        r = kabsch(a, b)
        moved = (a - a.mean(0)) @ r.T
        return np.sqrt(((moved - (b - b.mean(0))) ** 2).sum(1).mean())

    people = [identity.person(0, n).vertices[face].astype(np.float64) for n in range(1, 21)]
    between = [distance(people[i], people[j]) for i in range(20) for j in range(i)]
    deltas = np.stack([mesh.targets[n] for n in scene.unit_names()])[:, face]
    source = SyntheticSource(subjects=20, frames_per_sequence=10)
    within = []
    for number in range(20):
        units = [source.scene(number * 50 + k).units for k in (0, 13, 27, 33, 41, 48)]
        faces = [people[number] + np.einsum("e,evi->vi", u, deltas) for u in units]
        within += [distance(faces[i], faces[j]) for i in range(6) for j in range(i)]
    assert np.median(between) > 2.5 * np.median(within)
    assert np.min(between) > np.median(within)
    assert 2.5 < np.median(between) < 9  # mm: people, not monsters


def test_adults_have_the_proportions_of_real_faces():
    """MakeHuman's head with the means of MEANS, and the mean of sampled adults; measured by hand, in mm."""
    mesh = identity.head()
    outer, inner, mouth, forehead, nasion, chin = 4195, 5533, 3689, 2148, 133, 2721
    assert mesh.masks["eyelids"][[outer, inner]].min() > 0.5 and mesh.masks["lips"][mouth] > 0.3
    assert np.abs(mesh.vertices[[forehead, nasion, chin], 0]).max() < 0.1
    scalp = (mesh.part == 0) & (mesh.follow == 1) & (mesh.masks["ears"] < 0.1) & (mesh.vertices[:, 1] < -20)

    def distances(v):
        front, eyes = v[outer, 2], [v[mesh.part == k, 0].mean() for k in (1, 2)]
        nose = v[(mesh.part == 0) & (np.abs(mesh.vertices[:, 1] - 25) < 20), 2].min()
        ahead = [front - z for z in (nose, v[nasion, 2], v[chin, 2])]
        across = [*(2 * v[[outer, inner, mouth], 0]), eyes[0] - eyes[1]]
        return np.array([*across, v[chin, 1] - v[forehead, 1], *ahead, *np.ptp(v[scalp][:, [0, 2]], axis=0)])

    want = np.array([90, 34, 51, 63, 165, 42, 23, 15, 143, 193])
    play = np.array([3, 2, 3, 2, 6, 4, 4, 6, 4, 4])
    both = [(f"{side}{name}", m) for name, m in identity.MEANS.items() for side in ("", "l-", "r-")]
    moved = mesh.vertices + sum(m * mesh.targets[name] for name, m in both if name in mesh.targets)
    people = [identity.person(3, n) for n in range(1, 201)]
    adults = np.array([distances(p.vertices) for p in people if p.age >= 0.47])
    for found in (distances(moved), adults.mean(0)):
        assert (np.abs(found - want) < play).all(), found
    assert (np.abs(distances(mesh.vertices) - want) > play).sum() >= 6
    # As far from each other as before the means were moved.
    np.testing.assert_allclose(adults.std(0)[:8], [5.7, 3.7, 4.9, 3.6, 10.0, 5.2, 3.6, 5.7], rtol=0.15)


def test_depth_of_the_figure_equals_embree(exact):
    for position in (1, 18):  # a bare face and a free sequence
        s, camera, vertices = posed(SOURCE, position)
        triangles = accessories.topology().triangles
        raster = jax.jit(functools.partial(picture.cast, size_px=(SIZE_PX, SIZE_PX), capacity=60_000))(
            s, camera, vertices
        )
        assert not raster.overflow
        worn = (vertices[triangles][:, :, 2] > 0).all(1)
        mesh = trimesh.Trimesh(vertices.astype(np.float64), triangles[worn], process=False)
        y, x = np.mgrid[0:SIZE_PX, 0:SIZE_PX]
        grid = np.stack([x, y], -1).reshape(-1, 2)
        rays = np.concatenate([(grid - camera.center_px) / camera.focal_px, np.ones((len(grid), 1))], 1)
        hits, ray, _ = mesh.ray.intersects_location(np.zeros_like(rays), rays, multiple_hits=False)
        depth = np.zeros(len(rays))
        depth[ray] = hits[:, 2]
        ours = np.asarray(raster.depth_mm, np.float64).ravel()
        assert ((ours > 0) != (depth > 0)).mean() < 0.001
        both = (ours > 0) & (depth > 0)
        assert both.mean() > 0.25
        error = np.abs(ours - depth)[both]
        assert np.percentile(error, 99.5) < 0.05 and (error > 1).mean() < 0.003
        # Without a sensor: this very depth in whole millimetres, and something behind or nothing.
        whole = exact[position].depth_mm.ravel()
        assert np.percentile(np.abs(whole[both] - depth[both]), 99.5) <= 0.55
        assert (np.abs(whole[both] - depth[both]) > 2).mean() < 0.003


def test_registration_of_gray(frames, exact):
    """Black right of the face where the colour camera saw nothing, or wherever depth is missing, in half of the people;
    all the rest is the gray that is there without a sensor, which `misregistration` moves by whole pixels. To a level,
    for these are programs of their own to XLA."""
    masked = [scene.frame_scene(0, n, 1, 0, 3).registration.masked for n in range(1, 41)]
    assert 0.3 < np.mean(masked) < 0.7
    for frame, other, position in zip(frames, exact, range(20), strict=False):
        black = np.abs(frame.gray.astype(int) - other.gray) > 1
        assert ((frame.gray != other.gray) & ~black).mean() < 1e-3
        assert (frame.gray[black] == 0).all() and black.any()
        if SOURCE.scene(position).registration.masked:
            assert black[frame.depth_mm == 0].all()
    moved = next(dataclasses.replace(SOURCE, misregistration=8.0).load(0, 1))
    s = SOURCE.scene(0).registration
    right, down = round(8 * float(s.right)), round(8 * float(s.down))
    assert 2 <= np.hypot(right, down) <= 9
    np.testing.assert_array_equal(moved.depth_mm, frames[0].depth_mm)
    there = (moved.gray > 0)[12:-12, 12:-12]
    shifted = np.roll(exact[0].gray, (down, right), (0, 1))[12:-12, 12:-12]
    error = np.abs(moved.gray[12:-12, 12:-12].astype(int) - shifted)[there]
    assert error.max() <= 1 and error.mean() < 1e-3


def test_gray_and_depth_are_registered(exact):
    """A person shifted against its own depth by 4 pixels loses: steps in depth are steps in gray."""
    right = wrong = 0.0
    for frame in exact:
        depth = frame.depth_mm.astype(float)
        step = (np.abs(np.diff(depth, axis=1)) > 300) & (depth[:, 1:] > 0) & (depth[:, :-1] > 0)
        edge = np.abs(np.diff(frame.gray.astype(float), axis=1))
        right += edge[step].sum()
        wrong += edge[np.roll(step, 4, 1)].sum()
    assert right > 1.5 * wrong


def test_bad_settings():
    for settings in (
        {"sensor": "lidar"},
        {"misregistration": -1.0},
        {"sensor": "none", "misregistration": 2.0},
        {"subjects": 0},
        {"test_subjects": -1},
        {"seed": -1},
        {"image_size": 8},
    ):
        with pytest.raises(FaceDepthError):
            SyntheticSource(**settings)


# Frame of SOURCE: yaw, pitch, roll, head x and y, mean gray, mean depth in mm, share without depth.
GOLDEN = {
    0: (28.027, 2.006, 0.736, 47.39, 47.16, 109.6, 1170, 0.069),
    22: (-1.600, -1.746, 15.361, 47.27, 47.05, 108.0, 1259, 0.043),
    59: (-3.364, -25.739, -3.221, 47.46, 47.48, 107.2, 1053, 0.047),
}


@pytest.mark.parametrize("position", GOLDEN)
def test_the_faces_are_those_of_this_version(frames, position):
    """Where this fails on purpose, raise VERSION in data/synthetic/__init__.py and write the new figures here."""
    f = frames[position]
    depths = f.depth_mm[f.depth_mm > 0]
    found = (f.yaw, f.pitch, f.roll, *f.head_xy, f.gray.mean(), depths.mean(), (f.depth_mm == 0).mean())
    # The last bits may differ on other machines, not more.
    tolerance = np.array([6e-4] * 3 + [6e-3] * 2 + [0.2, 1.5, 0.002])
    assert (np.abs(np.subtract(found, GOLDEN[position])) < tolerance).all(), found
