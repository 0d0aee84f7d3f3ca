"""faces.py: where the detector sees faces, on a photo whose eyes and mouth were measured by hand."""

import cv2
import numpy as np
import pytest
from small import sample_photo

from facedepth_jax import faces
from facedepth_jax.errors import FaceDepthError

EYES_MOUTH = np.array(
    [[227, 193], [308, 194], [265, 269]]
)  # right eye, left eye, the mouth's middle; a face is 190 wide


@pytest.fixture(scope="module")
def photo():
    return sample_photo()


def points(face):
    return np.vstack([face.landmarks[:2], face.landmarks[3:].mean(0)])


@pytest.mark.parametrize("angle", [0, 20, -45, 90, 120, 180, -90])
def test_a_face_at_any_roll(photo, angle):
    """Landmarks, and the upright window, are those of the photo before it was turned."""
    big = np.pad(photo, ((150, 150), (150, 150), (0, 0)))
    middle = (np.array(big.shape[1::-1]) - 1) / 2
    turn = cv2.getRotationMatrix2D(middle, -angle, 1)
    (face,) = faces.detect(cv2.warpAffine(big, turn, big.shape[1::-1]))
    back = cv2.invertAffineTransform(turn)
    assert np.abs(points(face) @ back[:, :2].T + back[:, 2] - 150 - EYES_MOUTH).max() < 15
    assert abs((face.roll - angle + 180) % 360 - 180) < 8
    window = face.window(320.0)
    assert window.w == pytest.approx(388, rel=0.06)
    assert np.hypot(*(back @ [window.x, window.y, 1] - 150 - [266, 204])) < 12


@pytest.mark.parametrize("scale", [0.25, 4])
def test_a_face_of_any_size(photo, scale):
    (face,) = faces.detect(cv2.resize(photo, None, fx=scale, fy=scale))
    assert np.abs((points(face) + 0.5) / scale - 0.5 - EYES_MOUTH).max() < 15


def test_a_window_in_the_images_own_millimetres(photo):
    """Its size follows from the box, or from millimetres a pixel; its middle lies above the box's."""
    (face,) = faces.detect(photo)
    x, y, w, h = face.box
    window = face.window(316.0)
    assert window.w == pytest.approx(2 * np.sqrt(w * h), rel=0.01)
    assert y + h / 2 - window.y == pytest.approx(0.11 * np.sqrt(w * h), abs=2)
    assert face.window(320.0, 0.8).w == 400


def test_small_faces_in_a_large_photo(photo):
    """At 640 pixels they are 9 wide and not found, at 1280 they are."""
    small = cv2.resize(photo, (52, 60), interpolation=cv2.INTER_AREA)
    large = np.full((1280, 1280, 3), 120, np.uint8)
    large[600:660, 700:752] = small
    (face,) = faces.detect(large)
    assert np.hypot(*np.subtract(face.center, [727, 623])) < 5


def test_no_face():
    assert faces.detect(np.full((1, 1, 3), 90, np.uint8)) == []
    for shape in ((30, 3000), (1, 2000), (2000, 1), (3, 5000)):
        assert faces.detect(np.full((*shape, 3), 90, np.uint8)) == []


def test_a_damaged_detector_is_refused(tmp_path, monkeypatch):
    content = bytearray(faces.MODEL.read_bytes())
    content[1000] ^= 1
    (tmp_path / "model.onnx").write_bytes(content)
    monkeypatch.setattr(faces, "MODEL", tmp_path / "model.onnx")
    faces._model.cache_clear()
    with pytest.raises(FaceDepthError, match="model.onnx is damaged: install facedepth_jax again"):
        faces.detect(np.zeros((50, 50, 3), np.uint8))
    faces._model.cache_clear()


def test_only_the_faces_asked_for_are_looked_at_again(photo, monkeypatch):
    two = np.zeros((600, 900, 3), np.uint8)
    two[:450, :384], two[:, 388:] = cv2.resize(photo, (384, 450), interpolation=cv2.INTER_AREA), photo
    looked, upright = [], faces._upright
    monkeypatch.setattr(faces, "_upright", lambda image, face: looked.append(face) or upright(image, face))
    (largest,) = faces.detect(two, 1)
    assert len(looked) == 1
    first, _ = faces.detect(two)
    assert len(looked) == 3 and first.center == largest.center and largest.center[0] > 388


def test_the_hosts_level_of_opencvs_log_is_left_alone(photo, capfd):
    """Nothing is said of OpenCV's own defaults meanwhile."""
    level = cv2.utils.logging.getLogLevel()
    assert faces.detect(photo)
    assert cv2.utils.logging.getLogLevel() == level
    assert capfd.readouterr() == ("", "")
