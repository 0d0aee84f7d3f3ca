"""A network over the rows of a split: every frame once, {metric: value} at the end.

Every batch has the same size, so nothing is compiled twice; the last one is padded with its own last frame and the
padding is cut off before anything is summed.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from facedepth_jax import metrics
from facedepth_jax.depth_code import DepthCode
from facedepth_jax.errors import FaceDepthError

MEAN_MAP = "mean training map"  # title of `mean_map_baseline` in tables
Predict = Callable[[jax.Array], jax.Array]  # gray uint8 (B, S, S) -> depth image float32 (B, S, S, 1) in [-1, 1]


@functools.partial(jax.jit, static_argnames="code")
def _batch_sums(image, depth_mm, code: DepthCode) -> dict:
    """Per-image sums (B,) of a batch of estimates (B, S, S, 1) against true depth uint16 (B, S, S)."""
    pred_levels = levels.levels_from_image(image[..., 0], code)
    true_levels = levels.levels_from_mm(depth_mm, code)
    valid = depth_mm > 0
    true_mm = depth_mm.astype(jnp.float32)
    in_range = valid & (true_mm >= code.offset_mm) & (true_mm <= code.offset_mm + 255 * code.step_mm)
    return {
        "all": metrics.image_sums(pred_levels, true_levels, jnp.ones_like(valid)),
        "valid": metrics.image_sums(pred_levels, true_levels, valid),
        "mm": metrics.mm_sums(levels.mm_from_levels(pred_levels, code), true_mm, in_range),
        "finite": jnp.isfinite(image).all(axis=(1, 2, 3)),
    }


def evaluate(
    predict: Predict,
    gray: np.ndarray,
    depth_mm: np.ndarray,
    rows: Sequence[int],
    code: DepthCode,
    batch_size: int,
    *,
    frames: Sequence[str] | None = None,
    devices: jax.sharding.Mesh | None = None,
    between: Callable[[], None] = lambda: None,
) -> dict:
    """Measures a network on rows of the arrays.

    Args:
      predict: gray uint8 (B, S, S) -> depth image float32 (B, S, S, 1) in [-1, 1]; jitted by the caller.
      gray: uint8 (N, S, S), may be a memmap.
      depth_mm: uint16 (N, S, S), 0 = none, may be a memmap.
      rows: the rows to measure, each counted once.
      code: how depth becomes levels.
      batch_size: frames a call of `predict`, a multiple of the devices; does not change the result.
      frames: names of all N rows for error messages; without them the row numbers are named.
      devices: among which a batch is divided, each process reading its share; all, by default.
      between: called before each batch; what it raises ends the evaluation.

    Returns:
      Plain JSON values:
        "all": the thirteen metrics over all pixels, where "no depth" is its level (`none_level`) as in training;
        "valid": the same over pixels with true depth only; a frame without any is left out;
        "mm": mae_mm and rmse_mm against the true millimetres (not against levels, so the quantisation counts as error)
          over pixels whose true depth the levels can express, 500..2540 mm by default: the rest cannot be predicted;
        "n_frames", "n_pixels", "n_pixels_valid", "n_pixels_mm": what the three were taken over;
        "n_frames_without_depth": frames left out of "valid".

    Raises:
      FaceDepthError: if there are no rows, an estimate is not finite (the frames are named), or nothing is measurable.
    """
    rows = np.asarray(rows, np.int64)
    if rows.size == 0:
        raise FaceDepthError("There is no frame to evaluate: the split is empty; check the data set's splits.")

    devices = devices or devices.make_mesh()
    collected = []

    def collect(batch_rows, sums):
        sums = jax.tree.map(lambda x: x[: len(batch_rows)], jax.device_get(sums))
        bad = batch_rows[~sums.pop("finite")]
        if bad.size:
            names = ", ".join(str(frames[row]) if frames is not None else f"row {row}" for row in bad[:5])
            more = f" and {bad.size - 5} more" if bad.size > 5 else ""
            raise FaceDepthError(f"The network's estimate is not finite for {names}{more}: its weights are unusable.")
        collected.append(sums)

    pending = None
    for start in range(0, rows.size, batch_size):
        between()
        batch_rows = rows[start : start + batch_size]
        padded = np.pad(batch_rows, (0, batch_size - batch_rows.size), mode="edge")
        mine = devices.share(padded)
        batch = devices.put_batch(devices, {"gray": gray[mine], "depth_mm": depth_mm[mine]})
        sums = devices.put_everywhere(devices, _batch_sums(predict(batch["gray"]), batch["depth_mm"], code))
        if pending is not None:  # one batch late, so that the device never waits for the host
            collect(*pending)
        pending = batch_rows, sums
    collect(*pending)

    sums = jax.tree.map(lambda *parts: np.concatenate(parts).astype(np.float64), *collected)
    return {
        "all": metrics.finalize(sums["all"]),
        "valid": metrics.finalize(sums["valid"]),
        "mm": metrics.finalize_mm(sums["mm"]),
        "n_frames": int(rows.size),
        "n_pixels": int(sums["all"]["count"].sum()),
        "n_pixels_valid": int(sums["valid"]["count"].sum()),
        "n_pixels_mm": int(sums["mm"]["count"].sum()),
        "n_frames_without_depth": int((sums["valid"]["count"] == 0).sum()),
    }


def mean_map_baseline(depth_mm: np.ndarray, rows: Sequence[int], code: DepthCode) -> Predict:
    """The estimate that ignores its input: the mean level image over the training rows, the best constant map in MSE.

    Args:
      depth_mm: uint16 (N, S, S), 0 = none, may be a memmap.
      rows: the training rows.
      code: how depth becomes levels; "no depth" enters the mean as its level, as it enters training.

    Raises:
      FaceDepthError: if there are no rows.
    """
    rows = np.asarray(rows, np.int64)
    if rows.size == 0:
        raise FaceDepthError("There is no training frame to average: the training split is empty.")
    total = np.zeros(depth_mm.shape[1:], np.float64)
    for start in range(0, rows.size, 256):
        true_levels = levels.levels_from_mm(depth_mm[rows[start : start + 256]], code)
        total += np.asarray(true_levels).sum(axis=0, dtype=np.float64)
    mean_image = levels.image_from_levels(total / rows.size, code)[None, :, :, None]
    return lambda gray: jnp.broadcast_to(mean_image, (*gray.shape, 1))
