"""Raw frames -> arrays on disk, cropped by Eq. 6 and resized.

The frames are cut into chunks of CHUNK_FRAMES. A finished chunk is a file in `OUT.parts`, so after a kill the same
command goes on where it was; shards and workers share the chunks among them and cannot change the result. When the last
chunk is there they are merged into OUT (see arrays.py) and removed. A chunk names its settings and its place and has a
SHA-256 over all of it: one that is damaged, or of another place, run or data set, is found by the merge and made again.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
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
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from facedepth_jax import files
from facedepth_jax.data import arrays, crop, pairs, summary
from facedepth_jax.data.frames import SPLITS, Frame, FrameInfo, Reject, Source
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.stopping import Stopped

CHUNK_FRAMES = 64
HEAD_WINDOW_PX = 9  # "the depth values around the head center" of section 3.2: about 2 cm at Kinect range
MIN_DEPTH_SHARE = 0.05  # of the crop's pixels; with less there is no face to learn from
PAIRS = 4000  # wanted in each verification list
CELL_PAIRS = 600  # of them from each elementary cell of Table 2, so that even the rarest of them means something


@dataclasses.dataclass(frozen=True)
class _Job:
    source: Source
    parts: Path
    face_mm: float
    size: int
    settings_sha256: str  # ties a chunk to its run


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
      pair_lists: {"validation": FILE, "test": FILE}, verification pairs to take instead of drawing them, see pairs.py;
        "" or no entry: they are drawn.
      workers: processes; 0 works in this one.
      shard: (i, n) makes every n-th chunk from the i-th on; whoever makes the last missing chunk merges. (0, 1): all.
      stopped: asked after each chunk; once true, the work ends with Stopped, what is finished is kept.

    Returns:
      the arrays; None where chunks of other shards are still missing.

    Raises:
      FaceDepthError: settings that make no sense or differ from those of what is there, more than half of the frames
        rejected, a split that lost all its frames, a pair list that does not fit, a full disk, no permission to write.
      Stopped: see `stopped`.
    """
    files.check_local(out)
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
        "pairs": {split: _pair_settings((pair_lists or {}).get(split), seed) for split in arrays.PAIR_SPLITS},
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
    external = {s: pairs.read_external(file, s, index) for s, file in (pair_lists or {}).items() if file}
    for note in source.notes():
        print(f"note: {note}", flush=True)
    _open_parts(parts, settings)
    chunks = range(math.ceil(len(index) / CHUNK_FRAMES))
    todo = [number for number in chunks[shard_index::shards] if not _chunk_file(parts, number).exists()]
    rejects = []
    job = _Job(source, parts, face_mm, size, hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest())
    made = _make_chunks(job, todo, workers, stopped)
    with _progress(sum(len(_part(index, number)) for number in todo)) as progress, contextlib.closing(made):
        for frames, rejected in made:
            progress(frames)
            rejects += rejected
            if stopped():
                break
            _check_not_hopeless(rejects, index, parts)
    missing = sum(not _chunk_file(parts, number).exists() for number in chunks)
    if stopped():
        raise Stopped(f"Stopped with {missing} of {len(chunks)} chunks to do: the same command continues.")
    if missing and parts.exists():
        print(f"shard {shard_index}/{shards} is done; {missing} of {len(chunks)} chunks are left to other shards")
        return None
    return _merge(job, out, index, settings, external, stopped)


def _check_not_hopeless(rejects: list[dict], index: list[FrameInfo], parts: Path) -> None:
    if 2 * len(rejects) > len(index):
        shutil.rmtree(parts, ignore_errors=True)
        raise FaceDepthError(
            f"more than half of the frames ({len(rejects)} of {len(index)}) cannot be used: "
            f"{summary.rejects_text(rejects)}"
        )


def _pair_settings(file: str | None, seed: int) -> dict:
    """How a list of pairs comes about."""
    if not file:
        return {"wanted": PAIRS, "wanted_in_each_cell": CELL_PAIRS, "seed": seed}
    try:
        return {"external_sha256": files.sha256(file)}
    except OSError as error:
        raise FaceDepthError(f"the pair list {file} cannot be read ({error.strerror})") from None


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
        if not crop.inside(image.shape, xy):
            return Reject(info, f"head centre outside the {name} image", place)
    distance_mm = crop.head_distance_mm(frame.depth_mm, frame.head_xy, HEAD_WINDOW_PX)
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
    focals = (math.nan,) * 4 if frame.cropped else (*frame.focal_px, *gray_focal_px)
    row |= {"distance_mm": distance_mm} | dict(zip(("fx", "fy", "gray_fx", "gray_fy"), focals, strict=True))
    row |= {f"box_{name}": value for name, value in dataclasses.asdict(box).items()}
    row |= {f"gray_box_{name}": value for name, value in dataclasses.asdict(gray_box).items()}
    gray = crop.resize_gray(crop.crop(frame.gray, gray_box), size)
    return gray, crop.resize_depth(crop.crop(frame.depth_mm, box), size), row


