"""Find faces in a photo: YuNet (weights/yunet.md) through OpenCV, and the window that a net wants of each.

NumPy in, NumPy out. Pixel centres are at whole numbers, as in data/crop.py.
"""

import dataclasses
import functools
import hashlib
import pathlib

import cv2
import numpy as np

from facedepth_jax.data.crop import Window
from facedepth_jax.errors import FaceDepthError

MODEL = pathlib.Path(__file__).parent / "weights" / "face_detection_yunet_2023mar.onnx"
MODEL_SHA256 = "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4"

# Measured against a Kinect's depth on 265 faces of 62 people (docs/photo.md).
BOX_MM = 158.0  # the side of the square that has the box's area, at the head's distance
ABOVE = 0.11  # the head's centre above the box's, in such sides

LONGER_SIDES_PX = (640, 1280)  # a photo is shrunk to the first; the second if no face is found
UPRIGHT_DEGREES = 8.0  # the landmarks of a face that is rolled by more are drawn towards upright
SURE_SCORE = 0.85  # upright faces have more; those upside down less
PATCH_PX = 320


@dataclasses.dataclass(frozen=True)
class Detection:
    """A face in an image.

    Attributes:
      center: (x, y) of the detector's box.
      size: (w, h) of the box, in the direction of the face's own axes.
      roll: degrees by which the face is turned clockwise in the image.
      landmarks: float (5, 2), x and y of the person's right and left eye, nose, right and left corner of the mouth.
      score: the detector's, 0 to 1.
    """

    center: tuple[float, float]
    size: tuple[float, float]
    roll: float
    landmarks: np.ndarray
    score: float

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Return x, y, w, h in whole pixels, as if the face were upright."""
        corner = np.subtract(self.center, np.subtract(self.size, 1) / 2)
        return tuple(int(round(value)) for value in (*corner, *self.size))

    @property
    def side_px(self) -> float:
        """Return the side of the square that has the box's area."""
        return float(np.sqrt(self.size[0] * self.size[1]))

    def window(self, face_mm: float, mm_per_px: float | None = None) -> Window:
        """Return the upright window of face_mm at the head's distance; its scale is the box's if it is not given."""
        side = face_mm / (mm_per_px or BOX_MM / self.side_px)
        roll = np.radians(self.roll)
        up = ABOVE * self.side_px * np.array([np.sin(roll), -np.cos(roll)])
        x, y = np.add(self.center, up)
        return Window(float(x), float(y), side, side, self.roll)


def detect(image: np.ndarray, count: int | None = None) -> list[Detection]:
    """Find the faces of an image uint8 (H, W, 3) RGB, the largest first; all, or the `count` largest.

    Where none is found the image is looked at again: larger, then turned by 90, 270 and 180 degrees.

    Raises FaceDepthError if the detector's file is damaged.
    """
    longer = max(image.shape[:2])
    tries = [(LONGER_SIDES_PX[0], 0)] + [(LONGER_SIDES_PX[1], 0)] * (longer > LONGER_SIDES_PX[0])
    for side_px, turn in [*tries, *((LONGER_SIDES_PX[0], turn) for turn in (90, -90, 180))]:
        scale = min(1.0, side_px / longer)
        size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
        small = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
        if found := _detect(np.rot90(small, turn // 90), _unturn(small.shape, turn), turn):
            found = sorted(found, key=lambda face: -face.side_px)[:count]
            found = [_upright(small, face) for face in found]
            # Pixel centres are at whole numbers, before and after.
            scale = np.divide(small.shape[1::-1], image.shape[1::-1])
            return sorted((_scaled(face, scale) for face in found), key=lambda face: -face.side_px)
    return []


@functools.cache
def _model() -> np.ndarray:
    try:
        content = MODEL.read_bytes()
    except OSError as error:
        raise FaceDepthError(f"{MODEL} cannot be read ({error.strerror}): install facedepth_jax again.") from None
    if hashlib.sha256(content).hexdigest() != MODEL_SHA256:
        raise FaceDepthError(f"{MODEL} is damaged: install facedepth_jax again.")
    return np.frombuffer(content, np.uint8)


def _detect(image, to_source, turn) -> list[Detection]:
    """Find faces in an image (H, W, 3) that was turned by `turn`; `to_source` (2, 3) leads to the image before."""
    height, width = image.shape[:2]
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it warns of its own defaults
    try:  # a new one each time is thread-safe, and made in milliseconds
        detector = cv2.FaceDetectorYN.create("onnx", _model(), np.array([], np.uint8), (width, height), 0.6, 0.3, 5000)
        rows = detector.detect(np.ascontiguousarray(image[..., ::-1]))[1]
    finally:
        cv2.utils.logging.setLogLevel(level)
    found = []
    for row in np.zeros((0, 15)) if rows is None else rows.astype(np.float64):
        x, y, w, h = row[:4]
        points = np.vstack([row[4:14].reshape(5, 2), [x + (w - 1) / 2, y + (h - 1) / 2]])
        eyes, mouth = points[:2].mean(0), points[3:5].mean(0)
        roll = np.degrees(np.arctan2(eyes[0] - mouth[0], mouth[1] - eyes[1]))
        points = points @ to_source[:, :2].T + to_source[:, 2]
        scale = np.sqrt(np.linalg.det(to_source[:, :2]))
        roll = float((roll + turn + 180) % 360 - 180)
        found.append(Detection(tuple(points[5]), (w * scale, h * scale), roll, points[:5], float(row[14])))
    return found


def _upright(image, face) -> Detection:
    """Look again at a face until it is upright, if it is rolled or may stand on its head."""
    face = _straightened(image, face)
    if face.score < SURE_SCORE:
        others = [_redetect(image, face, face.roll + turn) for turn in (90, -90, 180)]
        best = max([face, *filter(None, others)], key=lambda other: other.score)
        face = face if best is face else _straightened(image, best)
    return face


def _straightened(image, face) -> Detection:
    """Turn a rolled face upright and look again, at most three times: its box is then that of an upright face too."""
    roll = face.roll
    for _ in range(3):
        found = abs(roll) > UPRIGHT_DEGREES and _redetect(image, face, face.roll)
        if not found:
            break
        roll, face = found.roll - face.roll, found
    return face


def _redetect(image, face, roll) -> Detection | None:
    """Find a face again in a window around it that is turned by `roll`."""
    window = Window(*face.center, 3 * face.side_px, 3 * face.side_px, roll)
    found = _detect(window.crop(image, PATCH_PX), window.matrix(PATCH_PX), roll)
    return min(found, key=lambda other: np.hypot(*np.subtract(other.center, face.center)), default=None)


def _unturn(shape, turn) -> np.ndarray:
    """Return the matrix (2, 3) from pixels of np.rot90(image, turn / 90) to those of the image."""
    height, width = shape[:2]
    return np.array(
        {
            0: [[1, 0, 0], [0, 1, 0]],
            90: [[0, -1, width - 1], [1, 0, 0]],
            -90: [[0, 1, 0], [-1, 0, height - 1]],
            180: [[-1, 0, width - 1], [0, -1, height - 1]],
        }[turn],
        np.float64,
    )


def _scaled(face, scale) -> Detection:
    """Return a face of an image that was shrunk by (x, y) in the image itself."""
    center, *landmarks = (np.vstack([face.center, face.landmarks]) + 0.5) / scale - 0.5
    size = tuple(np.divide(face.size, np.sqrt(scale[0] * scale[1])))
    return dataclasses.replace(face, center=tuple(center), size=size, landmarks=np.array(landmarks))
