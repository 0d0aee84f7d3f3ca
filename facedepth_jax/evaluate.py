"""Measure a finished run on any prepared arrays: the program.

    python -m facedepth_jax.evaluate --run=DIR|shipped --data=ARRAYS [--split=test] [--maps=FILE.npy]

Prints the table, and writes all figures, with their standard errors over people and the sums that they are made of, to
RUN/evaluations/ARRAYS-SPLIT-FINGERPRINT.json; those of the net that ships go to runs/shipped. For figures of your own
the maps themselves: float32 (n, S, S), millimetres, in the order of frames.csv, depth everywhere, whatever the net's
mask says.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from facedepth_jax import runtime

runtime.tune()

from facedepth_jax import config, estimator, evaluation, files, tables, verification
from facedepth_jax.data import arrays
from facedepth_jax.data.frames import SPLITS
from facedepth_jax.errors import FaceDepthError


def evaluate_run(run: Path, data: arrays.Arrays, split: str, maps: Path | None = None) -> tuple[dict, str]:
    """Measure a run's net on a split of prepared arrays, and write its depth maps if a file is given for them.

    Returns the figures, as in results.json, and their table. Raises FaceDepthError if the run cannot be used, or does
    not fit the arrays.
    """
    values = config.read_run(run)
    config.check_crops(values, data)
    if values.method == "verifier" and maps is None:
        if split not in arrays.PAIR_SPLITS:
            raise FaceDepthError(
                f"{run} is a verifier, and {split} has no pairs: give {' or '.join(arrays.PAIR_SPLITS)}."
            )
        found = verification.verify(verification.load_verifier(run), verification.true_depth(data), data, split)
        return found, tables.verification_table(found["cells"], [], f"accuracy on true depth of {split} (pairs)")
    net, rows = estimator.load(run), data.rows(split)
    found = evaluation.evaluate(net.estimate, data, rows, net.code)
    if maps:
        batches = np.array_split(rows, -(-len(rows) // evaluation.BATCH))
        found_mm = [net.estimate(data.gray[some], data.distance_mm[some])[0] for some in batches]
        files.write_npy(maps, np.concatenate(found_mm))
    return found, tables.figures_tables({values.method: found})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m facedepth_jax.evaluate", description="Measure a finished run on any prepared arrays."
    )
    parser.add_argument("--run", required=True, type=files.path, help="directory of a finished run, or shipped")
    parser.add_argument("--data", required=True, type=files.path, help="prepared arrays")
    parser.add_argument("--split", default="test", choices=(*SPLITS, "all"), help="of the arrays (test)")
    text = "write the depth maps too, float32 (N, S, S), mm, by the rows of frames.csv, the background not masked"
    parser.add_argument("--maps", type=files.path, metavar="FILE.npy", help=text)
    args = parser.parse_args(argv)
    try:
        data = arrays.open(args.data.resolve())
        run = config.find_run(args.run)
        found, table = evaluate_run(run, data, args.split, args.maps)
        print(table, flush=True)
        place = Path("runs/shipped") if run == config.SHIPPED else run  # a package is no place to write to
        file = place / "evaluations" / f"{data.path.name}-{args.split}-{data.fingerprint[:8]}.json"
        files.write_json(file, {"data": str(data.path), "fingerprint": data.fingerprint, args.split: found})
    except FaceDepthError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"Figures: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
