"""What the metrics cost beside the network: time of `evaluate` over the time of its calls of the net alone.

    python benchmarks/evaluate.py [--widths=16,128] [--frames=1024,96] [--turns=5]

In turns; the share is the median of the turns'. The generator has random weights and the data is noise; neither changes
the time.
"""

import argparse
import functools
import statistics
import time
from pathlib import Path

import jax
import numpy as np
from train_step import machine, numbers

from facedepth_jax import runtime
from facedepth_jax.data.arrays import Arrays
from facedepth_jax.depth_code import DepthCode
from facedepth_jax.estimator import estimate_depth
from facedepth_jax.evaluation import BATCH, evaluate
from facedepth_jax.models.cgan import Generator
from facedepth_jax.state import Net, adam, init_net


def measured(width, frames, turns):
    """Seconds of the forward passes alone and of the evaluation, (turns, 2)."""
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, (frames, 96, 96), np.uint8)
    depth_mm = rng.integers(0, 2000, gray.shape).astype(np.uint16)
    distance_mm, names = np.full(frames, 900, np.float32), np.arange(frames).astype(str)
    columns = {"distance_mm": distance_mm, "frame": names, "subject": names}
    data = Arrays(Path(), gray, depth_mm, columns, {"crop": {"face_mm": 320.0}})
    net = Generator(width)
    state = init_net(Net(net, adam(2e-4, 0.5, 0.999)), jax.random.key(0), 96)
    estimate = functools.partial(estimate_depth, net, DepthCode())
    estimate = functools.partial(jax.jit(estimate, compiler_options=runtime.inference_options()), state)

    def estimate_only():
        for start in range(0, frames, BATCH):
            batch = jax.device_put((gray[start : start + BATCH], distance_mm[start : start + BATCH]))
            maps, _ = estimate(*batch)
        maps.block_until_ready()

    def estimate_and_measure():
        evaluate(estimate, data, range(frames), DepthCode())

    seconds = np.zeros((turns + 1, 2))
    for turn in range(turns + 1):  # in turns, so that what else the machine does falls on both
        for i, work in enumerate((estimate_only, estimate_and_measure)):
            start = time.perf_counter()
            work()
            seconds[turn, i] = time.perf_counter() - start
    return seconds[1:]  # the first compiles


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=numbers, default=[16, 128], help="as 16,128; even")
    parser.add_argument("--frames", type=numbers, default=[1024, 96], help="of each width, as 1024,96")
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    if len(args.widths) != len(args.frames) or min(args.frames) < BATCH:
        parser.error(f"give --frames for each width, {BATCH} or more, as --widths=16,128 --frames=1024,96")
    print(f"Batch {BATCH}, {jax.default_backend()}, {machine()}, {args.turns} turns\n")
    print("| width | frames | forward pass alone, images/s | with the metrics, images/s | the metrics cost |")
    print("|---|---|---|---|---|")
    for width, frames in zip(args.widths, args.frames, strict=True):
        frames -= frames % BATCH
        seconds = measured(width, frames, args.turns)
        alone, both = (frames / statistics.median(column) for column in seconds.T)
        cost = statistics.median(seconds[:, 1] / seconds[:, 0] - 1)
        print(f"| {width} | {frames} | {alone:.3g} | {both:.3g} | {cost:.1%} of the forward pass |")


if __name__ == "__main__":
    main()
