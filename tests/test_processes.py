"""Several devices, several processes: through the program itself, a run is the same on any of them and may move from
one to another. Eight CPUs are had by a flag that only a fresh process can take."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_evaluation
from small import lines, results, weights, write_arrays

from facedepth_jax import evaluation, main, verification
from facedepth_jax.checkpoint import Checkpoints
from facedepth_jax.depth_code import DepthCode
from facedepth_jax.models import siamese
from facedepth_jax.state import NetState

ROOT = pathlib.Path(__file__).parents[1]
SIZE = 32
CODE = DepthCode()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Arrays of noise, 21 + 7 + 5 frames of three people each, in `data`."""
    path = tmp_path_factory.mktemp("processes")
    splits = ["train"] * 21 + ["validation"] * 7 + ["test"] * 5
    subjects = [f"{split}{i % 3}" for i, split in enumerate(splits)]
    rng = np.random.default_rng(0)
    shape = (len(splits), SIZE, SIZE)
    gray, depth_mm = rng.integers(0, 256, shape, np.uint8), rng.integers(500, 2500, shape)
    write_arrays(path / "data", gray, depth_mm, subjects, splits, face_mm=320.0)
    return path


def begin(command, devices, processes):
    """Start the command in so many processes with so many devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    several = [[f"--process={i}/{processes}@localhost:{port}"] for i in range(processes)] if processes > 1 else [[]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, *command]
    return [
        subprocess.Popen([*command, *more], cwd=ROOT, env=os.environ | {"XLA_FLAGS": flags}, **pipes)
        for more in several
    ]


def start(command, devices, processes):
    """Run the same to its end; return what each process printed."""
    started = begin(command, devices, processes)
    printed = [process.communicate(timeout=600) for process in started]
    assert [process.returncode for process in started] == [0] * processes, printed
    return [out for out, _ in printed]


def flags_of(place, name, steps):
    """Return the program's flags for a training up to `steps`."""
    values = {
        "data.dir": place / "data",
        "data.dataset": "",
        "data.size": SIZE,
        "width": 2,
        "train.batch_size": 8,
        "train.learning_rate": 1e-3,
        "train.steps": steps,
        "every.log": 1,
        "every.save": 1,
    }
    return [
        "--config=configs/folder.py:ae",
        f"--workdir={place}/{name}",
        *(f"--config.{name}={value}" for name, value in values.items()),
    ]


def train(place, name, *, steps, devices=1, processes=1):
    """Run the program up to `steps`; return what each process printed. One device: in this process."""
    if devices == processes == 1:
        main.main(flags_of(place, name, steps))
        return []
    return start(["-m", "facedepth_jax.main", *flags_of(place, name, steps)], devices, processes)


@pytest.fixture(scope="module")
def whole(place):
    """Two steps on one device, and six that nothing disturbed."""
    train(place, "whole/two_steps", steps=2)
    train(place, "whole/six_steps", steps=6)
    return place / "whole"


def check_same(workdir, whole):
    """Examples in another order change the losses in the second digit, a batch norm by device in the first."""
    for line, expected in zip(lines(workdir), lines(whole), strict=True):
        assert line == pytest.approx(expected, rel=1e-4), expected["step"]
    for name, expected in weights(whole).items():  # 1e-3 a step
        np.testing.assert_allclose(weights(workdir)[name], expected, rtol=0, atol=2e-5, err_msg=name)
    found, expected = results(workdir), results(whole)
    for part in ("test", "validation", "baseline_mean_map"):
        assert counts(found[part]) == counts(expected[part])
        for column in ("all", "valid", "mm"):
            assert found[part][column] == pytest.approx(expected[part][column], rel=1e-4), (part, column)
    assert found["step"] == expected["step"]


def counts(result):
    return {name: value for name, value in result.items() if name.startswith("n")}


def files(workdir):
    """Name the files of a run but for checkpoints and events."""
    found = {path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file()}
    return {str(path) for path in found if path.parts[0] not in ("checkpoints", "tensorboard")}


EVALUATE = """
import json, sys
sys.path[:0] = ["tests"]
from facedepth_jax import devices, runtime

place, *process = sys.argv[1:]
if process:
    runtime.join(process[0].removeprefix("--process="))
import jax, numpy as np
from test_evaluation import CODE, estimate, ev
from test_processes import BATCH_SIZES, ROWS, verifier_of
from facedepth_jax import verification
from facedepth_jax.data import arrays

noise, pairs = arrays.open(f"{place}/noise"), arrays.open(f"{place}/pairs")
found = {}
for count in (1, 2, 4, 8) if jax.process_count() == 1 else [jax.device_count()]:
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("data",))
    measured = []
    for rows in ROWS:
        for ev.BATCH in [size // count for size in BATCH_SIZES]:
            measured.append(ev.evaluate(estimate, noise, range(rows), CODE, mesh))
    verifier = verifier_of(lambda net_state: devices.put_everywhere(mesh, net_state))
    found[count] = measured, verification.verify(verifier, verification.true_depth(pairs), pairs, "test")
print(json.dumps(found))
"""
ROWS, BATCH_SIZES = (1, 7, 8, 21), (8, 16)


