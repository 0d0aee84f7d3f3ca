"""benchmarks/train_step.py: its table, what it proves before, and that it stops where two sides differ."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
HAS_TORCH = importlib.util.find_spec("torch") is not None


@pytest.fixture(scope="module")
def out():
    """What the program prints at a tiny size."""
    return subprocess.run(
        [sys.executable, "benchmarks/train_step.py", "--widths=4", "--batches=2", "--turns=2", "--seconds=0"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0"},  # compiles in half the time
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout


@pytest.fixture(scope="module")
def program():
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("train_step", ROOT / "benchmarks" / "train_step.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_one_table_of_all_sides(out):
    sides = ["this", *(["PyTorch"] if HAS_TORCH else []), "plain flax"]
    heads, _, *lines = [
        [cell.strip() for cell in line[1:-1].split("|")] for line in out.splitlines() if line[:1] == "|"
    ]
    assert [line[:3] for line in lines] == [["training", "4", "2"], ["inference", "4", "1"], ["inference", "4", "32"]]
    for line in lines:
        cells = dict(zip(heads, line, strict=True))
        for name in sides:
            assert float(cells[f"images/s: {name}"]) > 0 and int(cells[f"of the peak: {name}"][:-1]) < 100
        for name in sides[1:]:
            ratio, least, most = map(float, re.findall(r"[\d.]+", cells[f"this / {name}"]))
            assert 0 < least <= ratio <= most
    cells = dict(zip(heads, lines[0], strict=True))
    assert all(float(cells[f"memory, MiB: {name}"]) > 0 and cells[f"compiling, s: {name}"] for name in sides)


@pytest.mark.parametrize(
    "side",
    ["plain flax", pytest.param("PyTorch", marks=pytest.mark.skipif(not HAS_TORCH, reason="the extra bench"))],
)
def test_the_same_step_in_float64(out, side):
    (line,) = [line for line in out.splitlines() if line.startswith("Float64") and f" {side} agrees" in line]
    found = {kind: float(value) for kind, value in re.findall(r"(\w[\w ]*) (\d+e[+-]\d+)", line.split(": ", 2)[2])}
    assert set(found) == {"inference", "losses", "gradients", "running means"}
    assert max(found.values()) < 1e-10


@pytest.mark.parametrize("dtype, apart", [("float64", 1e-11), ("float32", 1e-3)])
def test_other_gradients_stop_it(program, dtype, apart):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(5, 5, 3, 2))
    gradients = {"generator/up1/kernel": kernel, "discriminator/out/bias": rng.normal(size=1)}
    proof = {"losses": {"loss_d": np.float64(1.4)}, "gradients": gradients}

    def agreement(loss=1.4, **changed):
        theirs = {"losses": {"loss_d": np.float64(loss)}, "gradients": gradients | changed}
        return program.agreement({"this": ("cpu", proof), "PyTorch": ("cpu", theirs)}, 16, dtype)

    near = agreement(**{"generator/up1/kernel": kernel * (1 + apart)})
    assert near == {("PyTorch", "losses"): 0.0, ("PyTorch", "gradients"): pytest.approx(apart, rel=1e-3)}
    for wrong in (kernel[::-1], kernel * np.nan, kernel * (1 + 100 * apart)):
        with pytest.raises(SystemExit, match="PyTorch does not compute the same .* gradients, generator"):
            agreement(**{"generator/up1/kernel": wrong})
    with pytest.raises(SystemExit, match="losses, loss_d"):
        agreement(loss=1.41)
    for other in ({"generator/up1/kernel": kernel[:4]}, {"more": np.ones(1)}):
        with pytest.raises(SystemExit, match="other gradients"):
            agreement(**other)


def test_another_device_stops_it(program):
    with pytest.raises(SystemExit, match="PyTorch computes on gpu, this project on cpu"):
        program.agreement({"this": ("cpu", {}), "PyTorch": ("gpu", {})}, 16, "float32")
