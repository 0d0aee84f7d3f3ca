"""launch/: the sweep's commands; the study from its plan to its tables, stopped on the way."""

import importlib
import os
import pathlib
import shlex
import signal
import subprocess
import sys

import imageio.v3 as iio
import numpy as np
import pytest
from small import write_arrays

from facedepth_jax import config as configs
from facedepth_jax import main
from facedepth_jax.errors import FaceDepthError

ROOT = pathlib.Path(__file__).parent.parent
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")  # how ml_collections reads a file


def module(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"launch/{name}.py")
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


sweep, study = module("sweep"), module("study")


def test_sweep_prints_one_command_for_each_combination(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    sweep.main(["--config=configs/synthetic.py:cgan", "--runs=runs/x", "loss.lam=1.0,10.0", "seed=0,1,2"])
    out = capsys.readouterr().out.splitlines()
    assert len(out) == len(set(out)) == 6
    assert out[1] == (
        f"{sys.executable} -m facedepth_jax.main --config=configs/synthetic.py:cgan --workdir=runs/x/lam_1.0-seed_1 "
        "--config.loss.lam=1.0 --config.seed=1"
    )


@pytest.mark.parametrize("axis, said", [("loss.lamb=1.0", "lamb"), ("train.steps=5,-1", "train.steps is -1")])
def test_a_sweep_that_main_would_refuse_prints_nothing(axis, said, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(FaceDepthError, match=said):
        sweep.main(["--config=configs/synthetic.py", "--runs=runs/x", axis])
    assert capsys.readouterr().out == ""


def test_main_sweep_and_study_read_values_alike(plan, capsys):
    values = ["train.steps=1e3", "train.augment=false", "loss.lam=1e2", "data.options.subjects=2e1"]
    flags = [f"--config.{value}" for value in values]
    rows, (_, cgan, _) = plan("--config=configs/synthetic.py", "--runs=r", "--methods=cgan", "--config.width=4", *flags)
    assert rows["cgan"][3].strip() == "1,000"
    sweep.main(["--config=configs/synthetic.py", "--runs=r", *values])
    (swept,) = capsys.readouterr().out.splitlines()
    for words in (cgan[3:], shlex.split(swept)[5:], flags):
        found = configs.load("configs/synthetic.py", words)
        assert (found.train.steps, found.train.augment, found.loss.lam) == (1000, False, 100.0)
        assert found.data.options.subjects == 20


TINY = [
    "--config=configs/synthetic.py",
    "--seeds=3",
    "--config.width=4",
    "--config.train.batch_size=4",
    "--config.train.steps=4",
    "--config.data.options.subjects=20",
    "--config.data.options.frames_per_sequence=1",
    "--config.data.options.image_size=128",
    "--config.data.workers=0",
    "--verifier.width=4",
    "--verifier.train.batch_size=4",
    "--verifier.train.steps=4",
]


@pytest.fixture(name="plan")
def _plan(monkeypatch, capsys):
    """Flags -> what a plan prints: the rows of its costs by method, and the words of its commands."""
    monkeypatch.setattr(study, "peak_flops_per_sec", lambda: 1e11)
    monkeypatch.chdir(ROOT)

    def plan(*flags):
        assert study.main([*flags, "--plan"]) == 0
        lines = capsys.readouterr().out.splitlines()
        rows = {cells[1].strip(): cells for line in lines if len(cells := line.split("|")) == 7}
        commands = [shlex.split(line) for line in lines if line.startswith(sys.executable)]
        assert all(command[1] == "-m" for command in commands)
        return rows, [command[2:] for command in commands]

    return plan


def test_a_plan_of_folds_has_a_verifier_for_each(plan):
    flags = ["--config=folder", "--folds=0,3", "--methods=ae", "--seeds=3", "--runs=r"]
    _, (*runs, report) = plan(*flags, "--config.width=4", "--verifier.width=4")
    assert [run[1] for run in runs] == ["--config=verifier:folder", "--config=folder:ae"] * 2
    assert [run[2] for run in runs] == [
        f"--workdir=r/fold-{fold}/{method}-3" for fold in (0, 3) for method in ("verifier", "ae")
    ]
    for run, fold in zip(runs, (0, 0, 3, 3), strict=True):
        assert {f"--config.data.options.fold={fold}", f"--config.data.dir=data/folder-fold-{fold}"} <= set(run)
    assert report[3:] == [*(f"--verifier=r/fold-{k}/verifier-3" for k in (0, 3)), *(f"r/fold-{k}/ae-3" for k in (0, 3))]


def test_a_plan_says_what_it_costs_and_runs_nothing(tmp_path, plan):
    runs, data = tmp_path / "runs", f"--config.data.dir={tmp_path}/data"
    rows, (*commands, report) = plan(*TINY, data, f"--runs={runs}", "--seeds=3,4", "--methods=ae,cui")
    assert not runs.exists()
    assert [words[1] for words in commands] == ["--config=verifier:configs/synthetic.py"] + [
        f"--config=configs/synthetic.py:{method}" for method in ("ae", "ae", "cui", "cui")
    ]
    assert [words[3] for words in commands] == [f"--config.seed={seed}" for seed in (3, 3, 4, 3, 4)]
    assert "--config.width=4" in commands[1] and "--config.train.steps=4" in commands[0]
    assert commands[1][4:] == [flag for flag in TINY[2:] if "verifier" not in flag] + [data]
    assert [path.rsplit("/", 1)[1] for path in report[-4:]] == ["ae-3", "ae-4", "cui-3", "cui-4"]
    assert rows["ae"][2].strip() == "2" and rows["ae"][3].strip() == "4"
    # A step of the autoencoder by hand: multiply-adds of its convolutions, forward and two backward, twice each.
    sides, features = [48, 24, 12, 6, 12, 24, 48, 96, 96], [4, 8, 16, 32, 16, 8, 4, 2, 1]
    inputs = [1, *features]
    # A transposed convolution touches each of its input's pixels with all taps, half its own side.
    places = [side**2 / (4 if 4 <= i < 8 else 1) for i, side in enumerate(sides)]
    by_hand = sum(25 * a * b * n for a, b, n in zip(inputs, features, places, strict=False)) * 2 * 3 * 4 * 4
    assert 0.5 * by_hand < float(rows["ae"][5]) * 1e15 < 2 * by_hand


def test_a_loss_value_goes_to_the_methods_that_have_it(plan):
    given = "--config.loss.lam=10.0"
    _, (verifier, cgan, ae, _) = plan(*TINY, "--runs=r", "--methods=cgan,ae", given)
    assert given in cgan and given not in ae and given not in verifier


def test_a_study_of_depth_from_the_head(plan, monkeypatch):
    """The verifier counts depth as the methods do, and `relief`, which knows nothing else, is one of them."""
    paper = ["cgan", "ae", "pix2pix", "cui"]
    with monkeypatch.context() as patch:
        patch.setattr(study, "training_flops", lambda config: 1.0)
        for flags, methods in (([], [*paper, "relief"]), (["--config.depth_code.origin=camera"], paper)):
            _, (*runs, _) = plan(*TINY, "--runs=r", *flags)
            found = [configs.load(words[1].removeprefix("--config="), words[3:]) for words in runs]
            assert [config.method for config in found] == ["verifier", *methods]
            assert {config.depth_code.origin for config in found} == {"camera" if flags else "head"}
    rows, _ = plan("--config=relief", "--runs=r", "--methods=relief", "--config.width=4", "--verifier.width=4")
    assert float(rows["relief"][5]) > 0


@pytest.mark.slow
def test_a_study_that_is_stopped_goes_on_to_both_tables(tmp_path):
    flags = [*TINY, f"--config.data.dir={tmp_path}/data", f"--runs={tmp_path}", "--methods=ae"]
    command = [sys.executable, "launch/study.py", *flags]
    pipes = {"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, **pipes)
    for line in process.stdout:
        if line.startswith("[2/3"):
            process.send_signal(signal.SIGTERM)
            break
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and "the same command continues" in out, out
    assert not (tmp_path / "report").exists()

    done = subprocess.run(command, timeout=1200, **pipes)
    assert done.returncode == 0, done.stdout
    assert "verifier-3 is done already" in done.stdout
    markdown = (tmp_path / "report" / "report.md").read_text()
    (header,) = [line for line in markdown.splitlines() if line.startswith("| all pixels")]
    assert header.split("|")[2:-1] == [" ae, given D ", " mean training map, given D "]
    assert "| Face verification ↑ |" in markdown and markdown.count("| A1+A2 |") == 1
    other = subprocess.run([*command, "--config.train.learning_rate=2e-4"], timeout=600, **pipes)
    assert other.returncode == 1 and "ae-3 is finished, with other values of train.learning_rate: give" in other.stdout
    (name,) = [path.name for path in (tmp_path / "report").glob("faces-*.png")]
    assert iio.imread(tmp_path / "report" / name).shape[0] == 4 * 98 + 40  # the estimate with its error


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--config.data.size=40"], "verifier: data.size is 40"),
        (["--config.depth_code.origin=nose"], "verifier: depth_code.origin is 'nose'"),
        (["--config.nonsense=1"], "nonsense"),
        (["--config.train.steps=many"], "many"),
        (["--config.seed=7"], "--config.seed=7: give --seeds and --methods instead"),
        (["--config=synthetic:ae"], "--config=synthetic:ae: name the config without a method"),
        (["--methods=gan"], "'gan' is no method of depth from the"),
        (
            ["--methods=ae,relief", "--config.depth_code.origin=camera"],
            "'relief' is no method of depth from the camera: take some of cgan, ae, pix2pix, cui",
        ),
        (["--methods=ae,cui", "--config.loss.lam=1.0"], "--config.loss.lam=1.0: none of ae, cui has this loss value"),
        (["--config.loss.nonsense=1.0"], "nonsense"),
        (["--nonsense"], "--nonsense is neither --config.KEY=VALUE nor --verifier.KEY=VALUE"),
        (["--config=configs/nowhere.py"], "There is no config file"),
        (["--config=" + "x" * 300], "There is no config file"),
    ],
)
def test_a_study_that_cannot_be_is_one_sentence(tmp_path, monkeypatch, capsys, flags, sentence):
    monkeypatch.chdir(ROOT)
    with pytest.raises((SystemExit, FaceDepthError)) as error:
        study.main([*TINY, f"--runs={tmp_path}/runs", *flags])
    text = str(error.value) if error.type is FaceDepthError else capsys.readouterr().err.splitlines()[-1]
    assert sentence in text and "\n" not in text
    assert not (tmp_path / "runs").exists()


def run_all(tmp_path, code, words):
    """Run jobs of this code, with other words each."""
    jobs = {tmp_path / f"{i}": ([sys.executable, "-c", code, *more], False) for i, more in enumerate(words)}
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return study.run_all(jobs)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_study_ends_with_a_run_that_fails(tmp_path):
    assert run_all(tmp_path, "import sys; sys.exit(int(sys.argv[1]))", [["0"], ["2"], ["5"]]) == 2


def test_a_study_without_pairs_goes_on_without_its_verifier(tmp_path, monkeypatch, capfd):
    """`main` says why, with an exit code of its own; the report's command has no verifier then."""
    depth_mm = np.full((6, 96, 96), 900)
    splits = ["train", "train", "validation", "validation", "test", "test"]
    write_arrays(tmp_path / "data", np.zeros_like(depth_mm), depth_mm, "aabbcc", splits)
    monkeypatch.setattr(os, "_exit", sys.exit)
    with pytest.raises(SystemExit) as end:
        values = {"data.dir": tmp_path / "data", "data.dataset": "", "data.face_mm": 240.0}
        main.main(
            ["--config=verifier:folder", f"--workdir={tmp_path}/run", *(f"--config.{k}={v}" for k, v in values.items())]
        )
    code, said = end.value.code, capfd.readouterr().err
    assert "make no verification pairs" in said
    assert code not in (0, 1) and not (tmp_path / "run").exists()
    show = f"import sys; print(sys.argv[1:], flush=True); sys.exit({code} * (sys.argv[1] == 'verifier'))"
    assert run_all(tmp_path, show, [["verifier"], ["ae"], ["report", "--verifier=a", "b"]]) == 0
    said = capfd.readouterr().out
    assert "Going on without face verification" in said and "['report', 'b']" in said
