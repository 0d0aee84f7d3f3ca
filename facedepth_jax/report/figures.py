"""Values and pictures of the report: the columns of the tables, curves over steps and lambda, the grid of Figure 4."""

import io
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from facedepth_jax import pictures
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.metrics import METRICS, RELIEF_METRICS
from facedepth_jax.report.runs import Run
from facedepth_jax.tables import FACE_VERIFICATION

CURVE_METRICS = {metric.key: metric for metric in METRICS if metric.key in ("l1", "rmse_lin", "delta_1.25^(1/4)")}
STEP_METRICS = [metric for metric in (*METRICS, *RELIEF_METRICS) if metric.key in ("l1", "relief_mae", "mask_iou")]
GRID_FACES = 8


def table(columns: dict[str, list[Run]], pixels: str, measured: str = "test") -> tuple[dict, dict]:
    """Collect the figures of columns of runs, as `tables.markdown_table` wants them.

    Args:
      columns: title -> runs that differ in their seed alone.
      pixels: "all", "valid" for those with true depth, with the errors in millimetres, or "relief".
      measured: "test" or "validation"; with face verification over all pixels.

    Returns:
      title -> {metric key: one value a run} of the metrics that all its runs have;
      title -> {metric key: standard error over people} if it is one run, and has any.
    """
    values, errors = {}, {}
    for title, runs in columns.items():
        found, spread = zip(*(_figures(run, pixels, measured) for run in runs), strict=True)
        values[title] = {key: [row[key] for row in found] for key in found[0] if all(key in row for row in found)}
        errors[title] = spread[0] if len(runs) == 1 else {}
    return values, errors


def _figures(run, pixels, measured):
    result = run.results[measured]
    errors = {"all": {}, "valid": {}, "mm": {}} | result.get("standard_error", {})  # older results have none
    if pixels == "relief":
        return result.get("relief", {}), errors.get("relief", {})
    if pixels == "valid":
        return result["valid"] | result["mm"], errors["valid"] | errors["mm"]
    if not run.verification:
        return result["all"], errors["all"]
    key, verified = FACE_VERIFICATION.key, run.verification[measured]
    return result["all"] | {key: verified["accuracy"]}, errors["all"] | {key: verified["standard_error"]["accuracy"]}


def lambda_curve(columns: dict[str, list[Run]]) -> bytes | None:
    """Draw metrics over lambda, all pixels: dots are seeds, the line their mean; the autoencoder is a level line.

    On the validation split: lambda is chosen by it, and the test split must not choose.

    Returns:
      PNG, None where the runs of the cGAN, all of one origin of depth, have fewer than two lambdas.
    """
    sweeps = {}  # by discriminator
    for title, runs in columns.items():
        if runs[0].method == "cgan":
            sweeps.setdefault(runs[0].discriminator_pixels, {})[runs[0].lam] = title
    lams, (values, _) = sorted({lam for sweep in sweeps.values() for lam in sweep}), table(columns, "all", "validation")
    if len(lams) < 2:
        return None
    ae = next((title for title, runs in columns.items() if runs[0].method == "ae"), None)
    figure = Figure(figsize=(4 * len(CURVE_METRICS), 3.4), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(CURVE_METRICS)), CURVE_METRICS.values(), strict=True):
        for (pixels, sweep), color in zip(sweeps.items(), ("tab:blue", "tab:green"), strict=False):
            seeds = {lam: values[title].get(metric.key, [np.nan]) for lam, title in sweep.items()}
            label = "cGAN" if len(sweeps) == 1 else f"cGAN, D on {pixels}"
            axes.plot(list(seeds), [np.mean(found) for found in seeds.values()], "-", color=color, label=label)
            dots = [(lam, value) for lam, found in seeds.items() for value in found]
            axes.plot(*zip(*dots, strict=True), ".", color=color)
        if level := values.get(ae, {}).get(metric.key):
            axes.axhline(np.mean(level), color="tab:orange", label="AE")
            axes.axhspan(min(level), max(level), color="tab:orange", alpha=0.2)
        if lams[0] > 0:
            axes.set_xscale("log")
        else:
            axes.set_xscale("symlog", linthresh=lams[1])
        axes.set_xticks(lams, [f"{lam:g}" for lam in lams])
        axes.minorticks_off()
        axes.set_xlabel("λ")
        axes.set_title(f"{metric.label} ({metric.better} is better)", fontsize=10)
    axes.legend()
    return _png(figure)


def training_curve(columns: dict[str, list[Run]]) -> bytes | None:
    """Draw validation figures over the steps of training, pixels with true depth: a line is a run or fold.

    Returns a PNG, None where no run was validated twice. Raises FaceDepthError if a metrics.jsonl is damaged.
    """
    found = {
        title: [_validations(part.path) for run in runs for part in run.folds or (run,)]
        for title, runs in columns.items()
    }
    lines = [line for runs in found.values() for run in runs for line in run]
    shown = [metric for metric in STEP_METRICS if any(metric.key in line for _, line in lines)]
    if not shown or max(len(run) for runs in found.values() for run in runs) < 2:
        return None
    figure = Figure(figsize=(4 * len(shown), 3.4), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for number, (title, runs) in enumerate(found.items()):
            for run in runs:
                points = [(step, line.get(metric.key, np.nan)) for step, line in run]
                axes.plot(*np.reshape(points, (-1, 2)).T, color=f"C{number}", label=title if run is runs[0] else None)
        axes.set_xlabel("step")
        axes.set_title(f"{metric.label} ({metric.better} is better)", fontsize=10)
    axes.legend()
    return _png(figure)


def _validations(run: Path) -> list[tuple[int, dict]]:
    """Read the steps of a run's metrics.jsonl that have figures of the validation split, and those."""
    file, found = run / "metrics.jsonl", []
    try:
        for line in file.read_text().splitlines() if file.is_file() else ():
            values = json.loads(line)
            figures = {key.removeprefix("validation/"): values[key] for key in values if key.startswith("validation/")}
            if figures:
                found.append((values["step"], figures))
    except (ValueError, KeyError, TypeError) as error:
        raise FaceDepthError(f"{file} is damaged ({error}): remove it, for a report without its curve.") from error
    return found


def _png(figure):
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()


def sample_grid(columns: dict[str, list[Run]], errors: bool = False) -> bytes | None:
    """Draw the grid of Figure 4 from samples/test.npz of each column's first run, on request with maps of the error.

    Returns a PNG, None where a run kept no samples or the runs have no frame in common. Raises FaceDepthError if a file
    of samples is damaged.
    """
    samples = {}
    for title, runs in columns.items():
        path = runs[0].path / "samples" / "test.npz"
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as arrays:
                names, *images = (arrays[name] for name in ("frame", "gray", "truth_mm", "estimate_mm"))
        except Exception as error:  # zip, zlib, header, key: each has its own
            raise FaceDepthError(f"{path} is damaged; evaluate the run again.") from error
        samples[title] = {name: faces for name, *faces in zip(names.tolist(), *images, strict=True)}
    first = next(iter(samples.values()))
    shared = [name for name in first if all(name in faces for faces in samples.values())][:GRID_FACES]
    if not shared:
        return None
    gray, truth = (np.stack([first[name][i] for name in shared]) for i in (0, 1))
    rows = {"truth": truth}
    for title, faces in samples.items():
        rows[title.replace("λ", "lambda")] = np.stack([faces[name][2] for name in shared])
    return pictures.encode_png(pictures.grid(gray, rows, errors))
