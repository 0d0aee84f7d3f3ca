"""Show the relief of a photo's face in the browser: the program.

    python -m facedepth_jax.page [--run=DIR|shipped] [--port=7860]

The page is for this machine alone (127.0.0.1). It stores nothing and sends nothing: gradio's analytics are off, a photo
is deleted ten minutes after it came at the latest, and everything at the end.
"""

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from facedepth_jax import runtime

runtime.tune()

import numpy as np

from facedepth_jax import estimator, files, photos, pictures
from facedepth_jax.errors import FaceDepthError

MAX_FILE = "20mb"
LOOK_SEC, KEEP_SEC = 60, 540  # how often files are looked at, and how old they may be then


def process(net: estimator.FaceDepth, path: Path) -> tuple[np.ndarray, bytes, str]:
    """Estimate the largest face of a photo's file: a preview, uint8 RGB; a GLB model; a sentence.

    Raises FaceDepthError if the file cannot be used, or shows no face.
    """
    photo = next(photos.read(path))
    faces = net.find(photo.rgb, focal_px=photo.focal_px)
    if not faces or not (mesh := faces[0].mesh()).triangles.size:
        raise FaceDepthError(f"{path.name}: no face is found; give a photo that shows one from the front.")
    (face,) = faces
    relief_mm, how = face.relief_mm[face.mask], estimator.HOW[face.distance_from]
    sentence = f"Relief {relief_mm.min():.0f} to {relief_mm.max():.0f} mm; distance {face.distance_mm:.0f} mm, {how}."
    preview = pictures.preview(face.photo(pictures.PREVIEW_PX), face.relief_mm, net.face_mm)
    return preview, mesh.glb(), sentence


def build(net: estimator.FaceDepth, folder: Path):
    """Make the page, a gradio.Blocks that keeps its files in a folder."""
    import gradio
    import matplotlib

    def show(path):
        if path is None:
            return None, None, ""
        try:
            preview, glb, sentence = process(net, Path(path))
        except FaceDepthError as error:
            raise gradio.Error(str(error).replace(str(path), Path(path).name), print_exception=False) from None
        return preview, gradio.processing_utils.save_bytes_to_cache(glb, "face.glb", str(folder)), sentence

    sample = Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")
    with gradio.Blocks(title="facedepth_jax", analytics_enabled=False, delete_cache=(LOOK_SEC, KEEP_SEC)) as page:
        gradio.Markdown("# A photo in, a face's depth out\nOnly the program on this machine sees the photo.")
        with gradio.Row():
            with gradio.Column(scale=1):
                file = gradio.File(label="Photo", file_types=["image"], height=180)
                button = gradio.Button("Sample photo", elem_id="sample")
                sentence = gradio.Markdown(elem_id="sentence")
            with gradio.Column(scale=3):
                preview = gradio.Image(label="Photo, depth, relief", interactive=False, elem_id="preview", buttons=[])
                solid = gradio.Model3D(label="Turn it", interactive=False, elem_id="model", height=420)
        shown = [preview, solid, sentence]
        file.change(show, file, shown, api_visibility="private")
        button.click(lambda: show(sample), None, shown, api_visibility="private")
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see --help."""
    parser = argparse.ArgumentParser(prog="python -m facedepth_jax.page", description="A photo's relief in a browser.")
    parser.add_argument(
        "--run", type=files.path, default="shipped", help="directory of a training run, or shipped (the default)"
    )
    parser.add_argument("--port", type=int, default=7860)
    args = parser.parse_args(argv)
    if not 0 < args.port < 2**16:
        parser.error(f"--port={args.port} must be 1 to 65535")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # through the end of the next block, as Ctrl-C
    with tempfile.TemporaryDirectory(prefix="facedepth_page_") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # read when gradio is imported, as is the next
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        try:
            page = build(estimator.load(args.run), Path(folder))
            try:
                page.launch(
                    server_name="127.0.0.1",
                    server_port=args.port,
                    share=False,
                    max_file_size=MAX_FILE,
                    footer_links=[],
                    run_history=False,
                    ssr_mode=False,
                )
            except OSError:
                raise FaceDepthError(
                    f"Port {args.port} cannot be used, another program may have it; give another one by --port."
                ) from None
        except ImportError as error:
            fault = f"The page needs the extra `page` ({error}): pip install 'facedepth_jax[page]'."
        except FaceDepthError as error:
            fault = str(error)
        else:
            return 0
    print(f"error: {fault}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
