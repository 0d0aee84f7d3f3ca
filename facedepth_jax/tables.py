"""Tables 1 and 2 as markdown, and the paper's own figures."""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from facedepth_jax.data.arrays import PAIR_SPLITS
from facedepth_jax.data.pairs import ANGLE_SUBSETS, SEQUENCE_SUBSETS
from facedepth_jax.metrics import METRICS, MM_METRICS, RELIEF_METRICS, Metric

FACE_VERIFICATION = Metric("face_verification", "Face verification", "higher", 4)  # the last row of Table 1
LISTS = {  # of pairs, as `verification.verify_lists` calls them
    "validation": "validation",
    "validation_true_holes": "validation, with the true holes",
    "test": "test",
    "test_true_holes": "test, with the true holes",
}
LISTS_NOTE = (
    "± is the standard error over people (bootstrap) of the mean over seeds; in brackets the difference to the first "
    "row, ± its standard error, as the same people are drawn for both. Choose by the validation pairs. With the true "
    "holes: the pixels that the sensor did not see are put into every map. Bounds are true depth; its silhouette, the "
    "foreground at one depth; its holes in a flat plate; and the mean training map, which shows nobody."
)


@functools.cache
def paper() -> dict:
    """Load the paper's figures.

    Returns:
      {"table1": {data set: {method: {metric key: value}}}, where "face_verification" is the last metric, and
       "table2": {angles: {sequences: [accuracy on original depth, on generated depth]}}}.
    """
    return json.loads((Path(__file__).parent / "paper_tables.json").read_text(encoding="utf-8"))


def markdown_table(
    columns: Mapping[str, Mapping[str, float | Sequence[float]]],
    caption: str,
    baselines: Mapping[str, str | None] | None = None,
    beside: Mapping[str, Mapping[str, float]] | None = None,
    errors: Mapping[str, Mapping[str, float | None]] | None = None,
) -> str:
    """Write Table 1 as markdown: a row a metric with its arrow, the best column in bold.

    Args:
      columns: title -> {metric key: value, or one value a seed}. Rows are the metrics of METRICS, MM_METRICS,
        RELIEF_METRICS and FACE_VERIFICATION that a column has; "-" stands where another has none.
      caption: the first header cell; say there what was measured and n.
      baselines: title -> title of the column to which its change is given, in per cent.
      beside: further columns out of competition, as the paper's own.
      errors: title -> {metric key: standard error}, see `plus_minus`.
    """
    baselines, beside, errors = baselines or {}, beside or {}, errors or {}
    rows = []
    for metric in (*METRICS, *MM_METRICS, *RELIEF_METRICS, FACE_VERIFICATION):
        key, decimals = metric.key, metric.decimals
        means = {title: np.mean(column[key]) for title, column in columns.items() if key in column}
        best = (min if metric.better == "lower" else max)(means.values(), default=None)
        cells = dict.fromkeys((*columns, *beside), "-")
        for title, mean in means.items():
            cell = plus_minus(columns[title][key], decimals, errors.get(title, {}).get(key))
            if mean == best and len(means) > 1:
                cell = f"**{cell}**"
            baseline = baselines.get(title, title)
            if title != baseline and means.get(baseline, 0) > 0:
                cell += f" ({mean / means[baseline] - 1:+.0%})"
            cells[title] = cell
        cells |= {title: f"{column[key]:.{decimals}f}" for title, column in beside.items() if key in column}
        if set(cells.values()) != {"-"}:
            rows.append([f"{metric.label} {'↓' if metric.better == 'lower' else '↑'}", *cells.values()])
    return _markdown([caption, *columns, *beside], rows)


def figures_tables(columns: Mapping[str, Mapping], baseline: str | None = None) -> str:
    """Write the figures of evaluations (`metrics.figures`) as tables: all pixels, with depth, millimetres, relief.

    Args:
      columns: title -> figures on the same frames; ± is the standard error over people.
      baseline: title of the column to which the others' change is given, in per cent.
    """
    n = next(iter(columns.values()))
    captions = {
        "all": f"all pixels, n = {n['n_frames']} frames",
        "valid": f"pixels with depth, n = {n['n_frames'] - n['n_frames_without_depth']} frames",
        "mm": f"millimetres, n = {n['n_pixels_mm']} pixels",
    }
    if n.get("n_faces"):
        captions["relief"] = f"relief, n = {n['n_faces']} faces"
    parts = []
    for part, caption in captions.items():
        values = {title: figures[part] for title, figures in columns.items()}
        errors = {title: figures["standard_error"][part] for title, figures in columns.items()}
        caption += f" of {n['n_people']} people, ± standard error" * (n["n_people"] > 1)
        parts.append(markdown_table(values, caption, dict.fromkeys(columns, baseline), errors=errors))
    return "\n".join(parts)


