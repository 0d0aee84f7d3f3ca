"""Measure an estimate of depth over the rows of a split: every frame once, {metric: value} at the end.

Every batch has the same size, so nothing is compiled twice; the last one is padded with its own last frame and the
padding is cut off before anything is summed.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from facedepth_jax import devices, metrics
from facedepth_jax.data.arrays import Arrays
from facedepth_jax.depth_code import DepthCode, true_foreground, without_background
from facedepth_jax.errors import FaceDepthError

BATCH = 32  # images a device; no figure depends on it
MEAN_MAP = "mean training map"  # title of `mean_map` in tables
# gray uint8 (B, S, S), distance_mm float32 (B,) -> depth float32 (B, S, S), millimetres, and the foreground, bool
# (B, S, S), or None.
Estimate = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array | None]]


@functools.partial(jax.jit, static_argnames="code")
def _batch_sums(estimate, depth_mm, distance_mm, pitch_mm, code: DepthCode) -> dict:
    """Sum up each image of a batch of estimates against true depth uint16 (B, S, S): values (B,).

    Relief is measured wherever the face is, whatever the mask says: that has its own figure. Elsewhere the background
    counts as what the paper's files have there, "no depth".
    """
    estimate_mm, foreground = estimate
    shown_mm = without_background(estimate_mm, foreground)
    pred_levels, true_levels = code.estimated_levels(shown_mm), code.quantize(depth_mm)
    valid = depth_mm > 0
    true_mm = depth_mm.astype(jnp.float32)
    relief = metrics.relief_sums(estimate_mm, true_mm, distance_mm, pitch_mm)
    if foreground is not None:
        relief["mask_iou"] = metrics.intersection_over_union(foreground, true_foreground(depth_mm, distance_mm))
    shown_mm = jnp.where(shown_mm > 0, shown_mm, code.from_levels(code.none_level))
    low, high = code.range_mm
    return {
        "all": metrics.image_sums(pred_levels, true_levels, jnp.ones_like(valid)),
        "valid": metrics.image_sums(pred_levels, true_levels, valid),
        "mm": metrics.mm_sums(shown_mm, true_mm, valid & (true_mm >= low) & (true_mm <= high)),
        "relief": relief,
        "finite": jnp.isfinite(estimate_mm).all(axis=(1, 2)),
    }


def evaluate(estimate: Estimate, data: Arrays, rows: Sequence[int], code: DepthCode, mesh=None) -> dict:
    """Measure an estimate on rows of prepared arrays.

    Args:
      estimate: jitted by the caller.
      rows: the rows to measure, each counted once.
      code: how depth becomes levels.
      mesh: the devices among which a batch is divided, each process reading its share; all, by default.

    Returns:
      `metrics.figures`: "all", the thirteen metrics over all pixels, where "no depth" is its level as in training;
      "valid", the same over pixels with true depth only; "mm", errors against the true millimetres (not against levels,
      so the quantisation counts) over pixels whose depth the levels can express; "relief", the shape of faces; standard
      errors, counts, and sums by person.

    Raises:
      FaceDepthError: no rows, an estimate that is not finite (the frames are named), or nothing measurable.
    """
    rows = np.asarray(rows, np.int64)
    if rows.size == 0:
        raise FaceDepthError("There is no frame to evaluate: the split is empty; check the data set's splits.")
    mesh = mesh or devices.make_mesh()
    pitch_mm = data.meta["crop"]["face_mm"] / data.gray.shape[-1]
    batch_size = BATCH * mesh.size
    collected = []
    for start in range(0, rows.size, batch_size):
        batch_rows = rows[start : start + batch_size]
        mine = devices.share(np.pad(batch_rows, (0, batch_size - batch_rows.size), mode="edge"))
        batch = data.gray[mine], data.distance_mm[mine], data.depth_mm[mine]
        gray, distances, depth_mm = devices.put_batch(mesh, batch)
        sums = _batch_sums(estimate(gray, distances), depth_mm, distances, pitch_mm, code)
        collected.append(devices.put_everywhere(mesh, sums))
        jax.block_until_ready(collected[-2:][0])  # one batch late, so that the device never waits for the host
    sums = jax.tree.map(lambda *parts: np.concatenate(parts)[: rows.size], *jax.device_get(collected))
    bad = data.frames["frame"][rows[~sums.pop("finite")]]
    if bad.size:
        more = f" and {bad.size - 5} more" if bad.size > 5 else ""
        raise FaceDepthError(
            f"The net's estimate is not finite for {', '.join(bad[:5])}{more}: its weights are unusable."
        )
    return metrics.figures(metrics.person_sums(sums, data.frames["subject"][rows]))


def mean_map(data: Arrays, code: DepthCode) -> Estimate:
    """Make the estimate that ignores its input: the mean image of the training rows, the best constant in MSE.

    "No depth" enters the mean as its level. From the head it is the mean relief of the foreground, which is where at
    least half of the rows have it.
    """
    rows = data.rows("train")
    total, count = np.zeros((2, *data.depth_mm.shape[1:]))
    for start in range(0, rows.size, 256):
        some = rows[start : start + 256]
        depth_mm, distances = data.depth_mm[some], data.distance_mm[some]
        image = np.asarray(code.encode(depth_mm, distances))[..., 0]
        counted = (
            np.asarray(true_foreground(depth_mm, distances)) if code.origin == "head" else np.ones_like(image, bool)
        )
        total += image.sum(0, np.float64, where=counted)
        count += counted.sum(0)
    mean = (total / np.maximum(count, 1))[None, ..., None].astype(np.float32)
    foreground = (count >= rows.size / 2)[None]

    def estimate(gray, distance_mm):
        depth_mm, mask = code.decode(jnp.broadcast_to(mean, (*gray.shape, 1)), distance_mm)
        return depth_mm, mask if mask is None else jnp.broadcast_to(foreground, mask.shape)

    return estimate
