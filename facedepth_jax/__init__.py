"""Facial depth maps from gray images: the system of Pini et al. (3DV 2018) in JAX and Flax.

`facedepth_jax.load()` gives a trained net that finds faces in photos; docs/api.md has examples. Importing this package
is quick and leaves the process as it is; JAX starts with the first net.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from facedepth_jax.estimator import FaceDepth, load

__version__ = "0.1.0"
__all__ = ["FaceDepth", "load"]


def __getattr__(name):
    if name in __all__:
        from facedepth_jax import estimator

        return getattr(estimator, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
