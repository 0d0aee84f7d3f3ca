"""logs.py: what is written can be read, also after a kill."""

import json
import math
import time

import pytest

from facedepth_jax.errors import FaceDepthError
from facedepth_jax.logs import Clock, Logs, check_finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_named(value):
    check_finite(7, {"loss_g": 1.0, "loss_d": -1e30})
    with pytest.raises(FaceDepthError, match=f"^Step 7: loss_d is {value}"):
        check_finite(7, {"loss_g": 1.0, "loss_d": value})


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


def test_clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = Clock(batch_size=8)
    with clock.paused():
        now[0] += 50
    assert clock.lap(5) == {}  # it has the compile before it
    now[0] += 4
    with clock.paused():
        now[0] += 1000
    now[0] += 4
    assert clock.lap(15) == {"images_per_sec": 10 * 8 / 8}
    now[0] += 2
    assert clock.lap(16) == {"images_per_sec": 4.0}
