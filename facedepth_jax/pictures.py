"""Draw depth: colours, the grid of the paper's Figure 4, PNG files."""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from facedepth_jax import files

# From nose to ear a head is some 150 mm deep. All that lies further behind shares the last colour, so that a face keeps
# its relief in front of any background.
RELIEF_MM = 300.0
ERROR_MM = 200.0  # an error of this or more has the last colour
CELL_PX = 96  # smallest side of a cell in a grid


def depth_range_mm(depth_mm: np.ndarray) -> tuple[float, float]:
    """Choose (near, far) for `color_depth`: the nearest (1st percentile) and farthest depth, at most RELIEF_MM apart.

    Args:
      depth_mm: any shape, millimetres, 0 = none. Without any depth the range is (0, RELIEF_MM).
    """
    depths = np.asarray(depth_mm)[np.asarray(depth_mm) > 0]
    if not depths.size:
        return 0.0, RELIEF_MM
    near, far = np.percentile(depths, (1, 99))
    return float(near), float(np.clip(far, near + 1, near + RELIEF_MM))


def color_depth(depth_mm: np.ndarray, near_mm: float, far_mm: float) -> np.ndarray:
    """Colour depth (H, W) in mm, uint8 (H, W, 3) RGB: near is red, far blue (Turbo, reversed), no depth (0) black."""
    depth_mm = np.asarray(depth_mm, np.float64)
    colors = _color((far_mm - depth_mm) / (far_mm - near_mm), cv2.COLORMAP_TURBO)
    colors[depth_mm <= 0] = 0
    return colors


def color_error(estimate_mm: np.ndarray, truth_mm: np.ndarray) -> np.ndarray:
    """Colour the absolute error of a map (H, W) in mm, uint8 (H, W, 3) RGB.

    Black is 0, white is ERROR_MM or more, gray stands where there is no true depth (0).
    """
    truth_mm = np.asarray(truth_mm, np.float64)
    colors = _color(np.abs(np.asarray(estimate_mm, np.float64) - truth_mm) / ERROR_MM, cv2.COLORMAP_HOT)
    colors[truth_mm <= 0] = 128
    return colors


PREVIEW_PX = 384


def preview(photo: np.ndarray, relief_mm: np.ndarray, face_mm: float) -> np.ndarray:
    """Put a photo, its depth in colours and its relief under a light side by side.

    Args:
      photo: uint8 (PREVIEW_PX, PREVIEW_PX, 3) RGB.
      relief_mm: float32 (S, S), NaN = background.
      face_mm: width of the map at the head's distance.

    Returns:
      uint8 (PREVIEW_PX, 3 PREVIEW_PX, 3) RGB.
    """
    there = np.isfinite(relief_mm)
    filled = np.where(there, relief_mm, relief_mm[there].mean() if there.any() else 0).astype(np.float32)
    size = (PREVIEW_PX, PREVIEW_PX)
    fine = cv2.resize(filled, size, interpolation=cv2.INTER_CUBIC)
    there = cv2.resize(there.astype(np.float32), size) > 0.5
    depth_mm = np.where(there, fine - fine.min() + 1, 0)
    # The light shows every step of the net's pixel shuffles: smoothed by a pixel of the map.
    smooth = cv2.GaussianBlur(fine, (0, 0), PREVIEW_PX / len(relief_mm))
    shaded = np.where(there, 40 + 215 * shade(smooth, face_mm / PREVIEW_PX), 25).astype(np.uint8)
    return np.hstack([photo, color_depth(depth_mm, *depth_range_mm(depth_mm)), np.repeat(shaded[..., None], 3, -1)])


def shade(depth_mm: np.ndarray, step_mm: float) -> np.ndarray:
    """Light a surface (H, W) of depths, step_mm apart, from the upper left in front: 0 (dark) to 1."""
    down, right = np.gradient(depth_mm / step_mm)
    light = np.array([-0.5, -0.5, -1]) / np.sqrt(1.5)
    facing = right * light[0] + down * light[1] - light[2]  # of the normal (right, down, -1)
    return np.clip(facing / np.sqrt(right**2 + down**2 + 1), 0, 1)


def _color(share, colormap):
    levels = np.round(np.clip(share, 0, 1) * 255).astype(np.uint8)
    return cv2.applyColorMap(levels, colormap)[..., ::-1].copy()


def grid(gray: np.ndarray, rows: Mapping[str, np.ndarray], errors: bool = False) -> np.ndarray:
    """Arrange faces as in the paper's Figure 4: a column a face, the gray image and a row of depth for each entry.

    A column has one colour scale, that of its first depth row, the truth; its range in mm stands below it.

    Args:
      gray: uint8 (N, S, S).
      rows: label -> depth in mm (N, S, S), 0 = none; the truth first.
      errors: whether a row of `color_error` follows each estimate.

    Returns:
      uint8 (H, W, 3), RGB, labels on the left.
    """
    true_label, truth = next(iter(rows.items()))
    ranges = [depth_range_mm(depth_mm) for depth_mm in truth]
    lines = {"gray": np.repeat(gray[..., None], 3, axis=-1)}
    for label, maps in rows.items():
        lines[label] = [color_depth(depth_mm, *r) for depth_mm, r in zip(maps, ranges, strict=True)]
        if errors and label != true_label:
            lines[f"{label}: 0 - {ERROR_MM:.0f} mm off"] = list(map(color_error, maps, truth))

    scale_label = "near - far, mm"
    label_width = max(map(_text_width, [*lines, scale_label])) + 12
    scale = max(1, -(-CELL_PX // gray.shape[1]))
    body = []
    for label, images in lines.items():
        cells = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
        line = np.concatenate(list(cells), axis=1).repeat(scale, axis=0).repeat(scale, axis=1)
        margin = np.full((line.shape[0], label_width, 3), 255, np.uint8)
        _write_text(margin, label, 6, line.shape[0] // 2 + 4)
        body.append(np.concatenate([margin, line], axis=1))
    footer = np.full((40, body[0].shape[1], 3), 255, np.uint8)
    _write_text(footer, scale_label, 6, 32)
    cell = (body[0].shape[1] - label_width) // len(gray)
    bar = color_depth(np.linspace(1, 2, cell - 8)[None].repeat(10, axis=0), 1, 2)
    for column, (near_mm, far_mm) in enumerate(ranges):
        left = label_width + column * cell
        footer[6:16, left + 4 : left + cell - 4] = bar
        text = f"{near_mm:.0f} - {far_mm:.0f}"
        _write_text(footer, text, left + (cell - _text_width(text)) // 2, 32)
    return np.concatenate([*body, footer])


def encode_png(image: np.ndarray) -> bytes:
    """Encode uint8 (H, W, 3) RGB, or uint8 or uint16 (H, W), as a PNG file."""
    ok, encoded = cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 else image)
    assert ok, (image.shape, image.dtype)
    return encoded.tobytes()


def encode_jpeg(image: np.ndarray) -> bytes:
    """Encode uint8 (H, W, 3) RGB as a JPEG file."""
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an image, encoded by `encode_png`, as `files.write_bytes` does."""
    files.write_bytes(path, encode_png(image))


_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.4


def _text_width(text):
    return cv2.getTextSize(text, _FONT, _FONT_SCALE, 1)[0][0]


def _write_text(image, text, x, y):
    """Write black text into a white image, in place, from its baseline's left end."""
    cv2.putText(image, text, (x, y), _FONT, _FONT_SCALE, (0, 0, 0), 1, cv2.LINE_AA)
