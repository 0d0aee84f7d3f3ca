"""The rasteriser against embree (by trimesh) on the same meshes, one ray a pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh
from trimesh.ray.ray_pyembree import RayMeshIntersector

from facedepth_jax.data.synthetic import render

HEIGHT, WIDTH = 60, 80
FOCAL = np.array([150.0, 140.0])
CENTER = np.array([39.3, 30.6])


def rays(height=HEIGHT, width=WIDTH, focal=FOCAL, center=CENTER):
    y, x = np.mgrid[:height, :width]
    return np.stack([(x - center[0]) / focal[0], (y - center[1]) / focal[1], np.ones((height, width))], -1)


def embree(vertices, triangles):
    """Depth (H, W), 0 = none, and triangle, -1 = none: embree says which triangle, float64 where it is hit."""
    vertices = np.asarray(vertices, np.float64)
    mesh = trimesh.Trimesh(vertices, triangles, process=False)
    directions = rays().reshape(-1, 3)
    hit = RayMeshIntersector(mesh).intersects_first(np.zeros_like(directions), directions)
    a, b, c = (vertices[triangles[:, i]][hit] for i in range(3))
    normal = np.cross(b - a, c - a)
    depth = (normal * a).sum(1) / np.where(hit >= 0, (normal * directions).sum(1), 1)
    return np.where(hit >= 0, depth, 0).reshape(HEIGHT, WIDTH), hit.reshape(HEIGHT, WIDTH)


def pixels_on_edges(vertices, triangles, within_px):
    """Pixels whose centre lies within `within_px` of an edge's projection; those may go either way."""
    points = np.asarray(vertices, np.float64)
    xy = points[:, :2] / points[:, 2:] * FOCAL + CENTER
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    centers = np.stack([x, y], -1).reshape(-1, 1, 2).astype(np.float64)
    near = np.zeros(HEIGHT * WIDTH, bool)
    edges = np.unique(np.sort(triangles[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), 1), axis=0)
    for part in np.array_split(edges, max(1, len(edges) // 500)):
        a, b = xy[part[:, 0]], xy[part[:, 1]]
        along = ((centers - a) * (b - a)).sum(-1) / np.maximum(((b - a) ** 2).sum(-1), 1e-12)
        distance = np.linalg.norm(centers - a - np.clip(along, 0, 1)[..., None] * (b - a), axis=-1)
        near |= (distance < within_px).any(1)
    return near.reshape(HEIGHT, WIDTH)


def rasterize(vertices, triangles, capacity=1_000_000):
    return jax.jit(lambda v: render.rasterize(v, triangles, FOCAL, CENTER, HEIGHT, WIDTH, capacity))(
        jnp.asarray(vertices, jnp.float32)
    )


def soup(seed, count, size_mm):
    rng = np.random.default_rng(seed)
    centers = rng.uniform([-220, -180, 600], [220, 180, 900], (count, 1, 3))
    vertices = (centers + rng.normal(0, size_mm, (count, 3, 3))).reshape(-1, 3)
    return vertices.astype(np.float32), np.arange(3 * count, dtype=np.int32).reshape(-1, 3)


def icosphere():
    mesh = trimesh.creation.icosphere(3, radius=110)
    return (mesh.vertices + [20, -10, 700]).astype(np.float32), mesh.faces.astype(np.int32)


def big():
    vertices, triangles = soup(3, 6, 1)
    vertices = (vertices - vertices.reshape(-1, 3, 3).mean(1).repeat(3, 0)) * [900, 900, 60] + [0, 0, 800]
    return vertices.astype(np.float32), triangles


def slivers():
    rng = np.random.default_rng(5)
    start = rng.uniform([-220, -180, 600], [220, 180, 900], (300, 3))
    end = rng.uniform([-220, -180, 600], [220, 180, 900], (300, 3))
    vertices = np.stack([start, end, end + rng.normal(0, 1.5, (300, 3))], 1).reshape(-1, 3)
    return vertices.astype(np.float32), np.arange(900, dtype=np.int32).reshape(-1, 3)


MESHES = {
    "small": lambda: soup(1, 2000, 4),
    "medium": lambda: soup(2, 150, 40),
    "icosphere": icosphere,
    "big": big,
    "slivers": slivers,
}


@pytest.mark.parametrize("name", MESHES)
def test_hits_and_depth_are_embrees(name):
    vertices, triangles = MESHES[name]()
    raster = rasterize(vertices, triangles)
    assert not raster.overflow
    depth, hit = embree(vertices, triangles)
    clear = ~pixels_on_edges(vertices, triangles, 1e-3)
    assert clear.mean() > 0.5 and (hit >= 0)[clear].mean() > 0.1
    np.testing.assert_array_equal((raster.triangle >= 0)[clear], (hit >= 0)[clear])
    np.testing.assert_allclose(np.asarray(raster.depth_mm)[clear], depth[clear], atol=0.01, rtol=0)
