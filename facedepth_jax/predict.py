"""Estimate depth maps from gray or colour images: the program.

    python -m facedepth_jax.predict --run=DIR --out=DIR IMAGE|FOLDER|VIDEO [...]
        [--box X,Y,W,H | --center X,Y --focal_px F] [--distance_mm D] [--batch_size N]

The net expects crops as `prepare` makes them, R millimetres wide at the head's distance (Eq. 6). With `--center`,
`--distance_mm` and `--focal_px` (of the camera) the crop is made just so; `--box` takes your own; without either the
whole image is the face, filled up with black to a square, as is every crop that leaves the image.

For each image NAME, at the net's resolution:
  NAME_depth.png        16-bit, millimetres
  NAME_depth.npy        float32, millimetres
  NAME_depth_color.png  preview, near is red, far is blue
and one line on stdout with the map's place in the source. A frame of a video is called NAME_000001 and so on; a name
that comes twice gets a number. Where a net of absolute depth takes a point for "no depth" or too far, the map holds
about `none_level` in millimetres, the level that the training data has in both cases.

A net that counts depth from the head (`depth_code.origin`) adds the head's distance, `--distance_mm`, however the crop
is made; depth is 0 where it sees background. Without the distance there is relief alone, negative is nearer than that:
  NAME_relief.npy        float32, millimetres, NaN = background
  NAME_relief_color.png  preview
"""

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from facedepth_jax import runtime

runtime.tune()

import cv2
import numpy as np

from facedepth_jax import estimator, files, pictures
from facedepth_jax.data.crop import Box
from facedepth_jax.depth_code import RELIEF_MM, DepthCode
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.estimator import MAX_PIXELS

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}


def list_files(inputs: Sequence[Path]) -> list[Path]:
    """List images and videos as given, each folder replaced by the images in it (not deeper), by name.

    Raises FaceDepthError for an input that does not exist and a folder without an image.
    """
    paths = []
    for path in inputs:
        if not path.exists():
            raise FaceDepthError(f"{path} does not exist; give an image, a folder of images or a video.")
        found = [path]
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        if not found:
            raise FaceDepthError(f"{path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}).")
        paths += found
    return paths


