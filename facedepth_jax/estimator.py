"""Use a trained net: `load()` gives a FaceDepth, which finds faces in photos, or is called on images of faces."""

import dataclasses
import functools
import pathlib

import cv2
import flax.linen as nn
import jax
import numpy as np

from facedepth_jax import config as configs
from facedepth_jax import faces as detector
from facedepth_jax import meshes, photos, runtime
from facedepth_jax.data import crop
from facedepth_jax.depth_code import RELIEF_MM, DepthCode, encode_gray
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.methods import METHODS, build
from facedepth_jax.state import NetState, forward, init_net, variables
from facedepth_jax.weight_files import load_weights

RELIEF_AT_MM = 1000.0  # a distance to decode relief at: any will do
FOCAL_35MM = 28.0  # millimetres on 35 mm film: a phone's main camera, taken where nobody says which camera it was
TEXTURE_PX = 512
HOW = {  # Face.distance_from in words
    "given": "as given",
    "focal length": "by the focal length (given, or EXIF's) and the face's size",
    "default focal length": f"a guess: by a phone's focal length, {FOCAL_35MM:g} mm on film",
    "net": "by the net",
}


def load(run="shipped") -> "FaceDepth":
    """Load the net of a run from its `config.json` and `generator.safetensors`, by default the one that ships.

    Raises FaceDepthError if one of them is missing or damaged.
    """
    config, module, net_state = load_net(configs.find_run(run), "generator")
    return FaceDepth(module, net_state, config.data.size, config.data.face_mm, configs.depth_code(config))


def load_net(run, name: str) -> tuple:
    """Load one net of a run: (config, module, NetState without optimiser). Raises FaceDepthError as `load` does."""
    config = configs.read_run(run)
    nets = build(config, subjects=1)
    if name != METHODS[config.method].net:
        raise FaceDepthError(f"{run} is a run of '{config.method}', which has no {name}: give another.")
    like = jax.eval_shape(lambda: init_net(nets[name], jax.random.key(0), config.data.size))
    path = pathlib.Path(run) / f"{name}.safetensors"
    weights = jax.device_put(load_weights(path, variables(like)))
    return config, nets[name].module, NetState(weights["params"], weights["batch_stats"], None)


def estimate_depth(module: nn.Module, code: DepthCode, net_state: NetState, gray, distance_mm):
    """Estimate depth maps: gray uint8 (B, S, S), distance_mm float32 (B,) -> depth and foreground of `code.decode`."""
    return code.decode(forward(module, net_state, encode_gray(gray)), distance_mm)


@functools.cache  # the options ask for the device, which importing must not
def _estimate_depth():
    # The weights are an argument: as constants they would be compiled in, for every batch size again.
    return jax.jit(estimate_depth, static_argnums=(0, 1), compiler_options=runtime.inference_options())


