"""Program: raw frames -> arrays; see data/prepare.py."""

import argparse
import sys

from facedepth_jax.data.prepare import prepare
from facedepth_jax.data.sources import DATASETS, make_source
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.stopping import stop_event


def main() -> None:
    """The command line; see --help."""
    try:
        _run(_flags())
    except FaceDepthError as error:
        sys.exit(f"error: {error}")


def _flags() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m facedepth_jax.prepare",
        description="Raw faces -> arrays on disk, cropped (Eq. 6) and resized. The same command again continues.",
        allow_abbrev=False,
    )
    flag = parser.add_argument
    flag("--dataset", required=True, choices=DATASETS)
    flag("--out", required=True, help="directory to be made")
    flag("--raw", help="folder: directory with index.csv")
    flag("--workers", type=int, default=0, help="processes; 0: this one (default)")
    flag("--shard", type=_shard, default=(0, 1), metavar="I/N", help="make every N-th chunk from the I-th (from 0) on")
    flag("--size", type=int, default=96, help="of the prepared images, pixels (96)")
    flag("--face_mm", type=float, default=320.0, help="R of Eq. 6, millimetres (320)")
    flag("--seed", type=int, default=0, help="of the faces, the splits and the verification pairs (0)")
    flag("--focal", type=float, help="folder: focal length in pixels of frames without fx and fy (365.456, Kinect v2)")
    flag("--validation_fraction", type=float, help="folder without a column split: share of the subjects (0.1)")
    flag("--test_fraction", type=float, help="folder without a column split: share of the subjects (0.2)")
    flag("--subjects", type=int, help="synthetic: people (200)")
    flag("--frames_per_sequence", type=int, help="synthetic: frames of each of a subject's five sequences (10)")
    flag("--image_size", type=int, help="synthetic: window around the head that is rendered, pixels (192)")
    flag("--sensor", help="synthetic: kinect_v2 (default) or kinect_v1")
    flags = parser.parse_args()
    foreign = _SYNTHETIC_FLAGS if flags.dataset == "folder" else ("raw", *_FOLDER_FLAGS)
    for name in foreign:
        if getattr(flags, name) is not None:
            parser.error(f"--{name} is not for --dataset={flags.dataset}")
    if flags.seed < 0:
        parser.error("--seed must be 0 or more")
    return flags


_FOLDER_FLAGS = ("focal", "validation_fraction", "test_fraction")
_SYNTHETIC_FLAGS = ("subjects", "frames_per_sequence", "image_size", "sensor")


def _shard(text: str) -> tuple[int, int]:
    try:
        index, count = text.split("/")
        return int(index), int(count)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid shard {text!r}, give I/N, as 0/4") from None


def _run(flags: argparse.Namespace) -> None:
    names = _SYNTHETIC_FLAGS if flags.dataset == "synthetic" else _FOLDER_FLAGS
    given = {name: getattr(flags, name) for name in names if getattr(flags, name) is not None}
    source = make_source(flags.dataset, flags.raw, given | {"seed": flags.seed})
    prepare(
        source,
        flags.out,
        face_mm=flags.face_mm,
        size=flags.size,
        seed=flags.seed,
        workers=flags.workers,
        shard=flags.shard,
        stopped=stop_event().is_set,
    )


if __name__ == "__main__":
    main()
