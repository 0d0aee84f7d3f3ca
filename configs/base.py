"""The values that all configs share are made by `facedepth_jax.config.base`; config files may import them from here."""

from facedepth_jax.config import base

__all__ = ["base"]
