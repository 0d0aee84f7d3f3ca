"""pipeline.py: the step's number alone decides which examples it gets."""

import itertools

import numpy as np
import pytest

from facedepth_jax.data import pipeline

ROWS = np.array([3, 19, 4, 11, 5, 12, 7, 0, 14, 2, 8])  # 11 of the 20, in no order
ARRAYS = {
    "gray": np.random.default_rng(0).integers(0, 256, (20, 4, 4), np.uint8),
    "depth_mm": np.random.default_rng(1).integers(0, 4000, (20, 4, 4)).astype(np.uint16),
    "row": np.arange(20),
}


def take(count, rows=ROWS, arrays=ARRAYS, **options):
    return list(itertools.islice(pipeline.batches(arrays, rows, **{"batch_size": 4, "seed": 0} | options), count))


def rows_of(batches):
    return np.concatenate([batch["row"] for batch in batches])


def test_every_epoch_is_each_row_once_in_another_order():
    seen = rows_of(take(4 * len(ROWS)))  # 16 epochs; a batch may lie in two
    epochs = seen.reshape(16, len(ROWS))
    np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.sort(ROWS), (16, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 16


def test_a_batch_is_what_stands_in_its_rows():
    for batch in take(6):
        assert batch["gray"].dtype == np.uint8 and batch["depth_mm"].dtype == np.uint16
        assert batch["gray"].shape == (4, 4, 4)
        for k, row in enumerate(batch["row"]):
            np.testing.assert_array_equal(batch["gray"][k], ARRAYS["gray"][row])
            np.testing.assert_array_equal(batch["depth_mm"][k], ARRAYS["depth_mm"][row])


def test_a_row_twice_and_more_than_an_epoch_in_a_batch():
    rows = np.array([5, 5, 9])
    (batch,) = take(1, rows, batch_size=12)
    np.testing.assert_array_equal(np.sort(batch["row"]), [5] * 8 + [9] * 4)
    for k, row in enumerate(batch["row"]):
        np.testing.assert_array_equal(batch["gray"][k], ARRAYS["gray"][row])


@pytest.mark.parametrize("start", [1, 2, 3, 17])
def test_starting_at_a_step_is_skipping_the_batches_before(start):
    np.testing.assert_array_equal(rows_of(take(5, start_step=start)), rows_of(take(start + 5)[start:]))


@pytest.mark.parametrize("start", [0, 7])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batch_of_one(processes, start):
    one = take(6, batch_size=8, start_step=start)
    shares = [take(6, batch_size=8, start_step=start, process=p, processes=processes) for p in range(processes)]
    for whole, *parts in zip(one, *shares, strict=True):
        assert {len(part["row"]) for part in parts} == {8 // processes}
        np.testing.assert_array_equal(np.sort(rows_of(parts)), np.sort(whole["row"]))


def test_the_seed_decides():
    np.testing.assert_array_equal(rows_of(take(8, seed=1)), rows_of(take(8, seed=1)))
    assert not np.array_equal(rows_of(take(8, seed=1)), rows_of(take(8, seed=2)))


def test_memory_mapped_arrays(tmp_path):
    np.save(tmp_path / "gray.npy", ARRAYS["gray"])
    mapped = {"gray": np.load(tmp_path / "gray.npy", mmap_mode="r"), "row": ARRAYS["row"]}
    for batch, expected in zip(take(3, arrays=mapped), take(3), strict=True):
        assert type(batch["gray"]) is np.ndarray
        np.testing.assert_array_equal(batch["gray"], expected["gray"])
