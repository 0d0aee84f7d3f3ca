"""Verify faces (section 4.2): fixed pairs of depth maps through the Siamese net, whole and by cell of Table 2.

The net joins two features by concatenation, so the order of a pair matters to it; a pair's score is the mean of the
probabilities of both orders. A frame goes through the branch once, however many pairs it is in. A pair counts as one
person above a score of 0.5.

Figures come with a bootstrap over people, who are what a figure depends on: the pairs of one person are alike.
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from facedepth_jax import config as configs
from facedepth_jax import devices, evaluation
from facedepth_jax.data import pairs
from facedepth_jax.data.arrays import PAIR_SPLITS, Arrays
from facedepth_jax.data.pairs import ANGLE_SUBSETS, SEQUENCE_SUBSETS, in_subset
from facedepth_jax.depth_code import DepthCode, true_foreground, without_background
from facedepth_jax.errors import FaceDepthError, NoPairs
from facedepth_jax.estimator import load_net
from facedepth_jax.models import siamese
from facedepth_jax.state import NetState, variables

TRUE_DEPTH = "true depth"
BOUNDS = (TRUE_DEPTH, "silhouette", "holes alone", evaluation.MEAN_MAP)  # titles of `bounds` in tables
BATCH = 64  # frames or pairs a call; the last one is padded, so that no figure depends on how many there are
THRESHOLD = 0.5
MIN_PEOPLE = 4  # of fewer there are too few different draws
REPLICATES = 200  # enough for a standard error (Efron and Tibshirani 1993, section 6.4)

# int64 rows (n,) -> depth (n, S, S), millimetres, 0 = none: the depth maps that are verified.
DepthMaps = Callable[[np.ndarray], Any]


@dataclasses.dataclass(frozen=True)
class Verifier:
    """A trained verifier.

    Attributes:
      module, net_state: the net.
      code: the pictures of depth that it was trained on.
    """

    module: siamese.Siamese
    net_state: NetState
    code: DepthCode


def load_verifier(run) -> Verifier:
    """Load the verifier of a run from its `config.json` and `verifier.safetensors`. Raises FaceDepthError."""
    config, module, net_state = load_net(run, "verifier")
    return Verifier(module, net_state, configs.depth_code(config))


def true_depth(data: Arrays) -> DepthMaps:
    """Take the sensor's depth: "original" in Table 2."""
    return lambda rows: data.depth_mm[rows]


def generated_depth(estimate: Callable, data: Arrays) -> DepthMaps:
    """Estimate depth from the gray images: "generated" in Table 2; `estimate` is or is like `FaceDepth.batch`."""
    return lambda rows: estimate(data.gray[rows], data.distance_mm[rows])


def with_true_holes(depth_maps: DepthMaps, data: Arrays) -> DepthMaps:
    """Put the sensor's missing pixels into maps, so that all are told apart by the rest alone."""
    return lambda rows: np.where(data.depth_mm[rows] > 0, depth_maps(rows), 0)


def bounds(data: Arrays, code: DepthCode) -> dict[str, DepthMaps]:
    """Make the maps between which a method's stand, by BOUNDS: true depth; what is left of it; and no face.

    The silhouette is one depth, D, for what is nearer than D + 300 mm, and none for the rest; the holes are those of
    true depth in a plate at D.
    """
    distance_mm, mean_map = data.distance_mm, evaluation.mean_map(data, code)

    def silhouette(rows):
        return true_foreground(data.depth_mm[rows], distance_mm[rows]) * distance_mm[rows, None, None]

    maps = (
        true_depth(data),
        silhouette,
        with_true_holes(lambda rows: distance_mm[rows, None, None], data),
        generated_depth(lambda *images: without_background(*mean_map(*images)), data),
    )
    return dict(zip(BOUNDS, maps, strict=True))


@functools.partial(jax.jit, static_argnames=("module", "code"))
def _features(module, code, weights, depth_mm, distance_mm):
    return module.apply(weights, siamese.normalize(code.picture(depth_mm, distance_mm)), method="features")


@functools.partial(jax.jit, static_argnames="module")
def _compare(module, weights, a, b):
    return module.apply(weights, a, b, method="compare")


