"""logs.py: what is written can be read, also after a kill."""

import json
import math
import time

import pytest

from facedepth_jax.errors import FaceDepthError
from facedepth_jax.logs import Clock, Logs, first_not_finite


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


def test_every_second_is_charged_once(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock(batch_size=8)

    def charge(**parts):
        for part, sec in parts.items():
            now[0] += sec
            clock.charge(part)

    charge(start=50, compile=7)
    now[0] += 1
    first = clock.lap(5)
    assert first == {f"time_{part}_sec": sec for part, sec in zip(LAP_PARTS, (50, 7, 0, 1, 0, 0), strict=True)}
    charge(step=3, evaluation=1000, data=1, save=2)
    now[0] += 4
    assert clock.lap(15) == {
        **{f"time_{part}_sec": sec for part, sec in zip(LAP_PARTS, (0, 0, 1, 7, 1000, 2), strict=True)},
        "images_per_sec": 10 * 8 / (1 + 7 + 2),
    }
    assert capsys.readouterr().err == ""
    charge(test=32)
    assert clock.account() == (
        "Time: 1100.0 s: start 50.0 s (5%), compile 7.0 s (1%), data 1.0 s (0%), step 8.0 s (1%), "
        "evaluation 1000.0 s (91%), save 2.0 s (0%), test 32.0 s (3%)"
    )


LAP_PARTS = ("start", "compile", "data", "step", "evaluation", "save")


def test_data_as_the_bottleneck_is_said_once(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock(batch_size=8)

    def lap(step, data_sec, step_sec):
        now[0] += data_sec
        clock.charge("data")
        now[0] += step_sec
        clock.lap(step)
        return capsys.readouterr().err

    assert lap(10, 9, 1) == ""  # its time begins before the loop
    assert lap(20, 5, 5) == ""
    assert "warning: from step 20 to 30 60% of the time was waiting for data" in lap(30, 6, 4)
    assert lap(40, 6, 4) == ""
