"""summary.check: what is said of a raw directory before any work, and that it is what prepare then does."""

import dataclasses
import re

import cv2
import numpy as np
import pytest

from facedepth_jax import prepare as program
from facedepth_jax.data import prepare, readers, summary
from facedepth_jax.data.frames import Reject
from facedepth_jax.data.readers.folder import FolderSource
from facedepth_jax.errors import FaceDepthError

SPLIT = ["train"] * 12 + ["validation"] * 6 + ["test"] * 6


def write_folder(path, missing=(), dark=()):
    """People of six frames in two sequences, a dome at 800 mm; `missing` have no depth file, `dark` no depth."""
    path.mkdir(exist_ok=True)
    y, x = np.mgrid[:40, :40]
    dome = np.where(np.hypot(x - 20, y - 20) < 15, 800, 0).astype(np.uint16)
    lines = ["frame,subject,sequence,gray,depth,head_x,head_y,split"]
    for i in range(24):
        person, k = divmod(i, 6)
        cv2.imwrite(str(path / f"{i}g.png"), np.full((40, 40), 99, np.uint8))
        if i not in missing:
            cv2.imwrite(str(path / f"{i}d.png"), dome * (i not in dark))
        lines.append(f"f{i:02d},p{person},{1 + 2 * k // 6},{i}g.png,{i}d.png,20,20,{SPLIT[i]}")
    (path / "index.csv").write_text("\n".join(lines) + "\n")
    return path


def look(path, **pair_lists):
    before = sorted(path.rglob("*"))
    lines, source = [], FolderSource(str(path), focal=60)
    fault = summary.check(source, face_mm=320.0, size=16, pair_lists=pair_lists, say=lines.append)
    assert sorted(path.rglob("*")) == before
    return "\n".join(lines), fault


def test_the_report_counts_what_is_there(tmp_path):
    report, fault = look(write_folder(tmp_path / "raw", missing=(0, 1, 7), dark=(3, 4, 23)))
    assert fault == ""
    assert report.splitlines()[0] == "folder: 24 frames of 4 subjects in 8 sequences"
    assert (
        "train: 12 frames of 2 subjects in 4 sequences" in report and "test: 6 frames of 1 subject in 2 seq" in report
    )
    assert "training needs" not in report
    assert "the images hold: 3 x depth image is missing (f00: 0d.png, f01: 1d.png, f07: 7d.png)" in report
    assert "sample: 21 of the other 21, evenly spread, were read" in report
    assert "rejected: 3 x no depth at the head centre (f03: (20, 20), f04" in report
    assert (
        "head distance: median 800 mm" in report
        and "crop: 24 px wide in both images" in report
        and report.endswith("preparing would work")
    )


def test_a_split_without_frames_is_noted(tmp_path):
    raw = write_folder(tmp_path / "raw")
    (raw / "index.csv").write_text((raw / "index.csv").read_text().replace("validation", "train"))
    report, fault = look(raw)
    assert "note: no frame in validation; training needs all three splits" in report and not fault


def test_the_report_says_what_prepare_does(tmp_path):
    """The rejects known beforehand and those of a sample of all frames are together those of prepare."""
    raw = write_folder(tmp_path / "raw", missing=(0, 1, 7), dark=(3, 4, 23))
    report, _ = look(raw)
    made = prepare.prepare(FolderSource(str(raw), focal=60), tmp_path / "out", size=16)
    said = {reason: int(count) for count, reason in re.findall(r"(\d+) x ([a-z -]+) \(", report)}
    assert said == made.meta["rejects"]["reasons"] == {"depth image is missing": 3, "no depth at the head centre": 3}


def test_no_more_than_the_sample_is_read_and_evenly(tmp_path, monkeypatch):
    raw = write_folder(tmp_path / "raw", missing=(0, 23))
    loads = []
    monkeypatch.setattr(
        FolderSource, "load", lambda self, a, b, load=FolderSource.load: loads.append(a) or load(self, a, b)
    )
    monkeypatch.setattr(summary, "SAMPLE", 4)
    look(raw)
    assert loads == [1, 8, 15, 22]
    raw = write_folder(tmp_path / "none", missing=range(24))
    assert "sample: 0 of the other 0" in look(raw)[0] and len(loads) == 4


@pytest.mark.parametrize(
    "spoilt, sentence",
    [
        ({"missing": range(13)}, r"more than half of the frames \(some 13 of 24\) cannot be used"),
        ({"dark": range(13)}, r"more than half of the frames \(some 13 of 24\) cannot be used"),
        ({"missing": range(18, 24)}, "every frame of the split 'test' is rejected"),
        ({"missing": (18, 19, 20), "dark": (21, 22, 23)}, "every frame of the split 'test' is rejected"),
    ],
)
def test_what_prepare_would_not_do_is_said_beforehand(tmp_path, spoilt, sentence):
    raw = write_folder(tmp_path / "raw", **spoilt)
    report, fault = look(raw)
    assert re.fullmatch(sentence, fault) and report.endswith("preparing would not work")
    with pytest.raises(FaceDepthError):
        prepare.prepare(FolderSource(str(raw), focal=60), tmp_path / "out", size=16)


