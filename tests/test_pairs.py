"""pairs.py: the properties of the lists, for any data set."""

import collections

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facedepth_jax.data import pairs
from facedepth_jax.errors import FaceDepthError


def data_set(frames_of):
    subjects = [f"s{i}" for i, count in enumerate(frames_of) for _ in range(count)]
    return [f"f{i}" for i in range(len(subjects))], subjects


def check(found, names, subjects):
    subject_of = dict(zip(names, subjects, strict=True))
    assert all(a != b and (subject_of[a] == subject_of[b]) == bool(same) for a, b, same in found)
    assert len({frozenset(pair[:2]) for pair in found}) == len(found)
    assert 2 * sum(same for *_, same in found) == len(found)


def possible(frames_of):
    same = sum(n * (n - 1) // 2 for n in frames_of)
    total = sum(frames_of)
    return min(same, total * (total - 1) // 2 - same)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=0, max_size=6), st.integers(0, 60), st.integers(0, 5))
def test_pairs_are_valid_and_as_many_as_exist(frames_of, count, seed):
    names, subjects = data_set(frames_of)
    found = pairs.draw(names, subjects, count, seed)
    check(found, names, subjects)
    assert len(found) == 2 * min(count // 2, possible(frames_of))


def test_every_person_has_their_share():
    """Also the one with few frames: 20 people, one of them with a tenth of the frames of the others."""
    names, subjects = data_set([100] * 19 + [10])
    found = pairs.draw(names, subjects, 800, 3)
    check(found, names, subjects)
    subject_of = dict(zip(names, subjects, strict=True))
    same = collections.Counter(subject_of[a] for a, _, is_same in found if is_same)
    assert set(same.values()) == {20} and len(same) == 20
    first = collections.Counter(subject_of[a] for a, _, is_same in found if not is_same)
    assert set(first.values()) == {20}
    other = collections.Counter(subject_of[b] for _, b, is_same in found if not is_same)
    assert len(other) == 20 and max(other.values()) < 45


def test_the_seed_decides():
    names, subjects = data_set([5] * 8)
    assert pairs.draw(names, subjects, 40, 1) == pairs.draw(names, subjects, 40, 1)
    assert pairs.draw(names, subjects, 40, 1) != pairs.draw(names, subjects, 40, 2)


def test_degenerate_data_sets_have_no_pairs():
    for frames_of in ([], [1], [9], [1, 1, 1]):
        assert pairs.draw(*data_set(frames_of), 10, 0) == []


def test_write_and_read(tmp_path):
    found = pairs.draw(*data_set([4, 4]), 10, 0)
    pairs.write(tmp_path / "p.tsv", found)
    assert (tmp_path / "p.tsv").read_text().splitlines()[0] == "\t".join(map(str, found[0]))
    assert pairs.read(tmp_path / "p.tsv") == found
    pairs.write(tmp_path / "p.tsv", [])
    assert pairs.read(tmp_path / "p.tsv") == []


@pytest.mark.parametrize("line", ["a\tb", "a\tb\t2", "a b 1", "a\tb\t1\tc", ""])
def test_a_line_that_is_no_pair_is_named(tmp_path, line):
    (tmp_path / "p.tsv").write_text(f"a\tb\t1\n{line}\n")
    with pytest.raises(FaceDepthError, match="line 2: a pair is"):
        pairs.read(tmp_path / "p.tsv")


def test_a_list_that_cannot_be_read_is_said(tmp_path):
    with pytest.raises(FaceDepthError, match="cannot be read"):
        pairs.read(tmp_path / "none.tsv")
    (tmp_path / "p.tsv").write_bytes(b"\xff\xfe")
    with pytest.raises(FaceDepthError, match="cannot be read"):
        pairs.read(tmp_path / "p.tsv")
