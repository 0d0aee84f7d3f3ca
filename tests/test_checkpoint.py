"""checkpoint.py: the newest checkpoint that is as it was written, to the bit, or a sentence."""

import json
import os
import re
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from facedepth_jax.checkpoint import GONE, Checkpoints, load_weights, save_weights
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.state import NetState, TrainState

IDENTITY = {"seed": 1, "train": {"b1": 0.5}, "data": "abc"}


def state(step):
    rng = np.random.default_rng(step)
    params = {"out": {"kernel": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32), "bias": jnp.zeros(2)}}
    return TrainState(jnp.int32(step), {"generator": NetState(params, {"m": jnp.array([np.pi])}, (jnp.int32(7),))})


def same(a, b):
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def save(folder, *steps, **options):
    checkpoints = Checkpoints(folder, IDENTITY, **options)
    for step in steps:
        checkpoints.save(step, state(step))
    checkpoints.finish()
    return checkpoints


def restore(folder, identity=IDENTITY):
    return Checkpoints(folder, identity).restore(state(0))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    save(folder, 10, 20)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def test_restores_the_newest_to_the_bit(folder):
    insists = Checkpoints(folder, IDENTITY, insist=True)
    assert insists.restore(state(0)) and not insists.insisted  # there was nothing to insist on
    restored = restore(folder)
    assert jax.tree.structure(restored) == jax.tree.structure(state(20)) and same(restored, state(20))
    assert not same(restored, state(10))


def test_nothing_there(tmp_path):
    assert restore(tmp_path / "none") is None


def test_a_state_may_be_donated_while_it_is_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path, {})
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros((2000, 2000))
    checkpoints.save(1, {"x": x})
    for _ in range(3):
        x = step(x)
    checkpoints.finish()
    assert not np.any(Checkpoints(tmp_path, {}).restore({"x": x})["x"])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "manifest",
    ["", "{", "[]", "3", "{}", '{"files": [], "identity": {}}', '{"files": {}, "identity": {}}', '{"files": {}}'],
)
def test_a_manifest_that_cannot_be_read(folder, manifest):
    (folder / "00000020.json").write_text(manifest)
    assert same(restore(folder), state(10))


def test_a_value_in_the_manifest_that_was_changed(folder):
    """Or a flipped bit in the identity would be taken for another run's checkpoint."""
    manifest = folder / "00000020.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"seed": 1', '"seed": 3'))
    assert manifest.read_text() != text and same(restore(folder), state(10))


def test_a_manifest_from_before_it_had_a_hash_of_its_own(folder):
    content = json.loads((folder / "00000020.json").read_text())
    del content["sha256"]
    (folder / "00000020.json").write_text(json.dumps(content))
    assert same(restore(folder), state(20))


def test_files_that_only_look_like_manifests(folder):
    for name in ("\u00b2.json", "7.json", "000000200.json", "notes.json"):
        (folder / name).write_text("{}")
    assert Checkpoints(folder, IDENTITY).steps() == [10, 20]


def test_all_damaged(folder):
    for step in (10, 20):
        flip(folder / f"{step:08d}" / "state" / "_METADATA")
    with pytest.raises(FaceDepthError, match="All checkpoints in .* are damaged"):
        restore(folder)


