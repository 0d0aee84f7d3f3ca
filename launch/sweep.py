"""Prints one command line for each combination of values; run them one after another, or hand them to a scheduler.

python launch/sweep.py --config=configs/synthetic.py --runs=runs/lambda loss.lam=1.0,10.0,100.0 seed=0,1,2 | sh
"""

import argparse
import itertools
import shlex


def commands(config: str, runs: str, axes: dict[str, list[str]]) -> list[str]:
    """`axes`: config key -> values. The workdir of a run is named by its values."""
    lines = []
    for values in itertools.product(*axes.values()):
        chosen = list(zip(axes, values, strict=True))
        name = "-".join(f"{key.rsplit('.', 1)[-1]}_{value}" for key, value in chosen)
        overrides = [f"--config.{key}={value}" for key, value in chosen]
        lines.append(
            shlex.join(
                ["python", "-m", "facedepth_jax.main", f"--config={config}", f"--workdir={runs}/{name}", *overrides]
            )
        )
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="configs/NAME.py or configs/NAME.py:METHOD")
    parser.add_argument("--runs", required=True, help="directory of the workdirs")
    parser.add_argument("axes", nargs="+", metavar="KEY=VALUE,VALUE,...")
    given = parser.parse_args()
    for axis in given.axes:
        if "=" not in axis:
            parser.error(f"{axis} is no KEY=VALUE,VALUE,...")
    split = dict(axis.split("=", 1) for axis in given.axes)
    print("\n".join(commands(given.config, given.runs, {key: values.split(",") for key, values in split.items()})))
