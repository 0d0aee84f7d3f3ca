"""Disturb short runs at random moments, let them go on, and compare what they leave with an undisturbed run.

python tools/soak.py --minutes=30 --out=soak

SIGKILL and SIGTERM in turn as a seed wills, one method after the other, each from nothing: faces are made, a net is
trained and evaluated, by the command that a user gives. A run that ends otherwise than the undisturbed one stops it,
and its directory stays. On a CPU, or wherever the same program gives the same bits twice.
"""

import argparse
import collections
import dataclasses
import itertools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings

ROOT = pathlib.Path(__file__).parents[1]
PHASES = ("preparing", "starting", "compiling", "training", "saving", "evaluating", "finishing")
STEPS, SAVE = 12, 4
CONFIGS = {  # and of how many people; the verifier needs two in every split
    "synthetic.py:ae": 10,
    "synthetic.py:cgan": 10,
    "verifier.py:synthetic": 20,
    "synthetic.py:pix2pix": 10,
    "synthetic.py:cui": 10,
}
PATIENCE_S = 600  # more than this a tiny run never takes, whatever else the machine does


@dataclasses.dataclass(frozen=True)
class Place:
    """One run and its data, in a directory of their own."""

    folder: pathlib.Path
    config: str

    @property
    def run(self):
        return self.folder / "run"

    @property
    def data(self):
        return self.folder / "data"

    def flags(self, steps: int = STEPS) -> list[str]:
        """Return flags of `facedepth_jax.main`, for a few steps of a tiny net on tiny faces."""
        values = {
            "width": 2,
            "train.batch_size": 4,
            "train.steps": steps,
            "every.log": 1,
            "every.save": SAVE,
            "data.options.subjects": CONFIGS[self.config],
            "data.options.frames_per_sequence": 2,
            "data.options.image_size": 128,
            "data.workers": 0,
            "data.size": 96 if "verifier" in self.config else 32,  # that net takes no other
            "data.dir": self.data,
        }
        places = [f"--config={ROOT}/configs/{self.config}", f"--workdir={self.run}"]
        return places + [f"--config.{name}={value}" for name, value in values.items()]

    def saved(self) -> int:
        """Return the newest step with a finished checkpoint, 0 if there is none."""
        return max((int(p.name) for p in self.run.glob("checkpoints/" + 8 * "[0-9]")), default=0)

    def lines(self) -> list[dict]:
        """Read metrics.jsonl without a line that is not whole yet."""
        path = self.run / "metrics.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def log_id(self):
        """Identify the log: another one as soon as a start has restored its checkpoint and opens the log."""
        path = self.run / "metrics.jsonl"
        return path.stat().st_ino if path.exists() else None


def phase(place: Place, log_id_before, saved_before: int) -> str:
    """Tell a run's phase, one of PHASES, by the files on the disk; the other arguments are from before it started."""
    if not place.data.exists():
        return "preparing"
    if place.log_id() == log_id_before:
        return "starting"
    if place.saved() == STEPS:
        return "finishing"
    last = (place.lines() or [{"step": 0}])[-1]
    if last["step"] <= saved_before:
        return "compiling"
    if any(len(path.name) > 8 for path in place.run.glob("checkpoints/*")):  # Orbax's temporary name
        return "saving"
    validated = any(name.startswith("validation/") for name in last)
    return "evaluating" if last["step"] % SAVE == 0 and not validated else "training"


@dataclasses.dataclass(frozen=True)
class End:
    """The end of a start: by a signal that hit it in a phase (None: it ended by itself), after which step was saved."""

    phase: str | None
    code: int
    saved: int
    took_s: float  # from the signal, or the start, on


def disturb(start, place: Place, wanted: str | None, delay_s: float, number=signal.SIGKILL) -> End:
    """Start a run and send it a signal `delay_s` after it has reached a phase, or after its start.

    Args:
      start: () -> a process with poll, wait(timeout) and send_signal, as of subprocess.
    """
    before = place.log_id(), place.saved()
    begin, process = time.monotonic(), start()
    try:
        while wanted and process.poll() is None and phase(place, *before) != wanted:
            time.sleep(0.001)
        signalled = time.monotonic() + delay_s
        while process.poll() is None and time.monotonic() < signalled:
            time.sleep(0.001)
        found = None
        if process.poll() is None:
            found, begin = phase(place, *before), time.monotonic()
            process.send_signal(number)
        code = process.wait(PATIENCE_S)
        if number == signal.SIGKILL and found:  # it has been still since
            found = phase(place, *before) if code == -number else None
        return End(found, code, place.saved(), time.monotonic() - begin)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)


def difference(place: Place, whole: Place) -> str:
    """Say in words how two finished runs differ, "" if they left the same bits.

    Times and all kept checkpoints but the last do not count.
    """
    here, there = _contents(place), _contents(whole)
    for name in sorted(here.keys() | there.keys()):
        if here.get(name) != there.get(name):
            return f"{place.folder / name} is not as in {whole.folder}"
    return ""


