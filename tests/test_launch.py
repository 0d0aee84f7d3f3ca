"""The sweep prints commands that the program takes."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent


def test_sweep_prints_one_command_for_each_combination():
    out = subprocess.run(
        [
            *(sys.executable, "launch/sweep.py", "--config=configs/synthetic.py:cgan", "--runs=runs/x"),
            *("loss.lam=1.0,10.0", "seed=0,1,2"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(out) == len(set(out)) == 6
    assert out[1] == (
        "python -m facedepth_jax.main --config=configs/synthetic.py:cgan --workdir=runs/x/lam_1.0-seed_1 "
        "--config.loss.lam=1.0 --config.seed=1"
    )
