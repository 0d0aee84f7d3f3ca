"""splits.py: the paper's splits and Table 2's cells, against the definitions written out."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from facedepth_jax.data import splits

ANGLES = st.one_of(st.floats(-90, 90), st.sampled_from([10.0, -10.0, 10.000001, -10.1, 0.0, math.nan]))
ROWS = st.lists(st.tuples(ANGLES, ANGLES, ANGLES, st.integers(0, 7)), max_size=20)


def columns(rows):
    values = np.array(rows, float).reshape(-1, 4).T
    return dict(zip(("yaw", "pitch", "roll", "sequence"), values, strict=True))


def in_cell(yaw, pitch, roll, sequence, angles, sequences):
    """Section 4.1.1: A1 within 10 degrees, A2 the others; one frame, plain Python."""
    known = not any(math.isnan(angle) for angle in (yaw, pitch, roll))
    frontal = max(abs(yaw), abs(pitch), abs(roll)) <= 10 if known else None
    by_angle = {"A1": frontal is True, "A2": frontal is False, "A1+A2": True}
    by_sequence = {"S1-S3": sequence in (1, 2, 3), "S4-S5": sequence in (4, 5), "S1-S5": True}
    return by_angle[angles] and by_sequence[sequences]


@given(ROWS)
def test_cells_are_what_the_definitions_say(rows):
    for angles, sequences in itertools.product(splits.ANGLE_SUBSETS, splits.SEQUENCE_SUBSETS):
        found = splits.in_subset(columns(rows), angles, sequences)
        assert found.dtype == bool and found.tolist() == [in_cell(*row, angles, sequences) for row in rows]


def test_ten_degrees_are_frontal_and_a_little_more_is_not():
    rows = [(10.0, -10.0, 10.0, 1), (10.01, 0, 0, 1), (0, -10.01, 0, 1), (0, 0, 11, 1), (math.nan, 0, 0, 1)]
    assert splits.in_subset(columns(rows), "A1", "S1-S3").tolist() == [True, False, False, False, False]
    assert splits.in_subset(columns(rows), "A2", "S1-S3").tolist() == [False, True, True, True, False]
    assert splits.in_subset(columns(rows), "A1+A2", "S1-S3").all()


@pytest.mark.parametrize(
    "members, split",
    [((10, 14, 16, 20), "test"), ((9, 18, 21, 22), "validation"), ((1, 8, 11, 13, 15, 17, 19), "train")],
)
def test_pandoras_people(members, split):
    assert {splits.split_of(number, splits.PANDORA_SPLITS) for number in members} == {split}


def test_biwis_sequences_keep_people_apart():
    """01, 10, 11 have 1,796 frames; who was recorded twice is in one split."""
    assert [n for n in range(1, 25) if splits.split_of(n, splits.BIWI_SPLITS) == "test"] == [1, 10, 11]
    assert sum(splits.BIWI_TEST_FRAMES.values()) == 498 + 726 + 572
    assert splits.BIWI_SEQUENCES - len(splits.BIWI_SAME_PERSON) == 20
    for again, first in splits.BIWI_SAME_PERSON.items():
        assert splits.split_of(again, splits.BIWI_SPLITS) == splits.split_of(first, splits.BIWI_SPLITS)


def test_what_the_group_leaves_out_is_of_test_people_and_in_order():
    for folder, ranges in splits.PANDORA_EXCLUDED.items():
        subject, sequence = (folder - 1) // 5 + 1, (folder - 1) % 5 + 1
        assert splits.split_of(subject, splits.PANDORA_SPLITS) == "test" and 1 <= sequence <= 5
        ends = [end for limits in ranges for end in limits]
        assert ends == sorted(ends) and len(set(ends)) == len(ends)
    assert sum(len(ranges) for ranges in splits.PANDORA_EXCLUDED.values()) == 36
