"""Prepared arrays -> batches. The position in the data is a function of the step.

Epoch after epoch the rows are shuffled anew by the seed, and step k takes the examples k B .. (k + 1) B - 1 of that one
endless list. So a run resumes anywhere, on another number of processes or threads, and sees the same examples; no
iterator's state is saved.
"""

from collections.abc import Iterator

import grain
import numpy as np


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
    """Endless batches from step `start_step` on.

    Args:
      arrays: by name, first axis N, memory-mapped or not; e.g. gray uint8 (N, S, S), depth_mm uint16 (N, S, S).
      rows: int (n,), the rows to train on.
      batch_size: the global one, a multiple of `processes`; this process gets batch_size / processes of it.
      seed: of the shuffle.

    Yields:
      The same names, (batch_size / processes, ...).
    """
    order = grain.MapDataset.range(len(rows)).seed(seed).shuffle().repeat()
    order = order[start_step * batch_size + process :: processes].batch(batch_size // processes)
    examples = order.map(lambda positions: _gather(arrays, rows[positions]))
    return iter(examples.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def _gather(arrays, rows):
    # Sorted reads of a memory map are faster; the order within the batch is kept.
    order = np.argsort(rows)
    back = np.argsort(order)
    return {name: np.asarray(array[rows[order]])[back] for name, array in arrays.items()}
