"""Draw docs/photo.png: matplotlib's sample portrait with the detector's box and the net's window, and what it sees.

python tools/photo_crop.py docs/photo.png
"""

import pathlib
import sys

import cv2
import matplotlib
import numpy as np

from facedepth_jax import faces, photos, pictures

(photo,) = photos.read(pathlib.Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
middle = (np.array(photo.rgb.shape[1::-1]) - 1) / 2
turned = cv2.warpAffine(photo.rgb, cv2.getRotationMatrix2D(middle, 20, 0.8), photo.rgb.shape[1::-1])
(face,) = faces.detect(turned)
window = face.window(320.0)
seen = cv2.cvtColor(cv2.cvtColor(window.crop(turned, 96), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def outline(center, w, h, color):
    corners = cv2.boxPoints((center, (w, h), face.roll))
    cv2.polylines(turned, [np.round(corners).astype(int)], True, color, 2, cv2.LINE_AA)


outline(face.center, *face.size, (255, 220, 0))
outline((window.x, window.y), window.w, window.h, (0, 255, 120))
for point in face.landmarks:
    cv2.circle(turned, np.round(point).astype(int), 4, (255, 80, 80), -1, cv2.LINE_AA)
crop = cv2.resize(seen, None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)
right = np.full((len(turned), crop.shape[1] + 20, 3), 255, np.uint8)
top = (len(turned) - len(crop)) // 2
right[top : top + len(crop), 20:] = crop
pictures.write_png(pathlib.Path(sys.argv[1]), np.hstack([turned, right]))
