"""Signals to a program: the first is a wish, the second of its kind an order.

What each phase does with the wish is in the tests of the phases: test_train.py, test_prepare.py, test_report.py; one of
several processes that gets it: test_processes.py.
"""

import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

WAITS = """
import time
from facedepth_jax.stopping import stop_event
stop = stop_event()
print("ready", flush=True)
stop.wait()
print("stopping", flush=True)
time.sleep({seconds})
print("saved")
"""


@pytest.mark.parametrize(
    "first, second, code",
    [
        (signal.SIGTERM, signal.SIGINT, 0),  # launch/run.sh may send both for one wish
        (signal.SIGINT, signal.SIGTERM, 0),
        (signal.SIGTERM, signal.SIGTERM, -signal.SIGTERM),
        (signal.SIGINT, signal.SIGINT, -signal.SIGINT),
    ],
)
def test_the_second_of_a_kind_ends_at_once(first, second, code):
    seconds = 0.5 if code == 0 else 300
    command = [sys.executable, "-c", WAITS.format(seconds=seconds)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(first)
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(second)
        assert process.wait(60) == code
        assert process.stdout.read() == ("saved\n" if code == 0 else "")
