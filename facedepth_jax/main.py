"""Prepare missing arrays, train, evaluate: the program.

python -m facedepth_jax.main --config=configs/synthetic.py:cgan --workdir=runs/demo --config.loss.lam=100.0
"""

import argparse
import contextlib
import logging
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Sequence

from facedepth_jax import runtime

runtime.tune()

import jax
from absl import logging as absl_logging

from facedepth_jax import config, files, train
from facedepth_jax.checkpoint import GONE
from facedepth_jax.errors import FaceDepthError


def main(argv: Sequence[str] | None = None):
    """Run the command line; see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m facedepth_jax.main",
        description="Train and evaluate; the same command again continues the run.",
        epilog="Any value of the config can be given as --config.KEY=VALUE, as --config.train.steps=2000.",
        allow_abbrev=False,
    )
    flag = parser.add_argument
    flag("--config", required=True, help="a file of configs/ or its name, as pandora; `:METHOD` behind it")
    flag("--workdir", type=files.path, help="the run's directory; the same one continues (runs/CONFIG-METHOD)")
    flag("--process", help="one of several: auto on a TPU slice, else INDEX/COUNT@HOST:PORT of process 0")
    flag("--allow_mismatch", action="store_true", help="go on from checkpoints of another config or other data")
    flags, overrides = parser.parse_known_args(argv)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # but for the training's steps, see runtime.StopSignal
    absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax logs every save otherwise
    for name in ("absl", "asyncio"):  # Orbax raises the errors that it logs
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        values = config.load(flags.config, overrides)
        runtime.dispatch_synchronously()
        if flags.process:
            runtime.join(flags.process)
        runtime.keep_compiled()
        name = config.find(flags.config)[0].stem
        train.run(values, flags.workdir or pathlib.Path(f"runs/{name}-{values.method}"), flags.allow_mismatch)
    except Exception as error:
        if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
            error = FaceDepthError("The device's memory does not suffice: give a smaller train.batch_size or width.")
        # JAX and Orbax raise GONE when another process has ended. On GPUs and TPUs JAX aborts: 134 is that code.
        gone = flags.process and isinstance(error, GONE)
        if isinstance(error, FaceDepthError | OSError) and not gone:  # an OSError says what and where: a full disk
            print(f"error: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        with contextlib.suppress(OSError):  # a full disk, or a reader that has gone
            sys.stdout.flush()
        # Else this process waits: for threads of Orbax after a failed save, for the other processes.
        os._exit(134 if gone else getattr(error, "exit_code", 1))


if __name__ == "__main__":
    main()
