"""benchmarks/: what train_step.py proves before, and that it stops where two sides differ; all programs as run."""

import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import types

import numpy as np
import pytest

from facedepth_jax import evaluation

if sys.platform != "linux":
    pytest.skip("the benchmarks read /proc and bind cores", allow_module_level=True)

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))  # they import each other
HAS_TORCH = importlib.util.find_spec("torch") is not None


def run(name, *args):
    """What a program prints."""
    return subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", *args],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout


def cells(out):
    """[{column: cell}] of the one table that was printed."""
    lines = out.splitlines() if isinstance(out, str) else out
    heads, _, *lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if line[:1] == "|"]
    return [dict(zip(heads, line, strict=True)) for line in lines]


@pytest.fixture(scope="module")
def program():
    """A program as a module, by name."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="module", params=["cgan", "relief"])
def method(request):
    return request.param


@pytest.mark.parametrize("dtype, apart", [("float64", 1e-11), ("float32", 1e-3)])
def test_other_gradients_stop_it(program, dtype, apart):
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(5, 5, 3, 2))
    gradients = {"generator/up1/kernel": kernel, "discriminator/out/bias": rng.normal(size=1)}
    proof = {"losses": {"loss_d": np.float64(1.4)}, "gradients": gradients}

    def agreement(loss=1.4, **changed):
        theirs = {"losses": {"loss_d": np.float64(loss)}, "gradients": gradients | changed}
        return program("train_step").agreement({"this": ("cpu", proof), "PyTorch": ("cpu", theirs)}, 16, dtype)

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
        program("train_step").agreement({"this": ("cpu", {}), "PyTorch": ("gpu", {})}, 16, "float32")


class Pipe:
    """A side that answers at once: seconds a call of each work, its facts."""

    def __init__(self, seconds, facts):
        self.seconds, self.facts = seconds, facts

    def send(self, request):
        self.request = request

    def recv(self):
        return self.facts if self.request[0] == ("facts",) else self.seconds[self.request[0][0]]


def test_what_the_table_says_of_times(program):
    """Plain flax counts the operations where it takes part; where not, its cells are empty."""
    train_step = program("train_step")
    flops = {("training",): 8e9, ("inference", 4): 1e9}

    def pipe(training, inference, **facts):
        known = {"device": "cpu", "first_s": 9.0, "compile_s": 3.0, "memory_mib": 70.4, "flops": flops}
        return Pipe({"training": training, "inference": inference, "product": 2 * 2048**3 / 1e11}, known | facts)

    pipes = {
        "this": pipe(0.5, 0.1, flops={work: 99 for work in flops}),
        "PyTorch": pipe(1.0, 0.05, compile_s=None, flops=None),
        "plain flax": pipe(2.0, 0.4),
    }
    args, counted = types.SimpleNamespace(turns=2, seconds=0), {}
    works = {("training",): 2, ("inference", 4): 4}
    lines, peak, sat_out = train_step.rows(list(pipes), pipes, works, 16, counted, args)
    assert sat_out == [] and peak == pytest.approx(1e11) and counted == {"training": 4e9, "inference": 0.25e9}
    training, inference = cells(train_step.heads(list(pipes)).splitlines() + lines)
    of_each = {
        "images/s": ["4", "2", "1"], "of the peak": ["16%", "8%", "4%"],
        "compiling, s": ["3.0", "8.0", "3.0"], "memory, MiB": ["70", "70", "70"],
    }  # fmt: skip
    for what, values in of_each.items():
        assert [training[f"{what}: {name}"] for name in pipes] == values
    assert training["this / PyTorch"] == "2.00 (2.00-2.00)" and training["this / plain flax"] == "4.00 (4.00-4.00)"
    assert inference["this / PyTorch"] == "0.50 (0.50-0.50)" and inference["of the peak: this"] == "10%"
    assert inference["memory, MiB: this"] == ""

    names = list(pipes)
    del pipes["plain flax"]
    lines, *_ = train_step.rows(names, pipes, {("training",): 2}, 16, counted, args, "bfloat16, ")
    (training,) = cells(train_step.heads(names).splitlines() + lines)
    assert training[""] == "bfloat16, training" and training["of the peak: this"] == "16%"
    assert {value for name, value in training.items() if "plain flax" in name} == {""}


def test_evaluate(program, monkeypatch, capsys):
    evaluate = program("evaluate")
    monkeypatch.setattr("sys.argv", ["evaluate.py", "--widths=2", "--frames=40", "--turns=1"])
    for module in (evaluate, evaluation):
        monkeypatch.setattr(module, "BATCH", 4)
    evaluate.main()
    (line,) = cells(capsys.readouterr().out)
    alone, both = (float(line[name]) for name in ("forward pass alone, images/s", "with the metrics, images/s"))
    cost = float(re.fullmatch(r"(.*)% of the forward pass", line["the metrics cost"])[1])
    assert line["frames"] == "40" and alone > 0
    assert cost == pytest.approx(100 * (alone / both - 1), abs=2 + 0.02 * cost)  # of rounded figures


@pytest.mark.slow
def test_costs(method):
    core = str(min(os.sched_getaffinity(0)))
    command = [sys.executable, "benchmarks/costs.py", f"--method={method}", "--widths=4", "--batch=2", "--steps=1"]
    out = subprocess.run(
        ["taskset", "-c", core, *command], cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True
    ).stdout
    *kinds, clock, kernel = cells(out)
    assert kinds[0][""] == "convolutions and matrix products" and clock[""] == "a step by the clock"
    for name in ["this", *(["PyTorch"] if HAS_TORCH else [])]:
        values = [float(line[f"width 4: {name}"]) for line in kinds]
        assert min(values) > 0 and 0 <= float(kernel[f"width 4: {name}"]) < float(clock[f"width 4: {name}"])


@pytest.mark.parametrize(
    "name, place, kind",
    [
        ("conv_general_dilated.9", "jvp(Generator)/up1/conv_general_dilated", "convolutions and matrix products"),
        ("convolution-window-dilated.3", "convolution-window-dilated.3", "convolutions and matrix products"),
        ("ynn_fusion.7", "transpose(jvp(Discriminator))/encoder/conv4/dot_general", "convolutions and matrix products"),
        ("ynn_fusion.8", "jvp(Generator)/norm4/norm/reduce_sum", "batch norm"),
        ("convert_power_fusion.2", "optimizer/integer_pow", "Adam"),
        ("subtract_fusion", "sub", "copies, sums of shifted maps, the rest"),
        ("copy", "copy", "copies, sums of shifted maps, the rest"),
        ("multiply_select_fusion", "jvp(Generator)/encoder/jit(leaky_relu)/jit(_where)/select_n", "activations"),
        ("transpose_copy_fusion.3", "transpose_copy_fusion.3", "copies, sums of shifted maps, the rest"),
        ("stack", "jvp(Generator)/out/stack", "copies, sums of shifted maps, the rest"),
        ("bitcast_concatenate_fusion", "jvp(Generator)/up4/stack", "copies, sums of shifted maps, the rest"),
    ],
)
def test_kinds_of_costs(program, name, place, kind):
    assert program("costs").kind_of(name, place) == kind


def test_costs_on_two_cores(program, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr("sys.argv", ["costs.py"])
    with pytest.raises(SystemExit, match="on one core only: taskset"):
        program("costs").main()


def test_a_side_that_has_used_its_budget_sits_out(program, monkeypatch):
    train_step = program("train_step")
    clock = iter(np.arange(0, 1e6, 15.0))  # each turn takes 15 s, whatever a call takes
    monkeypatch.setattr(train_step.time, "perf_counter", lambda: next(clock))
    pipe = types.SimpleNamespace(send=lambda request: None, recv=lambda: 0.001)
    found = train_step.measure({"this": pipe}, ("training",), 5, 1.0)
    assert found == {"this": [0.001] * 3}  # 45 s


def die():
    os.kill(os.getpid(), 9)


def test_a_process_that_was_killed(program):
    with pytest.raises(SystemExit, match=r"The process of die\(\) has ended: see above, or it was out of memory"):
        program("train_step").measured_in_a_fresh_process(die)


@pytest.mark.parametrize(
    "name, args, said",
    [
        ("evaluate", ["--widths=32"], "give --frames for each width"),
        ("evaluate", ["--widths=32", "--frames=20"], "32 or more"),
        ("growth", ["--batches=16", "--devices=3"], "has to be a multiple of each of --devices"),
        ("growth", ["--sizes=100"], "--sizes of 16"),
        ("gpu", ["--dtypes=float16"], "float16 is none of float64, float32, bfloat16"),
    ],
)
def test_options_that_do_not_fit(program, monkeypatch, capsys, name, args, said):
    monkeypatch.setattr("sys.argv", [f"{name}.py", *args])
    with pytest.raises(SystemExit) as stopped:
        program(name).main()
    assert stopped.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.slow
def test_render():
    out = run("render", "--size=96", "--turns=1")
    assert [line[""] for line in cells(out)] == ["this rasteriser", "embree, tree built anew", "embree, rays only"]
    assert float(re.search(r"([\d.]+)% of pixels alike", out)[1]) > 99


def test_costs_of_a_profile(program):
    compiled = """
  %fusion.2 = f32[2]{0} fusion(%p), metadata={op_name="jit(adversarial_step)/jvp(Generator)/up1/conv" stack_frame_id=1}
  ROOT %convolution.7 = f32[2]{0} custom-call(%p), metadata={op_name="jit(adversarial_step)/jvp(Generator)/up1/conv"}
  %call.1 = f32[2]{0} call(%p), metadata={op_name="jit(adversarial_step)/jvp(Generator)/up2/conv"}
  %copy.3 = f32[2]{0} copy(%p)
