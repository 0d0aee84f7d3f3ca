"""Program: prepares what is missing, trains, evaluates. No logic here: what is importable is testable.

python -m facedepth_jax.main --config=configs/synthetic.py:cgan --workdir=runs/demo --config.loss.lam=100.0
"""

import pathlib
import sys

import jax
from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from facedepth_jax import train
from facedepth_jax.errors import FaceDepthError

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/, `:method` behind it picks the method.")
WORKDIR = flags.DEFINE_string(
    "workdir", None, "The run's directory; the same one continues. Default: runs/CONFIG-METHOD."
)
MULTIHOST = flags.DEFINE_boolean("multihost", False, "One process a host, found by the cluster: TPU pod, Slurm, GKE.")
flags.mark_flag_as_required("config")


def main(argv):
    if argv[1:]:
        raise app.UsageError(f"Unexpected: {' '.join(argv[1:])}")
    absl_logging.set_verbosity(absl_logging.WARNING)  # or Orbax tells the story of every save
    if MULTIHOST.value:
        jax.distributed.initialize()
    config = CONFIG.value
    name = pathlib.Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    try:
        train.run(config, pathlib.Path(WORKDIR.value or f"runs/{name}-{config.method}"))
    except FaceDepthError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main)
