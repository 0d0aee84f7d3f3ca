"""Devices: one axis, "data". The state is on all of them, a batch is divided among them.

Under `jit` a batch is one array, so batch norm uses the statistics of the global batch: one device and eight train
alike.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from facedepth_jax.errors import FaceDepthError


def make_mesh() -> Mesh:
    """All devices of all processes, in one row."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


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


def put_batch(mesh: Mesh, batch):
    """This process's share of a batch, a dict of NumPy arrays -> the global batch on the devices."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(divided(mesh), np.asarray(x)), batch)


def any_process(flag: bool) -> bool:
    """True in every process if the flag is set in any. All must call it at the same place; it waits for the devices.

    With one process it is the flag, and costs nothing.
    """
    return bool(flag) if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())
