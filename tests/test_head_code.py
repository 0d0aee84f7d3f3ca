"""Depth counted from the head: every method trained and measured, its maps, resumption, gradients, and bad input."""

import functools
import pathlib
import re
import runpy

import cv2
import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from small import lines, people_config, results, sample_photo, write_arrays

import facedepth_jax
from facedepth_jax import config as configs
from facedepth_jax import devices, evaluate, files, methods, predict, tasks, train
from facedepth_jax.data import arrays, pairs
from facedepth_jax.depth_code import DepthCode
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.state import Net, init_state

pytestmark = pytest.mark.usefixtures("small_batches")
HEAD = DepthCode(origin="head")
SIZE = 32
DISTANCE_MM = [760.0 + 10 * i for i in range(20)]  # the domes are from 700 to 980 mm away


def write_heads(path, people_dir, every=3, distance_mm=DISTANCE_MM):
    """Write the domes of `write_people` again, every third pixel, in front of black, with the heads' distances."""
    people = arrays.open(people_dir)
    depth_mm = people.depth_mm[:, ::every, ::every]
    return write_arrays(
        path,
        np.where(depth_mm > 0, people.gray[:, ::every, ::every], 0),
        depth_mm,
        people.frames["subject"],
        people.frames["split"],
        pairs={split: pairs.read(people_dir / f"pairs_{split}.tsv") for split in arrays.PAIR_SPLITS},
        frame=people.frames["frame"],
        distance_mm=distance_mm,
    )


@pytest.fixture(scope="module")
def heads_dir(people_dir, tmp_path_factory):
    return write_heads(tmp_path_factory.mktemp("heads") / "arrays", people_dir).path


@pytest.fixture(scope="module")
def large_heads_dir(people_dir, tmp_path_factory):
    return write_heads(tmp_path_factory.mktemp("heads") / "arrays", people_dir, every=1).path


def head_config(method, data_dir, /, **changes):
    values = {"depth_code.origin": "head", "data.size": SIZE, "train.steps": 4}
    return people_config(method, data_dir, **values | changes)


# What the own net's config turns on.
OWN = {
    "train.steps": 20,
    "train.augment": True,
    "train.schedule": "cosine",
    "train.warmup_steps": 3,
    "train.weight_decay": 0.01,
    "train.average_decay": 0.9,
    "every.save": 10,
}


@pytest.fixture(scope="module")
def runs(heads_dir, tmp_path_factory):
    """A run of each method by its name, trained when it is first asked for."""
    folder = tmp_path_factory.mktemp("head_runs")

    @functools.cache
    def run(method):
        train.run(head_config(method, heads_dir, **(OWN if method == "relief" else {})), folder / method)
        return folder / method

    return run


GENERATORS = [name for name in methods.METHODS if name != "verifier"]


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("cui", "pix2pix"))) for name in GENERATORS]
)
def test_a_run_and_its_figures(method, runs, heads_dir):
    """results.json holds the relief of its maps, and `evaluate` finds the same."""
    run, data = runs(method), arrays.open(heads_dir)
    found = results(run)["test"]
    again, table = evaluate.evaluate_run(run, data, "test")
    assert again["relief"] == pytest.approx(found["relief"], rel=1e-5) and "Relief error, mm" in table
    assert again["all"] == pytest.approx(found["all"], rel=1e-5)
    # relief_mae by hand
    rows = data.rows("test")
    depth_mm, distance_mm = data.depth_mm[rows].astype(float), data.frames["distance_mm"][rows]
    net = facedepth_jax.load(run)
    two = rows.reshape(2, 2)
    maps = np.concatenate(
        [net.estimate(data.gray[rows], np.float32(data.frames["distance_mm"][rows]))[0] for rows in two]
    )
    assert found["n_faces"] == 4 and 0 <= found["relief"]["mask_iou"] < 1
    y, x = np.mgrid[:SIZE, :SIZE] - (SIZE - 1) / 2
    errors = []
    for estimate, true, distance in zip(maps, depth_mm, distance_mm, strict=True):
        face = (true > 0) & (np.abs(true - distance) <= 100) & (np.hypot(x, y) <= 0.3 * SIZE)
        error = (estimate - true)[face]
        errors.append(np.abs(error - np.median(error)).mean())
    assert found["relief"]["relief_mae"] == pytest.approx(np.mean(errors), rel=1e-4)


