"""Make arrays of raw frames, cropped by Eq. 6 and resized.

The frames are cut into chunks, see chunks.py. A finished chunk is a file in `OUT.parts`, so the same command continues
after a kill; shards and workers share the chunks among them and cannot change the result. When the last chunk is there
they are merged into OUT (see arrays.py) and removed; the merge makes chunks that are not sound again.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Iterator
from multiprocessing import connection
from pathlib import Path

import cv2
import numpy as np

from facedepth_jax import files
from facedepth_jax.data import arrays, chunks, pairs, summary
from facedepth_jax.data.chunks import CHUNK_FRAMES, Job, writing
from facedepth_jax.data.frames import FrameInfo, Source, counted
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.nested import differing_keys, flatten

PAIRS = 4000  # wanted in each verification list
CELL_PAIRS = 600  # of them from each elementary cell of Table 2, so that even the rarest of them means something

ELSEWHERE = "give another place: --out, or to main --config.data.dir"


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
) -> arrays.Arrays | None:
    """Make the arrays of a data set, or what is missing of them, and open them.

    Args:
      source: the raw data set.
      out: directory to be made. Where it is complete with the same settings nothing is done.
      face_mm: R of Eq. 6, millimetres.
      size: side of the prepared images in pixels.
      seed: of the verification pairs.
      pair_lists: {"validation": FILE, "test": FILE}, verification pairs to take instead of drawing them, see pairs.py;
        "" or no entry: they are drawn.
      workers: processes; 0 works in this one.
      shard: (i, n) makes every n-th chunk from the i-th on; the last of them merges. (0, 1): all.

    Returns:
      the arrays; None where chunks of other shards are still missing.

    Raises:
      FaceDepthError: settings that make no sense or differ from those of what is there, a sample without faces, more
        than half of the frames rejected, a split that lost all its frames, a pair list that does not fit, a full disk,
        no permission to write.
    """
    files.check_local(out)
    out, (shard_index, shards) = Path(out).absolute(), shard
    if not 0 <= shard_index < shards:
        raise FaceDepthError(f"there is no shard {shard_index}/{shards}; of n, the first is 0/n and the last (n-1)/n")
    if workers < 0 or seed < 0:
        raise FaceDepthError(f"workers is {workers} and seed {seed}: both must be at least 0")
    if fault := summary.find_bad_crop(face_mm, size):
        raise FaceDepthError(fault)
    index, lists = source.index(), {split: file for split, file in (pair_lists or {}).items() if file}
    external = {split: pairs.read_external(file, split, index) for split, file in lists.items()}
    drawn = {"wanted": PAIRS, "wanted_in_each_cell": CELL_PAIRS, "seed": seed}
    settings = {
        "dataset": {"name": source.name, "settings": source.settings},
        "crop": {
            "face_mm": float(face_mm),
            "head_window_px": chunks.HEAD_WINDOW_PX,
            "min_depth_share": chunks.MIN_DEPTH_SHARE,
        },
        "size_px": size,
        "pairs": {
            split: {"external_sha256": files.sha256(lists[split])} if split in lists else drawn
            for split in arrays.PAIR_SPLITS
        },
    }
    parts = out.with_name(f"{out.name}.parts")
    if (done := _complete(out, settings)) is not None:
        shutil.rmtree(parts, ignore_errors=True)
        print(f"{out} is complete already")
        return done
    for note in summary.notes(source, index):
        print(f"note: {note}", flush=True)
    lines, fault = summary.first_look(source, index)
    for line in lines:
        print(line, flush=True)
    if fault:
        raise FaceDepthError(fault)
    _open_parts(parts, settings)
    _check(index, [], parts)
    job = Job(source, parts, face_mm, size, hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest())
    count, rejects, shown = math.ceil(len(index) / CHUNK_FRAMES), [], time.monotonic()
    todo = [number for number in range(count)[shard_index::shards] if not job.file(number).exists()]
    with contextlib.closing(_make_chunks(job, todo, workers)) as made:
        for done, rejected in enumerate(made, 1):
            rejects += rejected
            if 2 * len(rejects) > len(index):  # no need to make the rest
                _check(index, rejects, parts)
            if time.monotonic() > shown + 10:
                shown = time.monotonic()
                print(f"{done} of {counted(len(todo), 'chunk')} of {CHUNK_FRAMES} frames made", flush=True)
    missing = sum(not job.file(number).exists() for number in range(count))
    if missing and parts.exists():
        print(f"shard {shard_index}/{shards} is done; {missing} of {counted(count, 'chunk')} left to other shards")
        return None
    try:
        lock = (parts / "lock").open("w")
    except FileNotFoundError:  # another shard has just merged and removed the chunks
        return arrays.open(out)
    except OSError as error:
        raise FaceDepthError(f"{parts / 'lock'} cannot be written ({error.strerror})") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (done := _complete(out, settings)) is not None:
            return done
        _merge(job, out, index, settings, external)
        shutil.rmtree(parts, ignore_errors=True)
    made = arrays.open(out)
    print(summary.report(made))
    return made


def _check(index: list[FrameInfo], rejects: list[dict], parts: Path) -> None:
    """Give up, without the chunks, if too few frames can be used."""
    if fault := summary.find_fault(index, rejects):
        shutil.rmtree(parts, ignore_errors=True)
        raise FaceDepthError(f"{fault} (rejected: {summary.rejects_text(rejects)}); mend them and prepare again")


def _make_chunks(job: Job, numbers: list[int], workers: int) -> Iterator[list[dict]]:
    """Make the chunks; yield what `chunks.make` returns for each. No worker outlives this process by a chunk."""
    if not workers:
        yield from (chunks.make(job, number) for number in numbers)
        return
    context = multiprocessing.get_context("spawn")  # a forked JAX hangs
    processes = {}
    for i in range(min(workers, len(numbers))):
        # Pipes alone: of the semaphores of a queue or pool, Python would complain on the screen after a kill.
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(job, numbers[i::workers], sender), daemon=True)
        processes[receiver] = process
        process.start()
        sender.close()
    try:
        while processes:
            for receiver in connection.wait(processes):
                try:
                    made = receiver.recv()
                except (EOFError, OSError):  # it has ended, perhaps amid a message
                    process = processes.pop(receiver)
                    process.join()
                    if process.exitcode:
                        raise FaceDepthError(
                            "a worker process died, perhaps for want of memory; the same command continues, "
                            "--workers may differ"
                        ) from None
                    continue
                if isinstance(made, FaceDepthError):
                    raise made
                yield made
    finally:
        for process in processes.values():
            process.terminate()


def _work(job: Job, numbers: list[int], sender: connection.Connection) -> None:
    """Make chunks in a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a terminal's Ctrl-C is for all
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # or the first takes the GPU's memory from the rest
    cv2.setNumThreads(1)
    with contextlib.suppress(BrokenPipeError):  # the parent was killed
        for number in numbers:
            try:
                sender.send(chunks.make(job, number))
            except FaceDepthError as error:
                sender.send(error)
                return


