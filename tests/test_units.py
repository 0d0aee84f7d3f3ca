"""units.py, check and prepare: what is said of depth in a wrong unit, upside down, or with a number for none."""

import cv2
import numpy as np
import pytest

from facedepth_jax import prepare as program
from facedepth_jax.data import arrays, prepare, summary
from facedepth_jax.data.readers.folder import FolderSource
from facedepth_jax.errors import FaceDepthError

FOCAL_PX, HEAD_PX, WALL_MM, SIZE_PX = 365.0, 80.0, 2000.0, 160


def scene(distance_mm):
    """Depth in mm, float, of a head 140 mm wide and a body before a wall; a column without depth (NaN)."""
    y, x = np.mgrid[:SIZE_PX, :SIZE_PX] - HEAD_PX
    across, down = x * distance_mm / FOCAL_PX / 70, y * distance_mm / FOCAL_PX / 110  # radii of the ellipsoid
    dome = distance_mm + 70 * (1 - np.sqrt(np.clip(1 - across**2 - down**2, 0, 1)))
    body = np.where((down > 1.2) & (abs(across) < 3), distance_mm + 60, WALL_MM + distance_mm - 800)
    depth_mm = np.where(across**2 + down**2 < 1, dome, body)
    depth_mm[:, -8:] = np.nan
    return depth_mm


def write(path, encode, center=(HEAD_PX, HEAD_PX), focal=FOCAL_PX, distances=(700, 750, 800, 850, 900, 950)):
    """A folder of six people; `encode` makes an image's numbers of millimetres."""
    path.mkdir()
    lines = ["frame,subject,sequence,gray,depth,head_x,head_y,fx,fy"]
    for i, distance_mm in enumerate(distances):
        cv2.imwrite(str(path / f"{i}g.png"), np.full((SIZE_PX, SIZE_PX), 99, np.uint8))
        cv2.imwrite(str(path / f"{i}d.png"), np.nan_to_num(encode(scene(distance_mm))).round().astype(np.uint16))
        lines.append(f"f{i},p{i},1,{i}g.png,{i}d.png,{center[0]},{center[1]},{focal},{focal}")
    (path / "index.csv").write_text("\n".join(lines) + "\n")
    return path


def look(path, **options):
    lines = []
    source = FolderSource(str(path), **options)
    fault = summary.check(source, face_mm=320.0, size=16, pair_lists={}, say=lines.append)
    return "\n".join(lines), fault


def test_true_millimetres_of_faces_raise_no_warning(tmp_path):
    report, fault = look(write(tmp_path / "raw", lambda mm: mm))
    assert fault == "" and "warning" not in report
    assert "head distance: median 825 mm" in report and "0% of the heads' outside of 500 to 2540 mm" in report
    assert "heads 1" in report and 100 < float(report.split("heads ")[-1].split(" mm wide")[0]) < 150
    assert (
        "0 of 6 centres on the background" in report and "0.0% of all pixels at the highest" not in report
    )  # the wall is flat


def test_a_body_without_a_background_raises_no_warning(tmp_path):
    """Most of what has depth is then the chest, which may be nearer than the face."""

    def alone(mm):
        middle_mm = mm[80, 80]
        mm = np.where(mm > middle_mm + 80, np.nan, mm)
        mm[110:, 8:-8] = middle_mm - 20
        return mm

    report, fault = look(write(tmp_path / "raw", alone))
    assert fault == "" and "warning" not in report


@pytest.mark.parametrize("unit_mm", [0.1, 0.125, 0.2, 0.25, 10.0])
def test_a_wrong_unit_is_refused_by_its_name(tmp_path, unit_mm, capsys):
    """As cameras and data sets store depth: 0.1 mm, 0.125, TUM's 0.2, the L515's 0.25, whole centimetres."""
    raw = write(tmp_path / "raw", lambda mm: mm / unit_mm)
    report, fault = look(raw)
    assert f"the unit of depth is likely {unit_mm:g} mm: give --depth_unit_mm={unit_mm:g}" in fault
    assert report.endswith("preparing would not work")
    with pytest.raises(FaceDepthError, match=f"is likely {unit_mm:g} mm"):
        prepare.prepare(FolderSource(str(raw)), tmp_path / "out", size=16)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"] and "head distance: median" in capsys.readouterr().out
    report, fault = look(raw, depth_unit_mm=unit_mm)
    assert fault == "" and "warning" not in report
    assert "is likely" in look(raw, depth_unit_mm=unit_mm * 5)[1]