def _contents(place: Place) -> dict[str, object]:
    found = {}
    for path in place.folder.rglob("*"):
        name = str(path.relative_to(place.folder))
        if path.is_file() and not re.match(r"run/(tensorboard|checkpoints|metrics\.jsonl)|data/\.|log", name):
            found[name] = path.read_bytes().replace(str(place.folder).encode(), b"")
    found["run/metrics.jsonl"] = [
        {name: value for name, value in line.items() if not name.endswith(("_per_sec", "waiting_share"))}
        for line in place.lines()
    ]
    names = {path.name for path in (place.run / "checkpoints").iterdir()}
    found["run/checkpoints, halves"] = sorted(name for name in names if len(name) > 8)
    step = f"run/checkpoints/{place.saved():08d}"
    return found | {f"{step}{name}": value for name, value in _arrays(place.folder / step).items()}


def _arrays(checkpoint: pathlib.Path) -> dict[str, bytes]:
    import jax  # here: a process that forks must not have it
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it puts the arrays on the devices that they were on
        tree = ocp.load(checkpoint)
    return {
        jax.tree_util.keystr(path): np.asarray(value).tobytes()
        for path, value in jax.tree_util.tree_flatten_with_path(tree)[0]
    }


def command(place: Place, log: pathlib.Path):
    """Start the run as a user does."""
    line = [sys.executable, "-m", "facedepth_jax.main", *place.flags()]
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(log.parents[1] / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with log.open("ab") as file:
        return subprocess.Popen(line, cwd=ROOT, env=os.environ | cache, stdout=file, stderr=subprocess.STDOUT)


@dataclasses.dataclass
class Count:
    """Everything that has happened so far."""

    signals: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # by phase and signal
    starts: int = 0
    ended: int = 0
    steps_again: int = 0
    term_codes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    term_longest_s: float = 0.0

    def table(self) -> str:
        """Write the table for RESULTS.md."""
        rows = [(name, *(self.signals[name, sent] for sent in (signal.SIGKILL, signal.SIGTERM))) for name in PHASES]
        rows.append(("all", *(sum(row[i] for row in rows) for i in (1, 2))))
        lines = ["| while | SIGKILL | SIGTERM |", "|---|---:|---:|", *("| {} | {} | {} |".format(*row) for row in rows)]
        codes = ", ".join(f"{count} with exit code {code}" for code, count in sorted(self.term_codes.items()))
        return "\n".join(lines) + (
            f"\n\n{self.ended} runs in {self.starts} starts; each left the same bits as the undisturbed one. "
            f"{self.steps_again} steps were done twice. After SIGTERM: {codes}; "
            f"the longest took {self.term_longest_s:.1f} s to end."
        )


def soak_one(place: Place, whole: Place, whole_s: float, rng: random.Random, deadline: float, count: Count):
    """Take one run from nothing to its end, disturbed until `deadline`, a time of time.monotonic()."""
    log = place.folder / "log"
    while True:
        wanted, delay_s = rng.choice(
            ((None, rng.uniform(0, whole_s)), (rng.choice(PHASES), 0), (rng.choice(PHASES), rng.uniform(0, 0.5)))
        )
        if time.monotonic() > deadline:
            wanted, delay_s = None, PATIENCE_S
        sent, saved = rng.choice((signal.SIGKILL, signal.SIGTERM)), place.saved()
        end = disturb(lambda: command(place, log), place, wanted, delay_s, sent)
        count.starts += 1
        if end.saved < saved:
            sys.exit(f"error: {place.folder} had step {saved} saved and has {end.saved}.")
        if end.phase:
            count.signals[end.phase, sent] += 1
        if end.phase and sent == signal.SIGKILL:
            count.steps_again += max(0, max((line["step"] for line in place.lines()), default=0) - end.saved)
            continue
        if end.phase:
            count.term_codes[end.code] += 1
            count.term_longest_s = max(count.term_longest_s, end.took_s)
        if end.code not in ((0, -signal.SIGTERM) if end.phase else (0,)):  # the latter: before there is a handler
            sys.exit(f"error: a run ended with {end.code}: see {log}.")
        if not end.phase or "igures:" in log.read_text():
            break
    if found := difference(place, whole):
        sys.exit(f"error: {found}.")
    count.ended += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a directory to be made")
    args = parser.parse_args()
    if args.out.exists():
        sys.exit(f"error: {args.out} exists: give another --out.")
    out, rng, count = args.out.resolve(), random.Random(args.seed), Count()
    deadline = time.monotonic() + 60 * args.minutes
    whole, whole_s = {}, {}
    try:
        for number, config in enumerate(itertools.cycle(CONFIGS)):
            if time.monotonic() > deadline:
                break
            if config not in whole:
                whole[config] = Place(out / f"peace-{re.sub(r'[^a-z0-9]', '-', config)}", config)
                whole[config].folder.mkdir(parents=True)
                begin = time.monotonic()
                if code := command(whole[config], whole[config].folder / "log").wait(PATIENCE_S):
                    sys.exit(f"error: a run left in peace ended with {code}: see {whole[config].folder}/log.")
                whole_s[config] = time.monotonic() - begin
            place = Place(out / f"{number:04d}", config)
            place.folder.mkdir()
            soak_one(place, whole[config], whole_s[config], rng, deadline, count)
            shutil.rmtree(place.folder)
            print(f"{count.ended} runs, {count.starts} starts, {count.signals.total()} signals", flush=True)
    finally:
        print(f"\n{count.table()}")


if __name__ == "__main__":
    main()