def read_gray(path: Path) -> np.ndarray:
    """Read an image file of any size, gray or colour, 8 bits, turned as its EXIF data says, as uint8 (H, W).

    Raises FaceDepthError if it cannot be read, is truncated, not an image, or not 8-bit.
    """
    try:
        # From memory: cv2.imread gives half an image for a truncated JPEG without a word, cv2.imdecode gives none.
        content = np.frombuffer(path.read_bytes(), np.uint8)
        image = cv2.imdecode(content, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH) if content.size else None
    except OSError as error:
        raise FaceDepthError(f"{path} cannot be read: {error.strerror}.") from error
    except cv2.error:  # more pixels than OPENCV_IO_MAX_IMAGE_PIXELS
        image = None
    if image is None:
        raise FaceDepthError(f"{path} cannot be decoded: it is truncated, too large or not an image.")
    if image.dtype != np.uint8:
        raise FaceDepthError(f"{path} is a {image.dtype} image; the net reads 8-bit gray or colour, convert it first.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)


def read_frames(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, gray uint8 (H, W)) for an image, or for each frame of a video.

    Raises FaceDepthError as `read_gray` does, and for a video without a frame or with frames that are too large.
    """
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        yield path.stem, read_gray(path)
        return
    capture = cv2.VideoCapture(str(path))
    try:
        for number in itertools.count(1):
            width, height = (capture.get(side) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
            if width * height > MAX_PIXELS:  # before it is decoded; sizes may change from frame to frame
                raise FaceDepthError(f"{path} has frames of {width:.0f} x {height:.0f} pixels, over {MAX_PIXELS}.")
            ok, image = capture.read()
            if not ok:
                break
            yield f"{path.stem}_{number:06d}", cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    finally:
        capture.release()
    if number == 1:
        raise FaceDepthError(f"{path} holds no frame that can be decoded; it is truncated or not a video.")


def read_crops(net: estimator.FaceDepth, paths: Sequence[Path], where: dict, failures: list[Path]) -> Iterator[tuple]:
    """Yield (path, name, box, crop uint8 (S, S)) for every frame of every file, names unique whatever their case.

    A file that cannot be used is reported on stderr and added to `failures`, and the next one follows.
    """
    taken = set()
    for path in paths:
        try:
            for name, gray in read_frames(path):
                try:
                    box = net.box_of(gray.shape, **where)
                except FaceDepthError as error:
                    raise FaceDepthError(f"{path}: {error}") from None
                names = itertools.chain([name], (f"{name}_{number}" for number in itertools.count(2)))
                name = next(name for name in names if name.casefold() not in taken)
                taken.add(name.casefold())
                yield path, name, box, net.crop(gray, box)
        except FaceDepthError as error:
            print(f"error: {error}", file=sys.stderr)
            failures.append(path)


def write_map(out: Path, name: str, kind: str, map_mm: np.ndarray) -> None:
    """Write the files of one map, float32 (S, S) in mm: of "depth", 0 = none, or of "relief", NaN = none."""
    files.write_npy(out / f"{name}_{kind}.npy", map_mm)
    if kind == "depth":
        pictures.write_png(out / f"{name}_depth.png", np.clip(np.round(map_mm), 0, 65535).astype(np.uint16))
    else:
        map_mm = np.nan_to_num(map_mm + estimator.RELIEF_AT_MM)
    color = pictures.color_depth(map_mm, *pictures.depth_range_mm(map_mm))
    pictures.write_png(out / f"{name}_{kind}_color.png", color)


def describe_map(path: Path, name: str, kind: str, box: Box, map_mm: np.ndarray) -> str:
    """Describe the place of a map in its source and its values in one line."""
    file = {"depth": f"{name}_depth.png", "relief": f"{name}_relief.npy"}[kind]
    seen = map_mm[map_mm != 0 if kind == "depth" else np.isfinite(map_mm)]
    values = f"{seen.min():.0f}..{seen.max():.0f} mm" if seen.size else "nothing but background"
    step_x, step_y = box.w / map_mm.shape[1], box.h / map_mm.shape[0]
    return (
        f"{path} -> {file}: {values}; map pixel (0, 0) is source "
        f"pixel (x={box.x + step_x / 2 - 0.5:.2f}, y={box.y + step_y / 2 - 0.5:.2f}), "
        f"one map pixel is {step_x:.3f} x {step_y:.3f} source pixels"
    )


def describe_values(code: DepthCode, distance_mm: float | None) -> str:
    """Describe what the maps of a net hold, given the head's distance or none."""
    if code.origin == "camera":
        low, high = code.range_mm
        return (
            f"values in mm, {low:.0f}..{high:.0f} possible, {code.step_mm:g} mm a level in training, "
            f"{code.from_levels(code.none_level):.0f} where there is no depth"
        )
    if distance_mm is None:
        return (
            "no distance is given: relief in mm from the head's distance, no depth; "
            f"{-RELIEF_MM:.0f} to {RELIEF_MM:.0f} in training, NaN = background"
        )
    return f"values in mm, D - {RELIEF_MM:.0f} to D + {RELIEF_MM:.0f} in training, D = {distance_mm:g}; 0 = background"


def predict_files(net: estimator.FaceDepth, paths: Sequence[Path], out: Path, where: dict, batch_size: int) -> bool:
    """Write the maps of images and videos into `out`, a batch at a time.

    Args:
      where: the place of the face and its distance, as `FaceDepth.box_of` takes them.

    Returns:
      Whether every file could be used; the others do not hold it up.

    Raises:
      FaceDepthError: an estimate is not finite, a map cannot be written.
    """
    failures = []
    crops = read_crops(net, paths, where, failures)
    scale = f", {net.face_mm / net.size:.2f} mm at the head's distance" if "center" in where else ""
    kind = "relief" if net.code.origin == "head" and "distance_mm" not in where else "depth"
    while batch := list(itertools.islice(crops, batch_size)):
        distance_mm = np.full(len(batch), where["distance_mm"]) if "distance_mm" in where else None
        maps = net.batch(np.stack([crop for *_, crop in batch]), distance_mm)
        for (path, name, box, _), map_mm in zip(batch, maps, strict=True):
            write_map(out, name, kind, map_mm)
            print(describe_map(path, name, kind, box, map_mm) + scale)
    return not failures


def _numbers(count: int, kind: type):
    def parse(text: str):
        values = tuple(kind(value) for value in text.split(","))
        if len(values) != count or not np.isfinite(values).all():
            raise ValueError
        return values

    parse.__name__ = f"{count} numbers with commas"  # argparse puts it into its message
    return parse


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, dict]:
    """Parse the flags; return them and the place of the face."""
    parser = argparse.ArgumentParser(
        prog="python -m facedepth_jax.predict", description="Depth maps of faces from gray or colour images."
    )
    flag = parser.add_argument
    flag("inputs", nargs="+", type=Path, metavar="IMAGE|FOLDER|VIDEO")
    flag("--run", required=True, type=Path, help="directory of a training run")
    flag("--out", required=True, type=Path, help="directory to write to; files there are replaced")
    flag("--box", type=_numbers(4, int), metavar="X,Y,W,H", help="the face in pixels; fills the map")
    flag("--center", type=_numbers(2, float), metavar="X,Y", help="head centre in pixels, for Eq. 6")
    help_ = "from the camera to the face: with --center, and for depth by nets that count it from the head"
    flag("--distance_mm", type=float, help=help_)
    flag("--focal_px", type=float, help="focal length of the images' camera, with --center")
    flag("--batch_size", type=int, default=16)
    args = parser.parse_args(argv)
    for name, least in (("distance_mm", 0.001), ("focal_px", 0.001), ("batch_size", 1)):
        value = getattr(args, name)
        if value is not None and not least <= value <= 1e6:
            parser.error(f"--{name} must be {least} to 1000000")
    where = {name: getattr(args, name) for name in ("box", "center", "distance_mm", "focal_px")}
    where = {name: value for name, value in where.items() if value is not None}
    if where.keys() != {"center", "distance_mm", "focal_px"} and where.keys() - {"box", "distance_mm"}:
        parser.error("give --center, --distance_mm and --focal_px together, and without --box")
    return args, where


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see --help."""
    args, where = _parse(argv)
    # Otherwise OpenCV describes a broken file in lines of its own.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        paths = list_files(args.inputs)
        if any(args.out.resolve() == path.parent.resolve() for path in paths):
            raise FaceDepthError(f"--out={args.out} holds the inputs; give another directory.")
        net = estimator.load(args.run)
        if net.code.origin == "camera" and "distance_mm" in where and "center" not in where:
            raise FaceDepthError(f"{args.run} estimates absolute depth: --distance_mm is for the crop, with --center.")
        print(f"{net.size} x {net.size} pixels, {net.face_mm:g} mm wide at the head in training")
        print(describe_values(net.code, where.get("distance_mm")))
        return 0 if predict_files(net, paths, args.out, where, args.batch_size) else 1
    except FaceDepthError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
