"""Compute the thirteen pixel-wise metrics of the paper's Table 1, in levels; errors in millimetres; errors of relief.

Sums first, ratios and roots last, so that neither batch size nor device count nor padding can change a figure, and
folds and seeds pool by adding: on the device `image_sums`, `mm_sums` and `relief_sums` reduce every image to a few
numbers, `person_sums` adds them up by person, and `figures` turns the sums of any set of people into metrics, in
float64, each with a standard error over people.

Definitions: Pini et al. (2018), Table 1, after Eigen et al., "Depth map prediction from a single image using a
multi-scale deep network" (2014). The paper's figures decide where its words do not: RMSE lin and log take the root
last, over the whole split; the L2 norm is an image's own norm, averaged over images (in all eight columns of Table 1
it is just below 96 times RMSE lin). Logarithms and the ratios of δ take both depths raised to one level; the absolute
and the squared difference are of the depths as they are, and the true depth that divides them is raised.

Relief is the shape of a face wherever it is: of each image, over the pixels of the face.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from facedepth_jax.errors import FaceDepthError


class Metric(NamedTuple):
    """A row of a table.

    Attributes:
      key: in results.json.
      label: in tables, with `better`, "lower" or "higher", and so many `decimals`.
      value: sums (name -> a number or (n,)) over any set of images -> the metric.
    """

    key: str
    label: str
    better: str
    decimals: int
    value: Callable | None = None


DELTAS = {
    "delta_1.25": 1.25,
    "delta_1.25^2": 1.25**2,
    "delta_1.25^3": 1.25**3,
    "delta_1.25^(1/4)": 1.25 ** (1 / 4),
    "delta_1.25^(1/3)": 1.25 ** (1 / 3),
    "delta_1.25^(1/2)": 1.25 ** (1 / 2),
}

METRICS = (
    Metric("l1", "L1 norm", "lower", 3, lambda sums: sums["abs"] / sums["count"]),
    Metric("l2", "L2 norm", "lower", 1, lambda sums: sums["l2"] / sums["images"]),
    Metric("abs_diff", "Absolute diff", "lower", 4, lambda sums: sums["abs_by_true"] / sums["count"]),
    Metric("squared_diff", "Squared diff", "lower", 4, lambda sums: sums["squared_by_true"] / sums["count"]),
    Metric("rmse_lin", "RMSE lin", "lower", 3, lambda sums: np.sqrt(sums["squared"] / sums["count"])),
    Metric("rmse_log", "RMSE log", "lower", 4, lambda sums: np.sqrt(sums["log_squared"] / sums["count"])),
    Metric("rmse_scale_inv", "RMSE scale-inv", "lower", 4, lambda sums: np.sqrt(sums["scale_inv"] / sums["images"])),
    *(
        Metric(key, key.replace("delta_", "δ < "), "higher", 4, lambda sums, key=key: sums[key] / sums["count"])
        for key in DELTAS
    ),
)

MM_METRICS = (
    Metric("mae_mm", "Mean absolute error, mm", "lower", 2, lambda sums: sums["abs"] / sums["count"]),
    Metric("rmse_mm", "RMSE, mm", "lower", 2, lambda sums: np.sqrt(sums["squared"] / sums["count"])),
)
RELIEF_METRICS = (
    Metric("relief_mae", "Relief error, mm", "lower", 2, lambda sums: sums["relief_mae"] / sums["images"]),
    Metric(
        "relief_mae_scaled",
        "Relief error at the best scale, mm",
        "lower",
        2,
        lambda sums: sums["relief_mae_scaled"] / sums["images"],
    ),
    Metric("normals_deg", "Normals, degrees", "lower", 2, lambda sums: sums["normals_deg"] / sums["images"]),
    Metric("mask_iou", "Foreground, IoU", "higher", 4, lambda sums: sums["mask_iou"] / sums["images"]),
)
_PARTS = {"all": METRICS, "valid": METRICS, "mm": MM_METRICS, "relief": RELIEF_METRICS}
FACE_MM, FACE_RADIUS = 100.0, 0.30  # of the head's distance; of the image's side, about its middle
MIN_FACE_SHARE = 200 / 96**2  # of an image's pixels: with fewer it shows no face
_EMPTY = "No pixel with depth to measure on: the evaluated frames are empty; check the prepared depth."
_NOTHING = {
    "all": _EMPTY,
    "valid": _EMPTY,
    "mm": "No pixel's true depth lies within what the levels can express: check the depth code (offset_mm, step_mm).",
}


def image_sums(pred_levels, true_levels, mask) -> dict:
    """Reduce each image to the sums that the thirteen metrics are made of.

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


