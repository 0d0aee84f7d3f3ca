"""The report from run directories made by hand: its figures are read back from the text."""

import hashlib
import json
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import imageio.v3 as iio
import numpy as np
import pytest

from facedepth_jax import finished, pictures, report
from facedepth_jax.metrics import METRICS

BETTER = {metric.key: metric.better for metric in METRICS}


def figures(quality):
    """Metrics that are all better for a higher quality in 0..1, as evaluate gives them."""
    values = {key: quality if better == "higher" else 10 * (1 - quality) for key, better in BETTER.items()}
    return {
        "all": values,
        "valid": {key: value / 2 for key, value in values.items()},
        "mm": {"mae_mm": 100 * (1 - quality), "rmse_mm": 200 * (1 - quality)},
        "n_frames": 1234,
        "n_frames_without_depth": 4,
        "n_pixels": 1234 * 9216,
        "n_pixels_valid": 1230 * 5000,
        "n_pixels_mm": 1230 * 4000,
    }


def make_run(path, method="cgan", seed=0, lam=100.0, quality=0.5, samples=("a", "b"), fingerprint="f" * 64, **config):
    path.mkdir(parents=True)
    code = {"offset_mm": 500.0, "step_mm": 8.0, "half_range": 127.5, "none_level": 194}
    config = {
        "method": method,
        "seed": seed,
        "loss": {"lam": lam},
        "code": code,
        "width": 16,
        "data": {"dir": "d"},
    } | config
    results = {
        "method": method,
        "seed": seed,
        "dataset": {"f": "synthetic", "b": "pandora"}.get(fingerprint[0], "folder"),
        "fingerprint": fingerprint,
        "step": 700 + seed,
        "steps": 800,
        "n_frames": 1234,
        "test": figures(quality),
        "validation": figures(quality),
        "baseline_mean_map": figures(0.25),
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "results.json").write_text(json.dumps(results))
    if samples:
        (path / "samples").mkdir()
        rng = np.random.default_rng(0)
        shape = (len(samples), 96, 96)
        np.savez(
            path / "samples" / "test.npz",
            frame=np.array(samples),
            gray=rng.integers(0, 256, shape, np.uint8),
            truth_mm=rng.integers(800, 1000, shape).astype(np.uint16),
            estimate_mm=rng.uniform(800, 1000, shape).astype(np.float32),
        )
    return path


def run(out, *runs):
    return report.main([f"--out={out}", *map(str, runs)])


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def table(markdown, over):
    """The rows of a table under a heading: label -> cells."""
    text = markdown.split(f"### Table 1 over {over}\n\n")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_table_1_over_seeds(tmp_path, capsys):
    runs = [make_run(tmp_path / f"cgan{i}", seed=i, quality=q) for i, q in enumerate((0.7, 0.8, 0.9))]
    runs.append(make_run(tmp_path / "ae", "ae", quality=0.6))
    assert run(tmp_path / "out", *reversed(runs)) == 0  # the order of the arguments does not matter
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert capsys.readouterr().out.strip() == markdown.strip()

    rows = table(markdown, "all pixels")
    assert rows["all pixels, n = 1234"] == ["cgan", "ae", "mean training map"]
    assert len(rows) == 2 + 13
    assert rows["L1 norm ↓"] == ["**2.000 ± 1.000** (-73%)", "4.000 (-47%)", "7.500"]
    assert rows["δ < 1.25 ↑"] == ["**0.8000 ± 0.1000** (+220%)", "0.6000 (+140%)", "0.2500"]
    rows = table(markdown, "pixels with true depth")
    assert rows["L1 norm ↓"][0].startswith("**1.000 ± 0.500**")
    assert rows["Mean absolute error, mm ↓"][0].startswith("**20.00 ± 10.00**")
    assert "| cgan | 0, 1, 2 | 700 of 800, 701 of 800, 702 of 800 | cgan0, cgan1, cgan2 |" in markdown

    (section,) = json.loads((tmp_path / "out" / "report.json").read_text())
    assert section["n_frames"] == 1234
    assert section["columns"]["cgan"]["seeds"] == [0, 1, 2]
    np.testing.assert_allclose(section["columns"]["cgan"]["all"]["l1"], [3, 2, 1])
    np.testing.assert_allclose(section["columns"]["ae"]["valid"]["mae_mm"], [40])


