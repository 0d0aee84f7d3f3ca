"""Log a run: JSON lines, TensorBoard, the progress bar, the pace; find values that are not finite."""

import json
import math
import pathlib
import re
import sys
import time

import tensorboardX
import tqdm

from facedepth_jax import files

MOST_DATA = 0.5  # share of the time that may be waiting for data without a warning


def first_not_finite(metrics: dict[str, float]) -> str | None:
    """Return the first value that is NaN or infinite, in words."""
    return next((f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)), None)


# A line shows some of the values; metrics.jsonl has all.
_NOT_SHOWN = (
    "train/grad",
    *(f"validation/{name}" for name in ("l2", "abs", "squared", "rmse_log", "rmse_s", "delta")),
)


def _is_up_to(step, line):
    """Return whether a line of metrics.jsonl is whole (a kill may cut it) and stays when a run goes on at `step`.

    A validation at `step` itself does not: the run begins with it.
    """
    try:
        values = json.loads(line)
        begins = values["step"] == step and any(name.startswith("validation/") for name in values)
        return line.endswith(b"\n") and values["step"] <= step and not begins
    except (ValueError, KeyError, TypeError):
        return False


class Logs:
    """Write `metrics.jsonl` (an object a line, with "step"), TensorBoard events in `tensorboard/`, a bar on a terminal.

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
        """Write one line: `values`, plain numbers, under `prefix/name`."""
        values = {f"{prefix}/{name}": value for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            # TensorBoard's writer complains at every line about other characters in a tag.
            self._events.add_scalar(re.sub(r"[^\w./-]", "_", name), value, step)
        if self._bar.disable:
            shown = ", ".join(
                f"{name} {value:.4g}" for name, value in values.items() if not name.startswith(_NOT_SHOWN)
            )
            print(f"step {step}: {shown}", flush=True)

    def advance(self, step: int, shown: dict[str, str]):
        """Move the bar."""
        if not self._bar.disable:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(step - self._bar.n)

    def close(self):
        self._bar.close()
        self._file.close()
        self._events.close()


class Silence:
    """Log nothing: the first process speaks for all."""

    def write(self, step, values, prefix):
        pass

    def advance(self, step, shown):
        pass

    def close(self):
        pass


class Pace:
    """Measure images a second, and the share of the time in which the device waits for data.

    Saves, validations and the first step's compilation are left out by `skip` and `restart`.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._warned = False
        self.restart()

    def restart(self):
        """Begin a new interval."""
        self._steps, self._busy_sec, self._waiting_sec = 0, 0.0, 0.0
        self.skip()

    def skip(self):
        """Leave out the time since the last batch came."""
        self._mark = time.perf_counter()

    def watch(self, batches, is_idle):
        """Yield the batches; the time until one comes counts as waiting if the device is idle by then."""
        while True:
            begin = time.perf_counter()
            batch = next(batches)
            now = time.perf_counter()
            waiting = now - begin if is_idle() else 0.0
            self._waiting_sec += waiting
            self._busy_sec += now - self._mark - waiting
            self._steps, self._mark = self._steps + 1, now
            yield batch

    def lap(self, step: int) -> dict[str, float]:
        """Return the figures since the last call, none at the first; warn once of too much waiting."""
        total = self._busy_sec + self._waiting_sec
        if not total:
            return {}
        found = {"images_per_sec": self._steps * self._batch_size / total, "waiting_per_sec": self._waiting_sec / total}
        if found["waiting_per_sec"] > MOST_DATA and not self._warned:
            self._warned = True
            print(
                f"warning: up to step {step} {found['waiting_per_sec']:.0%} of the time was waiting for data: the disk "
                "of data.dir, or a core of this machine, is too slow for the device.",
                file=sys.stderr,
            )
        self._steps, self._busy_sec, self._waiting_sec = 0, 0.0, 0.0
        return found
