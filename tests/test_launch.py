"""launch/: the sweep's commands; the study from its plan to its tables, stopped on the way."""

import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import imageio.v3 as iio
import pytest

ROOT = pathlib.Path(__file__).parent.parent


def test_sweep_prints_one_command_for_each_combination():
    out = subprocess.run(
        [
            *(sys.executable, "launch/sweep.py", "--config=configs/synthetic.py:cgan", "--runs=runs/x"),
            *("loss.lam=1.0,10.0", "seed=0,1,2"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(out) == len(set(out)) == 6
    assert out[1] == (
        "python -m facedepth_jax.main --config=configs/synthetic.py:cgan --workdir=runs/x/lam_1.0-seed_1 "
        "--config.loss.lam=1.0 --config.seed=1"
    )


CACHE = tempfile.TemporaryDirectory()
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


def study(runs, *flags, **kwargs):
    command = [sys.executable, "launch/study.py", *TINY, f"--config.data.dir={runs}/data", f"--runs={runs}", *flags]
    cache = {"JAX_COMPILATION_CACHE_DIR": CACHE.name, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | cache, **pipes)


def test_a_plan_of_folds_has_a_verifier_for_each(tmp_path):
    flags = ["--config=configs/folder.py", "--folds=0,3", "--methods=ae", "--seeds=3", "--runs=r", "--plan"]
    command = [sys.executable, "launch/study.py", *flags, "--config.width=4", "--verifier.width=4"]
    out = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    *runs, report = [line.split() for line in out.splitlines() if line.startswith("python ")]
    assert [run[4] for run in runs] == [
        f"--workdir=r/fold-{fold}/{method}-3" for fold in (0, 3) for method in ("verifier", "ae")
    ]
    for run, fold in zip(runs, (0, 0, 3, 3), strict=True):
        assert {f"--config.data.options.fold={fold}", f"--config.data.dir=data/folder-fold-{fold}"} <= set(run)
    assert report[5:] == [*(f"--verifier=r/fold-{k}/verifier-3" for k in (0, 3)), *(f"r/fold-{k}/ae-3" for k in (0, 3))]


def test_a_plan_says_what_it_costs_and_runs_nothing(tmp_path):
    process = study(tmp_path / "runs", "--plan", "--seeds=3,4", "--methods=ae,cui")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert not (tmp_path / "runs").exists()
    *runs, report = [line.split() for line in out.splitlines() if line.startswith("python ")]
    assert [run[3] for run in runs] == ["--config=configs/verifier.py:synthetic"] + [
        f"--config=configs/synthetic.py:{method}" for method in ("ae", "ae", "cui", "cui")
    ]
    assert [run[5] for run in runs] == [f"--config.seed={seed}" for seed in (3, 3, 4, 3, 4)]
    assert "--config.width=4" in runs[1] and "--config.train.steps=4" in runs[0]
    assert runs[1][6:] == [flag for flag in TINY[2:] if "verifier" not in flag] + [
        f"--config.data.dir={tmp_path}/runs/data"
    ]
    assert [path.rsplit("/", 1)[1] for path in report[-4:]] == ["ae-3", "ae-4", "cui-3", "cui-4"]
    rows = {cells[1].strip(): cells for line in out.splitlines() if len(cells := line.split("|")) == 7}
    assert rows["ae"][2].strip() == "2" and rows["ae"][3].strip() == "4"
    # A step of the autoencoder by hand: multiply-adds of its convolutions, forward and two backward, twice each.
    sides, features = [48, 24, 12, 6, 12, 24, 48, 96, 96], [4, 8, 16, 32, 16, 8, 4, 2, 1]
    inputs = [1, *features]
    # A transposed convolution touches each of its input's pixels with all taps, half its own side.
    places = [side**2 / (4 if 4 <= i < 8 else 1) for i, side in enumerate(sides)]
    by_hand = sum(25 * a * b * n for a, b, n in zip(inputs, features, places, strict=False)) * 2 * 3 * 4 * 4
    assert 0.5 * by_hand < float(rows["ae"][5]) * 1e15 < 2 * by_hand


def test_a_study_that_is_stopped_goes_on_to_both_tables(tmp_path):
    process = study(tmp_path)
    for line in process.stdout:
        if line.startswith("[2/6"):
            process.send_signal(signal.SIGTERM)
            break
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and "the same command continues" in out, out
    assert not (tmp_path / "report").exists()

    process = study(tmp_path)
    out, _ = process.communicate(timeout=1200)
    assert process.returncode == 0, out
    assert "verifier-3 is done already" in out
    markdown = (tmp_path / "report" / "report.md").read_text()
    (header,) = [line for line in markdown.splitlines() if line.startswith("| all pixels")]
    assert header.split("|")[2:-1] == [" cgan ", " ae ", " pix2pix ", " cui ", " mean training map "]
    assert "| Face verification ↑ |" in markdown and markdown.count("| A1+A2 |") == 4
    (name,) = [path.name for path in (tmp_path / "report").glob("faces-*.png")]
    assert iio.imread(tmp_path / "report" / name).shape[0] == (2 + 4 + 4) * 98 + 40  # four estimates, each with errors


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--config.data.size=40"], "error: verifier: data.size is 40"),
        (["--config.nonsense=1"], "has no nonsense that can be '1'"),
        (["--config.train.steps=many"], "has no train.steps that can be 'many'"),
        (["--methods=gan"], "There is no method 'gan'"),
        (["--nonsense"], "--nonsense is no --config.KEY=VALUE"),
        (["--config=configs/nowhere.py"], "there is no config file configs/nowhere.py"),
        # What only the run itself finds out: the study ends with it.
        (["--config.data.options.sensor=eye", "--config.data.dir=nowhere"], "no sensor 'eye'"),
    ],
)
def test_a_study_that_cannot_be_is_one_sentence(tmp_path, flags, sentence):
    process = study(tmp_path, *flags)
    out, _ = process.communicate(timeout=300)
    assert process.returncode not in (0, None) and sentence in out and "Traceback" not in out, out
    assert not (tmp_path / "report").exists()
