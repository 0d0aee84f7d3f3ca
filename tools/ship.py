"""Put a finished run's net into the package, as the one that ships.

    python tools/ship.py runs/relief

Copies its weights and its config, without the paths of the machine that made it. The figures of weights/README.md are
then to be measured again: its commands are there.
"""

import pathlib
import shutil
import sys

from facedepth_jax import config as configs
from facedepth_jax import files


def main(run: str):
    """Copy a run's config.json and generator.safetensors to facedepth_jax/weights."""
    config = configs.read_run(run)
    config.init_from = config.data.raw_dir = config.data.pairs_validation = config.data.pairs_test = ""
    config.data.dir = f"data/{pathlib.Path(config.data.dir).name}"
    files.write_json(configs.SHIPPED / "config.json", config.to_dict())
    shutil.copyfile(f"{run}/generator.safetensors", configs.SHIPPED / "generator.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])
