"""Find data sets by name. A new reader is a file here, with a frames.Source, and a line in READERS."""

import dataclasses
import importlib
import os
from pathlib import Path

from facedepth_jax.data.frames import Source
from facedepth_jax.errors import FaceDepthError

_NN, _NNN = "[0-9][0-9]", "[0-9][0-9][0-9]"
# Name -> module and class, imported when needed (the synthetic faces start JAX); patterns of a raw directory's files.
READERS = {
    "synthetic": ("facedepth_jax.data.synthetic", "SyntheticSource", ()),
    "folder": ("facedepth_jax.data.readers.folder", "FolderSource", ("index.csv",)),
    "biwi": (
        "facedepth_jax.data.readers.biwi",
        "BiwiSource",
        tuple(f"{folder}{_NN}/{file}" for file in ("*.cal", "frame_*_pose.txt") for folder in ("", "*/")),
    ),
    "pandora": (
        "facedepth_jax.data.readers.pandora",
        "PandoraSource",
        (f"{_NN}/*_[iI][dD]{_NN}", f"{_NNN}/frame_*_face_depth.png"),
    ),
}


def _fields(dataset: str) -> tuple[type[Source], dict[str, dataclasses.Field]]:
    if dataset not in READERS:
        raise FaceDepthError(f"there is no data set '{dataset}', only {', '.join(READERS)}")
    module, name, _ = READERS[dataset]
    kind = getattr(importlib.import_module(module), name)
    return kind, {field.name: field for field in dataclasses.fields(kind)}


def options_of(dataset: str) -> dict[str, tuple[object, str]]:
    """Return the options of a data set: {name: (default, help)}. Raises FaceDepthError for an unknown data set."""
    fields = _fields(dataset)[1]
    return {name: (field.default, field.metadata["help"]) for name, field in fields.items() if name != "raw"}


def recognise(raw: str) -> str:
    """Return the data set that lies in a raw directory, by its layout. Raises FaceDepthError if it is none of them."""
    root = Path(raw)
    if not os.path.isdir(root):
        raise FaceDepthError(f"the raw directory {raw} does not exist or is a file")
    layouts = {dataset: patterns for dataset, (*_, patterns) in READERS.items() if patterns}
    try:
        for dataset, patterns in layouts.items():
            if any(next(root.glob(pattern), None) for pattern in patterns):
                return dataset
    except OSError as error:
        raise FaceDepthError(f"{raw} cannot be read ({error.strerror})") from None
    looked = "; ".join(f"{dataset}: {', '.join(patterns)}" for dataset, patterns in layouts.items())
    raise FaceDepthError(f"{raw} has the layout of no data set (looked for {looked}); give --dataset or another --raw")


def make_source(dataset: str, raw: str | None, options: dict) -> Source:
    """Make a data set's source.

    Args:
      dataset: a name of READERS.
      raw: its directory; None or '' for the synthetic faces.
      options: by name, see `options_of`.

    Raises:
      FaceDepthError: an unknown name or option, no directory, or anything that the source finds wrong.
    """
    kind, fields = _fields(dataset)
    options = options | ({"raw": raw} if raw else {})
    if "raw" in fields and not raw:
        raise FaceDepthError(f"the data set '{dataset}' needs its raw directory: --raw or --config.data.raw_dir")
    if unknown := sorted(options.keys() - fields):
        raise FaceDepthError(f"the data set '{dataset}' has no option '{unknown[0]}'; it has {', '.join(fields)}")
    return kind(**options)