def _in_batches(function, *arrays):
    """Apply `function` to equally long arrays (n, ...), BATCH at a time, padded with the last one."""
    results = []
    for start in range(0, len(arrays[0]), BATCH):
        parts = [array[start : start + BATCH] for array in arrays]
        fill = BATCH - len(parts[0])
        padded = [np.concatenate([part, part[-1:].repeat(fill, axis=0)]) for part in parts]
        results.append(np.asarray(function(*padded))[: len(parts[0])])
    return np.concatenate(results)


def scores(
    verifier: Verifier, depth_maps: DepthMaps, distance_mm: np.ndarray, rows_a: np.ndarray, rows_b: np.ndarray
) -> np.ndarray:
    """Compute the logits of the pairs (rows_a[i], rows_b[i]), float64 (2, n): in this order and in the other one.

    `distance_mm` is that of every row's head, float32 (N,).
    """
    # Every process does all of it, on one device: there are few pairs.
    weights = devices.local(variables(verifier.net_state))
    rows, places = np.unique(np.concatenate([rows_a, rows_b]), return_inverse=True)

    def features_of(rows):
        return _features(verifier.module, verifier.code, weights, depth_maps(rows), distance_mm[rows])

    features = _in_batches(features_of, rows)
    a, b = features[places[: len(rows_a)]], features[places[len(rows_a) :]]
    compare = functools.partial(_compare, verifier.module, weights)
    return np.stack([_in_batches(compare, *order) for order in [(a, b), (b, a)]]).astype(np.float64)


def verify(verifier: Verifier, depth_maps: DepthMaps, data: Arrays, split: str) -> dict:
    """Measure the accuracy on the fixed pairs of a split.

    Args:
      depth_maps: `true_depth`, `generated_depth`, or any map by row.
      split: "validation" or "test".

    Returns:
      Plain JSON values:
        "accuracy": share of the pairs that are judged rightly;
        "auc": area under the ROC curve, which needs no threshold; None where all pairs show one person, or none does;
        "replicates": {"accuracy", "auc": both in each draw of people, see `_resample`}, None of under MIN_PEOPLE;
        "standard_error": {"accuracy", "auc": deviation of the replicates};
        "n": pairs, "n_same": of one person, "n_frames": frames, "n_people": people;
        "loss": mean binary cross entropy, over the orders too;
        "cells": {angle subset: {sequence subset: {"accuracy", "n"}}} of Table 2; a pair is in a cell when both of its
          frames are. The accuracy is None in an empty one.

    Raises:
      FaceDepthError: no pairs, or one of a frame that the data do not have; an output that is not finite.
    """
    rows_a, rows_b, same = pair_rows(data, split)
    logits = scores(verifier, depth_maps, data.distance_mm, rows_a, rows_b)
    bad = ~np.isfinite(logits).all(axis=0)
    if bad.any():
        a, b = (data.frames["frame"][rows[bad][0]] for rows in (rows_a, rows_b))
        raise FaceDepthError(
            f"The verifier's output is not finite for {bad.sum()} of {bad.size} pairs, the first is {a} and {b}: "
            "its weights, or the depth maps, are unusable."
        )
    probability = (1 / (1 + np.exp(-np.clip(logits, -500, 500)))).mean(0)
    right = (probability > THRESHOLD) == same

    def cell(angles, sequences):
        frames = in_subset(data.frames, angles, sequences)
        chosen = right[frames[rows_a] & frames[rows_b]]
        return {"accuracy": float(chosen.mean()) if chosen.size else None, "n": chosen.size}

    people_a, people_b = (data.frames["subject"][rows] for rows in (rows_a, rows_b))
    n_people = np.union1d(people_a, people_b).size
    both = same.any() and not same.all()
    replicates = dict.fromkeys(("accuracy", "auc"))
    if n_people >= MIN_PEOPLE:
        weights = _resample(people_a, people_b, same)
        replicates["accuracy"] = (weights @ right).round(5).tolist()
        replicates["auc"] = _auc(probability, same, weights).round(5).tolist() if both else None
    return {
        "accuracy": float(right.mean()),
        "auc": float(_auc(probability, same, np.ones((1, same.size)))[0]) if both else None,
        "replicates": replicates,
        "standard_error": standard_errors(replicates),
        "n": right.size,
        "n_same": int(same.sum()),
        "n_frames": np.union1d(rows_a, rows_b).size,
        "n_people": n_people,
        "loss": float(np.logaddexp(0, np.where(same, -logits, logits)).mean()),
        "cells": {
            angles: {sequences: cell(angles, sequences) for sequences in SEQUENCE_SUBSETS} for angles in ANGLE_SUBSETS
        },
    }


