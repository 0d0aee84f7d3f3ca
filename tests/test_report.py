"""The report from run directories made by hand: its figures are read back from the text."""

import hashlib
import json
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
from types import SimpleNamespace

import imageio.v3 as iio
import jax
import numpy as np
import pytest

from facedepth_jax import config as configs
from facedepth_jax import estimator, metrics, pictures, tables
from facedepth_jax.data import arrays
from facedepth_jax.metrics import METRICS
from facedepth_jax.models import siamese
from facedepth_jax.report import __main__ as report
from facedepth_jax.report import figures as report_figures
from facedepth_jax.report import runs as report_runs
from facedepth_jax.verification import BOUNDS, load_verifier, true_depth, verify_lists
from facedepth_jax.weight_files import save_weights

BETTER = {metric.key: metric.better for metric in METRICS}
OLD_RUN = pathlib.Path(__file__).parent / "old_run"


def figures(quality):
    """Metrics that are all better for a higher quality in 0..1, as evaluate gives them; errors are a tenth of them."""
    values = {key: quality if better == "higher" else 10 * (1 - quality) for key, better in BETTER.items()}
    result = {
        "all": values,
        "valid": {key: value / 2 for key, value in values.items()},
        "mm": {"mae_mm": 100 * (1 - quality), "rmse_mm": 200 * (1 - quality)},
    }
    errors = {part: {key: value / 10 for key, value in row.items()} for part, row in result.items()}
    counts = {"n_people": 12, "n_frames": 1234, "n_frames_without_depth": 4}
    return result | counts | {"standard_error": errors}


def make_run(path, method="cgan", seed=0, quality=0.5, samples=("a", "b"), fingerprint="f" * 64, fold=None, **values):
    config = configs.base(method)
    config.update({"seed": seed, "width": 16, "data": {"dir": "d"}})
    if "lam" in values:
        config.loss.lam = values.pop("lam")
    if fold is not None:
        config.data.options.fold = fold
    config.update(values)
    results = {
        "method": method,
        "seed": seed,
        "dataset": {"f": "synthetic", "b": "pandora"}.get(fingerprint[0], "folder"),
        "fingerprint": fingerprint,
        "step": 700 + seed,
        "steps": 800,
        "test": figures(quality),
        "validation": figures(quality),
        "baseline_mean_map": figures(0.25),
    }
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config.to_dict()))
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
    assert rows["L1 norm ↓"] == ["**2.000 ± 1.000** (-73%)", "4.000 ± 0.400 (-47%)", "7.500 ± 0.750"]
    assert rows["δ < 1.25 ↑"] == ["**0.8000 ± 0.1000** (+220%)", "0.6000 ± 0.0600 (+140%)", "0.2500 ± 0.0250"]
    both = "± is the standard deviation over seeds or the standard error over 12 people where there is one seed, per"
    assert both in markdown
    rows = table(markdown, "pixels with true depth")
    assert rows["L1 norm ↓"][0].startswith("**1.000 ± 0.500**")
    assert rows["Mean absolute error, mm ↓"][0].startswith("**20.00 ± 10.00**")
    assert "| cgan | 0, 1, 2 | 700 of 800, 701 of 800, 702 of 800 | cgan0, cgan1, cgan2 |" in markdown

    (section,) = json.loads((tmp_path / "out" / "report.json").read_text())
    assert section["n_frames"] == 1234
    assert section["columns"]["cgan"]["seeds"] == [0, 1, 2]
    np.testing.assert_allclose(section["columns"]["cgan"]["all"]["l1"], [3, 2, 1])
    np.testing.assert_allclose(section["columns"]["ae"]["valid"]["mae_mm"], [40])
    np.testing.assert_allclose(section["columns"]["ae"]["standard_error_valid"]["mae_mm"], 4)
    assert section["columns"]["cgan"]["standard_error_all"] == {}


def test_one_seed_has_the_standard_error_over_people(tmp_path):
    assert run(tmp_path / "out", make_run(tmp_path / "cgan", quality=0.7)) == 0
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert table(markdown, "all pixels")["L1 norm ↓"] == ["**3.000 ± 0.300** (-60%)", "7.500 ± 0.750"]
    assert "in levels of depth, ± is the standard error over 12 people, per cent" in markdown


def test_a_run_of_before_stands_beside_one_of_today(tmp_path):
    """No standard errors, no sums, other names in config.json; and whatever metric it lacks is an empty cell."""
    shutil.copytree(OLD_RUN, tmp_path / "old")
    old = json.loads((OLD_RUN / "results.json").read_text())
    today = make_run(tmp_path / "ae", "ae", fingerprint=old["fingerprint"], samples=())
    for path, lacks in ((tmp_path / "old", "l2"), (today, "rmse_lin")):
        rewrite(path, "results.json", lambda r, key=lacks: r["test"]["all"].pop(key))
    assert run(tmp_path / "out", tmp_path / "old", today) == 0
    markdown = (tmp_path / "out" / "report.md").read_text()
    rows = table(markdown, "all pixels")
    assert rows["all pixels, n = 10"] == ["cgan", "ae", "mean training map"]
    assert [cell.split(" (")[0] for cell in rows["L1 norm ↓"]] == ["73.236", "**5.000 ± 0.500**", "27.939"]
    assert rows["L2 norm ↓"][0] == "-" and rows["RMSE lin ↓"][1] == "-" and rows["RMSE lin ↓"][2] == "**43.894**"
    assert "| cgan | 1821 | 20 of 20 | old |" in markdown

    assert run(tmp_path / "alone", OLD_RUN) == 0
    assert "±" not in (tmp_path / "alone" / "report.md").read_text()
    assert any(name.startswith("faces") for name in names(tmp_path / "alone"))


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


