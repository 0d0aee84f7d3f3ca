"""pairs.py: the properties of the lists, for any data set."""

import collections
import hashlib
import itertools
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from facedepth_jax.data import pairs
from facedepth_jax.data.frames import FrameInfo
from facedepth_jax.errors import FaceDepthError


def data_set(frames_of, columns=lambda i: {}):
    """Columns of frames; without angles and sequences where `columns`, a function of the row, gives none."""
    unknown = {"sequence": 0, "yaw": math.nan, "pitch": math.nan, "roll": math.nan, "kind": ""}
    subjects = [f"s{i}" for i, count in enumerate(frames_of) for _ in range(count)]
    rows = [unknown | columns(i) | {"frame": f"f{i}", "subject": subject} for i, subject in enumerate(subjects)]
    return {name: [row[name] for row in rows] for name in ("frame", "subject", *unknown)}


def check(found, frames):
    subject_of = dict(zip(frames["frame"], frames["subject"], strict=True))
    assert all(a != b and (subject_of[a] == subject_of[b]) == bool(same) for a, b, same in found)
    assert len({frozenset(pair[:2]) for pair in found}) == len(found)
    assert 2 * sum(same for *_, same in found) == len(found)


def possible(frames_of):
    same = sum(n * (n - 1) // 2 for n in frames_of)
    total = sum(frames_of)
    return min(same, total * (total - 1) // 2 - same)


def turns(found, frames, wanted):
    subject_of = dict(zip(frames["frame"], frames["subject"], strict=True))
    return collections.Counter(
        subject for a, b, same in found if same == wanted for subject in {subject_of[a], subject_of[b]}
    )


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=0, max_size=6),
    st.integers(0, 60),
    st.integers(0, 16),
    st.integers(0, 5),
    st.integers(1, 7),
)
def test_pairs_are_valid_and_as_many_as_exist(frames_of, count, cell_count, seed, modulus):
    """With any spread of the frames over the cells."""
    frames = data_set(frames_of, lambda i: {"sequence": 1 + i % modulus, "yaw": 20.0 * (i % 2), "pitch": 0, "roll": 0})
    found = pairs.draw(frames, count, cell_count, seed)
    check(found, frames)
    assert len(found) == 2 * min(count // 2, possible(frames_of))


def test_every_person_has_their_share():
    """Also the one with few frames: 20 people, one of them with a tenth of the frames of the others."""
    frames = data_set([100] * 19 + [10])
    found = pairs.draw(frames, 800, 0, 3)
    check(found, frames)
    assert turns(found, frames, 1) == {f"s{i}": 20 for i in range(20)}
    different = turns(found, frames, 0)
    assert len(different) == 20 and set(different.values()) <= {39, 40, 41}


def cell_of(columns):
    """The elementary cell of a frame, from the definitions."""
    frontal = all(abs(columns[name]) <= 10 for name in ("yaw", "pitch", "roll"))
    return ("A1" if frontal else "A2") + (" S1-S3" if columns["sequence"] <= 3 else " S4-S5")


def pandora_like(frames_of, seed=0, frontal=0.3):
    rng = np.random.default_rng(seed)

    def columns(i):
        turned = rng.uniform(-9, 9, 3) + 40 * (rng.uniform() > frontal) * np.eye(3)[rng.integers(3)]
        return {"sequence": 1 + i % 5} | dict(zip(("yaw", "pitch", "roll"), map(float, turned), strict=True))

    return data_set(frames_of, columns)


def test_every_cell_has_its_pairs_and_the_counts_are_right():
    frames = pandora_like([300] * 4, frontal=0.1)  # 12 frontal frames of each person in S4-S5
    found = pairs.draw(frames, 2400, 200, 1)
    check(found, frames)
    assert len(found) == 2400
    rows = {name: {key: frames[key][i] for key in frames} for i, name in enumerate(frames["frame"])}
    counts = pairs.count_cells(found, frames)
    for angles in ("A1", "A2"):
        for sequences in ("S1-S3", "S4-S5"):
            name = f"{angles} {sequences}"
            inside = [p for p in found if cell_of(rows[p[0]]) == cell_of(rows[p[1]]) == name]
            assert counts[name] == {"same": sum(p[2] for p in inside), "different": sum(1 - p[2] for p in inside)}
            assert min(counts[name].values()) >= 90
    frontal = [p for p in found if all(cell_of(rows[name]).startswith("A1") for name in p[:2])]
    assert (
        sum(counts["A1 S1-S5"].values())
        == len(frontal)
        > sum(sum(counts[f"A1 {name}"].values()) for name in ("S1-S3", "S4-S5"))
    )  # the union has mixed pairs too
    assert counts["A1+A2 S1-S5"] == {"same": 1200, "different": 1200} and len(counts) == 9
    assert all(cell_of(rows[name]) == "A1 S1-S3" for p in found[:200] for name in p[:2])  # the cells come first
    check(found[:200], frames)
    assert set(turns(found[:200], frames, 1).values()) == {25}
    for same in (0, 1):
        assert max(turns(found, frames, same).values()) - min(turns(found, frames, same).values()) <= 2


def test_a_cell_gives_what_it_has_and_the_rest_is_drawn_freely():
    """One frontal frame of each person: no same-person pair there."""
    frames = data_set([20] * 4, lambda i: {"yaw": 30.0 * (i % 20 > 0), "pitch": 0.0, "roll": 0.0, "sequence": 2})
    found = pairs.draw(frames, 400, 100, 0)
    check(found, frames)
    counts = pairs.count_cells(found, frames)
    assert len(found) == 400 and counts["A1 S1-S3"]["same"] == 0 and counts["A2 S1-S3"]["same"] >= 50
    assert all(n == 0 for name in ("A1 S4-S5", "A2 S4-S5") for n in counts[name].values())


def test_without_sequences_the_angles_are_two_cells():
    """As in Biwi: 5 of 100 frames are frontal."""
    frames = data_set([100] * 4, lambda i: {"yaw": 30.0 * (i % 100 > 4), "pitch": 0.0, "roll": 0.0})
    found = pairs.draw(frames, 400, 60, 0)
    check(found, frames)
    assert all(int(name[1:]) % 100 <= 4 for pair in found[:60] for name in pair[:2])
    assert all(int(name[1:]) % 100 > 4 for pair in found[60:120] for name in pair[:2])
    counts = pairs.count_cells(found, frames)
    assert counts["A1 S1-S5"]["same"] >= 30 and counts["A1 S1-S3"] == {"same": 0, "different": 0}


def test_forty_thousand_frames_of_four_people():
    """More pairs exist than memory holds; the draw must not list them."""
    frames = pandora_like([10_000] * 4)
    tracemalloc.start()
    found = pairs.draw(frames, 4000, 600, 0)
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    check(found, frames)
    assert len(found) == 4000 and min(min(c.values()) for c in pairs.count_cells(found, frames).values()) >= 300


def test_the_seed_decides():
    frames = pandora_like([5] * 8)
    assert pairs.draw(frames, 40, 4, 1) == pairs.draw(frames, 40, 4, 1)
    assert pairs.draw(frames, 40, 4, 1) != pairs.draw(frames, 40, 4, 2)


GOLDEN = ["b235ad0da15e84d3", "b3f1be8e514a26da"]


def test_lists_stay_as_they_were():
    """Without kinds: as drawn by commit 1d54265, from before there were any."""
    found = pairs.draw(pandora_like([30] * 8), 400, 60, 7), pairs.draw(data_set([5, 3, 1, 4]), 100, 10, 1)
    hashes = [hashlib.sha256(repr(pairs).encode()).hexdigest()[:16] for pairs in found]
    assert hashes == GOLDEN


def check_kinds(found, frames):
    """Both frames of a pair are of one kind, and half of each kind's pairs show one person."""
    kind_of = dict(zip(frames["frame"], frames["kind"], strict=True))
    assert all(kind_of[a] == kind_of[b] for a, b, _ in found)
    counts = collections.Counter((kind_of[a], same) for a, _, same in found)
    assert all(counts[kind, 0] == counts[kind, 1] for kind, _ in counts)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 6), max_size=6), st.integers(0, 60), st.integers(0, 16), st.integers(1, 12))