def plus_minus(values: Sequence[float], decimals: int, error: float | None = None) -> str:
    """Write '0.72', '0.72 ± 0.01' with its standard error, or the mean and standard deviation (n - 1) of several."""
    values = np.asarray(values)
    error = values.std(ddof=1) if values.size > 1 else error
    return f"{values.mean():.{decimals}f}" + ("" if error is None else f" ± {error:.{decimals}f}")


def lists_tables(rows: Mapping[str, Sequence[Mapping]]) -> str:
    """Write face verification as two tables, accuracy and area under the ROC curve: a row for each kind of maps.

    Args:
      rows: title -> one mapping a seed, {key of LISTS: figures of `verification.verify`}, all on the same pairs. A cell
        has the mean over seeds, its standard error over people, and in brackets how far it is from the first row, with
        the standard error of that; of few people the mean alone; "-" stands where a figure does not exist.
    """
    first = next(iter(rows))

    def cell(title, name, figure):
        found = rows[title][0][name]
        if found[figure] is None:
            return "-"
        if found["replicates"][figure] is None:
            return f"{np.mean([seed[name][figure] for seed in rows[title]]):.3f}"
        ours, theirs = (  # each with its replicates behind it
            np.mean([[seed[name][figure], *seed[name]["replicates"][figure]] for seed in rows[row]], 0)
            for row in (title, first)
        )
        text, less = plus_minus(ours[0], 3, ours[1:].std(ddof=1)), ours - theirs
        return text if title == first else f"{text} ({less[0]:+.3f} ± {less[1:].std(ddof=1):.3f})"

    n = [rows[first][0][name] for name in PAIR_SPLITS]
    of = [f"{one['n']} {name} pairs of {one['n_people']} people" for one, name in zip(n, PAIR_SPLITS, strict=True)]
    pairs = f"n = {' and '.join(of)}"
    captions = {"accuracy": f"accuracy, {pairs}", "auc": f"area under the ROC curve, {pairs}"}
    made = {figure: [[title, *(cell(title, name, figure) for name in LISTS)] for title in rows] for figure in captions}
    return "\n".join(_markdown([captions[figure], *LISTS.values()], cells) for figure, cells in made.items())


def verification_table(original: Mapping, generated: Sequence[Mapping], caption: str) -> str:
    """Write Table 2 as markdown: face verification by angle and sequence subset, "original / generated (pairs)".

    Args:
      original, generated: cells as `verification.verify` gives them, {angles: {sequences: {"accuracy", "n"}}}; one
        mapping for each seed of the generated, or none at all. "-" stands where a cell has no pair.
      caption: the first header cell.
    """

    def cell(angles, sequences):
        true = original[angles][sequences]
        if not true["n"]:
            return "-"
        text = f"{true['accuracy']:.4f}"
        if generated:
            text += " / " + plus_minus([cells[angles][sequences]["accuracy"] for cells in generated], 4)
        return f"{text} ({true['n']})"

    return _table_2(cell, caption)


def paper_verification_table() -> str:
    """Write the paper's Table 2 in the same form."""
    table = paper()["table2"]
    return _table_2(lambda angles, sequences: "{:.4f} / {:.4f}".format(*table[angles][sequences]), "paper, Pandora")


def _table_2(cell, caption):
    rows = [[angles, *(cell(angles, sequences) for sequences in SEQUENCE_SUBSETS)] for angles in ANGLE_SUBSETS]
    return _markdown([caption, *SEQUENCE_SUBSETS], rows)


def _markdown(header, rows):
    lines = ["| " + " | ".join(line) + " |" for line in (header, *rows)]
    return "\n".join([lines[0], "|---" + "|---:" * (len(header) - 1) + "|", *lines[1:]]) + "\n"
