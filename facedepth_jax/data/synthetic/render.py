"""Rasterise triangle meshes with a z-buffer in pure JAX: one ray per pixel, as in a depth camera.

Triangles are laid out as pixel rows, rows as fragments (one pixel of one triangle), each step by a prefix sum into a
buffer of fixed length; a scatter-min leaves the nearest fragment in each pixel. A minimum does not depend on its order,
so a mesh gives the same bits on every run, and a triangle that covers no pixel centre costs nothing.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NEAR_MM = 100.0

# A pixel centre this close to an edge counts as inside. It is larger than the rounding of the edges, so that no crack
# opens between two triangles that share one.
EDGE_TOLERANCE_PX = 1e-4
ROWS_SHARE = 0.6  # room for pixel rows of triangles, of that for fragments: of 121 scenes the fullest needed 0.59


class Raster(NamedTuple):
    """The first hit of each pixel's ray; zeros (triangle: -1) where there is none."""

    depth_mm: jax.Array  # float32 (H, W), z of the hit
    triangle: jax.Array  # int32 (H, W), its index
    # float32 (H, W, 3), perspective-correct weights of the triangle's vertices at the hit, not negative, summing to 1.
    barycentric: jax.Array
    overflow: jax.Array  # bool (), `capacity` was too small and triangles are missing; every caller must look at it


