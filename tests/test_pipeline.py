"""pipeline.py: the step's number alone decides which examples it gets."""

import itertools

import numpy as np
import pytest

from facedepth_jax.data import pipeline
from facedepth_jax.errors import FaceDepthError

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


@pytest.mark.parametrize("batch_size", [1, 3])
def test_any_batch_size_cuts_the_same_list(batch_size):
    found = rows_of(take(24 // batch_size, batch_size=batch_size, start_step=12 // batch_size))
    np.testing.assert_array_equal(found, rows_of(take(9))[12:])


@pytest.mark.parametrize("start", [1, 2, 3, 17])
def test_starting_at_a_step_is_skipping_the_batches_before(start):
    np.testing.assert_array_equal(rows_of(take(5, start_step=start)), rows_of(take(start + 5)[start:]))


@pytest.mark.parametrize("start", [0, 7])
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_batch_of_one_in_its_order(processes, start):
    one = take(6, batch_size=8, start_step=start)
    shares = [take(6, batch_size=8, start_step=start, process=p, processes=processes) for p in range(processes)]
    for whole, *parts in zip(one, *shares, strict=True):
        assert {len(part["row"]) for part in parts} == {8 // processes}
        for name in ("row", "gray"):
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])


def test_the_seed_decides():
    np.testing.assert_array_equal(rows_of(take(8, seed=1)), rows_of(take(8, seed=1)))
    assert not np.array_equal(rows_of(take(8, seed=1)), rows_of(take(8, seed=2)))


def test_memory_mapped_arrays(tmp_path):
    np.save(tmp_path / "gray.npy", ARRAYS["gray"])
    mapped = {"gray": np.load(tmp_path / "gray.npy", mmap_mode="r"), "row": ARRAYS["row"]}
    for batch, expected in zip(take(3, arrays=mapped), take(3), strict=True):
        assert type(batch["gray"]) is np.ndarray
        np.testing.assert_array_equal(batch["gray"], expected["gray"])


SUBJECTS = np.array(list("aabbbcddddd"))  # of ROWS; c has one frame


def take_pairs(count, rows=ROWS, subjects=SUBJECTS, arrays=ARRAYS, **options):
    options = {"batch_size": 6, "seed": 0} | options
    return list(itertools.islice(pipeline.pair_batches(arrays, rows, subjects, **options), count))


def test_pairs_are_half_of_one_person_and_never_of_one_frame():
    person = dict(zip(ROWS.tolist(), SUBJECTS, strict=True))
    count = 2000
    batches = take_pairs(count)
    pairs = np.concatenate([batch["row"] for batch in batches])
    same = np.concatenate([batch["same"] for batch in batches])
    assert all(batch["same"].sum() == 3 and batch["same"].dtype == np.int32 for batch in batches)
    who = np.array([[person[row] for row in pair] for pair in pairs.tolist()])
    np.testing.assert_array_equal(who[:, 0] == who[:, 1], same == 1)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    # Every person as often as any other, and within a person every frame.
    for letter, share in zip("abd", [1 / 3] * 3, strict=True):
        assert abs((who[same == 1, 0] == letter).mean() - share) < 0.03
    for letter in "abcd":
        assert abs((who[same == 0] == letter).mean() - 1 / 4) < 0.02
    of_d = pairs[(same == 1) & (who[:, 0] == "d")].ravel()
    for row in ROWS[SUBJECTS == "d"]:
        assert abs((of_d == row).mean() - 1 / 5) < 0.03
    in_order = (pairs[(same == 1) & (who[:, 0] == "a")] == ROWS[:2]).all(1).mean()
    assert abs(in_order - 1 / 2) < 0.06  # both orders


@pytest.mark.parametrize("batch_size", [1, 5])
def test_pairs_are_half_of_one_person_whatever_the_batch(batch_size):
    batches = take_pairs(10, batch_size=batch_size, start_step=3)
    same = np.concatenate([batch["same"] for batch in batches])
    assert sorted(same[:2]) == [0, 1] and (same[2:] == same[:-2]).all()
    np.testing.assert_array_equal(take_pairs(1, batch_size=batch_size, start_step=5)[0]["same"], batches[2]["same"])


def test_a_batch_of_pairs_is_what_stands_in_its_rows():
    for batch in take_pairs(3):
        assert batch["depth_mm"].shape == (6, 2, 4, 4) and batch["depth_mm"].dtype == np.uint16
        np.testing.assert_array_equal(batch["depth_mm"], ARRAYS["depth_mm"][batch["row"]])


def test_pairs_are_a_function_of_seed_and_step():
    whole = rows_of(take_pairs(9))
    np.testing.assert_array_equal(rows_of(take_pairs(4, start_step=5)), whole[5 * 6 :])
    assert not np.array_equal(rows_of(take_pairs(9, seed=1)), whole)
    assert len({tuple(batch["row"].ravel()) for batch in take_pairs(9)}) == 9


def test_processes_share_the_pairs_of_one_in_their_order():
    one = take_pairs(4, start_step=2)
    shares = [take_pairs(4, start_step=2, process=p, processes=3) for p in range(3)]
    for whole, *parts in zip(one, *shares, strict=True):
        for name in ("row", "same", "gray"):
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), whole[name])


@pytest.mark.parametrize("subjects", ["aaaaaaaaaaa", "abcdefghijk"])
def test_people_who_make_no_pairs(subjects):
    with pytest.raises(FaceDepthError, match="in the split 'train' make no verification pairs"):
        take_pairs(1, subjects=np.array(list(subjects)))
