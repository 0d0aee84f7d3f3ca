"""The report from run directories made by hand: its figures are read back from the text."""

import json
import re

import imageio.v3 as iio
import numpy as np
import pytest

from facedepth_jax import pictures, report
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
        "dataset": "synthetic" if fingerprint[0] == "f" else "folder",
        "fingerprint": fingerprint,
        "step": 800,
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
    assert rows["all pixels, n = 1234"] == ["ae", "cgan", "mean training map"]
    assert len(rows) == 2 + 13
    assert rows["L1 norm ↓"] == ["4.000 (-47%)", "**2.000 ± 1.000** (-73%)", "7.500"]
    assert rows["δ < 1.25 ↑"] == ["0.6000 (+140%)", "**0.8000 ± 0.1000** (+220%)", "0.2500"]
    rows = table(markdown, "pixels with true depth")
    assert rows["L1 norm ↓"][1].startswith("**1.000 ± 0.500**")
    assert rows["Mean absolute error, mm ↓"][1].startswith("**20.00 ± 10.00**")
    assert "| cgan | 0, 1, 2 | 800 | cgan0, cgan1, cgan2 |" in markdown

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
    assert image.shape[0] == 4 * 98 + 40  # gray, truth, ae, cgan and the scale
    with np.load(runs[0] / "samples" / "test.npz") as cgan, np.load(runs[2] / "samples" / "test.npz") as ae:
        np.testing.assert_array_equal(image[1:97, -97:-1, 0], ae["gray"][1])  # the frames b and c, which both have
        near_far = pictures.depth_range_mm(ae["truth_mm"][1])
        for row, estimate_mm in ((2, ae["estimate_mm"][1]), (3, cgan["estimate_mm"][2])):
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
    assert title == ["ae", "cgan λ=1", "cgan λ=10", "cgan λ=100", "mean training map"]


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
