"""Write a trained net as one file that runs without this project: the program.

    python -m facedepth_jax.export --format=onnx|stablehlo --out=FILE [--run=DIR|shipped]

`onnx` is for ONNX Runtime, OpenCV, CoreML's and TensorRT's converters; `stablehlo` for JAX alone, on CPU, GPU and TPU.
In both the net takes `gray`, uint8 (N, S, S) for any N, and gives `relief_mm`, float32 (N, S, S), and `foreground`,
bool (N, S, S); a net of absolute depth gives `depth_mm`, float32 (N, S, S). docs/export.md says how to use them.

Before the file is written it is read again and run beside the net: ONNX by OpenCV, StableHLO by JAX. Everything is
float32.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from facedepth_jax import runtime

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # others may round products more coarsely
runtime.tune()

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from facedepth_jax import estimator, files
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.models import layers

TOLERANCE_MM = 0.1
TOLERANCE_SHARE = 1e-3  # of the pixels whose foreground may differ, by rounding
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def maps_of(net: estimator.FaceDepth) -> tuple[Callable, list[str]]:
    """Return what is exported: the function of gray uint8 (N, S, S) to a list of maps, in float32, and their names."""
    module = net.module.clone(dtype=jnp.float32)
    absolute = net.code.origin == "camera"

    def maps(gray):
        depth_mm, foreground = estimator.estimate_depth(module, net.code, net.net_state, gray, jnp.zeros(1))
        return [depth_mm] if absolute else [depth_mm, foreground]

    return maps, ["depth_mm"] if absolute else ["relief_mm", "foreground"]


def to_onnx(net: estimator.FaceDepth) -> bytes:
    """Write a net as an ONNX model. Raises FaceDepthError if onnx is missing or does not know what the net does."""
    try:
        from facedepth_jax import onnx_graph
    except ImportError as error:
        raise FaceDepthError(f"ONNX needs the extra `export` ({error}): pip install 'facedepth_jax[export]'.") from None
    maps, names = maps_of(net)
    about = {
        "face_mm": f"{net.face_mm:g}",
        "gray": f"A face, face_mm wide at the head's distance: uint8 (N, {net.size}, {net.size}).",
        "relief_mm": "Depth minus the head's distance: negative is nearer; means something in the foreground only.",
        "foreground": "The head and what lies less than 300 mm behind the head's distance.",
        "depth_mm": f"Depth; about {net.code.from_levels(net.code.none_level):g} where there is none.",
    }
    with layers.traced_for("any"):
        return onnx_graph.to_onnx(maps, net.size, "gray", names, {k: about[k] for k in ("face_mm", "gray", *names)})


def run_onnx(content: bytes, names: list[str]) -> Callable:
    """Read an ONNX model by OpenCV; return the function from gray images to maps."""
    net = cv2.dnn.readNetFromONNX(np.frombuffer(content, np.uint8))

    def run(gray):
        net.setInput(gray)
        return net.forward(names)

    return run


def to_stablehlo(net: estimator.FaceDepth) -> bytes:
    """Write a net as `jax.export` does, for all platforms. Raises FaceDepthError if flatbuffers is missing."""
    maps, _ = maps_of(net)

    def traced_for(platform):
        def on_platform(gray):
            with layers.traced_for(platform):
                return maps(gray)

        return on_platform

    def by_platform(gray):
        return jax.lax.platform_dependent(gray, cpu=traced_for("cpu"), default=traced_for("any"))

    (batch,) = jax.export.symbolic_shape("N")
    gray = jax.ShapeDtypeStruct((batch, net.size, net.size), np.uint8)
    exported = jax.export.export(jax.jit(by_platform), platforms=PLATFORMS)(gray)
    try:
        return bytes(exported.serialize())
    except ImportError as error:
        message = f"StableHLO needs the extra `export` ({error}): pip install 'facedepth_jax[export]'."
        raise FaceDepthError(message) from None


def run_stablehlo(content: bytes, names: list[str]) -> Callable:
    """Read what `to_stablehlo` wrote; return the function from gray images to maps."""
    return jax.export.deserialize(bytearray(content)).call


FORMATS = {"onnx": (to_onnx, run_onnx), "stablehlo": (to_stablehlo, run_stablehlo)}


def compare(net: estimator.FaceDepth, run: Callable) -> tuple[float, float]:
    """Run a net and its export on blurred noise, three images and one.

    Returns:
      the largest difference of depth or relief in mm, and the share of pixels whose foreground differs.

    Raises:
      FaceDepthError: they differ by more than rounding explains.
    """
    maps, _ = maps_of(net)
    noise = np.random.default_rng(0).integers(0, 256, (3, net.size, net.size), np.uint8)
    noise = np.stack([cv2.GaussianBlur(image, (0, 0), sigma) for image, sigma in zip(noise, (0.1, 1, 3), strict=True)])
    largest_mm, share = 0.0, 0.0
    for gray in (noise, noise[:1]):
        expected, found = jax.device_get((jax.jit(maps)(gray), run(gray)))
        largest_mm = max(largest_mm, float(np.abs(found[0] - expected[0]).max()))
        share = max([share, *(float(np.mean(a != b)) for a, b in zip(found[1:], expected[1:], strict=True))])
    if not (largest_mm <= TOLERANCE_MM and share <= TOLERANCE_SHARE):  # NaN too
        raise FaceDepthError(
            f"The export differs from the net by up to {largest_mm:.3g} mm, and in {share:.2%} of the foreground; "
            "it is not written. This is a fault of facedepth_jax or of the program that ran it: please report it."
        )
    return largest_mm, share


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see --help."""
    parser = argparse.ArgumentParser(
        prog="python -m facedepth_jax.export",
        description="A trained net as one file for other programs.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--run", type=files.path, default="shipped", help="directory of a training run, or shipped (the default)"
    )
    parser.add_argument("--format", required=True, choices=FORMATS)
    parser.add_argument("--out", required=True, type=files.path, metavar="FILE", help="is replaced")
    args = parser.parse_args(argv)
    try:
        net = estimator.load(args.run)
        write, read = FORMATS[args.format]
        content = write(net)
        largest_mm, share = compare(net, read(content, maps_of(net)[1]))
        files.write_bytes(args.out, content)
    except FaceDepthError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    foreground = "" if net.code.origin == "camera" else f", and in {share:.2%} of the foreground"
    reader = {"onnx": f"OpenCV {cv2.__version__}", "stablehlo": "JAX, after a reload,"}[args.format]
    print(f"{args.out}: {len(content) / 1e6:.2f} MB; {reader} differs by at most {largest_mm:.2g} mm{foreground}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
