"""Dress a person: hair, beard, glasses, hats, clothes and hands, as one triangle mesh of fixed topology.

Hair, beard and clothes that lie close are the skin itself, pushed outwards; the rest are small grids of their own. A
part that is not worn is collapsed to one point, so that its triangles have no area. NumPy on the host, head frame (see
identity.Head).
"""

import functools
from typing import NamedTuple

import numpy as np

from facedepth_jax.data.synthetic.identity import Person, head

PARTS = ("skin", "left eye", "right eye", "upper teeth", "lower teeth", "curtain", "bun", "glasses", "lenses", "hat",
         "collar", "hand", "sleeve", "phone", "bottle")  # fmt: skip
HATS = ("none", "beanie", "cap", "brim")
HOLDINGS = ("none", "mouth", "chin", "cheek", "forehead", "wave", "call", "phone", "bottle")
GRIDS = {"curtain": (12, 36), "bun": (8, 12), "hat": (14, 28), "collar": (5, 32), "sleeve": (4, 12), "bottle": (7, 12)}
RIM = 22  # vertices around a lens
BOX = np.array([[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
                [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]])  # fmt: skip


class Wear(NamedTuple):
    """The things that a person puts on for some frames; own glasses stay on without sunglasses."""

    hat: str = "none"  # one of HATS
    scarf: bool = False
    sunglasses: bool = False


class Figure(NamedTuple):
    """A dressed person, not yet posed."""

    vertices: np.ndarray  # float32 (V, 3), mm, head frame, neutral
    # float32 (V, 3): signed distances in mm along the skin, positive inside, from the edge of the scalp hair, the beard
    # and the clothes. Meaningful on the skin only.
    fields: np.ndarray


class Topology(NamedTuple):
    """The mesh that all figures share."""

    triangles: np.ndarray  # int32 (T, 3)
    part: np.ndarray  # int32 (V,), index into PARTS
    start: dict  # {part: first vertex}; a part's vertices are consecutive, after those of the head
    follow: np.ndarray  # float32 (V,), share of the head's turn


def _grid(rows, columns, wrap):
    """Return the triangles of a (rows, columns) grid of vertices, closed around the columns if `wrap`."""
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(columns if wrap else columns - 1), indexing="ij")
    a, b = r * columns + c, r * columns + (c + 1) % columns
    return np.stack([np.stack([a, b, a + columns], -1), np.stack([b, b + columns, a + columns], -1)]).reshape(-1, 3)


