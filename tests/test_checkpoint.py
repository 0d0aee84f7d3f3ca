"""checkpoint.py: the newest checkpoint that is as it was written, to the bit, or a sentence."""

import collections
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from orbax.checkpoint import v1 as ocp
from writers import KINDS, damaged, flip, link

from facedepth_jax.checkpoint import GONE, Checkpoints
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.state import NetState, TrainState
from facedepth_jax.weight_files import load_weights, save_weights

# Orbax leaves the reads of a damaged checkpoint to an event loop that it has closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
ROOT = pathlib.Path(__file__).parents[1]
IDENTITY = {"seed": 1, "train": {"b1": 0.5}, "data": "abc"}


def state(step):
    rng = np.random.default_rng(step)
    params = {"out": {"kernel": jnp.asarray(rng.normal(size=(30, 40)), jnp.float32), "bias": jnp.zeros(2)}}
    net = NetState(params, {"m": jnp.array([np.pi])}, (jnp.int32(7),))
    return TrainState(jnp.int32(step), {"generator": net}, {})


def same(a, b):
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def save(folder, *steps):
    checkpoints = Checkpoints(folder, IDENTITY)
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
    allows = Checkpoints(folder, IDENTITY, allow_mismatch=True)
    assert allows.restore(state(0)) and not allows.mismatched  # there was none
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


# ---- damage ----


VITAL = {"_CHECKPOINT_METADATA", "state/_METADATA", "state/manifest.ocdbt"}


def ours(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "facedepth_jax.checkpoint"]


@pytest.mark.parametrize("kind", KINDS)
def test_damage_to_any_file(folder, tmp_path, kind, caplog):
    """Either the very same arrays come back, or one warning names the checkpoint and the one before is taken."""
    names = {str(path.relative_to(folder / "00000020")) for path in (folder / "00000020").rglob("*") if path.is_file()}
    found = set()
    for name in sorted(names):
        caplog.clear()
        with damaged(folder / "00000020" / name, kind, tmp_path):
            restored = restore(folder)
            if ours(caplog):
                assert same(restored, state(10)), name
                assert re.fullmatch("The checkpoint of step 20 is damaged: .*. Taking an older one.", *ours(caplog))
                found.add(name)
            else:
                assert same(restored, state(20)), name
    caplog.clear()
    assert same(restore(folder), state(20)) and not caplog.records
    assert len(names) > 8
    if kind in ("a link", "a pipe"):
        assert found == names
    elif "flipped" not in kind:
        assert VITAL <= found
    # Copies from before Orbax merged them, and marks, hold nothing that is read; the arrays' files do.
    assert any("/d/" in name for name in found)


def empty(path, _):
    shutil.rmtree(path)
    path.mkdir()


def other_arrays(path, _):
    shutil.rmtree(path / "state")
    shutil.copytree(path.with_name("00000010") / "state", path / "state")


def other_metadata(path, _):
    shutil.copy(path.with_name("00000010") / "_CHECKPOINT_METADATA", path)


def change_metadata(before, after):
    def change(path, _):
        text = (path / "_CHECKPOINT_METADATA").read_text()
        assert before in text
        (path / "_CHECKPOINT_METADATA").write_text(text.replace(before, after))

    return change


@pytest.mark.parametrize(
    "harm",
    {
        "empty": empty,
        "a file": lambda path, _: (shutil.rmtree(path), path.write_text("")),
        "a link": link,
        "a link to nowhere": lambda path, _: (shutil.rmtree(path), path.symlink_to("nowhere")),
        "a link more": lambda path, _: (path / "state" / "more").symlink_to("/"),
        "a directory that is a link": lambda path, target: link(path / "state", target),
        "the arrays of another step": other_arrays,
        "the metadata of another step": other_metadata,
        "all of another step": lambda path, _: (shutil.rmtree(path), shutil.copytree(path.with_name("00000010"), path)),
        "another seed": change_metadata('"seed": 1', '"seed": 3'),  # or it would seem to be another run's
        "another name": change_metadata('"seed": 1', '"seeds": 1'),
        "no metadata of ours": change_metadata('"custom_metadata"', '"custom_metadat"'),
        "no seal": change_metadata('"sha256"', '"sha257"'),
        "no step": change_metadata('"step"', '"stop"'),
        "metadata of another type": lambda path, _: (path / "_CHECKPOINT_METADATA").write_text("[3]"),
    }.items(),
    ids=lambda harm: harm[0],
)  # fmt: skip
def test_damage_to_a_step_as_a_whole(folder, tmp_path, harm, caplog):
    harm[1](folder / "00000020", tmp_path / "target")
    assert same(restore(folder), state(10)) and re.match("The checkpoint of step 20 is damaged: ", *ours(caplog))
    shutil.rmtree(folder / "00000010")
    with pytest.raises(FaceDepthError, match="All checkpoints in .* are damaged: put back a copy, or remove"):
        restore(folder)
    save(folder, 20)  # over it, as a run does that went on from before
    assert same(restore(folder), state(20))


