"""Set up the process of a program: tuning, several processes, the compilation cache, the signal to stop."""

import contextlib
import importlib.util
import mmap
import os
import pathlib
import re
import signal
import sys

from facedepth_jax.errors import FaceDepthError

NEWER_FUSIONS = "xla_cpu_use_fusion_emitters"
OLDER_KERNELS = {
    "xla_cpu_experimental_ynn_fusion_type": "-individual_convolution",  # its matrix products are kept
    NEWER_FUSIONS: "0",  # a user's "false" holds for inference too
}


def tune():
    """Tune this process for speed, never over the user's own setting, and make printing never fail.

    Programs call it before JAX and OpenCV start.
    """
    # OpenCV reads this when it is imported: an image of a terabyte of pixels is refused before it is decoded.
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(64 * 1024 * 1024))
    if hasattr(sys.stdout, "reconfigure"):  # what its encoding lacks is written as \u2193, as on stderr: never an error
        sys.stdout.reconfigure(errors="backslashreplace")
    for tuning in (_prefer_older_kernels, _keep_freed_memory):
        with contextlib.suppress(Exception):  # another system or C library: no tuning may ever stop a program
            tuning()


def _prefer_older_kernels():
    """Avoid XLA's newest convolutions and fusions, which are slower on a CPU than the ones before (docs/speed.md)."""
    library = pathlib.Path(importlib.util.find_spec("jaxlib").origin).with_name("libjax_common.so")
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for flag, value in OLDER_KERNELS.items():
            flags = os.environ.get("XLA_FLAGS", "")
            # A flag that jaxlib does not know would end the process.
            if flag not in flags and content.find(flag.encode()) >= 0:
                os.environ["XLA_FLAGS"] = f"{flags} --{flag}={value}".strip()


def inference_options() -> dict:
    """Return the compiler's options for a generator's inference: there the newer fusions are as quick or quicker."""
    import jax

    switched_off = f"--{NEWER_FUSIONS}={OLDER_KERNELS[NEWER_FUSIONS]}" in os.environ.get("XLA_FLAGS", "").split()
    return {NEWER_FUSIONS: True} if switched_off and jax.default_backend() == "cpu" else {}


def _keep_freed_memory():
    """Let glibc keep freed memory: otherwise every step takes its arrays from the kernel again, page by page.

    In threads other than the first this holds for arrays up to 64 MiB, glibc's limit: see `dispatch_synchronously`.
    """
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    import ctypes

    mallopt = ctypes.CDLL(None).mallopt
    mallopt(-4, 0)  # M_MMAP_MAX: arrays get no pages of their own, which freeing would give back
    mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
    mallopt(-2, 2**26)  # M_TOP_PAD: kept, or asked for at once, at the end of an arena


def join(process: str):
    """Make this one of several processes that train together. Call it before anything else asks for a device.

    If the others do not come within five minutes, or one of them ends without the rest, JAX aborts the process: 134.

    Args:
      process: "auto" where JAX finds the others by itself: on the hosts of a TPU slice, or in a Slurm step with a task
        for each GPU. Else "INDEX/COUNT@HOST:PORT", HOST being that of process 0, PORT a free one there.

    Raises:
      FaceDepthError: the text is neither, or nothing shows where the others are.
    """
    import jax

    given = re.fullmatch(r"(\d+)/(\d+)@(.+:\d+)", process)
    if process != "auto" and not (given and int(given[1]) < int(given[2])):
        raise FaceDepthError(f"--process is {process!r}: give auto, or INDEX/COUNT@HOST:PORT, as 0/2@node1:1234.")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away from the training loop
    if given:  # all devices of the host, whatever a scheduler's variables say
        jax.distributed.initialize(given[3], int(given[2]), int(given[1]), cluster_detection_method="deactivate")
    else:
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise FaceDepthError(f"--process=auto finds no TPU slice and no Slurm step ({error}).") from error
    any_process(False)  # all meet while none has work of its own: Gloo waits 30 s at the first meeting, longer later


def any_process(flag: bool) -> bool:
    """Return True in every process if the flag is set in any. All must call it at the same place; it waits for them."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(flag) if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.array(flag)).any())


def dispatch_synchronously():
    """Let a CPU compute in the calling thread; where it stands for several devices, each keeps its own thread.

    The first thread keeps the memory of a training step, whatever its size: no page of it is asked for twice. Programs
    call it before anything asks for a device.
    """
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)  # which no variable of the environment does


def keep_compiled():
    """Keep compiled GPU and TPU programs in ~/.cache/facedepth_jax, so that a resumed run begins at once.

    The user's JAX_COMPILATION_CACHE_DIR wins. A folder that others can write is not used, as it holds machine code.
    CPUs are left out: some refuse at every load what they have written (JAX's issue 38445), and unlike ones may share
    a home.
    """
    import jax

    if "JAX_COMPILATION_CACHE_DIR" in os.environ or jax.default_backend() == "cpu":
        return
    folder = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "facedepth_jax"
    with contextlib.suppress(OSError, AttributeError):  # no home, or a read-only one; a system without getuid
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        stat = folder.stat()
        if stat.st_uid == os.getuid() and not stat.st_mode & 0o022:
            jax.config.update("jax_compilation_cache_dir", str(folder))


class StopSignal:
    """SIGTERM and SIGINT as a flag, while it is armed; a second signal of a kind ends the process at once.

    The training loop arms it for its steps alone. Everywhere else a signal's default action ends the process, which is
    harmless: the same command goes on from what is saved.
    """

    seen = False

    def __enter__(self):
        self._before = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number, _):
        self.seen = True
        signal.signal(number, signal.SIG_DFL)
