"""Set up the test run: a process as the programs have it, on the CPU, and what was compiled kept from run to run.

What stands in the environment holds for pytest-xdist's workers and for the programs that tests start.
"""

import os
import pathlib

from facedepth_jax import runtime

runtime.tune()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# Only values count here: without optimisation XLA compiles in half the time.
if "xla_backend_optimization_level" not in os.environ["XLA_FLAGS"]:
    os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(pathlib.Path(__file__).parents[1] / ".pytest_cache/compiled")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import pytest
from small import people_config, small_batches, write_people

from facedepth_jax import train


@pytest.fixture(scope="session")
def people_dir(tmp_path_factory):
    return write_people(tmp_path_factory.mktemp("people") / "arrays").path


@pytest.fixture(scope="session")
def ae_run(people_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "ae"
    with small_batches():
        train.run(people_config("ae", people_dir), workdir)
    return workdir


@pytest.fixture(scope="session")
def verifier_run(people_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "verifier"
    with small_batches():
        train.run(people_config("verifier", people_dir), workdir)
    return workdir


@pytest.fixture(name="small_batches", scope="module")
def _small_batches():
    with small_batches():
        yield
