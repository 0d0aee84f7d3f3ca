"""Checkpoints that are verified before use, and weights for others.

`checkpoints/00000100/` is Orbax's, written asynchronously; `checkpoints/00000100.json` is our manifest, written when
the files lie on the disk: the run's identity, and the SHA-256 of every file. Orbax restores a flipped bit without a
word, so what does not match its manifest is not restored. `00000100.saving` is there from before a save until its
manifest is: what a kill left half is told from what lost its manifest, which is damage.
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
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from facedepth_jax import files
from facedepth_jax.errors import FaceDepthError

logger = logging.getLogger(__name__)

GONE = (TimeoutError, jax.errors.JaxRuntimeError)  # what a save raises when another process has gone: no failed save


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    return {str(p.relative_to(folder)): p for p in sorted(folder.rglob("*")) if p.is_symlink() or not p.is_dir()}


def _remove(path: pathlib.Path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flat(values: dict, above="") -> dict:
    """{"train": {"b1": 0.5}} -> {"train.b1": 0.5}"""
    flat = {}
    for name, value in values.items():
        flat |= _flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return flat


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): tuple(leaf.shape) for keys, leaf in leaves}


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: `WORKDIR/checkpoints`.
      identity: plain JSON values that must be the same when the run goes on: data, split, seed, batch size, nets.
      keep: how many of the latest are kept.
      insist: go on where the identity differs, and log how; what is saved then has the new one. `mismatched` is True
        where `restore` has done so.
    """

    def __init__(self, folder, identity: dict[str, Any], allow_mismatch: bool = False):
        self._folder = pathlib.Path(os.path.abspath(folder))
        self._identity = identity
        self._keep = 3
        self._allow_mismatch = allow_mismatch
        self.mismatched = False  # True once a checkpoint with another identity was restored
        self._pending = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1)

    def _directory(self, step):
        return self._folder / f"{step:08d}"

    def _manifest(self, step):
        return self._folder / f"{step:08d}.json"

    def _mark(self, step):
        return self._folder / f"{step:08d}.saving"

    def steps(self) -> list[int]:
        """Steps of the checkpoints, ascending; damaged ones included, unfinished ones not."""
        names = os.listdir(self._folder) if self._folder.is_dir() else []
        found = {int(name[:8]) for name in names if re.fullmatch(r"[0-9]{8}(\.json)?", name)}
        return sorted(step for step in found if f"{step:08d}.json" in names or f"{step:08d}.saving" not in names)

    def save(self, step: int, state, best_step: int | None = None):
        """Starts to save; waits for the save before.

        Args:
          state: a pytree of arrays; it may be donated at once.
          best_step: the step that did best so far; its checkpoint, if there is one, is kept beside the latest.

        Raises:
          FaceDepthError: this save could not start, or the one before failed.
          GONE: another process has gone.
        """
        self.finish()
        directory = self._directory(step)
        try:
            if jax.process_index() == 0:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._mark(step).touch()
                self._manifest(step).unlink(missing_ok=True)
                _remove(directory)  # a damaged one, of which an older one took the place
            response = ocp.save_async(directory, state)
        except GONE:
            raise
        except OSError as error:
            raise FaceDepthError(f"Cannot save the checkpoint {directory}: {error.strerror or error}.") from error
        self._pending = self._thread.submit(self._seal, step, response, best_step)

    def _seal(self, step, response, best_step):
        response.result()
        if jax.process_index():
            return
        hashes = {name: files.sha256(path) for name, path in _files(self._directory(step)).items()}
        manifest = {"step": step, "identity": self._identity, "files": hashes}
        files.write_json(self._manifest(step), files.sealed(manifest))
        self._mark(step).unlink()
        steps = self.steps()
        latest = [known for known in steps if known <= step][-self._keep :]  # what is newer was damaged: see restore
        for old in set(steps) - {*latest, best_step}:
            try:
                self._mark(old).touch()  # or half of it would look damaged after a kill, and never go
                _remove(self._manifest(old))
                _remove(self._directory(old))
                self._mark(old).unlink()
            except OSError as error:  # NFS, say: a file still open somewhere. The new one is good
                logger.warning("The old checkpoint %s is left: it cannot be removed (%s).", self._directory(old), error)

    def check(self):
        """Raises FaceDepthError if the last save has failed by now. Does not wait, for every step."""
        if self._pending is not None and self._pending.done():
            self.finish()

    def finish(self):
        """Waits until the last save lies on the disk. Raises FaceDepthError if it failed, GONE as `save` does."""
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            pending.result()
        except (FaceDepthError, *GONE):
            raise
        except Exception as error:
            raise FaceDepthError(
                f"Saving a checkpoint to {self._folder} failed ({_first_line(error)}): the one before it is the newest."
            ) from error

    def _damage(self, step) -> str | None:
        """What is wrong with a checkpoint, None if it is as it was written."""
        for path in (self._manifest(step), self._directory(step)):
            if path.is_symlink():
                return f"{path.name} is a symbolic link"
        name = self._manifest(step).name
        try:
            manifest = files.read_json(self._manifest(step))
            hashes, identity, there = manifest["files"], manifest["identity"], manifest["step"]
        except (FaceDepthError, KeyError, TypeError) as error:
            return f"its manifest {name} cannot be used ({error})"
        if not files.is_sealed(manifest):
            return f"its manifest {name} is not as it was written"
        if not (isinstance(hashes, dict) and hashes and isinstance(identity, dict) and there == step):
            return f"its manifest {name} lists no files, no identity or another step"
        found = _files(self._directory(step))
        for name in sorted(hashes.keys() | found.keys()):
            if name not in found:
                return f"{name} is missing"
            if found[name].is_symlink() or not found[name].is_file():
                return f"{name} is a symbolic link or no plain file"
            if name not in hashes:
                return f"{name} does not belong to it"
            try:
                if files.sha256(found[name]) != hashes[name]:
                    return f"{name} is not as it was written"
            except OSError as error:
                return f"{name} cannot be read ({error.strerror})"
        return None

    def restore(self, like):
        """The newest checkpoint that verifies, placed as `like`, a state, is; None if none was ever finished.

        Raises FaceDepthError if there are checkpoints and all are damaged, if they are another run's, or if the state
        does not fit.
        """
        # The first process chooses: others could see other files, and would wait for each other for ever.
        chosen = self._choose() if jax.process_index() == 0 else -1
        chosen, mismatched = multihost_utils.broadcast_one_to_all(np.array([chosen, self.mismatched], np.int32))
        step, self.mismatched = int(chosen), bool(mismatched)
        if step < 0:
            return None
        if not self._directory(step).is_dir():
            raise FaceDepthError(
                f"There is no {self._directory(step)}, with which the first process goes on: "
                "WORKDIR must be one that all hosts share."
            )
        self._check_shapes(step, like)
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        return ocp.load(self._directory(step), like)

    def _choose(self) -> int:
        """The newest step that verifies, -1 if none was ever finished."""
        self._clean()
        for step in reversed(self.steps()):
            damage = self._damage(step)
            if not damage:
                self._check_identity(step)
                return step
            logger.warning("The checkpoint of step %d is damaged: %s. Taking an older one.", step, damage)
        if self.steps():
            raise FaceDepthError(
                f"All checkpoints in {self._folder} are damaged: put back a copy, or remove the folder to start anew."
            )
        return -1

    def _clean(self):
        """Removes what a killed save left."""
        if not self._folder.is_dir():
            return
        finished = {f"{step:08d}" for step in self.steps()}
        rests = [p for p in self._folder.iterdir() if re.fullmatch(r"[0-9]{8}(\.orbax-checkpoint-tmp.*)?", p.name)]
        for rest in [p for p in rests if p.name not in finished] + [*self._folder.glob("[0-9]*.saving")]:
            _remove(rest)

    def _check_identity(self, step):
        then = _flat(files.read_json(self._manifest(step))["identity"])
        now = _flat(json.loads(json.dumps(self._identity)))
        differ = [name for name in sorted(then.keys() | now.keys()) if then.get(name) != now.get(name)]
        if not differ:
            return
        text = ", ".join(f"{name} = {then.get(name)!r} (not {now.get(name)!r})" for name in differ)
        if not self._allow_mismatch:
            raise FaceDepthError(
                f"{self._folder} belongs to a run with {text}: give the old values, another --workdir, "
                "or --allow_mismatch to go on with the new ones."
            )
        self.mismatched = True
        logger.warning("Going on, as mismatched, from a checkpoint with %s.", text)

    def _check_shapes(self, step, like):
        then, now = _shapes(ocp.metadata(self._directory(step)).metadata), _shapes(like)
        for name in sorted(then.keys() | now.keys()):
            if then.get(name) != now.get(name):
                raise FaceDepthError(
                    f"The checkpoint {self._directory(step)} does not fit the nets of this run: {name} has the shape "
                    f"{then.get(name)} there and {now.get(name)} here (None: not there): take another --workdir."
                )


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:500]


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
    except (OSError, safetensors.SafetensorError, KeyError) as error:  # KeyError: a type that NumPy does not have
        raise FaceDepthError(f"{path} is no file of weights ({error}).") from error

    def pick(keys, value):
        name = "/".join(str(key.key) for key in keys)
        if name not in flat or (flat[name].shape, flat[name].dtype) != (value.shape, value.dtype):
            raise FaceDepthError(
                f"{path} does not fit the run's config.json: {name} is missing, or of another shape or type."
            )
        return flat[name]

    return jax.tree_util.tree_map_with_path(pick, like)
