"""train.py: refusals before the first step, which change nothing; signals, resuming and the extras of training; what is
watched, and values that are not finite. The loop as a user runs it: test_end_to_end.py."""

import contextlib
import dataclasses
import json
import re
import shutil
import signal
import struct
import time

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import POISON_MM, lines, people_config, results, weights, write_arrays, write_people
from tensorboardX.proto import event_pb2

from facedepth_jax import config as configs
from facedepth_jax import devices, estimator, evaluation, files, losses, methods, steps, tasks, train, verification
from facedepth_jax.checkpoint import Checkpoints
from facedepth_jax.data import arrays, pipeline
from facedepth_jax.depth_code import DepthCode
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.state import Best, NetState, init_state, keep_better, no_best, variables
from facedepth_jax.weight_files import by_name

pytestmark = pytest.mark.usefixtures("small_batches")
SIZE = 16


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Three frames of three people, crops of 240 mm."""
    path = tmp_path_factory.mktemp("data") / "arrays"
    depth_mm = np.full((3, SIZE, SIZE), 900)
    return write_arrays(path, np.zeros_like(depth_mm), depth_mm, "abc", ["train", "validation", "test"]).path


def config_of(data_dir, /, **changes):
    return people_config("cgan", data_dir, **{"data.size": SIZE, "train.batch_size": jax.device_count()} | changes)


def saved_steps(workdir):
    return Checkpoints(workdir / "checkpoints", {}).steps()


def save(config, workdir, step, identity=None):
    """Save a checkpoint of a fresh state that says it has done `step` steps."""
    state = init_state(methods.build(config, subjects=1), config.seed, SIZE)
    identity = identity or configs.identity(config, arrays.open(config.data.dir).fingerprint)
    checkpoints = Checkpoints(workdir / "checkpoints", identity)
    saved = {"state": dataclasses.replace(state, step=state.step + step), "best": no_best(state.nets["generator"])}
    checkpoints.save(step, saved)
    checkpoints.finish()


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"every.log": 0}, "every.log is 0: it must be at least 1"),
        ({"every.save": 0}, "every.save is 0"),
        ({"watchdog_sec": 0}, "watchdog_sec is 0"),
        ({"width": 1}, "width is 1: it must be at least 2"),
        ({"train.steps": -5}, "train.steps is -5"),
        ({"train.batch_size": 0}, "train.batch_size is 0: it must be at least 1"),
        ({"train.schedule": "linear"}, "train.schedule is 'linear': take constant or cosine"),
        ({"train.schedule": "cosine", "train.warmup_steps": 8}, "train.warmup_steps is 8: give fewer than train.steps"),
        ({"train.average_decay": 1.0}, "train.average_decay is 1.0"),
        ({"train.clip_norm": -1.0}, "train.clip_norm is -1.0"),
        ({"seed": -1}, "seed is -1"),
        ({"data.size": 0}, "data.size is 0"),
        ({"data.size": 40}, "data.size is 40: .* a multiple of 16"),
        ({"data.size": 32}, "holds crops of 16 px and 240 mm, data.size is 32"),
        ({"data.face_mm": 320.0}, "holds crops of 16 px and 240 mm, .* data.face_mm 320"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        (
            {"method": "ae"},
            r"'lam'\], the method 'ae' takes \[\]: choose .* --config=CONFIG:ae",
        ),
        ({"train.learning_rate": float("nan")}, "train.learning_rate is nan"),
        ({"train.learning_rate": float("inf")}, "train.learning_rate is inf"),
        ({"train.b1": 1.5}, "train.b1 is 1.5: it must be at least 0 and below 1"),
        ({"loss.discriminator_pixels": "some"}, "discriminator_pixels is 'some': take learnt, all or valid"),
        ({"loss.lam": float("nan")}, "loss.lam is nan: it must be finite"),
        ({"loss.lam": -5.0}, "loss.lam is -5.0: it must be at least 0"),
        ({"train.learning_rate": -0.001}, "train.learning_rate is -0.001"),
        ({"depth_code.none_level": 300}, "depth_code.none_level is 300: it must be at least 0 and below 256"),
        ({"depth_code.offset_mm": -1.0}, "depth_code.offset_mm is -1.0"),
        ({"data.workers": -1}, "data.workers is -1"),
        ({"data.size": 1040}, "data.size is 1040"),
        ({"train.steps": 2**31}, "train.steps is 2147483648"),
        ({"depth_code.step_mm": 0.0}, "depth_code.step_mm is 0.0"),
        ({"watchdog_sec": 10**11}, "watchdog_sec is 10"),
        ({"seed": 2**63}, "seed is 9"),
        ({"method": "gan"}, "no method 'gan': take one of cgan, ae, "),
        ({"init_from": "nowhere"}, "There is no run in .*nowhere"),
        ({"data.dir": ""}, "data.dir is empty"),
    ],
)
def test_values_that_make_no_run(data_dir, tmp_path, changes, sentence):
    with pytest.raises(FaceDepthError, match=sentence):
        train.run(config_of(data_dir, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_size_that_the_net_cannot_take_is_found_before_the_data_are_made(tmp_path):
    config = configs.load("verifier", ["data.size=32", f"data.dir={tmp_path}/data"])
    with pytest.raises(FaceDepthError, match="The verifier's net takes depth maps of 96x96 px"):
        train.run(config, tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "fault, sentence",
    [
        ("a file", "file/run cannot be written: Not a directory"),
        ("another run's", "belongs to a run with seed = 5"),
        ("in use", r"run is in use by another process \(\d+ on .*\): wait"),
        ("weights alone", "run holds generator.safetensors but no checkpoint to go on from"),
        ("init_from without weights", "There is no .*generator.safetensors"),
    ],
)
def test_the_workdir_is_looked_at_before_the_data_are_made(fault, sentence, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_open_data", lambda _: pytest.fail("the data were made first"))
    config, workdir = config_of(data_dir), tmp_path / "run"
    with contextlib.ExitStack() as stack:
        if fault == "a file":
            (tmp_path / "file").write_text("")
            workdir = tmp_path / "file/run"
        elif fault == "another run's":
            identity = configs.identity(configs.with_absolute_paths(config), arrays.open(data_dir).fingerprint)
            save(config, workdir, 2, identity | {"seed": 5})
        elif fault == "in use":
            stack.enter_context(files.locked(workdir))
        elif fault == "weights alone":
            workdir.mkdir()
            (workdir / "generator.safetensors").write_bytes(b"hours of work")
        else:
            (tmp_path / "other").mkdir()
            (tmp_path / "other/config.json").write_text(json.dumps(config.to_dict()))
            config.init_from = str(tmp_path / "other")
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(FaceDepthError, match=sentence):
            train.run(config, workdir)
        assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("left", [["config.json", "generator.safetensors"], ["results.json"]])
def test_what_a_run_has_left_is_never_replaced_by_a_new_one(left, ae_run, people_dir, tmp_path):
    """SECURITY.md tells people to pass on the former; checkpoints are what somebody removes for room."""
    for name in left:
        shutil.copy(ae_run / name, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(FaceDepthError, match=rf"holds {left[-1]} but no checkpoint .* --config.init_from="):
        train.run(people_config("ae", people_dir, seed=3), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", *left]
    for name in left:
        assert (tmp_path / name).read_bytes() == (ae_run / name).read_bytes()


def test_a_data_set_without_a_split_is_refused_before_it_is_prepared(tmp_path):
    values = ["data.options.subjects=2", f"data.dir={tmp_path}/data"]
    with pytest.raises(FaceDepthError, match="the data set has no frame in test and validation: training needs all"):
        train.run(configs.load("synthetic", values), tmp_path / "run")
    assert not list(tmp_path.iterdir())


def test_arrays_without_depth_in_the_levels_are_refused(tmp_path):
    """As from before `prepare` looked at the unit. From the head it is something to learn."""
    depth_mm = np.full((6, 16, 16), 3200)
    splits = ["train"] * 2 + ["validation"] * 2 + ["test"] * 2
    data = write_arrays(tmp_path / "data", depth_mm, depth_mm, list("abcdef"), splits, distance_mm=[3200.0] * 6)
    config = config_of(data.path)
    with pytest.raises(FaceDepthError, match="no depth is between 500 and 2540 mm, so nothing can be learnt with"):
        train.run(config, tmp_path / "run")
    config.depth_code.origin = "head"
    configs.check_crops(config, data)


def test_options_of_another_data_set(tmp_path):
    config = configs.load("synthetic")
    config.data.dataset, config.data.raw_dir, config.data.dir = "folder", str(tmp_path), str(tmp_path / "out")
    with pytest.raises(FaceDepthError, match="'folder' has no option 'frames_per_sequence'"):
        train.run(config, tmp_path / "run")


def test_a_refused_run_leaves_the_config_of_the_one_that_is_there(data_dir, tmp_path):
    config = config_of(data_dir)
    save(config, tmp_path, 5, identity={"seed": 1})
    (tmp_path / "config.json").write_text("the old one")
    with pytest.raises(FaceDepthError, match="belongs to a run with"):
        train.run(config, tmp_path)
    assert (tmp_path / "config.json").read_text() == "the old one"


@pytest.mark.parametrize(
    "changes, goes_on",
    [
        ({"train.steps": 9}, True),
        ({"every.log": 7, "watchdog_sec": 5, "data.workers": 3}, True),
        ({"every.save": 3}, False),  # it decides which weights are kept
        ({"train.learning_rate": 0.1}, False),
        ({"loss.lam": 1.0}, False),
        ({"depth_code.step_mm": 4.0}, False),
        ({"init_from": "other"}, True),
        ({"train.average_decay": 0.5}, False),
    ],
)
def test_what_may_change_while_a_run_goes_on(data_dir, changes, goes_on):
    data = arrays.open(data_dir)
    before, after = (configs.identity(config_of(data_dir, **more), data.fingerprint) for more in ({}, changes))
    assert (before == after) == goes_on


def test_the_length_of_a_cosine_may_not_change(data_dir):
    """It decides the rates of all steps."""
    data, cosine = arrays.open(data_dir), {"train.schedule": "cosine"}
    before, after = (
        configs.identity(config_of(data_dir, **cosine, **more), data.fingerprint) for more in ({}, {"train.steps": 9})
    )
    assert before != after


def test_fewer_steps_than_done_are_refused(data_dir, tmp_path):
    """Or the figures of 5 steps would be called those of 3."""
    config = config_of(data_dir, **{"train.steps": 3})
    save(config, tmp_path, 5)
    with pytest.raises(FaceDepthError, match="has done 5 steps, train.steps is 3: give at least 5"):
        train.run(config, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints"]


def test_the_validation_pairs_choose_the_verifiers_weights(verifier_run, people_dir):
    found = results(verifier_run)
    judged = [line for line in lines(verifier_run) if "validation/accuracy" in line]
    assert [line["step"] for line in judged] == [2, 4, 6, 8]
    best = min(judged, key=lambda line: (-line["validation/accuracy"], line["validation/loss"]))
    assert best["step"] != 8  # or this test could not tell the best from the last
    assert found["step"] == best["step"] and found["steps"] == 8 and found["method"] == "verifier"
    for name in ("accuracy", "loss", "auc"):
        assert found["validation"][name] == best[f"validation/{name}"]
    data = arrays.open(people_dir)
    loaded = verification.load_verifier(verifier_run)
    for split in ("validation", "test"):  # the file holds these weights
        again = verification.verify(loaded, verification.true_depth(data), data, split)
        assert json.loads(json.dumps(again)) == found[split]
    assert found["bounds"]["true depth"]["test"] == found["test"]
    for figures in (found["bounds"]["mean training map"][split] for split in ("validation", "test")):
        assert figures["auc"] == 0.5 and figures["n"] == 6
    assert "| holes alone | 0." in (verifier_run / "results.md").read_text()


def test_examples_that_live_on_the_device_give_the_same_bits(verifier_run, people_dir, tmp_path, monkeypatch):
    """As on a GPU with room for them."""
    read = set()
    gather = pipeline._gather
    monkeypatch.setattr(devices, "_memory_bytes", lambda: 10**9)
    monkeypatch.setattr(pipeline, "_gather", lambda arrays, rows: read.update(arrays) or gather(arrays, rows))
    train.run(people_config("verifier", people_dir), tmp_path)
    assert read == {"row"}
    same_end(tmp_path, verifier_run)


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


def test_a_verifier_is_no_generator(verifier_run, ae_run):
    with pytest.raises(FaceDepthError, match="is a run of 'verifier', which has no generator"):
        estimator.load(verifier_run)
    with pytest.raises(FaceDepthError, match="is a run of 'ae', which has no verifier"):
        verification.load_verifier(ae_run)


def test_a_verifier_without_pairs_to_be_chosen_by(tmp_path):
    depth_mm = np.full((3, 96, 96), 900)
    write_arrays(tmp_path / "arrays", np.zeros_like(depth_mm), depth_mm, "abc", ["train", "validation", "test"])
    with pytest.raises(FaceDepthError, match="make no verification pairs"):
        train.run(people_config("verifier", tmp_path / "arrays"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- stopped by a signal, and continued -------------------------------------------------------------------------------


def signal_at(monkeypatch, owner, name, call, number=signal.SIGTERM):
    """Send a signal at the beginning of some call of a function; the list has an entry for every call."""
    function, calls = getattr(owner, name), []

    def wrapper(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            signal.raise_signal(number)
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, wrapper)
    return calls


def stopped_and_continued(config, workdir, capsys, monkeypatch, *where):
    """Stop a run by a signal, then run the same to its end. Return the last line before, and the steps saved then."""
    with monkeypatch.context() as patch:
        calls = signal_at(patch, *where)
        train.run(config, workdir)
        assert len(calls) >= where[2], "there was no signal"
    assert not (workdir / "results.json").exists() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    *_, line = capsys.readouterr().out.splitlines()
    saved = saved_steps(workdir)
    train.run(config, workdir)
    return line, saved


def same_end(workdir, whole):
    names = ["results.json", "results.md", *(path.name for path in whole.glob("*.safetensors"))]
    assert len(names) >= 3
    for name in names:
        assert (workdir / name).read_bytes() == (whole / name).read_bytes(), name
    assert lines(workdir) == lines(whole)


# Saved and validated are 2, 4, 6, 8; a validation has 2 batches. The loop draws a batch before each step.
@pytest.mark.parametrize(
    "phase, step, where",
    [
        ("between two steps", 3, (train._Training, "log", 3)),
        ("the first compile", 1, (steps, "apply_gradients", 1)),
        ("a validation", 5, (evaluation, "_batch_sums", 2 + 2, signal.SIGINT)),
        ("the last validation", 8, (evaluation, "_batch_sums", 3 * 2 + 1)),
    ],
)
def test_a_signal_while_training(phase, step, where, ae_run, people_dir, tmp_path, capsys, monkeypatch):
    line, saved = stopped_and_continued(people_config("ae", people_dir), tmp_path, capsys, monkeypatch, *where)
    assert line == f"Stopped at step {step}, which is saved: the same command continues."
    assert saved[-1] == step
    same_end(tmp_path, ae_run)


def test_a_signal_before_the_first_step(ae_run, people_dir, tmp_path, capsys, monkeypatch):
    where = (Checkpoints, "check", 1)
    line, saved = stopped_and_continued(people_config("ae", people_dir), tmp_path, capsys, monkeypatch, *where)
    assert line == "Stopped before a step: the same command continues." and saved == []
    same_end(tmp_path, ae_run)


def test_a_verifier_that_was_stopped_ends_with_the_same_bits(verifier_run, people_dir, tmp_path, capsys, monkeypatch):
    """Stopped behind its best step, so that the best must come from the checkpoint."""
    best = results(verifier_run)["step"]
    where = (verification, "_features", 3 * 2 + 1)  # in the validation of step 8
    assert best < 8
    _, saved = stopped_and_continued(people_config("verifier", people_dir), tmp_path, capsys, monkeypatch, *where)
    assert saved[-1] == 8 and best in saved
    same_end(tmp_path, verifier_run)


@pytest.mark.parametrize("phase", ["setting up", "the test split"])
def test_elsewhere_a_signal_does_what_it_does_by_default(phase, people_dir, tmp_path, monkeypatch):
    """The process would end there: the handlers are the ones that the loop found."""
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *_: seen.append(phase))
    try:
        where = (train, "init_state", 1) if phase == "setting up" else (tasks.DepthTask, "finish", 1)
        signal_at(monkeypatch, *where)
        train.run(people_config("ae", people_dir, **{"train.steps": 1}), tmp_path)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [phase] and results(tmp_path)["step"] == 1


# --- what others add to the paper's training --------------------------------------------------------------------------


def fresh(config, net):
    """Return a net's weights before the first step, by their names in the file."""
    return by_name(variables(init_state(methods.build(config, subjects=3), config.seed, 96).nets[net]))