@pytest.mark.parametrize(
    "encode",
    [
        lambda mm: 10_000 - mm,
        lambda mm: 65_535 - mm,
        lambda mm: 16 * 75 * 575 / mm,  # a disparity in sixteenths of a pixel
    ],
)
def test_depth_that_is_larger_where_it_is_nearer_is_refused(tmp_path, encode):
    raw = write(tmp_path / "raw", encode)
    assert "in 6 of 6 frames the head centre lies on the background or behind" in look(raw)[1]
    with pytest.raises(FaceDepthError, match="depth is inverted or a disparity"):
        prepare.prepare(FolderSource(str(raw)), tmp_path / "out", size=16)


@pytest.mark.parametrize("none", [65535, 32001])
def test_a_number_for_none_is_named(tmp_path, none, capsys):
    raw = write(tmp_path / "raw", lambda mm: np.nan_to_num(mm, nan=none))
    report, fault = look(raw)
    assert f"5.0% of all pixels at the highest value, {none}" in report and fault == ""
    assert f"warning: {none}, far above the next depth, 2150, likely stands for no depth: give --depth_none={none}" in (
        report
    )
    made = prepare.prepare(FolderSource(str(raw)), tmp_path / "taken", size=16)
    assert f"warning: {none}" in capsys.readouterr().out and made.depth_mm.max() == none
    report, fault = look(raw, depth_none=none)
    assert "warning" not in report and fault == ""


def test_head_centres_that_are_not_on_heads(tmp_path):
    """Fractions are refused when the index is read; centres on the wall when the images are."""
    raw = write(tmp_path / "shares", lambda mm: mm, center=(0.5, 0.48))
    with pytest.raises(FaceDepthError, match="index.csv: every head_x and head_y is at most 1; give pixels"):
        FolderSource(str(raw))
    raw = write(tmp_path / "wall", lambda mm: mm, center=(20, 20))
    report, fault = look(raw)
    assert "6 of 6 centres on the background" in report and "either the centres are not on heads" in fault
    index = raw / "index.csv"
    index.write_text(index.read_text().replace(",20,20,", ",80,80,", 4))
    report, fault = look(raw)
    assert "2 of 6 centres on the background" in report and "warning: many head centres" in report and fault == ""


def test_another_cameras_focal_length_is_named(tmp_path):
    report, fault = look(write(tmp_path / "raw", lambda mm: mm, focal=121.7))
    assert fault == "" and "the focal length 122 px is likely not this camera's (rather 3" in report


def test_faces_far_away_in_millimetres_are_taken_with_a_warning(tmp_path):
    report, fault = look(write(tmp_path / "raw", lambda mm: mm, distances=(2600, 2700, 2800, 2900)))
    assert fault == "" and "mm is no usual distance of a face\n" in report
    assert "outside of 500 to 2540 mm nothing is learnt with depth_code.origin=camera" in report


def test_the_options_give_the_true_millimetres(tmp_path, capsys):
    """Arrays of quarters with 65535 for none are those of whole millimetres with 0, to the rounding."""
    plain = write(tmp_path / "plain", lambda mm: mm.round())
    odd = write(tmp_path / "odd", lambda mm: np.nan_to_num(4 * mm.round(), nan=65535))
    program.main(["--dataset=folder", f"--raw={plain}", f"--out={tmp_path / 'a'}", "--size=32"])
    flags = ["--dataset=folder", f"--raw={odd}", f"--out={tmp_path / 'b'}", "--size=32", "--depth_unit_mm=0.25"]
    program.main([*flags, "--depth_none=65535"])
    a, b = arrays.open(tmp_path / "a"), arrays.open(tmp_path / "b")
    np.testing.assert_array_equal(a.depth_mm, b.depth_mm)
    assert "depth_unit_mm" not in a.meta["dataset"]["settings"]  # arrays made before the options stay good
    assert b.meta["dataset"]["settings"]["depth_unit_mm"] == 0.25
    with pytest.raises(SystemExit, match=r"other settings \(dataset.settings.depth_none"):
        program.main(flags)
    for option in ("depth_unit_mm=0", "depth_unit_mm=nan", "depth_none=-1"):
        with pytest.raises(SystemExit, match="error: depth_unit_mm is"):
            program.main(["--check", f"--raw={odd}", f"--{option}"])
    assert capsys.readouterr().out.count("head distance: median") == 4
