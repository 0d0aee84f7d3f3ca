"""devices.py: one device and four train alike. Four CPUs are had by a flag that only a fresh process can take."""

import os
import pathlib
import subprocess
import sys
import types

import jax
import pytest

from facedepth_jax import devices
from facedepth_jax.errors import FaceDepthError

ROOT = pathlib.Path(__file__).parents[1]

PROGRAM = """
import functools, sys
import jax, jax.numpy as jnp, numpy as np
from facedepth_jax import devices, steps
from facedepth_jax.data import pipeline
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.depth_code import DepthCode
from facedepth_jax.state import Net, adam, init_state

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
    {"gray": rng.integers(0, 256, shape, np.uint8), "depth_mm": rng.integers(500, 2500, shape).astype(np.uint16)}
    for _ in range(3)
]
for name, array in devices.put_batch(mesh, batches[0]).items():
    assert [shard.data.shape for shard in array.addressable_shards] == [(2, 32, 32)] * 4
    np.testing.assert_array_equal(array, batches[0][name])

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

method = steps.METHODS["cgan"]
modules = method.modules(2, jnp.dtype("float32"), 1)
nets = {name: Net(module, adam(2e-4, 0.5, 0.999)) for name, module in modules.items()}
step = jax.jit(functools.partial(method.step, nets=nets, code=DepthCode(), seed=1, lam=100.0))
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


def test_four_devices_train_as_one():
    # Without optimisation it compiles in half the time.
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_where_executables_are_kept(tmp_path, monkeypatch):
    """On a GPU in a folder that only the user can write; nowhere on a CPU, or where the user says otherwise."""
    kept = []
    monkeypatch.setattr(jax.config, "update", lambda name, value: kept.append((name, value)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    devices.keep_compiled()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    devices.keep_compiled()
    assert not kept and not os.listdir(tmp_path)

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    folder = tmp_path / "facedepth_jax"
    devices.keep_compiled()
    assert kept == [("jax_compilation_cache_dir", str(folder))] and folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    devices.keep_compiled()
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    folder.chmod(0o700)
    devices.keep_compiled()
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    devices.keep_compiled()
    assert len(kept) == 1


@pytest.mark.parametrize("process", ["2", "2/2@host:1", "0/2@host", "0/2", "-1/2@host:1", "Auto"])
def test_what_is_no_process_is_refused(process):
    with pytest.raises(FaceDepthError, match="give auto, or INDEX/COUNT@HOST:PORT"):
        devices.join(process)


def test_all_processes_meet_first_and_leave_sigterm_alone(monkeypatch):
    """SIGTERM to JAX's own service would be lost before the run looks; Gloo's first meeting ends after 30 s."""
    done = []
    monkeypatch.setattr(jax.config, "update", lambda *values: done.append(values))
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: done.append(args))
    monkeypatch.setattr(devices, "any_process", done.append)
    devices.join("1/2@host:1234")
    devices.join("auto")
    off = ("jax_enable_preemption_service", False)
    assert done == [off, ("host:1234", 2, 1), False, off, (), False]


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