@dataclasses.dataclass(frozen=True)
class Face:
    """A face in an image, and what a net makes of it.

    Attributes:
      image: uint8 (H, W, 3) RGB.
      box: x, y, w, h in pixels, of the detector or as given; of a rolled face as if it were upright.
      window: the part of the image that the maps show.
      relief_mm: float32 (S, S), depth minus the head's distance, negative is nearer; NaN = background.
      depth_mm: float32 (S, S), depth; 0 = background, but nets of absolute depth give it everywhere.
      distance_mm: of the head, from the camera.
      distance_from: how that is known: "given", "focal length" or "default focal length" (and the window's size),
        "net" (absolute depth).
      focal_px: the camera's focal length, given, or that which fits the distance.
    """

    image: np.ndarray
    box: tuple[int, int, int, int]
    window: crop.Window
    relief_mm: np.ndarray
    depth_mm: np.ndarray
    distance_mm: float
    distance_from: str
    focal_px: float

    @property
    def mask(self) -> np.ndarray:
        """Return the foreground, bool (S, S)."""
        return np.isfinite(self.relief_mm)

    @property
    def middle_px(self) -> tuple[float, float]:
        """Return the image's middle, at which the camera looks, (x, y)."""
        height, width = self.image.shape[:2]
        return (width - 1) / 2, (height - 1) / 2

    def photo(self, size_px: int) -> np.ndarray:
        """Return the window as the photo shows it, uint8 (size_px, size_px, 3) RGB."""
        return self.window.crop(self.image, size_px)

    def in_place(self, values: np.ndarray) -> np.ndarray:
        """Put a map (S, S) where it is in the image, float32 (H, W), NaN elsewhere; NaN in the map stays out."""
        return self.window.paste(values, self.image.shape[:2])

    def mesh(self) -> meshes.Mesh:
        """Make a surface of the foreground with the photo's colours, in the camera's coordinates, millimetres.

        The camera is a pinhole that looks at the image's middle.
        """
        size = len(self.depth_mm)
        y, x = np.mgrid[:size, :size]
        pixels = np.stack([x, y, np.ones_like(x)], -1) @ self.window.matrix(size).T
        rays = np.concatenate([(pixels - self.middle_px) / self.focal_px, np.ones((size, size, 1))], -1)
        return meshes.from_points(rays * self.depth_mm[..., None], self.mask, self.photo(size), self.photo(TEXTURE_PX))


