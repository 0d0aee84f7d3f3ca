"""The evaluate program: a finished run measured again, on its own arrays, on others, and on those that do not fit."""

import json

import numpy as np
import pytest
from small import results, write_arrays

from facedepth_jax import estimator, evaluate
from facedepth_jax.data import arrays

pytestmark = pytest.mark.usefixtures("small_batches")


def measure(run, data, *options):
    """Call the program; return what it has written."""
    before = set((run / "evaluations").glob("*"))
    assert evaluate.main([f"--run={run}", f"--data={data}", *options]) == 0
    (path,) = set((run / "evaluations").glob("*")) - before
    return path, json.loads(path.read_text())


def same_figures(found, expected, rel=1e-6):
    """To 1e-6, the sums by person too; a standard error is a difference of such figures."""
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, dict):
            same_figures(found[key], value, 1e-3 if key == "standard_error" else rel)
        else:
            assert value is None and found[key] is None or found[key] == pytest.approx(value, rel=rel, abs=1e-9), key


@pytest.mark.parametrize("method, split", [("ae", "test"), ("verifier", "validation")])
def test_a_run_on_its_own_data_has_its_own_figures(method, split, people_dir, tmp_path, request, capsys):
    run = tmp_path / "run"
    run.symlink_to(request.getfixturevalue(f"{method}_run"))
    path, found = measure(run, people_dir, f"--split={split}")
    same_figures(found[split], results(run)[split])
    fingerprint = arrays.open(people_dir).fingerprint
    assert path.name == f"arrays-{split}-{fingerprint[:8]}.json"
    assert found["data"] == str(people_dir) and found["fingerprint"] == fingerprint
    said = capsys.readouterr().out
    assert f"Figures: {path}" in said
    if method == "ae":
        assert f"{results(run)[split]['mm']['mae_mm']:.2f} ± " in said and "4 frames of 2 people" in said
    else:
        assert f"{results(run)[split]['accuracy']:.4f} (6)" in said


def test_other_people(ae_run, people_dir, tmp_path):
    """The mean over all pixels of two people alone, by hand."""
    data = arrays.open(people_dir)
    rows = [0, 1, 12, 13]
    other = write_arrays(tmp_path / "other", data.gray[rows], data.depth_mm[rows], "aadd", ["test"] * 4)
    _, found = measure(ae_run, other.path)
    net = estimator.load(ae_run)
    true = np.where(data.depth_mm[rows] > 0, np.clip(np.round((data.depth_mm[rows] - 500.0) / 8), 0, 255), 194)
    errors = np.abs((net.batch(data.gray[rows]) - 500) / 8 - true).mean((1, 2))
    assert found["test"]["all"]["l1"] == pytest.approx(errors.mean(), rel=1e-5)
    people = errors.reshape(2, 2).mean(1)
    assert found["test"]["standard_error"]["all"]["l1"] == pytest.approx(abs(people[0] - people[1]) / 2, rel=1e-3)


def test_all_people_and_their_maps(ae_run, people_dir, tmp_path):
    """The frames of all splits, as one; their maps are those of the net."""
    data, net, file = arrays.open(people_dir), estimator.load(ae_run), tmp_path / "maps.npy"
    _, found = measure(ae_run, people_dir, "--split=all", f"--maps={file}")
    maps = np.load(file)
    assert maps.dtype == np.float32 and maps.shape == data.depth_mm.shape and found["all"]["n_frames"] == len(data)
    np.testing.assert_allclose(maps, net.batch(data.gray[:]), rtol=1e-5)
    measured = (data.depth_mm >= 500) & (data.depth_mm <= 2540)
    errors = np.abs(maps - data.depth_mm)[measured]
    assert found["all"]["mm"]["mae_mm"] == pytest.approx(errors.mean(), rel=1e-5)


def test_what_does_not_fit_is_refused(ae_run, verifier_run, people_dir, tmp_path, capsys):
    def refused(run, data, *flags):
        assert evaluate.main([f"--run={run}", f"--data={data}", *flags]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    gray = np.zeros((2, 16, 16))
    small = write_arrays(tmp_path / "small", gray, gray + 900, "ab", ["test"] * 2)
    assert "data.size is 96 and data.face_mm 240" in refused(ae_run, small.path)
    big = np.zeros((2, 96, 96))
    wide = write_arrays(tmp_path / "wide", big, big + 900, "ab", ["test"] * 2, face_mm=320.0)
    assert "holds crops of 96 px and 320 mm" in refused(ae_run, wide.path)
    empty = write_arrays(tmp_path / "empty", big, big + 900, "ab", ["train"] * 2)
    assert "no frame in the split 'test'" in refused(ae_run, empty.path)
    assert "make no verification pairs" in refused(verifier_run, empty.path)
    said = refused(verifier_run, people_dir, "--split=train")
    assert "is a verifier, and train has no pairs: give validation or test" in said
    assert "There is no run in" in refused(tmp_path, people_dir)
    assert "no prepared data set" in refused(ae_run, tmp_path)
    assert not list((tmp_path).rglob("evaluations"))