def rasterize(vertices, triangles, focal_px, center_px, height: int, width: int, capacity: int) -> Raster:
    """Cast one ray per pixel onto a mesh.

    Pixel centres are whole numbers: pixel (row y, column x) looks along ((x - c_x) / f_x, (y - c_y) / f_y, 1). Both
    sides of a triangle are seen; at equal depth the lower index wins. A triangle with a vertex nearer than NEAR_MM or
    behind the camera is left out whole, and so is one seen exactly edge-on. Edges are exact to 1e-3 px as long as
    vertices project within a few thousand pixels of the image.

    Args:
      vertices: float32 (V, 3), mm, camera frame: x to the right, y down, z forward.
      triangles: int32 (T, 3), indices into `vertices`.
      focal_px: (2,), f_x and f_y.
      center_px: (2,), c_x and c_y.
      height, width: size of the image, static.
      capacity: room for this many fragments, and ROWS_SHARE as many rows (of all triangles together), static. Time and
        memory grow with it.
    """
    corners = _project(vertices, triangles, focal_px, center_px)
    top, rows = _rows(corners, height, width)
    row_capacity = 1 + int(ROWS_SHARE * capacity)
    row_triangle, nth, row_count = _expand(rows, row_capacity)
    row_y = top[row_triangle] + nth
    left, pixels = _span(_take(corners, row_triangle), row_y, width)
    row, nth, fragment_count = _expand(jnp.where(jnp.arange(row_capacity) < row_count, pixels, 0), capacity)
    triangle, x, y = row_triangle[row], left[row] + nth, row_y[row]

    _, depth = _surface(_take(corners, triangle), x, y)
    nowhere = height * width
    pixel = jnp.where((jnp.arange(capacity) < fragment_count) & (depth > 0), y * width + x, nowhere)
    nearest = jnp.full(nowhere, jnp.inf).at[pixel].min(depth, mode="drop")
    pixel = jnp.where(depth == nearest[jnp.minimum(pixel, nowhere - 1)], pixel, nowhere)
    none = triangles.shape[0]
    winner = jnp.full(nowhere, none, jnp.int32).at[pixel].min(triangle, mode="drop")

    hit = winner < none
    pixel = jnp.arange(nowhere, dtype=jnp.int32)
    weights, depth = _surface(_take(corners, jnp.minimum(winner, none - 1)), pixel % width, pixel // width)
    return Raster(
        jnp.where(hit, depth, 0.0).reshape(height, width),
        jnp.where(hit, winner, -1).reshape(height, width),
        jnp.where(hit[:, None], jnp.stack(weights, -1), 0.0).reshape(height, width, 3),
        (row_count > row_capacity) | (fragment_count > capacity),
    )


def interpolate(raster: Raster, triangles, attributes):
    """Interpolate vertex attributes at the hits: float32 (V, C) -> (H, W, C); 0 where nothing was hit."""
    triangles = jnp.asarray(triangles)
    hit = jnp.maximum(raster.triangle, 0)
    return sum(raster.barycentric[..., i, None] * attributes[triangles[:, i][hit]] for i in range(3))


def vertex_normals(vertices, triangles: np.ndarray):
    """Compute unit normals of vertices (V, 3) and triangles (T, 3): float32 (V, 3).

    A normal is the sum of (v1 - v0) x (v2 - v0) over the adjacent triangles, scaled to 1, or 0 without a triangle. It
    points at a viewer for whom the vertices go counter-clockwise. Neighbours are found while tracing; the cost grows
    with the largest number of triangles around one vertex.
    """
    # (largest number, V): the triangles around each vertex, filled up with the index of a zero. Sums of gathers, not a
    # scatter of floats, whose order, and so whose last bits, a GPU does not fix.
    vertex = np.sort(triangles, axis=None, kind="stable")
    around = np.full((np.bincount(vertex).max(), vertices.shape[0]), len(triangles))
    nth = np.arange(vertex.size) - np.searchsorted(vertex, vertex)
    around[nth, vertex] = np.argsort(triangles, None, "stable") // 3

    x0, x1, x2 = ([vertices[:, axis][triangles[:, i]] for axis in range(3)] for i in range(3))
    u, w = ([b - a for a, b in zip(x0, x, strict=True)] for x in (x1, x2))
    normal = []
    for j, k in ((1, 2), (2, 0), (0, 1)):
        face = jnp.append(u[j] * w[k] - u[k] * w[j], 0.0)
        normal.append(sum(face[triangle] for triangle in around))
    length = jnp.sqrt(normal[0] ** 2 + normal[1] ** 2 + normal[2] ** 2)
    return jnp.stack(normal, -1) / jnp.maximum(length, 1e-12)[:, None]


def _project(vertices, triangles, focal_px, center_px):
    """Project: three tuples of three (T,), each triangle's x and y in pixels and 1 / z; NaN if a vertex is too near."""
    z = jnp.where(vertices[:, 2] < NEAR_MM, jnp.nan, vertices[:, 2])
    x, y = (vertices[:, i] / z * focal_px[i] + center_px[i] for i in (0, 1))
    return tuple(tuple(values[triangles[:, i]] for i in range(3)) for values in (x, y, 1.0 / z))


def _take(corners, index):
    return tuple(tuple(values[index] for values in three) for three in corners)


def _area(xs, ys):
    """Return twice the signed area."""
    return (xs[1] - xs[0]) * (ys[2] - ys[0]) - (ys[1] - ys[0]) * (xs[2] - xs[0])


def _extent(values):
    low = jnp.minimum(jnp.minimum(*values[:2]), values[2]) - EDGE_TOLERANCE_PX
    return low, jnp.maximum(jnp.maximum(*values[:2]), values[2]) + EDGE_TOLERANCE_PX


def _whole(low, high, size):
    """Return the first whole number in [low, high] and how many there are, cut to 0 .. size - 1."""
    # Clipped as floats: whole numbers would overflow far outside.
    first, last = jnp.clip(jnp.ceil(low), 0, size), jnp.clip(jnp.floor(high), -1, size - 1)
    return first.astype(jnp.int32), jnp.maximum(last - first + 1, 0).astype(jnp.int32)


def _rows(corners, height, width):
    """Return the first pixel row that each triangle touches and how many, int32 (T,); 0 if no column is touched."""
    xs, ys, _ = corners
    top, rows = _whole(*_extent(ys), height)
    _, columns = _whole(*_extent(xs), width)
    seen = jnp.abs(_area(xs, ys)) > 0  # False for NaN as well
    return top, jnp.where(seen & (columns > 0), rows, 0)


def _expand(counts, capacity):
    """Lay out `counts[i]` items for each i in turn: owner i and number within it (capacity,), total."""
    ends = _running_sum(counts)
    starts = ends - counts
    # The owner of a slot: how many start at or before it. Starts beyond the buffer are dropped.
    started = jnp.zeros(capacity, jnp.int32).at[starts].add(1, mode="drop")
    owner = _running_sum(started) - 1
    return owner, jnp.arange(capacity, dtype=jnp.int32) - starts[owner], ends[-1]


def _running_sum(counts):
    """Compute jnp.cumsum of whole numbers in two steps, faster on a CPU: within sixteens, then over their totals."""
    sixteens = jnp.pad(counts, (0, -counts.size % 16)).reshape(-1, 16)
    within = list(itertools.accumulate(sixteens[:, i] for i in range(16)))
    before = jnp.cumsum(within[-1]) - within[-1]
    return (jnp.stack(within, 1) + before[:, None]).ravel()[: counts.size]


def _span(corners, y, width):
    """Return the first pixel of a triangle in row y, and how many."""
    xs, ys, _ = corners
    area = _area(xs, ys)
    low, high = _extent(xs)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        rise = ys[j] - ys[i]
        slope = (xs[j] - xs[i]) / rise
        crossing = xs[i] + (y - ys[i]) * slope
        margin = EDGE_TOLERANCE_PX * (1 + jnp.abs(slope))
        # A level edge is neither left nor right: the rows already end there.
        side = jnp.sign(rise) * jnp.sign(area)
        low = jnp.where(side < 0, jnp.maximum(low, crossing - margin), low)
        high = jnp.where(side > 0, jnp.minimum(high, crossing + margin), high)
    return _whole(low, high, width)


def _surface(corners, x, y):
    """Return perspective-correct weights (three) and z of a triangle at pixel (x, y), inside or next to an edge."""
    # Seen from the pixel: small triangles far from the origin lose no digits.
    dx, dy, inverse_z = [c - x for c in corners[0]], [c - y for c in corners[1]], corners[2]
    edges = [dx[(i + 1) % 3] * dy[(i + 2) % 3] - dy[(i + 1) % 3] * dx[(i + 2) % 3] for i in range(3)]
    side = jnp.sign(sum(edges))
    # Clamped, so that z stays between those of the vertices however thin the triangle is.
    edges = [jnp.maximum(edge * side, 0.0) for edge in edges]
    over_z = [edge * z for edge, z in zip(edges, inverse_z, strict=True)]
    total = sum(over_z)
    return [w / total for w in over_z], sum(edges) / total
