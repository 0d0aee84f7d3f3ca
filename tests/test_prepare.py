"""prepare: the same arrays whatever happens on the way, and one sentence where there can be none."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from facedepth_jax import prepare as program
from facedepth_jax.data import chunks, crop, pairs, prepare
from facedepth_jax.data.frames import Frame, FrameInfo, Reject
from facedepth_jax.data.readers.folder import REQUIRED, FolderSource
from facedepth_jax.errors import FaceDepthError

COUNT = 200  # four chunks, the last one short
HEIGHT, WIDTH = 60, 50
FLAGS = ["--dataset=folder", "--focal=100", "--size=32"]


def write_folder(path, count=COUNT, bad=(), subjects=20):
    """Frames of a bump before nothing at some 700 mm; `bad` ones have 8-bit depth."""
    path.mkdir()
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    with (path / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(REQUIRED)
        for i in range(count):
            head_x, head_y = rng.uniform(18, 32), rng.uniform(22, 38)
            distance = np.hypot(x - head_x, y - head_y)
            depth_mm = np.where(distance < 16, rng.integers(600, 900) + distance * 2, 0).astype(np.uint16)
            gray = rng.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
            cv2.imwrite(str(path / f"{i}g.png"), gray)
            cv2.imwrite(str(path / f"{i}d.png"), depth_mm.astype(np.uint8) if i in bad else depth_mm)
            writer.writerow(
                [f"f{i:03d}", f"s{i % subjects}", 1, f"{i}g.png", f"{i}d.png", f"{head_x:.2f}", f"{head_y:.2f}"]
            )
    return path


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "raw", bad=(3, 70))


@pytest.fixture(scope="module")
def whole(raw, tmp_path_factory):
    """The arrays of one undisturbed run."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run(raw, out)
    return contents(out)


def run(raw, out, **settings):
    return prepare.prepare(FolderSource(str(raw), focal=100), out, **({"size": 32} | settings))


def start(*arguments):
    """Python as a user has it."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *map(str, arguments)], **pipes, text=True, start_new_session=True)


def finish(process):
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout, stderr


def contents(path):
    return {file.name: file.read_bytes() for file in Path(path).iterdir()}


def test_arrays_are_crops_of_the_frames(raw, tmp_path):
    """Row by row from the raw files, without prepare's own code."""
    made = run(raw, tmp_path / "out")
    assert len(made) == COUNT - 2 and made.gray.shape == (COUNT - 2, 32, 32)
    index = {row["frame"]: row for row in csv.DictReader((raw / "index.csv").read_text().splitlines())}
    assert [f for f in index if f not in ("f003", "f070")] == made.frames["frame"].tolist()
    for i in (0, 63, 64, 100, len(made) - 1):
        columns = {name: values[i] for name, values in made.frames.items()}
        row = index[columns["frame"]]
        gray, depth_mm = (cv2.imread(str(raw / row[name]), cv2.IMREAD_UNCHANGED) for name in ("gray", "depth"))
        head_x, head_y = float(row["head_x"]), float(row["head_y"])
        x, y = round(head_x), round(head_y)
        window = depth_mm[y - 4 : y + 5, x - 4 : x + 5]
        assert columns["distance_mm"] == pytest.approx(window[window > 0].mean())
        side = round(100 * 320 / columns["distance_mm"])
        assert (columns["box_w"], columns["box_h"]) == (side, side)
        assert abs(columns["box_x"] + (side - 1) / 2 - head_x) <= 0.5 and columns["subject"] == row["subject"]
        x, y = columns["box_x"] + 100, columns["box_y"] + 100
        patch = np.pad(gray, 100)[y : y + side, x : x + side]
        np.testing.assert_array_equal(made.gray[i], cv2.resize(patch, (32, 32), interpolation=cv2.INTER_AREA))
        patch = np.pad(depth_mm, 100)[y : y + side, x : x + side]
        np.testing.assert_array_equal(made.depth_mm[i], crop.resize_depth(patch, 32))
        assert columns["fx"] == columns["fy"] == 100 and np.isnan(columns["yaw"])
    assert made.meta["rejects"]["reasons"] == {"depth image is not 16-bit": 2}
    assert [x["frame"] for x in made.meta["rejects"]["frames"]] == ["f003", "f070"]
    for split in ("validation", "test"):
        found = pairs.read(made.path / f"pairs_{split}.tsv")
        members = set(made.frames["frame"][made.rows(split)])
        assert found and {name for pair in found for name in pair[:2]} <= members
        assert made.meta["pairs_found"][split]["pairs"] == len(found)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_second_run_has_nothing_to_do(raw, tmp_path, whole, capsys, monkeypatch):
    run(raw, tmp_path / "out")
    monkeypatch.setattr(FolderSource, "load", None)
    assert len(run(raw, tmp_path / "out")) == COUNT - 2
    assert "complete already" in capsys.readouterr().out
    assert contents(tmp_path / "out") == whole
    with pytest.raises(FaceDepthError, match=r"made with other settings \(crop.face_mm is 320.0 there, 200.0 here\)"):
        run(raw, tmp_path / "out", face_mm=200.0)
    with pytest.raises(FaceDepthError, match=r"\(pairs.test.seed is 0 there, 1 here\)"):
        run(raw, tmp_path / "out", seed=1)


