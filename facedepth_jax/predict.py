"""Estimate depth maps from gray or colour images: the program.

    python -m facedepth_jax.predict --run=DIR --out=DIR IMAGE|FOLDER|VIDEO [...]
        [--box X,Y,W,H | --center X,Y --distance_mm D --focal_px F] [--batch_size N]

The net expects crops as `prepare` makes them: a crop that is R millimetres wide at the head's distance (Eq. 6). With
`--center`, `--distance_mm` and `--focal_px` (of the camera) the crop is made just so; `--box` takes your own; without
either the whole image is the face, filled up with black to a square. A crop that leaves the image is filled with black.

For each image NAME, at the net's resolution:
  NAME_depth.png        16-bit, millimetres
  NAME_depth.npy        float32, millimetres
  NAME_depth_color.png  preview, near is red, far is blue
and one line on stdout that says where the map lies in the source. A frame of a video is called NAME_000001 and so on; a
name that comes twice gets a number. Where the net takes a point for "no depth" or too far, the map holds about
`none_level` in millimetres: the training data writes that level there, and nothing tells the two apart.
"""

import argparse
import io
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
from facedepth_jax.errors import FaceDepthError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
MAX_PIXELS = 64 * 1024 * 1024  # of a frame of a video; images have the same limit, see runtime.py
VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}


def list_files(inputs: Sequence[Path]) -> list[Path]:
    """List images and videos as given, folders replaced by the images in them (not deeper), by name.

    Raises:
      FaceDepthError: an input does not exist, a folder has no image.
    """
    paths = []
    for path in inputs:
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not found:
                raise FaceDepthError(f"{path} holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}).")
            paths += found
        elif path.is_file():
            paths.append(path)
        else:
            raise FaceDepthError(f"{path} does not exist; give an image, a folder of images or a video.")
    return paths


def read_gray(path: Path) -> np.ndarray:
    """Read an image file of any size, gray or colour, 8 bits, turned as its EXIF data says, as uint8 (H, W).

    Raises:
      FaceDepthError: not readable, truncated, no image, or not 8-bit.
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
        raise FaceDepthError(f"{path} cannot be decoded: it is truncated, too large or no image.")
    if image.dtype != np.uint8:
        raise FaceDepthError(f"{path} is a {image.dtype} image; the net reads 8-bit gray or colour, convert it first.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)


def read_frames(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, gray uint8 (H, W)) for an image, or for each frame of a video.

    Raises:
      FaceDepthError: as `read_gray`; a video without a frame that can be decoded, or with frames that are too large.
    """
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        yield path.stem, read_gray(path)
        return
    capture = cv2.VideoCapture(str(path))
    number = 0
    try:
        while True:
            width, height = (capture.get(side) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
            if width * height > MAX_PIXELS:  # before it is decoded; for the next frame again, as sizes may change
                raise FaceDepthError(f"{path} has frames of {width:.0f} x {height:.0f} pixels, over {MAX_PIXELS}.")
            ok, image = capture.read()
            if not ok:
                break
            number += 1
            yield f"{path.stem}_{number:06d}", cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)
    finally:
        capture.release()
    if number == 0:
        raise FaceDepthError(f"{path} holds no frame that can be decoded; it is truncated or no video.")


def write_depth(out: Path, name: str, depth_mm: np.ndarray) -> None:
    """Write the three files of one map, float32 (S, S) in mm."""
    npy = io.BytesIO()
    np.save(npy, depth_mm, allow_pickle=False)
    files.write_bytes(out / f"{name}_depth.npy", npy.getvalue())
    pictures.write_png(out / f"{name}_depth.png", np.clip(np.round(depth_mm), 0, 65535).astype(np.uint16))
    color = pictures.color_depth(depth_mm, *pictures.depth_range_mm(depth_mm))
    pictures.write_png(out / f"{name}_depth_color.png", color)


def describe_net(net: estimator.FaceDepth) -> str:
    """Describe the scale of every map in two lines."""
    low, high = net.code.range_mm
    none_mm = net.code.offset_mm + net.code.none_level * net.code.step_mm
    return (
        f"{net.size} x {net.size} pixels, {net.face_mm:g} mm wide at the head in training\n"
        f"values in mm, {low:.0f}..{high:.0f} possible, {net.code.step_mm:g} mm a level in training, "
        f"{none_mm:.0f} where there is no depth"
    )


