"""Program: training runs -> Tables 1 and 2, the curve over lambda, the grid of Figure 4.

    python -m facedepth_jax.report --out=DIR [--verifier=RUN ...] [--errors] RUN [RUN ...]

Reads nothing but the runs' own config.json, results.json and samples/test.npz. Runs that differ in their seed alone
share a column, as mean ± standard deviation. Runs on different data never share a table; but those that differ in
data.options.fold, the folds of a cross-validation, are pooled first: all their frames as if measured in one. Writes
report.md, report.json and the pictures that report.md shows.

With a verifier, one for each fold, the row of face verification and Table 2 come too. That of a run needs its data
once; what was found stays in the run, as verification.json.
"""

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from facedepth_jax import files, pictures, tables
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.evaluation import MEAN_MAP
from facedepth_jax.metrics import METRICS
from facedepth_jax.report.runs import ORDER, Run, read
from facedepth_jax.stopping import Stopped, stop_event
from facedepth_jax.tables import markdown_table

CURVE_METRICS = ("l1", "rmse_lin", "delta_1.25^(1/4)")
GRID_FACES = 8


def group_columns(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs on the same data -> title -> runs that differ in their seed alone, by seed.

    The title is the method, with lambda where the method has runs with several.

    Raises:
      FaceDepthError: runs of one method differ in more than lambda and the seed, or two have both alike; runs were
        measured in different levels.
    """
    for run in runs[1:]:
        if run.config["code"] != runs[0].config["code"]:
            raise FaceDepthError(
                f"{runs[0].path} and {run.path} differ in what a level of depth stands for (config.code): "
                "their metrics cannot stand in one table; report them apart."
            )
    columns, first = {}, {}
    for run in sorted(runs, key=lambda run: (ORDER.index(run.method), run.lam or 0.0, run.seed)):
        other = first.setdefault(run.method, run)
        if keys := _differing_keys(other.settings, run.settings):
            raise FaceDepthError(
                f"{other.path} and {run.path} are both '{run.method}' but differ in {', '.join(keys)}: "
                "report them apart."
            )
        several = len({other.lam for other in runs if other.method == run.method}) > 1
        column = columns.setdefault(f"{run.method} λ={run.lam:g}" if several else run.method, [])
        for other in column:
            if other.seed == run.seed:
                raise FaceDepthError(
                    f"{other.path} and {run.path} have the same method, settings and seed: give one of them."
                )
        column.append(run)
    return columns


def _differing_keys(a: dict, b: dict, prefix: str = "") -> list[str]:
    """Dotted names of the entries in which two nested dictionaries differ."""
    keys = []
    for key in sorted({*a, *b}):
        x, y = a.get(key), b.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            keys += _differing_keys(x, y, f"{prefix}{key}.")
        elif x != y:
            keys.append(prefix + key)
    return keys


def column_values(runs: Sequence[Run], pixels: str, split: str = "test") -> dict[str, list[float]]:
    """metric -> one value a run, over "all" pixels, or over the "valid" ones with the errors in mm."""
    results = [run.results[split] for run in runs]
    values = _stack([r["valid"] | r["mm"] if pixels == "valid" else r["all"] for r in results])
    if pixels == "all" and split == "test" and all(run.verification for run in runs):
        values[tables.FACE_VERIFICATION.key] = [run.verification["accuracy"] for run in runs]
    return values


def baseline_values(run: Run, pixels: str) -> dict[str, list[float]]:
    """The same for the mean map of the run's training data."""
    result = run.results["baseline_mean_map"]
    return _stack([result["valid"] | result["mm"] if pixels == "valid" else result["all"]])


def _stack(rows: list[dict[str, float]]) -> dict[str, list[float]]:
    return {key: [row[key] for row in rows] for key in rows[0]}


def lambda_curve(columns: dict[str, list[Run]]) -> bytes | None:
    """Metrics over lambda, all pixels: dots are seeds, the line their mean; the autoencoder is a level line.

    On the validation split: lambda is chosen by it, and the test split must not choose.

    Returns:
      PNG, None where the runs of the cGAN have fewer than two lambdas.
    """
    sweep = {runs[0].lam: runs for runs in columns.values() if runs[0].method == "cgan"}
    if len(sweep) < 2:
        return None
    lams = sorted(sweep)
    figure = Figure(figsize=(4 * len(CURVE_METRICS), 3.4), layout="constrained")
    for axes, key in zip(figure.subplots(1, len(CURVE_METRICS)), CURVE_METRICS, strict=True):
        metric = next(metric for metric in METRICS if metric.key == key)
        values = [column_values(sweep[lam], "all", "validation")[key] for lam in lams]
        axes.plot(lams, [np.mean(v) for v in values], "-", color="tab:blue", label="cGAN")
        axes.plot(
            *zip(*[(lam, x) for lam, v in zip(lams, values, strict=True) for x in v], strict=True),
            ".",
            color="tab:blue",
        )
        if "ae" in columns:
            values = column_values(columns["ae"], "all", "validation")[key]
            axes.axhline(np.mean(values), color="tab:orange", label="AE")
            axes.axhspan(min(values), max(values), color="tab:orange", alpha=0.2)
        if lams[0] > 0:
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=lams[1])
        axes.set_xticks(lams, [f"{lam:g}" for lam in lams])
        axes.minorticks_off()
        axes.set_xlabel("λ")
        axes.set_title(f"{metric.label} ({metric.better} is better)", fontsize=10)
    axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()