def test_a_save_over_a_damaged_checkpoint_that_fails_leaves_no_manifest(folder, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("facedepth_jax.checkpoint.ocp.save_async", fail)
    checkpoints = Checkpoints(folder, IDENTITY)
    with pytest.raises(FaceDepthError, match="No space left"):
        checkpoints.save(20, state(20))
    assert checkpoints.steps() == [10] and same(restore(folder), state(10))


def kill_while_saving(folder, step, monkeypatch):
    """What is on the disk when a process is killed just before it writes the manifest."""

    class Killed(BaseException):
        pass

    def killed(*args):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("facedepth_jax.checkpoint.files.write_json", killed)
        checkpoints = Checkpoints(folder, IDENTITY)
        checkpoints.save(step, state(step))
        with pytest.raises(Killed):
            checkpoints.finish()
    assert (folder / f"{step:08d}" / "state").is_dir() and (folder / f"{step:08d}.saving").exists()


def test_what_was_never_finished_does_not_count(folder, monkeypatch):
    kill_while_saving(folder, 30, monkeypatch)
    (folder / "00000040.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (folder / "notes.txt").write_text("somebody's")
    assert Checkpoints(folder, IDENTITY).steps() == [10, 20] and same(restore(folder), state(20))
    assert sorted(os.listdir(folder)) == ["00000010", "00000010.json", "00000020", "00000020.json", "notes.txt"]


def test_the_first_save_killed_is_a_fresh_start(tmp_path, monkeypatch):
    kill_while_saving(tmp_path, 10, monkeypatch)
    assert restore(tmp_path) is None and not os.listdir(tmp_path)
    save(tmp_path, 10)
    (tmp_path / "00000010.saving").touch()  # killed when all but this was done
    assert same(restore(tmp_path), state(10)) and sorted(os.listdir(tmp_path)) == ["00000010", "00000010.json"]


def test_killed_while_an_old_one_is_removed(folder, monkeypatch):
    """Its manifest is gone and its files are not: no damage, and no rest after the next start."""

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(Killed):
            save(folder, 30, keep=1)
    assert (folder / "00000010").is_dir() and not (folder / "00000010.json").exists()
    assert Checkpoints(folder, IDENTITY).steps() == [20, 30] and same(restore(folder), state(30))
    assert not list(folder.glob("00000010*"))


def test_an_old_one_that_cannot_be_removed_stops_nothing(folder, monkeypatch, caplog):
    def busy(path):
        raise OSError(16, "Device or resource busy", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        save(folder, 30, keep=2)
    assert re.search("old checkpoint .*00000010 is left: .* busy", caplog.text)
    assert (folder / "00000010").is_dir() and (folder / "00000010.saving").exists()
    assert Checkpoints(folder, IDENTITY).steps() == [20, 30] and same(restore(folder), state(30))
    assert not list(folder.glob("00000010*"))


@pytest.mark.parametrize("error", GONE)
def test_that_another_process_has_gone_is_no_failed_save(tmp_path, monkeypatch, error):
    """It ends with another code, by which the run is started again."""

    def gone(*_):
        raise error("another process")

    with monkeypatch.context() as patch:
        patch.setattr("facedepth_jax.checkpoint.ocp.save_async", gone)
        with pytest.raises(error, match="another process"):
            Checkpoints(tmp_path, IDENTITY).save(1, state(1))
    monkeypatch.setattr("facedepth_jax.checkpoint.files.sha256", gone)
    with pytest.raises(error, match="another process"):
        save(tmp_path, 1)


def test_the_first_process_chooses(folder, tmp_path, monkeypatch):
    """Others take its step, whatever they see, and whether it insisted; or say that they do not see it."""
    told = []

    def broadcast(values):
        told.append(values.tolist())
        return np.array([10, 1]) if jax.process_index() else values

    monkeypatch.setattr("facedepth_jax.checkpoint.multihost_utils.broadcast_one_to_all", broadcast)
    assert restore(tmp_path / "none") is None
    assert Checkpoints(folder, {}, insist=True).restore(state(0))
    monkeypatch.setattr("facedepth_jax.checkpoint.jax.process_index", lambda: 1)
    (folder / "00000030.saving").touch()  # the first may be at it
    other = Checkpoints(folder, IDENTITY)
    assert same(other.restore(state(0)), state(10)) and other.insisted
    assert (folder / "00000030.saving").exists()
    with pytest.raises(FaceDepthError, match="no .*none/00000010, .* WORKDIR must be one that all hosts share"):
        restore(tmp_path / "none")
    assert told == [[-1, 0], [20, 1], [-1, 0], [-1, 0]]


def test_going_on_after_damage_writes_over_it(folder):
    flip(folder / "00000020" / "state" / "_METADATA")
    save(folder, 20)
    assert same(restore(folder), state(20))


OTHERS = [
    ({"seed": 2}, r"seed = 1 \(not 2\)"),
    ({"train": {"b1": 0.9}}, r"train\.b1 = 0\.5 \(not 0\.9\)"),
    ({"data": "def", "seed": 3}, r"data = 'abc' \(not 'def'\), seed = 1 \(not 3\)"),
    ({"new": 1}, r"new = None \(not 1\)"),
]


@pytest.mark.parametrize("change, difference", OTHERS)
def test_another_runs_checkpoint_is_refused_with_the_difference(folder, change, difference):
    with pytest.raises(FaceDepthError, match=f"belongs to a run with {difference}: .* or --insist"):
        restore(folder, IDENTITY | change)


@pytest.mark.parametrize("change, difference", OTHERS)
def test_who_insists_goes_on_and_it_is_logged(folder, change, difference, caplog):
    checkpoints = Checkpoints(folder, IDENTITY | change, insist=True)
    assert same(checkpoints.restore(state(0)), state(20)) and checkpoints.insisted
    assert re.search(f"as insisted, from a checkpoint with {difference}", caplog.text)
    checkpoints.save(30, state(30))  # is the new run's
    checkpoints.finish()
    assert same(restore(folder, IDENTITY | change), state(30))
    with pytest.raises(FaceDepthError, match="belongs to a run with"):
        restore(folder)


def test_a_state_of_another_shape_is_one_sentence(folder):
    like = state(0)
    other = NetState({"out": {"kernel": jnp.zeros((3, 5)), "bias": jnp.zeros(2)}}, {"m": jnp.zeros(1)}, (jnp.int32(0),))
    more = NetState(like.nets["generator"].params, {"m": jnp.zeros(1), "v": jnp.zeros(1)}, (jnp.int32(0),))
    for net, sentence in ((other, r"kernel has the shape \(3, 4\) there and \(3, 5\) here"),
                          (more, r"batch_stats/v has the shape None there and \(1,\) here")):  # fmt: skip
        with pytest.raises(FaceDepthError, match=f"does not fit the nets of this run: state.*{sentence}|{sentence}"):
            Checkpoints(folder, IDENTITY, insist=True).restore(TrainState(jnp.int32(0), {"generator": net}))


def test_keeps_the_latest(tmp_path):
    checkpoints = save(tmp_path, 1, 2, 3, 4, 5)
    assert checkpoints.steps() == [3, 4, 5]
    assert sorted(os.listdir(tmp_path)) == [f"{s:08d}{end}" for s in (3, 4, 5) for end in ("", ".json")]


def test_keeps_the_best_beside_the_latest_until_there_is_a_better(tmp_path):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    kept = []
    for step, best_step in ((1, 0), (2, 2), (3, 2), (4, 2), (5, 2), (6, 6), (7, 6), (8, 7)):
        checkpoints.save(step, state(step), best_step)
        checkpoints.finish()
        kept.append(checkpoints.steps())
    assert kept == [[1], [1, 2], [1, 2, 3], [2, 3, 4], [2, 3, 4, 5], [4, 5, 6], [5, 6, 7], [6, 7, 8]]
    assert same(restore(tmp_path), state(8))


def test_damaged_ones_do_not_push_out_the_good(folder):
    """Of 10, 20, 30 the newest two are damaged, and the run saves more often from now on."""
    save(folder, 30)
    for step in (20, 30):
        flip(folder / f"{step:08d}" / "state" / "_METADATA")
    checkpoints = Checkpoints(folder, IDENTITY)
    assert same(checkpoints.restore(state(0)), state(10))
    for step in (12, 14):
        checkpoints.save(step, state(step))
    checkpoints.finish()
    assert checkpoints.steps() == [10, 12, 14]


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FaceDepthError, match="Cannot save the checkpoint"):
        Checkpoints(tmp_path / "file", IDENTITY).save(1, state(1))


def test_a_save_that_failed_behind_our_back_is_said_at_the_next_step(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.check()
    checkpoints.save(1, state(1))
    checkpoints.finish()
    checkpoints.check()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("facedepth_jax.checkpoint.files.sha256", full)
    checkpoints.save(2, state(2))
    with pytest.raises(FaceDepthError, match="Saving a checkpoint to .* failed .*No space left"):
        for _ in range(2000):  # steps, each of 10 ms
            checkpoints.check()
            time.sleep(0.01)
    checkpoints.check()  # said once
    monkeypatch.undo()
    assert same(restore(tmp_path), state(1))


# ---- weights for others ----


def weights():
    return {"params": state(1).nets["generator"].params, "batch_stats": state(1).nets["generator"].batch_stats}


def test_weights_there_and_back(tmp_path):
    path = tmp_path / "g.safetensors"
    save_weights(path, weights())
    assert safetensors.numpy.load(path.read_bytes()).keys() == {"params/out/kernel", "params/out/bias", "batch_stats/m"}
    assert same(load_weights(path, jax.eval_shape(weights)), weights())


def test_weights_that_do_not_fit(tmp_path):
    path = tmp_path / "g.safetensors"
    save_weights(path, weights())
    for like in ({"params": {"other": jnp.zeros(1)}}, {"params": {"out": {"bias": jnp.zeros(3)}}}):
        with pytest.raises(FaceDepthError, match="does not fit"):
            load_weights(path, like)


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 9, json.dumps({}).encode(), "cut"])
def test_weights_that_cannot_be_read(tmp_path, content):
    path = tmp_path / "g.safetensors"
    if content == "cut":
        save_weights(path, weights())
        content = path.read_bytes()[:-1]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FaceDepthError, match="There is no|is no file of weights"):
        load_weights(path, weights())