def test_the_grid_shows_truth_and_every_column(tmp_path):
    runs = [
        make_run(tmp_path / "cgan", samples=("a", "b", "c")),
        make_run(tmp_path / "cgan1", seed=1, samples=()),  # only the first seed is shown
        make_run(tmp_path / "ae", "ae", samples=("b", "c", "d")),
    ]
    assert run(tmp_path / "out", *runs) == 0
    (name,) = [n for n in names(tmp_path / "out") if n.startswith("faces")]
    assert f"]({name})" in (tmp_path / "out" / "report.md").read_text()
    image = iio.imread(tmp_path / "out" / name)
    assert image.shape[0] == 4 * 98 + 40  # gray, truth, cgan, ae and the scale
    with np.load(runs[0] / "samples" / "test.npz") as cgan, np.load(runs[2] / "samples" / "test.npz") as ae:
        np.testing.assert_array_equal(image[1:97, -97:-1, 0], cgan["gray"][2])  # the frames b and c, which both have
        near_far = pictures.depth_range_mm(cgan["truth_mm"][2])
        for row, estimate_mm in ((2, cgan["estimate_mm"][2]), (3, ae["estimate_mm"][1])):
            want = pictures.color_depth(estimate_mm, *near_far)
            np.testing.assert_array_equal(image[row * 98 + 1 :, -97:-1][:96], want)


def test_the_curve_over_lambda(tmp_path, monkeypatch):
    runs = [
        make_run(tmp_path / f"{lam}-{seed}", seed=seed, lam=lam, quality=0.5 + lam / 1000 + seed / 100, samples=())
        for lam in (1.0, 10.0, 100.0)
        for seed in (0, 1)
    ]
    runs.append(make_run(tmp_path / "ae", "ae", lam=3.0, samples=()))
    drawn = {}
    axes_plot = report.Figure.savefig

    def savefig(figure, *args, **kwargs):
        for axes in figure.axes:
            drawn[axes.get_title().split(" (")[0]] = {line.get_label(): line.get_xydata() for line in axes.lines}
            assert axes.get_xscale() == "log"
        axes_plot(figure, *args, **kwargs)

    monkeypatch.setattr(report.Figure, "savefig", savefig)
    assert run(tmp_path / "out", *runs) == 0
    np.testing.assert_allclose(drawn["L1 norm"]["cGAN"], [(1, 4.94), (10, 4.85), (100, 3.95)])
    np.testing.assert_allclose(drawn["L1 norm"]["AE"][:, 1], 5)
    assert len(drawn) == 3
    (name,) = [n for n in names(tmp_path / "out") if n.startswith("lambda")]
    assert iio.imread(tmp_path / "out" / name).shape[2] >= 3
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert f"]({name})" in markdown
    title = next(iter(table(markdown, "all pixels").values()))
    assert title == ["cgan λ=1", "cgan λ=10", "cgan λ=100", "ae", "mean training map"]


def test_a_sweep_that_begins_at_zero(tmp_path):
    runs = [make_run(tmp_path / f"{lam}", lam=lam, samples=()) for lam in (0.0, 1.0, 10.0)]
    assert run(tmp_path / "out", *runs) == 0
    assert any(n.startswith("lambda") for n in names(tmp_path / "out"))