def sample_grid(columns: dict[str, list[Run]], errors: bool = False) -> np.ndarray | None:
    """The grid of Figure 4 from samples/test.npz of each column's first run, on request with maps of the error.

    Returns:
      uint8 (H, W, 3), None where a run kept no samples or the runs have no frame in common.

    Raises:
      FaceDepthError: a file of samples is damaged.
    """
    samples = {}
    for title, runs in columns.items():
        path = runs[0].path / "samples" / "test.npz"
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                samples[title] = {name: arrays[name] for name in ("frame", "gray", "truth_mm", "estimate_mm")}
        except Exception as error:  # zip, zlib, header, key: each has its own
            raise FaceDepthError(f"{path} is damaged; evaluate the run again.") from error
    first = next(iter(samples.values()))
    shared = [frame for frame in first["frame"] if all(frame in s["frame"] for s in samples.values())][:GRID_FACES]
    if not shared:
        return None

    def pick(sample, name):
        where = {frame: i for i, frame in enumerate(sample["frame"])}
        return sample[name][[where[frame] for frame in shared]]

    rows = {"truth": pick(first, "truth_mm")}
    rows |= {title.replace("λ", "lambda"): pick(sample, "estimate_mm") for title, sample in samples.items()}
    return pictures.grid(pick(first, "gray"), rows, errors)


def table_2(columns: dict[str, list[Run]], judge: dict, dataset: str) -> str:
    """Table 2 of every column, with what bounds it: the verifier on true depth and on the mean map."""
    original, mean_map = judge["test"], judge["baseline_mean_map"]
    auc = "" if original["auc"] is None else f" (area under the ROC curve {original['auc']:.4f})"
    parts = [
        "### Table 2, face verification\n",
        "Original / generated depth (pairs); a pair is in a cell when both of its frames are. On true depth the "
        f"verifier is right in {original['accuracy']:.4f} of {original['n']} pairs{auc}, on the mean training map, "
        f"where all look alike, in {mean_map['accuracy']:.4f}.\n",
    ]
    for title, runs in columns.items():
        parts.append(tables.verification_table(original["cells"], [run.verification["cells"] for run in runs], title))
    if dataset == "pandora":
        parts.append(tables.paper_verification_table())
    return "\n".join(parts)


