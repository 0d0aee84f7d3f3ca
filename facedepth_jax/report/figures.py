"""Values and pictures of the report: the columns of the tables, the curve over lambda, the grid of Figure 4."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from facedepth_jax import pictures
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.metrics import METRICS
from facedepth_jax.report.runs import Run
from facedepth_jax.tables import FACE_VERIFICATION

CURVE_METRICS = {metric.key: metric for metric in METRICS if metric.key in ("l1", "rmse_lin", "delta_1.25^(1/4)")}
GRID_FACES = 8


def column(runs: Sequence[Run], pixels: str, measured: str = "test") -> tuple[dict, dict]:
    """Collect the figures of runs that differ in their seed alone.

    Args:
      pixels: "all", or "valid" for those with true depth, with the errors in millimetres.
      measured: "test", with face verification over all pixels, or "validation".

    Returns:
      {metric key: one value a run} of the metrics that all runs have;
      {metric key: standard error over people} if there is one run, and it has any.
    """
    values, errors = zip(*(_figures(run, pixels, measured) for run in runs), strict=True)
    values = {key: [row[key] for row in values] for key in values[0] if all(key in row for row in values)}
    return values, errors[0] if len(runs) == 1 else {}


def _figures(run, pixels, measured):
    result = run.results[measured]
    errors = result.get("standard_error", {"all": {}, "valid": {}, "mm": {}})  # runs from before have none
    if pixels == "valid":
        return result["valid"] | result["mm"], errors["valid"] | errors["mm"]
    if measured == "validation" or not run.verification:
        return result["all"], errors["all"]
    key, verified = FACE_VERIFICATION.key, run.verification
    return result["all"] | {key: verified["accuracy"]}, errors["all"] | {key: verified.get("standard_error")}


def lambda_curve(columns: dict[str, list[Run]]) -> bytes | None:
    """Draw metrics over lambda, all pixels: dots are seeds, the line their mean; the autoencoder is a level line.

    On the validation split: lambda is chosen by it, and the test split must not choose.

    Returns:
      PNG, None where the runs of the cGAN have fewer than two lambdas.
    """
    sweep = sorted((runs[0].lam, runs) for runs in columns.values() if runs[0].method == "cgan")
    if len(sweep) < 2:
        return None
    lams = [lam for lam, _ in sweep]
    figure = Figure(figsize=(4 * len(CURVE_METRICS), 3.4), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(CURVE_METRICS)), CURVE_METRICS.values(), strict=True):
        values = [column(runs, "all", "validation")[0].get(metric.key, [np.nan]) for _, runs in sweep]
        axes.plot(lams, [np.mean(v) for v in values], "-", color="tab:blue", label="cGAN")
        dots = [(lam, x) for lam, v in zip(lams, values, strict=True) for x in v]
        axes.plot(*zip(*dots, strict=True), ".", color="tab:blue")
        if level := column(columns["ae"], "all", "validation")[0].get(metric.key) if "ae" in columns else None:
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
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    return content.getvalue()


def sample_grid(columns: dict[str, list[Run]], errors: bool = False) -> bytes | None:
    """Draw the grid of Figure 4 from samples/test.npz of each column's first run, on request with maps of the error.

    Returns:
      PNG, None where a run kept no samples or the runs have no frame in common.

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
