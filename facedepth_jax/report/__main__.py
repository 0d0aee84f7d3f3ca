"""Report training runs as Tables 1 and 2, curves over steps and lambda, the grid of Figure 4: the program.

    python -m facedepth_jax.report --out=DIR [--verifier=RUN ...] [--errors] RUN [RUN ...]

Reads the runs' own config.json, results.json, metrics.jsonl and samples/test.npz. Runs that differ in their seed alone
share a column, as mean ± standard deviation; those that count depth from the head have columns of their own, "given D".
Runs on different data never share a table; but those that differ in data.options.fold, the folds of a cross-validation,
are pooled first: all their frames as if measured in one. Writes report.md, report.json and the pictures that report.md
shows.

With a verifier, one for each fold and origin of depth, the row of face verification is added, its figures on both lists
of pairs with their bounds, and Table 2. A run needs its data for this once; its figures stay in it, as
verification.json.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from facedepth_jax import runtime

runtime.tune()

from facedepth_jax import files, tables, verification
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.evaluation import MEAN_MAP
from facedepth_jax.methods import METHODS
from facedepth_jax.nested import differing_keys
from facedepth_jax.report.figures import CURVE_METRICS, lambda_curve, sample_grid, table, training_curve
from facedepth_jax.report.runs import Run, read

GIVEN_D = (
    'The columns "given D" were given D, the head\'s distance: they estimate depth minus D, and D is added again; '
    "their per cent are relative to the mean map of depth minus D"
)


def group_columns(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Group runs on the same data into columns: title -> runs that differ in their seed alone, by seed.

    The title is the method, with lambda and the discriminator's pixels where the method has runs with several, and
    whether it was given D. Raises FaceDepthError for runs of one method and origin of depth that differ in more than
    those and the seed, or in nothing, and for runs measured in different levels.
    """

    def refuse(one, other, text):
        raise FaceDepthError(f"{one.path} and {other.path} {text}.")

    def levels(run):
        return run.config["depth_code"] | {"origin": None}

    columns, first, order = {}, {}, list(METHODS)

    def place(run):
        return order.index(run.method), run.origin, run.discriminator_pixels or "", run.lam or 0.0, run.seed

    for run in sorted(runs, key=place):
        if levels(run) != levels(runs[0]):
            refuse(runs[0], run, "differ in the meaning of a depth level (config.depth_code): report them apart")
        kind = run.method, run.origin
        other = first.setdefault(kind, run)
        if keys := differing_keys(other.settings, run.settings):
            refuse(other, run, f"are both '{run.method}' but differ in {', '.join(keys)}: report them apart")
        same = [other for other in runs if (other.method, other.origin) == kind]
        title = f"{run.method} λ={run.lam:g}" if len({other.lam for other in same}) > 1 else run.method
        if len({other.discriminator_pixels for other in same}) > 1:
            title += f" D on {run.discriminator_pixels}"
        column = columns.setdefault(_given(title, run.origin), [])
        if column and column[-1].seed == run.seed:
            refuse(column[-1], run, "have the same method, settings and seed: give one of them")
        column.append(run)
    return columns


def _given(title, origin):
    return title if origin == "camera" else f"{title}, given D"


def face_verification(columns: dict[str, list[Run]], bounds: dict, origin: str) -> str:
    """Write the verification of the columns of one origin: beside its bounds, and as Table 2."""
    autoencoder_first = sorted(columns, key=lambda title: columns[title][0].method != "ae")
    parts = [
        f"### {_given('Face verification', origin)}\n",
        f"{tables.LISTS_NOTE}\n",
        tables.lists_tables(
            {title: [run.verification for run in columns[title]] for title in autoencoder_first}
            | {title: [bounds[title]] for title in verification.BOUNDS}
        ),
        f"### {_given('Table 2, face verification', origin)}\n",
        "Original / generated depth (test pairs); a pair is in a cell when both of its frames are.\n",
    ]
    original = bounds[verification.TRUE_DEPTH]["test"]["cells"]
    for title, runs in columns.items():
        parts.append(tables.verification_table(original, [run.verification["test"]["cells"] for run in runs], title))
    return "\n".join(parts)