def mm_sums(pred_mm, true_mm, mask) -> dict:
    """Sum the errors in millimetres of each image: float32 (B, H, W) twice, bool (B, H, W) -> name -> float32 (B,)."""
    error = jnp.where(mask, pred_mm - true_mm, 0.0)
    pixels = (1, 2)
    return {
        "count": jnp.sum(mask.astype(jnp.float32), axis=pixels),
        "abs": jnp.sum(jnp.abs(error), axis=pixels),
        "squared": jnp.sum(error**2, axis=pixels),
    }


def relief_sums(pred_mm, true_mm, distance_mm, pitch_mm) -> dict:
    """Measure the relief of each image over its face: true depth within FACE_MM of the head's, within FACE_RADIUS.

    "relief_mae" is the mean absolute error after its median is taken away; "relief_mae_scaled" the same of the estimate
    at its best scale by least squares; "normals_deg" is the mean angle between the normals of both maps, each
    smoothed by a mean of 3x3.

    Args:
      pred_mm, true_mm: float32 (B, S, S), millimetres, 0 = none.
      distance_mm: float32 (B,), of the head, D of Eq. 6.
      pitch_mm: a pixel's side at that distance.

    Returns:
      name -> float32 (B,); the "count" of pixels is 0 for an image without a face.
    """
    size = true_mm.shape[-1]
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    circle = x**2 + y**2 <= (FACE_RADIUS * size) ** 2
    face = (true_mm > 0) & (jnp.abs(true_mm - distance_mm[:, None, None]) <= FACE_MM) & circle[None]
    p, t, m = (image[:, *np.nonzero(circle)] for image in (pred_mm, true_mm, face))
    p, t = p - _median(p, m), t - _median(t, m)
    count = m.sum(1)

    def mean(values):
        return jnp.where(m, values, 0.0).sum(1) / jnp.maximum(count, 1)

    def error(values):
        return mean(jnp.abs(values - _median(values, m)))

    scale = mean(p * t) / jnp.maximum(mean(p * p), 1e-9)
    rows = np.flatnonzero(circle.any(0))
    square = slice(rows[0], rows[-1] + 1)
    angle, angles = _angles_deg(*(image[:, square, square] for image in (pred_mm, true_mm, face)), pitch_mm)
    return {
        "count": jnp.where((count >= MIN_FACE_SHARE * size**2) & (angles > 0), count, 0).astype(jnp.float32),
        "relief_mae": error(p - t),
        "relief_mae_scaled": error(scale[:, None] * p - t),
        "normals_deg": angle,
    }


def intersection_over_union(a, b):
    """Compare masks: bool (B, S, S) twice -> float32 (B,)."""
    return (a & b).sum((1, 2)) / jnp.maximum((a | b).sum((1, 2)), 1)


