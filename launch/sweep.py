"""Print one command line for each combination of values; run them one after another, or hand them to a scheduler.

python launch/sweep.py --config=configs/synthetic.py --runs=runs/lambda loss.lam=1.0,10.0,100.0 seed=0,1,2 | sh
"""

import argparse
import itertools
import shlex
import sys

from facedepth_jax import config as configs
from facedepth_jax.errors import FaceDepthError


def commands(config: str, runs: str, axes: dict[str, list[str]]) -> list[str]:
    """Make the command lines of all combinations of `axes`, config key -> values, which name the workdirs.

    Raises FaceDepthError if `main` would refuse the values.
    """
    lines = []
    for values in itertools.product(*axes.values()):
        chosen = list(zip(axes, values, strict=True))
        name = "-".join(f"{key.rsplit('.', 1)[-1]}_{value}" for key, value in chosen)
        overrides = [f"--config.{key}={value}" for key, value in chosen]
        configs.check(configs.load(config, overrides))
        words = [sys.executable, "-m", "facedepth_jax.main", f"--config={config}", f"--workdir={runs}/{name}"]
        lines.append(shlex.join(words + overrides))
    return lines


def main(argv=None):
    """Run the command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="configs/NAME.py or configs/NAME.py:METHOD")
    parser.add_argument("--runs", required=True, help="directory of the workdirs")
    parser.add_argument("axes", nargs="+", metavar="KEY=VALUE,VALUE,...")
    given = parser.parse_args(argv)
    for axis in given.axes:
        if "=" not in axis:
            parser.error(f"{axis} is not of the form KEY=VALUE,VALUE,...")
    axes = dict(axis.split("=", 1) for axis in given.axes)
    print("\n".join(commands(given.config, given.runs, {key: values.split(",") for key, values in axes.items()})))


if __name__ == "__main__":
    try:
        main()
    except FaceDepthError as error:
        sys.exit(f"error: {error}")
