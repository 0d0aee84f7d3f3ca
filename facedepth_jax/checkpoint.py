"""Checkpoints that are verified before use, and weights for others.

`checkpoints/00000100/` is Orbax's, written asynchronously; `checkpoints/00000100.json` is our manifest, written when
the files lie on the disk: the run's identity, and the SHA-256 of every file. Orbax restores a flipped bit without a
word, so what does not match its manifest is not restored. A checkpoint without a manifest was never finished.
"""

import concurrent.futures
import json
import logging
import os
import pathlib
import re
import shutil
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy
from orbax.checkpoint import v1 as ocp

from facedepth_jax import files
from facedepth_jax.errors import FaceDepthError

logger = logging.getLogger(__name__)


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    return {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_symlink() or not p.is_dir()}


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: `WORKDIR/checkpoints`.
      identity: plain JSON values that must be the same when the run goes on: data, split, seed, batch size, nets.
      keep: how many of the latest are kept.
    """

    def __init__(self, folder, identity: dict[str, Any], keep: int = 3):
        self._folder = pathlib.Path(os.path.abspath(folder))
        self._identity = identity
        self._keep = keep
        self._pending = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1)

    def _manifest(self, step):
        return self._folder / f"{step:08d}.json"

    def _directory(self, step):
        return self._folder / f"{step:08d}"

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints, ascending; damaged ones included."""
        return sorted(int(p.stem) for p in self._folder.glob("*.json") if re.fullmatch("[0-9]{8}", p.stem))

    def save(self, step: int, state):
        """Starts to save; waits for the save before. Raises FaceDepthError if that one failed."""
        self.finish()
        directory = self._directory(step)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if directory.exists() and jax.process_index() == 0:  # a damaged one, of which an older one took the place
                self._manifest(step).unlink(missing_ok=True)  # first, so that half a checkpoint never has a manifest
                shutil.rmtree(directory)
            response = ocp.save_async(directory, state)
        except OSError as error:
            raise FaceDepthError(f"Cannot save the checkpoint {directory}: {error.strerror or error}.") from error
        self._pending = self._thread.submit(self._seal, step, response)

    def _seal(self, step, response):
        response.result()
        if jax.process_index():
            return
        hashes = {name: files.sha256(path) for name, path in _files(self._directory(step)).items()}
        files.write_json(self._manifest(step), {"step": step, "identity": self._identity, "files": hashes})
        for old in self.steps()[: -self._keep]:
            self._manifest(old).unlink()  # first, so that half a checkpoint never has a manifest
            shutil.rmtree(self._directory(old), ignore_errors=True)

    def finish(self):
        """Waits until the last save lies on the disk. Raises FaceDepthError if it failed."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except FaceDepthError:
            raise
        except Exception as error:
            raise FaceDepthError(
                f"Saving a checkpoint to {self._folder} failed ({error}): the one before it is the newest."
            ) from error

    def _damage(self, step) -> str | None:
        """What is wrong with a checkpoint, None if it is as it was written."""
        try:
            manifest = json.loads(self._manifest(step).read_text())
            hashes, identity = manifest["files"], manifest["identity"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"its manifest cannot be read ({error!r})"
        if not (isinstance(hashes, dict) and hashes and isinstance(identity, dict)):
            return "its manifest lists no files or no identity"
        if self._directory(step).is_symlink():
            return "its directory is a symbolic link"
        found = _files(self._directory(step))
        for name in sorted(hashes.keys() | found.keys()):
            if name not in found:
                return f"{name} is missing"
            if found[name].is_symlink():
                return f"{name} is a symbolic link"
            if name not in hashes:
                return f"{name} does not belong to it"
            if files.sha256(found[name]) != hashes[name]:
                return f"{name} is not as it was written"
        return None

    def restore(self, like):
        """The newest checkpoint that verifies, placed as `like`, a state, is; None if there is none.

        Raises FaceDepthError if there are checkpoints and all are damaged, or if they are another run's.
        """
        self._clean()
        for step in reversed(self.steps()):
            damage = self._damage(step)
            if damage:
                logger.warning("The checkpoint of step %d is damaged: %s. Taking an older one.", step, damage)
                continue
            self._check_identity(step)
            like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
            return ocp.load(self._directory(step), like)
        if self.steps():
            raise FaceDepthError(
                f"All checkpoints in {self._folder} are damaged: put back a copy, or remove the folder to start anew."
            )
        return None

    def _clean(self):
        """Removes what a killed save left: all of ours that has no manifest."""
        if self._folder.is_dir() and jax.process_index() == 0:
            finished = {self._directory(step).name for step in self.steps()}
            for rest in self._folder.iterdir():
                if rest.name not in finished and re.fullmatch(r"\d{8}(\.orbax-checkpoint-tmp.*)?", rest.name):
                    shutil.rmtree(rest) if rest.is_dir() and not rest.is_symlink() else rest.unlink()

    def _check_identity(self, step):
        saved = json.loads(self._manifest(step).read_text())["identity"]
        now = json.loads(json.dumps(self._identity))
        for name in sorted(saved.keys() | now.keys()):
            if saved.get(name) != now.get(name):
                raise FaceDepthError(
                    f"{self._folder} belongs to a run with {name} = {saved.get(name)!r}, not {now.get(name)!r}: "
                    "give the old value, or another --workdir."
                )


def save_weights(path: pathlib.Path, variables):
    """One net's `params` and `batch_stats` as safetensors: names joined by '/', float32, in flax's shapes."""
    flat = {
        "/".join(str(key.key) for key in keys): np.asarray(value)
        for keys, value in jax.tree_util.tree_flatten_with_path(variables)[0]
    }
    files.write_bytes(path, safetensors.numpy.save(flat))


def load_weights(path: pathlib.Path, like):
    """The same back, in the structure of `like`. Raises FaceDepthError if the file is not those weights."""
    try:
        flat = safetensors.numpy.load(path.read_bytes())
    except FileNotFoundError as error:
        raise FaceDepthError(f"There is no {path}: has the run been evaluated yet?") from error
    except (OSError, safetensors.SafetensorError) as error:
        raise FaceDepthError(f"{path} is no file of weights ({error}).") from error

    def pick(keys, value):
        name = "/".join(str(key.key) for key in keys)
        if name not in flat or flat[name].shape != value.shape:
            raise FaceDepthError(f"{path} does not fit the run's config.json: {name} is missing or of another shape.")
        return flat[name]

    return jax.tree_util.tree_map_with_path(pick, like)
