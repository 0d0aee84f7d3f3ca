"""Small prepared arrays for tests, a net whose estimate is known, and what the tests of training read of a run."""

import contextlib
import json

import flax.linen as nn
import imageio.v3 as iio
import jax.numpy as jnp
import matplotlib
import numpy as np
import pytest
import safetensors.numpy

from facedepth_jax import config, evaluation, tasks, verification
from facedepth_jax.data import arrays
from facedepth_jax.depth_code import DepthCode
from facedepth_jax.estimator import FaceDepth
from facedepth_jax.state import NetState


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
    return [
        {name: value for name, value in line.items() if not name.endswith(("_per_sec", "waiting_share"))}
        for line in every
    ]


class _Gray(nn.Module):
    """The image itself."""

    def __call__(self, x, train):
        return x


def gray_net(size):
    """Make a FaceDepth whose level is the gray value, so a map shows in mm which gray pixels the net was given."""
    return FaceDepth(_Gray(), NetState({}, {}, None), size, 320.0, DepthCode())


class _GrayAbove100(nn.Module):
    """The image itself, and a foreground where it is brighter than 100."""

    def __call__(self, x, train):
        return jnp.concatenate([x, 127.5 * x + 27], -1)


def head_net(size, mask=True):
    """Make a FaceDepth whose relief is the gray value, 0..255 as -300..300 mm, with a mask of what is above 100."""
    module = _GrayAbove100() if mask else _Gray()
    return FaceDepth(module, NetState({}, {}, None), size, 320.0, DepthCode(origin="head"))


def sample_photo():
    """Read the portrait that comes with matplotlib, uint8 (600, 512, 3) RGB: Grace Hopper, public domain."""
    return iio.imread(matplotlib.get_data_path() + "/sample_data/grace_hopper.jpg")


POISON_MM = 60_000  # a depth that no frame has by itself


def write_people(path, poisoned=None):
    """Write domes of five people, four frames each, as wide and deep as the person, and pairs of them.

    One pixel of the frame `poisoned` holds POISON_MM.
    """
    rng = np.random.default_rng(0)
    names = [f"{person}{i}" for person in "abcde" for i in range(4)]
    subjects = [name[0] for name in names]
    subjects[15], subjects[19] = "y", "z"  # a second person in validation and test
    y, x = np.mgrid[:96, :96]
    shapes = [np.hypot((x - 48) * (0.8 + 0.1 * (i // 4)), y - 48) + rng.normal(size=(96, 96)) for i in range(20)]
    depth_mm = np.stack([np.where(r < 40, 700 + (3 + i // 4) * r, 0) for i, r in enumerate(shapes)]).astype(np.uint16)
    gray = rng.integers(0, 256, depth_mm.shape, np.uint8)
    if poisoned:
        depth_mm[names.index(poisoned), 0, 0] = POISON_MM
    pairs = {
        split: [(names[a], names[b], int(b < i + 3)) for a in range(i, i + 3) for b in range(a + 1, i + 4)]
        for split, i in (("validation", 12), ("test", 16))
    }
    splits = ["train"] * 12 + ["validation"] * 4 + ["test"] * 4
    return write_arrays(path, gray, depth_mm, subjects, splits, pairs=pairs, frame=names)


def people_config(method, data_dir, /, **changes):
    """Make the config of eight steps of a narrow net on what `write_people` wrote; changes by dotted name."""
    values = config.base(method)
    values.width = 2
    values.train.batch_size, values.train.steps, values.train.learning_rate = 8, 8, 0.02
    values.every.log, values.every.save = 1, 2
    values.data.dir, values.data.face_mm = str(data_dir), 240.0
    values.update_from_flattened_dict(changes)
    return values


@contextlib.contextmanager
def small_batches():
    """Let an evaluation of four frames, or of the pairs of them, take several batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "BATCH", 2)
        patch.setattr(tasks, "SAMPLES", 2)
        patch.setattr(verification, "BATCH", 2)
        yield
