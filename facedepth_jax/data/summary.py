"""Describe a data set in words: a raw one before any work (`check`), and finished arrays (`report`)."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from facedepth_jax.data import arrays, pairs
from facedepth_jax.data.chunks import prepare_frame
from facedepth_jax.data.frames import SPLITS, FrameInfo, Reject, Source
from facedepth_jax.data.pairs import ANGLE_SUBSETS, SEQUENCE_SUBSETS
from facedepth_jax.errors import FaceDepthError

SAMPLE = 100  # frames at most that a check reads
LISTED = 5  # names at most behind a count; meta.json has all


def check(source: Source, *, face_mm: float, size: int, pair_lists: dict[str, str]) -> tuple[str, str]:
    """Look at a raw data set as `prepare` would take it, with a sample of its frames. Writes nothing.

    Args:
      source: the raw data set.
      face_mm, size, pair_lists: as `prepare.prepare` takes them.

    Returns:
      a short report; why preparing would not work, '' if it would. Only a sample is read, so the latter is a guess if
      many images are damaged.
    """
    index, known = source.index(), [reject.entry() for reject in source.known_rejects()]
    lines = [f"{source.name}: {_counts(index)}", *([f"  expected: {source.expected}"] if source.expected else [])]
    lines += _split_lines(index)
    if empty := set(SPLITS) - {info.split for info in index}:
        lines.append(f"  note: no frame in {' and '.join(sorted(empty))}; training needs all three splits")
    lines += [f"  note: {note}" for note in source.notes()]
    lines.append(f"  would be rejected, whatever the images hold: {rejects_text(known)}")
    unusable = {reject["frame"] for reject in known}
    usable = [row for row, info in enumerate(index) if info.frame not in unusable]
    sample = np.linspace(0, len(usable) - 1, min(SAMPLE, len(usable))).round().astype(int)  # evenly spread
    bad, good = [], []
    for row in sample:
        item = next(iter(source.load(usable[row], usable[row] + 1)))
        result = item if isinstance(item, Reject) else prepare_frame(item, face_mm, size)
        bad.append(result.entry()) if isinstance(result, Reject) else good.append(result[2])
    lines.append(
        f"  sample: {len(sample)} of the other {len(usable)}, evenly spread, were read and cropped; "
        f"rejected: {rejects_text(bad)}"
    )
    if good:
        lines.append(_distance_line([row["distance_mm"] for row in good]))
        lines.append(f"  crop: {np.median([row['box_w'] for row in good]):.0f} px wide in the depth image (median)")
    likely = len(known) + len(usable) * len(bad) / max(len(sample), 1)
    fault = find_fault(index, known + bad, likely)
    try:
        for split, file in pair_lists.items():
            if file:
                pairs.read_external(file, split, index)
    except FaceDepthError as error:
        fault = fault or str(error)
    lines.append(f"  preparing would {'not ' if fault else ''}work")
    return "\n".join(lines), fault


def find_fault(index: list[FrameInfo], rejects: list[dict], likely: float | None = None) -> str:
    """Say why no arrays can be made of an index, '' if they can.

    Args:
      rejects: those that are known, see `Reject.entry`.
      likely: how many there will be; by default those.
    """
    if not index:
        return "the data set has no frame"
    some, likely = ("", len(rejects)) if likely is None else ("some ", likely)
    if 2 * likely > len(index):
        return f"more than half of the frames ({some}{likely:.0f} of {len(index)}) cannot be used"
    rejected = {reject["frame"] for reject in rejects}
    lost = {info.split for info in index} - {info.split for info in index if info.frame not in rejected}
    return f"every frame of the split '{min(lost)}' is rejected" if lost else ""


def report(made: arrays.Arrays) -> str:
    """Describe prepared arrays, in some ten lines."""
    columns = (made.frames[name].tolist() for name in ("frame", "subject", "sequence", "split"))
    index = [FrameInfo(*row) for row in zip(*columns, strict=True)]
    lines = [f"{made.path}: {_counts(index)}, {made.meta['size_px']} px", *_split_lines(index)]
    for split, found in made.meta["pairs_found"].items():
        lines += _pairs_lines(split, found)
    focal, gray = (_focal_text(made.frames[f"{name}fx"], made.frames[f"{name}fy"]) for name in ("", "gray_"))
    text = f"{focal} px" if gray == focal else f"{focal} px (depth) and {gray} px (gray)"
    text = f"{made.meta['crop']['face_mm']:g} mm wide at a focal length of {text}" if focal else "as the frames came"
    lines.append(f"  crop: {text}")
    lines.append(_distance_line(made.frames["distance_mm"]))
    lines.append(f"  rejected (all in meta.json): {rejects_text(made.meta['rejects']['frames'])}")
    return "\n".join(lines)


def _split_lines(index: list[FrameInfo]) -> list[str]:
    return [f"  {split}: {_counts([info for info in index if info.split == split])}" for split in SPLITS]


def _counts(infos: list[FrameInfo]) -> str:
    counts = [len(infos), len({info.subject for info in infos}), len({_sequence(info) for info in infos})]
    names = ("frame", "subject", "sequence")
    return "{} of {} in {}".format(*(f"{n} {name}{'s' * (n != 1)}" for n, name in zip(counts, names, strict=True)))


def _sequence(info: FrameInfo) -> tuple:
    """Return a recording's key. If it has no number, it is in the frames' names, before the last '_'."""
    return info.subject, info.sequence or info.frame.rpartition("_")[0]


def _distance_line(distance_mm: Sequence[float]) -> str:
    low, middle, high = np.percentile(distance_mm, (5, 50, 95))
    return f"  head distance: median {middle:.0f} mm, nine of ten frames within {low:.0f} to {high:.0f} mm"


def _pairs_lines(split: str, found: dict) -> list[str]:
    """Describe the pairs of a split; by Table 2's cells if the data set has them."""
    cells = found["cells"]
    whole = cells[" ".join((ANGLE_SUBSETS[-1], SEQUENCE_SUBSETS[-1]))]
    lines = [f"  {split} pairs: {found['pairs']}, {whole['same']} same and {whole['different']} different"]
    if others := found["pairs"] - sum(whole.values()):
        lines[0] += f"; {others} of a sequence above 5, in no cell of Table 2"
    if found.get("left_out"):
        names = _listed(found["rejected_frames"])
        lines.append(f"    {found['left_out']} pairs of the list left out for rejected frames: {names}")
    for angles in ANGLE_SUBSETS:
        row = [(name, cells[f"{angles} {name}"]) for name in SEQUENCE_SUBSETS]
        texts = [f"{name} {c['same']}+{c['different']}" for name, c in row if any(c.values()) and c is not whole]
        if texts:
            lines.append(f"    {angles}: {', '.join(texts)} (same+different)")
    return lines


def _focal_text(fx: np.ndarray, fy: np.ndarray) -> str:
    """Write focal lengths as '365.456' or '480 to 520'; '' for frames that came cropped."""
    known = np.concatenate([fx, fy])
    known = known[np.isfinite(known)]
    return " to ".join(f"{value:g}" for value in sorted({known.min(), known.max()})) if len(known) else ""


def count_reasons(rejects: list[dict]) -> dict[str, int]:
    """Return {reason: number of rejects}, sorted."""
    return dict(sorted(Counter(reject["reason"] for reject in rejects).items()))


def rejects_text(rejects: list[dict]) -> str:
    """Write '3 x gray image is missing (a: images/a.png, b: ...); 1 x ...' of entries as `Reject.entry` gives them."""
    texts = []
    for reason, count in count_reasons(rejects).items():
        some = [x for x in rejects if x["reason"] == reason]
        names = _listed([f"{x['frame']}: {x['detail']}" if x["detail"] else x["frame"] for x in some])
        texts.append(f"{count} x {reason} ({names})")
    return "; ".join(texts) or "none"


def _listed(names: list[str]) -> str:
    return ", ".join([*names[:LISTED], *["..."] * (len(names) > LISTED)])