def _read_sound(job: Job, number: int, index: list[FrameInfo]) -> tuple[np.ndarray, np.ndarray, dict]:
    """Read a chunk as `chunks.read` does; make it again, once, if it is not sound."""
    names = [info.frame for info in index[number * CHUNK_FRAMES : (number + 1) * CHUNK_FRAMES]]
    try:
        return chunks.read(job, number, names)
    except ValueError as error:
        print(f"{job.file(number)} is made again: {error}", flush=True)
    chunks.make(job, number)
    return chunks.read(job, number, names)


def _merge(job: Job, out: Path, index: list[FrameInfo], settings: dict, external: dict) -> None:
    """Merge the chunks into arrays. The images are streamed: only the listings are held."""
    columns, rejects = {name: [] for name in arrays.COLUMNS}, []
    numbers = range(math.ceil(len(index) / CHUNK_FRAMES))
    for number in numbers:
        listing = _read_sound(job, number, index)[2]
        for row in listing["frames"]:  # columns take a tenth of the memory of dictionaries
            for name, values in columns.items():
                values.append(row[name])
        rejects += listing["rejects"]
    _check(index, rejects, job.parts)
    kind_of = {info.frame: info.kind for info in index}
    pair_lists, pairs_found = {}, {}
    for split in arrays.PAIR_SPLITS:
        rows = [row for row, name in enumerate(columns["split"]) if name == split]
        members = {name: [values[row] for row in rows] for name, values in columns.items()}
        members["kind"] = [kind_of[name] for name in members["frame"]]
        pair_lists[split], pairs_found[split] = _pairs_of(members, settings["pairs"][split], external.get(split))
    with writing(out):
        arrays.write(
            out,
            frames=columns,
            images=(_read_sound(job, number, index)[:2] for number in numbers),
            size_px=job.size,
            pair_lists=pair_lists,
            meta=settings
            | {
                "pairs_found": pairs_found,
                "rejects": {"count": len(rejects), "reasons": summary.count_reasons(rejects), "frames": rejects},
            },
        )


def _pairs_of(members: dict[str, list], how: dict, external: list[pairs.Pair] | None) -> tuple[list[pairs.Pair], dict]:
    """Return the list of a split, drawn or what is left of an external one, and its entry of meta.json."""
    if external is None:
        found, rest = pairs.draw(members, how["wanted"], how["wanted_in_each_cell"], how["seed"]), {}
    else:
        there = set(members["frame"])
        found = [pair for pair in external if there.issuperset(pair[:2])]
        rejected = sorted({name for pair in external for name in pair[:2]} - there)
        rest = {"left_out": len(external) - len(found), "rejected_frames": rejected}
    return found, {"pairs": len(found), "cells": pairs.count_cells(found, members)} | rest


def _complete(out: Path, settings: dict) -> arrays.Arrays | None:
    """Open the arrays in `out`; None if nothing is there. Raises FaceDepthError if it is something else."""
    with writing(out):
        if not out.exists() or out.is_dir() and not any(out.iterdir()):
            return None
        if not (out / "meta.json").exists():
            raise FaceDepthError(f"{out} exists and is not a prepared data set; {ELSEWHERE}")
    there = arrays.open(out)
    if difference := _difference(there.meta, settings):
        raise FaceDepthError(
            f"{out} was made with other settings ({difference}); remove it or {ELSEWHERE}, which alone takes "
            "arrays as they are"
        )
    return there


def _open_parts(parts: Path, settings: dict) -> None:
    """Make the directory of the chunks, or check that the one there is of the same settings."""
    file = parts / "settings.json"
    with writing(parts):
        parts.mkdir(parents=True, exist_ok=True)
    if not file.exists():
        files.write_json(file, settings)
    if difference := _difference(files.read_json(file), settings):
        raise FaceDepthError(
            f"{parts} is an unfinished run with other settings ({difference}); remove it or {ELSEWHERE}"
        )


def _difference(there: dict, here: dict) -> str:
    """Name the first setting that differs; "" if none does. Of `there` only the keys of `here` count."""
    there = {key: there.get(key) for key in here}
    for key in differing_keys(there, here):
        return f"{key} is {flatten(there).get(key)!r} there, {flatten(here).get(key)!r} here"
    return ""
