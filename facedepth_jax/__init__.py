"""Facial depth maps from gray images: the system of Pini et al. (3DV 2018) in JAX and Flax.

What has to be in the environment before OpenCV and JAX start is set here, and never over the user's own setting.
"""

import contextlib
import glob
import importlib.util
import mmap
import os

__version__ = "0.1.0"


def _jaxlib_knows(flag):
    """True if the installed jaxlib has this XLA flag: an unknown one would end the process."""
    spec = importlib.util.find_spec("jaxlib")
    folder = os.path.dirname(spec.origin) if spec and spec.origin else ""
    for path in glob.glob(os.path.join(folder, "libjax_common.so")):
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(flag.encode()) >= 0
    return False


def _set_environment():
    # OpenCV reads this once, when it is imported: a foreign image of a terabyte of pixels is refused before decoding.
    os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(64 * 1024 * 1024))
    # On CPU, XLA's newest convolution library is slower than the one before it; its matrix products are kept.
    flag, flags = "xla_cpu_experimental_ynn_fusion_type", os.environ.get("XLA_FLAGS", "")
    if flag not in flags and _jaxlib_knows(flag):
        os.environ["XLA_FLAGS"] = f"{flags} --{flag}=-individual_convolution".strip()


def _keep_freed_memory():
    """Lets glibc keep what is freed: given back, the same arrays are faulted in anew, page by page, at each step.

    In threads but the first this holds for arrays up to 64 MiB, glibc's limit.
    """
    if "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    with contextlib.suppress(ImportError, OSError, AttributeError):  # not glibc: nothing to do
        import ctypes

        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: arrays have no pages of their own, which freeing would give back
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
        mallopt(-2, 2**26)  # M_TOP_PAD: what is kept, or asked for in one go, at the end of an arena


_set_environment()
_keep_freed_memory()
