"""SIGTERM and SIGINT as a flag that long work looks at, so that it can save first."""

import signal
import threading


class Stopped(Exception):
    """Long work has seen the flag and ended, with what can be kept saved. The message says how to go on."""


def stop_event() -> threading.Event:
    """An event that the first SIGTERM or SIGINT sets; the second of the same kind ends the process at once.

    For the main thread.
    """
    event = threading.Event()

    def on_signal(number, _):
        event.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    return event
