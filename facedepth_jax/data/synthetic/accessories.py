"""What a person wears and holds, as one triangle mesh of fixed topology: hair, beard, glasses, hats, clothes, hands.

Hair, beard and clothes that lie close are the skin itself, pushed outwards; the rest are small grids of their own. What
is not worn is collapsed to one point, whose triangles have no area. NumPy on the host, head frame (see identity.Head).
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from facedepth_jax.data.synthetic.identity import Person, head

PARTS = ("skin", "left eye", "right eye", "upper teeth", "lower teeth", "curtain", "bun", "glasses", "lenses", "hat",
         "collar", "hand", "sleeve", "phone", "bottle")  # fmt: skip
HATS = ("none", "beanie", "cap", "brim")
HOLDINGS = ("none", "mouth", "chin", "cheek", "forehead", "wave", "call", "phone", "bottle")
CURTAIN, BUN, RIM, HAT, COLLAR, SLEEVE, BOTTLE = (12, 36), (8, 12), 22, (14, 28), (5, 32), (4, 12), (7, 12)


@dataclasses.dataclass(frozen=True)
class Wear:
    """What a person has on in a frame: sunglasses or own glasses, one of HATS, a scarf."""

    hat: str = "none"
    scarf: bool = False
    sunglasses: bool = False


class Figure(NamedTuple):
    """A dressed person, not yet posed.

    Attributes:
      vertices: float32 (V, 3), mm, head frame, neutral.
      fields: float32 (V, 3), signed distances in mm from the edge of the scalp hair, the beard and the clothes, along
        the skin; positive inside. Meaningful on the skin only.
    """

    vertices: np.ndarray
    fields: np.ndarray


class Topology(NamedTuple):
    """What all figures share.

    Attributes:
      triangles: int32 (T, 3).
      part: int32 (V,), index into PARTS.
      start: {part: first vertex}; the vertices of a part are consecutive but for the head's own, which come first.
      follow: float32 (V,), share of the head's turn.
    """

    triangles: np.ndarray
    part: np.ndarray
    start: dict
    follow: np.ndarray


def _grid(rows, columns, wrap):
    """Triangles of a (rows, columns) grid of vertices, closed around the columns if `wrap`."""
    r, c = np.meshgrid(np.arange(rows - 1), np.arange(columns if wrap else columns - 1), indexing="ij")
    a, b = r * columns + c, r * columns + (c + 1) % columns
    return np.stack([np.stack([a, b, a + columns], -1), np.stack([b, b + columns, a + columns], -1)]).reshape(-1, 3)


BOX = np.array([[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
                [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]])  # fmt: skip


def _glasses_triangles():
    loop = _grid(2, RIM, wrap=True)
    ribbon = _grid(2, 4, wrap=False)
    return np.concatenate([loop, loop + 2 * RIM, ribbon + 4 * RIM, ribbon + 4 * RIM + 8, ribbon + 4 * RIM + 16])


def _lens_triangles():
    # Across the lens in a zigzag: 0, 1, RIM - 1, 2, ... No vertex has many triangles, which normals pay for.
    zigzag = np.stack([np.arange(RIM), -np.arange(RIM) % RIM], 1).ravel()[1 : RIM + 1]
    strip = np.stack([zigzag[:-2], zigzag[1:-1], zigzag[2:]], 1)
    return np.concatenate([strip, strip + RIM])


@functools.cache
def topology() -> Topology:
    """The one mesh of all figures."""
    mesh = head()
    pieces = {  # part: (vertices, triangles, share of the head's turn)
        "curtain": (CURTAIN[0] * CURTAIN[1], _grid(*CURTAIN, wrap=False), None),
        "bun": (BUN[0] * BUN[1], _grid(*BUN, wrap=True), 1.0),
        "glasses": (4 * RIM + 24, _glasses_triangles(), 1.0),
        "lenses": (2 * RIM, _lens_triangles(), 1.0),
        "hat": (HAT[0] * HAT[1], _grid(*HAT, wrap=True), 1.0),
        "collar": (COLLAR[0] * COLLAR[1], _grid(*COLLAR, wrap=True), None),
        "hand": (mesh.hand.shape[1], mesh.hand_triangles, 1.0),
        "sleeve": (SLEEVE[0] * SLEEVE[1], _grid(*SLEEVE, wrap=True), 1.0),
        "phone": (8, BOX, 1.0),
        "bottle": (BOTTLE[0] * BOTTLE[1], _grid(*BOTTLE, wrap=True), 1.0),
    }
    triangles, part, follow, start = [mesh.triangles], [mesh.part.astype(np.int32)], [mesh.follow], {}
    count = len(mesh.vertices)
    for name, (size, faces, share) in pieces.items():
        start[name] = count
        triangles.append(faces + count)
        part.append(np.full(size, PARTS.index(name), np.int32))
        if name == "curtain":  # rows from the crown to the tips
            rows = np.clip(1.25 - np.linspace(0, 1, CURTAIN[0]), 0, 1)
            share = np.repeat(rows, CURTAIN[1])
        elif name == "collar":
            share = np.repeat(np.linspace(0.5, 0.05, COLLAR[0]), COLLAR[1])
        follow.append(np.broadcast_to(np.float32(share), size).astype(np.float32))
        count += size
    return Topology(np.concatenate(triangles).astype(np.int32), np.concatenate(part), start, np.concatenate(follow))


def _ramp(x, low, high):
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _polar(points, centre):
    """Azimuth (0 = towards the camera, positive to the camera's right) and radius around a vertical axis."""
    x, z = points[..., 0] - centre[0], points[..., 2] - centre[2]
    return np.arctan2(x, -z), np.hypot(x, z)


def _from_polar(azimuth, radius, y, centre):
    return np.stack([centre[0] + radius * np.sin(azimuth), y + 0 * azimuth, centre[2] - radius * np.cos(azimuth)], -1)


def _outline(vertices, centre, azimuth, width=0.3):
    """Largest radius of some vertices around each azimuth."""
    a, r = _polar(vertices, centre)
    near = np.abs(np.angle(np.exp(1j * (a[None] - azimuth[:, None])))) < width
    return np.where(near, r, 0).max(1)


# Side view of the hairline on the mean head: z, y.
HAIRLINE = np.array([[-95, -66], [-72, -67], [-54, -58], [-42, -42], [-30, -28], [-14, 8], [-6, 12], [0, -6], [6, -16],
                     [22, -18], [31, 14], [42, 40], [62, 62], [120, 64]], float)  # fmt: skip


def hair_field(person: Person):
    """Signed distance from the hairline, (V,), mm, positive on the scalp; on the mean head."""
    mesh = head()
    x, y, z = mesh.vertices.T
    look = person.look
    line = np.interp(z, HAIRLINE[:, 0], HAIRLINE[:, 1])
    front = _ramp(-z, 10, 50)
    temples = np.exp(-(((np.abs(x) - 38) / 16) ** 2))
    line = line - front * (10 * look[0] - 4 + temples * (2 + 10 * look[1] * person.sex))
    if person.hair_style == "receding":
        line = line - front * (10 + 14 * person.hair_length + temples * (12 + 14 * look[1]))
    if person.hair_style == "fringe":
        line = line + front * _ramp(60 - np.abs(x), 0, 25) * (26 + 10 * look[1])
    field = 0.85 * (line - y)
    if person.hair_style == "receding" and person.hair_length < 0.6:  # a horseshoe of hair is left
        crown = np.sqrt((x / 52) ** 2 + ((z + 5) / 85) ** 2 + ((np.minimum(y + 62, 0)) / 400) ** 2)
        field = np.where(y < -50, np.minimum(field, (crown - 1) * 45), field)
    ears = mesh.masks["ears"] > 0.02
    return np.where(ears, -8.0, np.clip(field, -40, 60)).astype(np.float32)


def hair_thickness(person: Person, field):
    """How far hair stands off the scalp, (V,), mm."""
    mesh = head()
    x, y, z = mesh.vertices.T
    length, look = person.hair_length, person.look
    top = _ramp(-y, 45, 100)
    front_top = _ramp(-z, -20, 60) * _ramp(-y, 60, 90)
    side = np.sign(look[2] - 0.5)
    style = person.hair_style
    if style == "bald":
        return np.zeros(len(x))
    if style == "cropped":
        mm = 2 + 4 * length + 0 * x
    elif style == "short":
        mm = 4 + 6 * length + (5 + 9 * length) * top
    elif style == "side part":
        mm = 5 + 6 * length + (10 + 14 * length) * top * (0.55 + 0.45 * np.tanh((side * x + 18) / 14))
    elif style == "receding":
        mm = 3 + 7 * length + 0 * x
    elif style == "quiff":
        mm = 3 + 5 * length + (8 + 6 * length) * top + (10 + 24 * length) * front_top
    elif style == "afro":
        mm = 24 + 46 * length + 6 * top
    elif style == "bun":
        mm = 5 + 5 * length + 3 * top
    else:  # bob, long, fringe
        parting = 1 - 0.5 * np.exp(-(((x - side * 14 * look[3]) / 9) ** 2)) * top
        mm = (9 + 9 * length + 5 * top) * parting
    lumps = np.sin(x / 9 + 40 * look[4]) * np.sin(z / 10 + 40 * look[5]) * np.sin(y / 8 + 40 * look[6])
    mm = mm * (1 + (0.12 + 0.25 * person.hair_curl) * lumps)
    edge = 6 + 0.45 * mm
    return mm * _ramp(field, -1, edge)


def beard_field(person: Person):
    """Signed distance from the beard's edge, (V,), mm, positive inside; on the mean head."""
    mesh = head()
    x, y, z = mesh.vertices.T
    across = np.abs(x)
    moustache = np.minimum.reduce([24 + 8 * person.look[3] - across, y - 41, 53 - y, -68 - z])
    chin = np.minimum.reduce([20 + 10 * person.look[4] - across, y - 66, 112 - y, -38 - z])
    cheek = np.interp(z, [-95, -80, -50, -15, 5], [55, 52, 46 + 10 * person.look[5], 26, 8])
    jaw = np.minimum.reduce([0.8 * (y - cheek), 114 - y, 4 - z])
    outside = np.full(len(x), -20.0)
    field = {
        "none": outside,
        "moustache": moustache,
        "goatee": np.maximum(chin, moustache if person.look[6] > 0.4 else outside),
        "stubble": np.maximum(jaw, moustache),
        "full": np.maximum(jaw, moustache),
    }[person.beard]
    inner = (mesh.masks["inside_mouth"] > 0.05) | (mesh.masks["ears"] > 0.05)
    return np.where(inner, -20.0, np.clip(field, -20, 30)).astype(np.float32)


def clothes_field(person: Person):
    """Signed distance from the neckline, (V,), mm, positive under cloth; on the mean head."""
    x, y, z = head().vertices.T
    low = {"crew neck": 0, "V neck": 8, "shirt": 0, "turtleneck": -38, "hood": 2}[person.clothes]
    plane = 108 + low + (80 - z) * 0.5 + 10 * (person.look[5] - 0.5)
    opening = {"V neck": 42 + 25 * person.look[6], "shirt": 28.0}.get(person.clothes, 0)
    plane = plane + _ramp(-z, -50, 0) * np.maximum(0, opening - 0.9 * np.abs(x))
    return np.clip(0.8 * (y - plane), -30, 30).astype(np.float32)


def _lookup(vertices, points, front):
    """z of the body's front (or back) nearest to the points in x and y."""
    d = ((vertices[None, :, :2] - points[:, None, :2]) ** 2).sum(-1)
    near = d < np.maximum(d.min(1, keepdims=True) * 2, 12.0**2)
    z = np.where(near, vertices[None, :, 2], np.inf if front else -np.inf)
    return z.min(1) if front else z.max(1)


def _curtain(person, skin, thickness):
    """Hair that hangs: from the crown over the ears to its tips, around the back from cheek to cheek."""
    rows, columns = CURTAIN
    centre = np.array([0.0, 0.0, 18.0])
    open_at = 0.95 + 0.35 * person.look[3]  # where the curtain ends beside the face, rad from the front
    a = np.linspace(open_at, 2 * np.pi - open_at, columns)
    skull = skin[(head().vertices[:, 1] < 40) & (head().follow > 0.98) & (head().masks["ears"] < 0.5)]
    end = {"bob": 55 + 50 * person.hair_length, "long": 120 + 150 * person.hair_length}.get(person.hair_style, 0)
    back = 0.5 - 0.5 * np.cos(a)  # 1 at the back of the head
    top_y = -78 + 8 * back
    tips = end * (0.85 + 0.15 * back) + 5 * np.sin(7 * a + 9 * person.look[4])
    t = np.linspace(0, 1, rows)[:, None]
    y = top_y + (tips - top_y) * t
    radius = np.empty((rows, columns))
    for r in range(rows):
        here = skull[np.abs(skull[:, 1] - min(y[r].mean(), 30)) < 22]
        radius[r] = _outline(here, centre, a) if len(here) else radius[r - 1]
    hang = np.maximum.accumulate(radius, 0)
    loose = 5 + 8 * person.hair_length + 7 * person.hair_curl
    below = _ramp(y, 20, 110)
    radius = hang * (1 - 0.16 * below) + loose * _ramp(t, 0, 0.25)
    sideways = 1 - np.abs(np.cos(a))
    radius = radius + sideways * 10 * _ramp(y, -45, -10)  # over the ears
    radius += (1.5 + 5 * person.hair_curl) * np.sin(11 * a + 0.08 * y + 20 * person.look[5]) * _ramp(t, 0.2, 0.6)
    inwards = 14 + 26 * below[:, [0, -1]]  # rolled in beside the face and under the jaw
    radius[:, [0, -1]] -= inwards
    radius[:, [1, -2]] -= 0.3 * inwards
    radius[0] -= 9  # begins under the hair on top
    points = _from_polar(a, radius, y, centre)
    low = y.ravel() > 95
    if low.any():
        flat = points.reshape(-1, 3)
        body = skin[head().part == 0]
        forward = np.cos(np.broadcast_to(a, y.shape)).ravel() > -0.15
        for front, sign in ((True, -1), (False, 1)):
            chosen = low & (forward if front else ~forward)
            if chosen.any():
                surface = _lookup(body, flat[chosen], front) + sign * 9
                flat[chosen, 2] = (
                    np.minimum(flat[chosen, 2], surface) if front else np.maximum(flat[chosen, 2], surface)
                )
        points = flat.reshape(rows, columns, 3)
    return points.reshape(-1, 3)


def _bun(person, skin):
    rows, columns = BUN
    size = 24 + 16 * person.hair_length
    height = -100 + 85 * person.look[4]
    back = skin[np.argmin(np.abs(skin[:, 1] - height) - skin[:, 2] * 2 + 3 * np.abs(skin[:, 0]))]
    centre = back + np.array([0, -8.0 if height < -60 else 0, size * 0.5])
    latitude = np.linspace(0, np.pi, rows)[:, None]
    azimuth = np.linspace(0, 2 * np.pi, columns, endpoint=False)[None]
    ball = np.stack(
        [np.sin(latitude) * np.sin(azimuth), np.cos(latitude) + 0 * azimuth, np.sin(latitude) * np.cos(azimuth)], -1
    )
    return (centre + size * ball * [1, 0.85, 0.85]).reshape(-1, 3)


def _glasses(person, skin, sunglasses):
    """Rims, bridge and temples, and the lenses: (4 RIM + 24, 3), (2 RIM, 3)."""
    mesh = head()
    x, y, _ = mesh.vertices.T
    around = (np.abs(x) > 14) & (np.abs(x) < 48) & (y > -26) & (y < 12) & (mesh.part == 0) & (mesh.vertices[:, 2] < -40)
    eyes = [skin[mesh.part == k].mean(0) for k in (1, 2)]
    plane = np.sort(skin[around, 2])[:8].mean() - 2.0
    shape = person.glasses if person.glasses != "none" else ("square", "aviator")[int(person.look[7] > 0.5)]
    power = {"round": 2.0, "square": 4.0, "aviator": 2.6}[shape]
    t = np.linspace(0, 2 * np.pi, RIM, endpoint=False)
    width = (21.5 if shape == "round" else 24.5) * person.glasses_size * (1.08 if sunglasses else 1)
    height = width * {"round": 0.92, "square": 0.66, "aviator": 0.8}[shape] * (1.1 if sunglasses else 1)
    cos, sin = (np.sign(f(t)) * np.abs(f(t)) ** (2 / power) for f in (np.cos, np.sin))
    rims, lenses, edges = [], [], []
    for eye, side in zip(eyes, (1, -1), strict=True):
        middle = np.array([side * (abs(eye[0]) + 2.0), eye[1] + 3.0 + (3 if shape == "aviator" else 0), plane])
        taper = 1 - (0.16 * np.maximum(sin, 0) * (1 - side * cos) / 2 if shape == "aviator" else 0)

        def loop(grow, middle=middle, taper=taper):
            p = np.stack(
                [middle[0] + (width + grow) * cos * taper, middle[1] + (height + grow) * sin, 0 * t + plane], -1
            )
            p[:, 2] += 0.0024 * p[:, 0] ** 2 - 1.0  # frames bend around the face
            return p

        rims += [loop(0.0), loop(person.glasses_mm)]
        lenses.append(loop(0.0))
        edges.append((middle, loop(person.glasses_mm)))
    mm = max(person.glasses_mm, 2.0)
    bridge_y = eyes[0][1] - 3
    inner = [e[1][np.argmin(np.abs(e[1][:, 0]))] for e in edges]
    bx = np.linspace(inner[1][0] - 1, inner[0][0] + 1, 4)
    bridge = np.stack([np.stack([bx, 0 * bx + bridge_y + dy, 0 * bx + plane - 1.5], -1) for dy in (0, mm)])
    arms = []
    for k, side in ((1, 1), (2, -1)):
        ear = skin[(mesh.masks["ears"] > 0.5) & (np.sign(mesh.vertices[:, 0]) == side)]
        hinge = edges[k - 1][1][np.argmax(side * edges[k - 1][1][:, 0])]
        temple = _outline(skin[(np.abs(y + 15) < 14) & (mesh.part == 0) & (mesh.masks["ears"] < 0.1)], np.zeros(3),
                          np.array([side * np.pi / 2]))[0]  # fmt: skip
        ear_top = np.array([side * (temple + 3), ear[:, 1].min() + 2, ear[:, 2].mean()])
        f = np.array([0, 0.35, 0.8, 1.0])[:, None]
        path = hinge + (ear_top - hinge) * f
        path[:, 0] = side * np.maximum(np.abs(path[:, 0]), np.linspace(abs(hinge[0]), temple + 2, 4))
        path[:, 1] = hinge[1] - 6 + (ear_top[1] - hinge[1] + 6) * f[:, 0]
        arms.append(np.stack([path, path + [0, mm + 0.5, 0]]))
    return (np.concatenate([*rims, bridge.reshape(-1, 3), *[a.reshape(-1, 3) for a in arms]]), np.concatenate(lenses))


def _hat(person, kind, skin):
    """Crown and brim, (rows * columns, 3), rows from the top to the rim and outwards."""
    rows, columns = HAT
    look = person.look
    centre = np.array([0.0, 0.0, 10.0])
    a = np.linspace(0, 2 * np.pi, columns, endpoint=False)
    scalp = skin[(head().vertices[:, 1] < -18) & (head().masks["ears"] < 0.05)]
    outline = _outline(scalp, centre, a, 0.25)
    outline = (np.roll(outline, 1) + outline + np.roll(outline, -1)) / 3
    back = 0.5 - 0.5 * np.cos(a)
    front_y, back_y, loose, tall = {
        "beanie": (-62 + 14 * look[4], 12, 6, 12 + 26 * look[5]),
        "cap": (-66 + 10 * look[4], -22, 5, 8 + 12 * look[5]),
        "brim": (-64 + 10 * look[4], -26, 5, 18 + 30 * look[5]),
    }[kind]
    rim_y = front_y + (back_y - front_y) * back
    top_y = scalp[:, 1].min() - tall
    crown_rows = rows - 4
    bend = np.linspace(0, 1, crown_rows)[:, None] * np.pi / 2
    power = 0.62 if kind == "brim" else 0.8
    radius = (outline + loose) * np.sin(bend) ** power
    y = rim_y + (top_y - rim_y) * np.cos(bend) ** (0.7 if kind == "brim" else 0.9)
    crown = _from_polar(a[None] + 0 * bend, radius, y, centre)
    edge = outline + loose
    f = np.linspace(0.0, 1, 4)[:, None]
    if kind == "beanie":  # a band, rolled up
        rim = _from_polar(
            a[None] + 0 * f, edge + 5 * np.sin(f * np.pi) + 2 - 4 * (f == 1), rim_y + 4 - 26 * f + 0 * a, centre
        )
        rim[0] = _from_polar(a, edge - 3, rim_y + 3, centre)
    else:
        wide = (68 + 12 * look[6]) * np.maximum(np.cos(a), 0) ** 0.7 if kind == "cap" else 48 + 34 * look[6] + 0 * a
        drop = 0.24 if kind == "cap" else 0.1 - 0.1 * look[3]
        rim = _from_polar(
            a[None] + 0 * f, edge - 2 + wide * f, rim_y + drop * wide * f + 5 * f * np.sin(a) ** 2, centre
        )
    return np.concatenate([crown, rim]).reshape(-1, 3)


def _collar(person, skin, kind):
    """A ring around the neck, (rows * columns, 3), from top to bottom."""
    rows, columns = COLLAR
    mesh = head()
    centre = np.array([0.0, 0.0, 32.0])
    a = np.linspace(0, 2 * np.pi, columns, endpoint=False)
    _, y, z = mesh.vertices.T
    neck = skin[(y > 100) & (y < 128) & (np.abs(mesh.vertices[:, 0]) < 66) & (z > -30)]
    base = _outline(neck, centre, a, 0.35)
    back = 0.5 - 0.5 * np.cos(a)
    side = np.abs(np.sin(a))
    look = person.look
    # Per row: how far outside the neck, y at the front, y at the back.
    profile = {
        "scarf": [(2, 96, 66), (22, 98, 64), (34, 122, 88), (32, 150, 112), (8, 172, 132)],
        "turtleneck": [(2, 106, 72), (5, 104, 70), (7, 118, 88), (8, 138, 104), (12, 160, 122)],
        "shirt": [(2, 134, 94), (4, 122, 84), (7, 124, 85), (12, 142, 98), (15, 150, 106)],
        "hood": [(2, 146, 104), (12, 146, 88), (24, 154, 86), (30, 166, 100), (20, 176, 122)],
    }[kind]
    out = []
    for r, (wide, front_y, back_y) in enumerate(profile):
        height = front_y + (back_y - front_y) * back
        radius = (
            base + wide * (1 + 0.35 * (look[3] - 0.5)) + (3 * np.sin(5 * a + 7 * look[4] + r) if kind == "scarf" else 0)
        )
        radius = radius + (14 * back * (wide > 10) if kind == "hood" else 0) + 0.12 * side * wide
        if kind == "shirt":  # open at the front
            height = height + 12 * np.exp(-((np.angle(np.exp(1j * a)) / 0.3) ** 2))
        out.append(_from_polar(a, radius, height, centre))
    return np.stack(out).reshape(-1, 3)


@functools.cache
def _neighbours():
    """Each head vertex's neighbours, int (V, 8), filled up with itself."""
    edges = head().triangles[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    edges = np.unique(np.concatenate([edges, edges[:, ::-1]]), axis=0)
    first = np.searchsorted(edges[:, 0], edges[:, 0])
    place = np.arange(len(edges)) - first
    out = np.repeat(np.arange(len(head().vertices))[:, None], 8, 1)
    out[edges[place < 8, 0], place[place < 8]] = edges[place < 8, 1]
    return out


@functools.cache
def _mean_normals():
    """Unit normals of the mean head, (V, 3)."""
    mesh = head()
    a, b, c = (mesh.vertices[mesh.triangles[:, i]].astype(np.float64) for i in range(3))
    normals = np.zeros((len(mesh.vertices), 3))
    for i in range(3):
        np.add.at(normals, mesh.triangles[:, i], np.cross(b - a, c - a))
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)


@functools.lru_cache(maxsize=64)
def dress(person: Person, wear: Wear) -> Figure:
    """A person with hair, beard, clothes and what else they have on."""
    mesh, shared = head(), topology()
    count = len(mesh.vertices)
    skin = person.vertices.astype(np.float64)
    hair, beard, clothes = hair_field(person), beard_field(person), clothes_field(person)
    thickness = hair_thickness(person, hair)
    if wear.hat != "none":
        above = {"beanie": -50, "cap": -50, "brim": -48}[wear.hat]
        thickness = np.where(mesh.vertices[:, 1] < above + 0.25 * np.maximum(mesh.vertices[:, 2], 0),
                             np.minimum(thickness, 3), np.minimum(thickness, 22))  # fmt: skip
    skull_centre = np.array([0, -18.0, 14.0])
    outwards = skin - skull_centre
    outwards /= np.linalg.norm(outwards, axis=1, keepdims=True)
    haired = skin + outwards * thickness[:, None]

    normals = _mean_normals()
    drape = np.nonzero(clothes > 12)[0]  # cloth spans the hollows
    reach = np.linalg.norm(mesh.vertices[_neighbours()[drape]] - mesh.vertices[drape, None], axis=-1).max(1)
    for some, times in ((drape, 10), (drape[reach < 14], 60)):
        for _ in range(times):
            haired[some] = haired[_neighbours()[some]].mean(1)
    y = mesh.vertices[:, 1]
    grown = {"full": 5 + 14 * person.beard_length, "goatee": 4 + 8 * person.beard_length,
             "moustache": 3 + 3 * person.beard_length}.get(person.beard, 0)  # fmt: skip
    bulge = grown * _ramp(beard, -1, 9) * (0.55 + 0.45 * _ramp(y, 60, 95)) * (1 - mesh.masks["lips"])
    fabric = (3 + 7 * person.look[2]) * _ramp(clothes, -1, 5)
    haired = haired + normals * (bulge + fabric)[:, None]
    beard_down = np.array([0, 1.0, -0.25]) * (grown * 0.9 * _ramp(beard, 2, 12) * _ramp(y, 74, 100))[:, None]
    haired = haired + (beard_down if person.beard == "full" else 0)

    vertices = np.zeros((len(shared.part), 3))
    vertices[:count] = haired

    def put(name, points):
        vertices[shared.start[name] : shared.start[name] + len(points)] = points

    if person.hair_style in ("bob", "long"):
        put("curtain", _curtain(person, haired, thickness))
    if person.hair_style == "bun" and wear.hat == "none":
        put("bun", _bun(person, haired))
    if person.glasses != "none" or wear.sunglasses:
        rims, lenses = _glasses(person, skin, wear.sunglasses)
        put("glasses", rims)
        if wear.sunglasses:
            put("lenses", lenses)
    if wear.hat != "none":
        put("hat", _hat(person, wear.hat, haired))
    collar = "scarf" if wear.scarf else person.clothes
    if collar in ("scarf", "turtleneck", "shirt", "hood"):
        put("collar", _collar(person, skin, collar))
    fields = np.full((len(vertices), 3), -20, np.float32)
    fields[:count] = np.stack([hair, beard, clothes], 1)
    return Figure(vertices.astype(np.float32), fields)


def _turn(x_deg, y_deg, z_deg):
    """Rz Ry Rx, as for the head."""
    x, y, z = np.radians([x_deg, y_deg, z_deg])
    rx = np.array([[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]])
    ry = np.array([[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]])
    rz = np.array([[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]])
    return rz @ ry @ rx


def hold(vertices, person: Person, holding: str, side: int, rng) -> np.ndarray:
    """A copy of a figure's vertices with one hand (side 1 or -1), and what it holds, put before the head.

    Args:
      vertices: float32 (V, 3), of a Figure.
      holding: one of HOLDINGS.
      rng: numpy Generator for the small differences from time to time.
    """
    if holding == "none":
        return vertices
    mesh, shared = head(), topology()
    out = vertices.astype(np.float64)
    face = person.vertices
    mouth = face[mesh.masks["lips"] > 0.5].mean(0)
    chin = face[np.argmin(np.linalg.norm(mesh.vertices - [0, 98, -76], axis=1))]
    cheek = face[np.argmin(np.linalg.norm(mesh.vertices - [side * 50, 40, -60], axis=1))]
    brow = face[np.argmin(np.linalg.norm(mesh.vertices - [0, -45, -85], axis=1))]
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
    turn = _turn(*turn)
    points = mesh.hand[pose] * [side, 1, 1]  # a left hand is the right one mirrored

    def place(p):
        return p @ turn.T + wrist + j[3:6] * 5

    def put(name, p):
        out[shared.start[name] : shared.start[name] + len(p)] = p

    put("hand", place(points))
    rows, columns = SLEEVE
    around = np.linspace(0, 2 * np.pi, columns, endpoint=False)
    t = np.linspace(0, 1, rows)[:, None]
    radius = 27 + 20 * t
    arm = np.stack([radius * np.cos(around), 14 + 240 * t + 0 * around, radius * np.sin(around) + 40 * t * t], -1)
    put("sleeve", place(arm.reshape(-1, 3)))
    if holding in ("call", "phone"):
        corners = np.stack(np.meshgrid([-37, 37], [-75, 75], [-4.5, 4.5], indexing="ij"), -1).reshape(-1, 3)
        put("phone", place(corners + [0, -105, 26 if holding == "call" else 34]))
    if holding == "bottle":
        rows, columns = BOTTLE
        profile = np.array([[0, 10], [33, 10], [34, -60], [34, -110], [16, -150], [13, -178], [0, -178]])
        around = np.linspace(0, 2 * np.pi, columns, endpoint=False)
        ring = np.stack(
            [profile[:, :1] * np.cos(around), profile[:, 1:] + 0 * around, profile[:, :1] * np.sin(around)], -1
        )
        put("bottle", place(ring.reshape(-1, 3) + [0, -45, 48]))
    return out.astype(np.float32)