def test_the_validations_relief_error_ranks_the_weights(runs, heads_dir, tmp_path):
    config, data = head_config("ae", heads_dir), arrays.open(heads_dir)
    task = tasks.make_task(config, methods.build(config, 3), data, devices.make_mesh())
    figures, picture, rank = task.validate(facedepth_jax.load(runs("ae")).net_state, 1, tmp_path)
    assert rank[0] == np.float32(figures["relief_mae"]) != rank[1] == np.float32(figures["all_l1"])
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "samples/00000001.png"))[..., ::-1], picture)


@pytest.mark.parametrize("method", ["relief", "cgan"])
def test_predict_and_the_api_agree(method, runs, heads_dir, tmp_path):
    run, data = runs(method), arrays.open(heads_dir)
    gray = data.gray[16]
    cv2.imwrite(str(tmp_path / "face.png"), gray)
    flags = [f"--run={run}", f"--out={tmp_path}/out", "--whole", "--distance_mm=800"]
    assert predict.main([*flags, str(tmp_path / "face.png")]) == 0
    relief_mm, depth_mm = (np.load(tmp_path / f"out/face_{kind}.npy") for kind in ("relief", "depth"))
    net = facedepth_jax.load(run)
    front = np.isfinite(relief_mm)  # predict leaves out what lies apart from the largest piece
    np.testing.assert_array_equal(relief_mm[front], net(gray)[front])
    np.testing.assert_allclose(depth_mm[front], net(gray, distance_mm=800.0)[front], rtol=1e-6)
    np.testing.assert_array_equal(front, depth_mm != 0)
    np.testing.assert_allclose(depth_mm[front], relief_mm[front] + 800, rtol=1e-6)
    assert front.all() or method == "relief"
    assert method == "relief" or np.abs(relief_mm).max() <= 300


