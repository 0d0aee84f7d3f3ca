"""Draw, write and read the fixed verification pairs: two frames, and whether they show the same person.

The paper evaluates on two fixed lists, validation and test, half of the pairs of one person (section 4.2). The official
lists are not published; ours are drawn once with a seed and kept with the arrays, one pair a line:
`frame_a<TAB>frame_b<TAB>1` for the same person, 0 for two people.

A pair is in a cell of Table 2 when both its frames are: the paper does not say, and any other reading puts a frontal
and a turned face into "A1". So the unions also hold the mixed pairs, one frame from each side.
"""

import collections
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from facedepth_jax.data.frames import FrameInfo, counted
from facedepth_jax.errors import FaceDepthError

Pair = tuple[str, str, int]

# Table 2: angle subsets (section 4.1.1; within 10 degrees, inclusive) and sequence subsets, with their unions.
A1_LIMIT_DEG = 10.0
ANGLE_SUBSETS = ("A1", "A2", "A1+A2")
SEQUENCE_SUBSETS = ("S1-S3", "S4-S5", "S1-S5")


def in_subset(frames: Mapping[str, Sequence], angles: str, sequences: str) -> np.ndarray:
    """Find the frames in a cell of Table 2: bool (N,).

    Args:
      frames: columns yaw, pitch, roll in degrees, sequence; (N,) each.
      angles: one of ANGLE_SUBSETS; A1 when all three angles are within 10 degrees, A2 when one is not. A frame with an
        unknown angle is in neither, but in their union.
      sequences: one of SEQUENCE_SUBSETS; a frame of a data set without sequences (0) is in their union alone, one of a
        sixth or later sequence in none.
    """
    turned = np.stack([np.abs(frames[name]) for name in ("yaw", "pitch", "roll")])
    known = np.isfinite(turned).all(0)
    frontal = (turned <= A1_LIMIT_DEG).all(0)
    sequence = np.asarray(frames["sequence"])
    by_angle = {"A1": known & frontal, "A2": known & ~frontal, "A1+A2": np.ones_like(known)}
    by_sequence = {
        "S1-S3": (sequence >= 1) & (sequence <= 3),
        "S4-S5": (sequence >= 4) & (sequence <= 5),
        "S1-S5": sequence <= 5,
    }
    return by_angle[angles] & by_sequence[sequences]


