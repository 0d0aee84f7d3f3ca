"""Write and open prepared data sets, the contract between `prepare` and everything after it.

A directory with
  gray.npy              uint8 (N, S, S)
  depth_mm.npy          uint16 (N, S, S), millimetres, 0 = none
  frames.csv            one line a frame, the columns of COLUMNS
  pairs_validation.tsv  pairs_test.tsv: see pairs.py
  meta.json             format version, data set, crop, counts, rejects; bytes and SHA-256 of each file above; its own

It is written under a temporary name and renamed when complete. It holds neither time nor host, so the same input gives
the same bytes.
"""

import csv
import dataclasses
import functools
import glob
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from facedepth_jax import files
from facedepth_jax.data import pairs
from facedepth_jax.data.frames import SPLITS
from facedepth_jax.errors import FaceDepthError

FORMAT = "facedepth_jax arrays"
FORMAT_VERSION = 2

COLUMNS = {
    "frame": str,
    "subject": str,
    "sequence": int,
    "split": str,
    "yaw": float,  # degrees, nan = not known; so pitch and roll
    "pitch": float,
    "roll": float,
    "head_x_mm": float,  # head centre as annotated, in the depth camera's frame, millimetres, nan = not known
    "head_y_mm": float,
    "head_z_mm": float,
    "distance_mm": float,  # of the head as measured, D of Eq. 6
    "fx": float,  # focal length of the depth image as taken for Eq. 6, pixels; nan: the frame was cropped already
    "fy": float,
    "box_x": int,  # the crop in pixels of the depth image as the reader gives it, may reach outside it
    "box_y": int,
    "box_w": int,
    "box_h": int,
    "gray_fx": float,  # the same of the gray image; no other where the two are registered
    "gray_fy": float,
    "gray_box_x": int,
    "gray_box_y": int,
    "gray_box_w": int,
    "gray_box_h": int,
}
PAIR_SPLITS = ("validation", "test")
META = "meta.json"
FILES = ("gray.npy", "depth_mm.npy", "frames.csv", *(f"pairs_{split}.tsv" for split in PAIR_SPLITS))
_AGAIN = "remove the directory and prepare or copy it again"