def test_the_api_as_documented(runs, heads_dir, tmp_path, monkeypatch):
    """docs/api.md, block by block, with a net that counts depth from the head."""
    gray = np.random.default_rng(0).integers(0, 256, (480, 640), np.uint8)
    cv2.imwrite(str(tmp_path / "face.png"), gray)
    cv2.imwrite(str(tmp_path / "photo.jpg"), sample_photo()[..., ::-1])
    monkeypatch.setattr(configs, "SHIPPED", runs("cgan"))
    for name, target in (("runs/demo", runs("cgan")), ("data/synthetic", heads_dir)):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    names = {}
    text = (pathlib.Path(__file__).parents[1] / "docs/api.md").read_text()
    for block in re.findall("```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    assert names["face"].distance_mm == 900 and names["glb"].startswith(b"glTF")
    np.testing.assert_allclose(names["depth_mm"] - 800, names["map_mm"], atol=1e-3)


def test_twenty_steps_are_ten_and_ten_resumed(runs, heads_dir, tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    def die(training, step):
        training.checkpoints.finish()
        raise Killed

    whole, config = runs("relief"), head_config("relief", heads_dir, **OWN)
    with monkeypatch.context() as patch:
        patch.setattr(train._Training, "validate", die)  # behind the save of step 10
        with pytest.raises(Killed):
            train.run(config, tmp_path)
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 11))
    train.run(config, tmp_path)
    for name in ("results.json", "generator.safetensors"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    assert lines(tmp_path) == lines(whole)


def test_the_verifier(large_heads_dir, tmp_path, capsys):
    train.run(head_config("verifier", large_heads_dir, **{"data.size": 96}), tmp_path / "run")
    found = results(tmp_path / "run")
    assert evaluate.main([f"--run={tmp_path}/run", f"--data={large_heads_dir}"]) == 0
    again, _ = evaluate.evaluate_run(tmp_path / "run", arrays.open(large_heads_dir), "test")
    assert again["accuracy"] == found["test"]["accuracy"] and again["loss"] == pytest.approx(found["test"]["loss"])
    assert "accuracy on true depth of test" in capsys.readouterr().out


# --- where there is nothing to learn ----------------------------------------------------------------------------------


STORED = (4, 16, 16)


def stored():
    """Heads from 700 mm on with holes, in front of a wall that is out of reach."""
    rng = np.random.default_rng(0)
    depth_mm = rng.integers(700, 1000, STORED)
    depth_mm[:, :, 13:] = 3000
    depth_mm[rng.random(STORED) < 0.3] = 0
    return {
        "gray": rng.integers(0, 256, STORED, np.uint8),
        "depth_mm": depth_mm.astype(np.uint16),
        "distance_mm": np.float32([800, 820, 850, 900]),
        "subject": np.arange(4, dtype=np.int32) % 2,
    }


class _Canvas(nn.Module):
    """A map that is nothing but parameters, a value for each pixel of each image of the batch."""

    maps: int

    @nn.compact
    def __call__(self, x, train):
        return self.param("map", nn.initializers.normal(0.3), (*STORED, self.maps))


class _Judge(nn.Module):
    """In place of a discriminator or identity net: every pixel matters to every logit."""

    channels: int
    logits: tuple

    @nn.compact
    def __call__(self, x, train):
        x = nn.tanh(nn.Dense(8)(x.reshape(len(x), -1)))
        return nn.Dense(self.logits[-1] if self.logits else 1)(x).reshape(len(x), *self.logits)


JUDGES = {
    "cgan": {"discriminator": _Judge(1, ())},
    "pix2pix": {"discriminator": _Judge(2, (1, 1))},
    "cui": {"identity": _Judge(1, (2,))},
}


@pytest.mark.parametrize("method", GENERATORS)
def test_nothing_is_learnt_where_there_is_no_depth(method):
    """No gradient comes from there, and what the net says there changes nothing, to the bit."""
    modules = {"generator": _Canvas(2 if method == "relief" else 1)} | JUDGES.get(method, {})
    nets = {name: Net(module, optax.sgd(1.0)) for name, module in modules.items()}
    batch, config = stored(), people_config(method, "", **{"train.average_decay": 0.0, "train.augment": False})

    def take_step(code):
        step = jax.jit(methods.make_step(config, nets, code))

        def taken(added):
            """Return how the relief moved from the start plus `added`, the metrics, and the other nets."""
            state = init_state(nets, 0, STORED[1])
            start = state.nets["generator"].params["map"].at[..., 0].add(added)
            state.nets["generator"].params["map"] = start
            state, metrics = step(state, batch)
            moved = np.asarray(state.nets.pop("generator").params["map"] - start)[..., 0]
            return moved, jax.device_get(metrics), jax.device_get(state.nets)

        return taken

    none, head = batch["depth_mm"] == 0, take_step(HEAD)
    moved, metrics, others = head(np.zeros(STORED))
    # The own net learns the relief of a head alone.
    reached = ~none & (batch["depth_mm"] < 3000) if method == "relief" else ~none
    assert not moved[none].any() and (moved[reached] != 0).mean() > 0.95
    moved_again, *same = head(5.0 * none)
    np.testing.assert_array_equal(moved_again[~none], moved[~none])
    assert not moved_again[none].any()
    jax.tree.map(np.testing.assert_array_equal, same, [metrics, others])
    assert head(5.0 * ~none)[1]["loss_g"] != metrics["loss_g"]
    if method != "relief":  # the paper's code teaches the level of "no depth" there
        assert (take_step(DepthCode())(np.zeros(STORED))[0][none] != 0).mean() > 0.95


@pytest.mark.parametrize("pixels", ["all", "valid"])
@pytest.mark.parametrize("origin", ["camera", "head"])
def test_what_the_discriminator_sees(origin, pixels):
    """By hand: its maps, and the two parts of the gradient that reaches the generator's."""
    seen = []

    class Seeing(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            if not isinstance(x, jax.core.Tracer) and len(x) > 1:  # initialised with one
                seen.append(np.asarray(x)[..., 0])
            return _Judge(1, ())(x, train)

    nets = {name: Net(net, optax.sgd(1.0)) for name, net in (("generator", _Canvas(1)), ("discriminator", Seeing()))}
    batch, moved, code = stored(), [], DepthCode(origin=origin)
    for lam in (0.0, 1000.0):
        config = people_config("cgan", "", **{"loss.lam": lam, "loss.discriminator_pixels": pixels})
        state = init_state(nets, 0, STORED[1])
        start = np.asarray(state.nets["generator"].params["map"][..., 0])
        state, _ = methods.make_step(config, nets, code)(state, batch)
        moved.append(start - np.asarray(state.nets["generator"].params["map"][..., 0]))
    real, generated, *_ = seen
    valid = batch["depth_mm"] > 0
    none = {"camera": 194 / 127.5 - 1, "head": 1.0}[origin]
    np.testing.assert_allclose(real[~valid], none, atol=1e-6)
    np.testing.assert_allclose(generated, np.where(valid | (pixels == "all"), start, none), atol=1e-6)
    reached = moved[0] != 0
    assert reached[valid].mean() > 0.95
    assert reached[~valid].mean() > 0.95 if pixels == "all" else not reached[~valid].any()
    # Eq. 3 counts where it did.
    mse = np.where(valid | (origin == "camera"), 2000 * (start - real) / start.size, 0)
    np.testing.assert_allclose(moved[1] - moved[0], mse, atol=1e-5)


def test_faces_and_holes_are_swapped(runs, heads_dir, capsys):
    """tools/discriminator.py: its maps by hand in both codes, and its table."""
    tool = runpy.run_path(str(pathlib.Path(__file__).parents[1] / "tools/discriminator.py"))
    depth_mm, distance_mm = np.float32([[[0, 900], [1200, 2000]]]), np.float32([1000])
    generated = np.full((1, 2, 2, 1), 0.5, np.float32)
    levels = {"camera": [194, 50, 62.5, 87.5, 187.5], "head": [1.0, -1 / 3, 0, 2 / 3, 1.0]}  # of none, 900 mm, 1000, ..
    for origin, (none, at_900, at_1000, at_1200, at_2000) in levels.items():
        if origin == "camera":
            none, at_900, at_1000, at_1200, at_2000 = np.round((none, at_900, at_1000, at_1200, at_2000)) / 127.5 - 1
        expected = {
            "true": [none, at_900, at_1200, at_2000],
            "generated": [0.5, 0.5, 0.5, 0.5],
            "generated face, true holes": [none, 0.5, 0.5, 0.5],
            "true face, generated holes": [0.5, at_900, at_1200, at_2000],
            "flat face, true holes": [none, at_1000, at_1000, at_2000],
        }
        found = tool["swaps"](generated, depth_mm, distance_mm, DepthCode(origin=origin))
        for name, maps in zip(tool["KINDS"], found, strict=True):
            np.testing.assert_allclose(maps.ravel(), expected[name], atol=1e-6, err_msg=name)
    command = [f"--run={runs('cgan')}", f"--data={heads_dir}"]
    assert tool["main"]([*command, "--split=all"]) == 0
    out = capsys.readouterr().out
    assert "| all, n = 16 | called real |" in out and len(re.findall(r"\| [01]\.\d{3} \|", out)) == 5
    assert tool["main"](command) == 1 and "test has 4 frames, train.batch_size is 8" in capsys.readouterr().err
    assert tool["main"]([f"--run={runs('ae')}", command[1]]) == 1 and "give one of the cGAN" in capsys.readouterr().err


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [0.0, -800.0, float("nan"), float("inf")])
def test_data_without_the_heads_distance_are_refused(bad, people_dir, runs, tmp_path, capsys):
    """In training by any method, the verifier's too, and in `evaluate`; not in the paper's code."""
    distances = [*DISTANCE_MM[:18], bad, bad]
    path = write_heads(tmp_path / "arrays", people_dir, distance_mm=distances).path
    sentence = r"frames.csv has no distance_mm above 0 for 2 of 20 frames, the first is e2: depth_code.origin=head"
    for method in ("relief", "ae"):
        with pytest.raises(FaceDepthError, match=sentence):
            train.run(head_config(method, path), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert evaluate.main([f"--run={runs('ae')}", f"--data={path}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(sentence, line) and "prepare the data again" in line
    configs.check_crops(people_config("ae", path, **{"data.size": SIZE}), arrays.open(path))
    with pytest.raises(FaceDepthError, match=sentence):
        configs.check_crops(head_config("verifier", path), arrays.open(path))


@pytest.mark.parametrize("there, here", [("head", "camera"), ("camera", "head")])
def test_a_start_from_a_run_of_the_other_code(there, here, heads_dir, tmp_path):
    """Its config says so, before anything else is looked at."""
    run = tmp_path / "other"
    files.write_json(run / "config.json", head_config("ae", heads_dir, **{"depth_code.origin": there}).to_dict())
    config = head_config("cgan", heads_dir, **{"depth_code.origin": here, "init_from": str(run)})
    said = f"in init_from, {run}, has .*origin='{there}'.*, this one .*origin='{here}'.*: give the same depth_code"
    with pytest.raises(FaceDepthError, match=said):
        train.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
