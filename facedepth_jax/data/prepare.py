"""Raw frames -> arrays on disk, cropped by Eq. 6 and resized.

The frames are cut into chunks of CHUNK_FRAMES. A finished chunk is a file in `OUT.parts`, so after a kill the same
command goes on where it was; shards and workers share the chunks among them and cannot change the result. When the last
chunk is there they are merged into OUT (see arrays.py) and removed.
"""

import collections
import contextlib
import dataclasses
import fcntl
import io
import json
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from facedepth_jax.data import arrays, geometry, pairs
from facedepth_jax.data.frames import SPLITS, Frame, Reject, Source
from facedepth_jax.errors import FaceDepthError

CHUNK_FRAMES = 64
HEAD_WINDOW_PX = 9  # "the depth values around the head center" of section 3.2: about 2 cm at Kinect range
MIN_DEPTH_SHARE = 0.05  # of the crop's pixels; with less there is no face to learn from
PAIRS = 4000  # wanted in each verification list
LISTED_REJECTS = 5  # of each reason in the report; meta.json has all


@dataclasses.dataclass(frozen=True)
class _Job:
    source: Source
    parts: Path
    face_mm: float
    size: int


def prepare(
    source: Source,
    out: str | os.PathLike,
    *,
    face_mm: float = 320.0,
    size: int = 96,
    seed: int = 0,
    pair_lists: dict[str, str] | None = None,
    workers: int = 0,
    shard: tuple[int, int] = (0, 1),
    stopped: Callable[[], bool] = lambda: False,
) -> arrays.Arrays | None:
    """Makes the arrays of a data set, or what is missing of them, and opens them.

    Args:
      source: the raw data set.
      out: directory to be made. Where it is complete with the same settings nothing is done.
      face_mm: R of Eq. 6.
      size: side of the prepared images in pixels.
      seed: of the verification pairs.
      workers: processes; 0 works in this one.
      shard: (i, n) makes every n-th chunk from the i-th on; whoever makes the last missing chunk merges. (0, 1): all.
      stopped: asked after each chunk; once true, the work ends with a FaceDepthError that says how to go on.

    Returns:
      the arrays; None where chunks of other shards are still missing.

    Raises:
      FaceDepthError: settings that make no sense or differ from those of what is there, more than half of the frames
        rejected, a split that lost all its frames, a full disk, no permission to write.
    """
    out, (shard_index, shards) = Path(out), shard
    if not 0 <= shard_index < shards:
        raise FaceDepthError(
            f"there is no shard {shard_index}/{shards}; of n shards the first is 0/n, the last (n-1)/n"
        )
    if workers < 0 or not 8 <= size <= 1024 or not 1 <= face_mm <= 10_000:
        raise FaceDepthError(
            f"want workers >= 0, size 8 to 1024 and face_mm 1 to 10000, not {workers}, {size} and {face_mm}"
        )
    settings = {
        "dataset": {"name": source.name, "settings": source.settings},
        "crop": {"face_mm": float(face_mm), "head_window_px": HEAD_WINDOW_PX, "min_depth_share": MIN_DEPTH_SHARE},
        "size_px": size,
        "pairs": {"wanted": PAIRS, "seed": seed},
    }
    settings = json.loads(json.dumps(settings))  # as it will be read
    parts = out.with_name(f"{out.name}.parts")
    if (done := _complete(out, settings)) is not None:
        shutil.rmtree(parts, ignore_errors=True)
        print(f"{out} is complete already")
        return done
    index = source.index()
    if not index:
        raise FaceDepthError(f"the data set '{source.name}' has no frame")
    _open_parts(parts, settings)
    chunks = range(math.ceil(len(index) / CHUNK_FRAMES))
    todo = [number for number in chunks[shard_index::shards] if not _chunk_file(parts, number).exists()]
    rejects = 0
    made = _make_chunks(_Job(source, parts, face_mm, size), todo, workers)
    frames_todo = sum(len(index[number * CHUNK_FRAMES : (number + 1) * CHUNK_FRAMES]) for number in todo)
    with _progress(frames_todo) as progress, contextlib.closing(made):
        for frames, rejected in made:
            progress(frames)
            rejects += rejected
            if 2 * rejects > len(index) or stopped():
                break
    missing = sum(not _chunk_file(parts, number).exists() for number in chunks)
    if stopped():
        raise FaceDepthError(f"stopped with {missing} of {len(chunks)} chunks to do; the same command continues")
    if missing and 2 * rejects <= len(index) and parts.exists():
        print(f"shard {shard_index}/{shards} is done; {missing} of {len(chunks)} chunks are left to other shards")
        return None
    return _merge(parts, out, index, settings, stopped)