def test_lambda_is_judged_on_the_validation_split(tmp_path):
    runs = [make_run(tmp_path / f"lam{lam}", lam=lam) for lam in (1.0, 10.0)]
    for path, l1 in zip(runs, (777.0, 555.0), strict=True):
        rewrite(path, "results.json", lambda r, l1=l1: r["validation"]["all"].update(l1=l1))
    assert run(tmp_path / "out", *runs) == 0
    tables, judged = (tmp_path / "out/report.md").read_text().split("### Weight")
    assert "777.000" in judged and "**555.000**" in judged
    assert "777" not in tables and "555" not in tables


def test_one_lambda_has_no_curve_and_no_samples_no_grid(tmp_path):
    assert run(tmp_path / "out", make_run(tmp_path / "cgan", samples=())) == 0
    assert names(tmp_path / "out") == ["report.json", "report.md"]
    assert "![" not in (tmp_path / "out" / "report.md").read_text()


def test_runs_on_different_data_get_different_tables(tmp_path):
    runs = [make_run(tmp_path / "cgan"), make_run(tmp_path / "ae", "ae", fingerprint="0" * 64)]
    assert run(tmp_path / "out", *runs) == 0
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert re.findall("^## (.*)", markdown, re.M) == ["synthetic", "folder"]
    assert markdown.count("| all pixels, n = 1234 | cgan | mean training map |") == 1
    assert markdown.count("| all pixels, n = 1234 | ae | mean training map |") == 1
    assert len([n for n in names(tmp_path / "out") if n.startswith("faces")]) == 2