def test_workers_change_nothing(raw, tmp_path, whole):
    run(raw, tmp_path / "out", workers=2)
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_shards_make_the_whole(raw, tmp_path, whole, order, capsys):
    assert run(raw, tmp_path / "out", shard=(order[0], 2)) is None
    assert "2 of 4 chunks left to other shards" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert run(raw, tmp_path / "out", shard=(order[1], 2)) is not None
    assert contents(tmp_path / "out") == whole


def test_a_run_without_shard_completes_a_shard(raw, tmp_path, whole):
    run(raw, tmp_path / "out", shard=(1, 3))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out.parts").glob("*.npz")}
    assert len(before) == 1
    loads = []
    source = FolderSource(str(raw), focal=100)
    load = source.load
    source.load = lambda start, stop: loads.append((start, stop)) or load(start, stop)
    prepare.prepare(source, tmp_path / "out", size=32)
    assert [start for start, stop in loads if stop - start > 1] == [0, 128, 192]  # but for the first look
    assert contents(tmp_path / "out") == whole


SLOW = """
import time
from facedepth_jax import prepare
from facedepth_jax.data.readers import folder
load = folder.FolderSource.load
def slow(self, start, stop):
    time.sleep(1.5 * (start > 0 and stop - start > 1))  # the first look takes single frames
    return load(self, start, stop)
folder.FolderSource.load = slow
if __name__ == "__main__":
    prepare.main()
"""


@pytest.mark.parametrize(
    "how, workers",
    [
        pytest.param(signal.SIGKILL, 2, marks=pytest.mark.slow),
        (signal.SIGINT, 0),
        pytest.param("SIGTERM to all", 2, marks=pytest.mark.slow),
    ],
)
def test_killed_and_run_again(raw, tmp_path, whole, how, workers):
    (tmp_path / "slow.py").write_text(SLOW)  # the program with a second and a half more for each later chunk
    flags = [*FLAGS, f"--raw={raw}", f"--out={tmp_path / 'out'}", f"--workers={workers}"]
    process = start(tmp_path / "slow.py", *flags)
    wait_for(lambda: list((tmp_path / "out.parts").glob("*.npz")))
    if how == "SIGTERM to all":
        time.sleep(0.5)  # amid the next chunk
        os.killpg(process.pid, signal.SIGTERM)  # as a scheduler's may be, to every process
    else:
        process.send_signal(how)
    code, stdout, stderr = finish(process)  # waits for the workers too: they hold the pipes
    made = list((tmp_path / "out.parts").glob("*.npz"))
    assert 0 < len(made) < (4 if workers == 0 else 5) and not (tmp_path / "out").exists()
    assert code == -(signal.SIGTERM if how == "SIGTERM to all" else how) and stderr == ""
    code, stdout, stderr = finish(start("-m", "facedepth_jax.prepare", *flags))
    assert code == 0, stderr
    assert (
        "198 frames of 20 subjects in 20 sequences, 32 px" in stdout
        and "2 x depth image is not 16-bit (f003: 3d.png is uint8, f070" in stdout
    )
    assert contents(tmp_path / "out") == whole and not (tmp_path / "out.parts").exists()


