"""Devices: one axis, "data". The state is on all of them, a batch is divided among them.

Under `jit` a batch is one array, so batch norm uses the statistics of the global batch: one device and eight train
alike.
"""

import functools
import os
import pathlib
import re

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from facedepth_jax.errors import FaceDepthError

EXAMPLES_SHARE = 0.25  # of a device's memory, at the most; the rest is the training's


def join(process: str):
    """Makes this one of several processes that train together. Before anything else asks for a device.

    If they do not come within five minutes, or one of them ends without the others, JAX aborts the process: 134.

    Args:
      process: "auto" where JAX finds the others by itself: on the hosts of a TPU slice, or in a Slurm step with a task
        for each GPU. Else "INDEX/COUNT@HOST:PORT", HOST being that of process 0, PORT a free one there.

    Raises:
      FaceDepthError: for another text, or if there is nothing to find them by.
    """
    told = re.fullmatch(r"(\d+)/(\d+)@(.+:\d+)", process)
    if process != "auto" and not (told and int(told[1]) < int(told[2])):
        raise FaceDepthError(f"--process is {process!r}: give auto, or INDEX/COUNT@HOST:PORT, as 0/2@node1:1234.")
    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM for itself until the run takes it
    if told:  # with all devices of the host, whatever a scheduler's variables say
        jax.distributed.initialize(told[3], int(told[2]), int(told[1]), cluster_detection_method="deactivate")
    else:
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise FaceDepthError(f"--process=auto finds no TPU slice and no Slurm step ({error}).") from error
    any_process(False)  # all meet while none has work of its own: Gloo's first meeting waits 30 s, later ones longer


def keep_compiled():
    """What GPUs and TPUs run is kept compiled in ~/.cache/facedepth_jax, so that a run that goes on begins at once.

    The user's JAX_COMPILATION_CACHE_DIR wins. A folder that others can write is not used, for it holds machine code.
    Not for CPUs: some refuse at every load what they have written (JAX's issue 38445), and a home may be shared by
    unlike ones.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.default_backend() == "cpu":
        return
    folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "facedepth_jax"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stat = folder.stat()
    except OSError:  # no home, or a read-only one
        return
    if stat.st_uid == os.getuid() and not stat.st_mode & 0o022:
        jax.config.update("jax_compilation_cache_dir", str(folder))


def make_mesh() -> Mesh:
    """All devices of all processes, in one row, process by process."""
    # Not jax.make_mesh: it goes by a TPU's topology, but `share` wants each process's devices side by side, in order.
    row = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(row), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def divided(mesh: Mesh) -> NamedSharding:
    """The first axis is divided among the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(mesh: Mesh, batch_size: int, name: str):
    """Raises FaceDepthError unless every device gets the same number of examples."""
    if batch_size <= 0 or batch_size % mesh.size:
        raise FaceDepthError(f"{name} is {batch_size}: it must be a multiple of the {mesh.size} devices.")


def put_everywhere(mesh: Mesh, tree):
    """A pytree of arrays, the same in every process or divided among them -> whole on every device. `jax.device_put`
    makes arrays that Orbax cannot save where each process has one device."""
    return _everywhere(mesh)(tree)


def local(tree):
    """A pytree of arrays that every device has whole -> on this process's first device alone."""
    return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)


@functools.cache
def _everywhere(mesh):
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def share(batch: np.ndarray) -> np.ndarray:
    """This process's part of a batch (B, ...) that all know, B a multiple of the devices."""
    size = len(batch) // jax.process_count()
    return batch[jax.process_index() * size :][:size]


def put_batch(mesh: Mesh, batch):
    """This process's share of a batch, a dict of NumPy arrays -> the global batch on the devices."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(divided(mesh), np.asarray(x)), batch)


def place_examples(mesh: Mesh, arrays):
    """Where the examples live, which the batches do not show.

    On a device with room each holds all of them: then row numbers travel, and a batch is a gather there. A CPU's memory
    is the host's: nothing is copied, the arrays may be larger than it.

    Args:
      arrays: by name, first axis N, memory-mapped or not; all of them, the same in every process.

    Returns:
      What the pipeline shall read, and what makes global batches on the devices of this process's share of its batches.
    """
    if any_process(sum(array.nbytes for array in arrays.values()) > EXAMPLES_SHARE * _memory_bytes()):
        return arrays, functools.partial(put_batch, mesh)
    whole = {name: jax.make_array_from_process_local_data(replicated(mesh), array) for name, array in arrays.items()}
    gather = jax.jit(lambda whole, rows: jax.tree.map(lambda x: x[rows], whole), out_shardings=divided(mesh))

    def put(batch):
        batch = put_batch(mesh, batch)
        return gather(whole, batch.pop("row")) | batch

    return {"row": np.arange(len(next(iter(arrays.values()))), dtype=np.int32)}, put


def _memory_bytes():
    """Of this process's device that has least; 0 where that is the host's, as a CPU's is."""
    return min((device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices())


def any_process(flag: bool) -> bool:
    """True in every process if the flag is set in any. All must call it at the same place; it waits for the devices.

    With one process it is the flag, and costs nothing.
    """
    return bool(flag) if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())