def verify_lists(verifier: Verifier, depth_maps: DepthMaps, data: Arrays) -> dict[str, dict]:
    """Measure maps on both lists of pairs, as they are and with the true holes.

    Returns `verify`'s figures of "validation", "validation_true_holes", "test" and "test_true_holes". Raises
    FaceDepthError as it does.
    """
    found = {}
    for split in PAIR_SPLITS:
        made = _precompute(depth_maps, np.unique(pair_rows(data, split)[:2]))
        found[split] = verify(verifier, made, data, split)
        found[f"{split}_true_holes"] = verify(verifier, with_true_holes(made, data), data, split)
    return found


def _precompute(depth_maps: DepthMaps, rows: np.ndarray) -> DepthMaps:
    """Make the maps of sorted rows now, once."""
    maps = _in_batches(depth_maps, rows)
    return lambda some: maps[np.searchsorted(rows, some)]


def standard_errors(replicates: dict[str, list[float] | None]) -> dict[str, float | None]:
    """Compute the deviations of figures' replicates."""
    return {name: values and float(np.std(values, ddof=1)) for name, values in replicates.items()}


def _resample(people_a, people_b, same) -> np.ndarray:
    """Bootstrap over people: the weights of the pairs in each replicate, float64 (REPLICATES, n), each row's sum is 1.

    A replicate draws as many people as there are, with replacement. A person drawn k times counts as k people: a pair
    of one person has the weight k, one of two people the product of theirs; copies of a person make no pair with each
    other. Pairs of one person and of two keep their shares of the list, which its draw has fixed; a replicate without
    any of one of them is drawn again. The seed is made of the names: the same people are drawn for all maps that are
    verified on the same pairs, so that replicates can be subtracted.
    """
    people, places = np.unique([people_a, people_b], return_inverse=True)
    a, b = places.reshape(2, -1)
    rng = np.random.default_rng(zlib.crc32(" ".join(people).encode()))
    parts = [part for part in (same, ~same) if part.any()]
    rows = []
    while len(rows) < REPLICATES:
        times = np.bincount(rng.integers(len(people), size=len(people)), minlength=len(people))
        row = times[a] * np.where(same, 1.0, times[b])
        sums = [row[part].sum() for part in parts]
        if min(sums) > 0:
            for part, total in zip(parts, sums, strict=True):
                row[part] *= part.mean() / total
            rows.append(row)
    return np.array(rows)


def pair_rows(data: Arrays, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Look up the fixed pairs of a split: rows of both frames, int64 (n,), and whether they show one person, bool (n,).

    Raises:
      FaceDepthError: no pairs, or one of a frame that the data do not have.
    """
    path = data.path / f"pairs_{split}.tsv"
    found = pairs.read(path)
    if not found:
        subjects = data.frames["subject"][data.frames["split"] == split].tolist()
        raise NoPairs(f"{path} is empty: {pairs.too_few(split, subjects)}.")
    rows = {frame: row for row, frame in enumerate(data.frames["frame"])}
    try:
        a, b, same = np.array([(rows[a], rows[b], same) for a, b, same in found]).T
    except KeyError as error:
        raise FaceDepthError(f"{path} names the frame {error.args[0]}, which is not in the data.") from None
    return a, b, same == 1


def _auc(score, same, weights):
    """Compute the chance that a pair of one person scores above a pair of two, for each row of weights (m, n).

    A tie counts half.
    """
    order = np.argsort(score[~same])
    below, not_above = (np.searchsorted(score[~same][order], score[same], side) for side in ("left", "right"))
    different = np.pad(weights[:, ~same][:, order].cumsum(1), ((0, 0), (1, 0)))
    won = (weights[:, same] * (different[:, below] + different[:, not_above])).sum(1) / 2
    return won / weights[:, same].sum(1) / different[:, -1]