@pytest.mark.parametrize(
    "values, sentence", [({"size": 95}, "size is 95: .* a multiple of 16"), ({"face_mm": 0.0}, "face_mm")]
)
def test_a_crop_that_no_net_takes_is_refused(tmp_path, values, sentence):
    source = FolderSource(str(write_folder(tmp_path / "raw")), focal=60)
    how = {"face_mm": 320.0, "size": 16} | values
    assert re.match(sentence, summary.check(source, pair_lists={}, **how))
    with pytest.raises(FaceDepthError, match=sentence):
        prepare.prepare(source, tmp_path / "out", **how)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_faces_that_are_made_take_a_small_sample_and_each_line_comes_at_once(monkeypatch):
    source = readers.make_source("synthetic", None, {"subjects": 40})
    lines, loads = [], []

    def load(start, stop):
        loads.append(len(lines))
        yield Reject(source.index()[start], "never made")

    monkeypatch.setattr(type(source), "load", lambda self, start, stop: load(start, stop))
    summary.check(source, face_mm=320.0, size=96, pair_lists={}, say=lines.append)
    assert 0 < len(loads) <= 5 and min(loads) > 3


def test_the_pixels_of_a_crop_are_named_by_their_image(tmp_path):
    """A registered pair has those of one camera, whichever; two cameras have two widths."""

    class Two(FolderSource):
        def _read(self, row):
            frame = super()._read(row)
            gray = np.kron(frame.gray, np.ones((3, 3), np.uint8))
            return dataclasses.replace(frame, gray=gray, gray_head_xy=(61.0, 61.0), gray_focal_px=(180.0, 180.0))

    raw, lines = write_folder(tmp_path / "raw"), []
    assert "crop: 24 px wide in both images, which are registered (median)" in look(raw)[0]
    summary.check(Two(str(raw), focal=60), face_mm=320.0, size=16, pair_lists={}, say=lines.append)
    assert "  crop: 24 px wide in the depth image, 72 px in the gray one (median)" in lines


def test_arrays_without_pairs_are_a_warning_that_says_why(tmp_path, capsys):
    """Six people with one frame each in the split, of which nobody makes a pair with themselves."""
    raw = write_folder(tmp_path / "raw")
    lines = (raw / "index.csv").read_text().splitlines()
    lines = lines[:19] + [line.replace(",p3,", f",q{i},") for i, line in enumerate(lines[19:])]
    (raw / "index.csv").write_text("\n".join(lines) + "\n")
    prepare.prepare(FolderSource(str(raw), focal=60), tmp_path / "out", size=16)
    said = capsys.readouterr().out
    assert "  warning: 6 frames of 6 subjects in the split 'test' make no verification pairs: it takes two" in said
    assert "in the split 'validation' make no" in said  # one person alone


def test_an_external_list_that_does_not_fit_is_said(tmp_path):
    (tmp_path / "p.tsv").write_text("f18\tf99\t1\n")
    _, fault = look(write_folder(tmp_path / "raw"), test=str(tmp_path / "p.tsv"), validation="")
    assert "p.tsv, line 1: the data set has no frame 'f99'" in fault


@pytest.mark.parametrize(
    "dataset, files",
    [
        ("folder", ["index.csv"]),
        ("biwi", ["hpdb/03/rgb.cal"]),
        ("biwi", ["faces_0/03/frame_00003_pose.txt", "readme.txt"]),
        ("biwi", ["12/depth.cal"]),
        ("pandora", ["01/base_1_ID01/data.json"]),
        ("pandora", ["047/frame_000000_face_depth.png"]),
        (None, ["photos/a.png", "47/a.png", "047/a.png"]),
        (None, []),
    ],
)
def test_a_data_set_is_recognised_by_its_layout(tmp_path, dataset, files):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    if dataset:
        assert readers.recognise(str(tmp_path)) == dataset
        return
    with pytest.raises(FaceDepthError, match="the layout of no data set .*index.csv.*cal.*face_depth"):
        readers.recognise(str(tmp_path))
    for name in ("none", "x" * 300):
        with pytest.raises(FaceDepthError, match="does not exist"):
            readers.recognise(str(tmp_path / name))


def run(*flags):
    program.main([*map(str, flags)])


def test_the_program(tmp_path, capsys):
    """Exit code 0 with the report; else the report and the sentence why not."""
    raw = write_folder(tmp_path / "raw")
    run("--check", f"--raw={raw}", "--focal=60")
    assert capsys.readouterr().out.endswith("preparing would work\n")
    with pytest.raises(SystemExit, match="error: .*'focal'|error: .*focal length"):
        run("--check", f"--raw={raw}", "--focal=-60")
    write_folder(raw, dark=range(24))
    with pytest.raises(SystemExit, match=r"error: more than half of the frames \(some 24 of 24\)"):
        run("--check", f"--raw={raw}", "--focal=60")
    assert "preparing would not work" in capsys.readouterr().out
    for flags, sentence in [
        (["--check"], "--check needs --raw, or --dataset"),
        ([f"--raw={raw}", "--dataset=folder"], "--out is missing"),
        ([f"--raw={raw}", f"--out={tmp_path}"], "--dataset is missing"),
        (["--dataset=biwi", "--gray_focal=3", f"--out={tmp_path}"], "unrecognized arguments: --gray_focal=3"),
        (["--dataset=pandora", "--mask", f"--out={tmp_path}"], "unrecognized arguments: --mask"),
    ]:
        with pytest.raises(SystemExit, match="2"):
            run(*flags)
        assert sentence in capsys.readouterr().err
    with pytest.raises(SystemExit, match="error: the data set 'synthetic' has no option 'raw'"):
        run("--dataset=synthetic", f"--raw={raw}", f"--out={tmp_path}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


def test_the_options_of_a_data_set_are_flags_with_their_help(capsys):
    for dataset in readers.READERS:
        options = readers.options_of(dataset)
        assert all(text and isinstance(default, bool | int | float | str) for default, text in options.values())
        with pytest.raises(SystemExit, match="0"):
            run(f"--dataset={dataset}", "--help")
        said = capsys.readouterr().out
        assert all(f"--{name}" in said for name in options) and "raw" not in options
    assert readers.options_of("folder")["focal"][0] == 365.456
