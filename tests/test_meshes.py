"""meshes.py: 3D files, read by trimesh; a face's mesh against the pinhole camera's equations."""

import io

import numpy as np
import pytest
import trimesh
from small import head_net

from facedepth_jax import meshes
from facedepth_jax.data.crop import Window
from facedepth_jax.errors import FaceDepthError


@pytest.fixture(scope="module")
def mesh():
    """Two planes, 30 mm apart in z, and a hole."""
    y, x = np.mgrid[:6, :8].astype(np.float32)
    points = np.stack([x * 2, y * 2, np.where(x < 4, 600, 630)], -1)
    mask = np.ones((6, 8), bool)
    mask[2, 2] = False
    colors = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    texture = np.zeros((64, 64, 3), np.uint8)
    texture[:32, :32, 0] = 200  # upper left: red
    return meshes.from_points(points, mask, colors, texture)


def test_no_triangle_spans_an_edge_or_a_hole(mesh):
    assert len(mesh.vertices) == len(mesh.colors) == 47
    assert (np.ptp(mesh.vertices[mesh.triangles, 2], axis=1) == 0).all()
    # Of 5 x 7 quads 5 span the edge; 4 touch the hole, two of which keep one triangle.
    assert len(mesh.triangles) == 2 * (35 - 5 - 4) + 2
    a, b, c = np.moveaxis(mesh.vertices[mesh.triangles], 1, 0)
    assert (np.cross(b - a, c - a)[:, 2] < 0).all()  # they face the camera


def test_points(mesh):
    found = trimesh.load(io.BytesIO(mesh.ply()), file_type="ply")
    np.testing.assert_array_equal(found.vertices, mesh.vertices)
    np.testing.assert_array_equal(found.colors[:, :3], mesh.colors)


def test_a_surface_with_its_texture(mesh):
    """glTF has metres, y up, and looks along -z."""
    content = mesh.glb()
    assert len(content) % 4 == 0
    (found,) = trimesh.load(io.BytesIO(content), file_type="glb", process=False).geometry.values()
    np.testing.assert_allclose(found.vertices * [1000, -1000, -1000], mesh.vertices, rtol=1e-6)
    np.testing.assert_array_equal(found.faces, mesh.triangles)
    np.testing.assert_allclose(found.vertex_normals, np.tile([0, 0, 1], (47, 1)), atol=1e-6)
    # trimesh counts v from below
    np.testing.assert_allclose(found.visual.uv * [1, -1] + [0, 1], mesh.uv, atol=1e-6)
    texture = np.asarray(found.visual.material.baseColorTexture).astype(int)
    assert np.abs(texture[4:28, 4:28] - [200, 0, 0]).max() < 8 and texture[:, 36:].max() < 8


def test_no_surface_is_one_sentence():
    blank = np.zeros((4, 4, 3), np.uint8)
    mesh = meshes.from_points(np.zeros((4, 4, 3)), np.zeros((4, 4), bool), blank, blank)
    with pytest.raises(FaceDepthError, match="no foreground"):
        mesh.glb()


def test_a_faces_mesh_is_where_the_camera_sees_it():
    """A vertex goes back to the pixel that its map pixel shows."""
    net = head_net(24)
    image = np.random.default_rng(0).integers(110, 256, (90, 120, 3), np.uint8)
    face = net.look(image, Window(70, 30, 48, 48, 25), focal_px=150, distance_mm=900)
    mesh, matrix = face.mesh(), face.window.matrix(24)
    y, x = np.nonzero(face.mask)
    np.testing.assert_allclose(mesh.vertices[:, 2], face.depth_mm[face.mask], rtol=1e-6)
    pixels = 150 * mesh.vertices[:, :2] / mesh.vertices[:, 2:] + [59.5, 44.5]
    np.testing.assert_allclose(pixels, np.stack([x, y, np.ones_like(x)], -1) @ matrix.T, atol=1e-3)
    np.testing.assert_array_equal(mesh.colors, face.photo(24)[face.mask])
