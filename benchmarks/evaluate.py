"""What the metrics cost beside the network: time of `evaluate` over the time of its `predict` calls alone.

    python benchmarks/evaluate.py [--widths=16,128] [--frames=1024,96] [--turns=5]

In turns; the share is the median of the turns'. The generator has random weights and the data is noise; neither changes
the time.
"""

import argparse
import statistics
import time

import jax
import numpy as np
from train_step import machine, numbers

from facedepth_jax.depth_code import DepthCode, image_from_gray
from facedepth_jax.evaluation import evaluate
from facedepth_jax.models.cgan import Generator
from facedepth_jax.tasks import EVALUATION_BATCH


def measured(width, frames, turns):
    """Seconds of the forward passes alone and of the evaluation, (turns, 2)."""
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, (frames, 96, 96), np.uint8)
    depth_mm = rng.integers(0, 2000, gray.shape).astype(np.uint16)
    net = Generator(width)
    variables = jax.jit(net.init, static_argnums=2)(jax.random.key(0), np.zeros((1, 96, 96, 1), np.float32), False)
    apply = jax.jit(lambda variables, gray: net.apply(variables, image_from_gray(gray)[..., None], False))

    def predict(gray):
        return apply(variables, gray)

    def predict_only():
        for start in range(0, frames, EVALUATION_BATCH):
            image = predict(jax.device_put(gray[start : start + EVALUATION_BATCH]))
        image.block_until_ready()

    def predict_and_measure():
        evaluate(predict, gray, depth_mm, range(frames), DepthCode(), EVALUATION_BATCH)

    seconds = np.zeros((turns + 1, 2))
    for turn in range(turns + 1):  # in turns, so that what else the machine does falls on both
        for i, work in enumerate((predict_only, predict_and_measure)):
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
    if len(args.widths) != len(args.frames) or min(args.frames) < EVALUATION_BATCH:
        parser.error(f"give --frames for each width, {EVALUATION_BATCH} or more, as --widths=16,128 --frames=1024,96")
    print(f"Batch {EVALUATION_BATCH}, {jax.default_backend()}, {machine()}, {args.turns} turns\n")
    print("| width | frames | forward pass alone, images/s | with the metrics, images/s | the metrics cost |")
    print("|---|---|---|---|---|")
    for width, frames in zip(args.widths, args.frames, strict=True):
        frames -= frames % EVALUATION_BATCH
        seconds = measured(width, frames, args.turns)
        alone, both = (frames / statistics.median(column) for column in seconds.T)
        cost = statistics.median(seconds[:, 1] / seconds[:, 0] - 1)
        print(f"| {width} | {frames} | {alone:.3g} | {both:.3g} | {cost:.1%} of the forward pass |")


if __name__ == "__main__":
    main()
