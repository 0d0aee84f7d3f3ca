"""Small prepared arrays for tests, and what the tests of training read of a run."""

import json

import numpy as np
import safetensors.numpy

from facedepth_jax.data import arrays


def write_arrays(path, gray, depth_mm, subjects, splits, *, pairs=None, face_mm=240.0, **columns):
    """Write prepared arrays and open them.

    Args:
      gray, depth_mm: (N, S, S).
      subjects, splits: N names each.
      pairs: {split: verification pairs}.
      columns: more columns of frames.csv; the frames are called f0, f1, ... by default.
    """
    count = len(gray)
    frames = {name: [kind(0)] * count for name, kind in arrays.COLUMNS.items()}
    frames |= {"frame": [f"f{i}" for i in range(count)], "subject": list(subjects), "split": list(splits)}
    arrays.write(
        path,
        frames=frames | columns,
        images=[(np.asarray(gray, np.uint8), np.asarray(depth_mm, np.uint16))],
        size_px=gray.shape[1],
        pair_lists={"validation": [], "test": []} | (pairs or {}),
        meta={"crop": {"face_mm": face_mm}, "dataset": {"name": "folder"}},
    )
    return arrays.open(path)


def weights(run, name="generator"):
    """Read a run's exported weights, flat."""
    return safetensors.numpy.load((run / f"{name}.safetensors").read_bytes())


def results(run):
    """Read a run's results.json."""
    return json.loads((run / "results.json").read_text())


def lines(run):
    """Read a run's metrics.jsonl but for the machine's speed."""
    every = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.endswith("_per_sec")} for line in every]
