"""config.py: configs are found from anywhere, refused where something is misspelt, and read back, also old ones."""

import json
import pathlib

import pytest

from facedepth_jax import config as configs
from facedepth_jax import files
from facedepth_jax.depth_code import DepthCode
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.methods import METHODS

ROOT = pathlib.Path(__file__).parents[1]
OLD_RUN = pathlib.Path(__file__).parent / "old_run"


@pytest.mark.parametrize("path", sorted(ROOT.glob("configs/*.py")), ids=lambda path: path.stem)
def test_every_config_file_makes_a_run_of_every_method(path):
    if path.stem == "base":
        return
    for argument in ["", ":folder", ":pandora"] if path.stem == "verifier" else ["", *(f":{name}" for name in METHODS)]:
        values = configs.load(f"{path}{argument}")
        configs.check(values)
        if argument:
            assert values.method == "verifier" if path.stem == "verifier" else f":{values.method}" == argument
        assert values.data.dataset and values.data.dir


def test_a_packaged_config_is_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = configs.load("pandora:ae")
    assert values.method == "ae" and values.data.dataset == "pandora" and values.train.steps == 250_000
    assert configs.find("verifier:folder") == (ROOT / "configs/verifier.py", "folder")
    with pytest.raises(FaceDepthError, match="no config file configs/pandora.py; the project's own are biwi, folder, "):
        configs.load("configs/pandora.py")
    with pytest.raises(FaceDepthError, match="no config file pandorra; .* folder, pandora, "):
        configs.load("pandorra")
    (tmp_path / "pandora").write_text("from facedepth_jax.config import base as get_config\n")
    (tmp_path / "mine.py").write_text("from facedepth_jax.config import base as get_config\n")
    assert configs.load("mine.py:cui").method == "cui" and configs.load("mine.py:cui").data.dataset == ""


def test_values_are_given_on_the_command_line():
    overrides = ["--config.train.steps=7", "loss.lam=10.0", "data.options.subjects=5", "--config.data.dir=gs://b/a=b"]
    values = configs.load("synthetic", overrides)
    assert values.train.steps == 7 and values.loss.lam == 10.0
    assert values.data.options.subjects == 5 and values.data.dir == "gs://b/a=b"
    assert configs.load("synthetic").train.steps == 800
    values = configs.load("synthetic", ["train.steps=2.5e3", "loss.lam=1e3", "train.augment=true"])
    assert (values.train.steps, values.loss.lam, values.train.augment) == (2500, 1000.0, True)
    assert configs.load("synthetic", ["data.options.misregistration=2.0"]).data.options.misregistration == 2
    assert type(values.train.steps) is int and not configs.load("relief", ["train.augment=false"]).train.augment


def test_given_arrays_are_taken_by_their_directory_alone(people_dir):
    """Whatever the config would have made; what the command line says beside is still asked for."""
    alone = f"data.dir={people_dir}"
    for name in ("synthetic", "folder", "verifier:relief"):
        values = configs.load(name, [alone, "data.workers=3"])
        assert (values.data.dataset, values.data.size, values.data.face_mm) == ("", 96, 240.0)
        assert values.data.options.to_dict() == {} and values.data.workers == 3
    assert configs.load("synthetic", [alone, "data.face_mm=320.0"]).data.face_mm == 320
    assert configs.load("synthetic", [alone, "data.options.subjects=5"]).data.options.subjects == 5
    assert configs.load("folder", [alone, "data.raw_dir=raw"]).data.dataset == "folder"
    assert configs.load("synthetic", [f"data.dir={people_dir}2"]).data.dataset == "synthetic"  # made there
    assert configs.load("synthetic").data.options.subjects == 120


CONFIG = """
from facedepth_jax.config import base

def get_config(method="cgan"):
    config = base(method)
    config.width = 8
    {line}
    return config
"""


@pytest.mark.parametrize(
    "name, line, said",
    [
        ("", "config.train.step = 5", "step"),
        ("", "config.train.nonsense = 5", "nonsense"),
        ("", "config.learning_rate = 5.0", "learning_rate"),
        ("", "config.width = 'wide'", "width"),
        (":ae", "config.loss.lam = 5.0", "lam"),  # of another method
        (":nothing", "", "cgan, ae, pix2pix"),
    ],
)
def test_a_misspelt_config_file_is_refused(tmp_path, name, line, said):
    path = tmp_path / "mine.py"
    path.write_text(CONFIG.format(line=line))
    with pytest.raises(FaceDepthError, match=said):
        configs.load(f"{path}{name}")


@pytest.mark.parametrize(
    "line, said",
    [
        (
            "config.unlock(); config.train.step = 5",
            "has train.step, which is no value of a run: do you mean train.steps",
        ),
        (
            "import ml_collections; config = ml_collections.ConfigDict({'method': 'ae'})",
            "The config lacks data.dataset",
        ),
        ("import ml_collections; config = ml_collections.ConfigDict({'width': 8})", "There is no method None"),
    ],
)
def test_a_config_file_that_goes_its_own_way(tmp_path, line, said):
    path = tmp_path / "mine.py"
    path.write_text(CONFIG.format(line=line))
    with pytest.raises(FaceDepthError, match=said):
        configs.check(configs.load(str(path)))


