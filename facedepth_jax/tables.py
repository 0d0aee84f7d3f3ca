"""Tables 1 and 2 as markdown, and the paper's own figures."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from facedepth_jax.data.pairs import ANGLE_SUBSETS, SEQUENCE_SUBSETS
from facedepth_jax.metrics import METRICS, MM_METRICS, Metric

FACE_VERIFICATION = Metric("face_verification", "Face verification", "higher", 4)  # the last row of Table 1


@functools.cache
def paper() -> dict:
    """The paper's figures.

    Returns:
      {"table1": {data set: {method: {metric key: value}}}, where "face_verification" is the last metric, and
       "table2": {angles: {sequences: [accuracy on original depth, on generated depth]}}}.
    """
    return json.loads((Path(__file__).parent / "paper_tables.json").read_text(encoding="utf-8"))


def markdown_table(
    columns: Mapping[str, Mapping[str, float | Sequence[float]]],
    caption: str,
    baseline: str | None = None,
    beside: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """Table 1 as markdown: a row a metric with its arrow, the best column in bold.

    Args:
      columns: title -> {metric key: value, or one value a seed}. Several values become mean ± standard deviation
        (n - 1). Rows are the metrics of METRICS, MM_METRICS and FACE_VERIFICATION that a column has; "-"
        stands where another has none.
      caption: the first header cell; say there what was measured and n.
      baseline: title of the column that the others' relative change is given to, in per cent.
      beside: further columns out of competition, as the paper's own.
    """
    beside = beside or {}
    lines = [
        "| " + " | ".join([caption, *columns, *beside]) + " |",
        "|---" + "|---:" * (len(columns) + len(beside)) + "|",
    ]
    for metric in (*METRICS, *MM_METRICS, FACE_VERIFICATION):
        values = {title: np.atleast_1d(column[metric.key]) for title, column in columns.items() if metric.key in column}
        if not values and not any(metric.key in column for column in beside.values()):
            continue
        means = {title: value.mean() for title, value in values.items()}
        best = (min if metric.better == "lower" else max)(means.values(), default=None)
        cells = []
        for title in columns:
            if title not in values:
                cells.append("-")
                continue
            cell = mean_and_deviation(values[title], metric.decimals)
            if means[title] == best and len(values) > 1:
                cell = f"**{cell}**"
            if title != baseline and means.get(baseline, 0) > 0:
                cell += f" ({means[title] / means[baseline] - 1:+.0%})"
            cells.append(cell)
        cells += [
            f"{column[metric.key]:.{metric.decimals}f}" if metric.key in column else "-" for column in beside.values()
        ]
        arrow = "↓" if metric.better == "lower" else "↑"
        lines.append("| " + " | ".join([f"{metric.label} {arrow}", *cells]) + " |")
    return "\n".join(lines) + "\n"


def mean_and_deviation(values: Sequence[float], decimals: int) -> str:
    """'0.72', or '0.72 ± 0.01' (n - 1) of several values."""
    values = np.asarray(values)
    text = f"{values.mean():.{decimals}f}"
    return f"{text} ± {values.std(ddof=1):.{decimals}f}" if values.size > 1 else text


def verification_table(original: Mapping, generated: Sequence[Mapping], caption: str) -> str:
    """Table 2 as markdown: face verification by angle and sequence subset, "original / generated (pairs)".

    Args:
      original, generated: cells as `verification.verify` gives them, {angles: {sequences: {"accuracy", "n"}}}; one
        mapping for each seed of the generated, or none at all. "-" stands where a cell has no pair.
      caption: the first header cell.
    """
    lines = ["| " + " | ".join([caption, *SEQUENCE_SUBSETS]) + " |", "|---" + "|---:" * len(SEQUENCE_SUBSETS) + "|"]
    for angles in ANGLE_SUBSETS:
        cells = []
        for sequences in SEQUENCE_SUBSETS:
            n = original[angles][sequences]["n"]
            if not n:
                cells.append("-")
                continue
            texts = [f"{original[angles][sequences]['accuracy']:.4f}"]
            if generated:
                texts.append(mean_and_deviation([found[angles][sequences]["accuracy"] for found in generated], 4))
            cells.append(f"{' / '.join(texts)} ({n})")
        lines.append("| " + " | ".join([angles, *cells]) + " |")
    return "\n".join(lines) + "\n"


def paper_verification_table() -> str:
    """The paper's Table 2 in the same form."""
    table = paper()["table2"]
    lines = [
        "| paper, Pandora | " + " | ".join(SEQUENCE_SUBSETS) + " |",
        "|---" + "|---:" * len(SEQUENCE_SUBSETS) + "|",
    ]
    for angles in ANGLE_SUBSETS:
        cells = ["{:.4f} / {:.4f}".format(*table[angles][sequences]) for sequences in SEQUENCE_SUBSETS]
        lines.append("| " + " | ".join([angles, *cells]) + " |")
    return "\n".join(lines) + "\n"