def _box(image, head_xy, distance_mm, focal_px, face_mm, cropped) -> crop.Box:
    if cropped:
        return crop.Box(0, 0, image.shape[1], image.shape[0])
    return crop.crop_box(head_xy, distance_mm, focal_px, face_mm)


def _make_chunks(
    job: _Job, numbers: list[int], workers: int, stopped: Callable[[], bool]
) -> Iterator[tuple[int, list[dict]]]:
    """Makes the chunks, yields what `_make_chunk` returns for each; closing it leaves no process and no half chunk."""
    if not workers or not numbers:
        yield from (_make_chunk(job, number) for number in numbers)
        return
    context = multiprocessing.get_context("spawn")  # a forked JAX hangs
    pool = ProcessPoolExecutor(min(workers, len(numbers)), context, initializer=_start_worker, initargs=(job,))
    try:
        for future in as_completed([pool.submit(_make_chunk_in_worker, number) for number in numbers]):
            yield future.result()
    except BrokenProcessPool:
        if stopped():  # a signal to the whole process group has ended the workers
            return
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


def _make_chunk_in_worker(number: int) -> tuple[int, list[dict]]:
    return _make_chunk(_worker_job, number)


def _make_chunk(job: _Job, number: int) -> tuple[int, list[dict]]:
    """Loads, crops and writes one chunk; returns the count of its frames and the rejects among them."""
    grays, depths, rows, rejects = [], [], [], []
    for item in job.source.load(number * CHUNK_FRAMES, (number + 1) * CHUNK_FRAMES):
        result = item if isinstance(item, Reject) else prepare_frame(item, job.face_mm, job.size)
        if isinstance(result, Reject):
            rejects.append({"frame": result.info.frame, "reason": result.reason, "detail": result.detail})
        else:
            gray, depth_mm, row = result
            grays.append(gray), depths.append(depth_mm), rows.append(row)
    shape = (len(rows), job.size, job.size)
    listing = {"settings_sha256": job.settings_sha256, "chunk": number, "frames": rows, "rejects": rejects}
    content = {
        "gray": np.array(grays, np.uint8).reshape(shape),
        "depth_mm": np.array(depths, np.uint16).reshape(shape),
        "listing": np.frombuffer(json.dumps(listing).encode(), np.uint8),
    }
    packed = io.BytesIO()
    np.savez(packed, **content, sha256=np.array(_content_sha256(**content)))
    file = _chunk_file(job.parts, number)
    partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}")  # process ids are not unique on a shared directory
    with _writing(file):
        try:
            partial.write_bytes(packed.getbuffer())
            partial.replace(file)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
    return len(rows) + len(rejects), rejects


def _chunk_file(parts: Path, number: int) -> Path:
    return parts / f"{number:06d}.npz"


