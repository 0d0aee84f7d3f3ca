"""train.py: what is refused before the first step, and that nothing is changed by it; stopped in any phase, watched,
poisoned. The loop as a user runs it: test_end_to_end.py."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from facedepth_jax import devices, losses, runs, steps, tasks, train, verification
from facedepth_jax.checkpoint import Checkpoints, save_weights
from facedepth_jax.data import arrays, pipeline
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.state import Best, NetState, TrainState, init_state, keep_better, no_best

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from configs import folder, synthetic, verifier

SIZE = 16


# Some CPUs cannot read what they have kept compiled, and compile again.
pytestmark = pytest.mark.filterwarnings("ignore:Error reading persistent compilation cache entry")


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
    return write_people(tmp_path_factory.mktemp("people") / "arrays")


POISON_MM = 60_000


def write_people(path, poisoned=None):
    """Domes of five people, four frames each, as wide and deep as the person. One pixel of a frame may be poisoned."""
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
    if poisoned:
        depth[names.index(poisoned), 0, 0] = POISON_MM
    pair_lists = {
        split: [(names[a], names[b], int(b < i + 3)) for a in range(i, i + 3) for b in range(a + 1, i + 4)]
        for split, i in (("validation", 12), ("test", 16))
    }
    meta = {"crop": {"face_mm": 240.0}, "dataset": {"name": "folder"}}
    arrays.write(path, frames=frames, images=[(gray, depth)], size_px=96, pair_lists=pair_lists, meta=meta)
    return path


def verifier_config(people_dir, **changes):
    return people_config(verifier.get_config("folder"), people_dir, **changes)


def ae_config(people_dir, **changes):
    return people_config(folder.get_config("ae"), people_dir, **changes)


def people_config(config, people_dir, **changes):
    config.width = 2
    config.train.batch_size, config.train.steps, config.train.learning_rate = 8, 8, 0.02
    config.every.log, config.every.save, config.every.evaluate = 1, 3, 2
    config.data.dir, config.data.dataset, config.data.face_mm = str(people_dir), "", 240.0
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module", autouse=True)
def compile_once(tmp_path_factory):
    """The same nets are compiled again and again."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module", autouse=True)
def small_batches():
    """An evaluation of four frames, or of the pairs of them, takes several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "EVALUATION_BATCH", 2)
        patch.setattr(tasks, "SAMPLES", 2)
        patch.setattr(verification, "BATCH", 2)
        yield


@pytest.fixture(scope="module")
def verifier_run(people_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "verifier"
    train.run(verifier_config(people_dir), workdir)
    return workdir


@pytest.fixture(scope="module")
def ae_run(people_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "ae"
    train.run(ae_config(people_dir), workdir)
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
    monkeypatch.setattr(devices, "_memory_bytes", lambda: 10**9)
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


# --- stopped in any phase ---------------------------------------------------------------------------------------------


@pytest.fixture
def own_signals():
    """The caller's ways with signals again after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def signal_at(monkeypatch, owner, name, call, number=signal.SIGTERM):
    """Sends a signal at the beginning of so manieth call of a function; the list has an entry for every call."""
    function, calls = getattr(owner, name), []

    def wrapper(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapper)
    return calls


def stopped_and_continued(config_of, people_dir, workdir, capsys, monkeypatch, *where):
    """Stops a run by a signal, gives its last line; then the same again, to its end."""
    before = arrays.open(people_dir).fingerprint
    with monkeypatch.context() as patch:
        calls = signal_at(patch, *where)
        train.run(config_of(people_dir), workdir)
        assert len(calls) == where[2], "it went on after the signal"
    assert not (workdir / "results.json").exists()
    *_, times, line = capsys.readouterr().out.splitlines()
    assert times.startswith("Time: ")
    assert arrays.open(people_dir).fingerprint == before
    saved = {int(path.stem) for path in (workdir / "checkpoints").glob("*.json")}
    train.run(config_of(people_dir), workdir)
    return line, max(saved, default=0)


def same_end(workdir, whole):
    names = ["results.json", "results.md", *(path.name for path in whole.glob("*.safetensors"))]
    assert len(names) == 3
    for name in names:
        assert (workdir / name).read_bytes() == (whole / name).read_bytes(), name
    assert lines(workdir) == lines(whole)


