"""A run that is killed anywhere ends, by the same command, as one that was left in peace: to the bit."""

import multiprocessing
import os
import pathlib
import random
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "tools"))
import soak

pytestmark = pytest.mark.slow


class Program:
    """`python -m facedepth_jax.main`, from where it has imported everything: a fork of a process that did only that.

    With poll, wait and send_signal as of subprocess.
    """

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["facedepth_jax.main"])

    def __init__(self, flags, log, cache):
        self._process = self.context.Process(target=_main, args=(flags, str(log), str(cache)))
        self._process.start()

    def poll(self):
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def wait(self, timeout):
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"still there after {timeout} s"
        return self._process.exitcode


def _main(flags, log, cache):
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1), os.dup2(handle, 2)
    os.chdir(soak.ROOT)
    import jax

    from facedepth_jax import main

    jax.config.update("jax_compilation_cache_dir", cache)  # the same nets are compiled again and again
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    main.main(flags)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """A run of 12 steps that was left in peace."""
    place = soak.Place(tmp_path_factory.mktemp("whole"), "synthetic.py:ae")
    finish(place, cache)
    return place


def start(place, cache, **options):
    return Program(place.flags(**options), place.folder / "log", cache)


def finish(place, cache, **options):
    code = start(place, cache, **options).wait(soak.PATIENCE_S)
    assert code == 0, (place.folder / "log").read_text()


def kill(cache, tmp_path, kills):
    """Kill runs in every phase, at its beginning or later; let each go on to its end. Return runs and phases."""
    rng, hits, places = random.Random(1), [], []
    while len(hits) < kills or set(hits) != set(soak.PHASES):
        assert len(places) < 8, hits
        place = soak.Place(tmp_path / f"{len(places)}", "synthetic.py:ae")
        place.folder.mkdir()
        for wanted in soak.PHASES:
            delay_s = rng.choice([0, rng.uniform(0, 0.2)]) if places else 0
            end = soak.disturb(lambda: start(place, cache), place, wanted, delay_s)  # noqa: B023
            if end.phase is None:  # it was over before
                assert end.code == 0, (place.folder / "log").read_text()
                break
            hits.append(end.phase)
        if end.phase:
            finish(place, cache)
        places.append(place)
    return places, hits


def test_killed_twenty_times(cache, tmp_path, request):
    """In all phases, the first compilation included, at their beginnings and later; tools/soak.py goes on for hours."""
    places, hits = kill(cache, tmp_path, 20)
    whole = request.getfixturevalue("whole")  # now, or nothing above would have had to be compiled
    for place in places:
        assert soak.difference(place, whole) == "", hits


def test_resumed_twice(whole, cache, tmp_path):
    """To step 4, to step 8, to the end."""
    place = soak.Place(tmp_path / "resumed", whole.config)
    place.folder.mkdir()
    for steps in (4, 8):
        finish(place, cache, steps=steps)
        assert place.saved() == steps and soak.difference(place, whole)
    finish(place, cache)
    assert soak.difference(place, whole) == ""