def prepare_frame(frame: Frame, face_mm: float, size: int) -> tuple[np.ndarray, np.ndarray, dict] | Reject:
    """Crops and resizes one frame.

    Returns:
      gray uint8 (size, size), depth uint16 (size, size) in mm with 0 = none, and the columns of arrays.COLUMNS; or why
      there is no crop.
    """
    info = frame.info
    gray_head_xy, gray_focal_px = frame.gray_head_xy or frame.head_xy, frame.gray_focal_px or frame.focal_px
    for name, image, xy in (("depth", frame.depth_mm, frame.head_xy), ("gray", frame.gray, gray_head_xy)):
        place = f"({xy[0]:g}, {xy[1]:g}) in {image.shape[1]}x{image.shape[0]}"
        if not geometry.inside(image.shape, xy):
            return Reject(info, f"head centre outside the {name} image", place)
    distance_mm = geometry.head_distance_mm(frame.depth_mm, frame.head_xy, HEAD_WINDOW_PX)
    if distance_mm is None:
        return Reject(info, "no depth at the head centre", f"({frame.head_xy[0]:g}, {frame.head_xy[1]:g})")
    box = _box(frame.depth_mm, frame.head_xy, distance_mm, frame.focal_px, face_mm, frame.cropped)
    seen = frame.depth_mm[max(box.y, 0) : box.y + box.h, max(box.x, 0) : box.x + box.w]
    share = np.count_nonzero(seen) / (box.w * box.h)
    if share < MIN_DEPTH_SHARE:  # before the crop is made: a wrong unit of depth asks for a crop of any size
        return Reject(info, "almost no depth in the crop", f"{share:.1%} of {box.w}x{box.h} px")
    gray_box = _box(frame.gray, gray_head_xy, distance_mm, gray_focal_px, face_mm, frame.cropped)
    row = dataclasses.asdict(info) | {"yaw": frame.yaw, "pitch": frame.pitch, "roll": frame.roll}
    row |= dict(zip(("head_x_mm", "head_y_mm", "head_z_mm"), frame.head_mm, strict=True))
    row |= {"distance_mm": distance_mm, "fx": frame.focal_px[0], "fy": frame.focal_px[1]}
    row |= {f"box_{name}": value for name, value in dataclasses.asdict(box).items()}
    row |= {f"gray_box_{name}": value for name, value in dataclasses.asdict(gray_box).items()}
    gray = geometry.resize_gray(geometry.crop(frame.gray, gray_box), size)
    return gray, geometry.resize_depth(geometry.crop(frame.depth_mm, box), size), row


def _box(image, head_xy, distance_mm, focal_px, face_mm, cropped) -> geometry.Box:
    if cropped:
        return geometry.Box(0, 0, image.shape[1], image.shape[0])
    return geometry.crop_box(head_xy, distance_mm, focal_px, face_mm)


def _make_chunks(job: _Job, numbers: list[int], workers: int) -> Iterator[tuple[int, int]]:
    """Makes the chunks, yields (frames, rejects) of each; closing it leaves no process and no half chunk."""
    if not workers or not numbers:
        yield from (_make_chunk(job, number) for number in numbers)
        return
    context = multiprocessing.get_context("spawn")  # a forked JAX hangs
    pool = ProcessPoolExecutor(min(workers, len(numbers)), context, initializer=_start_worker, initargs=(job,))
    try:
        for future in as_completed([pool.submit(_make_chunk_in_worker, number) for number in numbers]):
            yield future.result()
    except BrokenProcessPool:
        raise FaceDepthError(
            "a worker process died, perhaps for want of memory; the same command continues, --workers may differ"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(job: _Job) -> None:
    global _worker_job
    _worker_job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or the first takes the GPU's memory from the rest
    cv2.setNumThreads(1)

    def follow_parent():  # else a parent killed by SIGKILL leaves its workers behind
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow_parent, daemon=True).start()


def _make_chunk_in_worker(number: int) -> tuple[int, int]:
    return _make_chunk(_worker_job, number)