# Validation after steps 2, 4, 6, 8, of 2 batches; the test split has 2 too. Saved are 3, 6, 8.
@pytest.mark.parametrize(
    "phase, step, where",
    [
        ("the first compile", 1, (steps, "apply_gradients", 1)),
        ("validation, saved already", 6, (evaluate, "_batch_sums", 2 * 2 + 1, signal.SIGINT)),
        ("validation, not saved yet", 4, (evaluate, "_batch_sums", 2 + 1)),
        ("the last validation", 8, (evaluate, "_batch_sums", 3 * 2 + 1)),
        ("the test split", None, (evaluate, "_batch_sums", 4 * 2 + 1)),
    ],
)
def test_a_signal_in_any_phase(phase, step, where, ae_run, people_dir, tmp_path, capsys, monkeypatch, own_signals):
    line, saved = stopped_and_continued(ae_config, people_dir, tmp_path, capsys, monkeypatch, *where)
    if step is None:
        assert line == "Stopped in the last evaluation, step 8 is saved: the same command continues." and saved == 8
    else:
        assert line == f"Stopped at step {step}, which is saved: the same command continues." and saved == step
    same_end(tmp_path, ae_run)


# A list has 6 pairs of 4 frames: 2 batches of features, and 3 of pairs in each order.
@pytest.mark.parametrize(
    "step, where",
    [
        (2, (verification, "_features", 2)),
        (4, (verification, "_compare", 6 + 4)),
        (None, (verification, "_compare", 4 * 6 + 5)),
    ],
)
def test_a_signal_while_pairs_are_verified(
    step, where, verifier_run, people_dir, tmp_path, capsys, monkeypatch, own_signals
):
    line, saved = stopped_and_continued(verifier_config, people_dir, tmp_path, capsys, monkeypatch, *where)
    assert line.startswith(f"Stopped at step {step}, which is saved: " if step else "Stopped in the last evaluation")
    assert saved == (step or 8)
    same_end(tmp_path, verifier_run)


def test_a_signal_before_the_first_step(people_dir, tmp_path, capsys, monkeypatch, own_signals):
    line, saved = stopped_and_continued(ae_config, people_dir, tmp_path, capsys, monkeypatch, train, "init_state", 1)
    assert line == "Stopped before a step: the same command continues." and saved == 0


# --- watched ----------------------------------------------------------------------------------------------------------


