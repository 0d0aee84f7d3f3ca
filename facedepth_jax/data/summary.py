"""Describe a data set in words, for `prepare` and its check."""

import collections

import numpy as np

from facedepth_jax.data import arrays
from facedepth_jax.data.frames import SPLITS
from facedepth_jax.data.pairs import ANGLE_SUBSETS, SEQUENCE_SUBSETS

LISTED = 5  # names at most behind a count; meta.json has all


def report(made: arrays.Arrays) -> str:
    """Describe prepared arrays, in some ten lines."""
    lines = [
        f"{made.path}: {len(made)} frames of {len(set(made.frames['subject']))} subjects, {made.meta['size_px']} px"
    ]
    for split in SPLITS:
        count = made.meta["counts"][split]
        lines.append(f"  {split}: {count['frames']} frames of {count['subjects']} subjects")
    for split, found in made.meta["pairs_found"].items():
        lines += _pairs_report(split, found)
    focal, gray = (_focal_text(made.frames[f"{name}fx"], made.frames[f"{name}fy"]) for name in ("", "gray_"))
    if focal:
        text = f"{focal} px" if gray == focal else f"{focal} px (depth) and {gray} px (gray)"
        lines.append(f"  crop: {made.meta['crop']['face_mm']:g} mm wide at a focal length of {text}")
    else:
        lines.append("  crop: as the frames came")
    low, middle, high = np.percentile(made.frames["distance_mm"], (5, 50, 95))
    lines.append(f"  head distance: median {middle:.0f} mm, nine of ten frames within {low:.0f} to {high:.0f} mm")
    rejects = made.meta["rejects"]
    if rejects["count"]:
        lines.append(f"  {rejects['count']} frames rejected (all in meta.json): {rejects_text(rejects['frames'])}")
    return "\n".join(lines)


def _pairs_report(split: str, found: dict) -> list[str]:
    """Describe the pairs of a split; by Table 2's cells if the data set has them."""
    cells = found["cells"]
    whole = cells[" ".join((ANGLE_SUBSETS[-1], SEQUENCE_SUBSETS[-1]))]
    lines = [f"  {split} pairs: {found['pairs']}, {whole['same']} same and {whole['different']} different"]
    if found.get("left_out"):
        names = found["rejected_frames"]
        some = ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
        lines.append(f"    {found['left_out']} pairs of the list left out for {len(names)} rejected frames: {some}")
    if any(sum(cell.values()) for name, cell in cells.items() if cell is not whole):
        for angles in ANGLE_SUBSETS:
            row = [(name, cells[f"{angles} {name}"]) for name in SEQUENCE_SUBSETS]
            texts = [f"{name} {cell['same']}+{cell['different']}" for name, cell in row if any(cell.values())]
            if texts:
                lines.append(f"    {angles}: {', '.join(texts)} (same+different)")
    return lines


def _focal_text(fx, fy) -> str:
    """Write focal lengths as '365.456', '575.8 x 576.1' or '480 to 520'; '' for frames that came cropped."""
    if not np.isfinite(fx).any():
        return ""
    if np.nanmin(fx) == np.nanmax(fx) and np.nanmin(fy) == np.nanmax(fy):
        return f"{fx[0]:g}" if fx[0] == fy[0] else f"{fx[0]:g} x {fy[0]:g}"
    return f"{np.nanmin([fx, fy]):g} to {np.nanmax([fx, fy]):g}"


def count_reasons(rejects: list[dict]) -> dict[str, int]:
    """Return {reason: number of rejects}, sorted."""
    return dict(sorted(collections.Counter(reject["reason"] for reject in rejects).items()))


def rejects_text(rejects: list[dict]) -> str:
    """Write '3 x gray image is missing (a: images/a.png, b: ...); 1 x ...' of entries as `Reject.entry` gives them."""
    texts = []
    for reason, count in count_reasons(rejects).items():
        some = [x for x in rejects if x["reason"] == reason][:LISTED]
        names = ", ".join(f"{x['frame']}: {x['detail']}" if x["detail"] else x["frame"] for x in some)
        texts.append(f"{count} x {reason} ({names}{', ...' if count > len(some) else ''})")
    return "; ".join(texts)