def _make_chunk(job: _Job, number: int) -> tuple[int, int]:
    """Loads, crops and writes one chunk; returns the counts of its frames and of the rejects among them."""
    grays, depths, rows, rejects = [], [], [], []
    for item in job.source.load(number * CHUNK_FRAMES, (number + 1) * CHUNK_FRAMES):
        result = item if isinstance(item, Reject) else prepare_frame(item, job.face_mm, job.size)
        if isinstance(result, Reject):
            rejects.append({"frame": result.info.frame, "reason": result.reason, "detail": result.detail})
        else:
            gray, depth_mm, row = result
            grays.append(gray), depths.append(depth_mm), rows.append(row)
    shape = (len(rows), job.size, job.size)
    content = io.BytesIO()
    np.savez(
        content,
        gray=np.array(grays, np.uint8).reshape(shape),
        depth_mm=np.array(depths, np.uint16).reshape(shape),
        listing=np.frombuffer(json.dumps({"frames": rows, "rejects": rejects}).encode(), np.uint8),
    )
    file = _chunk_file(job.parts, number)
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    with _writing(file):
        try:
            partial.write_bytes(content.getbuffer())
            partial.replace(file)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
    return len(rows) + len(rejects), len(rejects)


def _chunk_file(parts: Path, number: int) -> Path:
    return parts / f"{number:06d}.npz"


def _read_chunk(file: Path) -> tuple[np.ndarray, np.ndarray, dict]:
    """gray, depth, {"frames", "rejects"} of a chunk; the zip's check sums are verified."""
    try:
        with np.load(file, allow_pickle=False) as chunk:
            return chunk["gray"], chunk["depth_mm"], json.loads(chunk["listing"].tobytes())
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        file.unlink(missing_ok=True)
        raise FaceDepthError(f"{file} was damaged ({error}) and is removed; the same command makes it again") from None


def _merge(parts: Path, out: Path, index: list, settings: dict, stopped: Callable[[], bool]) -> arrays.Arrays:
    """Chunks -> arrays, by one process at a time."""
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context((parts / "lock").open("w"))
        except FileNotFoundError:  # another shard has just merged and cleaned up
            return arrays.open(out)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (done := _complete(out, settings)) is not None:
            return done
        files = sorted(parts.glob("*.npz"))
        listings = [_read_chunk(file)[2] for file in files]
        rejects = [reject for listing in listings for reject in listing["rejects"]]
        rows = [row for listing in listings for row in listing["frames"]]
        reasons = dict(sorted(collections.Counter(reject["reason"] for reject in rejects).items()))
        if 2 * len(rejects) > len(index):
            shutil.rmtree(parts)
            raise FaceDepthError(
                f"more than half of the frames ({len(rejects)} of {len(index)}) cannot be used: "
                f"{_rejects_text(reasons, rejects)}"
            )
        if sorted(x["frame"] for x in rows + rejects) != sorted(info.frame for info in index):
            raise FaceDepthError(f"{parts} holds other frames than the data set; remove it and prepare again")
        for split in SPLITS:
            if any(info.split == split for info in index) and not any(row["split"] == split for row in rows):
                raise FaceDepthError(
                    f"every frame of the split '{split}' was rejected: {_rejects_text(reasons, rejects)}; "
                    f"mend them, remove {parts} and prepare again"
                )
        pair_lists = {}
        for split in arrays.PAIR_SPLITS:
            members = [row for row in rows if row["split"] == split]
            names, subjects = ([row[key] for row in members] for key in ("frame", "subject"))
            pair_lists[split] = pairs.draw(names, subjects, settings["pairs"]["wanted"], settings["pairs"]["seed"])

        def images():
            for file in files:
                if stopped():
                    raise FaceDepthError("stopped while merging the chunks; the same command continues")
                yield _read_chunk(file)[:2]

        with _writing(out):
            arrays.write(
                out,
                frames={name: [row[name] for row in rows] for name in arrays.COLUMNS},
                images=images(),
                size_px=settings["size_px"],
                pair_lists=pair_lists,
                meta=settings
                | {
                    "pairs_found": {split: len(found) for split, found in pair_lists.items()},
                    "rejects": {"count": len(rejects), "reasons": reasons, "frames": rejects},
                },
            )
        shutil.rmtree(parts, ignore_errors=True)
    made = arrays.open(out)
    print(_report(made))
    return made


