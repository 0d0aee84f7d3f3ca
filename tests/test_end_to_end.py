"""The programs as a user runs them, on a few synthetic faces: prepare, train, go on, report, predict, and bad input."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import cv2
import numpy as np
import pytest
import safetensors.numpy

ROOT = pathlib.Path(__file__).parent.parent
TINY = [
    "--config=configs/synthetic.py",
    "--config.width=2",
    "--config.train.batch_size=4",
    "--config.every.log=5",
    "--config.every.save=5",
    "--config.every.evaluate=10",
    "--config.data.options.subjects=4",
    "--config.data.options.frames_per_sequence=2",
    "--config.data.options.image_size=128",
    "--config.data.workers=0",
    "--config.data.size=32",
]
CACHE = tempfile.TemporaryDirectory()


def start(module, *args):
    command = [sys.executable, "-m", f"facedepth_jax.{module}", *map(str, args)]
    # The same nets are compiled again and again: once is enough.
    cache = {"JAX_COMPILATION_CACHE_DIR": str(CACHE.name), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | cache, **pipes)


def finish(process):
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def ok(module, *args):
    code, out, err = finish(start(module, *args))
    assert code == 0, out + err
    return out


def refused(module, *args):
    """The sentence with which a program refuses."""
    code, out, err = finish(start(module, *args))
    assert code not in (0, None), out
    assert "Traceback" not in err + out, err
    return err.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("end_to_end")


@pytest.fixture(scope="module")
def data(place):
    return f"--config.data.dir={place}/data"


@pytest.fixture(scope="module")
def run(place, data):
    """A run of 20 steps that was never disturbed."""
    workdir = place / "run"
    out = ok("main", *TINY, data, f"--workdir={workdir}", "--config.train.steps=20")
    return workdir, out


def weights(workdir):
    return safetensors.numpy.load((workdir / "generator.safetensors").read_bytes())


def lines(workdir):
    every = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "_sec" not in k} for line in every]


def test_a_run_leaves_what_the_readme_says(run):
    workdir, out = run
    for name in ("config.json", "metrics.jsonl", "results.json", "results.md", "generator.safetensors"):
        assert (workdir / name).stat().st_size > 0
    assert list((workdir / "tensorboard").iterdir())
    for name in ("samples/00000010.png", "samples/00000020.png", "samples/test.png"):
        assert cv2.imread(str(workdir / name)) is not None
    results = json.loads((workdir / "results.json").read_text())
    assert results["n_frames"] == results["test"]["n_frames"] == 10  # one of four people, five sequences of two frames
    assert len(results["test"]["all"]) == len(results["baseline_mean_map"]["valid"]) == 13
    assert f"{results['test']['mm']['mae_mm']:.2f}" in (workdir / "results.md").read_text()
    assert (workdir / "results.md").read_text() in out
    assert json.loads((workdir / "config.json").read_text())["loss"]["lam"] == results["lam"]
    steps = [line["step"] for line in lines(workdir) if "train/loss_g" in line]
    assert steps == [5, 10, 15, 20]


def test_twenty_steps_are_ten_and_ten_resumed(run, place, data):
    whole, _ = run
    workdir = place / "resumed"
    ok("main", *TINY, data, f"--workdir={workdir}", "--config.train.steps=10")
    assert any((weights(workdir)[name] != value).any() for name, value in weights(whole).items())
    ok("main", *TINY, data, f"--workdir={workdir}", "--config.train.steps=20")
    for name, value in weights(whole).items():
        np.testing.assert_array_equal(weights(workdir)[name], value, err_msg=name)
    assert lines(workdir) == lines(whole)
    assert (workdir / "results.json").read_bytes() == (whole / "results.json").read_bytes()


def test_sigterm_saves_and_the_same_command_goes_on(run, place, data):
    whole, _ = run
    workdir = place / "stopped"
    process = start("main", *TINY, data, f"--workdir={workdir}", "--config.train.steps=20")
    deadline = time.monotonic() + 300
    while not (workdir / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert code == 0, err
    assert re.search(r"[Ss]topped at step \d+, which is saved: the same command continues", out), out
    ok("main", *TINY, data, f"--workdir={workdir}", "--config.train.steps=20")
    for name, value in weights(whole).items():
        np.testing.assert_array_equal(weights(workdir)[name], value, err_msg=name)


def test_a_value_that_is_not_finite_stops_the_run(place, data):
    """At this rate the weights overflow: the run ends with the step's number, and no bad state is kept."""
    workdir = place / "poisoned"
    steps = ["--config.train.steps=20", "--config.every.save=1"]
    message = refused("main", *TINY, data, f"--workdir={workdir}", *steps, "--config.train.learning_rate=1e30")
    assert re.search(r"Step \d+: \w+ is (nan|inf)", message), message
    assert not (workdir / "results.json").exists() and not (workdir / "generator.safetensors").exists()
    for manifest in (workdir / "checkpoints").glob("*.json"):
        assert int(manifest.stem) < int(re.search(r"\d+", message).group())


