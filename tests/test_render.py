"""The rasteriser against embree (by trimesh) on the same meshes, one ray a pixel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh
from trimesh.ray.ray_pyembree import RayMeshIntersector

from facedepth_jax.data.synthetic import identity, render

HEIGHT, WIDTH = 60, 80
FOCAL = np.array([150.0, 140.0])
CENTER = np.array([39.3, 30.6])


def rays(shift_px=(0.0, 0.0)):
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    x, y = x + shift_px[0], y + shift_px[1]
    return np.stack([(x - CENTER[0]) / FOCAL[0], (y - CENTER[1]) / FOCAL[1], np.ones((HEIGHT, WIDTH))], -1)


def embree(vertices, triangles):
    """Depth (H, W), 0 = none; triangle, -1 = none; and whether no edge passes within 1e-3 px of the pixel's centre.

    Embree says which triangle, the depth is where the ray meets its plane, in float64.
    """
    vertices = np.asarray(vertices, np.float64)
    caster = RayMeshIntersector(trimesh.Trimesh(vertices, triangles, process=False))

    def first(shift_px):
        directions = rays(shift_px).reshape(-1, 3)
        return caster.intersects_first(np.zeros_like(directions), directions)

    hit = first((0, 0))
    shifts = 1e-3 * np.array([(1, 0), (-1, 0), (0, 1), (0, -1), (0.7, 0.7), (-0.7, 0.7), (0.7, -0.7), (-0.7, -0.7)])
    clear = np.all([first(shift) == hit for shift in shifts], 0)
    a, b, c = (vertices[triangles[:, i]][hit] for i in range(3))
    normal = np.cross(b - a, c - a)
    depth = (normal * a).sum(1) / np.where(hit >= 0, (normal * rays().reshape(-1, 3)).sum(1), 1)
    shape = HEIGHT, WIDTH
    return np.where(hit >= 0, depth, 0).reshape(shape), hit.reshape(shape), clear.reshape(shape)


@functools.partial(jax.jit, static_argnums=2)
def rasterize(vertices, triangles, capacity=60_000):
    return render.rasterize(vertices.astype(jnp.float32), triangles, FOCAL, CENTER, HEIGHT, WIDTH, capacity)


def soup(seed, count, size_mm):
    rng = np.random.default_rng(seed)
    centers = rng.uniform([-220, -180, 600], [220, 180, 900], (count, 1, 3))
    vertices = (centers + rng.normal(0, size_mm, (count, 3, 3))).reshape(-1, 3)
    return vertices.astype(np.float32), np.arange(3 * count, dtype=np.int32).reshape(-1, 3)


def icosphere():
    mesh = trimesh.creation.icosphere(3, radius=110)
    return (mesh.vertices + [20, -10, 700]).astype(np.float32), mesh.faces.astype(np.int32)


def head():
    mesh = identity.head()
    return (mesh.vertices + np.float32([10, 0, 500])).astype(np.float32), np.asarray(mesh.triangles, np.int32)


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
    "head": head,
    "big": big,
    "slivers": slivers,
}


@pytest.mark.parametrize("name", MESHES)
def test_hits_and_depth_are_embrees(name):
    vertices, triangles = MESHES[name]()
    raster = rasterize(vertices, triangles)
    assert not raster.overflow
    depth, hit, clear = embree(vertices, triangles)
    assert clear.mean() > 0.95 and (hit >= 0)[clear].mean() > 0.1
    np.testing.assert_array_equal((raster.triangle >= 0)[clear], (hit >= 0)[clear])
    np.testing.assert_allclose(np.asarray(raster.depth_mm)[clear], depth[clear], atol=0.01, rtol=0)


def test_barycentric_weights_are_perspective_correct():
    vertices, triangles = MESHES["medium"]()
    raster = rasterize(vertices, triangles)
    hit = np.asarray(raster.triangle) >= 0
    weights = np.asarray(raster.barycentric)
    assert (weights >= 0).all()
    np.testing.assert_allclose(weights[hit].sum(-1), 1, atol=1e-6)
    assert (weights[~hit] == 0).all() and (np.asarray(raster.depth_mm)[~hit] == 0).all()
    # The positions, interpolated, are the points where the rays hit.
    points = np.asarray(render.interpolate(raster, triangles, jnp.asarray(vertices)))
    expected = rays() * np.asarray(raster.depth_mm)[..., None]
    np.testing.assert_allclose(points, expected, atol=0.01)


def test_triangles_too_near_or_behind_are_left_out():
    wall = np.array([[-500, -500, 900], [500, -500, 900], [0, 900, 900]])
    near = np.array([[-50, -50, 200], [50, -50, 200], [0, 50, render.NEAR_MM - 1]])
    behind = np.array([[-50, -50, 200], [50, -50, 200], [0, 50, -300]])
    vertices = np.concatenate([wall, near, behind]).astype(np.float32)
    raster = rasterize(vertices, np.arange(9, dtype=np.int32).reshape(3, 3))
    assert set(np.unique(raster.triangle)) <= {-1, 0}
    assert raster.triangle[30, 40] == 0
    vertices[:3, 2] = -900
    empty = rasterize(vertices, np.arange(9, dtype=np.int32).reshape(3, 3))
    assert (np.asarray(empty.depth_mm) == 0).all() and not empty.overflow


def test_overflow_is_flagged_exactly_when_the_buffer_is_too_small():
    # Two triangles that cover 21 x 11 pixel centres, none of them on the diagonal.
    xy = np.array([[-0.2, -0.2], [20.3, -0.2], [20.3, 10.2], [-0.2, 10.2]]) + [30, 20]
    vertices = np.concatenate([(xy - CENTER) / FOCAL * 800, np.full((4, 1), 800)], 1)
    triangles = np.array([[0, 1, 2], [0, 2, 3]], np.int32)
    assert rasterize(vertices, triangles, 21 * 11 - 1).overflow
    full = rasterize(vertices, triangles, 21 * 11)
    assert not full.overflow
    assert (np.asarray(full.triangle) >= 0).sum() == 21 * 11
    # What lies between pixel centres costs nothing: needles between two columns.
    needle = np.array([[0.4, 0], [0.6, 0], [0.5, 40.1]])
    xy = (needle + np.arange(20)[:, None, None] * [1, 0] + [20, 10]).reshape(-1, 2)
    vertices = np.concatenate([(xy - CENTER) / FOCAL * 800, np.full((60, 1), 800)], 1)
    empty = rasterize(vertices, np.arange(60, dtype=np.int32).reshape(-1, 3), 1)
    assert not empty.overflow and (np.asarray(empty.triangle) == -1).all()


def test_a_batch_is_its_images():
    vertices, triangles = MESHES["icosphere"]()
    batch = np.stack([vertices, vertices + [5, 3, 40], vertices - [20, 0, 90]]).astype(np.float32)

    together = jax.jit(jax.vmap(lambda v: rasterize(v, triangles)))(batch)
    for i, v in enumerate(batch):
        for name, value in rasterize(v, triangles)._asdict().items():
            np.testing.assert_allclose(getattr(together, name)[i], value, rtol=1e-6, atol=1e-6, err_msg=name)


def test_vertex_normals_are_trimeshs():
    vertices, triangles = MESHES["icosphere"]()
    vertices = vertices * np.float32([1, 1.3, 0.8])
    vertices = np.concatenate([vertices, np.zeros((1, 3), np.float32)])  # belongs to no triangle
    normals = np.asarray(jax.jit(lambda v: render.vertex_normals(v, triangles))(vertices))
    mesh = trimesh.Trimesh(vertices, triangles, process=False)
    expected = np.zeros_like(vertices, np.float64)
    for i in range(3):
        np.add.at(expected, triangles[:, i], mesh.face_normals * mesh.area_faces[:, None])
    expected /= np.maximum(np.linalg.norm(expected, axis=1, keepdims=True), 1e-9)
    np.testing.assert_allclose(normals, expected, atol=1e-5)
    outward = vertices[:-1] - vertices[:-1].mean(0)
    assert ((normals[:-1] * outward).sum(1) > 0).all()
