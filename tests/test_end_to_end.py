"""The programs as a user runs them, on a few synthetic faces: prepare, train, go on, evaluate, report, predict; their
API; a run from before the present keys; and bad input."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import cv2
import imageio.v3 as iio
import numpy as np
import pytest
from small import lines, results, sample_photo, weights

import facedepth_jax
from facedepth_jax import config as configs
from facedepth_jax import evaluate, main, predict
from facedepth_jax.checkpoint import Checkpoints
from facedepth_jax.data import arrays

ROOT = pathlib.Path(__file__).parent.parent
OLD_RUN = pathlib.Path(__file__).parent / "old_run"
FACES = ["subjects=4", "frames_per_sequence=2", "image_size=128"]
TINY = [
    "--config=configs/synthetic.py",
    "--config.width=2",
    "--config.train.batch_size=4",
    "--config.every.log=5",
    "--config.every.save=10",
    "--config.data.workers=0",
    "--config.data.size=32",
    *(f"--config.data.options.{option}" for option in FACES),
]


def start(module, *args, **env):
    command = [sys.executable, "-m", f"facedepth_jax.{module}", *map(str, args)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | env, **pipes)


def finish(process):
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def ok(module, *args, **env):
    code, out, err = finish(start(module, *args, **env))
    assert code == 0, out + err
    return out


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("end_to_end")


@pytest.fixture(scope="module")
def data(place):
    out = ok(
        "prepare",
        "--dataset=synthetic",
        f"--out={place}/data",
        "--size=32",
        "--workers=0",
        *(f"--{option}" for option in FACES),
        XLA_FLAGS="",  # the faces that a user gets: without optimisation three pixels are others
    )
    assert "40 frames of 4 subjects" in out
    return place / "data"


@pytest.fixture(scope="module")
def run(place, data):
    """A run of 20 steps that was never disturbed, and what it has printed."""
    workdir = place / "run"
    out = ok("main", *TINY, f"--config.data.dir={data}", f"--workdir={workdir}", "--config.train.steps=20")
    assert f"{data} is complete already" in out
    return workdir, out


def train_here(*args):
    """As `main` in a process of its own."""
    main.main([*TINY, *map(str, args)])


def test_a_run_leaves_what_the_readme_says(run):
    workdir, out = run
    for name in ("config.json", "metrics.jsonl", "results.json", "results.md"):
        assert (workdir / name).stat().st_size > 0
    assert weights(workdir) and weights(workdir, "discriminator") and list((workdir / "tensorboard").iterdir())
    for name in ("samples/00000010.png", "samples/00000020.png", "samples/test.png"):
        assert cv2.imread(str(workdir / name)) is not None
    found = results(workdir)
    assert found["test"]["n_frames"] == 10  # one of four people, five sequences of two frames
    assert len(found["test"]["all"]) == len(found["baseline_mean_map"]["valid"]) == 13
    assert f"{found['test']['mm']['mae_mm']:.2f}" in (workdir / "results.md").read_text()
    assert (workdir / "results.md").read_text() in out
    config = json.loads((workdir / "config.json").read_text())
    assert pathlib.Path(config["data"]["dir"]).is_absolute()
    assert [line["step"] for line in lines(workdir) if "train/loss_g" in line] == [5, 10, 15, 20]


def test_twenty_steps_are_ten_and_ten_resumed(run, place, data):
    whole, _ = run
    workdir = place / "resumed"
    for steps in (10, 20):
        train_here(f"--config.data.dir={data}", f"--workdir={workdir}", f"--config.train.steps={steps}")
        same = all((weights(workdir)[name] == value).all() for name, value in weights(whole).items())
        assert same == (steps == 20)
    assert lines(workdir) == lines(whole)
    assert (workdir / "results.json").read_bytes() == (whole / "results.json").read_bytes()


def wait_for(found, process, sec=300):
    end = time.monotonic() + sec
    while not found() and time.monotonic() < end:
        assert process.poll() is None, finish(process)
        time.sleep(0.02)


@pytest.mark.slow
def test_sigterm_ends_a_preparation_at_once_and_a_training_with_a_checkpoint(place):
    """The same command goes on after both; the weights are those of a run that nobody stopped."""
    own, workdir = place / "own", place / "stopped"
    command = [*TINY, f"--config.data.dir={own}", f"--workdir={workdir}", "--config.train.steps=1000000"]
    process = start("main", *command)
    wait_for((place / "own.parts").exists, process)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert code == -signal.SIGTERM and not own.exists() and os.listdir(workdir) == ["lock"], out + err

    log = workdir / "metrics.jsonl"
    process = start("main", *command)
    wait_for(lambda: log.exists() and log.read_text(), process)
    process.send_signal(signal.SIGTERM)
    code, out, err = finish(process)
    assert code == 0, err
    step = int(re.search(r"Stopped at step (\d+), which is saved: the same command continues\.\n$", out)[1])
    assert Checkpoints(workdir / "checkpoints", {}).steps()[-1] == step and not (workdir / "results.json").exists()

    for name in ("stopped", "in_peace"):
        train_here(f"--config.data.dir={own}", f"--workdir={place / name}", f"--config.train.steps={step + 2}")
    for name, value in weights(place / "in_peace").items():
        np.testing.assert_array_equal(weights(workdir)[name], value, err_msg=name)


def test_evaluate_and_report(run, place, data):
    workdir, _ = run
    out = ok("evaluate", f"--run={workdir}", f"--data={data}", "--split=test")
    expected = results(workdir)["test"]["mm"]["mae_mm"]
    assert f"{expected:.2f}" in out
    (file,) = (workdir / "evaluations").iterdir()
    assert json.loads(file.read_text())["test"]["mm"]["mae_mm"] == pytest.approx(expected, rel=1e-6)
    ok("report", f"--out={place}/report", workdir, PYTHONIOENCODING="ascii")  # with arrows in its tables
    assert any((place / "report").glob("*.md")) and any((place / "report").glob("*.png"))


def test_predict_and_the_api_give_the_same_maps(run, place):
    """For gray and colour, the whole image, a box and a crop by Eq. 6."""
    workdir, _ = run
    color = np.random.default_rng(0).integers(0, 256, (15, 20, 3), np.uint8)
    color = cv2.resize(color, (200, 150), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(place / "color.png"), color[..., ::-1])
    gray = color[..., 1]
    cv2.imwrite(str(place / "gray.png"), gray)
    images = place / "gray.png", place / "color.png"
    out = ok("predict", f"--run={workdir}", f"--out={place}/depth", "--whole", "--distance_mm=800", *images)
    assert "mm" in out
    depth = cv2.imread(str(place / "depth/gray_depth.png"), cv2.IMREAD_UNCHANGED)
    exact = np.load(place / "depth/gray_depth.npy", allow_pickle=False)
    assert depth.dtype == np.uint16 and exact.dtype == np.float32 and exact.shape == (32, 32)
    np.testing.assert_allclose(depth, exact, atol=0.51)

    net = facedepth_jax.load(workdir)
    for name, image in (("gray", gray), ("color", color)):  # another size of batch sums in another order
        expected = np.load(place / f"depth/{name}_depth.npy")
        np.testing.assert_allclose(net(image, distance_mm=800.0), expected, rtol=1e-5)
    for name, flags, where in (
        ("box", ["--box=-20,30,90,90", "--distance_mm=700"], {"box": (-20, 30, 90, 90), "distance_mm": 700.0}),
        (
            "eq6",
            ["--center=100,70", "--distance_mm=900", "--focal_px=250"],
            {"center": (100, 70), "distance_mm": 900.0, "focal_px": 250.0},
        ),
    ):
        assert predict.main([f"--run={workdir}", f"--out={place}/{name}", *flags, str(place / "color.png")]) == 0
        np.testing.assert_allclose(net(color, **where), np.load(place / f"{name}/color_depth.npy"), rtol=1e-6)


def test_the_api_as_documented(run, data, tmp_path, monkeypatch):
    """docs/api.md, block by block."""
    workdir, _ = run
    gray = np.random.default_rng(0).integers(0, 256, (480, 640), np.uint8)
    cv2.imwrite(str(tmp_path / "face.png"), gray)
    iio.imwrite(tmp_path / "photo.jpg", sample_photo())
    monkeypatch.setattr(configs, "SHIPPED", workdir)
    (tmp_path / "runs").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "runs/demo").symlink_to(workdir)
    (tmp_path / "data/synthetic").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = re.findall("```python\n(.*?)```", (ROOT / "docs/api.md").read_text(), re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        exec(block, names)
    net = facedepth_jax.load(workdir)
    np.testing.assert_array_equal(names["map_mm"], net(gray, box=(205, 115, 210, 210)))
    np.testing.assert_array_equal(names["depth_mm"], net(gray, box=(205, 115, 210, 210), distance_mm=800.0))
    np.testing.assert_array_equal(
        names["depths_mm"][0], net(gray, center=(310, 220), distance_mm=800.0, focal_px=525.0)
    )
    assert names["depths_mm"].shape == (3, 32, 32)
    assert names["found"]["mm"] == pytest.approx(results(workdir)["test"]["mm"], rel=1e-6)


def test_a_run_from_before_the_present_keys_is_read(data, tmp_path):
    """It makes the maps that it made, and can be measured."""
    run = tmp_path / "run"
    shutil.copytree(OLD_RUN, run)
    assert evaluate.main([f"--run={run}", f"--data={data}"]) == 0
    (file,) = (run / "evaluations").iterdir()
    assert json.loads(file.read_text())["test"]["n_frames"] == len(arrays.open(data).rows("test"))
    with np.load(run / "samples/test.npz", allow_pickle=False) as sample:
        maps = facedepth_jax.load(run).batch(sample["gray"])
        np.testing.assert_allclose(maps, sample["estimate_mm"], rtol=1e-5)


def test_own_faces_in_a_folder(place):
    """Twelve people, two frames each, a dome in front of nothing; focal length and window by the config."""
    raw = place / "raw"
    raw.mkdir()
    y, x = np.mgrid[:60, :60]
    dome = np.hypot(x - 30, y - 30) < 20
    rows = ["frame,subject,sequence,gray,depth,head_x,head_y"]
    for i in range(24):
        depth = np.where(dome, 800 + 5 * i + np.hypot(x - 30, y - 30), 0).astype(np.uint16)
        cv2.imwrite(str(raw / f"{i}g.png"), np.where(dome, 100 + i, 20).astype(np.uint8))
        cv2.imwrite(str(raw / f"{i}d.png"), depth)
        rows.append(f"f{i},p{i // 2},1,{i}g.png,{i}d.png,30,30")
    (raw / "index.csv").write_text("\n".join(rows) + "\n")
    small = ["--config.width=2", "--config.data.size=32", "--config.train.batch_size=4", "--config.train.steps=2"]
    options = [
        f"--config.data.raw_dir={raw}",
        f"--config.data.dir={place}/own_data",
        "--config.data.options.focal=150.0",
    ]
    main.main(["--config=folder:ae", *small, *options, f"--workdir={place}/own_run"])
    data, found = arrays.open(place / "own_data"), results(place / "own_run")
    assert len(data) == 24 and set(data.frames["fx"]) == {150.0}
    assert found["dataset"] == "folder" and found["method"] == "ae"
    assert found["test"]["n_frames"] % 2 == 0 and found["test"]["n_frames"] > 0  # people stay whole


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run `main` here, which would end the process; return the sentence with which it refuses."""

    def leave(code):
        raise SystemExit(code)

    def refused(*args):
        monkeypatch.setattr(os, "_exit", leave)
        with pytest.raises(SystemExit) as ended:
            main.main([*map(str, args)])
        assert ended.value.code == 1
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err
        *_, last = said.err.splitlines()
        assert last.startswith("error: ")
        return last

    return refused


def test_bad_input_is_one_sentence(refused, run, place, data):
    workdir, _ = run
    data = f"--config.data.dir={data}"
    assert "lam" in refused("--config=configs/synthetic.py", "--config.loss.lamb=3.0")
    assert "configs/nothing.py" in refused("--config=configs/nothing.py")
    assert "get_config" in refused("--config=configs/base.py")
    assert "cgan, ae" in refused("--config=configs/synthetic.py:nothing")
    assert "seed = 1821 (not 2)" in refused(*TINY, data, f"--workdir={workdir}", "--config.seed=2")
    assert "raw_dir" in refused("--config=configs/folder.py", f"--workdir={place}/never")
    assert "subjects" in refused(*TINY, data, "--config.data.options.subjects=5", f"--workdir={place}/never")
    assert "is an address" in refused(*TINY, data, "--workdir=gs://bucket/run")
    assert not (place / "never").exists()


def test_a_refusal_ends_the_process():
    """With one sentence and code 1."""
    code, out, err = finish(start("main", "--config=configs/synthetic.py", "--config.loss.lamb=3.0"))
    assert code == 1 and out == "" and len(err.splitlines()) == 1 and err.startswith("error: ")