def test_the_averaged_weights_are_evaluated_and_exported(people_dir, tmp_path, monkeypatch):
    """After one step a tenth of the start is left in them."""
    seen, finish = [], tasks.DepthTask.finish
    monkeypatch.setattr(tasks.DepthTask, "finish", lambda *args: seen.append(args[2]) or finish(*args))
    config = people_config("ae", people_dir, **{"train.steps": 1, "train.average_decay": 0.1})
    train.run(config, tmp_path)
    start, end, average = fresh(config, "generator"), by_name(variables(seen[0].nets["generator"])), weights(tmp_path)
    for name in end:
        expected = 0.1 * np.float64(start[name]) + 0.9 * np.float64(end[name])
        np.testing.assert_allclose(average[name], expected, rtol=1e-6, atol=1e-8, err_msg=name)
    net, data = estimator.load(tmp_path), arrays.open(people_dir)
    again = evaluation.evaluate(net.estimate, data, data.rows("test"), DepthCode())
    assert results(tmp_path)["test"]["all"] == pytest.approx(again["all"], rel=1e-6)
    assert any((average[name] != end[name]).any() for name in end)


@pytest.fixture(scope="module")
def cgan_run(people_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "cgan"
    train.run(people_config("cgan", people_dir, **{"train.steps": 2}), workdir)
    return workdir


class Stop(Exception):
    """Raised by a test instead of going on."""


@pytest.mark.parametrize("method", ["cgan", "ae"])
def test_a_run_starts_from_anothers_weights(method, cgan_run, people_dir, tmp_path, monkeypatch):
    """Both nets, where both are there; step 0, a fresh optimiser, and a best that counts from here."""
    seen = []

    def loop(training):
        seen.append(jax.device_get((training.state, training.best)))
        raise Stop

    monkeypatch.setattr(train._Training, "loop", loop)
    config = people_config(method, people_dir, **{"seed": 5, "init_from": str(cgan_run)})
    with pytest.raises(Stop):
        train.run(config, tmp_path)
    ((state, best),) = seen
    assert state.step == 0 and best.step == 0 and np.isinf(best.rank).all()
    assert state.nets.keys() == ({"generator", "discriminator"} if method == "cgan" else {"generator"})
    for name, net in state.nets.items():
        there, begun = weights(cgan_run, name), fresh(config, name)
        found = by_name(variables(net))
        assert found.keys() == there.keys()
        for key, leaf in found.items():
            np.testing.assert_array_equal(leaf, there[key], err_msg=key)
        assert any((found[key] != begun[key]).any() for key in found)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(net.opt_state))
    assert json.loads((tmp_path / "config.json").read_text())["init_from"] == str(cgan_run)


