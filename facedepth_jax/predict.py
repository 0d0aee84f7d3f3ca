"""Estimate the depth of the faces in photos and videos: the program.

    python -m facedepth_jax.predict --out=DIR IMAGE|FOLDER|VIDEO [...] [--run=DIR]
        [--faces=largest|all | --box X,Y,W,H | --center X,Y | --whole] [--distance_mm D] [--focal_px F]
        [--in_place] [--smooth=S]

Without `--run` the net is the one that ships. Faces are found, unless `--box` names the window, `--whole` that the
image is one (filled up with black to a square), or `--center`, with `--distance_mm` and `--focal_px`, where the head's
middle is (Eq. 6). For each face of an image NAME, at the net's resolution:
  NAME_relief.npy   float32, millimetres from the head's distance, negative is nearer, NaN = background
  NAME_depth.npy    float32, millimetres from the camera, 0 = background
  NAME_depth.png    the same, 16-bit
  NAME_mask.png     255 = foreground
  NAME_preview.png  the photo, the depth in colours (near is red, far is blue), the relief under a light
  NAME.ply NAME.glb points, and a surface with the photo on it
  NAME.json         where the face and its maps lie in the photo, its distance, and the camera (docs/photo.md)
and one line on stdout. With `--in_place` the maps have the photo's own size and lie on it. A frame of a video or an
animation is called NAME_000001 and so on, and has no 3D model; a name that comes twice gets a number, as does the
second face of an image.

The head's distance D is `--distance_mm`; else it follows from the face's size and the focal length: `--focal_px`,
EXIF's FocalLengthIn35mmFilm, or that of a usual phone. docs/photo.md says how sure that is; relief does not depend on
it. A net of absolute depth (`depth_code.origin=camera`) says the distance itself, and gives depth everywhere: about
`none_level` in millimetres where it takes a point for "no depth" or too far.
"""

import argparse
import dataclasses
import itertools
import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from facedepth_jax import runtime

runtime.tune()

import cv2
import numpy as np
import tqdm

from facedepth_jax import estimator, files, photos, pictures
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.estimator import Face


def find_faces(net: estimator.FaceDepth, photo: photos.Photo, args: argparse.Namespace) -> list[Face]:
    """Estimate the faces of a photo that the flags ask for. Raises FaceDepthError as `FaceDepth.find` and `box_of`."""
    # EXIF's focal length says how far away a face is, nothing else: a photo may have been cut since.
    focal_px = args.focal_px or (None if args.distance_mm else photo.focal_px)
    known = {"focal_px": focal_px, "distance_mm": args.distance_mm}
    if args.box or args.center or args.whole:
        center = known | {"center": args.center} if args.center else {}
        return [net.look(photo.rgb, net.box_of(photo.rgb.shape[:2], box=args.box, **center), **known)]
    return net.find(photo.rgb, args.faces, **known)


def smooth(net: estimator.FaceDepth, face: Face, before: list[Face], share: float) -> Face:
    """Blend a face with the same one of the frame before: first its window, then what the net makes of that.

    Args:
      before: the faces of the frame before; the same one is at most a quarter of the window away.
      share: of the frame before in the result, 0 to 1.
    """
    new = face.window
    same = [last for last in before if np.hypot(last.window.x - new.x, last.window.y - new.y) < new.w / 4]
    if not same or not share:
        return face
    last = min(same, key=lambda last: np.hypot(last.window.x - new.x, last.window.y - new.y))
    turn = (last.window.roll - new.roll + 180) % 360 - 180
    steps = {name: getattr(last.window, name) - getattr(new, name) for name in "xywh"} | {"roll": turn}
    window = dataclasses.replace(new, **{name: getattr(new, name) + share * step for name, step in steps.items()})
    known = {"focal_px": face.focal_px, "distance_mm": face.distance_mm if face.distance_from == "given" else None}
    looked = net.look(face.image, window, **known)
    both = looked.mask & last.mask
    relief_mm = np.where(both, (1 - share) * looked.relief_mm + share * last.relief_mm, looked.relief_mm)
    distance_mm = looked.distance_mm
    if face.distance_from == "net":  # else it follows from the window, which is blended already
        distance_mm = (1 - share) * distance_mm + share * last.distance_mm
    depth_mm = np.where(looked.mask, relief_mm + np.float32(distance_mm), looked.depth_mm)
    mixed = {"relief_mm": relief_mm, "depth_mm": depth_mm, "distance_mm": distance_mm}
    return dataclasses.replace(looked, box=face.box, distance_from=face.distance_from, **mixed)


