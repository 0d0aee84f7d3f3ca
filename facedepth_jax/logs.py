"""What a run says: JSON lines, TensorBoard, the progress bar, and the guard against values that are not finite."""

import json
import math
import pathlib
import re
import sys
import time

import tensorboardX
import tqdm

from facedepth_jax import files

MOST_DATA = 0.5  # share of training time that may be waiting for data without a warning


def first_not_finite(metrics: dict[str, float]) -> str | None:
    """The first value that is NaN or infinite, in words."""
    return next((f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)), None)


# Of the thirteen metrics a line shows a few, and of the times none; metrics.jsonl has all.
_NOT_SHOWN = (
    "train/grad",
    "train/time",
    *(f"validation/{name}" for name in ("l2", "abs", "squared", "rmse_log", "rmse_s", "delta")),
)


def _is_up_to(step, line):
    """Whether a line of metrics.jsonl is whole, as a kill may not have left it, and of `step` or before; but no
    validation at `step` itself, which is what a run begins with."""
    try:
        values = json.loads(line)
        begins = values["step"] == step and any(name.startswith("validation/") for name in values)
        return line.endswith(b"\n") and values["step"] <= step and not begins
    except (ValueError, KeyError, TypeError):
        return False


class Logs:
    """`metrics.jsonl` (one object a line, with "step"), TensorBoard events in `tensorboard/`, a bar on a terminal.

    A run that goes on at step k forgets the lines after it, so the file is that of an undisturbed run.
    """

    def __init__(self, workdir: pathlib.Path, start_step: int, total_steps: int):
        path = workdir / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        files.write_bytes(path, b"".join(line for line in lines if _is_up_to(start_step, line)))
        self._file = open(path, "a", buffering=1)
        self._events = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)
        self._bar = tqdm.tqdm(
            total=total_steps, initial=start_step, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True
        )

    def write(self, step: int, values: dict[str, float], prefix: str):
        """One line: `values`, plain numbers, under `prefix/name`."""
        values = {f"{prefix}/{name}": value for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            # What TensorBoard allows in a tag, or its writer complains at every line.
            self._events.add_scalar(re.sub(r"[^\w./-]", "_", name), value, step)
        if self._bar.disable:
            shown = ", ".join(
                f"{name} {value:.4g}" for name, value in values.items() if not name.startswith(_NOT_SHOWN)
            )
            print(f"step {step}: {shown}", flush=True)

    def advance(self, step: int, shown: dict[str, str]):
        """Moves the bar."""
        if not self._bar.disable:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(step - self._bar.n)

    def close(self):
        self._bar.close()
        self._file.close()
        self._events.close()


class Silence:
    """What the other processes say: the first speaks for all."""

    def write(self, step, values, prefix):
        pass

    def advance(self, step, shown):
        pass

    def close(self):
        pass


class Clock:
    """Where the time of a run goes: every second since its start is charged to one of PARTS.

    start: preparing, opening, restoring. compile: the first step. data: batches that the device had nothing to do
    before. step: all else between batches. evaluation: on the validation split. save: starting a save, and waiting for
    the one before. test: the end of the run.
    """

    PARTS = ("start", "compile", "data", "step", "evaluation", "save", "test")

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._charged_until = time.perf_counter()
        self._seconds = dict.fromkeys(self.PARTS, 0.0)
        self._lap = None  # step and seconds at its begin
        self._warned = False

    def charge(self, part: str):
        """What has passed since the last call goes to `part`."""
        now = time.perf_counter()
        self._seconds[part] += now - self._charged_until
        self._charged_until = now

    def lap(self, step: int) -> dict[str, float]:
        """Seconds by part since the last call and images a second in those of steps, data and saves.

        At the first call since the start, with no images a second.
        """
        self.charge("step")
        begun, before = self._lap or (step, dict.fromkeys(self.PARTS, 0.0))
        self._lap = step, dict(self._seconds)
        passed = {part: self._seconds[part] - before[part] for part in self.PARTS}
        found = {f"time_{part}_sec": passed[part] for part in self.PARTS if part != "test"}
        if step > begun:
            training = passed["step"] + passed["data"] + passed["save"]
            found["images_per_sec"] = (step - begun) * self._batch_size / training
            if passed["data"] > MOST_DATA * training and not self._warned:
                self._warned = True
                print(
                    f"warning: from step {begun} to {step} {passed['data'] / training:.0%} of the time was waiting for "
                    "data: the disk of data.dir, or a core of this machine, is too slow for the device.",
                    file=sys.stderr,
                )
        return found

    def account(self) -> str:
        """One line: the seconds since the start, and the share of each part."""
        total = sum(self._seconds.values()) or 1.0
        parts = [f"{part} {sec:.1f} s ({sec / total:.0%})" for part, sec in self._seconds.items() if sec]
        return f"Time: {total:.1f} s: {', '.join(parts)}"
