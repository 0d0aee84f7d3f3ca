"""The fixed verification pairs: two frames, and whether they show the same person.

The paper evaluates on two fixed lists, validation and test, half of the pairs of one person (section 4.2). The official
lists are not to be had; ours are drawn once with a seed and kept beside the arrays, one pair a line:
`frame_a<TAB>frame_b<TAB>1` for the same person, 0 for two people.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from facedepth_jax.errors import FaceDepthError

Pair = tuple[str, str, int]


def draw(frames: Sequence[str], subjects: Sequence[str], count: int, seed: int) -> list[Pair]:
    """Draws up to `count` pairs: half of one person, half of two, and every person as often as any other.

    The people take turns; each time one gives a pair that is new in both orders, of two different frames, and drops out
    when there is none left to give.

    Args:
      frames, subjects: (N,) frame names and who they show.
      count: wanted; fewer come where fewer exist, none where there are not two people, or no one with two frames.
      seed: of the draw.

    Returns:
      pairs, same and different in turn.
    """
    rng = np.random.default_rng(seed)
    rows = {subject: [] for subject in sorted(set(subjects))}
    for row, subject in enumerate(subjects):
        rows[subject].append(row)
    same = _take_turns(rows, True, count // 2, rng)
    different = _take_turns(rows, False, count // 2, rng)
    found = [pair for both in zip(same, different, strict=False) for pair in both]  # the shorter one decides
    return [(frames[a], frames[b], int(subjects[a] == subjects[b])) for a, b in found]


def _take_turns(rows: dict[str, list[int]], same: bool, count: int, rng) -> list[tuple[int, int]]:
    everyone = sum(map(len, rows.values()))
    left = {s: len(r) * (len(r) - 1) // 2 if same else len(r) * (everyone - len(r)) for s, r in rows.items()}
    taken, pairs = set(), []
    while any(left.values()):
        for subject in rng.permutation(list(rows)).tolist():
            if len(pairs) == count:
                return pairs
            while left[subject]:
                other = subject if same else rng.choice([s for s in rows if s != subject])
                a, b = int(rng.choice(rows[subject])), int(rng.choice(rows[other]))
                if a != b and frozenset((a, b)) not in taken:
                    taken.add(frozenset((a, b)))
                    pairs.append((a, b))
                    for s in {subject, str(other)}:
                        left[s] -= 1
                    break
    return pairs


def write(path: str | os.PathLike, pairs: Sequence[Pair]) -> None:
    """Writes a list, one pair a line."""
    Path(path).write_text("".join(f"{a}\t{b}\t{same}\n" for a, b, same in pairs), encoding="utf-8")


def read(path: str | os.PathLike) -> list[Pair]:
    """Reads a list: [(frame_a, frame_b, 1 or 0)]. FaceDepthError where it is missing or a line is something else."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FaceDepthError(f"the pair list {path} cannot be read ({error})") from None
    pairs = [tuple(line.split("\t")) for line in lines]
    for number, pair in enumerate(pairs, 1):
        if len(pair) != 3 or pair[2] not in ("0", "1"):
            raise FaceDepthError(f"{path}, line {number}: a pair is two frame names and 0 or 1, separated by tabs")
    return [(a, b, int(same)) for a, b, same in pairs]
