"""Evaluation: every frame once, the same figures however it is batched. On several devices: test_processes.py."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import write_arrays
from test_metrics import reference

from facedepth_jax import evaluation as ev
from facedepth_jax.depth_code import DepthCode
from facedepth_jax.errors import FaceDepthError

CODE = DepthCode()
N, SIZE = 65, 12


def make_arrays(path):
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, (N, SIZE, SIZE), np.uint8)
    depth_mm = rng.integers(450, 3000, (N, SIZE, SIZE)).astype(np.uint16)  # beyond the levels at both ends
    depth_mm[rng.random(depth_mm.shape) < 0.2] = 0
    depth_mm[7] = 0
    return write_arrays(
        path,
        gray,
        depth_mm,
        [f"p{i % 4}" for i in range(N)],
        ["train"] * 40 + ["validation"] * 5 + ["test"] * 20,
        distance_mm=[600.0 + 10 * i for i in range(N)],
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_arrays(tmp_path_factory.mktemp("data") / "arrays")


@jax.jit
def estimate(gray, distance_mm):
    """A stand-in for a net: a depth that depends on the gray value and on the frame's distance."""
    return 700 + 9 * jnp.abs(gray.astype(jnp.float32) - 100) + distance_mm[:, None, None] / 10, None


def counts(result):
    return {name: value for name, value in result.items() if name.startswith("n_")}


def test_equals_plain_numpy(data):
    rows = np.arange(0, N, 2)
    got = ev.evaluate(estimate, data, rows, CODE)

    distance_mm = (600 + 10 * rows)[:, None, None]
    pred_mm = 700 + 9 * np.abs(data.gray[rows].astype(np.float64) - 100) + distance_mm / 10
    pred, true_mm = (pred_mm - 500) / 8, data.depth_mm[rows].astype(np.float64)
    true = np.clip(np.round((true_mm - 500) / 8), 0, 255)
    true[true_mm == 0] = 194
    valid = true_mm > 0
    for column, mask in (("all", np.ones_like(valid)), ("valid", valid)):
        want = reference(pred, true, mask)
        for key in want:
            # one pixel of the share of pixels may fall on the other side in float32
            assert got[column][key] == pytest.approx(want[key], rel=1e-5, abs=1.5 / mask.sum()), (column, key)
    in_range = (true_mm >= 500) & (true_mm <= 2540)
    error_mm = (pred_mm - true_mm)[in_range]
    assert got["mm"]["mae_mm"] == pytest.approx(np.abs(error_mm).mean(), rel=1e-5)
    assert got["mm"]["rmse_mm"] == pytest.approx(np.sqrt((error_mm**2).mean()), rel=1e-5)
    assert counts(got) == {
        "n_people": 2,  # p0 and p2 have the even rows
        "n_frames": rows.size,
        "n_frames_without_depth": 0,  # row 7 is not among the even rows
        "n_faces": 0,  # nothing but noise
        "n_pixels": true.size,
        "n_pixels_valid": valid.sum(),
        "n_pixels_mm": in_range.sum(),
    }
    assert got["people"].keys() == {"p0", "p2"}
    assert json.loads(json.dumps(got)) == got


def test_any_batch_size_gives_the_same_figures(data, monkeypatch):
    want = ev.evaluate(estimate, data, range(N), CODE)
    assert want["n_frames"] == N and want["n_frames_without_depth"] == 1
    for batch_size in (7, N):
        monkeypatch.setattr(ev, "BATCH", batch_size)
        got = ev.evaluate(estimate, data, range(N), CODE)
        for column in ("all", "valid", "mm"):
            assert got[column] == pytest.approx(want[column], rel=1e-6), (batch_size, column)
        assert counts(got) == counts(want)


def test_the_padded_frames_do_not_count(data, monkeypatch):
    seen = []

    def counting(gray, distance_mm):
        seen.append((gray.shape, distance_mm.shape))
        return estimate(gray, distance_mm)

    one = ev.evaluate(counting, data, [3], CODE)
    assert seen == [((ev.BATCH, SIZE, SIZE), (ev.BATCH,))]
    assert one["n_pixels"] == SIZE * SIZE
    monkeypatch.setattr(ev, "BATCH", 1)
    alone = ev.evaluate(estimate, data, [3], CODE)
    assert one["all"] == pytest.approx(alone["all"], rel=1e-6) and counts(one) == counts(alone)


def test_an_estimate_that_is_not_finite_names_its_frames(data):
    bad = jnp.asarray(data.gray[[4, 11]])

    def broken(gray, distance_mm):
        named = (gray[:, None] == bad[None]).all(axis=(2, 3)).any(axis=1)
        return jnp.where(named[:, None, None], jnp.nan, estimate(gray, distance_mm)[0]), None

    with pytest.raises(FaceDepthError, match="not finite for f4, f11: "):
        ev.evaluate(broken, data, range(20), CODE)
    with pytest.raises(FaceDepthError, match="not finite for f0, f1, f2, f3, f4 and 35 more: "):
        ev.evaluate(lambda *args: (estimate(*args)[0] * jnp.inf, None), data, range(40), CODE)


def test_no_rows(data):
    with pytest.raises(FaceDepthError, match="no frame to evaluate"):
        ev.evaluate(estimate, data, [], CODE)


