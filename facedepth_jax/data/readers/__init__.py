"""The data sets by name."""

import inspect
import re
from pathlib import Path

from facedepth_jax.data.frames import Source
from facedepth_jax.errors import FaceDepthError

DATASETS = ("synthetic", "folder", "biwi", "pandora")
_NN, _NNN = "[0-9][0-9]", "[0-9][0-9][0-9]"
LAYOUTS = {  # of raw directories: what each is recognised by
    "folder": ("index.csv",),
    "biwi": tuple(f"{folder}{_NN}/{file}" for file in ("*.cal", "frame_*_pose.txt") for folder in ("", "*/")),
    "pandora": (f"{_NN}/*_[iI][dD]{_NN}", f"{_NNN}/frame_*_face_depth.png"),
}


def source_class(dataset: str) -> type[Source]:
    """The reader of a data set. Raises FaceDepthError for a name that is none of DATASETS."""
    if dataset == "synthetic":
        from facedepth_jax.data.synthetic import SyntheticSource  # starts JAX, which the others can do without

        return SyntheticSource
    if dataset == "folder":
        from facedepth_jax.data.readers.folder import FolderSource

        return FolderSource
    if dataset == "biwi":
        from facedepth_jax.data.readers.biwi import BiwiSource

        return BiwiSource
    if dataset == "pandora":
        from facedepth_jax.data.readers.pandora import PandoraSource

        return PandoraSource
    raise FaceDepthError(f"there is no data set '{dataset}', only {', '.join(DATASETS)}")


def options_of(dataset: str) -> dict[str, tuple[object, str]]:
    """The options of a data set: {name: (default, what its class's docstring says of it)}."""
    kind = source_class(dataset)
    entry = re.compile(r"^  ((?:\w+, )*\w+): (.+(?:\n   .+)*)", re.MULTILINE)  # "  name, name: text", deeper lines
    texts = {}
    for doc in (kind.__doc__, kind.__init__.__doc__):
        for names, text in entry.findall(inspect.cleandoc(doc or "")):
            texts |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    parameters = inspect.signature(kind).parameters.items()
    return {name: (parameter.default, texts.get(name, "")) for name, parameter in parameters if name != "raw"}


def recognise(raw: str) -> str:
    """The data set that lies in a raw directory, by its layout. FaceDepthError where it is none of them."""
    root = Path(raw)
    if not root.is_dir():
        raise FaceDepthError(f"the raw directory {raw} does not exist")
    try:
        for dataset, patterns in LAYOUTS.items():
            if any(next(root.glob(pattern), None) for pattern in patterns):
                return dataset
    except OSError as error:
        raise FaceDepthError(f"{raw} cannot be read ({error.strerror})") from None
    looked = "; ".join(f"{dataset}: {', '.join(patterns)}" for dataset, patterns in LAYOUTS.items())
    raise FaceDepthError(f"{raw} has the layout of no data set (looked for {looked}); give --dataset or another --raw")


def make_source(dataset: str, raw: str | None, options: dict) -> Source:
    """A data set by its name: `raw` is its directory (the synthetic one has none), `options` its class's arguments.

    Raises FaceDepthError for an unknown name or option and for whatever the source finds wrong.
    """
    kind, known = source_class(dataset), options_of(dataset)
    where = ()
    if "raw" in inspect.signature(kind).parameters:
        where = (raw,)
        if not raw:
            raise FaceDepthError(f"the data set '{dataset}' needs its raw directory: --raw or --config.data.raw_dir")
    if unknown := sorted(options.keys() - known.keys()):
        raise FaceDepthError(f"the data set '{dataset}' has no option '{unknown[0]}'; it has {', '.join(known)}")
    return kind(*where, **options)