def verifier_of(put):
    """Make a verifier of random weights."""
    module = siamese.Siamese(width=2)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 96, 96, 2)), train=False))
    rng = np.random.default_rng(5)
    weights = jax.tree.map(lambda leaf: rng.uniform(-0.3, 0.3, leaf.shape).astype(np.float32), shapes)
    weights["batch_stats"] = jax.tree.map(lambda leaf: leaf + 1, weights["batch_stats"])
    return verification.Verifier(module, put(NetState(weights["params"], weights["batch_stats"], None)), CODE)


@pytest.fixture(scope="module")
def measured(place):
    """In `noise` frames to evaluate, in `pairs` ten frames of three people; the figures of both, one by one."""
    noise = test_evaluation.make_arrays(place / "noise")
    lists = {"test": [(f"f{a}", f"f{b}", int(a % 3 == b % 3)) for b in range(10) for a in range(b)]}
    depth_mm = np.random.default_rng(0).integers(0, 2500, (10, 96, 96))
    subjects = [f"s{i % 3}" for i in range(10)]
    data = write_arrays(place / "pairs", 0 * depth_mm, depth_mm, subjects, ["test"] * 10, pairs=lists)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "BATCH", 1)
        by_one = [evaluation.evaluate(test_evaluation.estimate, noise, range(rows), CODE) for rows in ROWS]
        alone = [result for result in by_one for _ in BATCH_SIZES]
    pairs = verification.verify(verifier_of(lambda x: x), verification.true_depth(data), data, "test")
    assert pairs["n"] == 45
    return alone, pairs


def check_measured(measured, printed, expected_counts):
    """Check what EVALUATE has printed in each process."""
    alone, pairs = measured
    found = [figures for out in printed for figures in json.loads(out.splitlines()[-1]).items()]
    assert [count for count, _ in found] == expected_counts
    for _, (measured, verified) in found:
        for got, expected in zip(measured, alone, strict=True):
            assert counts(got) == counts(expected)
            for column in ("all", "valid", "mm"):
                assert got[column] == pytest.approx(expected[column], rel=1e-6)
        assert verified == found[0][1][1]
        assert verified["cells"] == pairs["cells"] and verified["loss"] == pytest.approx(pairs["loss"], rel=1e-5)


@pytest.mark.slow
def test_a_run_moves_between_one_and_two_processes(place, whole):
    """Each leg goes on with what another number of devices or processes has saved."""
    legs = [(1, 2), (8, 1), (4, 1), (1, 1), (1, 2)]
    for steps, (devices, processes) in enumerate(legs, 2):
        printed = train(place, "moved", steps=steps, devices=devices, processes=processes)
        if steps == 2:  # the first alone speaks
            first, second = printed
            check_same(place / "moved", whole / "two_steps")
            assert files(place / "moved") == files(whole / "two_steps")
            assert len(list((place / "moved/tensorboard").iterdir())) == 1
            assert "samples/test.png" in first and "step 2: " in first
            assert [line for line in second.splitlines() if not line.startswith("[Gloo]")] == []
    check_same(place / "moved", whole / "six_steps")


@pytest.mark.slow
def test_evaluation_loses_no_frame_however_it_is_divided(place, measured):
    """Every number of devices, batches and remainders, the verification too, against batches of one."""
    check_measured(measured, start(["-c", EVALUATE, str(place)], 8, 1), ["1", "2", "4", "8"])


@pytest.mark.slow
def test_two_processes_evaluate_as_one(place, measured):
    check_measured(measured, start(["-c", EVALUATE, str(place)], 2, 2), ["4", "4"])


@pytest.mark.slow
def test_one_of_two_processes_gets_the_signal(place):
    """Both end, at the same step, which is saved."""
    run = place / "stopped"
    processes = begin(["-m", "facedepth_jax.main", *flags_of(place, "stopped", 1_000_000)], devices=1, processes=2)
    try:
        log, end = run / "metrics.jsonl", time.monotonic() + 300
        while not (log.exists() and log.read_text()) and time.monotonic() < end:
            assert {process.poll() for process in processes} == {None}, processes[0].communicate()
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)
        printed = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], printed
    step = Checkpoints(run / "checkpoints", {}).steps()[-1]
    last = printed[0][0].splitlines()[-1]
    assert last == f"Stopped at step {step}, which is saved: the same command continues.", printed
