"""Folds pooled are what one measurement over all their frames, or pairs, gives."""

import jax.numpy as jnp
import numpy as np
import pytest

from facedepth_jax import folds
from facedepth_jax.depth_code import DepthCode
from facedepth_jax.evaluation import evaluate

N, SIZE = 23, 12


def predict(gray):
    return jnp.tanh((gray.astype(jnp.float32) - 140) / 60)[..., None]


def test_figures_are_those_of_all_frames_together():
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, (N, SIZE, SIZE), np.uint8)
    depth_mm = rng.integers(450, 3000, (N, SIZE, SIZE)).astype(np.uint16)
    for i in range(N):  # each frame has another share of holes, so weights matter
        depth_mm[i][rng.random((SIZE, SIZE)) < i / N] = 0
    depth_mm[[2, 9]] = 0
    parts = np.array_split(rng.permutation(N), [3, 11])  # of 3, 8 and 12 frames
    pooled = folds.pool_figures([evaluate(predict, gray, depth_mm, rows, DepthCode(), 4) for rows in parts])
    together = evaluate(predict, gray, depth_mm, np.arange(N), DepthCode(), 4)
    assert pooled.keys() == together.keys()
    for name, value in together.items():
        if isinstance(value, int):
            assert pooled[name] == value, name
        else:
            assert pooled[name] == pytest.approx(value, rel=1e-6), name


def fold(right, same, first, auc):
    """As `verification.verify` counts: pairs that are told rightly, which of them are in the cell A1 x S1-S3."""

    def cell(chosen):
        return {"accuracy": float(chosen.mean()) if chosen.size else None, "n": chosen.size}

    return {
        **{"accuracy": float(right.mean()), "n": right.size, "n_same": int(same.sum()), "n_frames": 5, "auc": auc},
        **{"loss": float(right.mean()) + 1, "cells": {"A1": {"S1-S3": cell(right[first]), "S4-S5": cell(right[:0])}}},
    }


def test_verification_is_that_of_all_pairs_together():
    rng = np.random.default_rng(1)
    parts = [rng.random((3, n)) < 0.4 for n in (10, 25, 7)]
    parts[2][2] = False  # nothing in that cell
    pooled = folds.pool_verification([fold(*part, auc) for part, auc in zip(parts, (0.5, 0.6, 0.7), strict=True)])
    together = fold(*np.concatenate(parts, axis=1), None)
    assert pooled["cells"]["A1"]["S1-S3"] == pytest.approx(together["cells"]["A1"]["S1-S3"])
    assert pooled["cells"]["A1"]["S4-S5"] == {"accuracy": None, "n": 0}
    for name in ("accuracy", "n", "n_same", "loss"):
        assert pooled[name] == pytest.approx(together[name]), name
    assert pooled["n_frames"] == 15
    assert pooled["auc"] == pytest.approx((10 * 0.5 + 25 * 0.6 + 7 * 0.7) / 42)
    parts[0][1] = True  # all of one kind: no curve
    assert folds.pool_verification([fold(*parts[0], None), fold(*parts[1], 0.6)])["auc"] is None
