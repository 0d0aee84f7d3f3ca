"""The thirteen pixel-wise metrics of the paper's Table 1, in levels, and errors in millimetres beside them.

Two steps, so that neither batch size nor device count nor padding can change a figure: `image_sums` reduces every image
to a few numbers on the device, `finalize` takes the ratios and roots once over all images of a split, in float64.

Definitions: Pini et al. (2018), Table 1, after Eigen et al., "Depth map prediction from a single image using a
multi-scale deep network" (2014). What the paper leaves open follows from its figures: RMSE lin and log take the root
last, over the whole split; the L2 norm is an image's own norm, averaged over images (in all eight columns of Table 1
it is just below 96 times RMSE lin). Before a logarithm or a ratio both depths are raised to one level.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from facedepth_jax.errors import FaceDepthError


class Metric(NamedTuple):
    """A row of Table 1: key in results.json, label, which direction is better, decimals to print."""

    key: str
    label: str
    better: str
    decimals: int


DELTAS = {
    "delta_1.25": 1.25,
    "delta_1.25^2": 1.25**2,
    "delta_1.25^3": 1.25**3,
    "delta_1.25^(1/4)": 1.25 ** (1 / 4),
    "delta_1.25^(1/3)": 1.25 ** (1 / 3),
    "delta_1.25^(1/2)": 1.25 ** (1 / 2),
}

METRICS = (
    Metric("l1", "L1 norm", "lower", 3),
    Metric("l2", "L2 norm", "lower", 1),
    Metric("abs_diff", "Absolute diff", "lower", 4),
    Metric("squared_diff", "Squared diff", "lower", 4),
    Metric("rmse_lin", "RMSE lin", "lower", 3),
    Metric("rmse_log", "RMSE log", "lower", 4),
    Metric("rmse_scale_inv", "RMSE scale-inv", "lower", 4),
    *(Metric(key, key.replace("delta_", "δ < "), "higher", 4) for key in DELTAS),
)

MM_METRICS = (
    Metric("mae_mm", "Mean absolute error, mm", "lower", 2),
    Metric("rmse_mm", "RMSE, mm", "lower", 2),
)


def image_sums(pred_levels, true_levels, mask) -> dict:
    """Sums over the pixels of each image that `finalize` needs.

    Args:
      pred_levels: float32 (B, H, W), predicted depth in levels, not rounded.
      true_levels: float32 (B, H, W), true depth in levels.
      mask: bool (B, H, W), the pixels that count.

    Returns:
      name -> float32 (B,).
    """
    pixels = (1, 2)
    weight = mask.astype(jnp.float32)
    p, t = jnp.maximum(pred_levels, 1.0), jnp.maximum(true_levels, 1.0)
    error = pred_levels - true_levels
    log_ratio = jnp.log(p) - jnp.log(t)

    def total(x):
        # where, not a product: what a masked pixel holds must not matter, be it infinite
        return jnp.sum(jnp.where(mask, x, 0.0), axis=pixels)

    count = jnp.sum(weight, axis=pixels)
    # The scale-invariant error is a variance of log ratios. Two passes: in float32 the difference of the two means
    # would lose it for an estimate that is right up to a factor.
    mean_log_ratio = total(log_ratio) / jnp.maximum(count, 1.0)
    centred = log_ratio - mean_log_ratio[:, None, None]
    sums = {
        "count": count,
        "abs": total(jnp.abs(error)),
        "squared": total(error**2),
        "abs_by_true": total(jnp.abs(error) / t),
        "squared_by_true": total(error**2 / t),
        "log_squared": total(log_ratio**2),
        "log_centred_squared": total(centred**2),
    }
    # max(p / t, t / p) < k without a division: exact where levels are whole and k is 1.25, 1.25^2 or 1.25^3
    smaller, larger = jnp.minimum(p, t), jnp.maximum(p, t)
    return sums | {key: total((larger < k * smaller).astype(jnp.float32)) for key, k in DELTAS.items()}


def finalize(sums: dict[str, np.ndarray]) -> dict[str, float]:
    """The thirteen metrics over all images of a split.

    Args:
      sums: name -> float64 (N,), as `image_sums` gives them, padding removed. An image without any pixel (count 0)
        adds nothing and is left out of the means over images. The L2 norm of an image is then the root of the sum over
        the pixels that count, without rescaling: it shrinks with the mask.

    Returns:
      key of METRICS -> value.

    Raises:
      FaceDepthError: if no image has a pixel that counts.
    """
    sums = {name: np.asarray(values, np.float64) for name, values in sums.items()}
    kept = sums["count"] > 0
    if not kept.any():
        raise FaceDepthError(
            "No pixel with depth to measure on: the evaluated frames are empty; check the prepared depth."
        )
    sums = {name: values[kept] for name, values in sums.items()}
    n_pixels = sums["count"].sum()

    def per_pixel(name):
        return sums[name].sum() / n_pixels

    values = {
        "l1": per_pixel("abs"),
        "l2": np.sqrt(sums["squared"]).mean(),
        "abs_diff": per_pixel("abs_by_true"),
        "squared_diff": per_pixel("squared_by_true"),
        "rmse_lin": np.sqrt(per_pixel("squared")),
        "rmse_log": np.sqrt(per_pixel("log_squared")),
        "rmse_scale_inv": np.sqrt((sums["log_centred_squared"] / sums["count"]).mean()),
    }
    values |= {key: per_pixel(key) for key in DELTAS}
    return {key: float(value) for key, value in values.items()}


def mm_sums(pred_mm, true_mm, mask) -> dict:
    """Per-image sums of errors in millimetres: float32 (B, H, W) twice, bool (B, H, W) -> name -> float32 (B,)."""
    error = jnp.where(mask, pred_mm - true_mm, 0.0)
    pixels = (1, 2)
    return {
        "count": jnp.sum(mask.astype(jnp.float32), axis=pixels),
        "abs": jnp.sum(jnp.abs(error), axis=pixels),
        "squared": jnp.sum(error**2, axis=pixels),
    }


def finalize_mm(sums: dict[str, np.ndarray]) -> dict[str, float]:
    """`mm_sums` of all images, float64 (N,) each -> mae_mm and rmse_mm over all pixels of the split.

    Raises:
      FaceDepthError: if no pixel counts.
    """
    sums = {name: np.asarray(values, np.float64).sum() for name, values in sums.items()}
    if sums["count"] == 0:
        raise FaceDepthError(
            "No pixel's true depth lies within what the levels can express: check the depth code (offset_mm, step_mm)."
        )
    return {
        "mae_mm": float(sums["abs"] / sums["count"]),
        "rmse_mm": float(np.sqrt(sums["squared"] / sums["count"])),
    }
