"""Speed and memory of preparation over raw directories, and of the decoder of Biwi's depth.

    python tools/raw_trees.py --dataset=biwi --out=RAW/biwi --frames=4 --repeat=28
    python tools/raw_trees.py --dataset=pandora --out=RAW/pandora --frames=1 --repeat=24
    python benchmarks/prepare.py --biwi=RAW/biwi --pandora=RAW/pandora [--workers=0,1,2]

Each preparation is the program itself, from its start to its end, into a directory that is removed again. Memory is the
largest sum, seen twenty times a second, of what its processes hold: resident, where pages that several share count
several times, and proportional, where they count once. Linux only. The decoder is measured in turns with NumPy reading
the same bytes, on files that are in memory already.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from train_step import numbers

from facedepth_jax.data.readers.biwi_files import decode_depth


def tree(pid):
    """A process and all below it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *itertools.chain.from_iterable(tree(child) for child in children)]


def memory_mib(pid):
    """Resident and proportional memory of a process and all below it."""
    total = {"Rss:": 0, "Pss:": 0}
    for one in tree(pid):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()[1:]
        except OSError:  # it has ended
            continue
        for name, kib, *_ in map(str.split, lines):
            if name in total:
                total[name] += int(kib) / 1024
    return np.array(list(total.values()))


def preparation(dataset, raw, out, *flags):
    """Frames there, frames made of them, seconds, peak memory in MiB (resident, proportional)."""
    command = [sys.executable, "-m", "facedepth_jax.prepare", f"--dataset={dataset}", f"--raw={raw}", f"--out={out}"]
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log, subprocess.Popen([*command, *flags], stdout=log, stderr=log) as process:
        peak = np.zeros(2)
        while process.poll() is None:
            peak = np.maximum(peak, memory_mib(process.pid))
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        if process.returncode:
            log.seek(0)
            raise SystemExit(log.read())
    meta = json.loads(Path(out, "meta.json").read_text())
    made = sum(split["frames"] for split in meta["counts"].values())
    return made + meta["rejects"]["count"], made, seconds, peak


def decoder(raw, files, turns):
    """Median microseconds a file of: reading and decoding; NumPy reading the same bytes; NumPy reading the picture as
    it would be without run lengths."""
    paths = sorted(Path(raw).rglob("*_depth.bin"))
    paths = paths[:: max(1, len(paths) // files)][:files]
    took = np.zeros((turns, len(paths), 3))
    with tempfile.TemporaryDirectory() as place:
        for i, path in enumerate(paths):
            width, height = map(int, np.fromfile(path, "<i4", 2))
            plain = Path(place, "plain")
            decode_depth(path.read_bytes(), (width, height)).tofile(plain)
            for turn in range(turns):
                times = [time.perf_counter()]
                decode_depth(path.read_bytes(), (width, height))
                times.append(time.perf_counter())
                np.fromfile(path, "<i2")
                times.append(time.perf_counter())
                np.fromfile(plain, "<u2")
                times.append(time.perf_counter())
                took[turn, i] = np.diff(times)
    return np.median(took, (0, 1)) * 1e6, len(paths)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--biwi", help="raw directory")
    parser.add_argument("--pandora", help="raw directory")
    parser.add_argument("--workers", type=numbers, default=[0, 1, 2], help="as 0,1,2")
    parser.add_argument("--turns", type=int, default=20, help="of the decoder, each file")
    args = parser.parse_args()
    print("| data set | frames | made | workers | made a second | peak memory, resident | proportional |")
    print("|---|---|---|---|---|---|---|")
    for dataset in ("biwi", "pandora"):
        if raw := getattr(args, dataset):
            for workers in args.workers:
                with tempfile.TemporaryDirectory() as place:
                    found = preparation(dataset, raw, f"{place}/out", f"--workers={workers}")
                frames, made, seconds, (rss, pss) = found
                row = [dataset, frames, made, workers, f"{made / seconds:.0f}", f"{rss:.0f} MiB", f"{pss:.0f} MiB"]
                print(f"| {' | '.join(map(str, row))} |", flush=True)
    if args.biwi:
        (ours, same, plain), files = decoder(args.biwi, 50, args.turns)
        print(
            f"\nBiwi's depth.bin, {files} files, {args.turns} turns, medians:\n\n| | µs a file | ratio |\n|---|---|---|"
        )
        for name, value in (("read and decoded", ours), ("NumPy reads the same bytes", same),
                            ("NumPy reads the picture stored plain", plain)):  # fmt: skip
            print(f"| {name} | {value:.0f} | {ours / value:.2f} |")


if __name__ == "__main__":
    main()
