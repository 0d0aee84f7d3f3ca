"""Signals to a program: the first is a wish, the second of its kind an order; one of several processes is enough.

What each phase does with the wish is in the tests of the phases: test_train.py, test_prepare.py, test_report.py.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from facedepth_jax.data import arrays

ROOT = pathlib.Path(__file__).parents[1]
SIZE = 32

WAITS = """
import time
from facedepth_jax.stopping import stop_event
stop = stop_event()
print("ready", flush=True)
stop.wait()
print("stopping", flush=True)
time.sleep({seconds})
print("saved")
"""


@pytest.mark.parametrize(
    "first, second, code",
    [
        (signal.SIGTERM, signal.SIGINT, 0),  # launch/run.sh may send both for one wish
        (signal.SIGINT, signal.SIGTERM, 0),
        (signal.SIGTERM, signal.SIGTERM, -signal.SIGTERM),
        (signal.SIGINT, signal.SIGINT, -signal.SIGINT),
    ],
)
def test_the_second_of_a_kind_ends_at_once(first, second, code):
    seconds = 0.5 if code == 0 else 300
    command = [sys.executable, "-c", WAITS.format(seconds=seconds)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(first)
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(second)
        assert process.wait(60) == code
        assert process.stdout.read() == ("saved\n" if code == 0 else "")


@pytest.fixture
def data_dir(tmp_path):
    """Noise: 16 frames to train on, 4 and 4."""
    splits = ["train"] * 16 + ["validation"] * 4 + ["test"] * 4
    frames = {name: [kind(0)] * len(splits) for name, kind in arrays.COLUMNS.items()}
    frames |= {"frame": [f"f{i}" for i in range(24)], "subject": splits, "split": splits}
    shape = (len(splits), SIZE, SIZE)
    rng = np.random.default_rng(0)
    images = [(rng.integers(0, 256, shape, np.uint8), rng.integers(500, 2500, shape).astype(np.uint16))]
    meta = {"crop": {"face_mm": 320.0}, "dataset": {"name": "folder"}}
    pair_lists = {split: [] for split in arrays.PAIR_SPLITS}
    arrays.write(tmp_path / "data", frames=frames, images=images, size_px=SIZE, pair_lists=pair_lists, meta=meta)
    return tmp_path / "data"


def test_one_of_two_processes_gets_the_signal(data_dir, tmp_path):
    """Both end, at the same step, which is saved."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "facedepth_jax.main", "--config=configs/folder.py:ae", "--config.width=2"),
        *(f"--config.data.dir={data_dir}", "--config.data.dataset=", f"--config.data.size={SIZE}"),
        *("--config.train.batch_size=8", "--config.train.steps=1000000", f"--workdir={tmp_path}/run"),
        "--config.every.log=1",
    ]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [
        subprocess.Popen([*command, f"--process={i}/2@localhost:{port}"], cwd=ROOT, env=environment, **pipes)
        for i in range(2)
    ]
    try:
        log, end = tmp_path / "run/metrics.jsonl", time.monotonic() + 300
        while not (log.exists() and log.read_text()) and time.monotonic() < end:
            assert {process.poll() for process in processes} == {None}, processes[0].communicate()
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)
        said = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    *_, manifest = sorted((tmp_path / "run/checkpoints").glob("*.json"))
    step = json.loads(manifest.read_text())["step"]
    last = said[0][0].splitlines()[-1]
    assert last == f"Stopped at step {step}, which is saved: the same command continues.", said