@pytest.fixture(name="drawn")
def _drawn(monkeypatch):
    """What the curves show, figure by figure: {metric: {label: points}}."""
    figures, save = [], report_figures.Figure.savefig

    def savefig(figure, *args, **kwargs):
        figures.append({})
        for axes in figure.axes:
            lines = {line.get_label(): line.get_xydata() for line in axes.lines}
            figures[-1][axes.get_title().split(" (")[0]] = lines
            assert axes.get_xscale() == ("log" if axes.get_xlabel() == "λ" else "linear")
        save(figure, *args, **kwargs)

    monkeypatch.setattr(report_figures.Figure, "savefig", savefig)
    return figures


def test_the_curve_over_lambda(tmp_path, drawn):
    runs = [
        make_run(tmp_path / f"{lam}-{seed}", seed=seed, lam=lam, quality=0.5 + lam / 1000 + seed / 100, samples=())
        for lam in (1.0, 10.0, 100.0)
        for seed in (0, 1)
    ]
    runs.append(make_run(tmp_path / "ae", "ae", samples=()))
    assert run(tmp_path / "out", *runs) == 0
    (drawn,) = drawn
    np.testing.assert_allclose(drawn["L1 norm"]["cGAN"], [(1, 4.94), (10, 4.85), (100, 3.95)])
    np.testing.assert_allclose(drawn["L1 norm"]["AE"][:, 1], 5)
    assert len(drawn) == 3
    (name,) = [n for n in names(tmp_path / "out") if n.startswith("lambda")]
    assert iio.imread(tmp_path / "out" / name).shape[2] >= 3
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert f"]({name})" in markdown
    title = next(iter(table(markdown, "all pixels").values()))
    assert title == ["cgan λ=1", "cgan λ=10", "cgan λ=100", "ae", "mean training map"]


def test_runs_with_two_discriminators_have_columns_and_curves_of_their_own(tmp_path, drawn):
    """In the paper's depth code "learnt" is "all"."""
    for lam, quality in ((1.0, 0.5), (10.0, 0.6)):
        for pixels, more in (("learnt", 0.0), ("valid", 0.2)):
            loss = {"lam": lam, "discriminator_pixels": pixels}
            make_run(tmp_path / f"runs/{pixels}-{lam}", quality=quality + more, loss=loss, samples=())
    loss = {"lam": 1.0, "discriminator_pixels": "all"}
    make_run(tmp_path / "runs/all", seed=1, quality=0.6, loss=loss, samples=())
    assert run(tmp_path / "out", *(tmp_path / "runs").iterdir()) == 0
    rows = table((tmp_path / "out/report.md").read_text(), "all pixels")
    titles = [f"cgan λ={lam} D on {pixels}" for pixels in ("all", "valid") for lam in (1, 10)]
    assert rows["all pixels, n = 1234"] == [*titles, "mean training map"]
    assert [cell.split()[0].strip("*") for cell in rows["L1 norm ↓"][:4]] == ["4.500", "4.000", "3.000", "2.000"]
    np.testing.assert_allclose(drawn[0]["L1 norm"]["cGAN, D on all"], [(1, 4.5), (10, 4)])
    np.testing.assert_allclose(drawn[0]["L1 norm"]["cGAN, D on valid"], [(1, 3), (10, 2)])


def test_a_sweep_that_begins_at_zero(tmp_path):
    runs = [make_run(tmp_path / f"{lam}", lam=lam, samples=()) for lam in (0.0, 1.0, 10.0)]
    assert run(tmp_path / "out", *runs) == 0
    assert any(n.startswith("lambda") for n in names(tmp_path / "out"))


def test_lambda_is_judged_on_the_validation_split(tmp_path):
    runs = [make_run(tmp_path / f"lam{lam}", lam=lam) for lam in (1.0, 10.0)]
    for path, l1 in zip(runs, (777.0, 555.0), strict=True):
        rewrite(path, "results.json", lambda r, l1=l1: r["validation"]["all"].update(l1=l1))
    verifier = make_verifier(tmp_path / "verifier")
    runs = [judged(path, accuracy, verifier) for path, accuracy in zip(runs, (0.6, 0.9), strict=True)]
    assert run(tmp_path / "out", f"--verifier={verifier}", *runs) == 0
    before, curve = (tmp_path / "out/report.md").read_text().split("### Weight")
    assert "777.000" in curve and "**555.000 ± " in curve
    assert "777" not in before and "555" not in before
    assert "| Face verification ↑ | 0.5800 ± 0.0200 | **0.8800 ± 0.0200** |" in curve


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


HEAD = {"origin": "head"}


def with_relief(path, errors=None, mean_map=20.0, **values):
    """Give a run figures of relief, and its mean map one."""

    def change(results):
        for name, row in (("test", values), ("validation", values), ("baseline_mean_map", {"relief_mae": mean_map})):
            results[name] |= {"n_faces": 7, "relief": row}
            results[name]["standard_error"]["relief"] = errors or dict.fromkeys(row, 0.5)

    rewrite(path, "results.json", change)
    return path


