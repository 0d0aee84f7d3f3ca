"""What a run says: JSON lines, TensorBoard, the progress bar, and the guard against values that are not finite."""

import contextlib
import json
import math
import pathlib
import re
import sys
import time

import tensorboardX
import tqdm

from facedepth_jax import files
from facedepth_jax.errors import FaceDepthError


def check_finite(step: int, metrics: dict[str, float]):
    """Raises FaceDepthError naming the step and the first value that is NaN or infinite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise FaceDepthError(
                f"Step {step}: {name} is {value}. The run stops, the last good checkpoint is kept; "
                "try a lower learning rate, or look at the data."
            )


# Of the thirteen metrics a line shows a few; metrics.jsonl has all.
_NOT_SHOWN = ("train/grad", *(f"validation/{name}" for name in ("l2", "abs", "squared", "rmse_log", "rmse_s", "delta")))


def _is_up_to(step, line):
    """Whether a line of metrics.jsonl is whole, as a kill may not have left it, and of `step` or before."""
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
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


class Clock:
    """Images a second between two log lines; what runs under `paused` is left out."""

    def __init__(self, batch_size: int):
        self._batch_size = batch_size
        self._step = None

    def lap(self, step: int) -> dict[str, float]:
        """`images_per_sec` since the last call; nothing at the first one, which has the compile before it."""
        now = time.perf_counter()
        rate = {}
        if self._step is not None and step > self._step:
            rate = {"images_per_sec": (step - self._step) * self._batch_size / (now - self._start)}
        self._step, self._start = step, now
        return rate

    @contextlib.contextmanager
    def paused(self):
        """The time in here does not count."""
        begin = time.perf_counter()
        yield
        if self._step is not None:
            self._start += time.perf_counter() - begin
