"""Measure a clean depth image as a Kinect does: noise, jagged edges, holes, rounding. Pure JAX, one image per call.

From the literature: the axial and lateral noise of both sensors and the first one's disparity steps (cited at each
function). Our assumptions, chosen to look like real frames: how far noise is correlated, when a jump in depth is an
edge, mixed pixels, and the chance of no depth on dark or grazing surfaces; they are the constants below.
"""

import jax
import jax.numpy as jnp
import numpy as np

# Literature.
MAX_INCIDENCE = np.deg2rad(85.0)  # the noise formulas diverge at 90 degrees
V2_RANGE_MM = (500, 4500)
V2_LATERAL_SIGMA_MM = 1.6
V2_FOCAL_PX = 365.456
V1_FOCAL_PX, V1_BASELINE_MM = 575.816, 75.0
# Where the colour camera stands, to the depth camera's right. The v2's images are mirrored, as its software gives them.
COLOUR_MM = {"kinect_v1": 25.0, "kinect_v2": -52.0}
V1_STEP_PX = 1 / 8

# Assumptions.
V1_RANGE_MM = (500, 4000)
V1_CORRELATION = np.array([1, 2, 3, 4, 5, 4, 3, 2, 1], np.float32)  # 9 px, separable
EDGE_MM = 20.0  # at 770 mm a surface would have to be seen at 84 degrees to jump so far from pixel to pixel
MIXED_SHARE = 0.5  # of the pixels at an edge
MIXED_REMOVED = 0.7  # of those, by the sensor's own filter
HOLE_CORRELATION = np.array([1, 2, 3, 2, 1], np.float32)  # holes are blots rather than pepper
DARK_REFLECTANCE = 0.12  # below it holes begin,
DARK_HOLES = 0.8  # up to this share on black
GRAZING_COS = (float(np.cos(np.deg2rad(75.0))), float(np.cos(np.deg2rad(87.0))))  # no holes, all holes


def v2_noise(key, shape):
    """Draw the random part of a Kinect v2, five float32 (H, W): edges down and right, mixed pixels, axial, holes."""
    down_key, right_key, mixed_key, axial_key, hole_key = jax.random.split(key, 5)
    # A draw each rather than slices of one: XLA on CPU is four times as fast.
    down, right, axial = (jax.random.normal(k, shape) for k in (down_key, right_key, axial_key))
    mixed, hole = jax.random.uniform(mixed_key, shape), _correlated_normal(hole_key, shape, HOLE_CORRELATION)
    return down, right, mixed, axial, hole


def v2_measurement(noise, depth_mm, cos_incidence, reflectance):
    """Measure as the Kinect for Xbox One, by time of flight.

    Axial noise of `v2_axial_sigma_mm`, white; edges displaced by 1.6 mm sideways (both Fankhauser et al., "Kinect v2
    for mobile robot navigation", ICAR 2015); at edges, pixels that see both surfaces and report a depth between them
    or none; holes on dark and on grazing surfaces; nothing outside V2_RANGE_MM; whole millimetres.

    Args:
      noise: of `v2_noise`.
      depth_mm: float32 (H, W), clean z, 0 = none, which stays none.
      cos_incidence: float32 (H, W), cosine of the angle between the ray and the surface's normal.
      reflectance: float32 (H, W) in [0, 1], in the near infrared; below DARK_REFLECTANCE holes begin.

    Returns:
      uint16 (H, W), mm, 0 = none.
    """
    down, right, mixed, axial, hole = noise
    lateral_px = V2_LATERAL_SIGMA_MM * V2_FOCAL_PX / jnp.maximum(depth_mm, V2_RANGE_MM[0])
    depth = _displace_edges(depth_mm, down * lateral_px, right * lateral_px)
    depth = _mix_edges(mixed, depth)
    measured = depth + axial * v2_axial_sigma_mm(depth, cos_incidence)
    keep = (depth > 0) & ~_holes(hole, cos_incidence, reflectance)
    return _whole_mm(measured, keep, V2_RANGE_MM)