def _median(values, mask):
    """Take the median of each row (B, n) over its mask, (B, 1); that of an even number lies between two values."""
    count = mask.sum(1)[:, None]
    return (_smallest(values, mask, (count - 1) // 2) + _smallest(values, mask, count // 2)) / 2


def _smallest(values, mask, rank):
    """Find the value of a rank (B, 1) in each row (B, n) over its mask, bit by bit; a CPU sorts five times as long.

    Read as whole numbers, with the sign's bit turned and for negative ones all bits, floats keep their order.
    """
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    top = jnp.uint32(1 << 31)
    keys = jnp.where(bits & top, ~bits, bits | top)

    def add_bit(i, found):
        larger = found | (top >> i)
        below = (mask & (keys < larger)).sum(1)[:, None]
        return jnp.where(below <= rank, larger, found)

    found = jax.lax.fori_loop(0, 32, add_bit, jnp.zeros(rank.shape, jnp.uint32))
    return jax.lax.bitcast_convert_type(jnp.where(found & top, found ^ top, ~found), jnp.float32)


def _angles_deg(pred_mm, true_mm, face, pitch_mm):
    """Average the angle between the normals of two maps where a pixel and its four neighbours are of the face.

    Returns float32 (B,), degrees, and over how many pixels.
    """

    def around(image):
        image = jnp.pad(jnp.where(face, image, 0.0), ((0, 0), (1, 1), (1, 1)))
        image = image[:, 2:] + image[:, 1:-1] + image[:, :-2]
        return image[:, :, 2:] + image[:, :, 1:-1] + image[:, :, :-2]

    count = jnp.maximum(around(jnp.ones_like(true_mm)), 1.0)

    def normals(image):
        image = around(image) / count  # the mean over the face's pixels of 3x3
        dx = (image[:, 1:-1, 2:] - image[:, 1:-1, :-2]) / (2 * pitch_mm)
        dy = (image[:, 2:, 1:-1] - image[:, :-2, 1:-1]) / (2 * pitch_mm)
        return jnp.stack([dx, dy, -jnp.ones_like(dx)], -1)

    counted = face[:, 1:-1, 1:-1] & face[:, 1:-1, 2:] & face[:, 1:-1, :-2] & face[:, 2:, 1:-1] & face[:, :-2, 1:-1]
    a, b = normals(pred_mm), normals(true_mm)
    # not by the arc cosine, which is blind to small angles
    angle = jnp.rad2deg(jnp.arctan2(jnp.linalg.norm(jnp.cross(a, b), axis=-1), (a * b).sum(-1)))
    count = counted.sum((1, 2))
    return jnp.where(counted, angle, 0.0).sum((1, 2)) / jnp.maximum(count, 1), count


def person_sums(per_image: Mapping[str, Mapping[str, np.ndarray]], subjects: Sequence[str]) -> dict:
    """Add up the sums of each person's images.

    Args:
      per_image: {"all", "valid": `image_sums`, "mm": `mm_sums`, "relief": `relief_sums`}, values (N,), padding removed.
      subjects: (N,), the person in each image.

    Returns:
      Plain JSON values {subject: {"all": {name: sum}, "valid": ..., "mm": ...}}. An image without a pixel that counts
      adds nothing. Beside the sums over pixels stand "images", how many have a pixel that counts, and the sums over
      images of two figures that the paper takes an image at a time: "l2", the image's own norm, and "scale_inv", its
      variance of log ratios.
    """
    names, which = np.unique(subjects, return_inverse=True)
    people = {str(name): {} for name in names}
    for part, sums in per_image.items():
        sums = {name: np.asarray(values, np.float64) for name, values in sums.items()}
        counted = sums["count"] > 0
        if "log_centred_squared" in sums:
            sums["l2"] = np.sqrt(sums["squared"])
            sums["scale_inv"] = sums.pop("log_centred_squared") / np.maximum(sums["count"], 1)
        sums["images"] = counted.astype(np.float64)
        for name, values in sums.items():
            totals = np.bincount(which, np.where(counted, values, 0), len(names))
            for person, total in zip(people.values(), totals, strict=True):
                person.setdefault(part, {})[name] = float(total)
    return people


def figures(people: Mapping[str, Mapping]) -> dict:
    """Turn the sums of people into metrics.

    Args:
      people: as `person_sums` gives them, of one evaluation or of several with other people (folds), joined.

    Returns:
      Plain JSON values: "all" and "valid" {key of METRICS: value}, "mm" {key of MM_METRICS: value}, "relief" {key of
      RELIEF_METRICS: value}, which is missing where no image shows a face;
      "standard_error": the same, each over people, None with fewer than two of them;
      "n_people", "n_frames", "n_frames_without_depth" (left out of "valid"), "n_faces" (of "relief"), "n_pixels",
      "n_pixels_valid", "n_pixels_mm": what they were taken over; "people": the sums.

    Raises:
      FaceDepthError: no image has a pixel that counts.
    """
    values, errors, totals = {}, {}, {}
    for part, metrics in _PARTS.items():
        if not all(part in sums for sums in people.values()):  # of an older evaluation
            continue
        names = set.intersection(*(set(sums[part]) for sums in people.values()))
        table = {name: np.array([sums[part][name] for sums in people.values()]) for name in names}
        total = {name: column.sum() for name, column in table.items()}
        if not total["count"]:
            if part not in _NOTHING:
                continue
            raise FaceDepthError(_NOTHING[part])
        counted = table["count"] > 0  # a person without a pixel that counts has nothing to leave out
        rest = {name: total[name] - column[counted] for name, column in table.items()}
        totals[part], values[part], errors[part] = total, {}, {}
        for metric in metrics:
            try:
                values[part][metric.key] = float(metric.value(total))
            except KeyError:  # an older evaluation lacks its sums
                continue
            errors[part][metric.key] = jackknife(metric.value(rest)) if counted.sum() > 1 else None
    return values | {
        "standard_error": errors,
        "n_people": len(people),
        "n_frames": int(totals["all"]["images"]),
        "n_frames_without_depth": int(totals["all"]["images"] - totals["valid"]["images"]),
        "n_faces": int(totals["relief"]["images"]) if "relief" in totals else 0,
        "n_pixels": int(totals["all"]["count"]),
        "n_pixels_valid": int(totals["valid"]["count"]),
        "n_pixels_mm": int(totals["mm"]["count"]),
        "people": dict(people),
    }


def join_people(evaluations: Sequence[Mapping]) -> dict:
    """Join the people of several evaluations, as of folds; the sums of a person who is in two are added.

    A sum or a part that one of the two lacks, because it is from an older version, is left out.
    """
    people = {}
    for subject, parts in (item for evaluation in evaluations for item in evaluation.items()):
        if before := people.get(subject):
            parts = {
                part: {name: before[part][name] + sums[name] for name in before[part].keys() & sums.keys()}
                for part, sums in parts.items()
                if part in before
            }
        people[subject] = parts
    return people


def jackknife(without: np.ndarray) -> float:
    """Estimate a figure's standard error from its values without each person, (n,), at least two.

    Efron and Tibshirani 1993, Eq. 11.5.
    """
    n = len(without)
    return float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))
