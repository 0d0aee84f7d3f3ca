"""Save and restore checkpoints that are verified before use.

Orbax writes `checkpoints/00000100/` in the background, under a temporary name. It restores a flipped bit silently, so
its `custom_metadata` holds the SHA-256 of the arrays, the step and the run's identity, sealed by a hash of their own. A
checkpoint that does not match is damaged, and an older one is restored.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from facedepth_jax import devices, files, nested, runtime
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.weight_files import by_name, name_of

logger = logging.getLogger(__name__)

GONE = (TimeoutError, jax.errors.JaxRuntimeError)  # raised by a save when another process has gone: no failed save
KEEP = 3
UNFINISHED = ".orbax-checkpoint-tmp"  # Orbax's own ending


class Damaged(FaceDepthError):
    """A checkpoint is not as it was written."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: `WORKDIR/checkpoints`.
      identity: plain JSON values that must be the same when the run goes on: data, split, seed, batch size, nets.
      allow_mismatch: go on where the identity differs, and log the difference; later checkpoints have the new identity.

    Attributes:
      mismatched: whether `restore` has taken a checkpoint with another identity.
      notes: what the first process has given to `save` as `notes` for the restored checkpoint; {} without one.
    """

    def __init__(self, folder, identity: dict[str, Any], allow_mismatch: bool = False):
        self._folder = pathlib.Path(os.path.abspath(folder))
        self._identity = identity
        self._allow_mismatch = allow_mismatch
        self.mismatched, self.notes = False, {}
        self._pending = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1)

    def _directory(self, step):
        return self._folder / f"{step:08d}"

    def steps(self) -> list[int]:
        """Return the steps of the checkpoints, ascending; damaged ones included, unfinished ones not."""
        names = os.listdir(self._folder) if self._folder.is_dir() else []
        return sorted(int(name) for name in names if re.fullmatch("[0-9]{8}", name))

    def save(self, step: int, state, best_step: int | None = None, notes: dict | None = None):
        """Wait for the save before, then start to save.

        Args:
          state: a pytree of arrays, each whole on every device; it may be donated at once.
          best_step: the step with the best validation so far; its checkpoint is kept as well as the latest.
          notes: numbers by name to keep with it.

        Raises:
          FaceDepthError: this save could not start, or the one before failed.
          GONE: another process has gone.
        """
        self.finish()
        directory = self._directory(step)
        # Orbax gets the copy that was hashed, or devices that have drifted apart would make a damaged checkpoint.
        state = jax.tree.map(np.asarray, jax.device_get(devices.local(state)))
        metadata = {"step": step, "identity": self._identity, "arrays": _digest(by_name(state)), "notes": notes or {}}
        metadata = files.sealed(metadata)
        try:
            if jax.process_index() == 0:
                self._folder.mkdir(parents=True, exist_ok=True)
                _remove(directory)  # a damaged one: the run went on from an older one
            response = ocp.save_async(directory, state, custom_metadata=metadata)
        except GONE:
            raise
        except OSError as error:
            raise FaceDepthError(f"Cannot save the checkpoint {directory}: {error.strerror or error}.") from error
        self._pending = self._thread.submit(self._complete, response, step, best_step)

    def _complete(self, response, step, best_step):
        response.result()
        if jax.process_index():
            return
        steps = self.steps()
        latest = [known for known in steps if known <= step][-KEEP:]  # a newer one is damaged: see restore
        for old in set(steps) - {*latest, best_step}:
            directory = self._directory(old)
            try:
                _remove(directory.rename(f"{directory}{UNFINISHED}"))  # or a kill would leave half a checkpoint
            except OSError as error:  # on NFS, say, where a file is still open. The new checkpoint is good
                logger.warning("The old checkpoint %s is left: it cannot be removed (%s).", directory, error)

    def check(self):
        """Raise FaceDepthError if the last save has failed by now. It does not wait: call it at every step."""
        if self._pending is not None and self._pending.done():
            self.finish()

    def finish(self):
        """Wait until the last save is on the disk. Raise FaceDepthError if it failed, GONE as `save` does."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except GONE:
            raise
        except Exception as error:
            raise FaceDepthError(
                f"Saving a checkpoint to {self._folder} failed ({_first_line(error)}): the one before it is the newest."
            ) from error

    def check_newest(self):
        """Look at the newest checkpoint, but for its arrays and its data, which need not be there yet.

        Raises FaceDepthError as `restore` does if it is another run's. Damage is left to `restore`.
        """
        for step in self.steps()[-1:]:
            with contextlib.suppress(Damaged):
                identity = self._read(step, whole=False)[0]["identity"]
                self._check_identity(identity | {"data": self._identity.get("data")})

    def restore(self, like):
        """Return the newest checkpoint that verifies, None if none was ever finished.

        The first process chooses it and each reads it by itself: none waits inside Orbax for one that finds damage.

        Args:
          like: a state of the same structure; the restored arrays are placed as its arrays are.

        Raises:
          FaceDepthError: in all processes, if there are checkpoints and all are damaged, if they are another run's, if
            one of the processes reads something else than the first, or if the state does not fit.
        """
        first = jax.process_index() == 0
        step, seal, arrays = _together(self._choose if first else lambda: (-1, "", {}))
        chosen = np.array([step, self.mismatched, *seal.ljust(64).encode()], np.int32)
        step, mismatched, *seal = multihost_utils.broadcast_one_to_all(chosen).tolist()
        self.mismatched = bool(mismatched)
        if step < 0:
            return None
        arrays = _together(lambda: arrays if first else self._read(step, bytes(seal).decode())[1])
        self._check_fit(step, arrays, by_name(like))
        return jax.tree_util.tree_map_with_path(lambda keys, leaf: _place(arrays[name_of(keys)], leaf), like)

    def _choose(self) -> tuple[int, str, dict[str, np.ndarray]]:
        """Return step, hash and arrays of the newest checkpoint that verifies; step -1 if none was ever finished."""
        for rest in self._folder.glob(f"[0-9]*{UNFINISHED}"):
            _remove(rest)
        steps = self.steps()
        for step in reversed(steps):
            if self._directory(step).with_suffix(".json").exists():
                raise FaceDepthError(
                    f"{self._directory(step)} was written by an older version and cannot be continued: "
                    "go on with that version, or take another --workdir."
                )
            try:
                metadata, arrays = self._read(step)
            except Damaged as damage:
                logger.warning("%s. Taking an older one.", damage)
                continue
            self._check_identity(metadata["identity"])
            self.notes = metadata.get("notes", {})
            return step, metadata["sha256"], arrays
        if steps:
            raise FaceDepthError(
                f"All checkpoints in {self._folder} are damaged: put back a copy, or remove the folder to start again."
            )
        return -1, "", {}

    def _read(self, step, seal=None, whole=True) -> tuple[dict, dict[str, np.ndarray]]:
        """Return metadata and, of the whole, arrays by name. Raise Damaged, also if it is not the first process's."""
        directory = self._directory(step)
        where = f"; the first process has read {directory}: all hosts must share WORKDIR" if seal else ""

        def damaged(reason):
            return Damaged(f"The checkpoint of step {step} is damaged: {reason}{where}")

        for path in (directory, *directory.rglob("*")):  # or a checkpoint from elsewhere could read our files
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise damaged(f"{path.name} is neither a plain file nor a directory")
        alone = ocp.Context()
        alone.multiprocessing.active_processes = {ocp.multihost.process_index()}
        try:
            with alone:
                arrays = by_name(ocp.load(directory)) if whole else {}
                metadata = ocp.metadata(directory).custom_metadata or {}
            good = files.is_sealed(metadata) and isinstance(metadata["identity"], dict)
            good = good and metadata["step"] == step and (not whole or metadata["arrays"] == _digest(arrays))
            good = good and all(isinstance(value, int | float) for value in metadata.get("notes", {}).values())
        except Exception as error:  # whatever the bytes make of Orbax
            raise damaged(_first_line(error)) from error
        if not good or seal not in (None, metadata["sha256"]):
            raise damaged("its arrays or its metadata are not as they were written")
        return metadata, arrays

    def _check_identity(self, then):
        now = json.loads(json.dumps(self._identity))
        names = nested.differing_keys(then, now)
        if not names:
            return
        then, now = nested.flatten(then), nested.flatten(now)
        text = ", ".join(f"{name} = {then.get(name)!r} (not {now.get(name)!r})" for name in names)
        if not self._allow_mismatch:
            raise FaceDepthError(
                f"{self._folder} belongs to a run with {text}: give the old values, another --workdir, "
                "or --allow_mismatch to go on with the new ones."
            )
        self.mismatched = True
        logger.warning("Going on, as --allow_mismatch allows, from a checkpoint with %s.", text)

    def _check_fit(self, step, then, now):
        then, now = ({name: tuple(leaf.shape) for name, leaf in side.items()} for side in (then, now))
        for name in sorted(then.keys() | now.keys()):
            if then.get(name) != now.get(name):
                raise FaceDepthError(
                    f"The checkpoint {self._directory(step)} does not fit the nets of this run: {name} has the shape "
                    f"{then.get(name)} there and {now.get(name)} here (None: not there): take another --workdir."
                )


def _digest(arrays: dict[str, np.ndarray]) -> str:
    """Hash names, shapes, types and bytes."""

    def line(name):
        array = arrays[name]
        return f"{name} {array.shape} {array.dtype} {hashlib.sha256(array.reshape(-1).view(np.uint8)).hexdigest()}\n"

    with concurrent.futures.ThreadPoolExecutor() as pool:  # hashlib lets threads run: the step waits for this
        return hashlib.sha256("".join(pool.map(line, sorted(arrays))).encode()).hexdigest()


def _together(work):
    """Return what `work` does. If it raises FaceDepthError in one process, all raise."""
    try:
        result, error = work(), None
    except FaceDepthError as caught:
        result, error = None, caught
    if runtime.any_process(error is not None):
        raise error or FaceDepthError("Another process cannot restore the checkpoint: see its message.")
    return result


def _place(array: np.ndarray, like: jax.Array) -> jax.Array:
    return jax.make_array_from_callback(array.shape, like.sharding, lambda index: array[index])


def _remove(path: pathlib.Path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:500]