def wait_for(condition):
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)  # the nearest a test comes to a full disk
runpy.run_module("facedepth_jax.prepare", run_name="__main__")
"""


# A chunk has 220 kB, the last one 27 kB, gray.npy and depth_mm.npy 203 and 406 kB.
@pytest.mark.parametrize("limit, chunks, workers", [(10_000, 0, 0), (10_000, 0, 1), (300_000, 4, 0)])
def test_what_cannot_be_written_leaves_nothing_half_written(raw, tmp_path, whole, limit, chunks, workers):
    flags = [*FLAGS, f"--raw={raw}", f"--out={tmp_path / 'out'}", f"--workers={workers}"]
    code, _, stderr = finish(start("-c", LIMITED, limit, *flags))
    assert code == 1 and stderr.startswith("error: ") and stderr.count("\n") == 1
    assert "cannot be written (File too large)" in stderr
    assert {file.name for file in tmp_path.iterdir()} == {"out.parts"}
    left = sorted(file.name for file in (tmp_path / "out.parts").iterdir())
    assert [name for name in left if name not in ("lock", "settings.json")] == [f"{i:06d}.npz" for i in range(chunks)]
    run(raw, tmp_path / "out")
    assert contents(tmp_path / "out") == whole


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_a_full_disk_is_one_sentence(raw, tmp_path, monkeypatch, error):
    def refuse(path):
        raise error

    monkeypatch.setattr(prepare.files, "write_json", lambda path, content: path.write_text(json.dumps(content)))
    monkeypatch.setattr(chunks.files, "atomically", refuse)
    with pytest.raises(
        FaceDepthError, match=rf"000000.npz cannot be written \({error.strerror}\); what is finished is kept"
    ):
        run(raw, tmp_path / "out")


READ_ONLY = """
mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" || exit 77
shift
exec "$@"
"""


def test_arrays_on_a_read_only_disk_are_taken(raw, tmp_path):
    """As by `docker -v data:/data:ro`; other arrays there are refused in a sentence."""
    place = tmp_path / "data"
    run(raw, place / "out")
    (place / "out.parts").mkdir()  # of a run that was killed while it cleaned up
    program = ["unshare", "-rm", "sh", "-c", READ_ONLY, "sh", str(place), sys.executable, "-m", "facedepth_jax.prepare"]
    flags = [*FLAGS, f"--raw={raw}", "--workers=0"]
    taken = subprocess.run([*program, *flags, f"--out={place / 'out'}"], capture_output=True, text=True)
    if taken.returncode not in (0, 1) or "unshare" in taken.stderr:
        pytest.skip("no mount for such a test here")
    assert (taken.returncode, taken.stdout, taken.stderr) == (0, f"{place / 'out'} is complete already\n", "")
    other = subprocess.run([*program, *flags, f"--out={place / 'other'}"], capture_output=True, text=True)
    assert other.returncode == 1 and other.stderr.startswith(f"error: {place / 'other'}.parts cannot be written (Read-")
    assert other.stderr.count("\n") == 1


def test_a_lock_that_cannot_be_written_is_one_sentence(raw, tmp_path):
    run(raw, tmp_path / "out", shard=(0, 2))
    (tmp_path / "out.parts" / "lock").mkdir()
    with pytest.raises(FaceDepthError, match=r"out.parts/lock cannot be written \(Is a directory\)"):
        run(raw, tmp_path / "out", shard=(1, 2))


def flip_a_byte(parts):
    content = bytearray((parts / "000002.npz").read_bytes())
    content[5000] ^= 1
    (parts / "000002.npz").write_bytes(content)


def truncate(parts):
    os.truncate(parts / "000002.npz", 900)


def swap(parts):
    (parts / "000000.npz").rename(parts / "x")
    (parts / "000002.npz").rename(parts / "000000.npz")
    (parts / "x").rename(parts / "000002.npz")


def rename_one(parts):
    """Chunk 0 as chunk 2: all names are names of the data set."""
    shutil.copy(parts / "000000.npz", parts / "000002.npz")


def of_other_frames(parts):
    """As from a machine whose raw directory lacked some."""
    with np.load(parts / "000002.npz") as chunk:
        content = dict(chunk)
    listing = json.loads(content["listing"].tobytes())
    listing["frames"].pop()
    content = {name: array[:-1] for name, array in content.items()}
    content["listing"] = np.frombuffer(json.dumps(listing).encode(), np.uint8)
    np.savez(parts / "000002.npz", **content)


@pytest.mark.parametrize(
    "damage, why",
    [
        (of_other_frames, "000002.npz is made again: it holds other frames than the data set"),
        (flip_a_byte, "000002.npz is made again: it cannot be read: Bad CRC"),
        (truncate, "000002.npz is made again: it cannot be read"),
        (swap, "000000.npz is made again: it is chunk 2"),
        (rename_one, "000002.npz is made again: it is chunk 0"),
    ],
)
def test_a_chunk_that_is_not_sound_is_made_again(raw, tmp_path, whole, damage, why, capsys):
    run(raw, tmp_path / "out", shard=(0, 2))
    damage(tmp_path / "out.parts")
    run(raw, tmp_path / "out")
    assert why in capsys.readouterr().out
    assert contents(tmp_path / "out") == whole


def test_parts_of_several_machines_copied_together(raw, tmp_path, whole, capsys):
    """Each machine has its own directory; one has a chunk of other settings by mistake."""
    for i in range(2):
        run(raw, tmp_path / f"machine{i}" / "out", shard=(i, 2))
    run(raw, tmp_path / "other" / "out", shard=(3, 4), face_mm=200.0)
    parts = tmp_path / "out.parts"
    for name in ("machine0", "machine1"):
        shutil.copytree(tmp_path / name / "out.parts", parts, dirs_exist_ok=True)
    shutil.copy(tmp_path / "other" / "out.parts" / "000003.npz", parts)
    run(raw, tmp_path / "out")
    assert capsys.readouterr().out.count("is made again") == 1
    assert contents(tmp_path / "out") == whole and not parts.exists()


def test_external_lists_lose_the_pairs_of_rejected_frames(tmp_path, capsys):
    raw = write_folder(tmp_path / "raw", count=24, bad=(5,), subjects=6)
    lines = (raw / "index.csv").read_text().splitlines()
    for i in range(24):
        lines[i + 1] += ",test" if i % 6 > 2 else ",train"
    (raw / "index.csv").write_text("\n".join([lines[0] + ",split", *lines[1:]]))
    file = tmp_path / "theirs.tsv"
    file.write_text("f003\tf009\t1\nf004\tf005\t0\nf011\tf005\t1\nf010\tf003\t0\nf003\tf009\t1\n")
    made = run(raw, tmp_path / "out", pair_lists={"test": str(file), "validation": ""})
    kept = [("f003", "f009", 1), ("f010", "f003", 0), ("f003", "f009", 1)]  # as they are, in their order
    assert pairs.read(made.path / "pairs_test.tsv") == kept
    found = made.meta["pairs_found"]["test"]
    assert (found["pairs"], found["left_out"], found["rejected_frames"]) == (3, 2, ["f005"])
    assert "2 pairs of the list left out for rejected frames: f005\n" in capsys.readouterr().out
    assert run(raw, tmp_path / "out", pair_lists={"test": str(file)}) is not None
    file.write_text(file.read_text() + "f004\tf010\t1\n")
    with pytest.raises(FaceDepthError, match="made with other settings .pairs.test.external_sha256 is"):
        run(raw, tmp_path / "out", pair_lists={"test": str(file)})
    file.write_text("f004\tf010\t0\n")
    with pytest.raises(FaceDepthError, match="theirs.tsv, line 1: the label is 0, but the frames show s4 and s4"):
        run(raw, tmp_path / "other", pair_lists={"test": str(file)})
    with pytest.raises(FaceDepthError, match="none.tsv cannot be read"):
        run(raw, tmp_path / "other", pair_lists={"test": str(tmp_path / "none.tsv")})
    assert not list(tmp_path.glob("other*"))


def test_pairs_of_a_folder_with_kinds(tmp_path):
    """By the frames' names: the first frame is rejected. Nothing else of the arrays knows of kinds."""
    raw = write_folder(tmp_path / "raw", count=24, bad=(0,), subjects=4)
    lines = (raw / "index.csv").read_text().splitlines()
    plain, columns = [f"{lines[0]},split"], [f"{lines[0]},kind,split"]
    for i, line in enumerate(lines[1:]):
        plain.append(f"{line},test")
        columns.append(f"{line},{'painted' * (i < 8)},test")
    made = {}
    for name, text in (("plain", plain), ("kinds", columns)):
        (raw / "index.csv").write_text("\n".join(text))
        made[name] = run(raw, tmp_path / name).path
    found = [(int(a[1:]) < 8, int(b[1:]) < 8) for a, b, _ in pairs.read(made["kinds"] / "pairs_test.tsv")]
    assert set(found) == {(False, False), (True, True)}
    assert (made["kinds"] / "frames.csv").read_bytes() == (made["plain"] / "frames.csv").read_bytes()


