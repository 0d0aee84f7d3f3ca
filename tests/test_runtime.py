"""runtime.py: how a program's process is set up, what the user's own settings change about it, and the stop signal."""

import ctypes
import os
import pathlib
import platform
import signal
import subprocess
import sys

import jax
import pytest

from facedepth_jax import runtime
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.runtime import StopSignal

ROOT = pathlib.Path(__file__).parents[1]
FAULTS = """
import resource
from facedepth_jax import runtime
runtime.tune()
faults = []
for _ in range(5):  # arrays of 64 MiB, one after another
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"x") * 2**26
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(max(faults[1:]))
"""


def printed(code, **env):
    """Run code in a fresh process without settings; return what it prints."""
    ours = ("MALLOC_", "GLIBC_TUNABLES", "XLA_FLAGS", "OPENCV_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | env
    return subprocess.run([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, check=True, text=True).stdout


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_freed_memory_is_kept():
    """By the kernel's count: 2**26 bytes are 16,384 pages of 4 KiB, or 32 large ones."""
    assert int(printed(FAULTS)) < 16
    assert int(printed(FAULTS, MALLOC_TRIM_THRESHOLD_="131072")) >= 32  # the user's own


STEPS = """
import resource
from facedepth_jax import runtime
runtime.tune()
import jax
import numpy as np
from facedepth_jax import config, devices, methods
from facedepth_jax.state import init_state
runtime.dispatch_synchronously()
config = config.base("ae")
config.width = 16
nets, mesh = methods.build(config, 1), devices.make_mesh()
state = devices.put_everywhere(mesh, init_state(nets, 0, 96))
step = jax.jit(methods.make_step(config, nets, methods.steps.DepthCode()), donate_argnums=0)
images, faults = np.full((16, 96, 96), 900, np.uint16), []
batch = {"gray": images.astype(np.uint8), "depth_mm": images, "distance_mm": np.full(16, 900, np.float32)}
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    state, metrics = step(state, devices.put_batch(mesh, batch))
    jax.block_until_ready(metrics)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(max(faults[2:]))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_the_memory_of_a_training_step_is_kept():
    """Some 80 MB, of which a thread of its own, as JAX's default, gets each page anew at every step."""
    assert int(printed(STEPS)) < 10_000


@pytest.mark.skipif(sys.platform != "linux", reason="where the library of XLA's flags is looked for")
@pytest.mark.parametrize("flags", ["--xla_cpu_experimental_ynn_fusion_type=", "--xla_cpu_max_isa=AVX2"])
def test_the_users_flags_stay(flags, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(runtime, "_keep_freed_memory", lambda: None)  # this process has it already
    monkeypatch.setenv("OPENCV_IO_MAX_IMAGE_PIXELS", "7")
    runtime.tune()
    runtime.tune()
    found = os.environ["XLA_FLAGS"]
    assert found.startswith(flags) and all(found.count(flag) == 1 for flag in runtime.OLDER_KERNELS)
    assert os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] == "7"


@pytest.mark.skipif(sys.platform != "linux", reason="where the library of XLA's flags is looked for")
def test_inference_has_the_newer_fusions_but_where_they_are_the_users_choice(monkeypatch):
    monkeypatch.setattr(runtime, "_keep_freed_memory", lambda: None)
    flag = "xla_cpu_use_fusion_emitters"
    for flags, expected in {"": {flag: True}, f"--{flag}=false": {}, f"--{flag}=true": {}}.items():
        monkeypatch.setenv("XLA_FLAGS", flags)
        assert runtime.inference_options() == {}  # a host's process, which has not been tuned
        runtime.tune()
        assert runtime.inference_options() == expected
        jax.jit(lambda x: x + 1, compiler_options=expected)(1)  # the compiler knows it
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setenv("XLA_FLAGS", "")
    runtime.tune()
    assert runtime.inference_options() == {}


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_program_prints_whatever_the_encoding(encoding):
    """Arrows in tables, names of files; also one that is not UTF-8."""
    code = "from facedepth_jax import runtime; runtime.tune(); print('\u4eba \u2193 \\udcff.png')"
    found = printed(code, PYTHONIOENCODING=encoding).strip()
    assert found == ("\u4eba \u2193 \\udcff.png" if encoding == "utf-8" else r"\u4eba \u2193 \udcff.png")


def test_all_programs_set_up_their_process():
    for path in [*ROOT.glob("facedepth_jax/*.py"), *ROOT.glob("facedepth_jax/*/*.py"), ROOT / "launch/study.py"]:
        text = path.read_text(encoding="utf-8")
        if 'if __name__ == "__main__"' in text:
            assert "\nruntime.tune()\n" in text, path


def test_no_tuning_stops_a_program(monkeypatch):
    """As on Windows, where a C library cannot be asked for by None, or where jaxlib is not to be found."""
    for name in ("_prefer_older_kernels", "_keep_freed_memory"):
        monkeypatch.setattr(runtime, name, lambda: ctypes.CDLL(3.5))
    runtime.tune()
    monkeypatch.delattr(os, "getuid")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    runtime.keep_compiled()


IMPORT = """
import os, signal, sys, time
def state():
    return dict(os.environ), [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
before, modules, start = state(), set(sys.modules), time.perf_counter()
import facedepth_jax
seconds = time.perf_counter() - start
assert state() == before
assert facedepth_jax.__version__ and "load" not in vars(facedepth_jax)
brought = {name.partition(".")[0] for name in set(sys.modules) - modules} - sys.stdlib_module_names
assert brought == {"facedepth_jax"}, brought
print(seconds)
"""


def test_importing_the_package_is_quick_and_changes_nothing():
    assert min(float(printed(IMPORT)) for _ in range(3)) < 0.1


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's malloc")
def test_importing_the_package_leaves_malloc_alone():
    """Else a host's process would keep all the memory that it has ever had."""
    code = FAULTS.replace("from facedepth_jax import runtime\nruntime.tune()", "import facedepth_jax.estimator")
    assert code != FAULTS and int(printed(code)) >= 32


def test_where_executables_are_kept(tmp_path, monkeypatch):
    """On a GPU in a folder that only the user can write; nowhere on a CPU, or where the user says otherwise."""
    kept = []
    monkeypatch.setattr(jax.config, "update", lambda name, value: kept.append((name, value)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    runtime.keep_compiled()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    runtime.keep_compiled()
    assert not kept and not os.listdir(tmp_path)

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    folder = tmp_path / "facedepth_jax"
    runtime.keep_compiled()
    assert kept == [("jax_compilation_cache_dir", str(folder))] and folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    runtime.keep_compiled()
    monkeypatch.setattr(os, "getuid", lambda: folder.stat().st_uid + 1)
    folder.chmod(0o700)
    runtime.keep_compiled()
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    runtime.keep_compiled()
    assert len(kept) == 1


@pytest.mark.parametrize("process", ["2", "2/2@host:1", "0/2@host", "0/2", "-1/2@host:1", "Auto"])
def test_what_is_no_process_is_refused(process):
    with pytest.raises(FaceDepthError, match="give auto, or INDEX/COUNT@HOST:PORT"):
        runtime.join(process)


def test_all_processes_meet_first_and_leave_sigterm_alone(monkeypatch):
    """SIGTERM to JAX's own service would be lost before the run looks; Gloo's first meeting ends after 30 s."""
    done = []
    monkeypatch.setattr(jax.config, "update", lambda *values: done.append(values))
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **_: done.append(args))
    monkeypatch.setattr(runtime, "any_process", done.append)
    runtime.join("1/2@host:1234")
    runtime.join("auto")
    off = ("jax_enable_preemption_service", False)
    assert done == [off, ("host:1234", 2, 1), False, off, (), False]


def test_the_first_signal_is_a_wish_and_the_second_of_its_kind_an_order():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with StopSignal() as stop:
        assert not stop.seen
        signal.raise_signal(signal.SIGTERM)
        assert stop.seen and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        signal.raise_signal(signal.SIGINT)  # launch/run.sh may send both for one wish
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert {number: signal.getsignal(number) for number in before} == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_second_of_a_kind_ends_the_process(number):
    code = f"""
import signal
from facedepth_jax.runtime import StopSignal
with StopSignal() as stop:
    signal.raise_signal({number})
    print(stop.seen, flush=True)
    signal.raise_signal({number})
    print("still there")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-number, "True\n"), done.stderr