def test_pairs_within_a_kind_are_valid_and_as_many_as_exist(frames_of, count, cell_count, modulus):
    """A person may have frames of several kinds; some kinds have a single person, or a single frame of each."""
    frames = data_set(frames_of, lambda i: {"kind": f"k{i % modulus % 3}", "sequence": 1 + i % 5})
    found = pairs.draw(frames, count, cell_count, 0)
    check(found, frames)
    check_kinds(found, frames)
    most = 0
    for kind in set(frames["kind"]):
        people = [s for s, k in zip(frames["subject"], frames["kind"], strict=True) if k == kind]
        most += possible(collections.Counter(people).values())
    assert len(found) == 2 * min(count // 2, most)


def test_kinds_have_their_share_of_the_pairs():
    """By their frames, while they can give it: of 30, 90 and 4 frames the last have two pairs of one person."""
    kinds = ["a"] * 30 + ["b"] * 90 + ["c"] * 4
    found = pairs.draw(data_set([10] * 12 + [2, 2], lambda i: {"kind": kinds[i]}), 800, 0, 0)
    assert collections.Counter(kinds[int(name[1:])] for name, *_ in found) == {"a": 200, "b": 596, "c": 4}


def test_degenerate_data_sets_have_no_pairs():
    for frames_of in ([], [1], [9], [1, 1, 1]):
        assert pairs.draw(data_set(frames_of), 10, 2, 0) == []
    assert set(map(str, pairs.count_cells([], data_set([])).values())) == {"{'same': 0, 'different': 0}"}


def test_write_and_read(tmp_path):
    found = pairs.draw(data_set([4, 4]), 10, 2, 0)
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


INDEX = [FrameInfo(f"f{i}", f"s{i // 2}", 1, "test" if i < 4 else "train") for i in range(6)]


def test_an_external_list_is_taken_as_it_is(tmp_path):
    (tmp_path / "p.tsv").write_text("f1\tf0\t1\nf0\tf3\t0\n")
    assert pairs.read_external(tmp_path / "p.tsv", "test", INDEX) == [("f1", "f0", 1), ("f0", "f3", 0)]
    (tmp_path / "p.tsv").write_bytes(b"\xef\xbb\xbff1\tf0\t1\r\nf0\tf3\t0\r\n")  # as Windows writes it
    assert pairs.read_external(tmp_path / "p.tsv", "test", INDEX) == [("f1", "f0", 1), ("f0", "f3", 0)]


@pytest.mark.parametrize(
    "line, message",
    [
        ("f0\tf9\t1", "line 2: the data set has no frame 'f9'"),
        ("f0\tf4\t0", "line 2: the frame 'f4' is in the split 'train', not test"),
        ("f0\tf2\t1", "line 2: the label is 1, but the frames show s0 and s1"),
        ("f0\tf1\t0", "line 2: the label is 0, but the frames show s0 and s0"),
        ("f0\tf0\t1", "line 2: a pair of the frame 'f0' with itself"),
        ("f0 f1 1", "line 2: a pair is"),
    ],
)
def test_an_external_list_that_does_not_fit_is_said(tmp_path, line, message):
    (tmp_path / "p.tsv").write_text(f"f0\tf1\t1\n{line}\n")
    with pytest.raises(FaceDepthError, match=message):
        pairs.read_external(tmp_path / "p.tsv", "test", INDEX)
    (tmp_path / "p.tsv").write_text("")
    with pytest.raises(FaceDepthError, match="is empty"):
        pairs.read_external(tmp_path / "p.tsv", "test", INDEX)


# --- Table 2's cells, against the definitions written out ---

ANGLES = st.one_of(st.floats(-90, 90), st.sampled_from([10.0, -10.0, 10.000001, -10.1, 0.0, math.nan]))
ROWS = st.lists(st.tuples(ANGLES, ANGLES, ANGLES, st.integers(0, 7)), max_size=20)


def columns_of(rows):
    values = np.array(rows, float).reshape(-1, 4).T
    return dict(zip(("yaw", "pitch", "roll", "sequence"), values, strict=True))


def in_cell(yaw, pitch, roll, sequence, angles, sequences):
    """Section 4.1.1: A1 within 10 degrees, A2 the others; one frame, plain Python."""
    known = not any(math.isnan(angle) for angle in (yaw, pitch, roll))
    frontal = max(abs(yaw), abs(pitch), abs(roll)) <= 10 if known else None
    by_angle = {"A1": frontal is True, "A2": frontal is False, "A1+A2": True}
    by_sequence = {"S1-S3": sequence in (1, 2, 3), "S4-S5": sequence in (4, 5), "S1-S5": sequence in (0, 1, 2, 3, 4, 5)}
    return by_angle[angles] and by_sequence[sequences]


@given(ROWS)
def test_cells_are_what_the_definitions_say(rows):
    for angles, sequences in itertools.product(pairs.ANGLE_SUBSETS, pairs.SEQUENCE_SUBSETS):
        found = pairs.in_subset(columns_of(rows), angles, sequences)
        assert found.dtype == bool and found.tolist() == [in_cell(*row, angles, sequences) for row in rows]


def test_ten_degrees_are_frontal_and_a_little_more_is_not():
    rows = [(10.0, -10.0, 10.0, 1), (10.01, 0, 0, 1), (0, -10.01, 0, 1), (0, 0, 11, 1), (math.nan, 0, 0, 1)]
    assert pairs.in_subset(columns_of(rows), "A1", "S1-S3").tolist() == [True, False, False, False, False]
    assert pairs.in_subset(columns_of(rows), "A2", "S1-S3").tolist() == [False, True, True, True, False]
    assert pairs.in_subset(columns_of(rows), "A1+A2", "S1-S3").all()


def test_what_is_missing_for_pairs_is_counted():
    said = pairs.too_few("test", [f"p{i}" for i in range(6)])
    assert said.startswith("6 frames of 6 subjects in the split 'test' make no") and "with two frames" in said
    assert pairs.too_few("test", ["a"]).startswith("1 frame of 1 subject in")