class TwoCameras(FolderSource):
    """The gray image by a camera of twice the focal length; 30 degrees to the side after 60 frames."""

    def load(self, start, stop):
        for i, frame in enumerate(super().load(start, stop), start):
            gray = np.kron(frame.gray, np.ones((2, 2), np.uint8))
            x, y = (2 * v + 0.5 for v in frame.head_xy)
            yield dataclasses.replace(
                frame,
                gray=gray,
                gray_head_xy=(x, y),
                gray_focal_px=(200.0, 200.0),
                yaw=30.0 * (i > 60),
                pitch=0,
                roll=0,
            )


def test_the_report_says_both_focal_lengths_and_the_cells(tmp_path, capsys):
    raw = write_folder(tmp_path / "raw", count=100, subjects=10)
    made = prepare.prepare(TwoCameras(str(raw), focal=100, test_fraction=0.5), tmp_path / "out", size=32)
    said = capsys.readouterr().out
    assert "at a focal length of 100 px (depth) and 200 px (gray)" in said
    assert set(made.frames["gray_fx"]) == set(made.frames["gray_fy"]) == {200.0}
    cells = made.meta["pairs_found"]["test"]["cells"]
    rows = dict(zip(made.frames["frame"].tolist(), made.frames["yaw"].tolist(), strict=True))
    found = pairs.read(made.path / "pairs_test.tsv")
    for same in (0, 1):
        frontal = sum(rows[a] == 0 and rows[b] == 0 for a, b, label in found if label == same)
        assert cells["A1 S1-S3"]["same" if same else "different"] == frontal > 0
    a1, a2 = cells["A1 S1-S3"], cells["A2 S1-S3"]
    assert (
        f"A1: S1-S3 {a1['same']}+{a1['different']}, S1-S5 {a1['same']}+" in said and f"A2: S1-S3 {a2['same']}" in said
    )
    assert cells["A1+A2 S1-S5"]["same"] == cells["A1+A2 S1-S5"]["different"] == len(found) // 2


