"""Every kind of damage to every file of a checkpoint is found before anything of it is used, and
a place that cannot be written to ends in one sentence, what was whole before left whole."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import jax.numpy as jnp
import pytest
from test_checkpoint import IDENTITY, restore, same, save, state
from test_train import people_dir, verifier_config  # noqa: F401
from writers import ARRAYS_COUNT, KINDS, contents, damaged, link, make_arrays

from facedepth_jax import files, runs, train
from facedepth_jax.checkpoint import Checkpoints
from facedepth_jax.data import arrays
from facedepth_jax.data.prepare import prepare
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.state import TrainState, init_state, no_best

ROOT = pathlib.Path(__file__).parents[1]


# ---- checkpoints ----


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    save(folder, 10, 20)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


@pytest.mark.parametrize("kind", KINDS)
def test_damage_to_any_file_of_a_checkpoint(folder, tmp_path, kind, caplog):
    """The one before is taken and the log names the bad one; where there is none before, it is no fresh start."""
    alone = tmp_path / "alone"
    names = [path.relative_to(folder) for path in (folder / "00000020").rglob("*") if path.is_file()]
    assert len(names) > 8
    for name in [*names, pathlib.Path("00000020.json")]:
        caplog.clear()
        with damaged(folder / name, kind, tmp_path):
            assert same(restore(folder), state(10)), name
            assert "The checkpoint of step 20 is damaged: " in caplog.text and name.name in caplog.text
            shutil.copytree(folder, alone, symlinks=True, ignore=shutil.ignore_patterns("00000010*"))
            with pytest.raises(FaceDepthError, match="All checkpoints in .* are damaged"):
                restore(alone)
            shutil.rmtree(alone)
    caplog.clear()
    assert same(restore(folder), state(20)) and not caplog.text


def empty(path, _):
    shutil.rmtree(path)
    path.mkdir()


@pytest.mark.parametrize(
    "harm",
    {
        "empty": empty,
        "missing": lambda path, _: shutil.rmtree(path),
        "a file": lambda path, _: (shutil.rmtree(path), path.write_text("")),
        "a link": link,
        "one file more": lambda path, _: (path / "more").write_text(""),
        "a link more": lambda path, _: (path / "state" / "more").symlink_to("/"),
        "empty, and the manifest gone": lambda path, _: (empty(path, _), path.with_suffix(".json").unlink()),
        "the manifest of another step": lambda path, _: shutil.copy(path.with_name("00000010.json"), f"{path}.json"),
    }.items(),
    ids=lambda harm: harm[0],
)  # fmt: skip
def test_damage_to_a_step_as_a_whole(folder, tmp_path, harm, caplog):
    harm[1](folder / "00000020", tmp_path / "target")
    assert same(restore(folder), state(10)) and "step 20 is damaged" in caplog.text
    for path in folder.glob("00000010*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(FaceDepthError, match="All checkpoints in .* are damaged"):
        restore(folder)


def test_all_manifests_gone_is_no_fresh_start(folder):
    for manifest in folder.glob("*.json"):
        manifest.unlink()
    with pytest.raises(FaceDepthError, match="All checkpoints in .* are damaged"):
        restore(folder)
    assert sorted(os.listdir(folder)) == ["00000010", "00000020"]  # and nothing was removed


# ---- places ----

FULL = """
import os, resource, sys
sys.path[:0] = sys.argv[2:]
import numpy as np
from facedepth_jax import files
from facedepth_jax.checkpoint import Checkpoints
from facedepth_jax.errors import FaceDepthError

folder = sys.argv[1]
state = {"x": np.random.default_rng(0).integers(0, 2**31, 100_000).astype(np.int32)}
checkpoints = Checkpoints(folder + "/checkpoints", {})
checkpoints.save(1, state)
checkpoints.finish()
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))  # a full disk: no file can grow beyond


def checkpoint():
    checkpoints.save(2, state)
    checkpoints.finish()


for write in (checkpoint, lambda: files.write_bytes(folder + "/file", bytes(4000)), lambda: make_arrays(folder + "/arrays")):
    try:
        write()
        print("no error")
    except (FaceDepthError, OSError) as error:
        print("error:", error)