def v2_axial_sigma_mm(depth_mm, cos_incidence):
    """Return 1.5 - 0.5 z + 0.3 z^2 + 0.1 z^1.5 a^2 / (pi/2 - a)^2, z in m, a in radians (Fankhauser et al. 2015)."""
    z, ratio = depth_mm / 1000.0, _angle_ratio(cos_incidence)
    return 1.5 - 0.5 * z + 0.3 * z**2 + 0.1 * z * jnp.sqrt(z) * ratio**2


def v1_noise(key, shape):
    """Draw the random part of a Kinect v1, four float32 (H, W): edges down and right, axial, holes."""
    kernels = (V1_CORRELATION, V1_CORRELATION, V1_CORRELATION, HOLE_CORRELATION)
    return tuple(_correlated_normal(k, shape, c) for k, c in zip(jax.random.split(key, 4), kernels, strict=True))


def v1_measurement(noise, depth_mm, cos_incidence, reflectance):
    """Measure as the Kinect for Xbox 360, by structured light.

    Disparity f b / z in steps of 1/8 px (Khoshelham and Elberink, Sensors 2012); axial noise 1.2 + 1.9 (z - 0.4)^2 mm
    and edges displaced by 0.8 + 0.035 a / (pi/2 - a) px, z in metres (Nguyen et al., "Modeling Kinect sensor noise",
    3DIM 2012), both correlated over 9 px, because disparity is found by matching windows; no depth where the projector
    does not shine (`shadow`); holes on dark and on grazing surfaces; nothing outside V1_RANGE_MM; whole
    millimetres.

    Args and result as for `v2_measurement`, the noise of `v1_noise`.
    """
    down, right, axial, hole = noise
    lateral_px = 0.8 + 0.035 * _angle_ratio(cos_incidence)
    depth = jnp.where(shadow(depth_mm, V1_FOCAL_PX, V1_BASELINE_MM), 0.0, depth_mm)
    depth = _displace_edges(depth, down * lateral_px, right * lateral_px)

    safe = jnp.maximum(depth, 1.0)
    sigma_mm = 1.2 + 1.9 * (safe / 1000.0 - 0.4) ** 2
    disparity = V1_FOCAL_PX * V1_BASELINE_MM / safe * (1 - axial * sigma_mm / safe)
    disparity = jnp.round(disparity / V1_STEP_PX) * V1_STEP_PX
    keep = (depth > 0) & ~_holes(hole, cos_incidence, reflectance)
    return _whole_mm(V1_FOCAL_PX * V1_BASELINE_MM / jnp.maximum(disparity, V1_STEP_PX), keep, V1_RANGE_MM)


# How to draw a sensor's noise, and how to measure with it.
KINECTS = {"kinect_v1": (v1_noise, v1_measurement), "kinect_v2": (v2_noise, v2_measurement)}


def registered(gray, depth_mm, focal_px, colour_mm, shift_px, masked):
    """Register gray to the measured depth as a Kinect's software does: black where the colour camera saw nothing.

    Args:
      gray: uint8 (H, W), as the depth camera's eye would see it.
      depth_mm: uint16 (H, W), measured.
      focal_px, colour_mm: of the depth camera; the colour camera's place to its right.
      shift_px: int32 (2,), by how much gray lies too far right and down.
      masked: () > 0 for software that leaves gray black wherever depth is missing, too.
    """
    height, width = gray.shape
    y = jnp.clip(jnp.arange(height) - shift_px[1], 0, height - 1)
    x = jnp.clip(jnp.arange(width) - shift_px[0], 0, width - 1)
    unseen = shadow(depth_mm.astype(jnp.float32), focal_px, colour_mm) | ((masked > 0) & (depth_mm == 0))
    return jnp.where(unseen, 0, gray[y[:, None], x[None]]).astype(jnp.uint8)


