"""Values and pictures of the report: the columns of the tables, the curve over lambda, the grid of Figure 4."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from facedepth_jax import pictures
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.metrics import METRICS
from facedepth_jax.report.runs import Run

CURVE_METRICS = [metric for metric in METRICS if metric.key in ("l1", "rmse_lin", "delta_1.25^(1/4)")]
GRID_FACES = 8


def column_values(runs: Sequence[Run], pixels: str, measured: str = "test") -> dict[str, list[float]]:
    """Collect the values of a column.

    Args:
      pixels: "all", or "valid" for those with true depth, with the errors in millimetres.
      measured: "test", "validation" or "baseline_mean_map".

    Returns:
      {metric key: one value a run} of the metrics that all runs have.
    """
    rows = [_with_mm(run.results[measured], pixels) for run in runs]
    return {key: [row[key] for row in rows] for key in rows[0] if all(key in row for row in rows)}


def column_errors(runs: Sequence[Run], pixels: str, measured: str = "test") -> dict[str, float | None]:
    """Take the standard errors over people of a column of one run; a column of several has none, nor has an old run."""
    errors = runs[0].results[measured].get("standard_error") if len(runs) == 1 else None
    return _with_mm(errors, pixels) if errors else {}


def _with_mm(result, pixels):
    return result["all"] if pixels == "all" else result["valid"] | result["mm"]


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
    for axes, metric in zip(figure.subplots(1, len(CURVE_METRICS)), CURVE_METRICS, strict=True):
        values = [column_values(runs, "all", "validation").get(metric.key, [np.nan]) for _, runs in sweep]
        axes.plot(lams, [np.mean(v) for v in values], "-", color="tab:blue", label="cGAN")
        dots = [(lam, x) for lam, v in zip(lams, values, strict=True) for x in v]
        axes.plot(*zip(*dots, strict=True), ".", color="tab:blue")
        level = column_values(columns["ae"], "all", "validation").get(metric.key) if "ae" in columns else None
        if level:
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
