"""Evaluation: every frame once, the same figures however it is batched. On several devices: test_processes.py."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_metrics import reference

from facedepth_jax import evaluation as ev
from facedepth_jax.depth_code import DepthCode
from facedepth_jax.errors import FaceDepthError

CODE = DepthCode()
N, SIZE = 65, 12


def make_arrays():
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, (N, SIZE, SIZE), np.uint8)
    depth_mm = rng.integers(450, 3000, (N, SIZE, SIZE)).astype(np.uint16)  # beyond the levels at both ends
    depth_mm[rng.random(depth_mm.shape) < 0.2] = 0
    depth_mm[7] = 0
    return gray, depth_mm


@pytest.fixture(scope="module", name="arrays")
def _arrays():
    return make_arrays()


@jax.jit
def predict(gray):
    """A stand-in for a network: some image in [-1, 1] that depends on the input."""
    return jnp.tanh((gray.astype(jnp.float32) - 140) / 60)[..., None]


def test_equals_plain_numpy(arrays):
    gray, depth_mm = arrays
    rows = np.arange(0, N, 2)
    got = ev.evaluate(predict, gray, depth_mm, rows, CODE, batch_size=8)

    image = np.tanh((gray[rows].astype(np.float64) - 140) / 60)
    pred = (image + 1) * 127.5
    true_mm = depth_mm[rows].astype(np.float64)
    true = np.clip(np.round((true_mm - 500) / 8), 0, 255)
    true[true_mm == 0] = 194
    valid = true_mm > 0
    for column, mask in (("all", np.ones_like(valid)), ("valid", valid)):
        want = reference(pred, true, mask)
        for key in want:
            # one pixel of the share of pixels may fall on the other side in float32
            assert got[column][key] == pytest.approx(want[key], rel=1e-5, abs=1.5 / mask.sum()), (column, key)
    in_range = (true_mm >= 500) & (true_mm <= 2540)
    error_mm = (pred * 8 + 500 - true_mm)[in_range]
    assert got["mm"]["mae_mm"] == pytest.approx(np.abs(error_mm).mean(), rel=1e-5)
    assert got["mm"]["rmse_mm"] == pytest.approx(np.sqrt((error_mm**2).mean()), rel=1e-5)
    assert got["n_frames"] == rows.size
    assert got["n_pixels"] == true.size
    assert got["n_pixels_valid"] == valid.sum()
    assert got["n_pixels_mm"] == in_range.sum()
    assert got["n_frames_without_depth"] == 0  # row 7 is not among the even rows
    assert json.loads(json.dumps(got)) == got


def test_any_batch_size_gives_the_same_figures(arrays):
    gray, depth_mm = arrays
    want = ev.evaluate(predict, gray, depth_mm, range(N), CODE, batch_size=N)
    assert want["n_frames"] == N and want["n_frames_without_depth"] == 1
    for batch_size in (1, 7, 64):
        got = ev.evaluate(predict, gray, depth_mm, range(N), CODE, batch_size)
        for column in ("all", "valid", "mm"):
            for key, value in want[column].items():
                assert got[column][key] == pytest.approx(value, rel=1e-6), (batch_size, column, key)
        assert {k: v for k, v in got.items() if k[0] == "n"} == {k: v for k, v in want.items() if k[0] == "n"}


def test_the_padded_frames_do_not_count(arrays):
    gray, depth_mm = arrays
    seen = []

    def counting(batch):
        seen.append(batch.shape)
        return predict(batch)

    one = ev.evaluate(counting, gray, depth_mm, [3], CODE, batch_size=16)
    assert seen == [(16, SIZE, SIZE)]
    assert one["n_pixels"] == SIZE * SIZE
    assert one == ev.evaluate(predict, gray, depth_mm, [3], CODE, batch_size=1)


def test_memmaps(arrays, tmp_path):
    gray, depth_mm = arrays
    np.save(tmp_path / "depth_mm.npy", depth_mm)
    mapped = np.load(tmp_path / "depth_mm.npy", mmap_mode="r")
    assert ev.evaluate(predict, gray, mapped, range(9), CODE, 8) == ev.evaluate(predict, *arrays, range(9), CODE, 8)


def test_an_estimate_that_is_not_finite_names_its_frames(arrays):
    gray, depth_mm = arrays
    gray = gray.copy()
    gray[[4, 11]] = 0

    def broken(batch):
        return jnp.where((batch == 0).all(axis=(1, 2))[:, None, None, None], jnp.nan, predict(batch))

    names = [f"frame_{i:03d}" for i in range(N)]
    with pytest.raises(FaceDepthError, match="not finite for frame_004, frame_011: "):
        ev.evaluate(broken, gray, depth_mm, range(20), CODE, batch_size=20, frames=names)
    with pytest.raises(FaceDepthError, match="row 4: "):
        ev.evaluate(broken, gray, depth_mm, range(20), CODE, batch_size=8)


def test_no_rows(arrays):
    with pytest.raises(FaceDepthError, match="no frame to evaluate"):
        ev.evaluate(predict, *arrays, [], CODE, batch_size=4)
    with pytest.raises(FaceDepthError, match="no training frame"):
        ev.mean_map_baseline(arrays[1], [], CODE)


def test_mean_map_is_the_best_constant_map(arrays):
    gray, depth_mm = arrays
    rows = np.arange(N)
    baseline = ev.mean_map_baseline(depth_mm, rows, CODE)
    true = np.clip(np.round((depth_mm.astype(np.float64) - 500) / 8), 0, 255)
    true[depth_mm == 0] = 194
    np.testing.assert_allclose((np.asarray(baseline(gray[:2]))[1, :, :, 0] + 1) * 127.5, true.mean(axis=0), rtol=1e-5)
    got = ev.evaluate(baseline, gray, depth_mm, rows, CODE, batch_size=16)
    assert got["all"]["rmse_lin"] == pytest.approx(np.sqrt(true.var(axis=0).mean()), rel=1e-5)


def test_mean_map_over_more_rows_than_one_chunk():
    depth_mm = np.full((600, 2, 2), 500, np.uint16)
    depth_mm[300:] = 500 + 8 * 100
    mean = ev.mean_map_baseline(depth_mm, range(600), CODE)(jnp.zeros((3, 2, 2), jnp.uint8))
    assert mean.shape == (3, 2, 2, 1)
    np.testing.assert_allclose((np.asarray(mean) + 1) * 127.5, 50, rtol=1e-6)