@pytest.mark.parametrize(
    "name, override, said",
    [
        ("synthetic", "--config.train.steps=1.5", "steps"),
        ("synthetic", "--config.train.steps=15e-1", "steps"),
        ("synthetic", "--config.loss.lamb=3.0", "lamb"),
        ("synthetic:ae", "--config.loss.lam=3.0", "lam"),
        ("synthetic", "--config.train.step=3", "step"),
        ("synthetic", "--config.train.steps=many", "steps"),
        ("synthetic", "train.steps", "Unexpected: train.steps"),
        ("synthetic", "--workdirr=a", "workdirr"),
        ("synthetic:nothing", "--config.width=8", "cgan, ae"),
        ("base", "--config.width=8", "get_config"),
        ("verifier:verifier", "--config.width=8", "another config"),
        ("verifier:synthetic:ae", "--config.width=8", "its name alone"),
        (str(pathlib.Path(__file__).parents[1] / "README.md"), "--config.width=8", "README.md cannot be used: Syntax"),
    ],
)
def test_a_misspelt_command_line_is_refused(name, override, said):
    with pytest.raises(FaceDepthError, match=said):
        configs.load(name, [override])


def test_the_home_in_a_path(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert configs.load("folder", ["data.raw_dir=~/faces"]).data.raw_dir == f"{tmp_path}/faces"
    assert files.path("~/run") == tmp_path / "run"
    with pytest.raises(ValueError, match="empty"):  # an unset variable of a shell
        files.path("")


def test_a_narrow_nets_rate_is_the_papers_methods_alone():
    for name in ("synthetic", "folder"):
        rates = {method: configs.load(f"{name}:{method}").train.learning_rate for method in METHODS}
        assert rates.pop("relief") == METHODS["relief"].train["learning_rate"] and set(rates.values()) == {1e-3}


def test_a_seed_that_would_be_cut_off_is_refused():
    """JAX's keys take 32 bits of it."""
    configs.check(configs.load("synthetic", [f"seed={2**32 - 1}"]))
    with pytest.raises(FaceDepthError, match=f"seed is {2**32}: it must be"):
        configs.check(configs.load("synthetic", [f"seed={2**32}"]))


def test_a_verifier_of_a_config_of_ones_own(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(CONFIG.format(line="config.data.dir = 'there'"))
    values = configs.load(f"verifier:{path}")
    assert (values.method, values.data.dir, values.width) == ("verifier", "there", 64)


def test_the_config_of_a_run_is_read_back(tmp_path):
    values = configs.load("biwi:pix2pix", ["loss.l1_weight=7.0", "depth_code.step_mm=4.0"])
    (tmp_path / "config.json").write_text(json.dumps(values.to_dict()))
    again = configs.read_run(tmp_path)
    assert again.to_dict() == values.to_dict()
    assert configs.depth_code(again) == DepthCode(500.0, 4.0, 194)


def test_paths_of_a_run_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = configs.load("folder", ["data.raw_dir=faces", "init_from=runs/a", "data.pairs_test=/p.tsv"])
    kept = configs.with_absolute_paths(values)
    assert kept.data.raw_dir == f"{tmp_path}/faces" and kept.init_from == f"{tmp_path}/runs/a"
    assert kept.data.pairs_test == "/p.tsv" and kept.data.pairs_validation == ""
    assert values.data.raw_dir == "faces"


def test_the_config_of_a_run_from_before_the_present_keys():
    """What it says is said in the new words; what it did not know yet is off."""
    old = json.loads((OLD_RUN / "config.json").read_text())
    values = configs.read_run(OLD_RUN)
    code = configs.depth_code(values)
    assert [code.offset_mm, code.step_mm, code.none_level] == [500.0, 8.0, 194] and old["code"]["step_mm"] == 8.0
    assert values.loss.to_dict() == {"lam": old["loss"]["lam"], "discriminator_pixels": "learnt"}
    assert values.every.to_dict() == {"log": old["every"]["log"], "save": old["every"]["save"]}
    assert values.watchdog_sec == old["every"]["stuck_sec"] and values.data.to_dict() == old["data"]
    assert (values.width, values.seed, values.method) == (old["width"], old["seed"], old["method"])
    fresh = configs.base(old["method"])
    for key, value in values.train.items():
        assert value == old["train"].get(key, fresh.train[key])
    assert values.init_from == ""


def test_a_run_of_relief_from_before_its_present_loss(tmp_path):
    values = configs.load("relief").to_dict()
    del values["loss"]["normals_weight"], values["loss"]["far_weight"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert configs.read_run(tmp_path).loss.to_dict() == values["loss"] | {"normals_weight": 0.0, "far_weight": 1.0}


@pytest.mark.parametrize(
    "old, new",
    [('half_range": 127.5', 'half_range": 100.0'), ('dropout_at_test": true', 'dropout_at_test": false')],
)
def test_an_old_run_with_what_is_gone_is_refused(tmp_path, old, new):
    text = (OLD_RUN / "config.json").read_text()
    assert old in text
    (tmp_path / "config.json").write_text(text.replace(old, new))
    with pytest.raises(FaceDepthError, match="is not supported any more"):
        configs.read_run(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "{",
        '"width": 16 -> "width": "x"',
        '"width": 16 -> "width": 1',
        '"method": "cgan" -> "method": "gan"',
        '"depth_code" -> "kode"',
        '"step_mm" -> "step"',
        '"options": { -> "option": {',
    ],
)
def test_a_config_that_cannot_be_used(tmp_path, text):
    if " -> " in text:
        old, new = text.split(" -> ")
        whole = json.dumps(configs.load("folder").to_dict())
        text = whole.replace(old, new)
        assert text != whole
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FaceDepthError, match="config.json is (damaged or of another version|not JSON)"):
        configs.read_run(tmp_path)


@pytest.mark.parametrize("name", ["run", "x" * 300])
def test_where_there_is_no_run(tmp_path, name):
    with pytest.raises(FaceDepthError, match="There is no run in .*: give the --workdir of a training"):
        configs.read_run(tmp_path / name)
