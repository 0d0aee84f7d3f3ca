"""Several devices, several processes: through the program itself, a run is the same on any of them and may move from
one to another. Eight CPUs are had by a flag that only a fresh process can take."""

import json
import os
import pathlib
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
import test_evaluate

from facedepth_jax import verification
from facedepth_jax.data import arrays
from facedepth_jax.depth_code import DepthCode
from facedepth_jax.models import siamese
from facedepth_jax.state import NetState

ROOT = pathlib.Path(__file__).parents[1]
SIZE = 32
CODE = DepthCode()
CACHE = tempfile.TemporaryDirectory()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Arrays of noise, 21 + 7 + 5 frames of three people each, in `data`."""
    path = tmp_path_factory.mktemp("processes")
    splits = ["train"] * 21 + ["validation"] * 7 + ["test"] * 5
    frames = {name: [kind(0)] * len(splits) for name, kind in arrays.COLUMNS.items()}
    frames |= {"frame": [f"f{i}" for i in range(len(splits))], "split": splits}
    frames["subject"] = [f"{split}{i % 3}" for i, split in enumerate(splits)]
    rng = np.random.default_rng(0)
    shape = (len(splits), SIZE, SIZE)
    images = [(rng.integers(0, 256, shape, np.uint8), rng.integers(500, 2500, shape).astype(np.uint16))]
    meta = {"crop": {"face_mm": 320.0}, "dataset": {"name": "folder"}}
    pair_lists = {"validation": [], "test": []}
    arrays.write(path / "data", frames=frames, images=images, size_px=SIZE, pair_lists=pair_lists, meta=meta)
    return path


def begin(command, devices, processes):
    """The command in so many processes with so many devices each."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        # Without optimisation it compiles in half the time.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": CACHE.name,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    several = [[f"--process={i}/{processes}@localhost:{port}"] for i in range(processes)] if processes > 1 else [[]]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen([*command, *told], cwd=ROOT, env=env, **pipes) for told in several]


def start(command, devices, processes):
    """The same to its end; what each said."""
    started = begin(command, devices, processes)
    said = [process.communicate(timeout=600) for process in started]
    assert [process.returncode for process in started] == [0] * processes, said
    return [out for out, _ in said]


def training(place, name, steps):
    """The program's command line, up to `steps`."""
    return [
        *(sys.executable, "-m", "facedepth_jax.main", "--config=configs/folder.py:ae", f"--workdir={place}/{name}"),
        *(f"--config.data.dir={place}/data", "--config.data.dataset=", f"--config.data.size={SIZE}"),
        *("--config.width=2", "--config.train.batch_size=8", "--config.train.learning_rate=1e-3"),
        *(
            f"--config.train.steps={steps}",
            "--config.every.log=1",
            "--config.every.save=2",
            "--config.every.evaluate=1",
        ),
    ]


def train(place, name, *, steps, devices=1, processes=1):
    """The program, up to `steps`."""
    return start(training(place, name, steps), devices, processes)


@pytest.fixture(scope="module")
def whole(place):
    """Two steps on one device, and six that nothing disturbed."""
    train(place, "whole/two_steps", steps=2)
    train(place, "whole/six_steps", steps=6)
    return place / "whole"


def lines(workdir):
    """What metrics.jsonl says of the numbers; the seconds are the machine's."""
    every = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "_sec" not in name} for line in every]


def check_same(workdir, whole):
    """Examples in another order change the losses in the second digit, a batch norm by device in the first."""
    for line, expected in zip(lines(workdir), lines(whole), strict=True):
        assert line == pytest.approx(expected, rel=1e-4), expected["step"]
    found, expected = (safetensors.numpy.load((d / "generator.safetensors").read_bytes()) for d in (workdir, whole))
    for name in expected:  # 1e-3 a step
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=2e-5, err_msg=name)
    results, expected = (json.loads((d / "results.json").read_text()) for d in (workdir, whole))
    for part in ("test", "validation", "baseline_mean_map"):
        assert {k: v for k, v in results[part].items() if k[0] == "n"} == {
            k: v for k, v in expected[part].items() if k[0] == "n"
        }
        for column in ("all", "valid", "mm"):
            assert results[part][column] == pytest.approx(expected[part][column], rel=1e-4), (part, column)
    assert results["step"] == expected["step"]


def files(workdir):
    return {str(path.relative_to(workdir)) for path in workdir.rglob("*") if path.is_file()} - {
        str(path.relative_to(workdir)) for top in ("checkpoints", "tensorboard") for path in (workdir / top).rglob("*")
    }


def test_two_processes_train_as_one_and_the_first_alone_speaks(place, whole):
    first, second = train(place, "moved", steps=2, processes=2)
    check_same(place / "moved", whole / "two_steps")
    assert files(place / "moved") == files(whole / "two_steps")
    assert len(list((place / "moved/tensorboard").iterdir())) == 1
    assert "samples/test.png" in first and "step 2: " in first
    assert [line for line in second.splitlines() if not line.startswith("[Gloo]")] == []


