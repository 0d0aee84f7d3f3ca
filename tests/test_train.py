"""train.py: what is refused before the first step, and that nothing is changed by it. The loop: test_end_to_end.py."""

import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from facedepth_jax import train
from facedepth_jax.checkpoint import Checkpoints
from facedepth_jax.data import arrays
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.state import TrainState, init_state

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from configs import folder, synthetic

SIZE = 16


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Three frames of three people, crops of 240 mm."""
    path = tmp_path_factory.mktemp("data") / "arrays"
    frames = {name: [kind(0)] * 3 for name, kind in arrays.COLUMNS.items()}
    frames |= {"frame": list("abc"), "subject": list("abc"), "split": ["train", "validation", "test"]}
    images = [(np.zeros((3, SIZE, SIZE), np.uint8), np.full((3, SIZE, SIZE), 900, np.uint16))]
    pair_lists = {split: [] for split in arrays.PAIR_SPLITS}
    meta = {"crop": {"face_mm": 240.0}, "dataset": {"name": "folder"}}
    arrays.write(path, frames=frames, images=images, size_px=SIZE, pair_lists=pair_lists, meta=meta)
    return path


def config_of(data_dir, **changes):
    config = folder.get_config()
    config.width = 2
    config.train.batch_size = jax.device_count()
    config.data.dir, config.data.dataset = str(data_dir), ""
    config.data.size, config.data.face_mm = SIZE, 240.0
    config.update_from_flattened_dict(changes)
    return config


def save(config, workdir, step, identity=None):
    """A checkpoint of a fresh state that says it has done `step` steps."""
    _, nets = train._build(config, subjects=1)
    state = init_state(nets, config.seed, SIZE)
    identity = identity or train._identity(config, arrays.open(config.data.dir))
    checkpoints = Checkpoints(workdir / "checkpoints", identity)
    checkpoints.save(step, TrainState(state.step + step, state.nets))
    checkpoints.finish()


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"every.log": 0}, "every.log is 0: it must be at least 1"),
        ({"every.save": 0}, "every.save is 0"),
        ({"every.evaluate": -1}, "every.evaluate is -1"),
        ({"width": 1}, "width is 1: it must be at least 2"),
        ({"train.steps": -5}, "train.steps is -5"),
        ({"train.batch_size": 0}, "train.batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"data.size": 0}, "data.size is 0"),
        ({"data.size": 40}, "data.size is 40: .* a multiple of 16"),
        ({"data.size": 32}, "holds images of 16 px, data.size is 32"),
        ({"data.face_mm": 320.0}, "holds crops of 240 mm, data.face_mm is 320"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
    ],
)
def test_values_that_make_no_run(data_dir, tmp_path, changes, sentence):
    with pytest.raises(FaceDepthError, match=sentence):
        train.run(config_of(data_dir, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_options_of_another_data_set(tmp_path):
    config = synthetic.get_config()
    config.data.dataset, config.data.raw_dir, config.data.dir = "folder", str(tmp_path), str(tmp_path / "out")
    with pytest.raises(FaceDepthError, match="'folder' has no option 'frames_per_sequence'; it has focal, "):
        train.run(config, tmp_path / "run")


def test_a_refused_run_leaves_the_config_of_the_one_that_is_there(data_dir, tmp_path):
    config = config_of(data_dir)
    save(config, tmp_path, 5, identity={"seed": 1})
    (tmp_path / "config.json").write_text("the old one")
    with pytest.raises(FaceDepthError, match="belongs to a run with"):
        train.run(config, tmp_path)
    assert (tmp_path / "config.json").read_text() == "the old one"


def test_fewer_steps_than_done_are_refused(data_dir, tmp_path):
    """Or the figures of 5 steps would be called those of 3."""
    config = config_of(data_dir, **{"train.steps": 3})
    save(config, tmp_path, 5)
    with pytest.raises(FaceDepthError, match="has done 5 steps, train.steps is 3: give at least 5"):
        train.run(config, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints"]


@pytest.mark.parametrize("text", ["[]", "{}", '"width": 16 -> "width": "x"', '"code" -> "kode"', '"step_mm" -> "step"'])
def test_a_config_that_cannot_be_used(tmp_path, text):
    if " -> " in text:
        old, new = text.split(" -> ")
        whole = json.dumps(folder.get_config().to_dict())
        text = whole.replace(old, new)
        assert text != whole
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FaceDepthError, match="config.json is damaged or of another version"):
        train.load_generator(tmp_path)
