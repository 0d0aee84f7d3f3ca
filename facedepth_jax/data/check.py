"""Check a raw data set before any work: what it is, what is missing, what would be rejected. Writes nothing."""

from collections import Counter, defaultdict

import numpy as np

from facedepth_jax.data import pairs
from facedepth_jax.data.chunks import prepare_frame
from facedepth_jax.data.frames import SPLITS, FrameInfo, Reject, Source
from facedepth_jax.data.summary import rejects_text
from facedepth_jax.errors import FaceDepthError

SAMPLE = 100  # frames at most that are read


def check(source: Source, *, face_mm: float, size: int, pair_lists: dict[str, str]) -> tuple[str, str]:
    """Look at a raw data set as `prepare` would take it, with a sample of its frames.

    Args:
      source: the raw data set.
      face_mm, size, pair_lists: as `prepare.prepare` takes them.

    Returns:
      a short report; why preparing would not work, '' if it would. Only a sample is read, so the latter is a guess if
      many images are damaged.
    """
    index, known = source.index(), source.known_rejects()
    lines = [f"{source.name}: {_counts(index)}"]
    if source.expected:
        lines.append(f"  expected: {source.expected}")
    for split in SPLITS:
        lines.append(f"  {split}: {_counts([info for info in index if info.split == split])}")
    if empty := [split for split in SPLITS if not any(info.split == split for info in index)]:
        lines.append(f"  note: no frame in {' and '.join(empty)}; training needs all three splits")
    lines += [f"  note: {note}" for note in source.notes()]
    lines.append(f"  would be rejected, whatever the images hold: {_rejects(known)}")
    unusable = {reject.info.frame for reject in known}
    usable = [row for row, info in enumerate(index) if info.frame not in unusable]
    sample = _sample(index, usable)
    found = [_try(source, row, face_mm, size) for row in sample]
    bad = [item for item in found if isinstance(item, Reject)]
    lines.append(
        f"  sample: {len(sample)} of the other {len(usable)} were read and cropped (first, middle, last of a sequence; "
        f"at most {SAMPLE}); rejected: {_rejects(bad)}"
    )
    good = [item for item in found if not isinstance(item, Reject)]
    if good:
        distance, width = (np.median([row[name] for row in good]) for name in ("distance_mm", "box_w"))
        lines.append(f"    head distance {distance:.0f} mm, crop {width:.0f} px wide in the depth image (medians)")
    fault = _fault(index, usable, sample, bad, pair_lists)
    lines.append(f"  preparing would {'not ' if fault else ''}work")
    return "\n".join(lines), fault


def _counts(infos: list[FrameInfo]) -> str:
    if not infos:
        return "no frame"
    counts = [len(infos), len({info.subject for info in infos}), len({_sequence(info) for info in infos})]
    words = [("frame", "frames"), ("person", "people"), ("sequence", "sequences")]
    texts = [f"{n} {word[n > 1]}" for n, word in zip(counts, words, strict=True)]
    return f"{texts[0]} of {texts[1]} in {texts[2]}"


def _sequence(info: FrameInfo) -> tuple:
    """Return a recording's key. If it has no number, it is in the frames' names, before the last '_'."""
    return info.subject, info.sequence or info.frame.rpartition("_")[0]


def _sample(index: list[FrameInfo], usable: list[int]) -> list[int]:
    """Take the first, middle and last of each sequence, thinned out evenly to SAMPLE."""
    sequences = defaultdict(list)
    for row in usable:
        sequences[_sequence(index[row])].append(row)
    rows = sorted({rows[i] for rows in sequences.values() for i in (0, len(rows) // 2, -1)})
    if len(rows) > SAMPLE:
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, SAMPLE).round().astype(int)]
    return rows


def _try(source: Source, row: int, face_mm: float, size: int) -> dict | Reject:
    item = next(iter(source.load(row, row + 1)))
    result = item if isinstance(item, Reject) else prepare_frame(item, face_mm, size)
    return result if isinstance(result, Reject) else result[2]


def _rejects(rejects: list[Reject]) -> str:
    if not rejects:
        return "none"
    text = rejects_text([reject.entry() for reject in rejects])
    return f"{len(rejects)} {'frames' if len(rejects) > 1 else 'frame'}: {text}"


def _fault(index, usable, sample, bad, pair_lists) -> str:
    """Say why preparing would not work, or ''."""
    if not index:
        return "there is no frame"
    known = len(index) - len(usable)
    likely = known + len(usable) * len(bad) / max(len(sample), 1)
    if 2 * likely > len(index):
        return f"more than half of the frames ({'some ' if bad else ''}{likely:.0f} of {len(index)}) cannot be used"
    rejected = {reject.info.frame for reject in bad}
    left = Counter(index[row].split for row in usable if index[row].frame not in rejected)
    for split in SPLITS:
        if not left[split] and any(info.split == split for info in index):
            return f"every frame of the split '{split}' would be rejected"
    try:
        for split, file in pair_lists.items():
            if file:
                pairs.read_external(file, split, index)
    except FaceDepthError as error:
        return str(error)
    return ""