def fingerprint(meta: dict) -> str:
    """Hash the files' SHA-256 of a meta.json: two data sets with one fingerprint have the same bytes."""
    hashes = "".join(f"{name} {meta['files'][name]['sha256']}\n" for name in FILES)
    return hashlib.sha256(hashes.encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Arrays:
    """A prepared data set, opened.

    Attributes:
      path: the directory.
      gray: uint8 (N, S, S), memory-mapped.
      depth_mm: uint16 (N, S, S), memory-mapped, millimetres, 0 = none.
      frames: column name -> array (N,), the columns of COLUMNS.
      meta: meta.json.
    """

    path: Path
    gray: np.ndarray
    depth_mm: np.ndarray
    frames: dict[str, np.ndarray]
    meta: dict

    @functools.cached_property
    def distance_mm(self) -> np.ndarray:
        """The heads' distances, D of Eq. 6, float32 (N,), millimetres."""
        return self.frames["distance_mm"].astype(np.float32)

    @property
    def fingerprint(self) -> str:
        """Hash of the files' SHA-256: two data sets with one fingerprint have the same bytes."""
        return fingerprint(self.meta)

    def rows(self, split: str) -> np.ndarray:
        """Return the int64 indices of the frames of a split, ascending, or of "all" frames.

        Raises FaceDepthError if there is none.
        """
        rows = np.flatnonzero((self.frames["split"] == split) | (split == "all"))
        if not len(rows):
            counts = ", ".join(f"{self.meta['counts'][name]['frames']} {name}" for name in SPLITS)
            raise FaceDepthError(f"{self.path} has no frame in the split '{split}'; it has {counts}")
        return rows

    def __len__(self) -> int:
        return len(self.gray)


def open(path: str | os.PathLike) -> Arrays:
    """Open a prepared data set after checking its version and every byte: a second or less for each GB.

    Raises:
      FaceDepthError: not such a directory, another format version, a file that is missing, cut short or changed.
    """
    path = Path(path)
    try:
        for name in (META, *FILES):
            if (path / name).exists() and not stat.S_ISREG((path / name).lstat().st_mode):
                raise FaceDepthError(f"{path / name} is a symbolic link or no plain file; {_AGAIN}")
        meta = read_meta(path)
        for name in FILES:
            if files.sha256(path / name) != meta["files"][name]["sha256"]:
                raise FaceDepthError(f"{path / name} is damaged: its SHA-256 is not the one in meta.json; {_AGAIN}")
        return _map_files(path, meta)
    except FaceDepthError:
        raise
    except Exception as error:  # the parsers of CSV and of NumPy's headers have many for a file that is something else
        raise FaceDepthError(f"{path} cannot be read ({type(error).__name__}: {error}); {_AGAIN}") from error


def write(
    path: str | os.PathLike,
    *,
    frames: dict[str, list],
    images: Iterable[tuple[np.ndarray, np.ndarray]],
    size_px: int,
    pair_lists: dict[str, list[tuple[str, str, int]]],
    meta: dict,
) -> None:
    """Write a data set; `path` must not exist, or be empty. The images are streamed, so memory stays flat.

    One process at a time may write to `path`: this removes the remains of a killed one.

    Args:
      frames: column name -> N values, the columns of COLUMNS.
      images: pieces (gray uint8 (n, S, S), depth_mm uint16 (n, S, S)), N frames together.
      size_px: S.
      pair_lists: one list for each of PAIR_SPLITS, see pairs.py.
      meta: plain JSON values; format, counts and hashes are added here.

    Raises:
      OSError: full disk, no permission. Nothing is left at `path` or next to it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*partial"):
        shutil.rmtree(left)
    shape = (len(frames["frame"]), size_px, size_px)
    with files.atomically(path) as partial:
        partial.mkdir()
        # Plain writes instead of a writable memory map: on a full disk the latter dies of SIGBUS, without a word.
        with (partial / "gray.npy").open("wb") as gray_file, (partial / "depth_mm.npy").open("wb") as depth_file:
            for file, descr in ((gray_file, "|u1"), (depth_file, "<u2")):
                header = {"descr": descr, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(file, header)
            for gray, depth_mm in images:
                gray_file.write(np.ascontiguousarray(gray, np.uint8))
                depth_file.write(np.ascontiguousarray(depth_mm, "<u2"))
        with (partial / "frames.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows(zip(*([kind(x) for x in frames[name]] for name, kind in COLUMNS.items()), strict=True))
        for split in PAIR_SPLITS:
            pairs.write(partial / f"pairs_{split}.tsv", pair_lists[split])
        meta = {"format": FORMAT, "format_version": FORMAT_VERSION, "size_px": size_px} | meta
        meta["counts"] = _counts(frames)
        meta["files"] = {n: {"bytes": (partial / n).stat().st_size, "sha256": files.sha256(partial / n)} for n in FILES}
        meta = files.sealed(meta)
        (partial / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
        _map_files(partial, meta)


def read_meta(path: Path) -> dict:
    """Read and check meta.json alone. Raises FaceDepthError as `open` does."""
    how = "make one with `python -m facedepth_jax.prepare`"
    if not (path / META).exists():
        raise FaceDepthError(f"there is no prepared data set in {path} (no meta.json); {how}")
    meta = files.read_json(path / META)
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise FaceDepthError(f"{path} is not a prepared data set (its meta.json is of another kind); {how}")
    if meta.get("format_version") != FORMAT_VERSION:
        raise FaceDepthError(
            f"{path} has format version {meta.get('format_version')}, this program reads {FORMAT_VERSION}; {_AGAIN}"
        )
    if not files.is_sealed(meta):
        raise FaceDepthError(f"{path / 'meta.json'} is damaged: it is not as it was written; {_AGAIN}")
    return meta


def _map_files(path: Path, meta: dict) -> Arrays:
    """Open without hashing."""
    with (path / "frames.csv").open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file, strict=True)
    if missing := ", ".join(name for name in COLUMNS if name not in header):
        raise FaceDepthError(f"{path / 'frames.csv'} has no column {missing}; {_AGAIN}")
    columns = zip(*lines, strict=True) if lines else [[]] * len(COLUMNS)
    frames = {
        name: np.array(list(map(kind, values)), kind)
        for (name, kind), values in zip(COLUMNS.items(), columns, strict=True)
    }
    gray, depth_mm = (np.load(path / name, mmap_mode="r", allow_pickle=False) for name in ("gray.npy", "depth_mm.npy"))
    shape = (len(lines), meta["size_px"], meta["size_px"])
    there = (header, gray.shape, gray.dtype, depth_mm.shape, depth_mm.dtype, _counts(frames))
    if there != (list(COLUMNS), shape, np.uint8, shape, np.uint16, meta["counts"]):
        raise FaceDepthError(f"the files in {path} are not those that its meta.json describes; {_AGAIN}")
    return Arrays(path, gray, depth_mm, frames, meta)


def _counts(frames: dict) -> dict:
    """Return {split: {"frames": n, "subjects": n}}."""
    subjects = {split: [] for split in SPLITS}
    for subject, split in zip(frames["subject"], frames["split"], strict=True):
        subjects[split].append(subject)
    return {split: {"frames": len(names), "subjects": len(set(names))} for split, names in subjects.items()}
