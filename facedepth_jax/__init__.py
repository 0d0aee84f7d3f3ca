"""Facial depth maps from gray images: the system of Pini et al. (3DV 2018) in JAX and Flax."""

import os as _os

# OpenCV reads this once, when it is imported: a foreign image of a terabyte of pixels is refused before it is decoded.
_os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(64 * 1024 * 1024))

__version__ = "0.1.0"
