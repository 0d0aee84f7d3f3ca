"""The data sets by name."""

import inspect

from facedepth_jax.data.frames import Source
from facedepth_jax.errors import FaceDepthError

DATASETS = ("synthetic", "folder", "biwi", "pandora")


def source_class(dataset: str) -> type[Source]:
    """The reader of a data set. Raises FaceDepthError for a name that is none of DATASETS."""
    if dataset == "synthetic":
        from facedepth_jax.data.synthetic import SyntheticSource  # starts JAX, which the others can do without

        return SyntheticSource
    if dataset == "folder":
        from facedepth_jax.data.folder import FolderSource

        return FolderSource
    if dataset == "biwi":
        from facedepth_jax.data.biwi import BiwiSource

        return BiwiSource
    if dataset == "pandora":
        from facedepth_jax.data.pandora import PandoraSource

        return PandoraSource
    raise FaceDepthError(f"there is no data set '{dataset}', only {', '.join(DATASETS)}")


def make_source(dataset: str, raw: str | None, options: dict) -> Source:
    """A data set by its name: `raw` is its directory (the synthetic one has none), `options` its class's arguments.

    Raises FaceDepthError for an unknown name or option and for whatever the source finds wrong.
    """
    kind = source_class(dataset)
    known = list(inspect.signature(kind).parameters)
    where = ()
    if known[0] == "raw":
        known, where = known[1:], (raw,)
        if not raw:
            raise FaceDepthError(f"the data set '{dataset}' needs its raw directory: --raw or --config.data.raw_dir")
    if unknown := sorted(options.keys() - set(known)):
        raise FaceDepthError(f"the data set '{dataset}' has no option '{unknown[0]}'; it has {', '.join(known)}")
    return kind(*where, **options)