def test_where_the_time_went(ae_run):
    """Of every line of training; that of each second is there once: test_logs.py."""
    every = [json.loads(line) for line in (ae_run / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in every if "train/loss_g" in line]
    assert len(training) == 8
    compiled, evaluated, saved = (
        [line["step"] for line in training if line[f"train/time_{part}_sec"] > 0]
        for part in ("compile", "evaluation", "save")
    )
    # Read one step late, and an evaluation and a save wait for it: what comes after step 2 is in the line of step 3.
    assert compiled == [1] and evaluated == [3, 5, 7] and saved == [4, 7]


def test_a_run_that_waits_for_data_says_so(people_dir, tmp_path, capsys, monkeypatch):
    batches = tasks.Depth.batches
    monkeypatch.setattr(
        tasks.Depth, "batches", lambda *args, **kwargs: (time.sleep(0.5) or b for b in batches(*args, **kwargs))
    )
    train.run(ae_config(people_dir, **{"train.steps": 3, "every.evaluate": 9, "every.save": 9}), tmp_path)
    assert "of the time was waiting for data" in capsys.readouterr().err


def test_a_stuck_run_shows_where_it_stands(people_dir, tmp_path, capfd, monkeypatch):
    validate = tasks.Depth.validate

    def hangs_for_a_while(task, *args):
        task._between()  # the watchdog's second begins here, whatever the machine did before
        time.sleep(2)
        return validate(task, *args)

    monkeypatch.setattr(tasks.Depth, "validate", hangs_for_a_while)
    train.run(ae_config(people_dir, **{"train.steps": 1, "every.stuck_sec": 1}), tmp_path)
    assert re.search(r"Timeout \(0:00:01\)!.*hangs_for_a_while", capfd.readouterr().err, re.DOTALL)


@pytest.mark.parametrize("backend, there, said", [("cpu", 1, True), ("cpu", 0, False), ("gpu", 1, False)])
def test_a_gpu_that_is_not_used(backend, there, said, data_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(train, "GPUS", str(tmp_path / "nvidia[0-9]*"))
    for name in ["nvidiactl", "nvidia0"][: 1 + there]:
        (tmp_path / name).touch()
    with pytest.raises(FaceDepthError, match="holds images of 16 px"):
        train.run(config_of(data_dir, **{"data.size": 32}), tmp_path / "run")
    assert ("this machine has a GPU and JAX uses the CPU" in capsys.readouterr().err) == said


# --- values that are not finite ---------------------------------------------------------------------------------------


def drawn(method, data, step, batch_size):
    """Names of the frames of a step's batch, read from its images."""
    rows = data.rows("train")
    options = {"batch_size": batch_size, "seed": folder.get_config().seed, "start_step": step - 1}
    images = {"depth_mm": data.depth_mm}
    if method == "ae":
        batch = next(pipeline.batches(images, rows, **options))["depth_mm"]
    else:
        batch = next(pipeline.pair_batches(images, rows, data.frames["subject"][rows], **options))["depth_mm"]
    names = {image.tobytes(): name for image, name in zip(data.depth_mm, data.frames["frame"], strict=True)}
    return {names[image.tobytes()] for image in batch.reshape(-1, *data.depth_mm.shape[1:])}


def test_poisoned_data(people_dir, tmp_path, monkeypatch):
    """One frame becomes NaN: the first step that draws it stops the run and names it among the step's frames."""
    batches = [drawn("ae", arrays.open(people_dir), step, 2) for step in (1, 2, 3)]
    step = 3
    poisoned = min(batches[step - 1] - batches[0] - batches[1])
    data_dir = tmp_path / "arrays"
    write_people(data_dir, poisoned)
    healthy = levels.levels_from_mm

    def levels_from_mm(depth_mm, code):
        bad = (jnp.asarray(depth_mm) == POISON_MM).any((-1, -2), keepdims=True)
        return jnp.where(bad, jnp.nan, healthy(depth_mm, code))

    seal = Checkpoints._seal
    monkeypatch.setattr(Checkpoints, "_seal", lambda *args: (time.sleep(0.3), seal(*args)))  # a slow disk
    monkeypatch.setattr(levels, "levels_from_mm", levels_from_mm)
    changes = {"train.batch_size": 2, "train.steps": 12, "every.save": 1, "every.evaluate": 20}
    with pytest.raises(
        FaceDepthError, match=rf"^Step {step}: \w+ is nan\. .* look at the frames of this step: "
    ) as error:
        train.run(ae_config(data_dir, **changes), tmp_path / "run")
    named = re.search(r"frames of this step: (.*)\.$", str(error.value))[1].split(", ")
    assert poisoned in named and set(named) == batches[step - 1] and len(named) == len(set(named))
    assert sorted(path.stem for path in (tmp_path / "run/checkpoints").glob("*.json"))[-1] == f"{step - 1:08d}"
    assert not (tmp_path / "run/results.json").exists()


def test_the_frames_of_a_step_of_the_verifier(people_dir):
    config, data = verifier_config(people_dir), arrays.open(people_dir)
    task = tasks.make_task(config, runs.build(config, 1)[1], data, devices.make_mesh())
    for step in (1, 5):
        named = task.frames_of(step, data.rows("train"), batch_size=2, seed=config.seed)
        assert set(named) == drawn("verifier", data, step, 2) and len(named) == len(set(named)) < 12


def test_poisoned_gradients(people_dir, tmp_path, monkeypatch):
    """The loss is finite, its derivative is not."""
    mse = losses.mse
    monkeypatch.setattr(losses, "mse", lambda a, b: mse(a, b) + jnp.sqrt(0 * a).sum((1, 2, 3)))
    with pytest.raises(FaceDepthError, match=r"^Step 1: grad_norm_g is nan\. .* frames of this step: \w\d, \w\d"):
        train.run(ae_config(people_dir, **{"every.save": 1}), tmp_path)
    assert not list((tmp_path / "checkpoints").glob("*"))


def test_poisoned_weights_that_no_metric_shows(people_dir, tmp_path, monkeypatch):
    """The last update makes them NaN: they are not saved, and not evaluated."""
    apply_gradients = steps.apply_gradients

    def poisoned(net, net_state, gradients, batch_stats):
        new = apply_gradients(net, net_state, gradients, batch_stats)
        count = new.opt_state[0].count
        return dataclasses.replace(new, params=jax.tree.map(lambda x: jnp.where(count == 8, jnp.nan, x), new.params))

    monkeypatch.setattr(steps, "apply_gradients", poisoned)
    with pytest.raises(
        FaceDepthError, match=r"^Step 8: a parameter is not finite\. .* frames of this step: \w\d, \w\d"
    ):
        train.run(ae_config(people_dir), tmp_path)
    assert sorted(path.stem for path in (tmp_path / "checkpoints").glob("*.json")) == ["00000003", "00000006"]
    assert not (tmp_path / "generator.safetensors").exists()
