"""Describe a data set in words: a raw one before any work (`check`), and finished arrays (`report`)."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from facedepth_jax.data import arrays, pairs, units
from facedepth_jax.data.chunks import prepare_frame
from facedepth_jax.data.frames import SPLITS, Frame, FrameInfo, Reject, Source, counted
from facedepth_jax.data.pairs import ANGLE_SUBSETS, SEQUENCE_SUBSETS
from facedepth_jax.errors import FaceDepthError

SAMPLE = 100  # frames at most that a check reads
FIRST_SAMPLE = 25  # that a preparation reads before it begins
MADE_SAMPLE = 5  # that a check makes where there is no raw data: they are alike, and take their time
LISTED = 5  # names at most behind a count; meta.json has all


def check(
    source: Source, *, face_mm: float, size: int, pair_lists: dict[str, str], say: Callable[[str], object] = print
) -> str:
    """Look at a raw data set as `prepare` would take it, with a sample of its frames. Writes nothing.

    Args:
      source: the raw data set.
      face_mm, size, pair_lists: as `prepare.prepare` takes them.
      say: is given a short report, line by line.

    Returns:
      why preparing would not work, '' if it would; a guess if many images are damaged, as only a sample is read.
    """
    if fault := find_bad_crop(face_mm, size):
        return fault
    index, known = source.index(), [reject.entry() for reject in source.known_rejects()]
    say(f"{source.name}: {_counts(index)}")
    for line in [f"expected: {source.expected}"] * bool(source.expected) + _split_lines(index):
        say(f"  {line}")
    for note in notes(source, index):
        say(f"  note: {note}")
    say(f"  would be rejected, whatever the images hold: {rejects_text(known)}")
    unusable = {reject["frame"] for reject in known}
    usable = [row for row, info in enumerate(index) if info.frame not in unusable]
    bad, boxes, sights, read = [], [], [], 0
    for item in _sample(source, usable, SAMPLE if hasattr(source, "raw") else MADE_SAMPLE):
        read += 1
        sights += _sights(item)
        result = item if isinstance(item, Reject) else prepare_frame(item, face_mm, size)
        if isinstance(result, Reject):
            bad.append(result.entry())
        else:
            boxes.append(result[2])
    say(
        f"  sample: {read} of the other {len(usable)}, evenly spread, were read and cropped; "
        f"rejected: {rejects_text(bad)}"
    )
    if boxes:
        say(f"  crop: {_crop_text(boxes)}")
    lines, fault = _judge(source, sights)
    for line in lines:
        say(f"  {line}")
    likely = len(known) + len(usable) * len(bad) / max(read, 1)
    fault = fault or find_fault(index, known + bad, likely)
    try:
        for split, file in pair_lists.items():
            if file:
                pairs.read_external(file, split, index)
    except FaceDepthError as error:
        fault = fault or str(error)
    say(f"  preparing would {'not ' if fault else ''}work")
    return fault


def first_look(source: Source, index: list[FrameInfo]) -> tuple[list[str], str]:
    """Judge a small sample of a raw data set as `units.judge` does; nothing is said of one without raw data."""
    if not hasattr(source, "raw"):
        return [], ""
    return _judge(source, [x for item in _sample(source, range(len(index)), FIRST_SAMPLE) for x in _sights(item)])


def notes(source: Source, index: list[FrameInfo]) -> list[str]:
    """List what is missing or unexpected in a data set as a whole: its own notes, and splits without a frame."""
    empty = sorted(set(SPLITS) - {info.split for info in index})
    return [f"no frame in {' and '.join(empty)}; training needs all three splits"] * bool(empty) + source.notes()


def _sample(source: Source, rows: Sequence[int], count: int) -> Iterator[Frame | Reject]:
    """Read at most `count` of the rows, evenly spread."""
    for i in np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int):
        yield from source.load(rows[i], rows[i] + 1)


def _sights(item: Frame | Reject) -> list[units.Sight]:
    return [sight] if isinstance(item, Frame) and (sight := units.measure(item)) else []


def _judge(source: Source, sights: list[units.Sight]) -> tuple[list[str], str]:
    return units.judge(sights, getattr(source, "depth_unit_mm", None)) if sights else ([], "")


def _crop_text(boxes: list[dict]) -> str:
    """Describe crops by the columns of arrays.COLUMNS; the two images have one pixel grid where they are registered."""
    depth, gray = (np.median([row[name] for row in boxes]) for name in ("box_w", "gray_box_w"))
    two = any(row["box_w"] != row["gray_box_w"] or row["box_x"] != row["gray_box_x"] for row in boxes)
    return (
        f"{depth:.0f} px wide in the depth image, {gray:.0f} px in the gray one (median)"
        if two
        else (f"{depth:.0f} px wide in both images, which are registered (median)")
    )


def find_bad_crop(face_mm: float, size: int) -> str:
    """Say why crops cannot be so wide (millimetres) or large (pixels), '' if they can."""
    if not 1 <= face_mm <= 10_000:
        return f"face_mm is {face_mm:g}: give 1 to 10000 millimetres"
    if size % 16 or not 16 <= size <= 1024:
        return f"size is {size}: the nets halve it four times, give a multiple of 16 up to 1024"
    return ""


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
    lines = [
        f"{made.path}: {_counts(index)}, {made.meta['size_px']} px",
        *(f"  {line}" for line in _split_lines(index)),
    ]
    for split, found in made.meta["pairs_found"].items():
        if not found["pairs"] and not found.get("left_out"):
            subjects = [info.subject for info in index if info.split == split]
            lines.append(f"  warning: {pairs.too_few(split, subjects)}")
        lines += _pairs_lines(split, found)
    focal, gray = (_focal_text(made.frames[f"{name}fx"], made.frames[f"{name}fy"]) for name in ("", "gray_"))
    text = f"{focal} px" if gray == focal else f"{focal} px (depth) and {gray} px (gray)"
    text = f"{made.meta['crop']['face_mm']:g} mm wide at a focal length of {text}" if focal else "as the frames came"
    lines.append(f"  crop: {text}")
    lines.append(f"  {units.distance_text(made.frames['distance_mm'])}")
    lines.append(f"  rejected (all in meta.json): {rejects_text(made.meta['rejects']['frames'])}")
    return "\n".join(lines)


def _split_lines(index: list[FrameInfo]) -> list[str]:
    return [f"{split}: {_counts([info for info in index if info.split == split])}" for split in SPLITS]


def _counts(infos: list[FrameInfo]) -> str:
    counts = [len(infos), len({info.subject for info in infos}), len({_sequence(info) for info in infos})]
    return "{} of {} in {}".format(*map(counted, counts, ("frame", "subject", "sequence")))


def _sequence(info: FrameInfo) -> tuple:
    """Return a recording's key. If it has no number, it is in the frames' names, before the last '_'."""
    return info.subject, info.sequence or info.frame.rpartition("_")[0]


def _pairs_lines(split: str, found: dict) -> list[str]:
    """Describe the pairs of a split; by Table 2's cells if the data set has them."""
    cells = found["cells"]
    whole = cells[" ".join((ANGLE_SUBSETS[-1], SEQUENCE_SUBSETS[-1]))]
    lines = [f"  {split} pairs: {found['pairs']}, {whole['same']} same and {whole['different']} different"]
    if others := found["pairs"] - sum(whole.values()):
        lines[0] += f"; {others} of a sequence above 5, in no cell of Table 2"
    if found.get("left_out"):
        names = _listed(found["rejected_frames"])
        lines.append(f"    {counted(found['left_out'], 'pair')} of the list left out for rejected frames: {names}")
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
