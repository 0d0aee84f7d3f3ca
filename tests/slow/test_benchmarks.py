"""benchmarks/ by whole processes, each at a tiny size; its parts, and the quick ones: ../test_benchmarks.py."""

import re
import subprocess
import sys

import pytest
from test_benchmarks import HAS_TORCH, ROOT, cells, check_costs, run


@pytest.fixture(scope="module", params=["cgan", "relief"])
def method(request):
    return request.param


@pytest.fixture(scope="module")
def out(method):
    """Of train_step.py."""
    return run("train_step", f"--method={method}", "--widths=4", "--batches=2", "--turns=2", "--seconds=0")


def test_one_table_of_all_sides(out, method):
    sides = ["this", *(["PyTorch"] if HAS_TORCH else []), "plain flax"]
    lines = cells(out)
    images = {"cgan": ["1", "32"], "relief": ["1", "16", "32"]}[method]
    works = [("training", "4", "2"), *(("inference", "4", batch) for batch in images)]
    assert [(line[""], line["width"], line["batch"]) for line in lines] == works
    for line in lines:
        for name in sides:
            assert float(line[f"images/s: {name}"]) > 0 and int(line[f"of the peak: {name}"][:-1]) < 100
        for name in sides[1:]:
            ratio, least, most = map(float, re.findall(r"[\d.]+", line[f"this / {name}"]))
            assert 0 < least <= ratio <= most
    assert all(float(lines[0][f"memory, MiB: {name}"]) > 0 and lines[0][f"compiling, s: {name}"] for name in sides)


@pytest.mark.parametrize(
    "side",
    ["plain flax", pytest.param("PyTorch", marks=pytest.mark.skipif(not HAS_TORCH, reason="the extra bench"))],
)
def test_the_same_step_in_float64(out, method, side):
    (line,) = [line for line in out.splitlines() if line.startswith("Float64") and f" {side} agrees" in line]
    found = {kind: float(value) for kind, value in re.findall(r"(\w[\w ]*) (\d+e[+-]\d+)", line.split(": ", 2)[2])}
    averaged = {"averaged weights"} if method == "relief" else set()
    assert set(found) == {"inference", "losses", "gradients", "running means"} | averaged
    assert max(found.values()) < 1e-10


def test_costs_of_relief():
    check_costs("relief")


def test_pipeline():
    sizes = ("--width=2", "--batch=4", "--relief_batch=4", "--frames=64")
    out = run("pipeline", *sizes, "--reads=2", "--steps=2", "--turns=1", "--processes=1")
    table, relief = out.split("\nThe method relief, width 2, batch 4\n")
    without, augmented = cells(relief)
    assert (without["augmentation"], augmented["augmentation"]) == ("without", "with")
    assert without["time of a step / without"] == "1.000" and float(augmented["time of a step / without"]) > 0
    for line in (without, augmented):
        assert float(line["training, images/s"]) > 0 and 0 <= float(line["the device waits"][:-1]) < 100
    found = cells(table)
    found = {line.pop("batches by"): line for line in found}
    assert found.pop("the same batch again")["waits for its batch"] == ""
    assert found["NumPy"]["of NumPy's"] == "1.00"
    assert set(found) == {
        "NumPy",
        *(f"the pipeline, {how}" for how in ("in the loop itself", "one thread", "two threads")),
        "row numbers by one thread, gathered on the device",
        "grain's processes: 1",
    }
    for line in found.values():
        assert float(line["alone, images/s"]) > 0 and float(line["training, images/s"]) > 0
        assert 0 <= float(line["waits for its batch"][:-1]) < 100


def test_growth(tmp_path):
    sizes = ("--widths=2", "--batches=8", "--sizes=32", "--devices=2,1", "--frames=300,600")
    steps, frames = run("growth", *sizes, "--turns=1", "--seconds=0", f"--out={tmp_path}").split("\n\n| frames |")
    found = cells(steps)
    assert [line["what grows"] for line in found] == ["width", "batch", "image, px", "devices", "devices"]
    assert {tuple(line.values())[1:] for line in found[:3]} == {tuple(found[0].values())[1:]}  # the first point
    assert all(float(line["images/s"]) > 0 for line in found)
    two, one = found[3:]
    for what in ("GFLOP a device", "MiB a device"):  # the work is divided, the state is not
        assert 0.45 < float(two[what]) / float(one[what]) < 0.75
    found = cells(f"| frames |{frames}")
    assert [line["frames"] for line in found] == ["300", "600"]
    assert all(float(value) > 0 for line in found for value in list(line.values())[1:])
    assert (tmp_path / "growth.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_synthetic():
    whole, *stages = cells(run("synthetic", "48"))
    assert whole[""] == "whole frame" and float(whole["frames a second"]) > 0
    assert sum(float(line["ms a frame"]) for line in stages) == pytest.approx(float(whole["ms a frame"]), abs=0.05)


def test_prepare(tmp_path):
    trees = [
        sys.executable,
        "tools/raw_trees.py",
        "--dataset=biwi",
        "--numbers=1",
        "--frames=2",
        f"--out={tmp_path}/raw",
    ]
    subprocess.run(trees, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    out = run("prepare", f"--biwi={tmp_path}/raw", "--workers=0", "--turns=1")
    preparing, decoding = out.split("Biwi's depth.bin")
    (line,) = cells(preparing)
    assert (line["data set"], line["frames"], line["workers"]) == ("biwi", "2", "0")
    assert float(line["peak memory, resident"].removesuffix(" MiB")) > 0
    assert [line[""] for line in cells(decoding)][0] == "read and decoded"


def test_gpu(method):
    """On whatever is here."""
    sizes = ("--width=2", "--batches=2", "--dtypes=float32", "--turns=1", "--seconds=0", "--steps=2")
    out = run("gpu", f"--method={method}", *sizes)
    speed, costs = out.split("The state is donated, and the step moves nothing between host and device")
    (line,) = cells(speed)
    assert line[""] == "float32, training" and float(line["images/s: this"]) > 0
    shares = [float(line["share"][:-1]) for line in cells(costs)]
    assert len(shares) == 3 and 100 > shares[0] >= shares[1] >= shares[2] > 0
    assert re.search(r"\| `[^`]*/[^`]*` \|", costs), "no place in the step"