def shadow(depth_mm, focal_px, baseline_mm):
    """Find what a projector or a second camera, `baseline_mm` to the camera's right, cannot see: bool (H, W).

    It sees pixel x in its own column x - f b / z. Along a row those columns grow from left to right; where one farther
    to the right comes out left of it, the pixel lies behind that surface; for one to the camera's left, all is
    mirrored. The surfaces that the camera sees count as one sheet, so that the shadow of a thing thinner than its
    disparity reaches up to the thing.
    """
    column = jnp.arange(depth_mm.shape[1])[None] - focal_px * baseline_mm / jnp.maximum(depth_mm, 1.0)
    if baseline_mm > 0:
        column = jnp.where(depth_mm > 0, column, jnp.inf)
        hidden = column > jax.lax.cummin(column, axis=1, reverse=True)
    else:
        column = jnp.where(depth_mm > 0, column, -jnp.inf)
        hidden = column < jax.lax.cummax(column, axis=1)
    return (depth_mm > 0) & hidden


def _angle_ratio(cos_incidence):
    """Return a / (pi/2 - a) for the angle of incidence a."""
    angle = jnp.minimum(jnp.arccos(jnp.clip(cos_incidence, 0.0, 1.0)), MAX_INCIDENCE)
    return angle / (np.pi / 2 - angle)


def _correlated_normal(key, shape, kernel):
    """Draw normal noise of unit variance, smoothed along both axes by `kernel`, alike up to the border."""
    height, width = shape
    kernel = kernel / np.sqrt((kernel**2).sum())
    noise = jax.random.normal(key, (height + len(kernel) - 1, width + len(kernel) - 1))
    noise = sum(weight * noise[i : i + height] for i, weight in enumerate(kernel))
    return sum(weight * noise[:, i : i + width] for i, weight in enumerate(kernel))


def _displace_edges(depth_mm, down_px, right_px):
    """Take the depth of the pixel so far down and to the right, (H, W) each, where that is another surface."""
    height, width = depth_mm.shape
    y = jnp.clip(jnp.arange(height)[:, None] + jnp.round(down_px).astype(jnp.int32), 0, height - 1)
    x = jnp.clip(jnp.arange(width)[None] + jnp.round(right_px).astype(jnp.int32), 0, width - 1)
    seen = depth_mm.ravel()[y * width + x]
    # Within a surface the displacement is part of the axial noise.
    return jnp.where((depth_mm > 0) & (jnp.abs(seen - depth_mm) > EDGE_MM), seen, depth_mm)


def _mix_edges(draw, depth_mm):
    """Mix pixels: some at an edge get a depth between both surfaces, and most of those are removed; `draw` (H, W) is
    uniform in [0, 1)."""
    padded = jnp.pad(depth_mm, 1, mode="edge")
    other, gap = depth_mm, jnp.zeros_like(depth_mm)
    for neighbor in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
        wider = (neighbor > 0) & (jnp.abs(neighbor - depth_mm) > gap)
        other, gap = jnp.where(wider, neighbor, other), jnp.where(wider, jnp.abs(neighbor - depth_mm), gap)
    # One draw does for whether, whether removed, and how much: slices of [0, 1).
    removed = draw < MIXED_SHARE * MIXED_REMOVED
    weight = jnp.where(draw < MIXED_SHARE, (MIXED_SHARE - draw) / (MIXED_SHARE * (1 - MIXED_REMOVED)), 0.0)
    mixed = jnp.where(removed, 0.0, depth_mm + weight * (other - depth_mm))
    return jnp.where((depth_mm > 0) & (gap > EDGE_MM), mixed, depth_mm)


def _holes(noise, cos_incidence, reflectance):
    """Find pixels that get too little light back: bool (H, W). None are on a surface that is neither dark nor grazing;
    `noise`, of unit variance, decides on the others."""
    dark = DARK_HOLES * jnp.clip(1.0 - reflectance / DARK_REFLECTANCE, 0.0, 1.0)
    none, all_ = GRAZING_COS
    grazing = jnp.clip((none - cos_incidence) / (none - all_), 0.0, 1.0)
    chance = 1.0 - (1.0 - dark) * (1.0 - grazing)
    return jax.scipy.stats.norm.cdf(noise) < chance


def _whole_mm(depth_mm, keep, range_mm):
    depth_mm = jnp.round(depth_mm)
    keep &= (depth_mm >= range_mm[0]) & (depth_mm <= range_mm[1])
    return jnp.where(keep, depth_mm, 0.0).astype(jnp.uint16)
