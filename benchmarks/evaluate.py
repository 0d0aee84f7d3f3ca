"""What the metrics cost beside the network: time of `evaluate` over the time of its `predict` calls alone.

python benchmarks/evaluate.py [--width=16] [--frames=256] [--batch_size=32]

The generator has random weights and the data is noise; neither changes the time. 1.0 would be metrics for nothing.
"""

import argparse
import time

import jax
import numpy as np

from facedepth_jax.evaluate import evaluate
from facedepth_jax.levels import DepthCode, image_from_gray
from facedepth_jax.models.cgan import Generator


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--frames", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=32)
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, (args.frames, 96, 96), np.uint8)
    depth_mm = rng.integers(0, 2000, gray.shape).astype(np.uint16)
    net = Generator(args.width)
    variables = jax.jit(net.init, static_argnums=2)(jax.random.key(0), np.zeros((1, 96, 96, 1), np.float32), False)
    apply = jax.jit(lambda variables, gray: net.apply(variables, image_from_gray(gray)[..., None], False))

    def predict(gray):
        return apply(variables, gray)

    def predict_only():
        for start in range(0, args.frames, args.batch_size):
            image = predict(jax.device_put(gray[start : start + args.batch_size]))
        image.block_until_ready()

    def predict_and_measure():
        evaluate(predict, gray, depth_mm, range(args.frames), DepthCode(), args.batch_size)

    works = (predict_only, predict_and_measure)
    times = {work.__name__: [] for work in works}
    for _ in range(6):  # in turns, so that what else the machine does falls on both
        for work in works:
            start = time.perf_counter()
            work()
            times[work.__name__].append(time.perf_counter() - start)
    best = {name: min(seconds[1:]) for name, seconds in times.items()}  # the first compiles
    for name, seconds in best.items():
        print(f"{name}: {args.frames / seconds:.0f} images/s (best of 5)")
    print(f"ratio: {best['predict_and_measure'] / best['predict_only']:.2f}")


if __name__ == "__main__":
    main()