def rename(arrays):
    arrays["nets"]["generator"]["params"]["out"]["weights"] = arrays["nets"]["generator"]["params"]["out"].pop("kernel")


def change_kernel(change):
    def apply(arrays):
        out = arrays["nets"]["generator"]["params"]["out"]
        out["kernel"] = change(out["kernel"])

    return apply


@pytest.mark.parametrize(
    "change",
    [
        rename,
        change_kernel(lambda x: x[::-1].copy()),
        change_kernel(lambda x: x.reshape(40, 30)),
        change_kernel(lambda x: x.view(np.int32)),
        change_kernel(lambda x: np.nextafter(x, np.float32(9))),
        lambda arrays: arrays.update(more=np.zeros(1)),
        lambda arrays: arrays.pop("step"),
    ],
)
def test_names_shapes_types_and_bytes_of_the_arrays_count(folder, change):
    """Orbax writes other arrays, whole in themselves, under the same metadata."""
    directory = folder / "00000020"
    metadata, arrays = ocp.metadata(directory).custom_metadata, ocp.load(directory)
    shutil.rmtree(directory)
    ocp.save(directory, arrays, custom_metadata=metadata)
    assert same(restore(folder), state(20))
    change(arrays)
    shutil.rmtree(directory)
    ocp.save(directory, arrays, custom_metadata=metadata)
    assert same(restore(folder), state(10))


def test_another_sign_of_zero_counts(tmp_path):
    save(tmp_path, 20)
    directory = tmp_path / "00000020"
    metadata, arrays = ocp.metadata(directory).custom_metadata, ocp.load(directory)
    arrays["nets"]["generator"]["params"]["out"]["bias"] *= -1
    shutil.rmtree(directory)
    ocp.save(directory, arrays, custom_metadata=metadata)
    with pytest.raises(FaceDepthError, match="All checkpoints in .* are damaged"):
        restore(tmp_path)


def test_a_checkpoint_of_an_older_version_is_not_called_damaged(tmp_path, caplog):
    ocp.save(tmp_path / "00000010", state(10))
    (tmp_path / "00000010.json").write_text("{}")  # the manifest of then
    with pytest.raises(FaceDepthError, match="00000010 was written by an older version and cannot be continued: .*"):
        restore(tmp_path)
    assert not ours(caplog)


def test_names_that_only_look_like_checkpoints(folder):
    for name in ("\u00b20000000", "7", "000000200", "00000030.orbax-checkpoint-tmp", "00000030.json"):
        (folder / name).mkdir()
    assert Checkpoints(folder, IDENTITY).steps() == [10, 20]


# ---- saves that did not end ----


