"""checkpoint.py: the newest checkpoint that is as it was written, to the bit, or a sentence."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from facedepth_jax.checkpoint import Checkpoints, load_weights, save_weights
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


DAMAGES = {
    "flipped": lambda path: flip(path) if path.stat().st_size else path.write_bytes(b"x"),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1] or b"xx"),
    "emptied": lambda path: path.write_bytes(b"" if path.stat().st_size else b"x"),
    "missing": os.unlink,
    "extra": lambda path: path.with_name(path.name + "x").write_bytes(b""),
    "symlink": None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_seen_and_the_one_before_taken(folder, damage, caplog, tmp_path):
    names = [path.relative_to(folder) for path in (folder / "00000020").rglob("*") if path.is_file()]
    assert len(names) > 5
    checkpoints = Checkpoints(folder, IDENTITY)
    for k, name in enumerate(names):
        whole = shutil.copytree(folder / "00000020", tmp_path / "a" / "b" / "c" / str(k))
        path = folder / name
        if damage == "symlink":  # to the very same bytes
            path.unlink()
            path.symlink_to(whole / name.relative_to("00000020"))
        else:
            DAMAGES[damage](path)
        assert checkpoints._damage(20) and not checkpoints._damage(10), name
        if k == 0:
            assert same(restore(folder), state(10))
            assert "step 20 is damaged" in caplog.text
        shutil.rmtree(folder / "00000020")
        shutil.copytree(whole, folder / "00000020")
        assert not checkpoints._damage(20)


@pytest.mark.parametrize(
    "manifest",
    ["", "{", "[]", "3", "{}", '{"files": [], "identity": {}}', '{"files": {}, "identity": {}}', '{"files": {}}'],
)
def test_a_manifest_that_cannot_be_read(folder, manifest):
    (folder / "00000020.json").write_text(manifest)
    assert same(restore(folder), state(10))


def test_a_step_that_is_a_symbolic_link(folder, tmp_path):
    shutil.move(folder / "00000020", tmp_path / "elsewhere")
    (folder / "00000020").symlink_to(tmp_path / "elsewhere")
    assert "symbolic link" in Checkpoints(folder, IDENTITY)._damage(20)
    assert same(restore(folder), state(10))


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


def test_what_was_never_finished_does_not_count(folder):
    (folder / "00000020.json").unlink()
    (folder / "00000030.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (folder / "notes.txt").write_text("somebody's")
    assert same(restore(folder), state(10))
    assert sorted(os.listdir(folder)) == ["00000010", "00000010.json", "notes.txt"]
    (folder / "00000010.json").unlink()
    assert restore(folder) is None
    assert os.listdir(folder) == ["notes.txt"]


def test_going_on_after_damage_writes_over_it(folder):
    flip(folder / "00000020" / "state" / "_METADATA")
    save(folder, 20)
    assert same(restore(folder), state(20))


@pytest.mark.parametrize("name, value", [("seed", 2), ("train", {"b1": 0.9}), ("data", None), ("new", 1)])
def test_another_runs_checkpoint_is_refused(folder, name, value):
    with pytest.raises(FaceDepthError, match=f"belongs to a run with {name} = "):
        restore(folder, IDENTITY | {name: value})


def test_keeps_the_latest(tmp_path):
    checkpoints = save(tmp_path, 1, 2, 3, 4, 5)
    assert checkpoints.steps() == [3, 4, 5]
    assert sorted(os.listdir(tmp_path)) == [f"{s:08d}{end}" for s in (3, 4, 5) for end in ("", ".json")]


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FaceDepthError, match="Cannot save the checkpoint"):
        Checkpoints(tmp_path / "file", IDENTITY).save(1, state(1))


def test_a_save_that_failed_behind_our_back_is_said_at_the_next(tmp_path):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    (tmp_path / "00000001.json" / "x").mkdir(parents=True)  # the manifest's place is taken
    with pytest.raises(FaceDepthError):
        checkpoints.save(1, state(1))
        checkpoints.save(2, state(2))
    assert same(save(tmp_path / "other", 3).restore(state(0)), state(3))


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
