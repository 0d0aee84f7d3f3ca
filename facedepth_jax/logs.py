"""Log a run: JSON lines, TensorBoard, the progress bar, the pace; find values that are not finite."""

import contextlib
import json
import math
import pathlib
import re
import sys
import time

import numpy as np
import tensorboardX
import tqdm

from facedepth_jax import files

MAX_WAITING_SHARE = 0.5  # share of the time that may be waiting for data without a warning


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

    A run that goes on at a step forgets the lines after it, so the file is that of an undisturbed run.
    """

    def __init__(self, workdir: pathlib.Path, start_step: int, total_steps: int):
        path = workdir / "metrics.jsonl"
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        files.write_bytes(path, b"".join(line for line in lines if _is_up_to(start_step, line)))
        self._file = open(path, "a", buffering=1)
        self._events = tensorboardX.SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)
        self._bar = tqdm.tqdm(total=total_steps, initial=start_step, unit="step", disable=None, dynamic_ncols=True)

    def write(self, step: int, values: dict[str, float], prefix: str):
        """Write one line: `values`, plain numbers, under `prefix/name`. A terminal shows those of validations."""
        self.show(step, values, prefix)
        values = {f"{prefix}/{name}": value for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        if self._bar.disable or prefix == "validation":
            shown = [f"{name} {value:.6g}" for name, value in values.items() if not name.startswith(_NOT_SHOWN)]
            self.say(f"step {step}: {', '.join(shown)}")

    def show(self, step: int, values: dict[str, float], prefix: str, picture: np.ndarray | None = None):
        """Show values, and a picture, uint8 (H, W, 3), to TensorBoard alone."""
        for name, value in values.items():
            # TensorBoard's writer complains at every line about other characters in a tag.
            self._events.add_scalar(re.sub(r"[^\w./-]", "_", f"{prefix}/{name}"), value, step)
        if picture is not None:
            self._events.add_image(f"{prefix}/faces", picture, step, dataformats="HWC")

    def say(self, text: str):
        """Print a line, above the bar if there is one."""
        self._bar.write(text)
        sys.stdout.flush()

    def advance(self, step: int, shown: dict[str, str]):
        """Move the bar."""
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(step - self._bar.n)

    def close(self):
        self._bar.close()
        self._file.close()
        self._events.close()


class Silence:
    """Log nothing: the first process speaks for all."""

    def write(self, *args):
        pass

    advance = show = say = close = write


class Pace:
    """Measure images a second, and the share of the time in which the device waits for data.

    The loop reads a step's metrics when the device has done it, so that the time between two readings is that of the
    steps between them. Saves and validations, which are `paused`, do not count.
    """

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._warned = False
        self.restart(0)

    def restart(self, step: int):
        """Begin a new interval after `step` steps."""
        self._step, self._begin, self._waiting_sec = step, time.perf_counter(), 0.0

    @contextlib.contextmanager
    def paused(self):
        """Leave out the time in this context."""
        begin = time.perf_counter()
        yield
        self._begin += time.perf_counter() - begin

    def watch(self, batches, is_idle):
        """Yield the batches; the time until one comes counts as waiting if the device is idle by then."""
        while True:
            begin = time.perf_counter()
            batch = next(batches)
            if is_idle():
                self._waiting_sec += time.perf_counter() - begin
            yield batch

    def lap(self, step: int) -> dict[str, float]:
        """Return the figures of the steps since the last call, once `step` is done; warn once of too much waiting."""
        seconds = time.perf_counter() - self._begin
        waiting = self._waiting_sec / seconds
        images = (step - self._step) * self._batch_size
        self.restart(step)
        if waiting > MAX_WAITING_SHARE and not self._warned:
            self._warned = True
            print(
                f"warning: up to step {step} {waiting:.0%} of the time was waiting for data: the disk of data.dir, "
                "or a core of this machine, is too slow for the device.",
                file=sys.stderr,
            )
        return {"images_per_sec": images / seconds, "waiting_share": waiting}
