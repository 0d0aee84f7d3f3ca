"""What a training step's time goes into, on one core: this project's beside PyTorch's.

    pip install -e '.[bench]'
    taskset -c 0 python benchmarks/costs.py [--method=cgan] [--widths=16,32,128] [--batch=16] [--steps=3]

Milliseconds a step, by profilers: XLA's instructions, sorted by what they compute and by the place in the step that JAX
names; PyTorch's operators by their names. An instruction that computes several things counts as its last. This
project's sums of shifted maps are part of its convolutions, but here they stand with the rest; clipping stands with
Adam. On one core because instructions that run beside others cannot be told apart in a profile. This project's step of
the cGAN also computes its gradients' norms and the discriminator's accuracies; PyTorch's does not.

The last two rows are without a profiler: a step by the clock, and what the kernel works for the process of it, as
giving it pages of memory. Without PyTorch its column is left out. Linux only.
"""

import argparse
import collections
import importlib.util
import os
import re
import resource
import tempfile
import time
from pathlib import Path

import jax
from train_step import OURS, SIZES, TORCH, TWINS, Jax, make_batch, make_weights, measured_in_a_fresh_process, numbers

from facedepth_jax.methods import METHODS

# (kind, of an instruction's name, of its place in the step, of a PyTorch operator), the first that fits.
KINDS = (
    ("convolutions and matrix products", "conv(?!ert)|dot", "dot_general$|conv_general_dilated$", "conv|mm$"),
    ("batch norm", "$^", "/norm", "batch_norm"),
    ("activations", "$^", "relu|(Generator|Discriminator).*select_n$|tanh", "relu|threshold|tanh"),
    ("Adam", "$^", "(^|/)optimizer/", "adam|optimizer|vector_norm|mul_$"),
    ("copies, sums of shifted maps, the rest", "", "", ""),
)
CLOCK, KERNEL = "a step by the clock", "of it in the kernel"


def kind_of(name, place):
    """Of an XLA instruction, by its name and its place in the step."""
    return next(kind for kind, of_name, of_place, _ in KINDS if re.match(of_name, name) or re.search(of_place, place))


def without_profiler(side, steps):
    """{CLOCK, KERNEL: ms a step}"""
    start_s, kernel_s = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_stime
    for _ in range(steps):
        side.wait(side.train())
    kernel_s = resource.getrusage(resource.RUSAGE_SELF).ru_stime - kernel_s
    return {CLOCK: 1e3 * (time.perf_counter() - start_s) / steps, KERNEL: 1e3 * kernel_s / steps}


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


def ours(method, width, batch_size, steps):
    """{kind, CLOCK, KERNEL: ms a step}"""
    side = Jax(method, make_weights(method, width), make_batch(batch_size), width, "float32")
    side.wait(side.train())
    found = collections.Counter(without_profiler(side, steps))
    for (name, place), ns in profiled(side, steps).items():
        found[kind_of(name, place)] += ns / 1e6 / steps
    return found


def pytorchs(method, width, batch_size, steps):
    """{kind, CLOCK, KERNEL: ms a step}"""
    import torch

    twin, weights = importlib.import_module(TWINS[method]), make_weights(method, width)
    side = twin.Torch(weights, make_batch(batch_size), width, "float32", METHODS[method].loss)
    side.train()
    found = collections.Counter(without_profiler(side, steps))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(steps):
            side.train()
    for event in profile.key_averages():
        kind = next(k for k, *_, of_operator in KINDS if re.search(of_operator, event.key.lower()))
        found[kind] += event.self_cpu_time_total / 1e3 / steps
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=TWINS, default="cgan")
    parser.add_argument("--widths", type=numbers, help="as 16,32,128; even")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3, help="of each profile")
    args = parser.parse_args()
    if len(os.sched_getaffinity(0)) != 1:
        raise SystemExit("A profile tells costs apart on one core only: taskset -c 0 python benchmarks/costs.py")
    sides = {OURS: ours}
    if importlib.util.find_spec("torch"):
        sides[TORCH] = pytorchs
    columns = {}
    for width in args.widths or SIZES[args.method][0]:
        for name, side in sides.items():  # each on its own: memory that another has left in pieces costs time
            sizes = width, args.batch, args.steps
            columns[f"width {width}: {name}"] = measured_in_a_fresh_process(side, args.method, *sizes)
    print(f"Milliseconds a training step, {args.method}, batch {args.batch}, float32, one core.\n")
    print(f"| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for row in (*(kind for kind, *_ in KINDS), CLOCK, KERNEL):
        print(f"| {row} | {' | '.join(f'{found[row]:.4g}' for found in columns.values())} |")


if __name__ == "__main__":
    main()
