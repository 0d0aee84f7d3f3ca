"""A z-buffer rasteriser in pure JAX: one ray a pixel, as a depth camera sees a triangle mesh.

Every triangle becomes the pixel centres of its bounding box on the image, all triangles' boxes laid end to end in one
buffer of fixed length (`capacity`); each such fragment is tested against the triangle's edges; the nearest one wins its
pixel by a scatter-min. Nothing depends on the order of execution, so a mesh gives the same bits on every run. A test
holds the result against embree.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NEAR_MM = 100.0

# A pixel centre this close to an edge counts as inside. It is larger than the rounding of the edge functions, so that
# no crack opens between two triangles that share an edge.
EDGE_TOLERANCE_PX = 1e-4


class Raster(NamedTuple):
    """What each pixel's ray hits first.

    Attributes:
      depth_mm: float32 (H, W), z of the hit; 0 where there is none.
      triangle: int32 (H, W), index of the triangle; -1 where there is none.
      barycentric: float32 (H, W, 3), weights of the triangle's three vertices at the hit (perspective-correct, not
        negative, summing to 1); 0 where there is none.
      overflow: bool (), `capacity` was too small and the image is not complete. Whoever calls must look at it.
    """

    depth_mm: jax.Array
    triangle: jax.Array
    barycentric: jax.Array
    overflow: jax.Array


def rasterize(vertices, triangles, focal_px, center_px, height: int, width: int, capacity: int) -> Raster:
    """Casts one ray a pixel onto a mesh.

    Pixel centres are whole numbers: pixel (row y, column x) looks along ((x - c_x) / f_x, (y - c_y) / f_y, 1). Both
    sides of a triangle are seen. A triangle with a vertex nearer than NEAR_MM (or behind the camera) is left out whole,
    and so is one seen exactly edge-on. Single precision holds edges to 1e-3 px as long as vertices project within a few
    thousand pixels of the image.

    Args:
      vertices: float32 (V, 3), mm, camera frame: x to the right, y down, z forward.
      triangles: int32 (T, 3), indices into `vertices`.
      focal_px: (2,), f_x and f_y.
      center_px: (2,), c_x and c_y.
      height, width: size of the image, static.
      capacity: number of fragments (pixel centres in bounding boxes, summed over triangles) that there is room for,
        static. Time and memory grow with it.
    """
    corners = _project(vertices, triangles, focal_px, center_px)
    left, top, box_width, count = _boxes(corners, height, width)
    ends = _prefix_sum(count)
    starts = ends - count

    # Slot of the buffer -> triangle: how many boxes start at or before it.
    started = jnp.zeros(capacity, jnp.int32).at[starts].add(1, mode="drop")
    triangle = _prefix_sum(started) - 1
    slot = jnp.arange(capacity, dtype=jnp.int32)
    nth = slot - starts[triangle]
    # Floats, for whole-number division is slow; the half keeps it exact.
    row = ((nth.astype(jnp.float32) + 0.5) / box_width[triangle].astype(jnp.float32)).astype(jnp.int32)
    x = left[triangle] + nth - row * box_width[triangle]
    y = top[triangle] + row

    inside, _, depth = _hit(_take(corners, triangle), x, y)
    pixel = jnp.where(inside & (slot < ends[-1]), y * width + x, height * width)
    nearest = jnp.full(height * width, jnp.inf).at[pixel].min(depth, mode="drop")
    # Two triangles at the same depth: the lower index wins.
    none = triangles.shape[0]
    first = depth == nearest[jnp.minimum(pixel, height * width - 1)]
    winner = (
        jnp.full(height * width, none, jnp.int32).at[jnp.where(first, pixel, height * width)].min(triangle, mode="drop")
    )

    hit = winner < none
    pixel = jnp.arange(height * width, dtype=jnp.int32)
    _, weights, depth = _hit(_take(corners, jnp.minimum(winner, none - 1)), pixel % width, pixel // width)
    return Raster(
        jnp.where(hit, depth, 0.0).reshape(height, width),
        jnp.where(hit, winner, -1).reshape(height, width),
        jnp.where(hit[:, None], jnp.stack(weights, -1), 0.0).reshape(height, width, 3),
        ends[-1] > capacity,
    )


def interpolate(raster: Raster, triangles, attributes):
    """Vertex attributes at the hits: float32 (V, C) -> (H, W, C); 0 where nothing was hit."""
    triangles = jnp.asarray(triangles)
    hit = jnp.maximum(raster.triangle, 0)
    return sum(raster.barycentric[..., i, None] * attributes[triangles[:, i][hit]] for i in range(3))


def vertex_normals(vertices, triangles: np.ndarray):
    """Unit normals, float32 (V, 3): the mean of the adjacent triangles' normals, weighted by area.

    They point to the side from which a triangle's vertices run counter-clockwise. A vertex without a triangle gets 0.

    Args:
      vertices: float32 (V, 3).
      triangles: int32 (T, 3), a NumPy array: the adjacency is worked out once, while tracing.
    """
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    normals = jnp.zeros_like(vertices)
    faces = jnp.cross(b - a, c - a)
    for i in range(3):
        normals = normals.at[triangles[:, i]].add(faces)
    return normals / jnp.maximum(jnp.linalg.norm(normals, axis=-1, keepdims=True), 1e-12)


def _project(vertices, triangles, focal_px, center_px):
    """Per triangle, three tuples of three (T,): its vertices' x and y in pixels and 1 / z; NaN where z is too small."""
    focal_px, center_px = jnp.asarray(focal_px, jnp.float32), jnp.asarray(center_px, jnp.float32)
    z = jnp.where(vertices[:, 2] < NEAR_MM, jnp.nan, vertices[:, 2])
    x, y = (vertices[:, i] / z * focal_px[i] + center_px[i] for i in (0, 1))
    return tuple(tuple(values[triangles[:, i]] for i in range(3)) for values in (x, y, 1.0 / z))


