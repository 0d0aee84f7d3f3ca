"""Program: prepare arrays of raw frames, or check a raw directory first; see data/prepare.py and data/summary.py."""

import argparse
import functools
import os
import signal
import sys
from collections.abc import Sequence

from facedepth_jax import runtime

runtime.tune()

from facedepth_jax.data.prepare import prepare
from facedepth_jax.data.readers import READERS, make_source, options_of, recognise
from facedepth_jax.data.summary import check
from facedepth_jax.errors import FaceDepthError


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; see --help."""
    # Finished chunks stay, so Ctrl-C needs no cleaning up, and the same command continues.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        flags, options = _flags(argv)
        source = make_source(flags.dataset, flags.raw, options)
        pair_lists = {"validation": flags.pairs_validation, "test": flags.pairs_test}
        how = {"face_mm": flags.face_mm, "size": flags.size, "pair_lists": pair_lists}
        if flags.check:
            if fault := check(source, say=functools.partial(print, flush=True), **how):
                raise FaceDepthError(fault)
        else:
            prepare(source, flags.out, seed=flags.seed, workers=flags.workers, shard=flags.shard, **how)
        sys.stdout.flush()
    except FaceDepthError as error:
        sys.exit(f"error: {error}")
    except BrokenPipeError:  # the reader has seen enough, as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _flags(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict]:
    """Parse the flags; return them and the data set's own options."""
    parser = argparse.ArgumentParser(
        prog="python -m facedepth_jax.prepare",
        description="Prepare arrays of raw faces, cropped (Eq. 6) and resized. The same command again continues.",
        epilog=f"Each data set has options of its own: --dataset={{{','.join(READERS)}}} --help lists them.",
        allow_abbrev=False,
        add_help=False,
    )
    flag = parser.add_argument
    flag("--dataset", choices=READERS, help="may be left out with --check")
    flag("--raw", type=os.path.expanduser, help="directory of the raw data; the synthetic faces have none")
    flag("--out", type=os.path.expanduser, help="directory to be made")
    flag("--check", action="store_true", help="check the raw directory and say what preparing would do; writes nothing")
    flag("--workers", type=int, default=os.cpu_count(), help="processes; 0: this one; default: one a core")
    flag("--shard", type=_shard, default=(0, 1), metavar="I/N", help="make every N-th chunk from the I-th (from 0) on")
    flag("--size", type=int, default=96, help="of the prepared images, pixels (96)")
    flag("--face_mm", type=float, default=320.0, help="R of Eq. 6, millimetres (320)")
    flag(
        "--seed",
        type=int,
        default=0,
        help="of the verification pairs and of what the data set draws itself, people or splits (0)",
    )
    for split in ("validation", "test"):
        flag(
            f"--pairs_{split}",
            type=os.path.expanduser,
            default="",
            metavar="FILE",
            help="verification pairs to take instead of drawing them",
        )
    dataset = (known := parser.parse_known_args(argv)[0]).dataset
    if known.check and known.raw and not dataset:
        dataset = recognise(known.raw)
    parser.set_defaults(dataset=dataset)
    flag("-h", "--help", action="help", help="show this and exit")
    options = options_of(dataset) if dataset else {}
    own = parser.add_argument_group(f"options of --dataset={dataset}")
    for name, (default, text) in options.items():
        if name != "seed":
            kind = {"action": argparse.BooleanOptionalAction} if isinstance(default, bool) else {"type": type(default)}
            text = f"{text} Default: {default}".replace("%", "%%")
            own.add_argument(f"--{name}", default=argparse.SUPPRESS, help=text, **kind)
    flags = parser.parse_args(argv)
    if not flags.dataset:
        parser.error("--dataset is missing" if not flags.check else "--check needs --raw, or --dataset")
    if not flags.out and not flags.check:
        parser.error("--out is missing")
    return flags, {name: getattr(flags, name) for name in options if hasattr(flags, name)}


def _shard(text: str) -> tuple[int, int]:
    try:
        index, count = text.split("/")
        return int(index), int(count)
    except ValueError:
        raise argparse.ArgumentTypeError(f"invalid shard {text!r}, give I/N, as 0/4") from None


if __name__ == "__main__":
    main()
