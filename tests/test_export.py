"""export.py, onnx_graph.py: nets in other programs' formats. OpenCV and a reload run them; the reference is the net."""

import sys

import cv2
import jax
import numpy as np
import onnx
import pytest

import facedepth_jax
from facedepth_jax import config as configs
from facedepth_jax import estimator, export, methods, onnx_graph
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.state import NetState, init_net

SIZE = 32


def random_net(method, **changes):
    """Make a net of random weights and batch statistics, so that every one of them shows."""
    values = configs.base(method)
    values.update_from_flattened_dict({"width": 4} | changes)
    net = methods.build(values, 1)["generator"]
    state = init_net(net, jax.random.key(0), SIZE)
    rng = np.random.default_rng(0)
    gain = 0.5 if method == "relief" else 2.0  # to keep the maps' size; residual blocks add to it

    def spread(x):
        noise = rng.normal(size=x.shape)
        x = noise * np.sqrt(gain / np.prod(x.shape[:3])) if x.ndim == 4 else x * np.exp(noise / 2) + noise / 20
        return x.astype(np.float32)

    params, batch_stats = jax.tree.map(spread, (state.params, state.batch_stats))
    code = configs.depth_code(values)
    return estimator.FaceDepth(net.module, NetState(params, batch_stats, None), SIZE, 320.0, code)


@pytest.fixture
def shipped(monkeypatch):
    """Let `load()` give the net that is put into this."""
    nets = []
    monkeypatch.setattr(estimator, "load", lambda run: nets[0] if str(run) == "shipped" else pytest.fail(str(run)))
    return nets


def check_maps(net, found, gray):
    """Compare maps with the net's, by its public call: NaN where there is no foreground."""
    expected = net.batch(gray)
    assert np.nanstd(expected) > 1  # a constant map would hide all but the last layer
    if len(found) == 2:
        relief_mm, foreground = found
        assert foreground.dtype == bool and foreground.any()
        found = [np.where(foreground, relief_mm, np.nan)]
    assert found[0].dtype == np.float32
    np.testing.assert_allclose(found[0], expected, rtol=3e-6, atol=2e-3)


def write(tmp_path, kind):
    file = tmp_path / f"net.{kind}"
    return export.main([f"--format={kind}", f"--out={file}"]), file


@pytest.mark.parametrize(
    "method, origin", [("cgan", "head"), ("pix2pix", "camera"), ("cui", "camera"), ("relief", "head")]
)
def test_onnx_is_the_net(method, origin, shipped, tmp_path, capsys):
    shipped.append(net := random_net(method, **{"depth_code.origin": origin}))
    code, file = write(tmp_path, "onnx")
    assert code == 0 and "OpenCV" in capsys.readouterr().out
    names = ["depth_mm"] if origin == "camera" else ["relief_mm", "foreground"]
    model = onnx.load(file)
    assert [x.name for x in model.graph.input] == ["gray"] and [x.name for x in model.graph.output] == names
    about = {x.key: x.value for x in model.metadata_props}
    assert about["face_mm"] == "320" and about.keys() == {"face_mm", "gray", *names}
    reader = cv2.dnn.readNetFromONNX(str(file))
    for n in (2, 1):
        gray = np.random.default_rng(n).integers(0, 256, (n, SIZE, SIZE), np.uint8)
        reader.setInput(gray, "gray")
        check_maps(net, reader.forward(names), gray)


def test_stablehlo_is_the_net(shipped, tmp_path, capsys):
    shipped.append(net := random_net("cgan", **{"depth_code.origin": "head"}))
    code, file = write(tmp_path, "stablehlo")
    assert code == 0 and "after a reload" in capsys.readouterr().out
    read = jax.export.deserialize(bytearray(file.read_bytes()))
    assert set(read.platforms) == {"cpu", "cuda", "rocm", "tpu"}
    gray = np.random.default_rng(2).integers(0, 256, (2, SIZE, SIZE), np.uint8)
    check_maps(net, jax.device_get(read.call(gray)), gray)


def test_batch_norm_is_in_the_convolutions():
    nodes = [node.op_type for node in onnx.load_from_string(export.to_onnx(random_net("cgan"))).graph.node]
    assert nodes.count("Conv") == 5 and nodes.count("ConvTranspose") == 4
    assert nodes.count("Sub") == 1 and nodes.count("Mul") == 4 + 2  # the gray values'; LeakyReLU's, the levels'


def test_a_net_in_bfloat16_is_exported_in_float32(tmp_path, shipped):
    shipped.append(random_net("ae", dtype="bfloat16"))
    code, file = write(tmp_path, "onnx")
    kinds = {x.data_type for x in onnx.load(file).graph.initializer}
    assert code == 0 and kinds <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}


def test_a_run_by_its_directory(ae_run, tmp_path, capsys):
    file = tmp_path / "new" / "ae.onnx"
    assert export.main([f"--run={ae_run}", "--format=onnx", f"--out={file}"]) == 0 and file.is_file()
    assert export.main([f"--run={tmp_path}", "--format=onnx", f"--out={file}"]) == 1
    assert "error: There is no run in" in capsys.readouterr().err


def test_an_export_that_differs_is_not_written(shipped, tmp_path, capsys, monkeypatch):
    shipped.append(net := random_net("ae"))
    params = jax.tree.map(lambda x: 1.01 * x, net.net_state.params)
    other = estimator.FaceDepth(net.module, NetState(params, net.net_state.batch_stats, None), SIZE, 320.0, net.code)
    monkeypatch.setitem(export.FORMATS, "onnx", (lambda _: export.to_onnx(other), export.run_onnx))
    code, file = write(tmp_path, "onnx")
    assert code == 1 and "error: The export differs from the net by up to" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_what_onnx_graph_does_not_know_is_named():
    with pytest.raises(FaceDepthError, match="The net uses sin, which onnx_graph.py cannot write: add it there."):
        onnx_graph.to_onnx(lambda gray: [jax.numpy.sin(gray / 2.0)], SIZE, "gray", ["y"], {})


@pytest.mark.parametrize("kind, missing", [("onnx", "onnx"), ("stablehlo", "flatbuffers")])
def test_without_the_extra(kind, missing, shipped, tmp_path, capsys, monkeypatch):
    shipped.append(random_net("ae"))
    monkeypatch.delattr(facedepth_jax, "onnx_graph")
    for name in [name for name in sys.modules if "onnx" in name or "flatbuffers" in name or "serialization" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    code, file = write(tmp_path, kind)
    assert code == 1 and not file.exists()
    assert "the extra `export`" in (error := capsys.readouterr().err) and "pip install 'facedepth_jax[export]'" in error
