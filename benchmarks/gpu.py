"""The training step on a GPU against PyTorch on the same card, and what its time goes into.

    pip install -e '.[cuda,bench]'
    python benchmarks/gpu.py [--method=cgan] [--width=128] [--dtypes=bfloat16,float32] [--batches=64,256]

As `train_step.py`, without plain flax, whose convolutions are this project's own on a GPU: first the proof that both
sides do the same, then in turns; the same table. PyTorch is compiled, channels last, bfloat16 under autocast. The
operations are those that XLA counts in this project's step. A row that cannot be had (out of memory) is told below the
table, and the exit code is 1.

Then, for the first type and the first batch, in a process of its own: that the state is donated and the loop moves
nothing between host and device (or it stops); how long the host took to hand over the steps; and the table of the
largest costs in a profile. A cost is all instructions of one place in the step, as JAX names it; "transpose(jvp(...))"
is backward.

Not run on a GPU yet; on a CPU it runs too, which says nothing about one.
"""

import argparse
import collections
import os
import time

import costs
import jax
import train_step
from train_step import OURS, PLAIN, TRAINING, TWINS, Jax, make_batch, make_weights, numbers

COSTS = 3
NO_GRAPHS = "--xla_gpu_enable_command_buffer="  # kernels in a graph are one event in a profile


def device_kind():
    return jax.devices()[0].device_kind


def profiled(method, width, batch_size, dtype, steps):
    """Lines that say how the loop runs, and {place in the step: nanoseconds of its instructions}."""
    side = Jax(method, make_weights(method, width), make_batch(batch_size), width, dtype)
    side.wait(side.train())
    before = side.state
    start = time.perf_counter()
    with jax.transfer_guard("disallow"):
        for _ in range(steps):
            losses = side.train()
    handed_over_s = time.perf_counter() - start
    side.wait(losses)
    took_s = time.perf_counter() - start
    if not all(leaf.is_deleted() for leaf in jax.tree.leaves(before)):
        raise SystemExit("The step does not take its state's memory: it is not donated.")
    lines = [
        "The state is donated, and the step moves nothing between host and device (jax.transfer_guard).",
        f"{steps} steps: handed over in {1e3 * handed_over_s:.1f} ms, done in {1e3 * took_s:.1f} ms.",
    ]
    found = collections.Counter()
    for (_, place), ns in costs.profiled(side, steps).items():
        found[place] += ns
    return lines, found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=TWINS, default="cgan")
    parser.add_argument(
        "--dtypes", type=lambda text: text.split(","), default=["bfloat16", "float32"], help="as bfloat16,float32"
    )
    parser.add_argument("--batches", type=numbers, default=[64, 128, 256, 512, 1024])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="the least that a turn takes")
    parser.add_argument("--steps", type=int, default=10, help="of the profile")
    args = parser.parse_args()
    if unknown := set(args.dtypes) - set(train_step.TOLERANCE):
        parser.error(f"--dtypes: {', '.join(sorted(unknown))} is none of {', '.join(train_step.TOLERANCE)}")
    names = [name for name in train_step.sides() if name != PLAIN]
    device = train_step.measured_in_a_fresh_process(device_kind)
    said, missing, measured = train_step.proved_in_float64(args.method, names) if len(names) > 1 else [], [], {}
    print(f"{args.method}, {device}, {args.turns} turns of {args.seconds} s\n\n{train_step.heads(names)}", flush=True)
    for dtype in args.dtypes:
        for batch_size in args.batches:
            try:
                with train_step.contest(args.method, names, args.width, batch_size, dtype) as (pipes, worst):
                    lines, peak, sat_out = train_step.rows(
                        names, pipes, {TRAINING: batch_size}, args.width, {}, args, f"{dtype}, "
                    )
            except SystemExit as stopped:
                missing.append(f"{dtype}, batch {batch_size}: {stopped}")
                continue
            said += [*sat_out, *train_step.agreements(worst, f"{dtype}, batch {batch_size}:")]
            measured[batch_size, dtype] = f"{dtype} {peak / 1e12:.3g} TFLOP/s"
            print(*lines, sep="\n", flush=True)
    if not measured:
        raise SystemExit("\n".join(missing))
    print(f"\nThe peak: {', '.join(measured.values())}.", *said, *missing, sep="\n", flush=True)

    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {NO_GRAPHS}".strip()  # of the next process
    batch_size, dtype = next(iter(measured))
    sizes = args.width, batch_size, dtype, args.steps
    lines, found = train_step.measured_in_a_fresh_process(profiled, args.method, *sizes)
    total = sum(found.values())
    print("", *lines, f"\n| largest costs of {OURS}, {dtype}, batch {batch_size} | share |", sep="\n")
    print("|---|---|", *(f"| `{place}` | {ns / total:.1%} |" for place, ns in found.most_common(COSTS)), sep="\n")
    if missing:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