def _boxes(corners, height, width):
    """Pixel centres in each triangle's bounding box: left and top, width, number of them; int32 (T,)."""
    (x0, x1, x2), (y0, y1, y2), _ = corners

    def span(a, b, c, size):
        # Clipped as floats: far outside, whole numbers would overflow.
        low, high = jnp.minimum(jnp.minimum(a, b), c), jnp.maximum(jnp.maximum(a, b), c)
        first = jnp.clip(jnp.ceil(low - EDGE_TOLERANCE_PX), 0, size)
        last = jnp.clip(jnp.floor(high + EDGE_TOLERANCE_PX), -1, size - 1)
        return first.astype(jnp.int32), jnp.maximum(last - first + 1, 0).astype(jnp.int32)

    left, box_width = span(x0, x1, x2, width)
    top, box_height = span(y0, y1, y2, height)
    area = (x1 - x0) * (y2 - y0) - (y1 - y0) * (x2 - x0)
    seen = jnp.abs(area) > 0  # False for NaN as well
    return left, top, box_width, jnp.where(seen, box_width * box_height, 0)


def _hit(corners, x, y):
    """Whether pixel (x, y) lies in the triangle, its perspective-correct weights (a list of three), and z."""
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    dx, dy, inverse_z = [c - x for c in corners[0]], [c - y for c in corners[1]], corners[2]
    # Twice the signed area between the pixel and the edge opposite to each vertex. Taken from the pixel, small
    # triangles far from the origin lose no digits.
    edges = [dx[(i + 1) % 3] * dy[(i + 2) % 3] - dy[(i + 1) % 3] * dx[(i + 2) % 3] for i in range(3)]
    side = jnp.sign(sum(edges))
    inside = True
    over_z = []
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        length = jnp.abs(dx[j] - dx[k]) + jnp.abs(dy[j] - dy[k])
        inside &= edges[i] * side >= -EDGE_TOLERANCE_PX * length
        # Clamped, so that the depth stays between those of the vertices however thin the triangle is.
        edges[i] = jnp.maximum(edges[i] * side, 0.0)
        over_z.append(edges[i] * inverse_z[i])
    total = sum(over_z)
    return inside, [w / total for w in over_z], sum(edges) / total


def _take(corners, index):
    return tuple(tuple(values[index] for values in three) for three in corners)


def _prefix_sum(values):
    return jax.lax.associative_scan(jnp.add, values)
