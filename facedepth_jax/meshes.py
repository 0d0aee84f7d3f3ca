"""Make 3D models of depth maps: points as PLY, a surface with the photo on it as GLB."""

import dataclasses
import json
import struct

import numpy as np

from facedepth_jax.data.crop import EDGE_MM
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.pictures import encode_jpeg


@dataclasses.dataclass(frozen=True)
class Mesh:
    """A surface in the coordinates of the camera: x to the right, y down, z away from it, millimetres.

    Attributes:
      vertices: float32 (N, 3).
      triangles: int32 (M, 3), counterclockwise as the camera sees them; none spans an edge of depth.
      colors: uint8 (N, 3) RGB.
      uv: float32 (N, 2), the vertices' places in the texture: 0 to 1 from its left and from its top.
      texture: uint8 (T, T, 3) RGB.
    """

    vertices: np.ndarray
    triangles: np.ndarray
    colors: np.ndarray
    uv: np.ndarray
    texture: np.ndarray

    def ply(self) -> bytes:
        """Encode the vertices and their colours as a PLY file (binary), millimetres in the camera's coordinates."""
        names = [("float", name) for name in "xyz"] + [("uchar", name) for name in ("red", "green", "blue")]
        properties = "".join(f"property {kind} {name}\n" for kind, name in names)
        header = f"ply\nformat binary_little_endian 1.0\nelement vertex {len(self.vertices)}\n{properties}end_header\n"
        points = np.empty(len(self.vertices), [("place", "<f4", 3), ("color", "u1", 3)])
        points["place"], points["color"] = self.vertices, self.colors
        return header.encode() + points.tobytes()

    def glb(self) -> bytes:
        """Encode the surface as binary glTF 2.0: metres, y up, the camera looks along -z; the texture a JPEG in it.

        Raises FaceDepthError if it has no triangle: glTF has no empty surface.
        """
        if not self.triangles.size:
            raise FaceDepthError(
                "There is no surface: the map has no foreground; look at the photo and the face's box."
            )
        to_gltf = np.array([1, -1, -1], np.float32)
        places = self.vertices * to_gltf / 1000
        vectors = {"POSITION": places, "NORMAL": self._normals() * to_gltf, "TEXCOORD_0": self.uv}
        parts = [vector.astype("<f4").tobytes() for vector in vectors.values()]
        parts += [self.triangles.astype("<u4").tobytes(), encode_jpeg(self.texture)]
        views, content = [], b""
        for part in parts:
            views.append({"buffer": 0, "byteOffset": len(content), "byteLength": len(part)})
            content += part + bytes(-len(part) % 4)
        accessors = [
            {"bufferView": i, "componentType": 5126, "count": len(vector), "type": f"VEC{vector.shape[1]}"}
            for i, vector in enumerate(vectors.values())
        ]
        accessors[0] |= {"min": places.min(0).tolist(), "max": places.max(0).tolist()}
        accessors.append({"bufferView": 3, "componentType": 5125, "count": self.triangles.size, "type": "SCALAR"})
        material = {"baseColorTexture": {"index": 0}, "metallicFactor": 0, "roughnessFactor": 1}
        attributes = {name: i for i, name in enumerate(vectors)}
        text = json.dumps(
            {
                "asset": {"version": "2.0", "generator": "facedepth_jax"},
                "scene": 0,
                "scenes": [{"nodes": [0]}],
                "nodes": [{"mesh": 0, "name": "face"}],
                "meshes": [{"primitives": [{"attributes": attributes, "indices": 3, "material": 0}]}],
                "materials": [{"pbrMetallicRoughness": material, "doubleSided": True}],
                "textures": [{"source": 0, "sampler": 0}],
                "samplers": [{"wrapS": 33071, "wrapT": 33071}],  # the edge's colour beyond the edge
                "images": [{"bufferView": 4, "mimeType": "image/jpeg"}],
                "accessors": accessors,
                "bufferViews": views,
                "buffers": [{"byteLength": len(content)}],
            }
        ).encode()
        text += b" " * (-len(text) % 4)
        chunks = struct.pack("<I4s", len(text), b"JSON") + text + struct.pack("<I4s", len(content), b"BIN\0") + content
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks

    def _normals(self) -> np.ndarray:
        """Return the mean normal of each vertex's triangles by their areas, towards the camera."""
        a, b, c = np.moveaxis(self.vertices[self.triangles], 1, 0)
        normals = np.zeros_like(self.vertices)
        np.add.at(normals, self.triangles, np.cross(b - a, c - a)[:, None])
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        return np.where(length > 0, normals / np.maximum(length, 1e-9), np.float32([0, 0, -1]))


def from_points(points_mm: np.ndarray, mask: np.ndarray, colors: np.ndarray, texture: np.ndarray) -> Mesh:
    """Connect neighbouring points of a map, unless their z differs by more than EDGE_MM.

    Args:
      points_mm: float (H, W, 3), the camera's coordinates.
      mask: bool (H, W), which points there are.
      colors: uint8 (H, W, 3) RGB.
      texture: uint8 (T, T, 3) RGB of the same place, finer.
    """
    height, width = mask.shape
    y, x = np.nonzero(mask)
    number = np.full(mask.shape, -1, np.int32)
    number[y, x] = np.arange(len(y))
    corners = [number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]]
    triangles = np.concatenate(
        [np.stack([corners[i] for i in triangle], -1).reshape(-1, 3) for triangle in ((0, 2, 1), (1, 2, 3))]
    )
    vertices = points_mm[y, x].astype(np.float32)
    triangles = triangles[(triangles >= 0).all(1)]
    triangles = triangles[np.ptp(vertices[triangles, 2], axis=1) <= EDGE_MM]
    uv = np.column_stack([(x + 0.5) / width, (y + 0.5) / height]).astype(np.float32)
    return Mesh(vertices, triangles, colors[y, x], uv, texture)
