"""Folds of a cross-validation, as if they had been measured in one: everybody's figures, each by a net that has never
seen them."""

import math
from collections.abc import Sequence


def pool_figures(folds: Sequence[dict]) -> dict:
    """The figures of disjoint sets of frames -> those of all frames, as `evaluate.evaluate` would give them.

    Exact: means over pixels are weighted by pixels, means over images by images, the roots are taken at the end.

    Args:
      folds: results of `evaluate.evaluate`.
    """
    counts = {name: sum(fold[name] for fold in folds) for name in folds[0] if name.startswith("n_")}
    pixels = {"all": "n_pixels", "valid": "n_pixels_valid", "mm": "n_pixels_mm"}
    pooled = {}
    for part, n_pixels in pixels.items():
        pooled[part] = {}
        for key in folds[0][part]:
            images = [fold["n_frames"] - (part == "valid") * fold["n_frames_without_depth"] for fold in folds]
            weights = images if key in ("l2", "rmse_scale_inv") else [fold[n_pixels] for fold in folds]
            values = [fold[part][key] for fold in folds]
            root = key.startswith("rmse")
            mean = _mean([value**2 for value in values] if root else values, weights)
            pooled[part][key] = math.sqrt(mean) if root else mean
    return pooled | counts


def pool_verification(folds: Sequence[dict]) -> dict:
    """The same for results of `verification.verify`, weighted by pairs.

    "auc" is the mean of the folds', None if one has none: scores of different verifiers are not ranked together.
    """
    weights = [fold["n"] for fold in folds]
    pooled = {name: sum(fold[name] for fold in folds) for name in ("n", "n_same", "n_frames")}
    for name in ("accuracy", "auc", "loss"):
        values = [fold[name] for fold in folds]
        pooled[name] = None if None in values else _mean(values, weights)
    pooled["cells"] = {
        angles: {sequences: _pool_cell([fold["cells"][angles][sequences] for fold in folds]) for sequences in row}
        for angles, row in folds[0]["cells"].items()
    }
    return pooled


def _pool_cell(cells):
    full = [cell for cell in cells if cell["n"]]
    weights = [cell["n"] for cell in full]
    return {"accuracy": _mean([cell["accuracy"] for cell in full], weights) if full else None, "n": sum(weights)}


def _mean(values, weights):
    return math.fsum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
