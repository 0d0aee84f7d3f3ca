"""devices.py: one device and four train alike. Four CPUs are had by a flag that only a fresh process can take."""

import os
import pathlib
import subprocess
import sys
import types

import jax
import pytest

from facedepth_jax import devices

ROOT = pathlib.Path(__file__).parents[1]

PROGRAM = """
import functools, sys
import jax, numpy as np
from facedepth_jax import config, devices, methods
from facedepth_jax.data import pipeline
from facedepth_jax.errors import FaceDepthError

sys.path.insert(0, "tools")
import golden

mesh = devices.make_mesh()
assert mesh.size == jax.device_count() == 4
for size in (0, 6, -4):
    try:
        devices.check_batch_size(mesh, size, "train.batch_size")
    except FaceDepthError as error:
        assert f"train.batch_size is {size}" in str(error) and "4 devices" in str(error)
    else:
        raise AssertionError(size)
devices.check_batch_size(mesh, 8, "train.batch_size")

rng = np.random.default_rng(0)
shape = (8, 32, 32)
batches = [
    {
        "gray": rng.integers(0, 256, shape, np.uint8),
        "depth_mm": rng.integers(500, 2500, shape).astype(np.uint16),
        "distance_mm": np.full(8, 900, np.float32),
    }
    for _ in range(3)
]
for name, array in devices.put_batch(mesh, batches[0]).items():
    assert [shard.data.shape for shard in array.addressable_shards] == [(2, *array.shape[1:])] * 4
    np.testing.assert_array_equal(array, batches[0][name])
assert devices.put_batch(mesh, np.zeros((8, 2**21), np.float32)).is_ready()

arrays = batches[0] | {"subject": np.arange(8, dtype=np.int32)}
bytes_held = sum(array.nbytes for array in arrays.values())
drawn, read = [], []
for memory_bytes in (None, bytes_held / devices.EXAMPLES_SHARE - 1, bytes_held / devices.EXAMPLES_SHARE):
    if memory_bytes is not None:  # None: a CPU's, which is the host's
        devices._memory_bytes = lambda: memory_bytes
    examples, put = devices.place_examples(mesh, arrays)
    read.append(sorted(examples))
    from_pipeline = pipeline.batches(examples, np.array([6, 1, 2, 3, 5]), batch_size=4, seed=0)
    drawn.append([put(next(from_pipeline)) for _ in range(5)])
assert read == [sorted(arrays), sorted(arrays), ["row"]], read
for sent, in_place in zip(drawn[0], drawn[2], strict=True):
    assert sorted(sent) == sorted(in_place) == sorted(arrays)
    for name in arrays:
        assert in_place[name].dtype == arrays[name].dtype and in_place[name].sharding == sent[name].sharding
        np.testing.assert_array_equal(in_place[name], sent[name])

for method, changes in (
    ("cgan", {"loss.lam": 100.0}),
    ("relief", {"train.learning_rate": 2e-4, "train.average_decay": 0.0}),  # augmented
):
    values = config.base(method)
    values.update_from_flattened_dict({"width": 2} | changes)
    nets = methods.build(values, 1)
    step = jax.jit(methods.make_step(values, nets, config.depth_code(values)))
    one = golden.start(nets)
    four = jax.device_put(one, devices.replicated(mesh))
    for batch in batches:
        one, metrics_one = step(one, batch)
        four, metrics_four = step(four, devices.put_batch(mesh, batch))
    assert all(x.sharding.is_fully_replicated and len(x.addressable_shards) == 4 for x in jax.tree.leaves(four))
    for name, value in metrics_one.items():
        np.testing.assert_allclose(metrics_four[name], value, rtol=1e-4, err_msg=name)
    for name in nets:  # not the optimiser's state: what it does shows in the parameters
        a, b = ((net.params, net.batch_stats) for net in (one.nets[name], four.nets[name]))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5), a, b)  # a step is up to 2e-4
"""


@pytest.mark.slow
def test_four_devices_train_as_one():
    env = os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_devices_of_a_process_are_side_by_side(monkeypatch):
    """As `share` divides a batch. JAX numbers the chips of a TPU slice by their place, which crosses hosts."""
    slice_4x2 = [types.SimpleNamespace(id=i, process_index=i // 2 % 2) for i in (3, 0, 6, 1, 4, 7, 2, 5)]
    monkeypatch.setattr(jax, "devices", lambda: slice_4x2)
    monkeypatch.setattr(devices, "Mesh", lambda row, names, axis_types: row)
    row = devices.make_mesh()
    assert [(device.process_index, device.id) for device in row] == [
        *((0, 0), (0, 1), (0, 4), (0, 5)),
        *((1, 2), (1, 3), (1, 6), (1, 7)),
    ]