def make_section(runs: Sequence[Run], bounds: dict[str, dict], errors: bool) -> tuple[str, dict, dict[str, bytes]]:
    """Make the tables and pictures of the runs on one data set: markdown, JSON values, {file name: PNG}.

    Args:
      runs: with their verification if there are bounds.
      bounds: origin of depth -> "bounds" of its verifier's results.json; none, or one for each origin of the runs.
      errors: whether the grid of faces has maps of the error.
    """
    columns = group_columns(runs)
    test, dataset, fingerprint = (runs[0].results[name] for name in ("test", "dataset", "fingerprint"))
    name = f"{dataset}-{fingerprint[:8]}"
    by_origin = {
        origin: {title: members for title, members in columns.items() if members[0].origin == origin}
        for origin in sorted({run.origin for run in runs})
    }
    pooled = f", those of {len(runs[0].folds)} folds together" if runs[0].folds else ""
    parts = [
        f"## {dataset}\n",
        f"{test['n_frames']} test frames{pooled}; data `{fingerprint[:16]}`. Metrics in levels of depth, "
        f"{_plus_minus(columns)}per cent are relative to the training set's mean depth map.\n",
        *[GIVEN_D + ", and they are judged by a verifier of their own" * bool(bounds) + ".\n"] * ("head" in by_origin),
        "| | seeds | steps | runs |\n|---|---|---|---|",
    ]
    values = {"dataset": dataset, "fingerprint": fingerprint, "n_frames": test["n_frames"], "columns": {}}
    for title, members in columns.items():
        seeds = ", ".join(str(run.seed) for run in members)
        steps = ", ".join(f"{'/'.join(map(str, run.steps))} of {run.results['steps']}" for run in members)
        parts.append(f"| {title} | {seeds} | {steps} | {', '.join(run.path.name for run in members)} |")
        values["columns"][title] = {
            "method": members[0].method,
            "lam": members[0].lam,
            "seeds": [run.seed for run in members],
            "steps": [run.steps for run in members],
            "verification": [run.verification for run in members],
        }
    mean_maps, baselines = {}, {}
    for origin, members in by_origin.items():
        title = _given(MEAN_MAP, origin)
        found = [run.results["baseline_mean_map"] for run in runs if run.origin == origin]
        mean_map = dataclasses.replace(
            runs[0],
            results={"test": max(found, key=lambda figures: "relief" in figures)},  # older results have none
            verification=bounds and bounds[origin][MEAN_MAP],
        )
        mean_maps[title], values["columns"][title] = [mean_map], {}
        baselines |= dict.fromkeys(members, title)
    with_depth = test["n_frames"] - test["n_frames_without_depth"]
    tables_of = (
        ("all", "all pixels", test["n_frames"]),
        ("valid", "pixels with true depth", with_depth),
        ("relief", "the relief of faces", max(run.results["test"].get("n_faces", 0) for run in runs)),
    )
    for pixels, words, n in tables_of:
        if not n:
            continue
        found, spread = table(columns | mean_maps, pixels)
        theirs = tables.paper()["table1"].get(dataset, {}) if pixels == "all" else {}
        beside = {f"paper: {method}": theirs[method] for method in theirs if method in {run.method for run in runs}}
        text = tables.markdown_table(found, f"{words}, n = {n}", baselines, beside, spread)
        parts.append(f"\n### Table 1 over {words}\n\n{text}")
        for title in found:
            values["columns"][title] |= {pixels: found[title], f"standard_error_{pixels}": spread[title]}
    for origin, members in by_origin.items() if bounds else ():
        parts.append(face_verification(members, bounds[origin], origin))
        values[_given("verification_bounds", origin)] = bounds[origin]
    if bounds and dataset == "pandora":
        parts.append(tables.paper_verification_table())
    images = {}
    for origin, members in by_origin.items():
        where = name if origin == "camera" else f"{name}-{origin}"
        if (curve := training_curve(members)) is not None:
            images[f"training-{where}.png"] = curve
            parts += [
                f"### {_given('Training, on the validation split', origin)}\n",
                f"![figures over the steps of training](training-{where}.png)\n",
            ]
        if (curve := lambda_curve(members)) is None:
            continue
        images[picture := f"lambda-{where}.png"] = curve
        found, spread = table(members, "all", "validation")
        shown = *CURVE_METRICS, tables.FACE_VERIFICATION.key
        found = {title: {k: v for k, v in column.items() if k in shown} for title, column in found.items()}
        caption = f"validation, all pixels, n = {runs[0].results['validation']['n_frames']}"
        parts += [
            f"### {_given('Weight λ of the reconstruction, on the validation split', origin)}\n",
            f"![curve over lambda]({picture})\n",
            tables.markdown_table(found, caption, errors=spread),
        ]
    if (grid := sample_grid(columns, errors)) is not None:
        images[f"faces-{name}.png"] = grid
        where = "the first fold's test split" if runs[0].folds else "the test split"
        parts.append(f"### Faces of {where}\n\n![gray, truth and estimates](faces-{name}.png)\n")
    return "\n".join(parts), values, images


def _plus_minus(columns):
    seeds = "the standard deviation over seeds" if any(len(runs) > 1 for runs in columns.values()) else ""
    count = max(run.results["test"].get("n_people", 0) for runs in columns.values() for run in runs)
    people = f"the standard error over {count} people" if count > 1 else ""
    if seeds and people:
        return f"± is {seeds} or {people} where there is one seed, "
    return f"± is {seeds or people}, " if seeds or people else ""


def write_report(paths: Sequence[Path], out: Path, verifiers: Sequence[Path] = (), errors: bool = False) -> str:
    """Read the runs, write the report into the directory `out`, return its markdown.

    Args:
      verifiers: verifiers' runs, one for each data set (or fold) and origin of depth of the runs.
      errors: whether the grid of faces has maps of the error.

    Raises:
      FaceDepthError: a run cannot be used or the report cannot be written.
    """
    runs, judged = read(paths, verifiers)
    by_data = {}
    for run in runs:
        by_data.setdefault(run.results["fingerprint"], []).append(run)
    # Everything is made before anything is written.
    made = []
    for data, group in by_data.items():
        bounds = {origin: found for (of, origin), found in judged.items() if of == data}
        made.append(make_section(group, bounds, errors))
    markdown = "# Report\n\n" + "\n".join(section for section, _, _ in made)
    for _, _, images in made:
        for name, content in images.items():
            files.write_bytes(out / name, content)
    files.write_json(out / "report.json", [values for _, values, _ in made])
    files.write_bytes(out / "report.md", markdown.encode())
    return markdown


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m facedepth_jax.report", description="Tables and pictures of finished training runs."
    )
    flag = parser.add_argument
    flag("paths", nargs="+", type=files.path, metavar="RUN", help="directory of a finished run")
    flag("--out", required=True, type=files.path, help="directory to write to; files there are replaced")
    text = "a verifier's run on the same data, for Table 2; give one for each fold and depth_code.origin of the runs"
    flag("--verifier", dest="verifiers", action="append", default=[], type=files.path, metavar="RUN", help=text)
    flag("--errors", action="store_true", help="maps of the error in the grid of faces")
    try:
        print(write_report(**vars(parser.parse_args(argv))))
    except FaceDepthError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