@dataclasses.dataclass(frozen=True)
class FaceDepth:
    """A trained net together with the crop that it wants.

    Attributes:
      module, net_state: the net.
      size: S, pixels of its images and maps.
      face_mm: width of the window that a face is cropped to, R of Eq. 6, millimetres.
      code: the meaning of its output.
    """

    module: nn.Module
    net_state: NetState = dataclasses.field(repr=False)
    size: int
    face_mm: float
    code: DepthCode

    def estimate(self, gray, distance_mm):
        """Apply `estimate_depth`, jitted, to arrays of NumPy or JAX."""
        traced = any(isinstance(value, jax.core.Tracer) for value in (gray, distance_mm))
        call = estimate_depth if traced else _estimate_depth()  # JAX takes options for the outermost program alone
        return call(self.module, self.code, self.net_state, gray, distance_mm)

    def __call__(self, image, *, box=None, center=None, distance_mm=None, focal_px=None) -> np.ndarray:
        """Estimate the depth map of the face in an image.

        Args:
          image: uint8 (H, W), or RGB (H, W, 3).
          box, center, distance_mm, focal_px: as for `box_of`; the distance of the head also as for `batch`.

        Returns:
          float32 (S, S), millimetres: depth, or relief, as `batch` gives it.

        Raises:
          FaceDepthError: the image is of another kind, the box or the distance is not usable, or the estimate is not
            finite.
        """
        gray = cv2.cvtColor(_rgb(image), cv2.COLOR_RGB2GRAY)
        box = self.box_of(gray.shape, box=box, center=center, distance_mm=distance_mm, focal_px=focal_px)
        return self.batch(self.crop(gray, box)[None], None if distance_mm is None else [distance_mm])[0]

    def find(self, image, faces="largest", focal_px=None, distance_mm=None) -> list[Face]:
        """Find faces in a photo and estimate their depth.

        Args:
          image: uint8 (H, W), or RGB (H, W, 3).
          faces: "largest", or "all", the largest first.
          focal_px: the camera's focal length; by default that of a phone, and the distance is a guess.
          distance_mm: of the heads, if it is known; by default it follows from the focal length and the face's size.

        Returns:
          the faces, none where none is found.

        Raises:
          FaceDepthError: the image is of another kind, a number is not above 0, or the estimate is not finite.
        """
        if faces not in ("largest", "all"):
            raise FaceDepthError(f'faces is {faces!r}; give "largest" or "all".')
        image = _rgb(image)
        _check_above_0(focal_px=focal_px, distance_mm=distance_mm)
        found = []
        for face in detector.detect(image, 1 if faces == "largest" else None):
            window = face.window(self.face_mm, focal_px and distance_mm and distance_mm / focal_px)
            looked = self.look(image, window, focal_px=focal_px, distance_mm=distance_mm)
            found.append(dataclasses.replace(looked, box=face.box))
        return found

    def look(self, image, where: tuple | crop.Box | crop.Window, *, focal_px=None, distance_mm=None) -> Face:
        """Estimate the depth of the face at a place of an image, `face_mm` wide.

        A tuple is a box's (x, y, w, h). The other arguments are as for `find`; errors too, and those of `box_of`.
        """
        image = _rgb(image)
        _check_above_0(focal_px=focal_px, distance_mm=distance_mm)
        if not isinstance(where, crop.Window):
            where = self.box_of(image.shape[:2], box=where)
        window = crop.window_of(where) if isinstance(where, crop.Box) else where
        if not window.shows(image.shape[:2]):
            raise FaceDepthError(f"{window} lies outside the image of {image.shape[1]} x {image.shape[0]} pixels.")
        corner = window.x - (window.w - 1) / 2, window.y - (window.h - 1) / 2
        box = tuple(int(round(value)) for value in (*corner, window.w, window.h))
        gray = self.crop(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), where)
        map_mm = self.batch(gray[None])[0]
        px_per_mm = np.sqrt(where.w * where.h) / self.face_mm  # at the head's distance
        if self.code.origin == "camera":
            middle = slice(self.size * 3 // 8, self.size * 5 // 8)
            distance_mm, how = float(np.median(map_mm[middle, middle])), "net"
            depth_mm, relief_mm = map_mm, np.where(map_mm - distance_mm < RELIEF_MM, map_mm - distance_mm, np.nan)
        else:
            how = "given" if distance_mm else "focal length" if focal_px else "default focal length"
            if not distance_mm:
                focal_px = focal_px or photos.focal_of(FOCAL_35MM, image.shape)
                distance_mm = float(focal_px / px_per_mm)
            relief_mm = _without_islands(map_mm)
            depth_mm = np.nan_to_num(relief_mm + np.float32(distance_mm))
        return Face(image, box, window, relief_mm, depth_mm, distance_mm, how, focal_px or distance_mm * px_per_mm)

    def batch(self, gray, distance_mm=None) -> np.ndarray:
        """Estimate the depth maps of finished crops.

        Args:
          gray: uint8 (B, S, S).
          distance_mm: (B,), of the heads; only nets that count depth from the head (`code.origin`) look at it.

        Returns:
          float32 (B, S, S), millimetres: depth. Nets that count from the head give 0 for the background; and without
          distances relief alone: depth minus the head's distance, negative is nearer, NaN is background.

        Raises:
          FaceDepthError: the crops are of another size or type, a distance that is needed is not above 0, or an
            estimate is not finite.
        """
        gray = np.asarray(gray)
        if gray.dtype != np.uint8 or gray.shape[1:] != (self.size, self.size):
            raise FaceDepthError(f"The crops are {gray.dtype} {gray.shape}; give uint8, (B, {self.size}, {self.size}).")
        relief_alone = self.code.origin == "head" and distance_mm is None
        distance_mm = np.asarray(np.full(len(gray), RELIEF_AT_MM) if distance_mm is None else distance_mm, np.float32)
        if distance_mm.shape != (len(gray),):
            raise FaceDepthError(
                f"distance_mm is of shape {distance_mm.shape}; give a number for each of {len(gray)} crops."
            )
        bad = distance_mm[~((distance_mm > 0) & (distance_mm < np.inf))]  # NaN too
        if self.code.origin == "head" and len(bad):
            raise FaceDepthError(f"distance_mm is {bad[0]:g}; give the head's, above 0, or none for relief alone.")
        depth_mm, foreground = jax.device_get(self.estimate(gray, distance_mm))
        if not np.isfinite(depth_mm).all():
            raise FaceDepthError("The net's estimate is not finite: the run's weights are unusable.")
        none = np.float32(0)
        if relief_alone:
            depth_mm, none = depth_mm - np.float32(RELIEF_AT_MM), np.float32(np.nan)
        return depth_mm if foreground is None else np.where(foreground, depth_mm, none)

    def box_of(self, shape, *, box=None, center=None, distance_mm=None, focal_px=None) -> crop.Box:
        """Choose the part of an image that the net is to see.

        Args:
          shape: (H, W) of the image.
          box: (x, y, w, h), rounded to pixels, or a Box.
          center: (x, y) of the head in pixels; with its distance and the camera's focal length the crop is that of
            Eq. 6. With neither `box` nor `center` it is the smallest square around the whole image.

        Raises:
          FaceDepthError: too few or too many numbers, one that is not finite or not above 0, or the box is empty,
            outside the image or too large.
        """
        height, width = shape
        _check_above_0(focal_px=focal_px, distance_mm=distance_mm)
        if box is not None and center is not None:
            raise FaceDepthError("There is a box and a center; give one of them.")
        if box is not None:
            box = box if isinstance(box, crop.Box) else crop.Box(*_numbers(4, box=box).round().astype(int).tolist())
        elif center is not None:
            if not (distance_mm and focal_px):
                raise FaceDepthError("center wants distance_mm and focal_px, to know how large the face is.")
            box = crop.crop_box(_numbers(2, center=center), distance_mm, (focal_px, focal_px), self.face_mm)
        else:
            side = max(height, width)
            box = crop.Box(-((side - width) // 2), -((side - height) // 2), side, side)
        if box.w < 1 or box.h < 1:
            fault = "is empty; give a width and a height of at least 1 pixel"
        elif box.x >= width or box.y >= height or box.x + box.w <= 0 or box.y + box.h <= 0:
            fault = f"lies outside the image of {width} x {height} pixels"
        elif box.w * box.h > photos.MAX_PIXELS:
            fault = f"is too large (over {photos.MAX_PIXELS}); give a smaller one, or check distance and focal length"
        else:
            return box
        raise FaceDepthError(f"The box of {box.w} x {box.h} pixels at x={box.x}, y={box.y} {fault}.")

    def crop(self, gray, where: crop.Box | crop.Window) -> np.ndarray:
        """Cut a place out of a gray image uint8 (H, W) and resize it to (S, S); outside the image it is black."""
        if isinstance(where, crop.Window):
            return where.crop(gray, self.size)
        return crop.resize_gray(crop.crop(gray, where), self.size)


def _without_islands(relief_mm):
    """Leave the largest connected piece of a foreground: what lies apart from a person is mostly background."""
    _, pieces, stats, _ = cv2.connectedComponentsWithStats(np.isfinite(relief_mm).astype(np.uint8), connectivity=4)
    areas = stats[1:, cv2.CC_STAT_AREA]  # without that of the background
    return np.where(pieces == 1 + np.argmax(areas), relief_mm, np.float32(np.nan)) if areas.size else relief_mm


def _check_above_0(**values):
    for name, value in values.items():
        if value is not None and not 0 < value < np.inf:  # NaN too
            raise FaceDepthError(f"{name} is {value:g}; give a number above 0, or none.")


def _numbers(count, **values) -> np.ndarray:
    ((name, given),) = values.items()
    try:
        numbers = np.asarray(given, float)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.shape != (count,) or not (np.abs(numbers) < 1e9).all():  # NaN too
        raise FaceDepthError(f"{name} is {given}; give {count} finite numbers.")
    return numbers


def _rgb(image) -> np.ndarray:
    if image is None:
        raise FaceDepthError("The image is None: it could not be read, check the file's name.")
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.ndim == 3 and image.shape[2] != 3 or not image.size:
        raise FaceDepthError(f"The image is {image.dtype} {image.shape}; give uint8, (H, W) or RGB (H, W, 3).")
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else image