def draw(frames: Mapping[str, Sequence], count: int, cell_count: int, seed: int) -> list[Pair]:
    """Draw up to `count` pairs, half of one person and half of two: first those of Table 2's cells, then freely.

    Each of the four elementary cells (A1 and A2, S1-S3 and S4-S5; two where angles or sequences are not known)
    gives up to `cell_count` pairs; the rest are drawn among all frames. In each draw the person with the fewest turns
    is next, in random order among equals; a person without a pair left to give drops out. No pair comes twice, in
    either order, nor a frame with itself. Both frames of a pair are of one kind, and half of each kind's pairs show one
    person, so that whoever knows the kinds alone is right in half of the pairs.

    Args:
      frames: columns (N,) frame, subject, sequence, kind, and yaw, pitch, roll in degrees (NaN: not known).
      count, cell_count: wanted; fewer come where fewer exist, none where there are not two people, or no one with two
        frames.
      seed: of the draw.

    Returns:
      pairs, same and different in turn, those of the cells first.
    """
    rng = np.random.default_rng(seed)
    names, subjects, kinds = (np.asarray(frames[name]) for name in ("frame", "subject", "kind"))
    taken: list[tuple[int, int]] = []
    turns = {same: dict.fromkeys(np.unique(subjects).tolist(), 0) for same in (True, False)}
    cells = [(np.flatnonzero(cell), min(cell_count, count // 4)) for cell in _elementary_cells(frames)]
    for rows, wanted in [*cells, (np.arange(len(names)), None)]:  # at last whatever the cells did not give
        half = (count - len(taken) if wanted is None else wanted) // 2
        known = {frozenset(pair) for pair in taken}
        parts = [rows[kinds[rows] == kind] for kind in np.unique(kinds[rows])]
        lefts = [{same: _count_left(subjects, part, taken, same) for same in (True, False)} for part in parts]
        most = [min(sum(left[True].values()), sum(left[False].values()) // 2) for left in lefts]
        for part, left, share in zip(parts, lefts, _share(half, most, [len(part) for part in parts]), strict=True):
            rows_of = {s: part[subjects[part] == s] for s in left[True]}
            drawn = [_take_turns(rows_of, same, share, left[same], turns[same], known, rng) for same in (True, False)]
            taken += [pair for both in zip(*drawn, strict=True) for pair in both]
    return [(str(names[a]), str(names[b]), int(subjects[a] == subjects[b])) for a, b in taken]


def _share(total: int, most: Sequence[int], sizes: Sequence[int]) -> list[int]:
    """Divide up to `total` pairs among kinds in proportion to their sizes, but give none more than it has."""
    shares = [0] * len(most)
    for _ in range(min(total, sum(most))):
        able = [kind for kind in range(len(most)) if shares[kind] < most[kind]]
        shares[min(able, key=lambda kind: shares[kind] / sizes[kind])] += 1
    return shares


def too_few(split: str, subjects: Sequence[str]) -> str:
    """Say why the frames of a split, by their subjects (N,), make no pairs."""
    count = f"{counted(len(subjects), 'frame')} of {counted(len(set(subjects)), 'subject')}"
    kinds = "" if split == "train" else ", and of one kind if there are kinds"
    return (
        f"{count} in the split '{split}' make no verification pairs: it takes two people, one of them with two frames"
        f"{kinds}"
    )


def _elementary_cells(frames: Mapping[str, Sequence]) -> list[np.ndarray]:
    """Find the frames of each cell that has no other cell in it: bool (N,) each."""
    by_angles = [in_subset(frames, angles, SEQUENCE_SUBSETS[-1]) for angles in ANGLE_SUBSETS]
    by_sequences = [in_subset(frames, ANGLE_SUBSETS[-1], sequences) for sequences in SEQUENCE_SUBSETS]
    parts = [subsets[:2] if np.any(subsets[:2]) else subsets[2:] for subsets in (by_angles, by_sequences)]
    return [angles & sequences for angles in parts[0] for sequences in parts[1]]


def _count_left(subjects: np.ndarray, rows: np.ndarray, taken: list[tuple[int, int]], same: bool) -> dict[str, int]:
    """Count the pairs that each person can still give within `rows`; one of two people counts for both."""
    counts = sorted(collections.Counter(subjects[rows].tolist()).items())
    left = {s: n * (n - 1) // 2 if same else n * (len(rows) - n) for s, n in counts}
    inside = set(rows.tolist())
    for a, b in taken:
        if a in inside and b in inside and (subjects[a] == subjects[b]) == same:
            for s in {str(subjects[a]), str(subjects[b])}:
                left[s] -= 1
    return left


def _take_turns(rows_of, same, count, left, turns, known, rng) -> list[tuple[int, int]]:
    """Draw `count` new pairs, of which there must be as many; changes left, turns and known."""
    pairs = []
    while len(pairs) < count:
        fewest = min(turns[s] for s in left if left[s])
        for subject in rng.permutation([s for s in left if left[s] and turns[s] == fewest]).tolist():
            if len(pairs) == count or not left[subject] or turns[subject] > fewest:  # it was the other one meanwhile
                continue
            others = [subject] if same else [s for s in left if s != subject and left[s]]
            while True:
                other = others[rng.integers(len(others))]
                a, b = (int(rows_of[s][rng.integers(len(rows_of[s]))]) for s in (subject, other))
                if a != b and frozenset((a, b)) not in known:
                    break
            known.add(frozenset((a, b)))
            pairs.append((a, b))
            for s in {subject, other}:
                left[s] -= 1
                turns[s] += 1
    return pairs


def count_cells(pairs: Sequence[Pair], frames: Mapping[str, Sequence]) -> dict[str, dict[str, int]]:
    """Count the pairs of each of Table 2's nine cells: {"A1 S1-S3": {"same": n, "different": n}, ...}.

    Args:
      frames: the columns that `draw` takes, with every frame that a pair names.
    """
    row_of = {name: row for row, name in enumerate(frames["frame"])}
    ends = np.array([(row_of[a], row_of[b]) for a, b, _ in pairs], int).reshape(-1, 2)
    same = np.array([same for *_, same in pairs], bool)
    counts = {}
    for angles in ANGLE_SUBSETS:
        for sequences in SEQUENCE_SUBSETS:
            inside = in_subset(frames, angles, sequences)[ends].all(1)
            counts[f"{angles} {sequences}"] = {
                "same": int((inside & same).sum()),
                "different": int((inside & ~same).sum()),
            }
    return counts


def write(path: str | os.PathLike, pairs: Sequence[Pair]) -> None:
    """Write a list, one pair a line."""
    Path(path).write_text("".join(f"{a}\t{b}\t{same}\n" for a, b, same in pairs), encoding="utf-8")


def read(path: str | os.PathLike) -> list[Pair]:
    """Read a list: [(frame_a, frame_b, 1 or 0)]. Raises FaceDepthError if it is missing or a line is something else."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FaceDepthError(f"the pair list {path} cannot be read ({error})") from None
    pairs = [tuple(line.split("\t")) for line in lines]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 3 or pair[2] not in ("0", "1"):
            raise FaceDepthError(f"{path}, line {number}: a pair is two frame names and 0 or 1, separated by tabs")
    return [(a, b, int(same)) for a, b, same in pairs]


def read_external(path: str | os.PathLike, split: str, index: Sequence[FrameInfo]) -> list[Pair]:
    """Read a list from elsewhere and check it against the data set.

    Raises:
      FaceDepthError: as `read`; a name that the data set does not have, a frame of another split, of a frame with
        itself, or a label that contradicts the subjects, with its line; no pair at all.
    """
    info_of = {info.frame: info for info in index}
    pairs = read(path)
    for number, (a, b, same) in enumerate(pairs, 1):
        where = f"{path}, line {number}"
        for name in (a, b):
            if name not in info_of:
                raise FaceDepthError(f"{where}: the data set has no frame '{name}'; names are those of frames.csv")
            if info_of[name].split != split:
                raise FaceDepthError(
                    f"{where}: the frame '{name}' is in the split '{info_of[name].split}', not {split}"
                )
        if a == b:
            raise FaceDepthError(f"{where}: a pair of the frame '{a}' with itself")
        people = info_of[a].subject, info_of[b].subject
        if (people[0] == people[1]) != bool(same):
            raise FaceDepthError(f"{where}: the label is {same}, but the frames show {people[0]} and {people[1]}")
    if not pairs:
        raise FaceDepthError(f"the pair list {path} is empty")
    return pairs
