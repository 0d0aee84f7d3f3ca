"""The configs of Biwi and Pandora train on raw directories in those formats."""

import pytest
from test_raw_trees import RIGS, prepared, ranks, write_faces  # noqa: F401

from facedepth_jax import config, train


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    """People of all three splits."""
    return write_faces(tmp_path_factory.mktemp("faces"), biwi=[1, 3, 12, 15], pandora=[1, 9, 10])


@pytest.mark.parametrize("dataset", RIGS)
def test_the_config_trains_on_them(prepared, faces, tmp_path, capsys, dataset):  # noqa: F811
    """By the command of the config, on the arrays that `prepare` left; if these differed, it would refuse."""
    data = {"raw_dir": faces[dataset][0], "dir": prepared("faces", dataset).path, "dataset": dataset}
    overrides = [f"--config.data.{name}={value}" for name, value in data.items()]
    overrides += ["--config.width=4", "--config.train.steps=2", "--config.train.batch_size=4"]
    train.run(config.load(dataset, overrides), tmp_path / "run")
    assert "complete already" in capsys.readouterr().out
    assert (tmp_path / "run" / "results.json").exists()