def test_mean_map_is_the_best_constant_map(data):
    rows = data.rows("train")
    mean_map = ev.mean_map(data, CODE)
    true = np.clip(np.round((data.depth_mm[rows].astype(np.float64) - 500) / 8), 0, 255)
    true[data.depth_mm[rows] == 0] = 194
    got_mm = np.asarray(mean_map(data.gray[:2], np.zeros(2))[0])
    assert got_mm.shape == (2, SIZE, SIZE)
    np.testing.assert_allclose((got_mm[1] - 500) / 8, true.mean(axis=0), rtol=1e-5)
    got = ev.evaluate(mean_map, data, rows, CODE)
    assert got["all"]["rmse_lin"] == pytest.approx(np.sqrt(true.var(axis=0).mean()), rel=1e-5)


def test_mean_map_over_more_rows_than_one_chunk(tmp_path):
    depth_mm = np.full((600, 2, 2), 500, np.uint16)
    depth_mm[300:] = 500 + 8 * 100
    data = write_arrays(tmp_path / "arrays", np.zeros((600, 2, 2)), depth_mm, ["p"] * 600, ["train"] * 600)
    mean_mm, _ = ev.mean_map(data, CODE)(jnp.zeros((3, 2, 2), jnp.uint8), jnp.zeros(3))
    assert mean_mm.shape == (3, 2, 2)
    np.testing.assert_allclose(mean_mm, 900, rtol=1e-6)


def domes(path):
    """Faces before a wall and with holes, at several distances, all within what both codes can say."""
    rng = np.random.default_rng(3)
    distance_mm = rng.uniform(700, 1300, 12).astype(np.float32)
    y, x = np.mgrid[:32, :32] - 15.5
    dome = 6 * np.hypot(x, y)[None] + rng.uniform(-9, 9, (12, 32, 32))
    # 2052 mm is what the paper's files have for "no depth"
    depth_mm = np.where(dome < 75, distance_mm[:, None, None] + dome, 2052)
    depth_mm = np.where(rng.random(depth_mm.shape) < 0.05, 0, depth_mm).astype(np.uint16)
    gray = np.zeros((12, 32, 32))
    return write_arrays(path, gray, depth_mm, list("aabbccddeeff"), ["test"] * 12, distance_mm=distance_mm.tolist())


@pytest.mark.parametrize("origin", ["camera", "head"])
def test_an_estimate_that_equals_the_truth_has_no_error(tmp_path, origin):
    """A net's best output, decoded: what is far behind the head counts as "no depth" from there."""
    code, data = DepthCode(origin=origin), domes(tmp_path / "arrays")
    distance_mm, depth_mm = (np.asarray(x) for x in (data.frames["distance_mm"], data.depth_mm))
    best, mask = jax.device_get(code.decode(code.encode(depth_mm, distance_mm), distance_mm))

    def perfect(gray, distances):
        rows = jnp.argmin(jnp.abs(distance_mm[None] - distances[:, None]), 1)
        return jnp.asarray(best)[rows], None if mask is None else jnp.asarray(mask)[rows]

    found = ev.evaluate(perfect, data, range(12), code)
    for part in ("all", "valid"):
        for key, value in found[part].items():
            assert value == pytest.approx(float(key.startswith("delta")), abs=1e-5), (part, key)
    rounding = code.step_mm / 2 if origin == "camera" else 1e-3
    assert max(found["mm"].values()) <= rounding
    assert max(found["relief"]["relief_mae"], found["relief"]["relief_mae_scaled"]) <= rounding
    assert found["relief"].get("mask_iou", 1.0) == 1.0 and ("mask_iou" in found["relief"]) == (origin == "head")
    if origin == "head":
        assert found["relief"]["normals_deg"] < 0.02
    assert found["n_faces"] == 12


def test_relief_is_measured_wherever_the_face_is_whatever_the_mask_says(tmp_path):
    """The mask has a figure of its own, where a pixel without depth is background."""
    code, data = DepthCode(origin="head"), domes(tmp_path / "arrays")
    distance_mm = data.frames["distance_mm"]
    truth = jnp.asarray(data.depth_mm, jnp.float32)

    def half(gray, distances):
        left = jnp.broadcast_to((jnp.arange(32) < 16)[None, None], gray.shape)
        return truth[jnp.argmin(jnp.abs(distance_mm[None] - distances[:, None]), 1)], left

    found = ev.evaluate(half, data, range(12), code)
    assert found["relief"]["relief_mae"] < 1e-3 and found["mm"]["mae_mm"] > 200
    near, half = data.depth_mm[:] > 0, np.arange(32) < 16
    near &= data.depth_mm < distance_mm[:, None, None] + 300
    expected = [(image & half).sum() / (image | half).sum() for image in near]
    assert found["relief"]["mask_iou"] == pytest.approx(np.mean(expected), rel=1e-5)


def test_mean_map_from_the_head_is_the_mean_relief(tmp_path):
    """Of what is nearer than D + 300 mm; the rest is background where it is more than half."""
    depth_mm = np.full((3, 2, 2), 900, np.uint16)
    depth_mm[0, 0, 0], depth_mm[1, 0, 0], depth_mm[:2, 1, 1], depth_mm[:, 1, 0] = 0, 1000, 1400, 0
    columns = {"distance_mm": [900.0, 950.0, 1000.0]}
    data = write_arrays(tmp_path / "arrays", np.zeros((3, 2, 2)), depth_mm, ["p"] * 3, ["train"] * 3, **columns)
    estimate = ev.mean_map(data, DepthCode(origin="head"))
    mean_mm, foreground = estimate(jnp.zeros((2, 2, 2), jnp.uint8), jnp.array([2000.0, 1000.0]))
    np.testing.assert_array_equal(foreground, [[[True, True], [False, False]]] * 2)
    np.testing.assert_allclose(mean_mm[0, 0], [2000 - 25, 2000 - 50], rtol=1e-6)
    np.testing.assert_allclose(mean_mm[1, 1, 1], 900, rtol=1e-6)
