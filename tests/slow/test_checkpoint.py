"""checkpoint.py: a thousand flipped bits and twenty kills."""

import collections
import random
import shutil

import pytest
from test_checkpoint import check_after_a_kill, kill_while_saving, ours, restore, same, save, state

pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # as in test_checkpoint


def test_a_flipped_bit_is_never_restored(tmp_path, caplog):
    """Anywhere in any file, small ones as often as large ones: the older checkpoint, or the very same arrays."""
    folder, rng, counts = tmp_path / "checkpoints", random.Random(0), collections.Counter()
    save(folder, 10, 20)
    files = sorted(path for path in (folder / "00000020").rglob("*") if path.is_file() and path.stat().st_size)
    for _ in range(1000):
        path = rng.choice(files)
        whole = path.read_bytes()
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        caplog.clear()
        restored = restore(folder)
        if not ours(caplog):
            assert same(restored, state(20)), path
            counts["restored the same"] += 1
        else:
            assert same(restored, state(10)), path
            counts["found by the digest" if "not as they were written" in ours(caplog)[0] else "refused by Orbax"] += 1
        path.write_bytes(whole)
    print(counts)
    assert min(counts["found by the digest"], counts["refused by Orbax"]) > 50


def test_sigkill_during_twenty_saves(tmp_path, caplog):
    """The same folder goes on from kill to kill; the first runs stop before an old one is to be removed."""
    rng, under_way = random.Random(0), 0
    for _ in range(20):
        under_way += bool(kill_while_saving(tmp_path, rng.uniform(0, 0.1)))
        check_after_a_kill(tmp_path)
    assert under_way >= 10 and not caplog.records


def test_sigkill_during_the_first_save(tmp_path):
    """It is a fresh start."""
    for _ in range(20):
        kill_while_saving(tmp_path, 0, saves=0)
        found = restore(tmp_path)
        if found is None:
            return
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
    raise AssertionError("it was always over before")