"""

    def event(duration_ns, **stats):
        return types.SimpleNamespace(duration_ns=duration_ns, stats=stats.items())

    events = [event(3, hlo_op="fusion.2"), event(4, hlo_op="convolution.7"), event(5, hlo_op="copy.3")]
    events += [event(90, hlo_op="call.1"), event(80), event(3, hlo_op="fusion.2")]
    line = types.SimpleNamespace(events=events)
    profile = types.SimpleNamespace(planes=[types.SimpleNamespace(lines=[line])])
    assert program("costs").instructions(profile, compiled) == {
        ("fusion.2", "jvp(Generator)/up1/conv"): 6,
        ("convolution.7", "jvp(Generator)/up1/conv"): 4,
        ("copy.3", "copy.3"): 5,
    }


# --- whole programs, each at a tiny size ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def out(method):
    """Of train_step.py."""
    return run("train_step", f"--method={method}", "--widths=4", "--batches=2", "--turns=2", "--seconds=0")


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_synthetic():
    whole, *stages = cells(run("synthetic", "48"))
    assert whole[""] == "whole frame" and float(whole["frames a second"]) > 0
    assert sum(float(line["ms a frame"]) for line in stages) == pytest.approx(float(whole["ms a frame"]), abs=0.05)


@pytest.mark.slow
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


@pytest.mark.slow
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