def test_parts_of_other_settings_are_refused(raw, tmp_path):
    run(raw, tmp_path / "out", shard=(0, 2))
    with pytest.raises(FaceDepthError, match=r"unfinished run with other settings \(size_px is 32 there, 48 here\)"):
        run(raw, tmp_path / "out", size=48, shard=(1, 2))
    (tmp_path / "out.parts" / "settings.json").write_text("")
    with pytest.raises(FaceDepthError, match=r"settings.json is not JSON"):
        run(raw, tmp_path / "out")


def test_more_than_half_rejected_stops(tmp_path, capsys):
    raw = write_folder(tmp_path / "raw", count=20, bad=range(11), subjects=5)
    with pytest.raises(
        FaceDepthError,
        match=r"half of the frames \(11 of 20\) cannot be used \(rejected: 11 x depth image",
    ):
        run(raw, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["raw"]
    assert run(write_folder(tmp_path / "raw2", count=20, bad=range(0, 20, 2), subjects=5), tmp_path / "out") is not None


def test_hopeless_data_stops_early(tmp_path):
    raw = write_folder(tmp_path / "raw", count=140, bad=range(140))
    source = FolderSource(str(raw), focal=100)
    loads = []
    load = source.load
    source.load = lambda start, stop: loads.append((start, stop)) or load(start, stop)
    with pytest.raises(FaceDepthError, match="more than half"):
        prepare.prepare(source, tmp_path / "out", size=32)
    assert [start for start, stop in loads if stop - start > 1] == [0, 64]  # but for the first look


def test_a_split_that_lost_all_its_frames_is_said(tmp_path):
    raw = write_folder(tmp_path / "raw", count=10, bad=(9,))
    index = raw / "index.csv"
    lines = index.read_text().splitlines()
    index.write_text("\n".join([lines[0] + ",split", *(line + ",train" for line in lines[1:-1]), lines[-1] + ",test"]))
    with pytest.raises(FaceDepthError, match="every frame of the split 'test' is rejected .rejected: 1 x depth image"):
        run(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def frame(depth_mm, head_xy=(10.0, 10.0), focal=50.0):
    info = FrameInfo("a", "s", 1, "train")
    return Frame(
        info, np.full(depth_mm.shape, 99, np.uint8), depth_mm, head_xy, (focal, focal), yaw=1.0, pitch=2.0, roll=3.0
    )


def test_reasons_of_prepare_frame():
    depth_mm = np.zeros((20, 20), np.uint16)
    for place in [(20.0, 5.0), (-1.0, 5.0), (5.0, float("nan"))]:
        reject = chunks.prepare_frame(frame(depth_mm, place), 320.0, 16)
        assert isinstance(reject, Reject) and reject.reason == "head centre outside the image"
    assert chunks.prepare_frame(frame(depth_mm), 320.0, 16).reason == "no depth at the head centre"
    depth_mm[10, 10] = 800
    reject = chunks.prepare_frame(frame(depth_mm), 320.0, 16)
    assert reject.reason == "almost no depth in the crop" and reject.detail == "0.2% of 20x20 px"
    # Depth in metres, stored as whole numbers: the box would have 10^8 pixels.
    assert (
        chunks.prepare_frame(frame(np.ones((20, 20), np.uint16), focal=365), 320.0, 16).reason
        == "almost no depth in the crop"
    )


def test_a_crop_that_leaves_the_image_is_padded():
    gray, depth_mm, row = chunks.prepare_frame(frame(np.full((20, 20), 800, np.uint16), (0.0, 19.0)), 320.0, 20)
    assert (row["box_x"], row["box_y"], row["box_w"], row["box_h"]) == (-9, 10, 20, 20) or row["box_w"] == 20
    inside = np.zeros((20, 20), bool)
    inside[: 20 - row["box_y"], -row["box_x"] :] = True
    np.testing.assert_array_equal(depth_mm, np.where(inside, 800, 0))
    np.testing.assert_array_equal(gray, np.where(inside, 99, 0))
    assert (row["yaw"], row["pitch"], row["roll"], row["distance_mm"]) == (1.0, 2.0, 3.0, 800.0)


class DyingSource(FolderSource):
    """Ends the process that loads a chunk; the first look, of this process, finds nothing."""

    def load(self, start, stop):
        if stop - start > 1:
            os._exit(9)
        return iter(())


def test_a_worker_that_dies_is_said(raw, tmp_path):
    with pytest.raises(FaceDepthError, match="a worker process died"):
        prepare.prepare(DyingSource(str(raw), focal=100), tmp_path / "out", size=32, workers=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 4},
        {"face_mm": 0.0},
        {"face_mm": float("nan")},
        {"face_mm": 1e300},
        {"workers": -1},
        {"shard": (2, 2)},
        {"shard": (0, 0)},
    ],
)
def test_settings_that_make_no_sense(raw, tmp_path, settings):
    with pytest.raises(FaceDepthError):
        run(raw, tmp_path / "out", **settings)
    assert list(tmp_path.iterdir()) == []


