"""The net that ships: its size, its card's figures on frames that are made here, and a real portrait."""

import json
import pathlib
import re

import numpy as np
from small import sample_photo

import facedepth_jax
from facedepth_jax import config, evaluate, faces, prepare


def test_the_card_tells_its_figures(tmp_path, monkeypatch):
    """On one frame of each sequence of the first four people of the fixed test set (docs/preparing.md)."""
    made = "--dataset=synthetic --subjects=4 --frames_per_sequence=1 --sensor=none --seed=20180905 --workers=0".split()
    monkeypatch.chdir(tmp_path)
    prepare.main([*made, "--out=data"])
    assert evaluate.main("--run=shipped --data=data --split=all".split()) == 0
    (file,) = pathlib.Path("runs/shipped/evaluations").iterdir()  # the package may be read-only
    found = json.loads(file.read_text())["all"]
    card = (config.SHIPPED / "README.md").read_text()
    stated = re.search(r"20 frames of 4 people.*?relief ([\d.]+) mm,\s+foreground (0[.]\d+)", card, re.S)
    np.testing.assert_allclose(found["relief"]["relief_mae"], float(stated[1]), atol=0.02)
    np.testing.assert_allclose(found["relief"]["mask_iou"], float(stated[2]), atol=0.002)


def test_it_is_small_and_names_no_machine():
    assert (config.SHIPPED / "generator.safetensors").stat().st_size < 6e6
    data = config.read_run(config.SHIPPED).data
    assert not any(pathlib.Path(data[name]).is_absolute() for name in ("dir", "raw_dir"))


def test_a_portrait_s_nose_is_nearer_than_its_eyes_and_these_than_its_ears():
    photo = sample_photo()
    (face,) = facedepth_jax.load().find(photo)
    (found,) = faces.detect(photo)
    relief_mm = face.in_place(face.relief_mm)
    right, left, nose, *_ = found.landmarks
    across = (left - right) / np.linalg.norm(left - right)
    out = 0.6 * np.linalg.norm(left - right) * across  # from an eye to the side of the head, before the ear

    def at(point):
        x, y = np.round(point).astype(int)
        return np.nanmedian(relief_mm[y - 3 : y + 4, x - 3 : x + 4])

    eyes, sides = (at(right) + at(left)) / 2, (at(right - out) + at(left + out)) / 2
    assert at(nose) < eyes - 10 < sides - 25