def test_both_depth_codes_in_one_table(tmp_path):
    """Within an origin seeds are pooled and lambdas parted; a change is to the mean map of that origin."""
    runs = [
        *(make_run(tmp_path / f"camera{i}", lam=lam, quality=0.4) for i, lam in enumerate((1.0, 10.0))),
        *(make_run(tmp_path / f"head{i}", seed=i, quality=q, depth_code=HEAD) for i, q in enumerate((0.7, 0.9))),
        make_run(tmp_path / "ae", "ae", quality=0.6, depth_code=HEAD, train={"steps": 5}),
        make_run(tmp_path / "old_ae", "ae", quality=0.3),
        make_run(tmp_path / "relief", "relief", quality=0.5),
    ]
    assert json.loads((runs[-1] / "config.json").read_text())["depth_code"]["origin"] == "head"
    for path in (*runs[2:5], runs[-1]):
        rewrite(path, "results.json", lambda r: r.update(baseline_mean_map=figures(0.8)))
    assert run(tmp_path / "out", *reversed(runs)) == 0
    markdown = (tmp_path / "out/report.md").read_text()
    rows = table(markdown, "all pixels")
    assert rows["all pixels, n = 1234"] == [
        *("cgan λ=1", "cgan λ=10", "cgan, given D", "ae", "ae, given D", "relief, given D"),
        *("mean training map", "mean training map, given D"),
    ]
    assert [cell.split(" (")[-1].rstrip(")") for cell in rows["L1 norm ↓"]] == [
        *("-20%", "-20%", "+0%", "-7%", "+100%", "+150%"),
        *("7.500 ± 0.750", "**2.000 ± 0.200**"),
    ]
    assert "| cgan, given D | 0, 1 |" in markdown
    assert "relative to the mean map of depth minus D.\n\n| | seeds" in markdown
    found = json.loads((tmp_path / "out/report.json").read_text())[0]["columns"]
    assert found["mean training map, given D"]["all"]["l1"] == pytest.approx([2.0])
    assert run(tmp_path / "alone", runs[4]) == 0
    assert table((tmp_path / "alone/report.md").read_text(), "all pixels")["L1 norm ↓"][0] == "4.000 ± 0.400 (+100%)"