def test_command_line_bad_input(raw, tmp_path, capsys):
    """One sentence, exit code 1 (2 for the flags themselves), nothing written."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    shutil.copytree(raw, tmp_path / "twice")
    with (tmp_path / "twice" / "index.csv").open("a") as file:
        file.write("f000,s0,1,0g.png,0d.png,20,20\n")
    before = sorted(tmp_path.rglob("*"))
    here, out = [*FLAGS, f"--raw={raw}"], f"--out={tmp_path / 'out'}"
    cases = [
        ([*FLAGS, f"--raw={tmp_path / 'none'}", out], 1, "does not exist"),
        ([*FLAGS, f"--raw={other}", out], 1, "index.csv does not exist"),
        ([*FLAGS, f"--raw={tmp_path / 'twice'}", out], 1, "is on line 2 already"),
        ([*here, f"--out={other}"], 1, "is not a prepared data set; give another place: --out"),
        ([*here, f"--out={other / 'thesis.txt'}"], 1, "is not a prepared data set; give another place: --out"),
        ([*here, f"--out={other / 'thesis.txt' / 'out'}"], 1, "cannot be written"),
        ([*here, out, "--shard=2/2"], 1, "there is no shard 2/2"),
        ([*here, out, "--size=2"], 1, "size"),
        ([*here, out, "--focal=-1"], 1, "focal length"),
        ([*here, out, "--shard=half"], 2, "invalid"),
        ([*here, out, "--subjects=3"], 2, "unrecognized arguments: --subjects=3"),
        ([*FLAGS, out], 1, "needs its raw directory"),
        (["--dataset=kitti", out], 2, "invalid choice"),
        ([*here, out, "--nonsense=1"], 2, "unrecognized arguments"),
    ]
    for flags, want, text in cases:
        with pytest.raises(SystemExit) as ended:
            program.main([*map(str, flags)])
        said = ended.value.code if want == 1 else capsys.readouterr().err
        assert text in said and (want == ended.value.code or said.startswith("error: ") and "\n" not in said), said
    assert sorted(tmp_path.rglob("*")) == before
    code, stdout, stderr = finish(start("-m", "facedepth_jax.prepare", *cases[0][0]))
    assert (code, stdout) == (1, "")
    assert stderr == f"error: the raw directory {tmp_path / 'none'} does not exist or is a file\n"


def test_an_empty_out_directory_is_taken(raw, tmp_path, whole):
    (tmp_path / "out").mkdir()
    run(raw, tmp_path / "out")
    assert contents(tmp_path / "out") == whole


def test_who_reads_the_report_may_stop(tmp_path):
    raw = write_folder(tmp_path / "raw", count=20)
    command = f"{sys.executable} -m facedepth_jax.prepare --check --raw={raw} | true"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
