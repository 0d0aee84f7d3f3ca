"""What the cGAN's training step costs by width, batch, image size and devices, and the data by the number of frames.

    python benchmarks/growth.py [--out=runs] [--frames=1000,10000,100000,1000000]

From one point, the first value of each list, one thing grows at a time; each point is measured in a process of its own.
Prints the tables and writes the picture, OUT/growth.png.

Everything is on the CPU. Devices are XLA's forced host devices, so they share the machine's cores: one device on one
core against two on two shows what a second one brings; beyond that only the operations and the memory of a device can
fall, which shows that the work is divided. Both are XLA's, of what it compiles for one device; the memory is state,
batch and the most that the step needs beside them. Images/s are the median of --turns turns of at least --seconds.

The frames are those of a folder data set whose lines all name the same image, prepared at 32 px, so that a million fit:
what an image itself costs only adds up, at 96 px nine times as many bytes. The program prepares them, from its start
to its end, in one process; then a fresh process opens the arrays, hashes included, and draws batches of 16 in the
seed's order.
"""

import argparse
import math
import os
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import jax
import matplotlib
import numpy as np
from prepare import preparation
from train_step import configured, machine, make_batch, measured_in_a_fresh_process, memory_mib, numbers

from facedepth_jax import config as configs
from facedepth_jax import devices, methods
from facedepth_jax.data import arrays, pipeline
from facedepth_jax.state import init_state

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import EngFormatter

NAMES = ("width", "batch", "image, px", "devices")