def _complete(out: Path, settings: dict) -> arrays.Arrays | None:
    """What is in `out`, None where nothing is; FaceDepthError where it is something else."""
    with _writing(out):
        if not out.exists() or out.is_dir() and not any(out.iterdir()):
            return None
        known = (out / "meta.json").exists()
    if not known:
        raise FaceDepthError(f"{out} exists and is no prepared data set; give another --out")
    there = arrays.open(out)
    if difference := _difference(there.meta, settings):
        raise FaceDepthError(f"{out} was made with other settings ({difference}); remove it or give another --out")
    return there


def _open_parts(parts: Path, settings: dict) -> None:
    """Makes the directory of the chunks, or checks that the one there is of the same settings."""
    file = parts / "settings.json"
    try:
        with _writing(parts):
            parts.mkdir(parents=True, exist_ok=True)
            if not file.exists():
                partial = file.with_name(f"{file.name}.{os.getpid()}")
                partial.write_text(json.dumps(settings), encoding="utf-8")
                partial.replace(file)
        difference = _difference(json.loads(file.read_text(encoding="utf-8")), settings)
    except ValueError:
        difference = f"{file.name} is damaged"
    if difference:
        raise FaceDepthError(
            f"{parts} is an unfinished run with other settings ({difference}); remove it or give another --out"
        )


def _difference(there: dict, here: dict) -> str:
    """The first setting that differs, in words; '' where all are equal. Of `there` only the keys of `here` count."""
    there, here = _flat({key: there.get(key) for key in here}), _flat(here)
    for key in sorted(there.keys() | here.keys()):
        if there.get(key) != here.get(key):
            return f"{key} is {there.get(key)!r} there, {here.get(key)!r} here"
    return ""


def _flat(settings: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


@contextlib.contextmanager
def _writing(path: Path):
    try:
        yield
    except OSError as error:
        raise FaceDepthError(
            f"{path} cannot be written ({error.strerror}); what is finished is kept and the same command continues"
        ) from None


@contextlib.contextmanager
def _progress(total: int):
    """A bar on a terminal, else a line now and then."""
    done, last = 0, time.monotonic()
    with tqdm(total=total, unit=" frames", disable=not sys.stderr.isatty()) as bar:

        def advance(count: int) -> None:
            nonlocal done, last
            done += count
            bar.update(count)
            if bar.disable and time.monotonic() - last > 10:
                last = time.monotonic()
                print(f"{done} of {total} frames", file=sys.stderr, flush=True)

        yield advance


def _report(made: arrays.Arrays) -> str:
    lines = [
        f"{made.path}: {len(made)} frames of {len(set(made.frames['subject']))} subjects, {made.meta['size_px']} px"
    ]
    for split in SPLITS:
        count, found = made.meta["counts"][split], made.meta["pairs_found"].get(split)
        text = f"  {split}: {count['frames']} frames of {count['subjects']} subjects"
        lines.append(text + (f", {found} verification pairs" if found is not None else ""))
    focal = " and ".join(f"{x:g}" for x in np.unique(made.frames["fx"])[:3])
    lines.append(f"  crop: {made.meta['crop']['face_mm']:g} mm wide at a focal length of {focal} px")
    low, middle, high = np.percentile(made.frames["distance_mm"], (5, 50, 95))
    lines.append(f"  head distance: median {middle:.0f} mm, nine of ten frames within {low:.0f} to {high:.0f} mm")
    rejects = made.meta["rejects"]
    if rejects["count"]:
        text = _rejects_text(rejects["reasons"], rejects["frames"])
        lines.append(f"  {rejects['count']} frames rejected (all in meta.json): {text}")
    return "\n".join(lines)


def _rejects_text(reasons: dict[str, int], rejects: list[dict]) -> str:
    """'3 x gray image is missing (a: images/a.png, b: ...), 1 x ...'"""
    texts = []
    for reason, count in reasons.items():
        some = [x for x in rejects if x["reason"] == reason][:LISTED_REJECTS]
        names = ", ".join(f"{x['frame']}: {x['detail']}" if x["detail"] else x["frame"] for x in some)
        texts.append(f"{count} x {reason} ({names}{', ...' if count > len(some) else ''})")
    return "; ".join(texts)