def test_report_and_predict(run, place):
    workdir, _ = run
    ok("report", f"--out={place}/report", workdir)
    assert any((place / "report").glob("*.md")) and any((place / "report").glob("*.png"))
    image = np.tile(np.arange(200, dtype=np.uint8), (150, 1))
    cv2.imwrite(str(place / "face.png"), image)
    out = ok("predict", f"--run={workdir}", f"--out={place}/depth", place / "face.png")
    assert "mm" in out
    depth = cv2.imread(str(place / "depth/face_depth.png"), cv2.IMREAD_UNCHANGED)
    exact = np.load(place / "depth/face_depth.npy", allow_pickle=False)
    assert depth.dtype == np.uint16 and exact.dtype == np.float32
    np.testing.assert_allclose(depth, exact, atol=0.51)


def test_own_faces_in_a_folder(place):
    """Twelve people, two frames each, a dome in front of nothing; focal length and window by the config."""
    raw = place / "raw"
    raw.mkdir()
    y, x = np.mgrid[:60, :60]
    dome = np.hypot(x - 30, y - 30) < 20
    lines = ["frame,subject,sequence,gray,depth,head_x,head_y"]
    for i in range(24):
        depth = np.where(dome, 800 + 5 * i + np.hypot(x - 30, y - 30), 0).astype(np.uint16)
        cv2.imwrite(str(raw / f"{i}g.png"), np.where(dome, 100 + i, 20).astype(np.uint8))
        cv2.imwrite(str(raw / f"{i}d.png"), depth)
        lines.append(f"f{i},p{i // 2},1,{i}g.png,{i}d.png,30,30")
    (raw / "index.csv").write_text("\n".join(lines) + "\n")
    small = ["--config.width=2", "--config.data.size=32", "--config.train.batch_size=4", "--config.train.steps=2"]
    options = [f"--config.data.raw_dir={raw}", f"--config.data.dir={place}/own", "--config.data.options.focal=150.0"]
    out = ok("main", "--config=configs/folder.py:ae", *small, *options, f"--workdir={place}/own_run")
    assert "24 frames of 12 subjects, 32 px" in out
    results = json.loads((place / "own_run/results.json").read_text())
    assert results["dataset"] == "folder" and results["method"] == "ae" and results["lam"] is None
    assert results["n_frames"] % 2 == 0 and results["n_frames"] > 0  # people stay whole


def test_bad_input_is_one_sentence(run, place, data):
    workdir, _ = run
    assert "lam" in refused("main", "--config=configs/synthetic.py", "--config.loss.lamb=3.0")
    assert "configs/nothing.py" in refused("main", "--config=configs/nothing.py")
    assert "get_config" in refused("main", "--config=configs/base.py")
    assert "cgan, ae" in refused("main", "--config=configs/synthetic.py:nothing")
    assert "seed" in refused("main", *TINY, data, f"--workdir={workdir}", "--config.seed=2")
    assert "raw_dir" in refused("main", "--config=configs/folder.py", f"--workdir={place}/never")
    assert "subjects" in refused("main", *TINY, data, "--config.data.options.subjects=5", f"--workdir={place}/never")
    assert not (place / "never").exists()