def test_the_curve_of_training_is_the_runs_log(tmp_path, drawn, capsys):
    runs = [make_run(tmp_path / f"ae{seed}", "ae", seed=seed, samples=()) for seed in (0, 1)]
    for seed, path in enumerate(runs):
        lines = [{"step": 50, "train/loss_g": 1.0}]
        lines += [{"step": 10 * i, "validation/l1": 9.0 - i - seed, "validation/relief_mae": 20.0} for i in (1, 2, 3)]
        (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(tmp_path / "out", *runs, make_run(tmp_path / "cgan", samples=())) == 0
    (figure,) = drawn
    np.testing.assert_allclose(figure["L1 norm"]["ae"], [(10, 8), (20, 7), (30, 6)])
    assert "](training-synthetic-ffffffff.png)" in (tmp_path / "out/report.md").read_text()
    assert figure.keys() == {"L1 norm", "Relief error, mm"}  # what no line has is left out
    for damage in ("half a li", "5", '{"validation/l1": 1}'):
        (runs[0] / "metrics.jsonl").write_text(damage)
        assert run(tmp_path / "again", *runs) == 1
        assert "metrics.jsonl is damaged" in capsys.readouterr().err and not (tmp_path / "again").exists()


def test_each_depth_code_has_its_curve_over_lambda(tmp_path, drawn):
    values = {"samples": (), "depth_code": HEAD}
    runs = [
        *(make_run(tmp_path / f"camera{lam}", lam=lam, quality=0.3 + lam / 100, samples=()) for lam in (1.0, 10.0)),
        *(make_run(tmp_path / f"head{lam}", lam=lam, quality=0.6 + lam / 100, **values) for lam in (1.0, 10.0)),
        make_run(tmp_path / "ae", "ae", quality=0.2, **values),
    ]
    assert run(tmp_path / "out", *runs) == 0
    camera, head = (figure["L1 norm"] for figure in drawn)
    np.testing.assert_allclose(camera["cGAN"], [(1, 6.9), (10, 6)])
    np.testing.assert_allclose(head["cGAN"], [(1, 3.9), (10, 3)])
    assert "AE" not in camera and head["AE"][0, 1] == 8
    assert names(tmp_path / "out")[:2] == ["lambda-synthetic-ffffffff-head.png", "lambda-synthetic-ffffffff.png"]
    camera, head = (tmp_path / "out/report.md").read_text().split("### Weight")[1:]
    assert "](lambda-synthetic-ffffffff.png)" in camera and "| cgan λ=1 | cgan λ=10 |" in camera
    assert "](lambda-synthetic-ffffffff-head.png)" in head and "| cgan λ=1, given D | cgan λ=10, given D |" in head


def test_relief(tmp_path):
    """Of seeds, beside a run without a mask and one of before; the mean map is of a run that has relief."""
    old = make_run(tmp_path / "old")
    runs = [
        with_relief(make_run(tmp_path / f"{i}", "relief", seed=i), relief_mae=8.0 + i, mask_iou=0.8) for i in (0, 2)
    ]
    runs.append(with_relief(make_run(tmp_path / "ae", "ae", depth_code=HEAD), relief_mae=10.0))
    assert run(tmp_path / "out", old, *runs) == 0
    markdown = (tmp_path / "out/report.md").read_text()
    rows = table(markdown, "the relief of faces")
    assert rows["the relief of faces, n = 7"][:3] == ["cgan", "ae, given D", "relief, given D"]
    assert rows["Relief error, mm ↓"] == [
        *("-", "10.00 ± 0.50 (-50%)", "**9.00 ± 1.41** (-55%)", "-", "20.00 ± 0.50"),
    ]
    assert rows["Foreground, IoU ↑"] == ["-", "-", "0.8000 ± 0.0000", "-", "-"]
    assert len(rows) == 4  # with the rule below the header
    found = json.loads((tmp_path / "out/report.json").read_text())[0]["columns"]
    assert found["relief, given D"]["relief"] == {"relief_mae": [8.0, 10.0], "mask_iou": [0.8, 0.8]}

    # A mean map that an older evaluation took stands back.
    assert run(tmp_path / "both", old, with_relief(make_run(tmp_path / "new", "ae"), relief_mae=5.0)) == 0
    rows = table((tmp_path / "both/report.md").read_text(), "the relief of faces")
    assert rows["Relief error, mm ↓"] == ["-", "**5.00 ± 0.50** (-75%)", "20.00 ± 0.50"]
    assert run(tmp_path / "alone", old) == 0
    assert "relief" not in (tmp_path / "alone/report.md").read_text()


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
        (lambda p: rewrite(p, "results.json", lambda r: r["test"]["all"].update(l2=None)), "damaged"),
        (lambda p: rewrite(p, "results.json", lambda r: r.update(method="gan")), "damaged.*gan"),
        (lambda p: rewrite(p, "results.json", lambda r: r.pop("validation")), "damaged.*validation"),
        (lambda p: rewrite(p, "config.json", lambda c: c.update(nonsense=1)), "damaged.*nonsense"),
        (lambda p: rewrite(p, "config.json", lambda c: c.update(width=32)), "differ in width"),
        (
            lambda p: rewrite(p, "config.json", lambda c: c["depth_code"].update(step_mm=4.0)),
            "the meaning of a depth level",
        ),
        (lambda p: rewrite(p, "results.json", lambda r: r["test"].update(n_faces=3)), "damaged.*relief"),
        (lambda p: with_relief(p, relief_mae=None), "damaged.*NoneType"),
        (lambda p: with_relief(p, errors={"relief_mae": "many"}), "damaged.*many"),
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
    assert "nowhere has no config.json" in capsys.readouterr().err


def test_a_curve_over_lambda_needs_runs_that_are_alike(tmp_path, capsys):
    runs = [make_run(tmp_path / str(steps), lam=float(steps), train={"steps": steps}) for steps in (800, 1000)]
    assert run(tmp_path / "out", *runs) == 1
    assert "both 'cgan' but differ in train.steps: report them apart" in capsys.readouterr().err


def test_data_paths_do_not_part_a_column(tmp_path):
    runs = [make_run(tmp_path / f"{seed}", "ae", seed=seed, data={"dir": f"d{seed}"}) for seed in (0, 1)]
    assert run(tmp_path / "out", *runs) == 0
    assert "| ae | 0, 1 |" in (tmp_path / "out" / "report.md").read_text()


def verification(accuracy):
    """As verification.verify gives it; every cell has its own accuracy, of A2 x S4-S5 there is no pair.

    A standard error is 0.02.
    """
    cells = {
        angles: {
            sequences: {"accuracy": accuracy + 0.01 * (3 * i + j), "n": 10 + 3 * i + j}
            for j, sequences in enumerate(("S1-S3", "S4-S5", "S1-S5"))
        }
        for i, angles in enumerate(("A1", "A2", "A1+A2"))
    }
    cells["A2"]["S4-S5"] = {"accuracy": None, "n": 0}
    counts = {"n": 18, "n_same": 9, "n_frames": 7, "n_people": 3}
    replicates = {name: [x - 0.02, x, x + 0.02] for name, x in (("accuracy", accuracy), ("auc", 0.75))}
    errors = {"replicates": replicates, "standard_error": {"accuracy": 0.02, "auc": 0.02}}
    return counts | errors | {"accuracy": accuracy, "auc": 0.75, "loss": 0.7, "cells": cells}


def lists(accuracy):
    """As verification.verify_lists gives it; 0.01 more for each list, as they come in the tables."""
    return {name: verification(accuracy + 0.01 * (i - 2)) for i, name in enumerate(tables.LISTS)}


def make_verifier(path, fingerprint="f" * 64, accuracy=0.8, **code):
    path.mkdir()
    results = {"method": "verifier", "seed": 0, "dataset": "x", "fingerprint": fingerprint, "step": 1, "steps": 1}
    accuracies = {"true depth": accuracy, "silhouette": 0.75, "holes alone": 0.7, "mean training map": 0.5}
    results["bounds"] = {title: lists(accuracy) for title, accuracy in accuracies.items()}
    (path / "results.json").write_text(json.dumps(results, sort_keys=True))  # as the program does
    config = configs.base("verifier")
    config.depth_code.update(code)
    (path / "config.json").write_text(json.dumps(config.to_dict()))
    (path / "verifier.safetensors").write_bytes(b"weights of the verifier" + str(code).encode())
    return path


def judged(path, accuracy, verifier):
    """A run that has its verification.json already."""
    (path / "generator.safetensors").write_bytes(b"weights of the generator")
    weights = {
        name: hashlib.sha256((where / f"{name}.safetensors").read_bytes()).hexdigest()
        for name, where in (("verifier", verifier), ("generator", path))
    }
    (path / "verification.json").write_text(json.dumps({"weights": weights, "lists": lists(accuracy)}))
    return path


def test_face_verification(tmp_path):
    verifier = make_verifier(tmp_path / "verifier")
    runs = [judged(make_run(tmp_path / f"{i}", seed=i), a, verifier) for i, a in enumerate((0.6, 0.7))]
    runs.append(judged(make_run(tmp_path / "ae", "ae"), 0.55, verifier))
    assert run(tmp_path / "out", f"--verifier={verifier}", *runs) == 0
    markdown = (tmp_path / "out" / "report.md").read_text()
    rows = table(markdown, "all pixels")
    assert rows["Face verification ↑"] == ["**0.6500 ± 0.0707** (+30%)", "0.5500 ± 0.0200 (+10%)", "0.5000 ± 0.0200"]
    assert "Face verification" not in str(table(markdown, "pixels with true depth"))
    both, text = markdown.split("### Face verification\n")[1].split("### Table 2")
    accuracy = [line.strip("| ").split(" | ") for line in both.splitlines() if line.startswith("| ")][:7]
    assert accuracy[0][0] == "accuracy, n = 18 validation pairs of 3 people and 18 test pairs of 3 people"
    assert accuracy[1] == ["ae", *(f"{0.53 + 0.01 * i:.3f} ± 0.020" for i in range(4))]
    assert accuracy[2][3] == "0.650 ± 0.020 (+0.100 ± 0.000)"  # of both seeds
    assert [row[0] for row in accuracy[2:]] == ["cgan", *BOUNDS]
    assert "| A1 | 0.8000 / 0.6500 ± 0.0707 (10) | 0.8100 / 0.6600 ± 0.0707 (11) |" in text
    assert "| A2 | 0.8300 / 0.5800 (13) | - | 0.8500 / 0.6000 (15) |" in text  # of the autoencoder
    (section,) = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [found["test"]["accuracy"] for found in section["columns"]["cgan"]["verification"]] == [0.6, 0.7]
    assert section["verification_bounds"]["true depth"]["test"]["accuracy"] == 0.8


def test_each_depth_code_has_its_verifier(tmp_path, capsys):
    camera = make_verifier(tmp_path / "camera")
    head = make_verifier(tmp_path / "head", accuracy=0.9, **HEAD)
    rewrite(head, "results.json", lambda r: r["bounds"].update({"mean training map": lists(0.6)}))
    flags = [f"--verifier={head}", f"--verifier={camera}"]
    runs = [
        judged(make_run(tmp_path / "cgan"), 0.55, camera),
        judged(make_run(tmp_path / "cgan_head", depth_code=HEAD), 0.75, head),
    ]
    assert run(tmp_path / "out", *flags, *runs) == 0
    markdown = (tmp_path / "out/report.md").read_text()
    assert table(markdown, "all pixels")["Face verification ↑"] == [
        *("0.5500 ± 0.0200 (+10%)", "**0.7500 ± 0.0200** (+25%)"),
        *("0.5000 ± 0.0200", "0.6000 ± 0.0200"),
    ]
    assert "of depth minus D, and they are judged by a verifier of their own.\n" in markdown
    first, second = markdown.split("### Face verification")[1:]
    assert "| true depth | 0.780 ±" in first and "map | 0.480 ±" in first and "| A1 | 0.8000 / 0.5500 (10)" in first
    assert second.startswith(", given D\n") and "| true depth | 0.880 ±" in second and "map | 0.580 ±" in second
    assert "### Table 2, face verification, given D\n" in second
    assert "| A1 | 0.9000 / 0.7500 (10)" in second and "| cgan, given D |" in second and "| cgan |" not in second
    (found,) = json.loads((tmp_path / "out/report.json").read_text())
    assert found["verification_bounds"]["true depth"]["test"]["accuracy"] == 0.8
    assert found["verification_bounds, given D"]["mean training map"]["test"]["accuracy"] == 0.6

    capsys.readouterr()
    for flag, refused, origins in ((flags[0], runs[0], ("camera", "head")), (flags[1], runs[1], ("head", "camera"))):
        assert run(tmp_path / "refused", flag, *runs) == 1
        sentence = f"error: {refused} counts .* {origins[0]}, the verifier {flag[11:]} from the {origins[1]}: .*\n"
        assert re.fullmatch(sentence, capsys.readouterr().err)


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
        (lambda v, r: drop(v, "results.json"), "verifier has no results.json"),
        (lambda v, r: rewrite(v, "results.json", lambda x: x.update(method="ae")), "is a run of 'ae'"),
        (lambda v, r: rewrite(v, "results.json", lambda x: x.update(fingerprint="0")), "are of different data"),
        (lambda v, r: rewrite(v, "results.json", lambda x: x.pop("bounds")), "of another version.*the same `main`"),
        (lambda v, r: rewrite(v, "results.json", lambda x: x["bounds"]["true depth"].pop("test")), "damaged.*test"),
        (lambda v, r: drop(v, "verifier.safetensors"), "verifier.safetensors does not exist"),
        (lambda v, r: drop(r, "generator.safetensors"), "generator.safetensors does not exist"),
        (lambda v, r: (r / "verification.json").write_text("[]"), "prepared data set in d"),
        # Other weights than those that were judged: the data are asked for, which are not there.
        (lambda v, r: (v / "verifier.safetensors").write_bytes(b"other"), "prepared data set in d"),
        (lambda v, r: (r / "generator.safetensors").write_bytes(b"other"), "prepared data set in d"),
    ],
)
def test_a_verifier_that_cannot_be_used_is_one_sentence(tmp_path, capsys, spoil, sentence):
    verifier = make_verifier(tmp_path / "verifier")
    judged_run = judged(make_run(tmp_path / "cgan"), 0.6, verifier)
    spoil(verifier, judged_run)
    assert run(tmp_path / "out", f"--verifier={verifier}", judged_run) == 1
    assert re.fullmatch(f"error: .*{sentence}.*\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_run_is_verified_once(tmp_path, monkeypatch):
    """A report that ends while it verifies the second run: the first stays verified, the same command goes on."""
    verifier = make_verifier(tmp_path / "verifier")
    runs = [make_run(tmp_path / str(i), seed=i) for i in range(2)]
    for path in runs:
        (path / "generator.safetensors").write_bytes(b"weights")
    asked = []

    def verify_lists(verifier, depth_maps, data):
        asked.append(depth_maps.name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return lists(0.6)

    monkeypatch.setattr(report_runs.verification, "verify_lists", verify_lists)
    monkeypatch.setattr(report_runs.verification, "load_verifier", str)
    monkeypatch.setattr(report_runs.verification, "generated_depth", lambda batch, data: batch)
    monkeypatch.setattr(report_runs.estimator, "load", lambda path: SimpleNamespace(batch=path))
    monkeypatch.setattr(report_runs.arrays, "open", lambda path: SimpleNamespace(fingerprint="f" * 64))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", f"--verifier={verifier}", *runs)
    assert not (tmp_path / "out").exists()
    assert run(tmp_path / "out", f"--verifier={verifier}", *runs) == 0
    assert asked == ["0", "1", "1"] and (tmp_path / "out" / "report.md").exists()


@pytest.fixture(scope="module", name="faces")
def _faces(tmp_path_factory):
    """Prepared arrays for the old run's net: four people, one sequence each."""
    path, rng = tmp_path_factory.mktemp("data") / "arrays", np.random.default_rng(0)
    frames = {name: [kind(0)] * 12 for name, kind in arrays.COLUMNS.items()}
    frames |= {
        "frame": [f"f{i}" for i in range(12)],
        "subject": [f"p{i // 3}" for i in range(12)],
        "split": ["test"] * 12,
        "distance_mm": rng.uniform(700, 900, 12).tolist(),
    }
    images = rng.integers(0, 256, (12, 96, 96)).astype(np.uint8), rng.integers(0, 2000, (12, 96, 96)).astype(np.uint16)
    pairs = [(f"f{a}", f"f{b}", int(a // 3 == b // 3)) for a in range(12) for b in range(a)]
    pair_lists = {"test": pairs, "validation": pairs[:9]}
    arrays.write(path, frames=frames, images=[images], size_px=96, pair_lists=pair_lists, meta={})
    return arrays.open(path)


def test_generated_depth_is_verified_with_real_nets(tmp_path, capsys, faces):
    generator, judge = tmp_path / "cgan", make_verifier(tmp_path / "verifier", faces.fingerprint)
    shutil.copytree(OLD_RUN, generator)
    rewrite(generator, "results.json", lambda r: r.update(fingerprint=faces.fingerprint))
    rewrite(generator, "config.json", lambda c: c["data"].update(dir=str(faces.path), size=96))
    rewrite(judge, "config.json", lambda c: c.update(width=2))
    init = jax.jit(siamese.Siamese(width=2).init, static_argnames="train")
    save_weights(judge / "verifier.safetensors", init(jax.random.key(1), np.zeros((1, 96, 96, 2)), train=False))
    verifier = load_verifier(judge)
    true = verify_lists(verifier, true_depth(faces), faces)
    rewrite(judge, "results.json", lambda r: r["bounds"].update({title: true for title in r["bounds"]}))
    assert run(tmp_path / "out", f"--verifier={judge}", generator) == 0

    net = estimator.load(generator)
    maps = net.batch(faces.gray[:], faces.frames["distance_mm"][:])
    want = verify_lists(verifier, lambda rows: maps[rows], faces)
    found = json.loads((generator / "verification.json").read_text())["lists"]
    assert found == json.loads(json.dumps(want)) and [found[name]["n"] for name in tables.LISTS] == [9, 9, 66, 66]
    want = f"{want['test']['accuracy']:.4f} ± {want['test']['standard_error']['accuracy']:.4f}"
    assert want in (tmp_path / "out" / "report.md").read_text()

    for change, sentence in (
        (lambda: rewrite(judge, "config.json", lambda c: c["depth_code"].update(step_mm=4.0)), "meaning of a depth"),
        (
            lambda: [rewrite(path, "results.json", lambda r: r.update(fingerprint="0")) for path in (generator, judge)],
            "is not the data that",
        ),
    ):
        drop(generator, "verification.json")
        before = (judge / "config.json").read_bytes()
        change()
        assert run(tmp_path / "out", f"--verifier={judge}", generator) == 1
        assert sentence in capsys.readouterr().err
        (judge / "config.json").write_bytes(before)
        (generator / "verification.json").touch()


def test_a_verifiers_run_is_no_column(tmp_path, capsys):
    assert run(tmp_path / "out", make_verifier(tmp_path / "verifier")) == 1
    assert "verifiers as --verifier" in capsys.readouterr().err


def sums(l1, n, person):
    """The sums of one person in so many images of one pixel each, with which every figure but a root is `l1`."""
    ones = np.ones((1, 1, 1), np.float32)
    one = {"all": metrics.image_sums(ones, ones, ones > 0), "mm": metrics.mm_sums(ones, ones, ones > 0)}
    relief = dict.fromkeys(("count", *(metric.key for metric in metrics.RELIEF_METRICS)), np.ones(1))
    one = metrics.person_sums(one | {"valid": one["all"], "relief": relief}, [person])[person]
    counts = {"count": float(n), "images": float(n)}
    return {person: {part: dict.fromkeys(names, l1 * n) | counts for part, names in one.items()}}


def make_fold(folder, fold, method, l1, n, **kwargs):
    data = {"dir": f"d{fold}"}
    path = make_run(folder / f"{method}-{fold}", method, fingerprint=str(fold) * 64, data=data, fold=fold, **kwargs)
    measured = {"test": l1, "validation": l1, "baseline_mean_map": 7.5}
    found = {name: metrics.figures(sums(value, n, f"person {fold}")) for name, value in measured.items()}
    rewrite(path, "results.json", lambda r: r.update(found))
    return path


def test_folds_share_one_column(tmp_path):
    verifiers = [make_verifier(tmp_path / f"verifier{k}", str(k) * 64) for k in (1, 2)]
    runs = [
        judged(make_fold(tmp_path, k, method, l1 - better, n), accuracy + better / 10, verifiers[k - 1])
        for method, better in (("cgan", 1), ("ae", 0))
        for k, l1, n, accuracy in ((1, 5.0, 100, 0.6), (2, 3.0, 300, 0.7))
    ]
    flags = [f"--verifier={path}" for path in verifiers]
    assert run(tmp_path / "out", *flags, *runs) == 0
    markdown = (tmp_path / "out/report.md").read_text()
    rows = table(markdown, "all pixels")
    assert "400 test frames, those of 2 folds together" in markdown and "over 2 people" in markdown
    assert rows["all pixels, n = 400"] == ["cgan", "ae", "mean training map"]
    # (100 * 4 + 300 * 2) / 400; with one of both people left out it is 2 and 4
    assert rows["L1 norm ↓"] == ["**2.500 ± 1.000** (-67%)", "3.500 ± 1.000 (-53%)", "7.500 ± 0.000"]
    assert rows["Face verification ↑"] == [
        *("**0.7500 ± 0.0200** (+50%)", "0.6500 ± 0.0200 (+30%)", "0.5000 ± 0.0200"),
    ]
    assert "| cgan | 0 | 700/700 of 800 |" in markdown
    assert "n = 36 validation pairs of 6 people and" in markdown and "| true depth | 0.780 ± 0.020 (" in markdown

    # With a second seed the deviation is one over seeds, not over folds.
    runs[2:] = [judged(make_fold(tmp_path / "2", k, "cgan", 2.0, 200, seed=1), 0.8, verifiers[k - 1]) for k in (1, 2)]
    assert run(tmp_path / "out", *flags, *runs) == 0
    rows = table((tmp_path / "out/report.md").read_text(), "all pixels")
    assert rows["L1 norm ↓"][0] == "**2.250 ± 0.354** (-70%)"  # of 2.5 and 2.0


def test_folds_of_both_depth_codes(tmp_path):
    """Each is pooled with its own verifiers; a fold of before, without relief, takes it from its column alone."""
    flags, runs = [], []
    for origin, l1, accuracy in (("camera", 6.0, 0.6), ("head", 3.0, 0.8)):
        for k in (1, 2):
            code = {"origin": origin}
            verifier = make_verifier(tmp_path / f"{origin}{k}", str(k) * 64, accuracy, **code)
            path = make_fold(tmp_path / f"runs_{origin}", k, "cgan", l1 + k, 100, depth_code=code)
            if origin == "camera" and k == 1:
                rewrite(path, "results.json", lambda r: r["test"]["people"]["person 1"].pop("relief"))
            flags.append(f"--verifier={verifier}")
            runs.append(judged(path, accuracy - 0.1, verifier))
    assert run(tmp_path / "out", *flags, *runs) == 0
    markdown = (tmp_path / "out/report.md").read_text()
    rows = table(markdown, "all pixels")
    assert [cell.split(" ±")[0] for cell in rows["L1 norm ↓"][:2]] == ["7.500", "**4.500"]
    assert [cell.split(" ±")[0] for cell in rows["Face verification ↑"][:2]] == ["0.5000", "**0.7000"]
    assert all(f"| true depth | {accuracy} ± " in markdown for accuracy in ("0.580", "0.780"))
    rows = table(markdown, "the relief of faces")
    assert rows["the relief of faces, n = 200"][:2] == ["cgan", "cgan, given D"]
    # of 4 and 5; the mean map that camera's other results have kept is 7.5
    assert rows["Relief error, mm ↓"] == ["-", "**4.50 ± 0.50** (-40%)", "7.50 ± 0.00", "7.50 ± 0.00"]


def test_a_person_of_two_folds_one_from_before_relief():
    new, old = sums(4.0, 100, "a"), sums(2.0, 300, "a")
    del old["a"]["relief"]
    for order in ([new, old], [old, new]):
        found = metrics.figures(metrics.join_people(order))
        assert found["all"]["l1"] == 2.5 and "relief" not in found and found["n_faces"] == 0


def test_runs_with_the_same_settings_on_other_data_are_no_folds(tmp_path):
    runs = [make_run(tmp_path / str(k), fingerprint=str(k) * 64) for k in (1, 2)]
    assert run(tmp_path / "out", *runs) == 0
    assert (tmp_path / "out/report.md").read_text().count("\n## folder\n") == 2


def test_folds_without_sums_cannot_be_pooled(tmp_path, capsys):
    runs = [make_run(tmp_path / str(k), fingerprint=str(k) * 64, fold=k) for k in (1, 2)]
    assert run(tmp_path / "out", *runs) == 1
    assert re.fullmatch("error: .*1 is a fold from before results kept the sums.*\n", capsys.readouterr().err)
    assert run(tmp_path / "out", runs[0]) == 0


def fold(right, same, first, auc):
    """As `verification.verify` counts: pairs that are judged rightly, which of them are in the cell A1 x S1-S3."""

    def cell(chosen):
        return {"accuracy": float(chosen.mean()) if chosen.size else None, "n": chosen.size}

    replicates = {"accuracy": list(right[:3] * 1.0), "auc": None if auc is None else [auc, 0.5, 0.6]}
    return {
        **{"accuracy": float(right.mean()), "n": right.size, "n_same": int(same.sum()), "n_frames": 5, "auc": auc},
        "n_people": 2,
        "replicates": replicates,
        **{"loss": float(right.mean()) + 1, "cells": {"A1": {"S1-S3": cell(right[first]), "S4-S5": cell(right[:0])}}},
    }


def test_verification_of_folds_is_that_of_all_pairs_together():
    rng = np.random.default_rng(1)
    parts = [rng.random((3, n)) < 0.4 for n in (10, 25, 7)]
    parts[2][2] = False  # nothing in that cell
    folds = [fold(*part, auc) for part, auc in zip(parts, (0.5, 0.6, 0.7), strict=True)]
    pooled = report_runs._pool_verification(folds)
    together = fold(*np.concatenate(parts, axis=1), None)
    assert pooled["cells"]["A1"]["S1-S3"] == pytest.approx(together["cells"]["A1"]["S1-S3"])
    assert pooled["cells"]["A1"]["S4-S5"] == {"accuracy": None, "n": 0}
    for name in ("accuracy", "n", "n_same", "loss"):
        assert pooled[name] == pytest.approx(together[name]), name
    assert pooled["n_frames"] == 15
    assert pooled["auc"] == pytest.approx((10 * 0.5 + 25 * 0.6 + 7 * 0.7) / 42)
    drawn = [(10 * a + 25 * b + 7 * c) / 42 for a, b, c in zip(*(part[0][:3] for part in parts), strict=True)]
    assert pooled["replicates"]["accuracy"] == pytest.approx(drawn) and len(set(drawn)) > 1
    assert pooled["standard_error"]["accuracy"] == pytest.approx(statistics.stdev(drawn))
    pooled = report_runs._pool_verification([folds[0], fold(*parts[1], None)])  # all pairs of one person
    assert pooled["auc"] is pooled["replicates"]["auc"] is pooled["standard_error"]["auc"] is None


def test_two_verifiers_of_the_same_data_are_refused(tmp_path, capsys):
    verifiers = [make_verifier(tmp_path / f"verifier{k}") for k in (1, 2)]
    runs = [judged(make_run(tmp_path / "cgan"), 0.6, verifiers[0])]
    assert run(tmp_path / "out", *(f"--verifier={path}" for path in verifiers), *runs) == 1
    assert "are verifiers of the same data: give one of them" in capsys.readouterr().err


KILLED = """
import os, signal, sys
from facedepth_jax.report.__main__ import main
replace = os.replace
for written in range(3):  # the picture, report.json, report.md
    left = written
    def killed_at(*args):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        replace(*args)
    os.replace = killed_at
    if not (child := os.fork()):  # importing is what takes time
        main([f"--out={sys.argv[1]}/{written}", *sys.argv[2:]])
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
"""


def test_killed_and_run_again(tmp_path):
    runs = [make_run(tmp_path / "cgan"), make_run(tmp_path / "ae", "ae")]
    assert run(tmp_path / "in_peace", *runs) == 0
    subprocess.run([sys.executable, "-c", KILLED, tmp_path, *map(str, runs)], timeout=300, check=True)
    for written in range(3):
        out = tmp_path / str(written)
        assert len([name for name in names(out) if not name.startswith(".")]) == written
        assert run(out, *runs) == 0
        for name in names(tmp_path / "in_peace"):
            assert (out / name).read_bytes() == (tmp_path / "in_peace" / name).read_bytes(), name
