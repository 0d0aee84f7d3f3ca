"""What a training step's time goes into, on one core: this project's beside PyTorch's (`torch_step.py`).

    pip install -e '.[bench]'
    taskset -c 0 python benchmarks/costs.py [--widths=16,32,128] [--batch=16] [--steps=3]

Milliseconds a step, by profilers: XLA's instructions, sorted by what they compute and by the place in the step that JAX
names; PyTorch's operators by their names. An instruction that computes several things counts as its last. This
project's sums of shifted maps are part of its convolutions, but here they stand with the rest. On one core because
instructions that run beside others cannot be told apart in a profile. "In the kernel", as getrusage has it without a
profiler, is in the rows above it: mostly pages of memory, given anew and zeroed. Without PyTorch its column is left
out. Linux only.
"""

import argparse
import collections
import importlib.util
import multiprocessing
import os
import re
import resource
import tempfile
from pathlib import Path

import jax
from train_step import LAM, OURS, TORCH, Jax, make_batch, make_weights, numbers

# (kind, of an instruction's name, of its place in the step, of a PyTorch operator), the first that fits.
KINDS = (
    ("convolutions and matrix products", "conv(?!ert)|dot", "dot_general$|conv_general_dilated$", "conv|mm$"),
    ("batch norm", "$^", "/norm", "batch_norm"),
    ("activations", "$^", "relu|select_n$|tanh", "relu|threshold|tanh"),
    ("Adam", "$^", "^[a-z_]+$", "adam|optimizer"),
    ("copies, sums of shifted maps, the rest", "", "", ""),
)


KERNEL = "of it in the kernel"


def kind_of(name, place):
    """Of an XLA instruction, by its name and its place in the step."""
    return next(kind for kind, of_name, of_place, _ in KINDS if re.match(of_name, name) or re.search(of_place, place))


def kernel_ms(side, steps):
    """Milliseconds a step that the kernel worked for this process."""
    before_s = resource.getrusage(resource.RUSAGE_SELF).ru_stime
    for _ in range(steps):
        side.wait(side.train())
    return 1e3 * (resource.getrusage(resource.RUSAGE_SELF).ru_stime - before_s) / steps


def profiled(side, steps):
    """{(instruction, its place in the step): nanoseconds} of so many steps of `side`, a `train_step.Jax`."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                losses = side.train()
            side.wait(losses)
        (path,) = Path(folder).rglob("*.xplane.pb")
        return instructions(jax.profiler.ProfileData.from_file(str(path)), side.step.as_text())


def instructions(profile, compiled):
    """{(instruction, its place in the step): nanoseconds} of a profile and the compiled program's text."""
    places = dict(re.findall(r'%([\w.-]+) = .*op_name="(?:jit\(\w+\)/)?([^"]*)"', compiled))
    found = collections.Counter()
    for event in (event for plane in profile.planes for line in plane.lines for event in line.events):
        name = dict(event.stats).get("hlo_op")
        if name and not re.match("call|while|conditional", name):  # what is in them counts
            found[name, places.get(name, name)] += event.duration_ns
    return found


def ours(width, batch_size, steps):
    """{kind, or KERNEL: ms a step}"""
    side = Jax(make_weights(width), make_batch(batch_size), width, "float32", LAM, plain=False)
    side.wait(side.train())
    found = collections.Counter({KERNEL: kernel_ms(side, steps)})
    for (name, place), ns in profiled(side, steps).items():
        found[kind_of(name, place)] += ns / 1e6 / steps
    return found


def pytorchs(width, batch_size, steps):
    """{kind, or KERNEL: ms a step}"""
    import torch
    import torch_step

    side = torch_step.Torch(make_weights(width), make_batch(batch_size), width, "float32", LAM)
    side.train()
    found = collections.Counter({KERNEL: kernel_ms(side, steps)})
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(steps):
            side.train()
    for event in profile.key_averages():
        kind = next(k for k, *_, of_operator in KINDS if re.search(of_operator, event.key.lower()))
        found[kind] += event.self_cpu_time_total / 1e3 / steps
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=numbers, default=[16, 32, 128], help="as 16,32,128; even")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3, help="of each profile")
    args = parser.parse_args()
    if len(os.sched_getaffinity(0)) != 1:
        raise SystemExit("A profile tells costs apart on one core only: taskset -c 0 python benchmarks/costs.py")
    sides = {OURS: ours}
    if importlib.util.find_spec("torch"):
        sides[TORCH] = pytorchs
    spawn, columns = multiprocessing.get_context("spawn"), {}
    for width in args.widths:
        for name, side in sides.items():
            with spawn.Pool(1) as pool:  # memory that another side has left in pieces costs time
                columns[f"width {width}: {name}"] = pool.apply(side, (width, args.batch, args.steps))
    print(f"Milliseconds a training step, batch {args.batch}, float32, one core.\n")
    print(f"| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for kind, *_ in KINDS:
        print(f"| {kind} | {' | '.join(f'{found[kind]:.4g}' for found in columns.values())} |")
    print(f"| all | {' | '.join(f'{sum(found.values()) - found[KERNEL]:.4g}' for found in columns.values())} |")
    print(f"| {KERNEL} | {' | '.join(f'{found[KERNEL]:.3g}' for found in columns.values())} |")


if __name__ == "__main__":
    main()
