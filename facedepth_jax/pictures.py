"""Pictures of depth: colours, the grid of the paper's Figure 4, PNG files."""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from facedepth_jax import files

# From nose to ear a head is some 150 mm deep. What lies further behind shares the last colour, so that a face keeps
# its relief in front of any background.
RELIEF_MM = 300.0
ERROR_MM = 200.0  # an error of this or more has the last colour
CELL_PX = 96  # smallest side of a cell in a grid


def depth_range_mm(depth_mm: np.ndarray) -> tuple[float, float]:
    """(near, far) for `color_depth`: from the nearest depth (1st percentile) to the farthest (99th), at most RELIEF_MM.

    Args:
      depth_mm: any shape, millimetres, 0 = none. Without any depth the range is (0, RELIEF_MM).
    """
    depths = np.asarray(depth_mm)[np.asarray(depth_mm) > 0]
    if not depths.size:
        return 0.0, RELIEF_MM
    near, far = np.percentile(depths, (1, 99))
    return float(near), float(np.clip(far, near + 1, near + RELIEF_MM))


def color_depth(depth_mm: np.ndarray, near_mm: float, far_mm: float) -> np.ndarray:
    """Depth (H, W) in mm -> uint8 (H, W, 3) RGB: near is red, far is blue (Turbo, reversed), no depth (0) is black."""
    depth_mm = np.asarray(depth_mm, np.float64)
    nearness = np.clip((far_mm - depth_mm) / (far_mm - near_mm), 0, 1)
    colors = cv2.applyColorMap(np.round(nearness * 255).astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1].copy()
    colors[depth_mm <= 0] = 0
    return colors


def color_error(estimate_mm: np.ndarray, truth_mm: np.ndarray) -> np.ndarray:
    """Absolute error in mm, any shape -> uint8 (..., 3) RGB: black is none, white is ERROR_MM or more, gray where there
    is no true depth (0)."""
    truth_mm = np.asarray(truth_mm, np.float64)
    share = np.clip(np.abs(np.asarray(estimate_mm, np.float64) - truth_mm) / ERROR_MM, 0, 1)
    level = np.round(share * 255).astype(np.uint8)
    colors = cv2.applyColorMap(level.reshape(1, -1), cv2.COLORMAP_HOT)[..., ::-1].reshape(*level.shape, 3).copy()
    colors[truth_mm <= 0] = 128
    return colors


def grid(gray: np.ndarray, rows: Mapping[str, np.ndarray], errors: bool = False) -> np.ndarray:
    """A column a face: the gray image, then one row of coloured depth for each entry, as in the paper's Figure 4.

    A column has one colour scale, that of its first depth row, the truth; its range in mm stands below it.

    Args:
      gray: uint8 (N, S, S).
      rows: label -> depth in mm (N, S, S), 0 = none; the truth first.
      errors: a row of `color_error` below each estimate.

    Returns:
      uint8 (H, W, 3), RGB, labels on the left.
    """
    scale = max(1, -(-CELL_PX // gray.shape[1]))
    true_label, truth = next(iter(rows.items()))
    ranges = [depth_range_mm(column) for column in truth]

    def line_of(images):
        """A row of RGB images, enlarged by whole pixels."""
        line = np.concatenate(
            [np.pad(image, ((1, 1), (1, 1), (0, 0)), constant_values=255) for image in images], axis=1
        )
        return line.repeat(scale, axis=0).repeat(scale, axis=1)

    lines = {"gray": line_of([np.repeat(image[..., None], 3, axis=-1) for image in gray])}
    for label, depth_mm in rows.items():
        lines[label] = line_of([color_depth(d, *r) for d, r in zip(depth_mm, ranges, strict=True)])
        if errors and label != true_label:
            lines[f"{label}: 0 - {ERROR_MM:.0f} mm off"] = line_of(color_error(depth_mm, truth))

    label_width = max(_text_width(label) for label in [*lines, "near - far, mm"]) + 12
    body = []
    for label, line in lines.items():
        margin = np.full((line.shape[0], label_width, 3), 255, np.uint8)
        _write_text(margin, label, 6, line.shape[0] // 2 + 4)
        body.append(np.concatenate([margin, line], axis=1))
    footer = np.full((40, body[0].shape[1], 3), 255, np.uint8)
    _write_text(footer, "near - far, mm", 6, 32)
    cell = (body[0].shape[1] - label_width) // len(gray)
    bar = color_depth(np.linspace(1, 2, cell - 8)[None].repeat(10, axis=0), 1, 2)
    for column, (near_mm, far_mm) in enumerate(ranges):
        left = label_width + column * cell
        footer[6:16, left + 4 : left + cell - 4] = bar
        text = f"{near_mm:.0f} - {far_mm:.0f}"
        _write_text(footer, text, left + (cell - _text_width(text)) // 2, 32)
    return np.concatenate([*body, footer])


def encode_png(image: np.ndarray) -> bytes:
    """uint8 (H, W, 3) RGB, or uint8 or uint16 (H, W) -> the bytes of a PNG file."""
    ok, encoded = cv2.imencode(".png", image[..., ::-1] if image.ndim == 3 else image)
    assert ok, (image.shape, image.dtype)
    return encoded.tobytes()


def write_png(path: Path, image: np.ndarray) -> None:
    """`encode_png` into a file, whole or not at all. FaceDepthError where it cannot be written."""
    files.write_bytes(path, encode_png(image))


_FONT, _FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.4


def _text_width(text: str) -> int:
    return cv2.getTextSize(text, _FONT, _FONT_SCALE, 1)[0][0]


def _write_text(image: np.ndarray, text: str, x: int, y: int) -> None:
    """Black on an image of white, from the baseline's left end; in place."""
    cv2.putText(image, text, (x, y), _FONT, _FONT_SCALE, (0, 0, 0), 1, cv2.LINE_AA)