def test_a_run_moves_from_machine_to_machine(place, whole):
    """Each leg goes on with what another number of devices or processes has saved; the first is the test before."""
    for steps, (devices, processes) in enumerate([(8, 1), (4, 1), (1, 1), (1, 2)], 3):
        train(place, "moved", steps=steps, devices=devices, processes=processes)
    check_same(place / "moved", whole / "six_steps")


EVALUATE = """
import json, pathlib, sys

sys.path.insert(0, "tests")
from facedepth_jax import devices

if len(sys.argv) > 2:
    devices.join(sys.argv[2].removeprefix("--process="))
import jax, numpy as np
from test_evaluate import CODE, ev, make_arrays, predict
from test_processes import BATCH_SIZES, ROWS, verifier_of
from facedepth_jax import verification
from facedepth_jax.data import arrays

gray, depth_mm = make_arrays()
data = arrays.open(sys.argv[1])
found = {}
for count in (1, 2, 4, 8) if jax.process_count() == 1 else [jax.device_count()]:
    devices = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("data",))
    measured = [
        ev.evaluate(predict, gray, depth_mm, range(rows), CODE, batch_size, devices=devices)
        for rows in ROWS for batch_size in BATCH_SIZES
    ]
    verifier = verifier_of(lambda net_state: devices.put_everywhere(devices, net_state))
    found[count] = measured, verification.verify(verifier, verification.true_depth(data, CODE), data, "test")
print(json.dumps(found))
"""
ROWS, BATCH_SIZES = (1, 7, 8, 21), (8, 16)


def verifier_of(put):
    """Random weights."""
    module = siamese.Siamese(width=2)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 96, 96, 2)), train=False))
    rng = np.random.default_rng(5)
    weights = jax.tree.map(lambda leaf: rng.uniform(-0.3, 0.3, leaf.shape).astype(np.float32), shapes)
    weights["batch_stats"] = jax.tree.map(lambda leaf: leaf + 1, weights["batch_stats"])
    return verification.Verifier(module, put(NetState(weights["params"], weights["batch_stats"], None)), CODE)


def pairs_dir(place):
    """Ten frames of three people, and all pairs of them."""
    frames = {name: [kind(0)] * 10 for name, kind in arrays.COLUMNS.items()}
    frames |= {"frame": [f"f{i}" for i in range(10)], "subject": [f"s{i % 3}" for i in range(10)]}
    frames["split"] = ["test"] * 10
    pairs = [(f"f{a}", f"f{b}", int(a % 3 == b % 3)) for b in range(10) for a in range(b)]
    rng = np.random.default_rng(0)
    images = [(np.zeros((10, 96, 96), np.uint8), rng.integers(0, 2500, (10, 96, 96)).astype(np.uint16))]
    pair_lists = {"validation": [], "test": pairs}
    arrays.write(place / "pairs", frames=frames, images=images, size_px=96, pair_lists=pair_lists, meta={})
    return place / "pairs"


def test_evaluation_loses_no_frame_however_it_is_divided(place):
    """Every number of devices, two processes, batches and remainders, the verification too, against batches of one."""
    data = arrays.open(pairs_dir(place))
    gray, depth_mm = test_evaluate.make_arrays()
    net = test_evaluate.predict
    alone = [evaluate.evaluate(net, gray, depth_mm, range(rows), CODE, 1) for rows in ROWS for _ in BATCH_SIZES]
    pairs = verification.verify(verifier_of(lambda x: x), verification.true_depth(data, CODE), data, "test")
    assert pairs["n"] == 45
    command = [sys.executable, "-c", EVALUATE, str(data.path)]
    said = [*start(command, devices=8, processes=1), *start(command, devices=2, processes=2)]
    found = [figures for out in said for figures in json.loads(out.splitlines()[-1]).items()]
    assert [count for count, _ in found] == ["1", "2", "4", "8", "4", "4"]
    for _, (measured, verified) in found:
        for got, expected in zip(measured, alone, strict=True):
            assert {k: v for k, v in got.items() if k[0] == "n"} == {k: v for k, v in expected.items() if k[0] == "n"}
            for column in ("all", "valid", "mm"):
                assert got[column] == pytest.approx(expected[column], rel=1e-6)
        assert verified == found[0][1][1]
        assert verified["cells"] == pairs["cells"] and verified["loss"] == pytest.approx(pairs["loss"], rel=1e-5)


def test_one_of_two_processes_gets_the_signal(place):
    """Both end, at the same step, which is saved."""
    run = place / "stopped"
    processes = begin(training(place, "stopped", steps=1_000_000), devices=1, processes=2)
    try:
        log, end = run / "metrics.jsonl", time.monotonic() + 300
        while not (log.exists() and log.read_text()) and time.monotonic() < end:
            assert {process.poll() for process in processes} == {None}, processes[0].communicate()
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    *_, manifest = sorted((run / "checkpoints").glob("*.json"))
    step = json.loads(manifest.read_text())["step"]
    last = said[0][0].splitlines()[-1]
    assert last == f"Stopped at step {step}, which is saved: the same command continues.", said
