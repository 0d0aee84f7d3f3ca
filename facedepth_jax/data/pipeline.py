"""Prepared arrays -> batches. The position in the data is a function of the step.

The seed shuffles the rows in every epoch, and step k takes the examples k B .. (k + 1) B - 1 of that one endless
list. So a run resumes anywhere, on another number of processes or threads, and sees the same examples; no
iterator's state is saved.
"""

import itertools
from collections.abc import Iterator

import grain
import numpy as np

from facedepth_jax.data.pairs import too_few
from facedepth_jax.errors import NoPairs

EPOCHS = 2**32  # more than any training sees
READ = grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)  # more threads or processes: benchmarks/pipeline.py


def batches(
    arrays: dict[str, np.ndarray],
    rows: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process: int = 0,
    processes: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield endless batches from step `start_step` on.

    Args:
      arrays: by name, first axis N, memory-mapped or not; e.g. gray uint8 (N, S, S), depth_mm uint16 (N, S, S).
      rows: int (n,), the rows to train on.
      batch_size: the global one, a multiple of `processes`; this process gets the `process`-th of as many equal parts.
      seed: of the shuffle.

    Yields:
      The same names, (batch_size / processes, ...).
    """
    # Not without a number: batches of one would then be more than Python's largest length.
    order = grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat(EPOCHS)
    order = order[start_step * batch_size :].batch(batch_size)
    share = batch_size // processes
    mine = slice(process * share, (process + 1) * share)
    examples = order.map(lambda positions: _gather(arrays, rows[positions[mine]]))
    return iter(examples.to_iter_dataset(READ))


def _gather(arrays, rows):
    # Sorted reads of a memory map are faster; the order within the batch is kept.
    order = np.argsort(rows)
    back = np.argsort(order)
    return {name: np.asarray(array[rows[order]])[back] for name, array in arrays.items()}


def pair_batches(
    arrays: dict[str, np.ndarray],
    rows: np.ndarray,
    subjects: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process: int = 0,
    processes: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
    """Yield endless batches of pairs for the verifier from step `start_step` on, each drawn by seed and step.

    Different people and the same person in turn, across batches too if their size is odd. A person is drawn first, each
    as often as any other, then a frame.

    Args:
      arrays: by name, first axis N, memory-mapped or not; e.g. depth_mm uint16 (N, S, S).
      rows: int (n,), the rows to train on.
      subjects: (n,), the people in them.
      batch_size, seed, start_step, process, processes: as for `batches`.

    Yields:
      The same names, (batch_size / processes, 2, ...), and "same", int32 (batch_size / processes,), 1 = two frames of
      one person.

    Raises:
      NoPairs: if there are not two people, or none of them has two frames.
    """
    rows, subjects = np.asarray(rows), np.asarray(subjects)
    people = [rows[subjects == subject] for subject in np.unique(subjects)]
    several = [person for person in people if len(person) > 1]
    if len(people) < 2 or not several:
        raise NoPairs(f"{too_few('train', subjects.tolist())}.")
    share = batch_size // processes
    for step in itertools.count(start_step):
        same = (np.arange(batch_size) + step * batch_size) % 2
        rng = np.random.default_rng((seed, step))
        drawn = np.array([_draw_same(several, rng) if s else _draw_different(people, rng) for s in same])
        mine = slice(process * share, (process + 1) * share)
        batch = _gather(arrays, drawn[mine].ravel())
        pairs = {name: array.reshape(share, 2, *array.shape[1:]) for name, array in batch.items()}
        yield pairs | {"same": same[mine].astype(np.int32)}


def _draw_same(several, rng):
    return rng.choice(several[rng.integers(len(several))], 2, replace=False)


def _draw_different(people, rng):
    return [rng.choice(people[person]) for person in rng.choice(len(people), 2, replace=False)]