def maps_in_place(face: Face) -> tuple[np.ndarray, np.ndarray]:
    """Return a face's relief and depth where they are in its photo, (H, W). Raises FaceDepthError as `Window.paste`."""
    depth_mm = face.in_place(np.where(face.depth_mm > 0, face.depth_mm, np.nan))
    return face.in_place(face.relief_mm), np.nan_to_num(depth_mm)


def facts_of(path: Path, face: Face, in_place: bool) -> dict:
    """Say in plain values where a face and its maps lie in a photo, how far away it is, and what the camera is."""
    matrix = np.eye(2, 3) if in_place else face.window.matrix(len(face.depth_mm))
    return {
        "file": os.fsencode(path.name).decode(errors="replace"),
        "box": face.box,
        "map_to_photo": matrix.tolist(),
        "distance_mm": face.distance_mm,
        "distance_from": face.distance_from,
        "focal_px": face.focal_px,
        "middle_px": face.middle_px,
    }


def write_face(out: Path, name: str, face: Face, relief_mm, depth_mm, facts, face_mm: float, *, models: bool) -> None:
    """Write the files of one face, maps and facts as given. Raises FaceDepthError where one cannot be written."""
    files.write_json(out / f"{name}.json", facts)
    files.write_npy(out / f"{name}_relief.npy", relief_mm)
    files.write_npy(out / f"{name}_depth.npy", depth_mm)
    pictures.write_png(out / f"{name}_depth.png", np.clip(np.round(depth_mm), 0, 65535).astype(np.uint16))
    pictures.write_png(out / f"{name}_mask.png", np.isfinite(relief_mm) * np.uint8(255))
    preview = pictures.preview(face.photo(pictures.PREVIEW_PX), face.relief_mm, face_mm)
    pictures.write_png(out / f"{name}_preview.png", preview)
    if models and (mesh := face.mesh()).triangles.size:
        files.write_bytes(out / f"{name}.ply", mesh.ply())
        files.write_bytes(out / f"{name}.glb", mesh.glb())


def describe(path: Path, name: str, face: Face, in_place: bool) -> str:
    """Describe a face's place, distance and values in one line, and where its maps lie if that is not in place."""
    seen = face.relief_mm[face.mask]
    values = f"relief {seen.min():.0f} to {seen.max():.0f} mm" if seen.size else "nothing but background"
    x, y, w, h = face.box
    size = len(face.depth_mm)
    matrix = face.window.matrix(size)
    turned = f", turned by {face.window.roll:.0f} degrees" if round(face.window.roll) else ""
    line = (
        f"{path} -> {name}: face of {w} x {h} pixels at x={x}, y={y}; D = {face.distance_mm:.0f} mm, "
        f"{estimator.HOW[face.distance_from]}; {values}"
    )
    place = (
        f"; map pixel (0, 0) is source pixel (x={matrix[0, 2]:.2f}, y={matrix[1, 2]:.2f}), one map pixel is "
        f"{face.window.w / size:.3f} x {face.window.h / size:.3f} source pixels{turned}"
    )
    return line if in_place else line + place


def read_faces(net: estimator.FaceDepth, paths: Sequence[Path], args, failures: list[Path]) -> Iterator[tuple]:
    """Yield (path, photo, faces) for every image of every file.

    A file that cannot be used, or that shows no face, is reported on stderr and added to `failures`; the next one
    follows.
    """
    for path in paths:
        before, count, with_face = [], 0, 0
        try:
            for photo in photos.read(path):
                try:
                    faces = find_faces(net, photo, args)
                except FaceDepthError as error:
                    raise FaceDepthError(f"{path}: {error}") from None
                before = [smooth(net, face, before, args.smooth) for face in faces]
                count, with_face = count + 1, with_face + bool(faces)
                yield path, photo, before
            if not with_face:
                raise FaceDepthError(f"{path}: no face is found; give a square around it by --box, or say --whole.")
        except FaceDepthError as error:
            _fail(path, error, failures)
        else:
            if with_face < count:
                tqdm.tqdm.write(f"{path}: no face is found in {count - with_face} of {count} frames", sys.stderr)


def _fail(path, error, failures):
    tqdm.tqdm.write(f"error: {error}", sys.stderr)
    failures.append(path)


