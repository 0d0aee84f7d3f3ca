"""Place arrays on devices: one mesh axis, "data"; the state is on all of them, a batch is divided among them.

Under `jit` a batch is one array, so batch norm uses the statistics of the global batch: one device and eight train
alike.
"""

import functools

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from facedepth_jax import runtime
from facedepth_jax.errors import FaceDepthError

EXAMPLES_SHARE = 0.25  # of a device's memory, at the most; the rest is the training's


def make_mesh() -> Mesh:
    """Put all devices of all processes in one row, process by process."""
    # Not jax.make_mesh: it goes by a TPU's topology, but `share` wants each process's devices side by side, in order.
    row = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(row), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Place the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def divided(mesh: Mesh) -> NamedSharding:
    """Divide the first axis among the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_batch_size(mesh: Mesh, batch_size: int, name: str):
    """Raise FaceDepthError unless every device gets the same number of examples."""
    if batch_size <= 0 or batch_size % mesh.size:
        raise FaceDepthError(f"{name} is {batch_size}: it must be a multiple of the {mesh.size} devices.")


def put_everywhere(mesh: Mesh, tree):
    """Put a pytree of arrays, the same in every process or divided among them, whole on every device.

    `jax.device_put` makes arrays that Orbax cannot save where each process has one device.
    """
    return _everywhere(mesh)(tree)


def local(tree):
    """Take a pytree of arrays that every device has whole, on this process's first device alone."""
    return jax.tree.map(lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x, tree)


@functools.cache
def _everywhere(mesh):
    return jax.jit(lambda tree: tree, out_shardings=replicated(mesh))


def share(batch: np.ndarray) -> np.ndarray:
    """Cut out this process's part of a batch (B, ...) that all know, B a multiple of the devices."""
    size = len(batch) // jax.process_count()
    return batch[jax.process_index() * size :][:size]


def put_batch(mesh: Mesh, batch):
    """Put this process's share of a batch, a pytree of NumPy arrays, together with the others' on the devices.

    On a CPU it is there on return: what still waits for its arguments is not computed in this thread, see
    `runtime.dispatch_synchronously`. A GPU would wait for all that it computes before.
    """
    placed = jax.tree.map(lambda x: jax.make_array_from_process_local_data(divided(mesh), np.asarray(x)), batch)
    return jax.block_until_ready(placed) if jax.default_backend() == "cpu" else placed


def place_examples(mesh: Mesh, arrays):
    """Keep the data set on the devices if it fits; batches are identical either way.

    On a device with room each holds all of them: then row numbers travel, and a batch is a gather there. A CPU's memory
    is the host's: nothing is copied, the arrays may be larger than it.

    Args:
      arrays: by name, first axis N, memory-mapped or not; all of them, the same in every process.

    Returns:
      The arrays for the pipeline to read, and a function that puts its batches on the devices.
    """
    if runtime.any_process(sum(array.nbytes for array in arrays.values()) > EXAMPLES_SHARE * _memory_bytes()):
        return arrays, functools.partial(put_batch, mesh)
    whole = {name: jax.make_array_from_process_local_data(replicated(mesh), array) for name, array in arrays.items()}
    gather = jax.jit(lambda whole, rows: jax.tree.map(lambda x: x[rows], whole), out_shardings=divided(mesh))

    def put(batch):
        batch = put_batch(mesh, batch)
        return gather(whole, batch.pop("row")) | batch

    return {"row": np.arange(len(next(iter(arrays.values()))), dtype=np.int32)}, put


def _memory_bytes():
    """Return the memory of this process's smallest device; 0 where it is the host's, as a CPU's is."""
    return min((device.memory_stats() or {}).get("bytes_limit", 0) for device in jax.local_devices())