def describe_map(path: Path, name: str, box: Box, depth_mm: np.ndarray, mm_per_pixel: float | None) -> str:
    """Describe the place of a map in its source and its values in one line."""
    step_x, step_y = box.w / depth_mm.shape[1], box.h / depth_mm.shape[0]
    line = (
        f"{path} -> {name}_depth.png: {depth_mm.min():.0f}..{depth_mm.max():.0f} mm; map pixel (0, 0) is source "
        f"pixel (x={box.x + step_x / 2 - 0.5:.2f}, y={box.y + step_y / 2 - 0.5:.2f}), "
        f"one map pixel is {step_x:.3f} x {step_y:.3f} source pixels"
    )
    return line if mm_per_pixel is None else f"{line}, {mm_per_pixel:.2f} mm at the head's distance"


def free_name(name: str, taken: set[str]) -> str:
    """Take `name`, or `name_2`, `name_3`, ... where it is taken. Case does not tell two names apart."""
    free, number = name, 1
    while free.casefold() in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free.casefold())
    return free


def read_crops(net: estimator.FaceDepth, paths: Sequence[Path], where: dict, failures: list[Path]) -> Iterator[tuple]:
    """Yield (path, name, box, crop uint8 (S, S)) for every frame of every file, names unique.

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
                yield path, free_name(name, taken), box, net.crop(gray, box)
        except FaceDepthError as error:
            print(f"error: {error}", file=sys.stderr)
            failures.append(path)


def predict_files(
    net: estimator.FaceDepth, paths: Sequence[Path], out: Path, where: dict, batch_size: int
) -> list[Path]:
    """Write the maps of files, a batch at a time; go on after a file that cannot be used.

    Args:
      paths: images and videos.
      out: directory to write to.
      where: the place of the face, as `FaceDepth.box_of` takes it.
      batch_size: images a call of the net.

    Returns:
      The files that could not be used.

    Raises:
      FaceDepthError: an estimate is not finite, a map cannot be written.
    """
    failures = []
    mm_per_pixel = net.face_mm / net.size if "center" in where else None
    crops = read_crops(net, paths, where, failures)
    while batch := list(itertools.islice(crops, batch_size)):
        distance_mm = np.full(len(batch), where["distance_mm"]) if "center" in where else None
        maps = net.batch(np.stack([crop for *_, crop in batch]), distance_mm)
        for (path, name, box, _), depth_mm in zip(batch, maps, strict=True):
            write_depth(out, name, depth_mm)
            print(describe_map(path, name, box, depth_mm, mm_per_pixel))
    return failures


def _numbers(count: int, kind: type):
    def parse(text: str):
        values = tuple(kind(value) for value in text.split(","))
        if len(values) != count or not np.isfinite(values).all():
            raise ValueError
        return values

    parse.__name__ = f"{count} numbers with commas"  # argparse puts it into its message
    return parse


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m facedepth_jax.predict", description="Depth maps of faces from gray or colour images."
    )
    parser.add_argument("inputs", nargs="+", type=Path, metavar="IMAGE|FOLDER|VIDEO")
    parser.add_argument("--run", required=True, type=Path, help="directory of a training run")
    parser.add_argument("--out", required=True, type=Path, help="directory to write to; files there are replaced")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--box", type=_numbers(4, int), metavar="X,Y,W,H", help="the face in pixels; fills the map")
    where.add_argument("--center", type=_numbers(2, float), metavar="X,Y", help="head centre in pixels, for Eq. 6")
    parser.add_argument("--distance_mm", type=float, help="from the camera to the head, with --center")
    parser.add_argument("--focal_px", type=float, help="focal length of the images' camera, with --center")
    parser.add_argument("--batch_size", type=int, default=16)
    args = parser.parse_args(argv)
    if len({value is None for value in (args.center, args.distance_mm, args.focal_px)}) > 1:
        parser.error("--center, --distance_mm and --focal_px go together")
    for flag, least in (("distance_mm", 0.001), ("focal_px", 0.001), ("batch_size", 1)):
        value = getattr(args, flag)
        if value is not None and not least <= value <= 1e6:
            parser.error(f"--{flag} must be {least} to 1000000")

    cv2.utils.logging.setLogLevel(
        cv2.utils.logging.LOG_LEVEL_SILENT
    )  # what OpenCV says of a broken file is said below, in one sentence
    try:
        paths = list_files(args.inputs)
        if any(args.out.resolve() == path.parent.resolve() for path in paths):
            raise FaceDepthError(f"--out={args.out} holds the inputs; give another directory.")
        net = estimator.load(args.run)
        where = {} if args.box is None else {"box": args.box}
        if args.center is not None:
            where = {"center": args.center, "distance_mm": args.distance_mm, "focal_px": args.focal_px}
        print(describe_net(net))
        failures = predict_files(net, paths, args.out, where, args.batch_size)
    except FaceDepthError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
