"""Program: prepares what is missing, trains, evaluates. No logic here: what is importable is testable.

python -m facedepth_jax.main --config=configs/synthetic.py:cgan --workdir=runs/demo --config.loss.lam=100.0
"""

import logging
import os
import pathlib
import sys
import traceback

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from facedepth_jax import devices, train
from facedepth_jax.checkpoint import GONE
from facedepth_jax.errors import FaceDepthError

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, `:method` behind it picks the method.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's directory; the same one continues. Default: runs/CONFIG-METHOD."
)
PROCESS = flags.DEFINE_string(
    "process", None, "For one of several processes: auto on a TPU slice, else INDEX/COUNT@HOST:PORT of process 0."
)
INSIST = flags.DEFINE_bool(
    "insist", False, "Go on in a workdir whose checkpoints have another config or other data, and log the difference."
)
flags.mark_flag_as_required("config")


def main(argv):
    if argv[1:]:
        raise app.UsageError(f"Unexpected: {' '.join(argv[1:])}")
    absl_logging.set_verbosity(absl_logging.WARNING)  # or Orbax tells the story of every save
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # what Orbax logs as an error it raises too
    path = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0])
    if not path.is_file():
        sys.exit(f"error: There is no config file {path}; the project's own are in configs/.")
    config, name = CONFIG.value, path.stem
    try:
        if PROCESS.value:
            devices.join(PROCESS.value)
        devices.keep_compiled()
        train.run(config, pathlib.Path(WORKDIR.value or f"runs/{name}-{config.method}"), INSIST.value)
    except Exception as error:
        # What JAX and Orbax raise when another process has gone. On GPUs and TPUs JAX aborts: 134 is that code.
        gone = PROCESS.value and isinstance(error, GONE)
        if isinstance(error, FaceDepthError | OSError) and not gone:  # an OSError says what and where: a full disk
            print(f"error: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        code = 134 if gone else 1
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # or this process waits: for threads of Orbax after a failed save, for the other processes


def parse(argv):
    """absl's parsing, with one sentence where ml_collections raises for a key that is not there."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError) as error:
        name = str(error.args[0]).replace("\\n", " ").replace("\\'", "'").strip("'\"")
        if "get_config" in name:
            sys.exit("error: The file of --config is no config: it has no get_config.")
        sys.exit(f"error: The config has no such key: {name}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