sys.stdout.flush()
os._exit(0)
"""


def test_a_full_disk(tmp_path):
    """By the limit of a file's size, which ends in the same calls as a full disk."""
    command = [sys.executable, "-c", FULL, str(tmp_path), str(ROOT), str(ROOT / "tests")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = done.stdout.splitlines()
    assert len(said) == 3, done.stdout + done.stderr
    assert re.fullmatch("error: Saving a checkpoint to .* failed .*File too large.*: the one before .*", said[0])
    assert re.fullmatch("error: .*/file cannot be written: File too large.", said[1])
    assert re.fullmatch("error: .*File too large.*", said[2])
    assert os.listdir(tmp_path) == ["checkpoints"]
    assert Checkpoints(tmp_path / "checkpoints", {}).steps() == [1]


@pytest.fixture
def read_only():
    """A directory that we may read and not write, whoever runs the test: root may write anywhere, so be nobody."""
    path = pathlib.Path(tempfile.mkdtemp())
    make_arrays(path / "arrays")
    for folder in (path / "arrays", path):
        folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield path
    finally:
        if root:
            os.seteuid(0)
        for folder in (path, path / "arrays"):
            folder.chmod(0o755)
        shutil.rmtree(path)


def test_a_place_without_the_right_to_write(saved, read_only):
    with pytest.raises(FaceDepthError, match="Cannot save the checkpoint .*: Permission denied"):
        Checkpoints(read_only / "checkpoints", IDENTITY).save(1, state(1))
    with pytest.raises(FaceDepthError, match="a.json cannot be written: Permission denied"):
        files.write_json(read_only / "new" / "a.json", {})
    assert len(arrays.open(read_only / "arrays")) == ARRAYS_COUNT
    assert sorted(os.listdir(read_only)) == ["arrays"] and sorted(contents(read_only / "arrays")) == sorted(
        [*arrays.FILES, "meta.json"]
    )


# ---- runs ----


def test_a_save_that_failed_stops_the_run_at_the_next_step(people_dir, tmp_path, monkeypatch):  # noqa: F811
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Checkpoints, "_seal", fail)
    with pytest.raises(FaceDepthError, match="Saving a checkpoint to .* failed .*No space left on device"):
        train.run(verifier_config(people_dir, **{"every.save": 4, "every.evaluate": 100}), tmp_path)
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert 4 <= max(steps) < 8, "the next save would have been at step 8"


def test_who_insists_goes_on_with_other_values(people_dir, tmp_path):  # noqa: F811
    done = {"train.steps": 1, "every.evaluate": 1}
    config = verifier_config(people_dir, **done)
    seed = config.seed
    # Better than any by the old values: says nothing under the new ones.
    fresh = init_state(runs.build(config, subjects=3)[1], seed, 96)
    unbeaten = dataclasses.replace(no_best(fresh.nets["verifier"]), rank=jnp.full(2, -jnp.inf))
    saved = {"state": TrainState(fresh.step + 1, fresh.nets), "best": unbeaten}
    checkpoints = Checkpoints(tmp_path / "checkpoints", train._identity(config, arrays.open(people_dir)))
    checkpoints.save(1, saved)
    checkpoints.finish()
    with pytest.raises(FaceDepthError, match=rf"belongs to a run with seed = {seed} \(not 5\): .* or --insist"):
        train.run(verifier_config(people_dir, seed=5, **done), tmp_path)
    with pytest.raises(FaceDepthError, match="does not fit the nets of this run: best/"):
        train.run(verifier_config(people_dir, width=3, **done), tmp_path, insist=True)
    assert not (tmp_path / "config.json").exists()
    command = [sys.executable, "-m", "facedepth_jax.main", "--config=configs/verifier.py:folder", "--insist"]
    command += [f"--workdir={tmp_path}", f"--config.data.dir={people_dir}", "--config.data.dataset=", "--config.seed=5"]
    command += ["--config.width=2", "--config.data.face_mm=240.0", "--config.train.batch_size=8"]
    command += ["--config.train.steps=1", "--config.every.evaluate=1", "--config.train.learning_rate=0.02"]
    insisted = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert insisted.returncode == 0, insisted.stderr
    assert f"Going on, as insisted, from a checkpoint with seed = {seed} (not 5)" in insisted.stderr
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 5
    assert json.loads((tmp_path / "results.json").read_text())["step"] == 1


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket/run", "file:///tmp/run"])
def test_an_address_is_no_directory(people_dir, tmp_path, monkeypatch, address):  # noqa: F811
    """Or pathlib would make a folder `gs:` of it."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FaceDepthError, match="is an address .*: give a local directory, or mount the bucket"):
        train.run(verifier_config(people_dir), address)
    with pytest.raises(FaceDepthError, match="is an address"):
        files.write_bytes(pathlib.Path(address) / "a", b"")
    with pytest.raises(FaceDepthError, match="is an address"):
        prepare(None, address)
    assert os.listdir(tmp_path) == []


def test_a_workdir_that_is_no_directory(people_dir, tmp_path):  # noqa: F811
    (tmp_path / "file").write_text("")
    with pytest.raises(FaceDepthError, match="cannot be written: (Not a directory|File exists)"):
        train.run(verifier_config(people_dir), tmp_path / "file" / "run")
