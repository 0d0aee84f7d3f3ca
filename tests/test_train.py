"""train.py: what is refused before the first step, and that nothing is changed by it. The loop: test_end_to_end.py."""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from facedepth_jax import mesh, runs, train, verification
from facedepth_jax.checkpoint import Checkpoints, save_weights
from facedepth_jax.data import arrays, pipeline
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.state import Best, NetState, TrainState, init_state, keep_better, no_best

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from configs import folder, synthetic, verifier

SIZE = 16


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Three frames of three people, crops of 240 mm."""
    path = tmp_path_factory.mktemp("data") / "arrays"
    frames = {name: [kind(0)] * 3 for name, kind in arrays.COLUMNS.items()}
    frames |= {"frame": list("abc"), "subject": list("abc"), "split": ["train", "validation", "test"]}
    images = [(np.zeros((3, SIZE, SIZE), np.uint8), np.full((3, SIZE, SIZE), 900, np.uint16))]
    pair_lists = {split: [] for split in arrays.PAIR_SPLITS}
    meta = {"crop": {"face_mm": 240.0}, "dataset": {"name": "folder"}}
    arrays.write(path, frames=frames, images=images, size_px=SIZE, pair_lists=pair_lists, meta=meta)
    return path


def config_of(data_dir, **changes):
    config = folder.get_config()
    config.width = 2
    config.train.batch_size = jax.device_count()
    config.data.dir, config.data.dataset = str(data_dir), ""
    config.data.size, config.data.face_mm = SIZE, 240.0
    config.update_from_flattened_dict(changes)
    return config


def save(config, workdir, step, identity=None):
    """A checkpoint of a fresh state that says it has done `step` steps."""
    _, nets = runs.build(config, subjects=1)
    state = init_state(nets, config.seed, SIZE)
    identity = identity or train._identity(config, arrays.open(config.data.dir))
    checkpoints = Checkpoints(workdir / "checkpoints", identity)
    saved = {"state": TrainState(state.step + step, state.nets), "best": no_best(state.nets["generator"])}
    checkpoints.save(step, saved)
    checkpoints.finish()


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"every.log": 0}, "every.log is 0: it must be at least 1"),
        ({"every.save": 0}, "every.save is 0"),
        ({"every.evaluate": -1}, "every.evaluate is -1"),
        ({"width": 1}, "width is 1: it must be at least 2"),
        ({"train.steps": -5}, "train.steps is -5"),
        ({"train.batch_size": 0}, "train.batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"data.size": 0}, "data.size is 0"),
        ({"data.size": 40}, "data.size is 40: .* a multiple of 16"),
        ({"data.size": 32}, "holds images of 16 px, data.size is 32"),
        ({"data.face_mm": 320.0}, "holds crops of 240 mm, data.face_mm is 320"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
    ],
)
def test_values_that_make_no_run(data_dir, tmp_path, changes, sentence):
    with pytest.raises(FaceDepthError, match=sentence):
        train.run(config_of(data_dir, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_options_of_another_data_set(tmp_path):
    config = synthetic.get_config()
    config.data.dataset, config.data.raw_dir, config.data.dir = "folder", str(tmp_path), str(tmp_path / "out")
    with pytest.raises(FaceDepthError, match="'folder' has no option 'frames_per_sequence'; it has focal, "):
        train.run(config, tmp_path / "run")


def test_a_refused_run_leaves_the_config_of_the_one_that_is_there(data_dir, tmp_path):
    config = config_of(data_dir)
    save(config, tmp_path, 5, identity={"seed": 1})
    (tmp_path / "config.json").write_text("the old one")
    with pytest.raises(FaceDepthError, match="belongs to a run with"):
        train.run(config, tmp_path)
    assert (tmp_path / "config.json").read_text() == "the old one"


def test_fewer_steps_than_done_are_refused(data_dir, tmp_path):
    """Or the figures of 5 steps would be called those of 3."""
    config = config_of(data_dir, **{"train.steps": 3})
    save(config, tmp_path, 5)
    with pytest.raises(FaceDepthError, match="has done 5 steps, train.steps is 3: give at least 5"):
        train.run(config, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints"]


@pytest.mark.parametrize("text", ["[]", "{}", '"width": 16 -> "width": "x"', '"code" -> "kode"', '"step_mm" -> "step"'])
def test_a_config_that_cannot_be_used(tmp_path, text):
    if " -> " in text:
        old, new = text.split(" -> ")
        whole = json.dumps(folder.get_config().to_dict())
        text = whole.replace(old, new)
        assert text != whole
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FaceDepthError, match="config.json is damaged or of another version"):
        runs.load_generator(tmp_path)


@pytest.fixture(scope="module")
def people_dir(tmp_path_factory):
    """Domes of five people, four frames each, as wide and deep as the person."""
    path = tmp_path_factory.mktemp("people") / "arrays"
    rng = np.random.default_rng(0)
    names = [f"{person}{i}" for person in "abcde" for i in range(4)]
    frames = {name: [kind(0)] * len(names) for name, kind in arrays.COLUMNS.items()}
    splits = ["train"] * 12 + ["validation"] * 4 + ["test"] * 4
    frames |= {"frame": names, "subject": [name[0] for name in names], "split": splits}
    frames["subject"][15], frames["subject"][19] = "y", "z"  # a second person in validation and test
    y, x = np.mgrid[:96, :96]
    shapes = [np.hypot((x - 48) * (0.8 + 0.1 * (i // 4)), y - 48) + rng.normal(size=(96, 96)) for i in range(20)]
    depth = np.stack([np.where(r < 40, 700 + (3 + i // 4) * r, 0) for i, r in enumerate(shapes)]).astype(np.uint16)
    gray = rng.integers(0, 256, depth.shape).astype(np.uint8)
    pair_lists = {
        split: [(names[a], names[b], int(b < i + 3)) for a in range(i, i + 3) for b in range(a + 1, i + 4)]
        for split, i in (("validation", 12), ("test", 16))
    }
    meta = {"crop": {"face_mm": 240.0}, "dataset": {"name": "folder"}}
    arrays.write(path, frames=frames, images=[(gray, depth)], size_px=96, pair_lists=pair_lists, meta=meta)
    return path


def verifier_config(people_dir, **changes):
    config = verifier.get_config("folder")
    config.width = 2
    config.train.batch_size, config.train.steps, config.train.learning_rate = 8, 8, 0.02
    config.every.log, config.every.save, config.every.evaluate = 1, 3, 2
    config.data.dir, config.data.dataset, config.data.face_mm = str(people_dir), "", 240.0
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def verifier_run(people_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    train.run(verifier_config(people_dir), workdir)
    return workdir


def lines(workdir):
    every = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "_sec" not in name} for line in every]


def test_the_validation_pairs_choose_the_verifiers_weights(verifier_run, people_dir):
    results = json.loads((verifier_run / "results.json").read_text())
    judged = [line for line in lines(verifier_run) if "validation/accuracy" in line]
    assert [line["step"] for line in judged] == [2, 4, 6, 8]
    best = min(judged, key=lambda line: (-line["validation/accuracy"], line["validation/loss"]))
    assert best["step"] != 8  # or this test could not tell the best from the last
    assert results["step"] == best["step"] and results["steps"] == 8 and results["method"] == "verifier"
    for name in ("accuracy", "loss", "auc"):
        assert results["validation"][name] == best[f"validation/{name}"]
    data = arrays.open(people_dir)
    loaded = runs.load_verifier(verifier_run)
    for split in ("validation", "test"):  # the file holds these weights
        found = verification.verify(loaded, verification.true_depth(data, loaded.code), data, split)
        assert json.loads(json.dumps(found)) == results[split]
    assert results["baseline_mean_map"]["auc"] == 0.5 and results["baseline_mean_map"]["n"] == 6


def test_a_verifier_that_was_stopped_ends_with_the_same_bits(verifier_run, people_dir, tmp_path):
    """Stopped behind its best step, so that the best must come from the checkpoint."""
    best = json.loads((verifier_run / "results.json").read_text())["step"]
    assert best <= 6
    train.run(verifier_config(people_dir, **{"train.steps": 6}), tmp_path)
    train.run(verifier_config(people_dir), tmp_path)
    assert (tmp_path / "verifier.safetensors").read_bytes() == (verifier_run / "verifier.safetensors").read_bytes()
    assert (tmp_path / "results.json").read_bytes() == (verifier_run / "results.json").read_bytes()
    assert lines(tmp_path) == lines(verifier_run)


def test_examples_that_live_on_the_device_give_the_same_bits(verifier_run, people_dir, tmp_path, monkeypatch):
    """As on a GPU with room for them."""
    read = set()
    gather = pipeline._gather
    monkeypatch.setattr(mesh, "_memory_bytes", lambda: 10**9)
    monkeypatch.setattr(pipeline, "_gather", lambda arrays, rows: read.update(arrays) or gather(arrays, rows))
    train.run(verifier_config(people_dir), tmp_path)
    assert read == {"row"}
    assert (tmp_path / "verifier.safetensors").read_bytes() == (verifier_run / "verifier.safetensors").read_bytes()
    assert lines(tmp_path) == lines(verifier_run)


@pytest.mark.parametrize(
    "rank, kept",
    [((0.3, 0.9), True), ((0.4, 0.4), True), ((0.4, 0.5), False), ((0.4, 0.6), False), ((0.5, 0.1), False)],
)
def test_the_better_is_kept(rank, kept):
    """Against a best so far of rank (0.4, 0.5), and against none."""
    net_state = NetState(jnp.ones(3), {}, None)
    best = Best(jnp.int32(2), jnp.float32([0.4, 0.5]), jnp.zeros(3), {})
    new = keep_better(best, net_state, np.int32(4), np.float32(rank))
    assert new.params.tolist() == [float(kept)] * 3 and new.step == (4 if kept else 2)
    assert keep_better(no_best(net_state), net_state, np.int32(1), np.float32(rank)).step == 1


def test_a_verifier_is_no_generator(verifier_run, people_dir, tmp_path):
    with pytest.raises(FaceDepthError, match="is a run of 'verifier', which has no generator"):
        runs.load_generator(verifier_run)
    with pytest.raises(FaceDepthError, match="which has no generator"):
        runs.verify_generated(runs.load_verifier(verifier_run), verifier_run, arrays.open(people_dir))
    (tmp_path / "config.json").write_text(json.dumps(config_of(people_dir).to_dict()))
    with pytest.raises(FaceDepthError, match="is a run of 'cgan', which has no verifier"):
        runs.load_verifier(tmp_path)


def test_generated_depth_of_a_run_is_verified(verifier_run, people_dir, tmp_path):
    """By the weights that the run left, against the same by hand."""
    config = config_of(people_dir, **{"data.size": 96})
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    generator = init_state(runs.build(config, subjects=1)[1], 3, 96).nets["generator"]
    save_weights(tmp_path / "generator.safetensors", {"params": generator.params, "batch_stats": generator.batch_stats})
    data, loaded = arrays.open(people_dir), runs.load_verifier(verifier_run)
    image = runs.load_generator(tmp_path).predict(data.gray[16:20])[..., 0]
    maps = dict(zip(range(16, 20), np.clip(np.round((np.asarray(image) + 1) * 127.5), 0, 255), strict=True))
    by_hand = verification.verify(loaded, lambda rows: np.stack([maps[row] for row in rows]), data, "test")
    found = runs.verify_generated(loaded, tmp_path, data)
    assert found["cells"] == by_hand["cells"] and found["loss"] == pytest.approx(by_hand["loss"], rel=1e-3)
    config.code.step_mm = 4.0
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    with pytest.raises(FaceDepthError, match="differ in what a level of depth stands for"):
        runs.verify_generated(loaded, tmp_path, data)


def test_a_verifier_without_pairs_to_be_chosen_by(data_dir, tmp_path):
    with pytest.raises(FaceDepthError, match="has no pairs"):
        train.run(verifier_config(data_dir, **{"data.size": SIZE}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