@functools.cache
def topology() -> Topology:
    """Build the one mesh of all figures."""
    mesh = head()
    loop, ribbon = _grid(2, RIM, wrap=True), _grid(2, 4, wrap=False)
    # Across a lens in a zigzag, 0, 1, RIM - 1, 2, ...: the cost of normals grows with the triangles around one vertex.
    zigzag = np.stack([np.arange(RIM), -np.arange(RIM) % RIM], 1).ravel()[1 : RIM + 1]
    lens = np.stack([zigzag[:-2], zigzag[1:-1], zigzag[2:]], 1)
    faces = {name: _grid(*shape, wrap=name != "curtain") for name, shape in GRIDS.items()} | {
        "glasses": np.concatenate([loop, loop + 2 * RIM, *(ribbon + 4 * RIM + 8 * i for i in range(3))]),
        "lenses": np.concatenate([lens, lens + RIM]),
        "hand": mesh.hand_triangles,
        "phone": BOX,
    }
    rows_follow = {
        "curtain": np.clip(1.25 - np.linspace(0, 1, GRIDS["curtain"][0]), 0, 1),  # from the crown to the tips
        "collar": np.linspace(0.5, 0.05, GRIDS["collar"][0]),
    }
    triangles, part, follow, start = [mesh.triangles], [mesh.part], [mesh.follow], {}
    count = len(mesh.vertices)
    for number, name in enumerate(PARTS[5:], 5):
        start[name], size = count, int(faces[name].max()) + 1
        triangles.append(faces[name] + count)
        part.append(np.full(size, number))
        share = rows_follow.get(name, np.ones(1))
        follow.append(np.repeat(share, size // len(share)))
        count += size
    triangles, part = (np.concatenate(pieces).astype(np.int32) for pieces in (triangles, part))
    return Topology(triangles, part, start, np.concatenate(follow).astype(np.float32))


def ramp(x, low, high):
    """Rise smoothly from 0 at `low` to 1 at `high`; for arrays of NumPy or JAX."""
    t = ((x - low) / (high - low)).clip(0, 1)
    return t * t * (3 - 2 * t)


def _circle(count):
    return np.linspace(0, 2 * np.pi, count, endpoint=False)


def _points(x, y, z):
    """Stack coordinates that broadcast: (..., 3)."""
    return np.stack(np.broadcast_arrays(x, y, z), -1)


def _from_polar(azimuth, radius, y, centre):
    """Return points around a vertical axis; azimuth 0 is towards the camera, positive to the camera's right."""
    return _points(centre[0] + radius * np.sin(azimuth), y, centre[2] - radius * np.cos(azimuth))


def _outline(vertices, centre, azimuth, width=0.3):
    """Return the largest radius of some vertices around each azimuth."""
    x, z = vertices[:, 0] - centre[0], vertices[:, 2] - centre[2]
    a, r = np.arctan2(x, -z), np.hypot(x, z)
    near = np.abs(np.angle(np.exp(1j * (a[None] - azimuth[:, None])))) < width
    return np.where(near, r, 0).max(1)


# Side view of the hairline on the mean head: z, y.
HAIRLINE = np.array([[-95, -66], [-72, -67], [-54, -58], [-42, -42], [-30, -28], [-14, 8], [-6, 12], [0, -6], [6, -16],
                     [22, -18], [31, 14], [42, 40], [62, 62], [120, 64]], float)  # fmt: skip


def hair_field(person: Person):
    """Measure the signed distance from the hairline, (V,), mm, positive on the scalp; on the mean head."""
    mesh = head()
    x, y, z = mesh.vertices.T
    look = person.look
    line = np.interp(z, HAIRLINE[:, 0], HAIRLINE[:, 1])
    front = ramp(-z, 10, 50)
    temples = np.exp(-(((np.abs(x) - 38) / 16) ** 2))
    line = line - front * (10 * look[0] - 4 + temples * (2 + 10 * look[1] * person.sex))
    if person.hair_style == "receding":
        line = line - front * (10 + 14 * person.hair_length + temples * (12 + 14 * look[1]))
    if person.hair_style == "fringe":
        line = line + front * ramp(60 - np.abs(x), 0, 25) * (26 + 10 * look[1])
    field = 0.85 * (line - y)
    if person.hair_style == "receding" and person.hair_length < 0.6:  # a horseshoe of hair is left
        crown = np.sqrt((x / 52) ** 2 + ((z + 5) / 85) ** 2 + ((np.minimum(y + 62, 0)) / 400) ** 2)
        field = np.where(y < -50, np.minimum(field, (crown - 1) * 45), field)
    ears = mesh.masks["ears"] > 0.02
    return np.where(ears, -8.0, np.clip(field, -40, 60)).astype(np.float32)


# Hair's thickness in mm, a + b length + (c + d length) on top: a, b, c, d.
HAIR_MM = {
    "bald": (0, 0, 0, 0), "cropped": (2, 4, 0, 0), "short": (4, 6, 5, 9), "side part": (5, 6, 10, 14),
    "receding": (3, 7, 0, 0), "quiff": (3, 5, 8, 6), "afro": (24, 46, 6, 0), "bun": (5, 5, 3, 0),
    "bob": (9, 9, 5, 0), "long": (9, 9, 5, 0), "fringe": (9, 9, 5, 0),
}  # fmt: skip


def hair_thickness(person: Person, field):
    """Return how far hair stands off the scalp, (V,), mm."""
    x, y, z = head().vertices.T
    length, look, style = person.hair_length, person.look, person.hair_style
    top, side = ramp(-y, 45, 100), np.sign(look[2] - 0.5)
    a, b, c, d = HAIR_MM[style]
    on_top = (c + d * length) * top
    if style == "side part":
        on_top = on_top * (0.55 + 0.45 * np.tanh((side * x + 18) / 14))
    mm = a + b * length + on_top
    if style == "quiff":
        mm = mm + (10 + 24 * length) * (ramp(-z, -20, 60) * ramp(-y, 60, 90))
    if style in ("bob", "long", "fringe"):
        mm = mm * (1 - 0.5 * np.exp(-(((x - side * 14 * look[3]) / 9) ** 2)) * top)  # the parting
    lumps = np.sin(x / 9 + 40 * look[4]) * np.sin(z / 10 + 40 * look[5]) * np.sin(y / 8 + 40 * look[6])
    mm = mm * (1 + (0.12 + 0.25 * person.hair_curl) * lumps)
    return mm * ramp(field, -1, 6 + 0.45 * mm)


def beard_field(person: Person):
    """Measure the signed distance from the beard's edge, (V,), mm, positive inside; on the mean head."""
    mesh, look = head(), person.look
    x, y, z = mesh.vertices.T
    across = np.abs(x)
    moustache = np.minimum.reduce([24 + 8 * look[3] - across, y - 41, 53 - y, -68 - z])
    chin = np.minimum.reduce([20 + 10 * look[4] - across, y - 66, 112 - y, -38 - z])
    cheek = np.interp(z, [-95, -80, -50, -15, 5], [55, 52, 46 + 10 * look[5], 26, 8])
    jaw = np.minimum.reduce([0.8 * (y - cheek), 114 - y, 4 - z])
    full = np.maximum(jaw, moustache)
    field = {
        "none": full,  # the shadow of a shaved one
        "moustache": moustache,
        "goatee": np.maximum(chin, moustache if look[6] > 0.4 else -20.0),
        "stubble": full,
        "full": full,
    }[person.beard]
    inner = (mesh.masks["inside_mouth"] > 0.05) | (mesh.masks["ears"] > 0.05)
    return np.where(inner, -20.0, np.clip(field, -20, 30)).astype(np.float32)


def clothes_field(person: Person):
    """Measure the signed distance from the neckline, (V,), mm, positive under cloth; on the mean head."""
    x, y, z = head().vertices.T
    low = {"V neck": 8, "turtleneck": -38, "hood": 2}.get(person.clothes, 0)
    opening = {"V neck": 42 + 25 * person.look[6], "shirt": 28.0}.get(person.clothes, 0)
    plane = 108 + low + (80 - z) * 0.5 + 10 * (person.look[5] - 0.5)
    plane = plane + ramp(-z, -50, 0) * np.maximum(0, opening - 0.9 * np.abs(x))
    return np.clip(0.8 * (y - plane), -30, 30).astype(np.float32)


def _curtain(person, skin):
    """Hang hair from the crown over the ears to its tips, around the back from cheek to cheek."""
    mesh, look = head(), person.look
    rows, columns = GRIDS["curtain"]
    centre = np.array([0.0, 0.0, 18.0])
    open_at = 0.95 + 0.35 * look[3]  # where the curtain ends next to the face, rad from the front
    a = np.linspace(open_at, 2 * np.pi - open_at, columns)
    skull = skin[(mesh.vertices[:, 1] < 40) & (mesh.follow > 0.98) & (mesh.masks["ears"] < 0.5)]
    end = 55 + 50 * person.hair_length if person.hair_style == "bob" else 120 + 150 * person.hair_length
    back = 0.5 - 0.5 * np.cos(a)  # 1 at the back of the head
    top_y = -78 + 8 * back
    tips = end * (0.85 + 0.15 * back) + 5 * np.sin(7 * a + 9 * look[4])
    t = np.linspace(0, 1, rows)[:, None]
    y = top_y + (tips - top_y) * t
    radius = []
    for middle in y.mean(1):
        here = skull[np.abs(skull[:, 1] - min(middle, 30)) < 22]
        radius.append(_outline(here, centre, a) if len(here) else radius[-1])
    hang = np.maximum.accumulate(radius, 0)
    loose = 5 + 8 * person.hair_length + 7 * person.hair_curl
    below = ramp(y, 20, 110)
    radius = hang * (1 - 0.16 * below) + loose * ramp(t, 0, 0.25)
    sideways = 1 - np.abs(np.cos(a))
    radius = radius + sideways * 10 * ramp(y, -45, -10)  # over the ears
    radius += (1.5 + 5 * person.hair_curl) * np.sin(11 * a + 0.08 * y + 20 * look[5]) * ramp(t, 0.2, 0.6)
    inwards = 14 + 26 * below[:, [0, -1]]  # rolled in next to the face and under the jaw
    radius[:, [0, -1]] -= inwards
    radius[:, [1, -2]] -= 0.3 * inwards
    radius[0] -= 9  # begins under the hair on top
    points = _from_polar(a, radius, y, centre).reshape(-1, 3)
    body = skin[mesh.part == 0]
    low, front = y.ravel() > 95, np.tile(np.cos(a) > -0.15, rows)
    for chosen, sign in ((low & front, -1), (low & ~front, 1)):  # outside of the chest or the back
        d = ((body[:, :2] - points[chosen, None, :2]) ** 2).sum(-1)
        near = d < np.maximum(d.min(1, keepdims=True) * 2, 12.0**2)
        surface = np.where(near, sign * body[:, 2], -np.inf).max(1) + 9
        points[chosen, 2] = sign * np.maximum(sign * points[chosen, 2], surface)
    return points


def _bun(person, skin):
    rows, columns = GRIDS["bun"]
    size = 24 + 16 * person.hair_length
    height = -100 + 85 * person.look[4]
    back = skin[np.argmin(np.abs(skin[:, 1] - height) - skin[:, 2] * 2 + 3 * np.abs(skin[:, 0]))]
    centre = back + np.array([0, -8.0 if height < -60 else 0, size * 0.5])
    latitude, azimuth = np.linspace(0, np.pi, rows)[:, None], _circle(columns)
    ball = _points(np.sin(latitude) * np.sin(azimuth), np.cos(latitude), np.sin(latitude) * np.cos(azimuth))
    return centre + size * ball * [1, 0.85, 0.85]


def _glasses(person, skin, sunglasses):
    """Shape rims, bridge and temples (4 RIM + 24, 3), and lenses (2 RIM, 3)."""
    mesh = head()
    x, y, z = mesh.vertices.T
    around = (np.abs(x) > 14) & (np.abs(x) < 48) & (y > -26) & (y < 12) & (mesh.part == 0) & (z < -40)
    plane = np.sort(skin[around, 2])[:8].mean() - 2.0
    shape = person.glasses if person.glasses != "none" else ("square", "aviator")[int(person.look[7] > 0.5)]
    power, width, high = {"round": (2.0, 21.5, 0.92), "square": (4.0, 24.5, 0.66), "aviator": (2.6, 24.5, 0.8)}[shape]
    width = width * person.glasses_size * (1.08 if sunglasses else 1)
    height = width * high * (1.1 if sunglasses else 1)
    t = _circle(RIM)
    cos, sin = (np.sign(f(t)) * np.abs(f(t)) ** (2 / power) for f in (np.cos, np.sin))
    mm = max(person.glasses_mm, 2.0)
    rims, arms, nose = [], [], []
    for eye_part, side in ((1, 1), (2, -1)):
        eye = skin[mesh.part == eye_part].mean(0)
        taper = 1 - (0.16 * np.maximum(sin, 0) * (1 - side * cos) / 2 if shape == "aviator" else 0)
        grow = np.array([0.0, person.glasses_mm])[:, None]
        rim = _points(
            side * (abs(eye[0]) + 2.0) + (width + grow) * cos * taper,
            eye[1] + 3.0 + (3 if shape == "aviator" else 0) + (height + grow) * sin,
            plane,
        )
        rim[..., 2] += 0.0024 * rim[..., 0] ** 2 - 1.0  # frames bend around the face
        rims.append(rim)
        outer = rim[1]
        nose.append((outer[np.argmin(np.abs(outer[:, 0])), 0], eye[1]))
        hinge = outer[np.argmax(side * outer[:, 0])]
        ear = skin[(mesh.masks["ears"] > 0.5) & (np.sign(x) == side)]
        temple = skin[(np.abs(y + 15) < 14) & (mesh.part == 0) & (mesh.masks["ears"] < 0.1)]
        temple = _outline(temple, np.zeros(3), np.array([side * np.pi / 2]))[0]
        ear_top = np.array([side * (temple + 3), ear[:, 1].min() + 2, ear[:, 2].mean()])
        f = np.array([0, 0.35, 0.8, 1.0])
        path = hinge + (ear_top - hinge) * f[:, None]
        path[:, 0] = side * np.maximum(np.abs(path[:, 0]), np.linspace(abs(hinge[0]), temple + 2, 4))
        path[:, 1] = hinge[1] - 6 + (ear_top[1] - hinge[1] + 6) * f
        arms.append(np.stack([path, path + [0, mm + 0.5, 0]]))
    (left, eye_y), (right, _) = nose
    bridge = _points(np.linspace(right - 1, left + 1, 4), eye_y - 3 + np.array([[0], [mm]]), plane - 1.5)
    frame = np.concatenate([piece.reshape(-1, 3) for piece in (*rims, bridge, *arms)])
    return frame, np.concatenate([rim[0] for rim in rims])


def _hat(person, kind, skin):
    """Shape crown and brim, rows from the top to the rim and outwards."""
    rows, columns = GRIDS["hat"]
    mesh, look = head(), person.look
    centre = np.array([0.0, 0.0, 10.0])
    a = _circle(columns)
    scalp = skin[(mesh.vertices[:, 1] < -18) & (mesh.masks["ears"] < 0.05)]
    outline = _outline(scalp, centre, a, 0.25)
    outline = (np.roll(outline, 1) + outline + np.roll(outline, -1)) / 3
    front_y, back_y, loose, tall, radius_power, y_power = {
        "beanie": (-62 + 14 * look[4], 12, 6, 12 + 26 * look[5], 0.8, 0.9),
        "cap": (-66 + 10 * look[4], -22, 5, 8 + 12 * look[5], 0.8, 0.9),
        "brim": (-64 + 10 * look[4], -26, 5, 18 + 30 * look[5], 0.62, 0.7),
    }[kind]
    edge = outline + loose
    rim_y = front_y + (back_y - front_y) * (0.5 - 0.5 * np.cos(a))
    top_y = scalp[:, 1].min() - tall
    bend = np.linspace(0, 1, rows - 4)[:, None] * np.pi / 2
    y = rim_y + (top_y - rim_y) * np.cos(bend) ** y_power
    crown = _from_polar(a, edge * np.sin(bend) ** radius_power, y, centre)
    f = np.linspace(0.0, 1, 4)[:, None]
    if kind == "beanie":  # a band, rolled up
        rim = _from_polar(a, edge + 5 * np.sin(f * np.pi) + 2 - 4 * (f == 1), rim_y + 4 - 26 * f, centre)
        rim[0] = _from_polar(a, edge - 3, rim_y + 3, centre)
    else:
        wide = (68 + 12 * look[6]) * np.maximum(np.cos(a), 0) ** 0.7 if kind == "cap" else 48 + 34 * look[6] + 0 * a
        drop = 0.24 if kind == "cap" else 0.1 - 0.1 * look[3]
        rim = _from_polar(a, edge - 2 + wide * f, rim_y + drop * wide * f + 5 * f * np.sin(a) ** 2, centre)
    return np.concatenate([crown, rim])


# Per row from top to bottom: mm outside the neck, y at the front, y at the back.
COLLARS = {
    "scarf": [(2, 96, 66), (22, 98, 64), (34, 122, 88), (32, 150, 112), (8, 172, 132)],
    "turtleneck": [(2, 106, 72), (5, 104, 70), (7, 118, 88), (8, 138, 104), (12, 160, 122)],
    "shirt": [(2, 134, 94), (4, 122, 84), (7, 124, 85), (12, 142, 98), (15, 150, 106)],
    "hood": [(2, 146, 104), (12, 146, 88), (24, 154, 86), (30, 166, 100), (20, 176, 122)],
}


def _collar(person, skin, kind):
    """Lay a ring around the neck."""
    mesh, look = head(), person.look
    rows, columns = GRIDS["collar"]
    centre = np.array([0.0, 0.0, 32.0])
    a = _circle(columns)
    x, y, z = mesh.vertices.T
    base = _outline(skin[(y > 100) & (y < 128) & (np.abs(x) < 66) & (z > -30)], centre, a, 0.35)
    back = 0.5 - 0.5 * np.cos(a)
    wide, front_y, back_y = np.float32(COLLARS[kind]).T[..., None]
    radius = base + wide * (1 + 0.35 * (look[3] - 0.5))
    if kind == "scarf":
        radius = radius + 3 * np.sin(5 * a + 7 * look[4] + np.arange(rows)[:, None])
    if kind == "hood":
        radius = radius + 14 * back * (wide > 10)
    radius = radius + 0.12 * np.abs(np.sin(a)) * wide
    height = front_y + (back_y - front_y) * back
    if kind == "shirt":  # open at the front
        height = height + 12 * np.exp(-((np.angle(np.exp(1j * a)) / 0.3) ** 2))
    return _from_polar(a, radius, height, centre)


@functools.cache
def _neighbours():
    """List each head vertex's neighbours, int (V, 8), filled up with itself."""
    edges = head().triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    edges = np.unique(np.concatenate([edges, edges[:, ::-1]]), axis=0)
    place = np.arange(len(edges)) - np.searchsorted(edges[:, 0], edges[:, 0])
    out = np.repeat(np.arange(len(head().vertices))[:, None], 8, 1)
    out[edges[place < 8, 0], place[place < 8]] = edges[place < 8, 1]
    return out


@functools.cache
def _mean_normals():
    """Compute the unit normals of the mean head, (V, 3)."""
    mesh = head()
    a, b, c = (mesh.vertices[mesh.triangles[:, i]].astype(np.float64) for i in range(3))
    normals = np.zeros(mesh.vertices.shape)
    np.add.at(normals, mesh.triangles.T, np.cross(b - a, c - a)[None])
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)


def _put(vertices, name, points):
    start, points = topology().start[name], points.reshape(-1, 3)
    vertices[start : start + len(points)] = points


@functools.lru_cache(maxsize=64)
def dress(person: Person, wear: Wear) -> Figure:
    """Give a person hair, beard, clothes and whatever else they wear."""
    mesh = head()
    _, y, z = mesh.vertices.T
    skin = person.vertices.astype(np.float64)
    hair, beard, clothes = hair_field(person), beard_field(person), clothes_field(person)
    thickness = hair_thickness(person, hair)
    if wear.hat != "none":
        under = y < (-48 if wear.hat == "brim" else -50) + 0.25 * np.maximum(z, 0)
        thickness = np.minimum(thickness, np.where(under, 3, 22))
    outwards = skin - np.array([0, -18.0, 14.0])  # from the skull's centre
    outwards /= np.linalg.norm(outwards, axis=1, keepdims=True)
    haired = skin + outwards * thickness[:, None]

    drape = np.nonzero(clothes > 12)[0]  # cloth spans the hollows
    neighbours = _neighbours()
    reach = np.linalg.norm(mesh.vertices[neighbours[drape]] - mesh.vertices[drape, None], axis=-1).max(1)
    for some, times in ((drape, 10), (drape[reach < 14], 60)):
        for _ in range(times):
            haired[some] = haired[neighbours[some]].mean(1)
    grown = {"full": 5 + 14 * person.beard_length, "goatee": 4 + 8 * person.beard_length,
             "moustache": 3 + 3 * person.beard_length}.get(person.beard, 0)  # fmt: skip
    bulge = grown * ramp(beard, -1, 9) * (0.55 + 0.45 * ramp(y, 60, 95)) * (1 - mesh.masks["lips"])
    fabric = (3 + 7 * person.look[2]) * ramp(clothes, -1, 5)
    haired = haired + _mean_normals() * (bulge + fabric)[:, None]
    if person.beard == "full":  # it hangs
        haired = haired + np.array([0, 1.0, -0.25]) * (grown * 0.9 * ramp(beard, 2, 12) * ramp(y, 74, 100))[:, None]

    vertices = np.zeros((len(topology().part), 3))
    vertices[: len(haired)] = haired
    if person.hair_style in ("bob", "long"):
        _put(vertices, "curtain", _curtain(person, haired))
    if person.hair_style == "bun" and wear.hat == "none":
        _put(vertices, "bun", _bun(person, haired))
    if person.glasses != "none" or wear.sunglasses:
        frame, lenses = _glasses(person, skin, wear.sunglasses)
        _put(vertices, "glasses", frame)
        if wear.sunglasses:
            _put(vertices, "lenses", lenses)
    if wear.hat != "none":
        _put(vertices, "hat", _hat(person, wear.hat, haired))
    collar = "scarf" if wear.scarf else person.clothes
    if collar in COLLARS:
        _put(vertices, "collar", _collar(person, skin, collar))
    fields = np.full(vertices.shape, -20, np.float32)
    fields[: len(haired)] = np.stack([hair, beard, clothes], 1)
    return Figure(vertices.astype(np.float32), fields)


def turn_matrix(angles_deg):
    """Return Rz Ry Rx of angles about x, y, z, as for the head."""
    (cx, sx), (cy, sy), (cz, sz) = ((np.cos(a), np.sin(a)) for a in np.radians(angles_deg))
    rx = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    ry = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    rz = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return rz @ ry @ rx


# Radius and y of each row.
BOTTLE_MM = np.array([[0, 10], [33, 10], [34, -60], [34, -110], [16, -150], [13, -178], [0, -178]])


def hold(vertices, person: Person, holding: str, side: int, rng) -> np.ndarray:
    """Put one hand, and the thing it holds, before the head of a figure: float32 (V, 3) -> the same.

    `holding` is one of HOLDINGS; `side`, 1 or -1, that of the hand; `rng` draws the small differences between frames.
    """
    if holding == "none":
        return vertices
    mesh, face = head(), person.vertices
    out = vertices.astype(np.float64)

    def nearest(*point):
        return face[np.argmin(np.linalg.norm(mesh.vertices - point, axis=1))]

    mouth = face[mesh.masks["lips"] > 0.5].mean(0)
    chin, cheek, brow = nearest(0, 98, -76), nearest(side * 50, 40, -60), nearest(0, -45, -85)
    ear = face[(mesh.masks["ears"] > 0.5) & (np.sign(mesh.vertices[:, 0]) == side)].mean(0)
    j = rng.normal(0, 1, 6)
    # pose, turn (degrees about x, y, z), wrist
    pose, turn, wrist = {
        "mouth": (0, (0, 8, -side * (52 + 8 * j[0])), mouth + [side * 78, 62, -26]),
        "chin": (1, (-8, side * 20, -side * (28 + 8 * j[0])), chin + [side * 42, 78, -34]),
        "cheek": (2, (0, -side * (48 + 6 * j[0]), -side * 6), cheek + [side * 26, 92, -16]),
        "forehead": (2, (10, 0, -side * (48 + 9 * j[0])), brow + [side * 92, 78, -24]),
        "wave": (0, (0, 180 + 20 * j[0], -side * (15 + 10 * j[1])), mouth + [side * 60 * (1 + 0.3 * j[2]), 40, -140]),
        "call": (1, (0, -side * (82 + 5 * j[0]), side * 4), ear + [side * 34, 78, -30]),
        "phone": (1, (12, 180, -side * 8), chin + [side * 20 + 10 * j[0], 78, -190]),
        "bottle": (1, (-25, -side * 25, -side * (20 + 6 * j[0])), mouth + [side * 30, 70, -95]),
    }[holding]
    turn = turn_matrix(turn)

    def put(name, points):
        _put(out, name, points @ turn.T + wrist + j[3:6] * 5)

    put("hand", mesh.hand[pose] * [side, 1, 1])  # a left hand is the right one mirrored
    rows, columns = GRIDS["sleeve"]
    around, t = _circle(columns), np.linspace(0, 1, rows)[:, None]
    radius = 27 + 20 * t
    put("sleeve", _points(radius * np.cos(around), 14 + 240 * t, radius * np.sin(around) + 40 * t * t))
    if holding in ("call", "phone"):
        corners = np.stack(np.meshgrid([-37, 37], [-75, 75], [-4.5, 4.5], indexing="ij"), -1)
        put("phone", corners + [0, -105, 26 if holding == "call" else 34])
    if holding == "bottle":
        around, (radius, y) = _circle(GRIDS["bottle"][1]), BOTTLE_MM.T[..., None]
        put("bottle", _points(radius * np.cos(around), y, radius * np.sin(around)) + [0, -45, 48])
    return out.astype(np.float32)
