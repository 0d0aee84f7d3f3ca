"""The configs of Biwi and Pandora train on raw directories in those formats."""

import pytest
from test_raw_trees import RIGS, faces, prepared  # noqa: F401

from facedepth_jax import main


@pytest.mark.parametrize("dataset", RIGS)
def test_the_config_trains_on_them(prepared, faces, tmp_path, capsys, dataset):  # noqa: F811
    """By the command of the config, on the arrays that `prepare` left; if these differed, it would refuse."""
    flags = [f"--config={dataset}", "--config.width=4", "--config.train.steps=2", "--config.train.batch_size=4"]
    flags += [f"--config.data.raw_dir={faces[dataset][0]}", f"--config.data.dir={prepared('faces', dataset).path}"]
    main.main([*flags, f"--workdir={tmp_path / 'run'}"])
    assert "complete already" in capsys.readouterr().out
    assert (tmp_path / "run" / "results.json").exists()