def _content_sha256(gray: np.ndarray, depth_mm: np.ndarray, listing: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in (gray, depth_mm, listing):
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _read_chunk(job: _Job, number: int, infos: list[FrameInfo]) -> tuple[np.ndarray, np.ndarray, dict]:
    """gray, depth, listing of a chunk. ValueError says what is wrong with it; `infos` is its part of the index."""
    try:
        with _chunk_file(job.parts, number).open("rb") as file, np.load(file, allow_pickle=False) as chunk:
            content = {name: chunk[name] for name in ("gray", "depth_mm", "listing")}
            digest = str(chunk["sha256"])
    except Exception as error:  # zipfile and NumPy have many for a damaged file
        raise ValueError(f"it cannot be read: {error}") from None
    if digest != _content_sha256(**content):
        raise ValueError("its SHA-256 is another")
    gray, depth_mm, listing = content["gray"], content["depth_mm"], json.loads(content["listing"].tobytes())
    if listing["settings_sha256"] != job.settings_sha256:
        raise ValueError("it was made with other settings")
    if listing["chunk"] != number:
        raise ValueError(f"it is chunk {listing['chunk']}")
    names = [row["frame"] for row in listing["frames"] + listing["rejects"]]
    if sorted(names) != sorted(info.frame for info in infos):
        raise ValueError("it holds other frames than the data set")
    shape = (len(listing["frames"]), job.size, job.size)
    if not gray.shape == depth_mm.shape == shape:
        raise ValueError(f"it lists {len(listing['frames'])} frames and has {len(gray)} and {len(depth_mm)} images")
    return gray, depth_mm, listing


def _read_listings(job: _Job, index: list[FrameInfo], stopped: Callable[[], bool]):
    """Columns and rejects of all chunks. Names those that are not sound and makes them again."""
    numbers = range(math.ceil(len(index) / CHUNK_FRAMES))
    columns, rejects = {name: [] for name in arrays.COLUMNS}, []
    for number in numbers:
        if stopped():
            raise Stopped("Stopped while checking the chunks: the same command continues.")
        for attempt in (1, 2):
            try:
                listing = _read_chunk(job, number, _part(index, number))[2]
                break
            except ValueError as error:
                file = _chunk_file(job.parts, number)
                if attempt == 2:
                    raise FaceDepthError(f"{file} was made again and still is not sound: {error}") from None
                print(f"{file} is made again: {error}", flush=True)
                with _writing(file):
                    file.unlink(missing_ok=True)
                _make_chunk(job, number)
        for row in listing["frames"]:  # columns take a tenth of what dictionaries do
            for name, values in columns.items():
                values.append(row[name])
        rejects += listing["rejects"]
    return columns, rejects


def _part(index: list[FrameInfo], number: int) -> list[FrameInfo]:
    return index[number * CHUNK_FRAMES : (number + 1) * CHUNK_FRAMES]


def _merge(
    job: _Job, out: Path, index: list, settings: dict, external: dict, stopped: Callable[[], bool]
) -> arrays.Arrays:
    """Chunks -> arrays, by one process at a time. The images are streamed: only the listings are held."""
    parts = job.parts
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context((parts / "lock").open("w"))
        except FileNotFoundError:  # another shard has just merged and cleaned up
            return arrays.open(out)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (done := _complete(out, settings)) is not None:
            return done
        columns, rejects = _read_listings(job, index, stopped)
        _check_not_hopeless(rejects, index, parts)
        for split in SPLITS:
            if split not in columns["split"] and any(info.split == split for info in index):
                raise FaceDepthError(
                    f"every frame of the split '{split}' was rejected: {summary.rejects_text(rejects)}; "
                    f"mend them, remove {parts} and prepare again"
                )
        pair_lists, pairs_meta = {}, {}
        for split in arrays.PAIR_SPLITS:
            rows = [row for row, name in enumerate(columns["split"]) if name == split]
            members = {name: [values[row] for row in rows] for name, values in columns.items()}
            pair_lists[split], pairs_meta[split] = _pairs_of(split, members, settings, external.get(split))

        def images():
            for number in range(math.ceil(len(index) / CHUNK_FRAMES)):
                if stopped():
                    raise Stopped("Stopped while merging the chunks: the same command continues.")
                try:
                    yield _read_chunk(job, number, _part(index, number))[:2]
                except ValueError as error:
                    file = _chunk_file(parts, number)
                    raise FaceDepthError(
                        f"{file} was damaged while it was merged ({error}); the same command makes it again"
                    ) from None

        with _writing(out):
            arrays.write(
                out,
                frames=columns,
                images=images(),
                size_px=settings["size_px"],
                pair_lists=pair_lists,
                meta=settings
                | {
                    "pairs_found": pairs_meta,
                    "rejects": {"count": len(rejects), "reasons": summary.count_reasons(rejects), "frames": rejects},
                },
            )
        shutil.rmtree(parts, ignore_errors=True)
    made = arrays.open(out)
    print(summary.report(made))
    return made


def _pairs_of(split: str, members: dict[str, list], settings: dict, external: list[pairs.Pair] | None):
    """The list of a split, and what meta.json says of it."""
    if external is None:
        how = settings["pairs"][split]
        found = pairs.draw(members, how["wanted"], how["wanted_in_each_cell"], how["seed"])
        missing = []
    else:
        there = set(members["frame"])
        found = [pair for pair in external if there.issuperset(pair[:2])]
        missing = sorted({name for pair in external for name in pair[:2]} - there)
    meta = {"pairs": len(found), "cells": pairs.count_cells(found, members)}
    if external is not None:
        meta |= {"left_out": len(external) - len(found), "rejected_frames": missing}
    return found, meta


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
