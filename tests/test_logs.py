"""logs.py: what is written can be read, also after a kill."""

import io
import json
import math
import sys
import time

import pytest

from facedepth_jax.errors import FaceDepthError
from facedepth_jax.logs import Logs, Pace, first_not_finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_named(value):
    assert first_not_finite({"loss_g": 1.0, "loss_d": -1e30}) is None
    assert first_not_finite({"loss_g": 1.0, "loss_d": value, "loss_e": value}) == f"loss_d is {value}"


def log(workdir, start, steps):
    logs = Logs(workdir, start, 10)
    for step in steps:
        logs.write(step, {"loss_g": 0.1 + step, "d_accuracy": 1.0}, "train")
        logs.advance(step, {"loss_g": "1"})
    logs.close()


def test_lines_are_json_with_the_numbers_to_the_bit(tmp_path, capsys):
    log(tmp_path, 0, [1, 2])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": s, "train/loss_g": 0.1 + s, "train/d_accuracy": 1.0} for s in (1, 2)]
    assert "step 2: train/loss_g 2.1" in capsys.readouterr().out
    assert list((tmp_path / "tensorboard").iterdir())


def test_a_terminal_shows_validations_above_its_bar(tmp_path, capsys, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    logs = Logs(tmp_path, 0, 10)
    logs.say("cgan: 5 parameters")
    logs.write(2, {"loss_g": 0.1}, "train")
    logs.write(2, {"l1": 1234.5, "best_step": 2}, "validation")
    logs.close()
    assert capsys.readouterr().out == "cgan: 5 parameters\nstep 2: validation/l1 1234.5, validation/best_step 2\n"
    assert "/10" in terminal.getvalue()


@pytest.mark.parametrize(
    "rest",
    [b"", b'{"step": 3, "trai', b'{"step": 3}', b"\xff\x00\n", b"[]\n", b'{"a": 1}\n', b'{"step": "x"}\n', b"\n"],
)
def test_a_run_that_goes_on_has_the_log_of_an_undisturbed_one(tmp_path, rest):
    log(tmp_path / "one", 0, [1, 2, 3, 4])
    log(tmp_path / "two", 0, [1, 2, 3])  # saved at 2, killed later
    with open(tmp_path / "two" / "metrics.jsonl", "ab") as file:
        file.write(rest)
    log(tmp_path / "two", 2, [3, 4])
    one, two = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FaceDepthError, match="cannot be written"):
        Logs(tmp_path / "file", 0, 10)


def test_a_run_begins_with_the_validation_of_its_step(tmp_path):
    """So what a kill left of it, or a shorter run, is not there twice."""
    logs = Logs(tmp_path, 0, 10)
    for step in (1, 2):
        logs.write(step, {"loss_g": 0.1}, "train")
        logs.write(step, {"l1": 0.1}, "validation")
    logs.close()
    Logs(tmp_path, 2, 10).close()
    lines = [sorted(json.loads(line)) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [["step", "train/loss_g"], ["step", "validation/l1"], ["step", "train/loss_g"]]


@pytest.fixture
def passes(monkeypatch):
    """Let so many seconds pass."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def passes(sec):
        now[0] += sec

    return passes


def steps(pace, passes, count, data_sec, step_sec, idle=True):
    """Train `count` steps whose batches take some time to come."""

    def batches():
        while True:
            passes(data_sec)
            yield "batch"

    for _, batch in zip(range(count), pace.watch(batches(), lambda: idle), strict=False):
        assert batch == "batch"
        passes(step_sec)


def test_pace_counts_what_training_takes_and_nothing_else(passes):
    """Not the first step's compilation, nor a save or a validation between two steps."""
    pace = Pace(batch_size=8)
    steps(pace, passes, 1, 3, 90)
    pace.restart(1)
    steps(pace, passes, 6, 0.5, 1.5)
    with pace.paused():
        passes(1000)
    steps(pace, passes, 4, 0.5, 1.5)
    assert pace.lap(11) == {"images_per_sec": pytest.approx(10 * 8 / 20), "waiting_share": pytest.approx(5 / 20)}
    steps(pace, passes, 2, 0.5, 2.0, idle=False)  # the device was busy meanwhile
    assert pace.lap(13) == {"images_per_sec": pytest.approx(2 * 8 / 5), "waiting_share": 0}


def test_data_as_the_bottleneck_is_said_once(passes, capsys):
    pace = Pace(batch_size=8)

    def lap(step, data_sec, step_sec):
        steps(pace, passes, 2, data_sec, step_sec)
        pace.lap(step)
        return capsys.readouterr().err

    assert lap(20, 1, 5) == ""
    assert "warning: up to step 30 67% of the time was waiting for data" in lap(30, 10, 5)
    assert lap(40, 10, 5) == ""
