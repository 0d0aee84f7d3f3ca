"""What importing the package sets for the process, and leaves alone."""

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource
import facedepth_jax
faults = []
for _ in range(5):  # arrays of 64 MiB, one after another
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"x") * 2**26
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(max(faults[1:]))
"""


def printed(code, **env):
    env = {name: v for name, v in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))} | env
    return subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, check=True, text=True).stdout


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_freed_memory_is_kept():
    """By the kernel's count: 2**26 bytes are 16,384 pages of 4 KiB, or 32 large ones."""
    assert int(printed(FAULTS)) < 16
    assert int(printed(FAULTS, MALLOC_TRIM_THRESHOLD_="131072")) >= 32  # the user's own


@pytest.mark.skipif(sys.platform != "linux", reason="where the library of XLA's flags is looked for")
@pytest.mark.parametrize("flags", ["--xla_cpu_experimental_ynn_fusion_type=", "--xla_cpu_max_isa=AVX2"])
def test_the_users_flags_stay(flags):
    found = printed("import facedepth_jax, os; print(os.environ['XLA_FLAGS'])", XLA_FLAGS=flags).strip()
    assert found.startswith(flags) and found.count("ynn_fusion_type") == 1