def test_report_twice_is_the_same_bytes(tmp_path):
    runs = [make_run(tmp_path / f"{lam}", lam=lam) for lam in (1.0, 10.0)]
    for out in ("first", "second"):
        assert run(tmp_path / out, *runs) == 0
    assert names(tmp_path / "first") == names(tmp_path / "second")
    for name in names(tmp_path / "first"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name


def drop(path, name):
    (path / name).unlink()


def rewrite(path, name, change):
    values = json.loads((path / name).read_text())
    change(values)
    (path / name).write_text(json.dumps(values))


@pytest.mark.parametrize(
    "spoil,sentence",
    [
        (lambda p: drop(p, "results.json"), "has no results.json"),
        (lambda p: drop(p, "config.json"), "has no config.json"),
        (lambda p: (p / "results.json").write_text("{"), "is not JSON"),
        (lambda p: (p / "results.json").write_text("[]"), "damaged"),
        (lambda p: rewrite(p, "results.json", lambda r: r["test"]["all"].pop("l2")), "damaged.*l2"),
        (lambda p: rewrite(p, "config.json", lambda c: c.pop("code")), "damaged.*code"),
        (lambda p: rewrite(p, "config.json", lambda c: c.update(width=32)), "differ in width"),
        (
            lambda p: rewrite(p, "config.json", lambda c: c["code"].update(step_mm=4.0)),
            "what a level of depth stands for",
        ),
        (lambda p: rewrite(p, "results.json", lambda r: r.update(seed=0)), "same method, settings and seed"),
        (lambda p: (p / "samples" / "test.npz").write_bytes(b"PK no archive"), "test.npz is damaged"),
    ],
)
def test_a_run_that_cannot_be_used_is_one_sentence(tmp_path, capsys, spoil, sentence):
    good, ae = make_run(tmp_path / "good"), make_run(tmp_path / "ae", "ae")
    bad = make_run(tmp_path / "bad", method="ae" if "test.npz" in sentence else "cgan", seed=1)
    spoil(bad)
    runs = (good, bad) if "test.npz" in sentence else (good, ae, bad)
    assert run(tmp_path / "out", *runs) == 1
    said = capsys.readouterr().err
    assert re.fullmatch(f"error: .*{sentence}.*\n", said) and "bad" in said
    assert not (tmp_path / "out").exists()


def test_a_directory_that_does_not_exist(tmp_path, capsys):
    assert run(tmp_path / "out", tmp_path / "nowhere") == 1
    assert "nowhere does not exist" in capsys.readouterr().err


def test_a_curve_over_lambda_needs_runs_that_are_alike(tmp_path, capsys):
    runs = [make_run(tmp_path / str(steps), lam=steps, train={"steps": steps}) for steps in (800.0, 1000.0)]
    assert run(tmp_path / "out", *runs) == 1
    assert "both 'cgan' but differ in train.steps: report them apart" in capsys.readouterr().err


def test_data_paths_and_an_autoencoders_lambda_do_not_part_a_column(tmp_path):
    runs = [
        make_run(tmp_path / "a", "ae", seed=0, lam=1.0, data={"dir": "here"}),
        make_run(tmp_path / "b", "ae", seed=1, lam=2.0, data={"dir": "there"}),
    ]
    assert run(tmp_path / "out", *runs) == 0
    assert "| ae | 0, 1 |" in (tmp_path / "out" / "report.md").read_text()


def verification(accuracy):
    """As verification.verify gives it; every cell has its own accuracy, of A2 x S4-S5 there is no pair."""
    cells = {
        angles: {
            sequences: {"accuracy": accuracy + 0.01 * (3 * i + j), "n": 10 + 3 * i + j}
            for j, sequences in enumerate(("S1-S3", "S4-S5", "S1-S5"))
        }
        for i, angles in enumerate(("A1", "A2", "A1+A2"))
    }
    cells["A2"]["S4-S5"] = {"accuracy": None, "n": 0}
    return {"accuracy": accuracy, "n": 18, "n_same": 9, "n_frames": 7, "auc": 0.75, "loss": 0.7, "cells": cells}


def make_verifier(path, fingerprint="f" * 64, method="verifier"):
    path.mkdir()
    results = {"method": method, "fingerprint": fingerprint, "test": verification(0.8)}
    (path / "results.json").write_text(json.dumps(results | {"baseline_mean_map": verification(0.5)}))
    (path / "verifier.safetensors").write_bytes(b"weights of the verifier")
    return path


def judged(path, accuracy, verifier):
    """A run that has its verification.json already."""
    (path / "generator.safetensors").write_bytes(b"weights of the generator")
    weights = {
        name: hashlib.sha256((where / f"{name}.safetensors").read_bytes()).hexdigest()
        for name, where in (("verifier", verifier), ("generator", path))
    }
    (path / "verification.json").write_text(json.dumps({"weights": weights, "test": verification(accuracy)}))
    return path


def test_face_verification(tmp_path):
    verifier = make_verifier(tmp_path / "verifier")
    runs = [judged(make_run(tmp_path / f"{i}", seed=i), a, verifier) for i, a in enumerate((0.6, 0.7))]
    runs.append(judged(make_run(tmp_path / "ae", "ae"), 0.55, verifier))
    assert run(tmp_path / "out", f"--verifier={verifier}", *runs) == 0
    markdown = (tmp_path / "out" / "report.md").read_text()
    rows = table(markdown, "all pixels")
    assert rows["Face verification ↑"] == ["**0.6500 ± 0.0707** (+30%)", "0.5500 (+10%)", "0.5000"]
    assert "Face verification" not in str(table(markdown, "pixels with true depth"))
    text = markdown.split("### Table 2")[1]
    assert "right in 0.8000 of 18 pairs" in text and "in 0.5000." in text
    assert "| A1 | 0.8000 / 0.6500 ± 0.0707 (10) | 0.8100 / 0.6600 ± 0.0707 (11) |" in text
    assert "| A2 | 0.8300 / 0.5800 (13) | - | 0.8500 / 0.6000 (15) |" in text  # of the autoencoder
    (section,) = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [found["accuracy"] for found in section["columns"]["cgan"]["verification"]] == [0.6, 0.7]
    assert section["verification_of_true_depth"]["accuracy"] == 0.8


def test_the_papers_figures_stand_beside_those_on_its_data(tmp_path):
    runs = [make_run(tmp_path / "cgan", fingerprint="b" * 64), make_run(tmp_path / "ae", "ae", fingerprint="b" * 64)]
    assert run(tmp_path / "out", *runs) == 0
    markdown = (tmp_path / "out" / "report.md").read_text()
    rows = table(markdown, "all pixels")
    assert rows["all pixels, n = 1234"] == ["cgan", "ae", "mean training map", "paper: cgan", "paper: ae"]
    assert rows["L1 norm ↓"][-2:] == ["11.792", "16.185"]  # the paper's Table 1
    assert rows["Face verification ↑"][-2:] == ["0.7247", "0.6570"]
    assert "paper" not in str(table(markdown, "pixels with true depth"))


@pytest.mark.parametrize(
    "spoil,sentence",
    [
        (lambda v, r: drop(v, "results.json"), "verifier is no finished run"),
        (lambda v, r: rewrite(v, "results.json", lambda x: x.update(method="ae")), "is a run of 'ae'"),
        (lambda v, r: rewrite(v, "results.json", lambda x: x.update(fingerprint="0")), "are of different data"),
        (lambda v, r: rewrite(v, "results.json", lambda x: x.pop("test")), "damaged or of another version"),
        (lambda v, r: drop(v, "verifier.safetensors"), "verifier.safetensors does not exist"),
        (lambda v, r: drop(r, "generator.safetensors"), "generator.safetensors does not exist"),
        (lambda v, r: (r / "verification.json").write_text("[]"), "d does not exist"),
        # Other weights than those that were judged: the data are asked for, which are not there.
        (lambda v, r: (v / "verifier.safetensors").write_bytes(b"other"), "d does not exist"),
        (lambda v, r: (r / "generator.safetensors").write_bytes(b"other"), "d does not exist"),
    ],
)
def test_a_verifier_that_cannot_be_used_is_one_sentence(tmp_path, capsys, spoil, sentence):
    verifier = make_verifier(tmp_path / "verifier")
    judged_run = judged(make_run(tmp_path / "cgan"), 0.6, verifier)
    spoil(verifier, judged_run)
    assert run(tmp_path / "out", f"--verifier={verifier}", judged_run) == 1
    assert re.fullmatch(f"error: .*{sentence}.*\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_signal_while_a_run_is_verified(tmp_path, capsys, monkeypatch):
    """Exit code 0 and how to go on; the run that was verified before needs it no more."""
    verifier = make_verifier(tmp_path / "verifier")
    runs = [make_run(tmp_path / str(i), seed=i) for i in range(2)]
    for path in runs:
        (path / "generator.safetensors").write_bytes(b"weights")
    asked = []

    def verify(verifier, run_dir, data, between):
        asked.append(run_dir.name)
        between()
        if len(asked) == 2:
            signal.raise_signal(signal.SIGTERM)
        between()
        return verification(0.6)

    monkeypatch.setattr(finished, "verify_generated", verify)
    monkeypatch.setattr(finished, "load_verifier", str)
    monkeypatch.setattr(finished.arrays, "open", lambda path: SimpleNamespace(fingerprint="f" * 64))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert run(tmp_path / "out", f"--verifier={verifier}", *runs) == 0
        assert capsys.readouterr().out.endswith("the same command continues.\n")
        assert not (tmp_path / "out").exists()
        assert run(tmp_path / "out", f"--verifier={verifier}", *runs) == 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert asked == ["0", "1", "1"] and (tmp_path / "out" / "report.md").exists()


def test_a_verifiers_run_is_no_column(tmp_path, capsys):
    path = make_run(tmp_path / "verifier")
    rewrite(path, "results.json", lambda r: r.update(method="verifier"))
    assert run(tmp_path / "out", path) == 1
    assert "give it as --verifier" in capsys.readouterr().err


def make_fold(folder, fold, method, quality, n, **kwargs):
    data = {"dir": f"d{fold}", "options": {"fold": fold, "seed": 0}}
    path = make_run(
        folder / f"{method}-{fold}", method, quality=quality, fingerprint=str(fold) * 64, data=data, **kwargs
    )
    counts = {"n_frames": n, "n_frames_without_depth": 0, "n_pixels": n, "n_pixels_valid": n, "n_pixels_mm": n}
    rewrite(path, "results.json", lambda r: [r[k].update(counts) for k in ("test", "validation", "baseline_mean_map")])
    return path


def test_folds_share_one_column(tmp_path):
    verifiers = [make_verifier(tmp_path / f"verifier{k}", str(k) * 64) for k in (1, 2)]
    runs = [
        judged(make_fold(tmp_path, k, method, quality, n), accuracy, verifiers[k - 1])
        for method, better in (("cgan", 0.1), ("ae", 0.0))
        for k, quality, n, accuracy in ((1, 0.5 + better, 100, 0.6 + better), (2, 0.7 + better, 300, 0.7 + better))
    ]
    assert run(tmp_path / "out", *(f"--verifier={path}" for path in verifiers), *runs) == 0
    markdown = (tmp_path / "out/report.md").read_text()
    rows = table(markdown, "all pixels")
    assert "400 test frames, those of 2 folds together" in markdown
    assert rows["all pixels, n = 400"] == ["cgan", "ae", "mean training map"]
    assert rows["L1 norm ↓"] == ["**2.500** (-67%)", "3.500 (-53%)", "7.500"]  # (100 * 4 + 300 * 2) / 400
    assert rows["Face verification ↑"] == ["**0.7500** (+50%)", "0.6500 (+30%)", "0.5000"]
    assert "| cgan | 0 | 700/700 of 800 |" in markdown
    assert "right in 0.8000 of 36 pairs" in markdown

    # A lambda that the method does not have keeps no folds apart.
    rewrite(runs[3], "config.json", lambda config: config["loss"].update(lam=5.0))
    assert run(tmp_path / "out", *(f"--verifier={path}" for path in verifiers), *runs) == 0
    assert (tmp_path / "out/report.md").read_text() == markdown

    # With a second seed the deviation is one over seeds, not over folds.
    runs[2:] = [judged(make_fold(tmp_path / "2", k, "cgan", 0.8, 200, seed=1), 0.8, verifiers[k - 1]) for k in (1, 2)]
    assert run(tmp_path / "out", *(f"--verifier={path}" for path in verifiers), *runs) == 0
    rows = table((tmp_path / "out/report.md").read_text(), "all pixels")
    assert rows["L1 norm ↓"][0] == "**2.250 ± 0.354** (-70%)"  # of 2.5 and 2.0


def test_two_verifiers_of_the_same_data_are_refused(tmp_path, capsys):
    verifiers = [make_verifier(tmp_path / f"verifier{k}") for k in (1, 2)]
    runs = [judged(make_run(tmp_path / "cgan"), 0.6, verifiers[0])]
    assert run(tmp_path / "out", *(f"--verifier={path}" for path in verifiers), *runs) == 1
    assert "are verifiers of the same data: give one of them" in capsys.readouterr().err


KILLED = """
import os, signal, sys
from facedepth_jax import report
left, replace = int(sys.argv[1]), os.replace
def killed_at(*args):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    replace(*args)
os.replace = killed_at
report.main(sys.argv[2:])
"""


@pytest.mark.parametrize("written", [0, 1, 2])  # the picture, report.json, report.md
def test_killed_and_run_again(tmp_path, written):
    runs = [make_run(tmp_path / "cgan"), make_run(tmp_path / "ae", "ae")]
    assert run(tmp_path / "in_peace", *runs) == 0
    command = [sys.executable, "-c", KILLED, str(written), f"--out={tmp_path / 'out'}", *map(str, runs)]
    assert subprocess.run(command, timeout=300).returncode == -signal.SIGKILL
    visible = [name for name in names(tmp_path / "out") if not name.startswith(".")]
    assert len(visible) == written
    assert run(tmp_path / "out", *runs) == 0
    for name in names(tmp_path / "in_peace"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "in_peace" / name).read_bytes(), name