def test_a_save_over_a_damaged_checkpoint_that_fails_leaves_none(folder, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("facedepth_jax.checkpoint.ocp.save_async", fail)
    checkpoints = Checkpoints(folder, IDENTITY)
    with pytest.raises(FaceDepthError, match="Cannot save the checkpoint .*00000020: No space left on device"):
        checkpoints.save(20, state(20))
    assert checkpoints.steps() == [10] and same(restore(folder), state(10))


def test_unfinished_saves_do_not_count_and_go(folder):
    (folder / "00000030.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (folder / "notes.txt").write_text("somebody's")
    assert Checkpoints(folder, IDENTITY).steps() == [10, 20] and same(restore(folder), state(20))
    assert sorted(os.listdir(folder)) == ["00000010", "00000020", "notes.txt"]


SAVES = """
import sys, time
sys.path[:0] = sys.argv[2:]
import test_checkpoint as t
checkpoints = t.Checkpoints(sys.argv[1], t.IDENTITY)
step = max(checkpoints.steps(), default=0)
while True:
    step += 1
    checkpoints.save(step, t.state(step))
    print(step, flush=True)
"""


def kill_while_saving(folder, delay_s, saves=3):
    """Kill a process that only saves, some time after its first saves; return the names of unfinished ones."""
    command = [sys.executable, "-c", SAVES, str(folder), str(ROOT), str(ROOT / "tests")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        for _ in range(saves):
            assert process.stdout.readline()
        time.sleep(delay_s)
        end = time.monotonic() + 60
        while not list(folder.glob("*.orbax-checkpoint-tmp")) and time.monotonic() < end:
            pass
        process.send_signal(signal.SIGKILL)
    return [path.name for path in folder.glob("*.orbax-checkpoint-tmp")]


def check_after_a_kill(folder):
    steps = Checkpoints(folder, IDENTITY).steps()
    assert same(restore(folder), state(steps[-1]))
    assert sorted(os.listdir(folder)) == [f"{step:08d}" for step in steps]


def test_sigkill_during_a_save(tmp_path, caplog):
    kill_while_saving(tmp_path, 0)
    check_after_a_kill(tmp_path)
    assert not caplog.records


def test_killed_while_an_old_one_is_removed(folder, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(path):
        for file in list(path.rglob("*"))[::2]:
            file.unlink() if file.is_file() else None
        raise Killed

    save(folder, 30)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(Killed):
            save(folder, 40)
    assert Checkpoints(folder, IDENTITY).steps() == [20, 30, 40] and list(folder.glob("00000010*"))
    assert same(restore(folder), state(40)) and not list(folder.glob("00000010*"))


def test_an_old_one_that_cannot_be_removed_stops_nothing(folder, monkeypatch, caplog):
    def busy(path):
        raise OSError(16, "Device or resource busy", str(path))

    save(folder, 30)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", busy)
        save(folder, 40)
    assert re.search("old checkpoint .*00000010 is left: .* busy", caplog.text)
    assert Checkpoints(folder, IDENTITY).steps() == [20, 30, 40] and same(restore(folder), state(40))
    assert not list(folder.glob("00000010*"))


class Fails:
    """A response of Orbax's to a save that fails in the background."""

    def __init__(self, error):
        self._error = error

    def result(self):
        raise self._error


@pytest.mark.parametrize("error", GONE)
def test_that_another_process_has_gone_is_not_a_failed_save(tmp_path, monkeypatch, error):
    """It ends with another code, by which the run is started again."""

    def gone(*_, **__):
        raise error("another process")

    with monkeypatch.context() as patch:
        patch.setattr("facedepth_jax.checkpoint.ocp.save_async", gone)
        with pytest.raises(error, match="another process"):
            Checkpoints(tmp_path, IDENTITY).save(1, state(1))
    monkeypatch.setattr("facedepth_jax.checkpoint.ocp.save_async", lambda *_, **__: Fails(error("another process")))
    with pytest.raises(error, match="another process"):
        save(tmp_path, 1)


def test_a_save_that_failed_in_the_background_is_an_error_at_the_next_step(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, IDENTITY)
    checkpoints.check()
    checkpoints.save(1, state(1))
    checkpoints.finish()
    checkpoints.check()
    full = Fails(OSError(28, "No space left on device"))
    monkeypatch.setattr("facedepth_jax.checkpoint.ocp.save_async", lambda *_, **__: full)
    checkpoints.save(2, state(2))
    with pytest.raises(FaceDepthError, match="Saving a checkpoint to .* failed .*No space left"):
        for _ in range(2000):  # steps, each of 10 ms
            checkpoints.check()
            time.sleep(0.01)
    checkpoints.check()  # once
    assert same(restore(tmp_path), state(1))


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FaceDepthError, match="Cannot save the checkpoint"):
        Checkpoints(tmp_path / "file", IDENTITY).save(1, state(1))


def test_a_place_without_the_right_to_write():
    """Whoever runs the test: root may write anywhere, so be nobody."""
    folder = pathlib.Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(FaceDepthError, match="Cannot save the checkpoint .*: Permission denied"):
            Checkpoints(folder / "checkpoints", IDENTITY).save(1, {"x": np.zeros(1)})
    finally:
        if root:
            os.seteuid(0)
        folder.rmdir()


FULL = """
import os, resource, sys
sys.path[:0] = sys.argv[2:]
import numpy as np
from facedepth_jax.checkpoint import Checkpoints
from facedepth_jax.errors import FaceDepthError

state = {"x": np.random.default_rng(0).integers(0, 2**31, 100_000).astype(np.int32)}
checkpoints = Checkpoints(sys.argv[1], {})
checkpoints.save(1, state)
checkpoints.finish()
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))  # a full disk: no file can grow beyond
try:
    checkpoints.save(2, state)
    checkpoints.finish()
except FaceDepthError as error:
    print(error, flush=True)
os._exit(0)
"""


def test_a_full_disk(tmp_path):
    """By the limit of a file's size, which ends in the same calls as a full disk."""
    command = [sys.executable, "-c", FULL, str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert re.fullmatch("Saving a checkpoint to .* failed .*File too large.*: the one before .*\n", done.stdout), done
    assert Checkpoints(tmp_path, {}).steps() == [1]


# ---- several processes ----


def test_the_first_process_chooses(folder, tmp_path, monkeypatch):
    """The others take its step, whatever they see, and whether the identity differed."""
    sent = []

    def broadcast(values):
        sent.append(values)
        return sent[0] if jax.process_index() else values

    monkeypatch.setattr("facedepth_jax.checkpoint.multihost_utils.broadcast_one_to_all", broadcast)
    assert Checkpoints(folder, {}, allow_mismatch=True).restore(state(0))
    monkeypatch.setattr("facedepth_jax.checkpoint.jax.process_index", lambda: 1)
    (folder / "00000030").mkdir()
    (folder / "00000040.orbax-checkpoint-tmp").mkdir()  # the first may be at it
    other = Checkpoints(folder, IDENTITY)
    assert same(other.restore(state(0)), state(20)) and other.mismatched
    assert (folder / "00000040.orbax-checkpoint-tmp").exists()
    with pytest.raises(FaceDepthError, match="the first process has read .*none/00000020: all hosts must share"):
        restore(tmp_path / "none")
    monkeypatch.undo()
    other = Checkpoints(tmp_path / "other", {"another": "run"})
    other.save(20, state(20))
    other.finish()
    monkeypatch.setattr("facedepth_jax.checkpoint.multihost_utils.broadcast_one_to_all", broadcast)
    monkeypatch.setattr("facedepth_jax.checkpoint.jax.process_index", lambda: 1)
    with pytest.raises(FaceDepthError, match="not as they were written; the first process has read .*other/00000020"):
        restore(tmp_path / "other")


TWO = """
import pathlib, shutil, sys
index, port, folder = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
sys.path[:0] = sys.argv[4:]
from facedepth_jax import devices, runtime

runtime.join(f"{index}/2@localhost:{port}")
import jax, numpy as np
from facedepth_jax.checkpoint import Checkpoints
from facedepth_jax.errors import FaceDepthError

mesh = devices.make_mesh()
state = devices.put_everywhere(mesh, {"x": np.arange(6.0, dtype=np.float32), "step": np.int32(0)})
step_fn = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)


def restore(folder, identity={"seed": 1}, **options):
    checkpoints = Checkpoints(folder, identity, **options)
    try:
        found = checkpoints.restore(state)
    except FaceDepthError as error:
        return f"error: {error}"
    if found is None:
        return None
    assert all(leaf.sharding == devices.replicated(mesh) for leaf in jax.tree.leaves(found))
    x = [np.asarray(shard.data) for shard in found["x"].addressable_shards]
    assert all(np.array_equal(part, np.arange(6) + int(found["step"])) for part in x)
    return int(found["step"]), checkpoints.mismatched


def say(*what):
    print(*what, flush=True)


say(restore(folder))
checkpoints = Checkpoints(folder, {"seed": 1})
for step in range(1, 5):
    state = step_fn(state)
    checkpoints.save(step, state)
checkpoints.finish()
say(restore(folder))
say(restore(folder, {"seed": 2}))
say(restore(folder, {"seed": 2}, allow_mismatch=True))
say(restore(folder if index == 0 else folder / "none"))
say(restore(folder if index == 1 else folder / "none"))
if index == 0:
    (folder / "00000004" / "_CHECKPOINT_METADATA").write_text("{")
say(restore(folder))
if index == 0:
    for step in (2, 3):
        (folder / f"{step:08d}" / "state" / "manifest.ocdbt").unlink()
say(restore(folder))
"""


def test_two_processes_agree_and_none_waits(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-c", TWO]
    places = [port, str(tmp_path / "checkpoints"), str(ROOT)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    both = [subprocess.Popen([*command, str(i), *places], env=env, **pipes) for i in range(2)]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    first, second = ([line for line in out.splitlines() if not line.startswith("[Gloo]")] for out, _ in said)
    other = "error: Another process cannot restore the checkpoint: see its message."
    assert first[:2] == second[:2] == ["None", "(4, False)"]
    assert re.match(r"error: .* belongs to a run with seed = 1 \(not 2\)", first[2]) and second[2] == other
    assert first[3] == second[3] == "(4, True)"
    assert first[4] == other and re.search("00000004.* all hosts must share WORKDIR", second[4])
    assert first[5:7] == second[5:7] == ["None", "(3, False)"]
    assert re.match("error: All checkpoints in .* are damaged", first[7]) and second[7] == other
    assert len(first) == len(second) == 8


# ---- other runs ----


def test_going_on_after_damage_writes_over_it(folder):
    flip(folder / "00000020" / "state" / "_METADATA", 0)
    assert same(restore(folder), state(10))
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
    with pytest.raises(FaceDepthError, match=f"belongs to a run with {difference}: .* or --allow_mismatch"):
        restore(folder, IDENTITY | change)


@pytest.mark.parametrize("change, difference", OTHERS)
def test_allow_mismatch_goes_on_and_logs_the_difference(folder, change, difference, caplog):
    checkpoints = Checkpoints(folder, IDENTITY | change, allow_mismatch=True)
    assert same(checkpoints.restore(state(0)), state(20)) and checkpoints.mismatched
    assert re.search(f"as --allow_mismatch allows, from a checkpoint with {difference}", caplog.text)
    checkpoints.save(30, state(30))  # is the new run's
    checkpoints.finish()
    assert same(restore(folder, IDENTITY | change), state(30))
    with pytest.raises(FaceDepthError, match="belongs to a run with"):
        restore(folder)


def test_a_state_of_another_shape_is_one_sentence(folder):
    like = state(0)
    smaller = {"out": {"kernel": jnp.zeros((3, 5)), "bias": jnp.zeros(2)}}
    other = NetState(smaller, {"m": jnp.zeros(1)}, (jnp.int32(0),))
    more = NetState(like.nets["generator"].params, {"m": jnp.zeros(1), "v": jnp.zeros(1)}, (jnp.int32(0),))
    for net, sentence in ((other, r"params/out/kernel has the shape \(30, 40\) there and \(3, 5\) here"),
                          (more, r"batch_stats/v has the shape None there and \(1,\) here")):  # fmt: skip
        with pytest.raises(FaceDepthError, match=f"does not fit the nets of this run: nets/generator/{sentence}"):
            Checkpoints(folder, IDENTITY, allow_mismatch=True).restore(TrainState(jnp.int32(0), {"generator": net}, {}))


# ---- how many are kept ----


def test_keeps_the_latest(tmp_path):
    checkpoints = save(tmp_path, 1, 2, 3, 4, 5)
    assert checkpoints.steps() == [3, 4, 5]
    assert sorted(os.listdir(tmp_path)) == ["00000003", "00000004", "00000005"]


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
        flip(folder / f"{step:08d}" / "state" / "_METADATA", 0)
    checkpoints = Checkpoints(folder, IDENTITY)
    assert same(checkpoints.restore(state(0)), state(10))
    for step in (12, 14):
        checkpoints.save(step, state(step))
    checkpoints.finish()
    assert checkpoints.steps() == [10, 12, 14]


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


@pytest.mark.slow
def test_a_flipped_bit_is_never_restored(tmp_path, caplog):
    """Anywhere in any file, small ones as often as large ones: the older checkpoint, or the very same arrays."""
    folder, rng, counts = tmp_path / "checkpoints", random.Random(0), collections.Counter()
    save(folder, 10, 20)
    files = sorted(path for path in (folder / "00000020").rglob("*") if path.is_file() and path.stat().st_size)
    for _ in range(1000):
        path = rng.choice(files)
        whole = path.read_bytes()
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        caplog.clear()
        restored = restore(folder)
        if not ours(caplog):
            assert same(restored, state(20)), path
            counts["restored the same"] += 1
        else:
            assert same(restored, state(10)), path
            counts["found by the digest" if "not as they were written" in ours(caplog)[0] else "refused by Orbax"] += 1
        path.write_bytes(whole)
    print(counts)
    assert min(counts["found by the digest"], counts["refused by Orbax"]) > 50


@pytest.mark.slow
def test_sigkill_during_twenty_saves(tmp_path, caplog):
    """The same folder goes on from kill to kill; the first runs stop before an old one is to be removed."""
    rng, under_way = random.Random(0), 0
    for _ in range(20):
        under_way += bool(kill_while_saving(tmp_path, rng.uniform(0, 0.1)))
        check_after_a_kill(tmp_path)
    assert under_way >= 10 and not caplog.records


@pytest.mark.slow
def test_sigkill_during_the_first_save(tmp_path):
    """It is a fresh start."""
    for _ in range(20):
        kill_while_saving(tmp_path, 0, saves=0)
        found = restore(tmp_path)
        if found is None:
            return
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
    raise AssertionError("it was always over before")
