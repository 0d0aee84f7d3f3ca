"""A look at a raw data set before any work: what it is, what is missing, what would be rejected. Writes nothing."""

from collections import Counter, defaultdict

import numpy as np

from facedepth_jax.data import pairs, splits
from facedepth_jax.data.frames import SPLITS, FrameInfo, Reject, Source
from facedepth_jax.data.prepare import prepare_frame
from facedepth_jax.data.summary import rejects_text
from facedepth_jax.errors import FaceDepthError

SAMPLE = 100  # frames at most that are read

_EXPECTED = {
    "biwi": f"20 people in {splits.BIWI_SEQUENCES} sequences, some 15,700 frames; test sequences "
    + ", ".join(f"{number:02d} with {count} frames" for number, count in splits.BIWI_TEST_FRAMES.items()),
    "pandora": f"{splits.PANDORA_SUBJECTS} people in {splits.PANDORA_SEQUENCES} sequences, some 250,000 frames; test "
    f"people {', '.join(f'{number:02d}' for number in splits.PANDORA_SPLITS['test'])}",
}


def check(source: Source, *, face_mm: float, size: int, pair_lists: dict[str, str]) -> tuple[str, str]:
    """Looks at a raw data set as `prepare` would take it, with a sample of its frames.

    Args:
      source: the raw data set.
      face_mm, size, pair_lists: as `prepare.prepare` takes them.

    Returns:
      a short report; why preparing would not work, '' where it would. As only a sample is read, the latter is a guess
      where many images are damaged.
    """
    index, known = source.index(), source.known_rejects()
    lines = [f"{source.name}: {_counts(index)}"]
    if source.name in _EXPECTED:
        lines.append(f"  expected: {_EXPECTED[source.name]}")
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
    """One recording. Where it has no number, the frames' names have it before the last '_'."""
    return info.subject, info.sequence or info.frame.rpartition("_")[0]


def _sample(index: list[FrameInfo], usable: list[int]) -> list[int]:
    """First, middle and last of each sequence, thinned out evenly to SAMPLE."""
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
    listed = [{"frame": r.info.frame, "reason": r.reason, "detail": r.detail} for r in rejects]
    return f"{len(rejects)} {'frames' if len(rejects) > 1 else 'frame'}: {rejects_text(listed)}"


def _fault(index, usable, sample, bad, pair_lists) -> str:
    """Why preparing would not work, or ''."""
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
