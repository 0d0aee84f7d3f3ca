"""Judge from a sample of frames whether depth is in millimetres, larger is farther, and centres are on heads.

A wrong unit, inverted depth or a number that stands for "none" makes arrays that look sound and teach nothing. What
gives a unit away is the head's width: the one that Eq. 6's own D and f turn pixels into.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from facedepth_jax.data import crop
from facedepth_jax.data.chunks import HEAD_WINDOW_PX
from facedepth_jax.data.frames import Frame

# Median width at the centre's height: 129 mm on the synthetic faces, 150 mm on RAP3DF's.
HEAD_MM, HEAD_RANGE_MM = 140.0, (70.0, 280.0)
SAME_SURFACE = 0.12  # of the distance: what differs by less from the centre's depth is the head
LEVELS_MM = (500.0, 2540.0)  # the paper's 8-bit levels reach so far
DISTANCE_MM = (250.0, 2540.0)  # of a head before a depth camera
UNITS_MM = (0.1, 0.125, 0.2, 0.25, 0.5, 1.0, 10.0)  # of cameras and data sets
# A head has at most 0.3 of the picture before it on those faces. With 0.05 clearly before it, what lies at its distance
# does not reach the image's edge: a background does.
NEARER, CLEARLY_NEARER = 0.6, 0.05
NONE_SHARE, NONE_GAP = 0.001, 0.75  # a number for "none" is frequent, and far above the highest depth


@dataclasses.dataclass(frozen=True)
class Sight:
    """Figures of a depth image around its head centre.

    Attributes:
      distance_mm: D of Eq. 6.
      focal_px: f_x; NaN where the frame came cropped.
      width_mm: of what lies at the centre's distance left and right of it; NaN where that reaches the image's edge.
      behind: the centre lies on the background, or behind most of the picture.
      saturated: share of the head's depth outside of LEVELS_MM.
      top, top_share, second: the highest number, its share of the pixels, and the next one below it (0: none).
    """

    distance_mm: float
    focal_px: float
    width_mm: float
    behind: bool
    saturated: float
    top: int
    top_share: float
    second: int


def measure(frame: Frame) -> Sight | None:
    """Measure a frame; None where there is no depth at the head centre."""
    depth_mm, head_xy = frame.depth_mm, frame.head_xy
    if not crop.inside(depth_mm.shape, head_xy):
        return None
    distance_mm = crop.head_distance_mm(depth_mm, head_xy, HEAD_WINDOW_PX)
    if distance_mm is None:
        return None
    valid = depth_mm[depth_mm > 0]
    head = (depth_mm > 0) & (np.abs(depth_mm - distance_mm) < SAME_SURFACE * distance_mm)
    x, y = (math.floor(value + 0.5) for value in head_xy)
    row, focal_px = head[y], math.nan if frame.cropped else frame.focal_px[0]
    left, right = np.flatnonzero(~row[:x]), np.flatnonzero(~row[x:])
    width_px = x + right[0] - left[-1] - 1 if row[x] and len(left) and len(right) else math.nan
    nearer, clearly = ((valid < reach * distance_mm).sum() / depth_mm.size for reach in (1, 1 - SAME_SURFACE))
    at_edge = bool(row[x]) and not (len(left) and len(right))
    values, counts = np.unique(valid, return_counts=True)
    return Sight(
        distance_mm=distance_mm,
        focal_px=focal_px,
        width_mm=float(width_px * distance_mm / focal_px),
        behind=bool(nearer > NEARER or (at_edge and clearly > CLEARLY_NEARER)),
        saturated=float(np.mean((depth_mm[head] < LEVELS_MM[0]) | (depth_mm[head] > LEVELS_MM[1])))
        if head.any()
        else 0.0,
        top=int(values[-1]),
        top_share=float(counts[-1] / depth_mm.size),
        second=int(values[-2]) if len(values) > 1 else 0,
    )


def judge(sights: Sequence[Sight], unit_mm: float | None) -> tuple[list[str], str]:
    """Say what a sample shows.

    Args:
      sights: of the sample, at least one.
      unit_mm: the unit of depth that the user gave, where the data set has that option.

    Returns:
      lines: the figures, and warnings where they are no face's; and why nothing could be learnt, "" if something can.
    """
    distance_mm = float(np.median([sight.distance_mm for sight in sights]))
    widths = [sight.width_mm for sight in sights if math.isfinite(sight.width_mm)]
    width_mm = float(np.median(widths)) if 2 * len(widths) >= len(sights) else math.nan
    behind = sum(sight.behind for sight in sights)
    saturated = np.mean([sight.saturated for sight in sights])
    top = max(sight.top for sight in sights)
    top_share = np.mean([sight.top_share * (sight.top == top) for sight in sights])
    second = max(sight.second if sight.top == top else sight.top for sight in sights)
    levels = "{:g} to {:g} mm".format(*LEVELS_MM)
    lines = [
        distance_text([sight.distance_mm for sight in sights]),
        f"depth: {saturated:.0%} of the heads' outside of {levels}; {behind} of {len(sights)} centres on the background"
        f"; {top_share:.1%} of all pixels at the highest value, {top}"
        + (f"; heads {width_mm:.0f} mm wide (median)" if math.isfinite(width_mm) else ""),
    ]
    wide = math.isfinite(width_mm) and not HEAD_RANGE_MM[0] <= width_mm <= HEAD_RANGE_MM[1]
    far = not DISTANCE_MM[0] <= distance_mm <= DISTANCE_MM[1]
    factor = HEAD_MM / width_mm if math.isfinite(width_mm) else 800.0 / distance_mm
    likely = min(UNITS_MM, key=lambda unit: abs(math.log(factor * (unit_mm or 1.0) / unit)))
    hint = f"; the unit of depth is likely {likely:g} mm{_option('depth_unit_mm', f'{likely:g}', unit_mm)}"
    if likely == (unit_mm or 1.0):
        hint = ""
    if behind > 0.75 * len(sights):
        return lines, (
            f"in {behind} of {len(sights)} frames the head centre lies on the background or behind most else: "
            "either the centres are not on heads, or depth is inverted or a disparity (larger must be farther)"
        )
    if wide and far:
        return lines, f"no face: heads would be {width_mm:.0f} mm wide, {distance_mm:.0f} mm away{hint}"
    if behind > 0.25 * len(sights):
        lines.append("warning: many head centres lie on the background or behind most else, are they on the heads?")
    if wide:
        focal_px = np.median([sight.focal_px for sight in sights])
        lines.append(
            f"warning: heads {width_mm:.0f} mm wide: the focal length {focal_px:.0f} px is likely not this camera's "
            f"(rather {focal_px * width_mm / HEAD_MM:.0f} px)"
        )
    elif far:
        lines.append(f"warning: {distance_mm:.0f} mm is no usual distance of a face{hint}")
    if saturated > 0.5:
        lines.append(f"warning: outside of {levels} nothing is learnt with depth_code.origin=camera")
    if top_share > NONE_SHARE and 0 < second <= NONE_GAP * top:
        value = str(top) if unit_mm == 1 else "VALUE"  # the file's, not the one in millimetres
        option = _option("depth_none", value, unit_mm)
        lines.append(f"warning: {top}, far above the next depth, {second}, likely stands for no depth{option}")
    return lines, ""


def distance_text(distance_mm: Sequence[float]) -> str:
    """Describe the heads' distances."""
    low, middle, high = np.percentile(distance_mm, (5, 50, 95))
    return f"head distance: median {middle:.0f} mm, nine of ten frames within {low:.0f} to {high:.0f} mm"


def _option(name: str, value: str, unit_mm: float | None) -> str:
    return f": give --{name}={value} (main: --config.data.options.{name}={value})" if unit_mm else ""