def predict_files(net: estimator.FaceDepth, paths: Sequence[Path], args: argparse.Namespace) -> bool:
    """Write the faces of images and videos into `args.out`.

    Returns:
      Whether every file could be used; the others do not hold it up.

    Raises:
      FaceDepthError: a file cannot be written.
    """
    failures, taken = [], set()
    total = sum(map(photos.count_frames, paths))
    with tqdm.tqdm(total=total, unit="image", disable=None if total > 1 else True, leave=False) as bar:
        for path, photo, faces in read_faces(net, paths, args, failures):
            for face in faces:
                try:
                    maps = maps_in_place(face) if args.in_place else (face.relief_mm, face.depth_mm)
                except FaceDepthError as error:
                    _fail(path, f"{path}: {error}", failures)
                    break
                names = itertools.chain([photo.name], (f"{photo.name}_{number}" for number in itertools.count(2)))
                name = next(name for name in names if name.casefold() not in taken)  # whatever the file system's case
                taken.add(name.casefold())
                facts = facts_of(path, face, args.in_place)
                write_face(args.out, name, face, *maps, facts, net.face_mm, models=not photo.is_frame)
                tqdm.tqdm.write(describe(path, name, face, args.in_place))
            bar.update()
    return not failures


def _numbers(count: int, kind: type):
    def parse(text: str):
        values = tuple(kind(value) for value in text.split(","))
        if len(values) != count or not np.isfinite(values).all():
            raise ValueError
        return values

    parse.__name__ = f"{count} numbers with commas"  # argparse puts it into its message
    return parse


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m facedepth_jax.predict",
        description="The depth of the faces in photos and videos.",
        allow_abbrev=False,
    )
    flag = parser.add_argument
    flag("inputs", nargs="+", type=files.path, metavar="IMAGE|FOLDER|VIDEO")
    flag("--run", type=files.path, default="shipped", help="directory of a training run, or shipped (the default)")
    flag("--out", required=True, type=files.path, help="directory to write to; files there are replaced")
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--faces", choices=("largest", "all"), default="largest", help="which faces to find")
    place.add_argument(
        "--box",
        type=_numbers(4, int),
        metavar="X,Y,W,H",
        help="the window that the net is to see, pixels: square, some two faces wide",
    )
    place.add_argument(
        "--center",
        type=_numbers(2, float),
        metavar="X,Y",
        help="the head's, pixels; needs --distance_mm and --focal_px",
    )
    place.add_argument("--whole", action="store_true", help="the image is the face")
    flag("--distance_mm", type=float, help="from the camera to the face")
    flag("--focal_px", type=float, help="focal length of the camera, in the image's pixels")
    flag("--in_place", action="store_true", help="maps of the photo's own size")
    flag("--smooth", type=float, default=0.0, help="of a video: weight of the frame before, 0 (off) to 0.99")
    # A value that begins with a minus is a flag to argparse, unless it is a plain number.
    text = re.sub(r"(^|\0)(--box|--center)\0(?=-[\d.])", r"\1\2=", "\0".join(argv))
    args = parser.parse_args(text.split("\0"))
    for name, least, most in (("distance_mm", 0.001, 1e6), ("focal_px", 0.001, 1e6), ("smooth", 0, 0.99)):
        value = getattr(args, name)
        if value is not None and not least <= value <= most:
            parser.error(f"--{name} must be {least:g} to {most:g}")
    if args.center and not (args.distance_mm and args.focal_px):
        parser.error("--center wants --distance_mm and --focal_px")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see --help."""
    args = _parse(sys.argv[1:] if argv is None else argv)
    # Otherwise OpenCV describes a broken file in lines of its own.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        if os.path.exists(args.out) and not args.out.is_dir():
            raise FaceDepthError(f"--out={args.out} is a file; give a directory.")
        paths, others = photos.list_files(args.inputs)
        if any(args.out.resolve() == path.parent.resolve() for path in paths):
            raise FaceDepthError(f"--out={args.out} holds the inputs; give another directory.")
        others = [path for path in others if path.resolve() != args.out.resolve()]
        if others:
            names = ", ".join(f"{path.name}/" if path.is_dir() else path.name for path in others)
            tqdm.tqdm.write(f"left out, no image or video of a kind that can be read: {names}", sys.stderr)
        net = estimator.load(args.run)
        if net.code.origin == "camera" and args.distance_mm and not args.focal_px:
            raise FaceDepthError(
                f"{args.run} estimates absolute depth: --distance_mm is for the crop, with --focal_px."
            )
        tqdm.tqdm.write(f"{net.size} x {net.size} pixels, {net.face_mm:g} mm wide at the head")
        return 0 if predict_files(net, paths, args) else 1
    except FaceDepthError as error:
        tqdm.tqdm.write(f"error: {error}", sys.stderr)
        return 1
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