def test_a_run_goes_on_without_the_run_it_started_from(cgan_run, people_dir, tmp_path):
    other = shutil.copytree(cgan_run, tmp_path / "other")
    config = people_config("cgan", people_dir, **{"init_from": str(other), "train.steps": 1})
    train.run(config, tmp_path / "run")
    shutil.rmtree(other)
    config.train.steps, config.init_from = 2, ""
    train.run(config, tmp_path / "run")
    assert results(tmp_path / "run")["steps"] == 2
    assert configs.read_run(tmp_path / "run").init_from == str(other)  # where its weights came from, still


def test_starts_that_do_not_fit(cgan_run, verifier_run, people_dir, tmp_path):
    def refused(sentence, **changes):
        config = people_config("cgan", people_dir, **{"init_from": str(cgan_run)} | changes)
        with pytest.raises(FaceDepthError, match=sentence):
            train.run(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    refused(r"cgan, has DepthCode\(.*step_mm=8.0.*\), this one DepthCode\(.*step_mm=4.0", **{"depth_code.step_mm": 4.0})
    refused("safetensors does not fit .* of another shape", width=4)
    refused("There is no .*generator.safetensors", init_from=str(verifier_run))


def test_the_log_has_the_means_of_its_steps_also_after_a_kill(ae_run, people_dir, tmp_path, capsys, monkeypatch):
    """Killed at step 5, it goes on from 4, amid a log interval. It says so in its first line."""
    config = people_config("ae", people_dir, **{"every.log": 3})
    with monkeypatch.context() as patch:
        log = train._Training.log

        def killed_at_5(training):
            if training.pending and training.pending[0] == 5:
                training.checkpoints.finish()
                raise Stop
            log(training)

        patch.setattr(train._Training, "log", killed_at_5)
        with pytest.raises(Stop):
            train.run(config, tmp_path)
    assert saved_steps(tmp_path)[-1] == 4
    said = capsys.readouterr().out.splitlines()
    count = sum(array.size for name, array in weights(ae_run).items() if name.startswith("params/"))
    assert said[0].startswith(
        f"ae: {count:,} parameters (generator {count:,}); frames: 12 train, 4 validation, 4 test; "
    )
    assert said[0].endswith("; 8 steps")
    train.run(config, tmp_path)
    said = capsys.readouterr().out
    assert said.splitlines()[0].endswith("; goes on from step 4 of 8")
    best = results(tmp_path)["step"]
    assert f"The weights are those of step {best} of 8: lowest validation/all_l1, " in said
    every = {line["step"]: line for line in lines(ae_run) if "train/loss_g" in line}
    found = {line["step"]: line for line in lines(tmp_path) if "train/loss_g" in line}
    assert list(found) == [3, 6, 8]
    for step, of in ((3, (1, 2, 3)), (6, (4, 5, 6)), (8, (7, 8))):
        for name in every[1].keys() - {"step"}:
            assert found[step][name] == sum(every[i][name] for i in of) / len(of)


def test_the_log_has_what_ranks_and_which_step_is_kept(ae_run):
    judged = [line for line in lines(ae_run) if "validation/l1" in line]
    ranks = [(line["validation/all_l1"], line["validation/all_rmse_lin"]) for line in judged]
    kept = [judged[ranks.index(min(ranks[: i + 1]))]["step"] for i in range(len(judged))]
    assert [line["validation/best_step"] for line in judged] == kept
    found = results(ae_run)
    assert kept[-1] == found["step"] and min(ranks)[0] == found["validation"]["all"]["l1"]


def test_tensorboard_gets_the_faces_and_the_test_figures(ae_run, verifier_run):
    def shown(run):
        """{tag: [(step, value)]}, by the format of TensorFlow's records: length, its check, an event, its check."""
        found = {}
        (path,) = (run / "tensorboard").iterdir()
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = event_pb2.Event.FromString(content[at + 12 :][:length])
            at += length + 16
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value))
        return found

    found = shown(ae_run)
    for tag, at, names in (("validation", [2, 4, 6, 8], "0000000{}.png"), ("test", [8], "test.png")):
        pictures = found[f"{tag}/faces"]
        assert [step for step, _ in pictures] == at
        for step, value in pictures:
            there = cv2.imdecode(np.frombuffer(value.image.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
            np.testing.assert_array_equal(there, cv2.imread(str(ae_run / "samples" / names.format(step))))
    ((step, value),) = found["test/l1"]
    assert step == 8 and value.simple_value == np.float32(results(ae_run)["test"]["valid"]["l1"])
    ((_, value),) = shown(verifier_run)["test/accuracy"]
    assert value.simple_value == np.float32(results(verifier_run)["test"]["accuracy"])


@pytest.mark.parametrize("method, images", [("cgan", 8), ("verifier", 16)])
def test_the_speed_counts_images(method, images, people_dir, tmp_path, monkeypatch):
    """A pair is two."""
    seen = []

    def loop(training):
        raise Stop

    monkeypatch.setattr(train, "Pace", seen.append)
    monkeypatch.setattr(train._Training, "loop", loop)
    with pytest.raises(Stop):
        train.run(people_config(method, people_dir), tmp_path)
    assert seen == [images]


# --- watched ----------------------------------------------------------------------------------------------------------


def test_the_log_says_how_fast_it_went(ae_run):
    every = [json.loads(line) for line in (ae_run / "metrics.jsonl").read_text().splitlines()]
    speeds = [line["train/images_per_sec"] for line in every if "train/images_per_sec" in line]
    shares = [line["train/waiting_share"] for line in every if "train/waiting_share" in line]
    assert len(speeds) == len(shares) >= 4 and min(speeds) > 0 and 0 <= min(shares) <= max(shares) <= 1


def test_a_run_that_waits_for_data_says_so(people_dir, tmp_path, capsys, monkeypatch):
    batches = tasks.DepthTask.batches
    monkeypatch.setattr(
        tasks.DepthTask, "batches", lambda *args, **kwargs: (time.sleep(0.3) or b for b in batches(*args, **kwargs))
    )
    train.run(people_config("ae", people_dir, **{"train.steps": 3, "every.save": 9}), tmp_path)
    assert "of the time was waiting for data" in capsys.readouterr().err


def test_a_stuck_run_shows_where_it_stands(people_dir, tmp_path, capfd, monkeypatch):
    log = train._Training.log

    def hangs_for_a_while(training):
        time.sleep(1.5 if training.pending else 0)
        return log(training)

    monkeypatch.setattr(train._Training, "log", hangs_for_a_while)
    train.run(people_config("ae", people_dir, **{"train.steps": 1, "watchdog_sec": 1}), tmp_path)
    assert re.search(r"Timeout \(0:00:01\)!.*hangs_for_a_while", capfd.readouterr().err, re.DOTALL)


@pytest.mark.parametrize("backend, there, said", [("cpu", 1, True), ("cpu", 0, False), ("gpu", 1, False)])
def test_a_gpu_that_is_not_used(backend, there, said, data_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(train, "GPUS", str(tmp_path / "nvidia[0-9]*"))
    for name in ["nvidiactl", "nvidia0"][: 1 + there]:
        (tmp_path / name).touch()
    with pytest.raises(FaceDepthError, match="holds crops of 16 px"):
        train.run(config_of(data_dir, **{"data.size": 32}), tmp_path / "run")
    assert ("this machine has a GPU and JAX uses the CPU" in capsys.readouterr().err) == said


# --- values that are not finite ---------------------------------------------------------------------------------------


def drawn(method, data, step, batch_size):
    """Name the frames of a step's batch, by its images."""
    rows = data.rows("train")
    options = {"batch_size": batch_size, "seed": configs.base("ae").seed, "start_step": step - 1}
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
    healthy = DepthCode.quantize

    def quantize(code, depth_mm):
        bad = (jnp.asarray(depth_mm) == POISON_MM).any((-1, -2), keepdims=True)
        return jnp.where(bad, jnp.nan, healthy(code, depth_mm))

    finish = Checkpoints.finish
    monkeypatch.setattr(Checkpoints, "finish", lambda *args: (time.sleep(0.1), finish(*args)))  # a slow disk
    monkeypatch.setattr(DepthCode, "quantize", quantize)
    monkeypatch.setattr(tasks.DepthTask, "validate", lambda *args: ({}, None, np.float32([1, 1])))
    changes = {"train.batch_size": 2, "train.steps": 12, "every.save": 1}
    with pytest.raises(
        FaceDepthError, match=rf"^Step {step}: \w+ is nan\. .* look at the frames of this step: "
    ) as error:
        train.run(people_config("ae", data_dir, **changes), tmp_path / "run")
    named = re.search(r"frames of this step: (.*)\.$", str(error.value))[1].split(", ")
    assert poisoned in named and set(named) == batches[step - 1] and len(named) == len(set(named))
    assert saved_steps(tmp_path / "run")[-1] == step - 1
    assert not (tmp_path / "run/results.json").exists()


def test_the_frames_of_a_step_of_the_verifier(people_dir):
    config, data = people_config("verifier", people_dir), arrays.open(people_dir)
    task = tasks.make_task(config, methods.build(config, 1), data, devices.make_mesh())
    for step in (1, 5):
        named = task.frames_of(step, data.rows("train"), batch_size=2, seed=config.seed)
        assert set(named) == drawn("verifier", data, step, 2) and len(named) == len(set(named)) < 12


def test_evaluating_is_compiled_by_the_options_of_inference(people_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks.runtime, "inference_options", lambda: {"no_such_option": True})
    config, data = people_config("ae", people_dir), arrays.open(people_dir)
    nets = methods.build(config, 1)
    task = tasks.make_task(config, nets, data, devices.make_mesh())
    with pytest.raises(jax.errors.JaxRuntimeError, match="no_such_option"):
        task.validate(init_state(nets, 0, config.data.size).nets["generator"], 1, tmp_path)


def test_poisoned_gradients(people_dir, tmp_path, monkeypatch):
    """The loss is finite, its derivative is not."""
    mse = losses.mse
    monkeypatch.setattr(losses, "mse", lambda a, b: mse(a, b) + jnp.sqrt(0 * a).sum((1, 2, 3)))
    with pytest.raises(FaceDepthError, match=r"^Step 1: grad_norm_g is nan\. .* frames of this step: \w\d, \w\d"):
        train.run(people_config("ae", people_dir, **{"every.save": 1}), tmp_path)
    assert not saved_steps(tmp_path)


def test_poisoned_weights_that_no_metric_shows(people_dir, tmp_path, monkeypatch):
    """The last update makes them NaN: they are not saved, and not evaluated."""
    apply_gradients = steps.apply_gradients

    def poisoned(net, net_state, gradients, batch_stats):
        new = apply_gradients(net, net_state, gradients, batch_stats)
        count = new.opt_state[0].count
        return dataclasses.replace(new, params=jax.tree.map(lambda x: jnp.where(count == 4, jnp.nan, x), new.params))

    monkeypatch.setattr(steps, "apply_gradients", poisoned)
    with pytest.raises(
        FaceDepthError, match=r"^Step 4: a parameter is not finite\. .* frames of this step: \w\d, \w\d"
    ):
        train.run(people_config("ae", people_dir, **{"train.steps": 4}), tmp_path)
    assert saved_steps(tmp_path) == [2]
    assert not (tmp_path / "generator.safetensors").exists()


def test_a_save_that_failed_stops_the_run_at_the_next_step(people_dir, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "_complete", fail)
    with pytest.raises(FaceDepthError, match="Saving a checkpoint to .* failed .*No space left on device"):
        train.run(people_config("ae", people_dir, **{"every.save": 4}), tmp_path)
    assert 4 <= max(line["step"] for line in lines(tmp_path)) < 8, "the next save would have been at step 8"


def test_allow_mismatch_goes_on_with_other_values(people_dir, tmp_path, caplog):
    """The best weights are looked for again: their rank is of the old values."""
    config = people_config("verifier", people_dir, **{"train.steps": 1})
    seed = config.seed
    fresh = init_state(methods.build(config, subjects=3), seed, 96)
    unbeaten = dataclasses.replace(no_best(fresh.nets["verifier"]), rank=jnp.full(2, -jnp.inf))
    checkpoints = Checkpoints(tmp_path / "checkpoints", configs.identity(config, arrays.open(people_dir).fingerprint))
    checkpoints.save(1, {"state": dataclasses.replace(fresh, step=fresh.step + 1), "best": unbeaten})
    checkpoints.finish()
    config.seed = 5
    with pytest.raises(FaceDepthError, match=rf"belongs to a run with seed = {seed} \(not 5\): .* or --allow_mismatch"):
        train.run(config, tmp_path)
    assert not (tmp_path / "config.json").exists()
    train.run(config, tmp_path, allow_mismatch=True)
    assert f"from a checkpoint with seed = {seed} (not 5)" in caplog.text
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 5 and results(tmp_path)["step"] == 1


def test_a_workdir_that_is_a_file(people_dir, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FaceDepthError, match="cannot be written: (Not a directory|File exists)"):
        train.run(people_config("ae", people_dir), tmp_path / "file" / "run")
