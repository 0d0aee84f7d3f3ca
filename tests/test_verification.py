"""verification.py against a slow NumPy of the whole: pairs one by one, OpenCV's equalisation, scikit-free ROC."""

import dataclasses
import itertools
import json

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import write_arrays

from facedepth_jax import tables, verification
from facedepth_jax.data import arrays, pairs
from facedepth_jax.depth_code import DepthCode
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.models import siamese
from facedepth_jax.state import NetState
from facedepth_jax.verification import (
    Verifier,
    bounds,
    generated_depth,
    true_depth,
    verify,
    verify_lists,
)

CODE = DepthCode()
PEOPLE, FRAMES = 4, 5  # one frame a sequence


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Bowls of four people in five sequences; the angles lie around 10 degrees, some of them are not known."""
    path = tmp_path_factory.mktemp("data") / "arrays"
    rng = np.random.default_rng(0)
    count = PEOPLE * FRAMES
    subjects = [f"p{i // FRAMES}" for i in range(count)]
    yaw = rng.choice([-30.0, -10.0, 0.0, 9.0, np.nan], count, p=[0.4, 0.2, 0.2, 0.1, 0.1]).tolist()
    y, x = np.mgrid[:96, :96]
    radius = np.hypot((x - 48) * rng.uniform(0.7, 1.3, (count, 1, 1)), (y - 48) * rng.uniform(0.7, 1.3, (count, 1, 1)))
    depth = 700 + 10 * rng.normal(size=(count, 96, 96)) + radius * rng.uniform(1, 5, (count, 1, 1))
    depth = np.where(radius < 45, depth, 0).astype(np.uint16)
    gray = rng.integers(0, 256, (count, 96, 96)).astype(np.uint8)
    found = [
        (f"f{a}", f"f{b}", int(subjects[a] == subjects[b]))
        for a in range(count)
        for b in range(count)
        if a < b and (subjects[a] == subjects[b] or rng.random() < 0.6)
    ]
    columns = {"sequence": [i % FRAMES + 1 for i in range(count)], "yaw": yaw}
    return write_arrays(path, gray, depth, subjects, ["test"] * count, pairs={"test": found}, **columns)


@pytest.fixture(scope="module")
def verifier(data):
    """Random weights, the last bias such that about half of the pairs are told to be one person."""
    module = siamese.Siamese(width=2)
    rng = np.random.default_rng(5)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 96, 96, 2)), train=False))
    weights = jax.tree.map(lambda leaf: rng.uniform(0.2, 1, leaf.shape).astype(np.float32) - 0.45, shapes)
    weights["batch_stats"] = jax.tree.map(lambda leaf: np.abs(leaf) + 0.1, weights["batch_stats"])
    state = NetState(weights["params"], weights["batch_stats"], None)
    rows_a, rows_b, _ = verification.pair_rows(data, "test")
    logits = verification.scores(
        Verifier(module, state, CODE), true_depth(data), data.frames["distance_mm"], rows_a, rows_b
    )
    last = weights["params"]["dense_2"]
    spread = logits.std()
    weights["params"]["dense_2"] = {
        "kernel": last["kernel"] / spread,
        "bias": (last["bias"] - np.float32(np.median(logits))) / spread,
    }
    return Verifier(module, NetState(weights["params"], weights["batch_stats"], None), CODE)


def slow(verifier, maps_of_row, data, split="test"):
    """Accuracy, AUC, loss and cells, pair by pair. `maps_of_row` row -> uint8 (96, 96)."""
    variables = {"params": verifier.net_state.params, "batch_stats": verifier.net_state.batch_stats}
    whole = jax.jit(lambda pair: verifier.module.apply(variables, pair, train=False))
    rows = {str(frame): row for row, frame in enumerate(data.frames["frame"])}

    def see(row):
        image = cv2.equalizeHist(maps_of_row(row)).astype(np.float64)
        return (image - image.mean()) / (image.std() or 1)

    results, losses = [], []
    for line in (data.path / f"pairs_{split}.tsv").read_text().splitlines():
        a, b, same = line.split("\t")
        a, b, same = rows[a], rows[b], same == "1"
        pair = np.stack([see(a), see(b)], -1)[None].astype(np.float32)
        chances = [1 / (1 + np.exp(-float(whole(order)[0]))) for order in (pair, pair[..., ::-1])]
        results.append((a, b, same, np.mean(chances)))
        losses += [-np.log(chance if same else 1 - chance) for chance in chances]

    def accuracy(chosen):
        right = [(score > 0.5) == same for a, b, same, score in results if chosen(a) and chosen(b)]
        return {"accuracy": sum(right) / len(right) if right else None, "n": len(right)}

    def frontal(row):
        angles = [data.frames[name][row] for name in ("yaw", "pitch", "roll")]
        return None if np.isnan(angles).any() else bool(max(map(abs, angles)) <= 10)

    angle = {"A1": lambda r: frontal(r) is True, "A2": lambda r: frontal(r) is False, "A1+A2": lambda r: True}
    sequence = {
        "S1-S3": lambda r: data.frames["sequence"][r] in (1, 2, 3),
        "S4-S5": lambda r: data.frames["sequence"][r] in (4, 5),
        "S1-S5": lambda r: True,
    }
    cells = {a: {s: accuracy(lambda r, a=a, s=s: angle[a](r) and sequence[s](r)) for s in sequence} for a in angle}
    one, two = [x[3] for x in results if x[2]], [x[3] for x in results if not x[2]]
    auc = np.mean([1.0 if p > q else 0.5 if p == q else 0.0 for p in one for q in two])
    return accuracy(lambda r: True), auc, np.mean(losses), cells


def original(data):
    return lambda row: np.asarray(CODE.quantize(data.depth_mm[row])).astype(np.uint8)


def test_the_figures_are_those_of_the_slow_one(verifier, data):
    found = verify(verifier, true_depth(data), data, "test")
    whole, auc, loss, cells = slow(verifier, original(data), data)
    assert 0.2 < whole["accuracy"] < 0.8 and 0.1 < auc < 0.9  # or nothing could be told apart
    assert {"accuracy": found["accuracy"], "n": found["n"]} == whole == found["cells"]["A1+A2"]["S1-S5"]
    assert found["auc"] == pytest.approx(auc, abs=1e-3)
    assert found["loss"] == pytest.approx(loss, rel=1e-4)
    assert found["cells"] == cells
    assert found["n_same"] == PEOPLE * FRAMES * (FRAMES - 1) // 2 and found["n_frames"] == PEOPLE * FRAMES
    assert found["n_people"] == PEOPLE
    counts = [cells[a][s]["n"] for a in ("A1", "A2") for s in ("S1-S3", "S4-S5")]
    assert min(counts) > 0 and sum(counts) < found["n"]  # mixed pairs are in no elementary cell
    json.dumps(found)


def test_true_depth_in_place_of_generated_gives_the_original_figures(verifier, data):
    """To the digit: a generator that paints the truth is judged as the truth is."""

    def truth(gray, distance_mm):
        rows = [int(np.flatnonzero((data.gray == image).all((1, 2)))[0]) for image in np.asarray(gray)]
        np.testing.assert_array_equal(distance_mm, data.frames["distance_mm"][rows])
        return CODE.decode(CODE.encode(data.depth_mm[rows], distance_mm), distance_mm)[0]

    assert verify(verifier, generated_depth(truth, data), data, "test") == verify(
        verifier, true_depth(data), data, "test"
    )


def test_the_bootstrap_is_that_of_all_draws_of_people(verifier, data, monkeypatch):
    """Against all 4^4 ways to draw four people, each with the list of pairs of such people written out."""
    monkeypatch.setattr(verification, "REPLICATES", 20_000)
    found = verify(verifier, true_depth(data), data, "test")
    rows_a, rows_b, same = verification.pair_rows(data, "test")
    logits = verification.scores(verifier, true_depth(data), data.frames["distance_mm"], rows_a, rows_b)
    pairs_of = {}  # the scores of two people's pairs, or of one's
    for a, b, score in zip(rows_a, rows_b, (1 / (1 + np.exp(-logits))).mean(0), strict=True):
        pairs_of.setdefault(frozenset(data.frames["subject"][[a, b]]), []).append(score)
    figures = []
    for drawn in itertools.product(sorted(set(data.frames["subject"])), repeat=PEOPLE):
        one = np.array([score for person in drawn for score in pairs_of[frozenset([person])]])
        couples = [frozenset(couple) for couple in itertools.combinations(drawn, 2) if couple[0] != couple[1]]
        two = np.array([score for couple in couples for score in pairs_of[couple]])
        if len(two):
            accuracy = same.mean() * (one > 0.5).mean() + (~same).mean() * (two <= 0.5).mean()
            figures.append((accuracy, np.mean(np.sign(one[:, None] - two)) / 2 + 0.5))
    assert len(figures) == 4**4 - 4
    for name, values in zip(("accuracy", "auc"), np.transpose(figures), strict=True):
        assert found["standard_error"][name] == pytest.approx(values.std(), rel=0.03) and values.std() > 0.01
        np.testing.assert_allclose(np.mean(found["replicates"][name]), values.mean(), atol=1e-3)
        drawn = np.unique(found["replicates"][name])
        assert np.abs(drawn[:, None] - values).min(1).max() < 1e-5 and len(drawn) > 20


def test_the_same_people_are_drawn_for_the_same_pairs():
    """Or the error of a difference would hold what the draw of people does to both of its terms."""

    def resample(people):
        a, b = np.array([list(people), list(people[1:] + people[:1])])
        return verification._resample(a, b, a == b)

    weights = resample("aabbcd")
    np.testing.assert_array_equal(weights, resample("aabbcd"))
    np.testing.assert_allclose(weights.sum(1), 1)
    assert weights.shape == (verification.REPLICATES, 6) and not np.array_equal(weights, resample("aabbce"))


def test_generated_depth_is_rounded_to_whole_levels_in_range(verifier, data):
    """As an 8-bit file of it would be."""
    rows = np.arange(5)
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (PEOPLE * FRAMES, 96, 96)).astype(np.float32)
    near = levels + rng.uniform(-0.45, 0.45, levels.shape) - 9 * (levels == 0) + 9 * (levels == 255)
    whole, other = (
        verification.scores(verifier, lambda rows, x=x: np.float32(500 + 8 * x[rows]), np.ones(len(x)), rows, rows + 9)
        for x in (levels, near)
    )
    np.testing.assert_array_equal(whole, other)


def test_one_map_for_all_is_chance(verifier, data):
    """Every pair scores the same there: the lower end of the range."""
    found = verify(verifier, lambda rows: np.full((len(rows), 96, 96), 980, np.uint16), data, "test")
    share = found["n_same"] / found["n"]
    assert found["auc"] == 0.5
    assert found["accuracy"] in (pytest.approx(share), pytest.approx(1 - share))


def test_the_order_of_a_pair_does_not_matter(verifier, data):
    rows_a, rows_b, _ = verification.pair_rows(data, "test")
    maps = true_depth(data)
    one = verification.scores(verifier, maps, data.frames["distance_mm"], rows_a, rows_b)
    other = verification.scores(verifier, maps, data.frames["distance_mm"], rows_b, rows_a)
    np.testing.assert_array_equal(one, other[::-1])
    assert np.abs(one[0] - one[1]).max() > 0.01  # the net itself is not symmetric


def test_every_frame_goes_through_the_net_once(verifier, data):
    seen = []

    def maps(rows):
        seen.append(np.unique(rows))
        return data.depth_mm[rows]

    verify(verifier, maps, data, "test")
    np.testing.assert_array_equal(np.sort(np.concatenate(seen)), np.arange(PEOPLE * FRAMES))


def test_both_lists_as_they_are_and_with_the_true_holes(verifier, people_dir):
    """Every map is made once for a list; a pixel without true depth has none in the second figures."""
    data, seen = arrays.open(people_dir), []

    def maps(rows):
        seen.append(np.unique(rows))
        return 900 + data.gray[rows].astype(np.float32)

    def holes(rows):
        return np.stack([np.where(data.depth_mm[row] == 0, 0, maps([row])[0]) for row in rows])

    found = verify_lists(verifier, maps, data)
    np.testing.assert_array_equal(np.concatenate(seen), np.arange(12, 20))
    assert list(found) == list(tables.LISTS) and found["test"]["loss"] != found["test_true_holes"]["loss"]
    for split in ("validation", "test"):
        assert found[split] == verify(verifier, maps, data, split)
        assert found[f"{split}_true_holes"] == verify(verifier, holes, data, split)


def test_the_bounds(data):
    """Pixel by pixel: what is nearer than D + 300 mm, and what the sensor saw, at D."""
    distance_mm, split = np.linspace(500, 700, PEOPLE * FRAMES), np.repeat(["train", "test"], PEOPLE * FRAMES // 2)
    frames = data.frames | {"distance_mm": distance_mm, "split": split}
    rows = np.arange(15)
    found = {title: maps(rows) for title, maps in bounds(dataclasses.replace(data, frames=frames), CODE).items()}
    assert list(found) == list(verification.BOUNDS)
    np.testing.assert_array_equal(found["true depth"], data.depth_mm[rows])
    depth_mm, at = data.depth_mm[rows].astype(int), np.float32(distance_mm[rows, None, None])
    near = (depth_mm > 0) & (depth_mm < at + 300)
    assert 0.02 < (near != (depth_mm > 0)).mean() < 0.5
    np.testing.assert_array_equal(found["silhouette"], np.where(near, at, 0))
    np.testing.assert_array_equal(found["holes alone"], np.where(depth_mm == 0, 0, at))
    levels = np.mean([original(data)(row) for row in range(PEOPLE * FRAMES // 2)], 0)
    np.testing.assert_allclose(found["mean training map"], np.tile(500 + 8 * levels, (15, 1, 1)), rtol=1e-5)


def test_figures_do_not_depend_on_the_batch(verifier, data, monkeypatch):
    whole = verify(verifier, true_depth(data), data, "test")
    monkeypatch.setattr(verification, "BATCH", 7)
    parts = verify(verifier, true_depth(data), data, "test")
    assert parts["cells"] == whole["cells"]
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-5)


def copy_with(data, tmp_path, lines):
    pairs.write(tmp_path / "pairs_test.tsv", lines)
    return dataclasses.replace(data, path=tmp_path)


def test_pairs_of_one_kind_have_no_curve(verifier, data, tmp_path):
    found = verify(verifier, true_depth(data), copy_with(data, tmp_path, [("f0", "f1", 1)]), "test")
    assert found["auc"] is None and found["n"] == 1 and found["accuracy"] in (0.0, 1.0)


def test_lists_that_cannot_be_used(verifier, data, tmp_path):
    with pytest.raises(FaceDepthError, match="is empty: 0 frames of 0 subjects in the split 'validation' make no"):
        verify(verifier, true_depth(data), data, "validation")
    with pytest.raises(FaceDepthError, match="names the frame nobody, which is not in the data"):
        verify(verifier, true_depth(data), copy_with(data, tmp_path, [("f0", "nobody", 1)]), "test")


def test_weights_that_are_not_finite(verifier, data):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, verifier.net_state.params)
    state = NetState(broken, verifier.net_state.batch_stats, None)
    with pytest.raises(FaceDepthError, match="not finite"):
        verify(dataclasses.replace(verifier, net_state=state), true_depth(data), data, "test")
