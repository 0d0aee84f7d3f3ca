"""Save and load a net's weights for others, as safetensors, by the names of their tree's leaves."""

import pathlib

import jax
import numpy as np
import safetensors
import safetensors.numpy

from facedepth_jax import files
from facedepth_jax.errors import FaceDepthError


def name_of(keys) -> str:
    """Write the path of a leaf, as JAX gives it, with '/' between its keys."""
    return jax.tree_util.keystr(keys, simple=True, separator="/")


def by_name(tree) -> dict:
    """Return {name: leaf} of a tree, names as `name_of` writes them."""
    return {name_of(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def save_weights(path: pathlib.Path, variables):
    """Write one net's `params` and `batch_stats` as safetensors: names joined by '/', float32, in flax's shapes."""
    arrays = {name: np.asarray(value) for name, value in by_name(variables).items()}
    files.write_bytes(path, safetensors.numpy.save(arrays))


def load_weights(path: pathlib.Path, like):
    """Read the same back, in the structure of `like`. Raise FaceDepthError if the file is not those weights."""
    try:
        flat = safetensors.numpy.load(path.read_bytes())
    except FileNotFoundError as error:
        raise FaceDepthError(f"There is no {path}: a training writes it at its end; go on with it.") from error
    except (OSError, safetensors.SafetensorError, KeyError) as error:  # KeyError: a type that NumPy does not have
        raise FaceDepthError(f"{path} is no file of weights ({error}).") from error

    def pick(keys, value):
        name = name_of(keys)
        if name not in flat or (flat[name].shape, flat[name].dtype) != (value.shape, value.dtype):
            raise FaceDepthError(f"{path} does not fit the net: {name} is missing, or of another shape or type.")
        return flat[name]

    return jax.tree_util.tree_map_with_path(pick, like)
