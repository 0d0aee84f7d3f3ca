"""The pipeline against NumPy reading the same arrays, how long a training step waits for its batch, and augmentation.

    python benchmarks/pipeline.py [--width=16] [--batch=16] [--relief_batch=32] [--frames=12000] [--turns=5]

Alone: batches a second, read and thrown away. Training: the loop of train.py with the cGAN's step at 96 x 96 px. What
it waits is the time in which it gets a batch and puts it on the device, over the whole. All in turns, medians. The
second table is the same loop with the step of configs/relief.py with and without `train.augment`, fed by one thread;
there the device waits when it has done the step before, as in metrics.jsonl.

The arrays are noise in a memory map that the page cache holds. One thread is what training uses. Threads and processes
are grain's.
"""

import argparse
import dataclasses
import functools
import itertools
import statistics
import tempfile
import time
import types
from pathlib import Path

import grain
import jax
import numpy as np
from absl import flags
from train_step import Jax, machine, make_batch, make_weights, numbers

from facedepth_jax import config as configs
from facedepth_jax import devices, methods
from facedepth_jax.data import pipeline
from facedepth_jax.state import init_state, variables

NAMES = ("gray", "depth_mm", "distance_mm", "subject")


def write_arrays(folder, frames):
    """As on disk, 27.6 kB a frame."""
    batch = make_batch(64)
    for name in NAMES:
        np.save(folder / f"{name}.npy", np.resize(batch[name], (frames, *batch[name].shape[1:])))


@functools.cache  # once a process
def read_arrays(folder):
    return {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in NAMES}


def by_numpy(arrays, batch_size):
    """Batch after batch in a random order."""
    frames = len(arrays["gray"])
    for step in itertools.count():
        rows = np.random.default_rng(step).integers(0, frames, batch_size)
        yield {name: array[rows] for name, array in arrays.items()}


def by_threads(arrays, batch_size, threads):
    pipeline.READ = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
    return pipeline.batches(arrays, np.arange(len(next(iter(arrays.values())))), batch_size=batch_size, seed=0)


def by_processes(folder, frames, batch_size, processes):
    """As pipeline.batches, in processes that open the arrays themselves."""
    order = grain.MapDataset.range(frames).seed(0).shuffle().repeat().batch(batch_size)
    examples = order.map(lambda rows: pipeline._gather(read_arrays(folder), rows))
    examples = examples.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
    return iter(examples.mp_prefetch(grain.MultiprocessingOptions(num_workers=processes, per_worker_buffer_size=4)))


def alone(batches, count):
    """Seconds a batch."""
    for _ in range(8):  # what lies ready
        next(batches)
    start = time.perf_counter()
    for _ in range(count):
        jax.block_until_ready(next(batches))
    return (time.perf_counter() - start) / count


def train(side, batches, count):
    """Seconds a step, of these the seconds for getting a batch, and of those the ones with the step before done."""
    waited, idle, before = 0.0, 0.0, None
    start = time.perf_counter()
    for _ in range(count):
        asked = time.perf_counter()
        batch = next(batches)
        waited += (took := time.perf_counter() - asked)
        if before is not None and all(value.is_ready() for value in before.values()):
            idle += took
        side.state, metrics = side.step(side.state, batch)
        jax.block_until_ready(before)  # as train.py: the metrics of the step before
        before = metrics
    jax.block_until_ready(before)
    return (time.perf_counter() - start) / count, waited / count, idle / count


def relief(mesh, width, augment):
    """A side with the step of configs/relief.py."""
    config = configs.load("relief", [f"width={width}", f"train.augment={augment}"])
    nets = methods.build(config, subjects=1)
    step = jax.jit(methods.make_step(config, nets, configs.depth_code(config)), donate_argnums=0)
    state = init_state(nets, config.seed, config.data.size)
    state = dataclasses.replace(state, average=variables(state.nets["generator"]))
    return types.SimpleNamespace(state=devices.put_everywhere(mesh, state), step=step)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--relief_batch", type=int, default=32)
    parser.add_argument("--frames", type=int, default=12000)
    parser.add_argument("--reads", type=int, default=200, help="batches of a turn alone")
    parser.add_argument("--steps", type=int, default=20, help="of a turn of training")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--processes", type=numbers, default=[1, 2], help="as 1,2")
    args = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # grain's processes ask for it
    mesh = devices.make_mesh()
    put = functools.partial(devices.put_batch, mesh)
    side = Jax("cgan", make_weights("cgan", args.width), make_batch(args.batch), args.width, "float32")

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_arrays(folder, args.frames)
        arrays = read_arrays(folder)
        devices._memory_bytes = lambda: 2**62  # as on a device with room
        rows, put_rows = devices.place_examples(mesh, arrays)
        sources = {
            "NumPy": by_numpy(arrays, args.batch),
            "the pipeline, in the loop itself": by_threads(arrays, args.batch, 0),
            "the pipeline, one thread": by_threads(arrays, args.batch, 1),
            "the pipeline, two threads": by_threads(arrays, args.batch, 2),
            "row numbers by one thread, gathered on the device": by_threads(rows, args.batch, 1),
        }
        for processes in args.processes:
            sources[f"grain's processes: {processes}"] = by_processes(folder, args.frames, args.batch, processes)
        on_device = {name: map(put_rows if "device" in name else put, batches) for name, batches in sources.items()}
        reading = {name: on_device[name] if "device" in name else batches for name, batches in sources.items()}
        same = next(on_device["NumPy"])
        training = {"the same batch again": itertools.repeat(same)} | on_device
        for batches in training.values():
            train(side, batches, 1)
        reliefs = {name: relief(mesh, args.width, name == "with") for name in ("without", "with")}
        augmented = map(put, by_threads(arrays, args.relief_batch, 1))
        for net in reliefs.values():
            train(net, augmented, 1)
        read = {name: [] for name in reading}
        trained = {name: [] for name in training}
        timed = {name: [] for name in reliefs}
        for _ in range(args.turns):
            for name, batches in reading.items():
                read[name].append(alone(batches, args.reads))
            for name, batches in training.items():
                trained[name].append(train(side, batches, args.steps))
            for name, net in reliefs.items():
                timed[name].append(train(net, augmented, args.steps))

        print(f"Width {args.width}, batch {args.batch}, {jax.default_backend()}, {machine()}, {args.turns} turns\n")
        print("| batches by | alone, images/s | of NumPy's | training, images/s | waits for its batch |")
        print("|---|---|---|---|---|")
        for name, turns in trained.items():
            cells = ["", ""]
            if name in read:
                speed = args.batch / statistics.median(read[name])
                ratio = statistics.median(np.divide(read["NumPy"], read[name]))
                cells = [f"{speed:.0f}", f"{ratio:.2f}"]
            seconds = statistics.median(s for s, _, _ in turns)
            waits = statistics.median(w / s for s, w, _ in turns)
            cells += [f"{args.batch / seconds:.3g}", "" if name.startswith("the same") else f"{waits:.1%}"]
            print(f"| {name} | {' | '.join(cells)} |")

        print(f"\nThe method relief, width {args.width}, batch {args.relief_batch}\n")
        print("| augmentation | training, images/s | time of a step / without | the device waits |")
        print("|---|---|---|---|")
        for name, turns in timed.items():
            seconds, _, idle = np.transpose(turns)
            ratio = statistics.median(seconds / [s for s, _, _ in timed["without"]])
            speed = args.relief_batch / statistics.median(seconds)
            print(f"| {name} | {speed:.3g} | {ratio:.3f} | {statistics.median(idle / seconds):.1%} |")


if __name__ == "__main__":
    main()
