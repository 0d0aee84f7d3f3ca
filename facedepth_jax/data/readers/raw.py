"""Parts that the readers of raw directories share."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

from facedepth_jax.errors import FaceDepthError


def split_of(number: int, splits: dict[str, tuple[int, ...]]) -> str:
    """Return the split of a subject's or sequence's number; those in no split train."""
    return next((split for split, members in splits.items() if number in members), "train")


def list_folders(path: Path) -> list[str]:
    """Return the sorted names of the folders in a raw directory. Raises FaceDepthError if it cannot be listed."""
    return sorted(entry.name for entry in _scan(path) if entry.is_dir())


def list_files(path: Path) -> set[str]:
    """Return the names of the files in a folder; none if there is no folder. Raises FaceDepthError as above."""
    return {entry.name for entry in _scan(path) if entry.is_file()} if path.is_dir() else set()


def _scan(path: Path) -> list[os.DirEntry]:
    try:
        return list(os.scandir(path))
    except OSError as error:
        raise FaceDepthError(
            f"the raw directory {path} does not exist or cannot be listed ({error.strerror})"
        ) from None


def find_copies(annotations: dict, person_of: Callable) -> dict:
    """Find copied sequences: those that share at least half of the annotations of the shorter one.

    Of one person's the first stays. Of two people's neither does, since it is not known which of the two people the
    copies show, and a person could be in two splits.

    Args:
      annotations: sequence -> set of its annotations, in the order of the sequences.
      person_of: sequence -> person.

    Returns:
      copy -> (the other sequence, number of annotations that they share).
    """
    copies = {}
    for one, other in itertools.combinations(annotations, 2):
        common = len(annotations[one] & annotations[other])
        if common and 2 * common >= min(len(annotations[one]), len(annotations[other])):
            copies.setdefault(other, (one, common))
            if person_of(one) != person_of(other):
                copies.setdefault(one, (other, common))
    return copies