def measured(point, cores, turns, seconds):
    """Images/s, GFLOP and MiB of one device, in a process that has not computed yet."""
    os.sched_setaffinity(0, cores)
    forced = f"--xla_force_host_platform_device_count={point['devices']}"
    os.environ["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} {forced}" if "XLA_FLAGS" in os.environ else forced
    jax.config.update("jax_platforms", "cpu")
    mesh = devices.make_mesh()
    config, size = configured("cgan", point["width"]), point["image, px"]
    nets = methods.build(config, subjects=1)
    batch = devices.put_batch(mesh, make_batch(point["batch"], size))
    state = jax.device_put(init_state(nets, 0, size), devices.replicated(mesh))
    step = methods.make_step(config, nets, configs.depth_code(config))
    step = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    memory = step.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    held += memory.temp_size_in_bytes

    def run(count):
        nonlocal state
        start = time.perf_counter()
        for _ in range(count):
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        return (time.perf_counter() - start) / count

    run(1)
    count = max(1, math.ceil(seconds / run(1)))
    took = statistics.median(run(count) for _ in range(turns))
    return point["batch"] / took, step.cost_analysis()["flops"] / 1e9, held / 2**20


def write_raw(folder, frames):
    """A folder data set of a disc 800 mm away before a wall, a hundred frames a person."""
    depth_mm = cv2.circle(np.full((128, 128), 1500, np.uint16), (64, 64), 32, 800, -1)
    cv2.imwrite(f"{folder}/depth.png", depth_mm)
    cv2.imwrite(f"{folder}/gray.png", (depth_mm // 8).astype(np.uint8))
    with Path(folder, "index.csv").open("w") as file:
        file.write("frame,subject,sequence,gray,depth,head_x,head_y\n")
        file.writelines(f"{i},{i // 100},1,gray.png,depth.png,64,64\n" for i in range(frames))


def opened(path):
    """Seconds to open and to the first batch of 16, milliseconds of a further one, and MiB at the highest."""
    start = time.perf_counter()
    data = arrays.open(path)
    times = [time.perf_counter() - start]
    examples = {"gray": data.gray, "depth_mm": data.depth_mm}
    batches = pipeline.batches(examples, data.rows("train"), batch_size=16, seed=0)
    for _ in range(201):
        next(batches)
        times.append(time.perf_counter() - start)
    further = statistics.median(np.diff(times[1:]))
    return times[0], times[1] - times[0], 1000 * further, memory_mib("VmHWM")


def by_frames(numbers_of_frames):
    """Prints the table of the data; yields (frames, frames/s prepared, MiB of it)."""
    print(
        "\n| frames | prepared a second | MiB of it | opened, s | first batch, s | a further one, ms | MiB of reading |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    for frames in numbers_of_frames:
        with tempfile.TemporaryDirectory() as place:
            write_raw(place, frames)
            flags = "--focal=365", "--size=32", "--workers=0"
            _, made, seconds, (rss, _) = preparation("folder", place, f"{place}/out", *flags)
            figures = measured_in_a_fresh_process(opened, f"{place}/out")
        cells = [f"{frames:,}", f"{made / seconds:.0f}", f"{rss:.0f}", *(f"{value:.3g}" for value in figures)]
        print(f"| {' | '.join(cells)} |", flush=True)
        yield frames, made / seconds, rss


def points(grown, cores):
    """(what grows, the point, the cores it has); grown: {name: values}."""
    first = {name: values[0] for name, values in grown.items()}
    for name, values in grown.items():
        for value in values:
            yield name, first | {name: value}, cores[:value] if name == "devices" else cores


def picture(found, path):
    """Images/s and memory over what grows. found: (what grows, its value, images/s, MiB)"""
    with plt.rc_context({"font.size": 8}):
        names = (*NAMES, "frames")
        figure, axes = plt.subplots(2, len(names), figsize=(11, 4), sharex="col", layout="constrained")
        for column, name in zip(axes.T, names, strict=True):
            values, *rows = zip(*((value, *figures) for what, value, *figures in found if what == name), strict=True)
            for axis, row, color in zip(column, rows, ("C0", "C1"), strict=True):
                axis.plot(values, row, "o-", color=color)
                axis.set_ylim(0, 1.1 * max(row))
                axis.grid(alpha=0.3)
            column[1].set_xscale("log", base=2)
            column[1].set_xticks(values, map(EngFormatter(sep=""), values))  # 1k, 1M
            column[1].minorticks_off()
            column[1].set_xlabel(name)
        axes[0, 0].set_ylabel("images/s")
        axes[1, 0].set_ylabel("MiB a device")
        axes[0, -1].set_title("frames/s prepared", fontsize=8)
        axes[1, -1].set_title("MiB of preparing", fontsize=8)
        figure.savefig(path, dpi=110, metadata={"Software": None})
        plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=numbers, default=[16, 32, 64, 128], help="as 16,32; even")
    parser.add_argument("--batches", type=numbers, default=[16, 32, 64, 128])
    parser.add_argument("--sizes", type=numbers, default=[96, 192], help="pixels, multiples of 16")
    parser.add_argument("--devices", type=numbers, default=[1, 2, 4, 8])
    parser.add_argument("--frames", type=numbers, default=[1000, 10_000])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if any(args.batches[0] % count for count in args.devices) or any(size % 16 for size in args.sizes):
        parser.error("the first of --batches has to be a multiple of each of --devices, --sizes of 16")
    print(f"{machine()}, {args.turns} turns of {args.seconds} s\n")
    print(f"| what grows | {' | '.join(NAMES)} | cores | images/s | GFLOP a device | MiB a device |")
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    found, known = [], {}
    grown = dict(zip(NAMES, (args.widths, args.batches, args.sizes, args.devices), strict=True))
    for name, point, own_cores in points(grown, cores):
        key = (*point.values(), *own_cores)
        if key not in known:
            known[key] = measured_in_a_fresh_process(measured, point, own_cores, args.turns, args.seconds)
        speed, gflop, mib = known[key]
        found.append((name, point[name], speed, mib))
        cells = [name, *point.values(), len(own_cores), f"{speed:.3g}", f"{gflop:.3g}", f"{mib:.3g}"]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    found += [("frames", *figures) for figures in by_frames(args.frames)]
    args.out.mkdir(parents=True, exist_ok=True)
    picture(found, args.out / "growth.png")


if __name__ == "__main__":
    main()