def make_section(runs: Sequence[Run], judge: dict | None, errors: bool) -> tuple[str, dict, dict[str, bytes]]:
    """Tables and pictures of the runs on one data set -> markdown, JSON values, file name -> PNG.

    Args:
      runs: with their verification where there is a judge.
      judge: results.json of the verifier.
      errors: whether the grid of faces has maps of the error.
    """
    columns = group_columns(runs)
    test, dataset, fingerprint = runs[0].results["test"], runs[0].results["dataset"], runs[0].results["fingerprint"]
    name = f"{dataset}-{fingerprint[:8]}"
    pooled = f", those of {len(runs[0].folds)} folds together" if runs[0].folds else ""
    parts = [
        f"## {dataset}\n",
        f"{test['n_frames']} test frames{pooled}; data `{fingerprint[:16]}`. Metrics in levels of depth, ± is the "
        "standard deviation over seeds, per cent are relative to the training set's mean depth map.\n",
        "| | seeds | steps | runs |\n|---|---|---|---|",
    ]
    for title, members in columns.items():
        seeds = ", ".join(str(run.seed) for run in members)
        steps = ", ".join(f"{'/'.join(map(str, run.steps))} of {run.results['steps']}" for run in members)
        parts.append(f"| {title} | {seeds} | {steps} | {', '.join(run.path.name for run in members)} |")
    values = {"dataset": dataset, "fingerprint": fingerprint, "n_frames": test["n_frames"], "columns": {}}
    with_depth = test["n_frames"] - test["n_frames_without_depth"]
    for pixels, words, n in (("all", "all pixels", test["n_frames"]), ("valid", "pixels with true depth", with_depth)):
        table = {title: column_values(members, pixels) for title, members in columns.items()}
        table[MEAN_MAP] = baseline_values(runs[0], pixels)
        beside = {}
        if pixels == "all":
            if judge:
                table[MEAN_MAP][tables.FACE_VERIFICATION.key] = [judge["baseline_mean_map"]["accuracy"]]
            theirs = tables.paper()["table1"].get(dataset, {})
            beside = {f"paper: {method}": theirs[method] for method in theirs if method in {r.method for r in runs}}
        caption = f"{words}, n = {n}"
        parts.append(f"\n### Table 1 over {words}\n\n{markdown_table(table, caption, MEAN_MAP, beside)}")
        for title, column in table.items():
            values["columns"].setdefault(title, {})[pixels] = column
    for title, members in columns.items():
        values["columns"][title] |= {
            "method": members[0].method,
            "lam": members[0].lam,
            "seeds": [run.seed for run in members],
            "steps": [run.steps for run in members],
            "verification": [run.verification for run in members],
        }
    if judge:
        parts.append(table_2(columns, judge, dataset))
        values["verification_of_true_depth"] = judge["test"]
        values["verification_of_mean_map"] = judge["baseline_mean_map"]
    images = {}
    if (curve := lambda_curve(columns)) is not None:
        images[f"lambda-{name}.png"] = curve
        table = {}
        for title, members in columns.items():
            validation = column_values(members, "all", "validation")
            table[title] = {key: validation[key] for key in CURVE_METRICS}
        caption = f"validation, all pixels, n = {runs[0].results['validation']['n_frames']}"
        parts += [
            "### Weight λ of the reconstruction, on the validation split\n",
            f"![curve over lambda](lambda-{name}.png)\n",
            markdown_table(table, caption),
        ]
    if (image := sample_grid(columns, errors)) is not None:
        images[f"faces-{name}.png"] = pictures.encode_png(image)
        where = "the first fold's test split" if runs[0].folds else "the test split"
        parts.append(f"### Faces of {where}\n\n![gray, truth and estimates](faces-{name}.png)\n")
    return "\n".join(parts), values, images


def write_report(
    paths: Sequence[Path],
    out: Path,
    verifiers: Sequence[Path] = (),
    errors: bool = False,
    between: Callable[[], None] = lambda: None,
) -> str:
    """Reads the runs, writes the report into the directory `out`, returns its markdown.

    Args:
      verifiers: verifiers' runs, one for each data set (or fold) of the runs.
      errors: whether the grid of faces has maps of the error.
      between: called before each batch of a verification; what it raises ends the report.

    Raises:
      FaceDepthError: a run cannot be used or the report cannot be written.
    """
    runs, judged = read(paths, verifiers, between)
    by_data = {}
    for run in runs:
        by_data.setdefault(run.results["fingerprint"], []).append(run)
    # Everything is made before anything is written.
    made = (make_section(group, judged.get(data), errors) for data, group in by_data.items())
    sections, values, images = zip(*made, strict=True)
    markdown = "# Report\n\n" + "\n".join(sections)
    for section_images in images:
        for name, content in section_images.items():
            files.write_bytes(out / name, content)
    files.write_json(out / "report.json", values)
    files.write_bytes(out / "report.md", markdown.encode())
    return markdown


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m facedepth_jax.report", description="Tables and pictures of finished training runs."
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="directory of a finished run")
    parser.add_argument("--out", required=True, type=Path, help="directory to write to; files there are replaced")
    parser.add_argument(
        "--verifier",
        dest="verifiers",
        action="append",
        default=[],
        type=Path,
        metavar="RUN",
        help="a verifier's run on the same data, for Table 2; with folds give one for each",
    )
    parser.add_argument("--errors", action="store_true", help="maps of the error in the grid of faces")
    args = parser.parse_args(argv)
    stop = stop_event()

    def between():
        if stop.is_set():
            raise Stopped("Stopped: the runs that were verified are known, the same command continues.")

    try:
        print(write_report(args.runs, args.out, args.verifiers, args.errors, between))
    except Stopped as stopped:
        print(stopped)
    except FaceDepthError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
