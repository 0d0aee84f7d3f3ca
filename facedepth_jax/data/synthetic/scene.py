"""Draw the scene before the camera: a person's pose and face, light, room and things held; no pixels yet.

`frame_scene` draws one frame's parameters (NumPy, a function of the seed and the frame's numbers alone);
`camera_vertices` poses the figure in the camera's frame (JAX). picture.py takes it from there.

The head's rotation is that of the Biwi data set: R = Rz(roll) Ry(yaw) Rx(pitch) in the camera's frame (x right, y down,
z forward), and R = 1 is a head that looks into the camera along its axis. A point p of the head frame (identity.Head)
lies at R p + head_mm.
"""

import functools
import math
from collections import namedtuple
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from facedepth_jax.data.synthetic import light
from facedepth_jax.data.synthetic.accessories import HATS, HOLDINGS, PARTS, Wear, dress, hold, topology, turn_matrix
from facedepth_jax.data.synthetic.identity import ADULT, head, person

SEQUENCES = 5  # S1 yaw, S2 pitch, S3 roll, S4 and S5 free
LIMITS_DEG = np.array([75.0, 45.0, 40.0])  # yaw, pitch, roll
PIVOT_MM = np.array([0.0, 78.0, 34.0], np.float32)  # of the head's turn on the neck, head frame

# Expressions as sums of face units (MakeHuman community's ARKit-like set); "*" stands for Left and Right.
GESTURES = {
    "smile": {"mouthSmile*": 0.8, "cheekSquint*": 0.5, "eyeSquint*": 0.12},
    "laugh": {"mouthSmile*": 0.9, "cheekSquint*": 0.8, "jawOpen": 0.22, "mouthUpperUp*": 0.4, "eyeSquint*": 0.2},
    "talk": {"jawOpen": 0.22, "mouthFunnel": 0.3, "mouthLowerDown*": 0.3},
    "surprise": {"browInnerUp": 0.8, "browOuterUp*": 0.8, "eyeWide*": 0.7, "jawOpen": 0.3},
    "frown": {"browDown*": 0.9, "mouthFrown*": 0.6, "eyeSquint*": 0.12},
    "pucker": {"mouthPucker": 0.8, "browDown*": 0.2},
    "puff": {"cheekPuff": 0.8, "mouthPress*": 0.3},
    "sneer": {"noseSneer*": 0.8, "browDown*": 0.5, "mouthUpperUp*": 0.4},
    "press": {"mouthPress*": 0.8, "mouthRollLower": 0.4, "mouthDimple*": 0.4},
    "wry": {"mouthLeft": 0.6, "mouthSmileLeft": 0.4, "browOuterUpRight": 0.6},
    "doubt": {"mouthRight": 0.5, "mouthFrownRight": 0.4, "browOuterUpLeft": 0.7, "browDownRight": 0.5},
    "shrug": {"mouthShrugLower": 0.6, "mouthFrown*": 0.4, "browInnerUp": 0.4},
}


class Camera(NamedTuple):
    """A pinhole camera; pixel centres are whole numbers."""

    focal_px: np.ndarray  # float32 (2,)
    center_px: np.ndarray  # float32 (2,), the principal point


# How the head is painted, numbers: reflectances in 0..1 of skin, lips, hair, brows, iris; thickness and arch of the
# brows; strength of the skin's texture, of freckles, of lines, of make-up; curl of the hair; cover of hair and beard;
# infrared reflectance of skin and hair; gloss of the skin; 1 under a brim; a person's own part of the noise.
Paint = namedtuple("Paint", "skin lips hair brow iris brow_mm arch_mm texture freckles lines make_up curl hair_cover "
                            "beard_cover infrared hair_infrared gloss brimmed phase")  # fmt: skip
# The clothes: reflectance, pattern (0 plain, 1 and 2 stripes, 3 checks, 4 blots), its contrast towards a second
# reflectance.
Cloth = namedtuple("Cloth", "reflectance pattern period_mm contrast second")
# The wall: 1/z on the camera's axis and its slopes along the ray's x and y; reflectance and its slopes; 1 where the
# sensor sees it; strength of its texture; panels: frequency in the ray's units, contrast, 1 if they lie; 1 for a
# picture in place of all that.
Room = namedtuple("Room", "inverse_z slope_x slope_y reflectance gradient_x gradient_y seen texture panels "
                          "panel_contrast lying pictured")  # fmt: skip
# How gray was registered to depth: 1 if it is black wherever depth is missing; its shift right and down as a share of
# the largest one.
Registration = namedtuple("Registration", "masked right down")
Lens = namedtuple("Lens", "exposure gamma vignette noise blur offset")  # of the gray camera; offset is stray light


class Scene(NamedTuple):
    """One frame before any camera: NumPy arrays and numbers; a batch has a leading axis everywhere."""

    vertices: np.ndarray  # of the dressed figure with the things it holds, head frame (accessories.Figure)
    fields: np.ndarray
    units: np.ndarray  # float32 (E,), strength of each face unit, in the order of `unit_names()`
    gaze_deg: np.ndarray  # float32 (2,), of the eyes in the head, to the camera's right and down
    angles_deg: np.ndarray  # float32 (3,), yaw, pitch, roll of the head
    body_deg: np.ndarray  # the same of the shoulders
    head_mm: np.ndarray  # float32 (3,), head centre in the camera's frame
    lights: np.ndarray  # float32 (2, 4), two distant lights: unit vector towards each (camera frame), strength
    surroundings: np.ndarray  # float32 (16,), their light in spherical harmonics, head frame
    ambient: np.ndarray  # float32 (), mean radiance of the surroundings
    part_albedo: np.ndarray  # float32 (len(PARTS),), reflectance in gray and in the sensor's infrared
    part_infrared: np.ndarray
    paint: Paint
    cloth: Cloth
    room: Room
    lens: Lens
    registration: Registration
    # float32 (light.BACKDROP_PX,) * 2, radiance of a picture on the wall, and where its middle is (x, y of the ray).
    backdrop: np.ndarray
    backdrop_xy: np.ndarray
    boxes: np.ndarray  # float32 (6, 6), before the wall: left, right, top, bottom (as the ray's x, y), z in mm, gray
    numbers: np.ndarray  # int32 (4,), seed, subject, sequence, frame: they name the frame's random key


@functools.cache
def unit_names():
    """List the face units in use, in a fixed order."""
    names = {pattern.replace("*", side) for g in GESTURES.values() for pattern in g for side in ("Left", "Right")}
    return tuple(sorted(names | {"eyeBlinkLeft", "eyeBlinkRight"}))


def head_angles(rng, sequence: int, t):
    """Draw yaw, pitch, roll in degrees at times t in 0..1 of a sequence: float64 (3, len(t))."""

    def swing(amplitude, cycles, rest=1.6):
        s = np.sin(2 * np.pi * (cycles * t + rng.uniform(0, 1)))
        return amplitude * np.sign(s) * np.abs(s) ** rest  # slow around zero: a healthy share of frontal frames

    if sequence <= 3:
        angles = np.stack([rng.uniform(-2.5, 2.5) + swing(1.5, rng.uniform(0.5, 1.5), 1) for _ in range(3)])
        angles[sequence - 1] = swing(rng.uniform(0.55, 1) * LIMITS_DEG[sequence - 1], rng.uniform(0.9, 1.2))
    else:
        angles = np.stack([
            swing(a * f, rng.uniform(0.6, 1.4)) + swing(0.25 * a, rng.uniform(1.5, 2.5), 1)
            for a, f in zip(LIMITS_DEG, rng.uniform([0.35, 0.3, 0.25], [0.9, 0.8, 0.7]), strict=True)
        ])  # fmt: skip
    angles = angles + rng.normal(0, 0.4, angles.shape)
    return np.clip(angles, -LIMITS_DEG[:, None], LIMITS_DEG[:, None])


def _expression(rng, strength, t, lively):
    """Draw the strength of each face unit at one time t: two gestures that come and go."""
    units = dict.fromkeys(unit_names(), 0.0)
    for _ in range(2):
        gesture = GESTURES[str(rng.choice(list(GESTURES)))]
        phase, cycles = rng.uniform(0, 1), rng.uniform(0.5, 1.5)
        amount = strength * lively * max(0.0, math.sin(2 * math.pi * (cycles * t + phase)))
        for pattern, share in gesture.items():
            for name in {pattern.replace("*", "Left"), pattern.replace("*", "Right")}:
                units[name] += amount * share
    return units


def _direction(azimuth_deg, elevation_deg):
    """Return the unit vector towards a light: azimuth 0 is at the camera, positive to its right; elevation upwards."""
    a, e = math.radians(azimuth_deg), math.radians(elevation_deg)
    return [math.sin(a) * math.cos(e), -math.sin(e), -math.cos(a) * math.cos(e)]


def frame_scene(seed: int, subject: int, sequence: int, frame: int, frames_per_sequence: int) -> Scene:
    """Draw frame `frame` (0-based) of sequence 1..5 of a subject (1-based)."""
    who = person(seed, subject)
    always = np.random.default_rng([seed, 2, subject, sequence])  # the same for all frames of the sequence
    now = np.random.default_rng([seed, 3, subject, sequence, frame])
    times = np.arange(frames_per_sequence) / max(frames_per_sequence - 1, 1)
    t = float(times[frame])
    angles = head_angles(always, sequence, times)[:, frame]
    free = sequence > 3

    def part_of_time(share):
        return abs(t - always.uniform(0.1, 0.9)) < share

    wears = always.random(4) < [0.45, 0.4, 0.35, 0.7]
    hat, holding, side = str(always.choice(HATS[1:])), str(always.choice(HOLDINGS[1:])), int(always.choice([-1, 1]))
    hat_now, scarf_now, sun_now, hold_now = (part_of_time(s) for s in (0.5, 0.6, 0.5, 0.3))
    wear = Wear(
        hat=hat if free and wears[0] and hat_now else "none",
        scarf=bool(free and wears[1] and scarf_now),
        sunglasses=bool(free and wears[2] and sun_now),
    )
    figure = dress(who, wear)
    vertices = hold(figure.vertices, who, holding if free and wears[3] and hold_now else "none", side, now)

    units = _expression(always, who.expressive, t, 1.0 if free else 0.6)
    if now.random() < 0.04:
        units["eyeBlinkLeft"] = units["eyeBlinkRight"] = float(now.uniform(0.5, 1))

    # As in Pandora and RAP3DF, people sit in one place: a gray crop does not show how far away that is.
    distance = always.uniform(780, 980) + 25 * math.sin(6 * t + always.uniform(0, 6)) + now.normal(0, 4)
    beside = always.uniform(-1, 1, 2) * [0.16, 0.09]
    offset = beside * distance + now.normal(0, 4, 2)
    body = angles * [0.18, 0.06, 0.06] + always.normal(0, [6, 3, 2])

    # Real surroundings alone, with a lamp or two, or lamps alone.
    outdoors = np.random.default_rng([seed, 6, subject, sequence])
    kind = outdoors.choice(3, p=[0.35, 0.45, 0.2])
    ambient = outdoors.uniform(*[(0.7, 1.0), (0.25, 0.7), (0.1, 0.35)][kind])
    key, fill = outdoors.uniform(0.4, 1.1) * (kind > 0), outdoors.uniform(0.0, 0.4) * (kind == 2)
    lights = np.array([
        [*_direction(always.normal(0, 45), always.uniform(0, 65)), key],
        [*_direction(always.uniform(-110, 110), always.uniform(-15, 50)), fill],
    ])  # fmt: skip
    place = int(outdoors.integers(len(light.environments()[0])))
    to_camera = turn_matrix((outdoors.normal(0, 8), outdoors.uniform(0, 360), 0))
    surroundings = ambient * light.turned(light.environments()[0][place], to_camera)
    front = 0.9 * np.mean(
        [light.irradiance(surroundings, n) for n in ((0, 0, -1), (0.5, 0, -0.866), (-0.5, 0, -0.866))]
    )

    def gray(rng):
        return float(rng.choice([0.04, 0.1, 0.25, 0.45, 0.7]) * rng.uniform(0.8, 1.2))

    cloth_gray, hat_gray, scarf_gray = gray(always), gray(always), gray(always)
    garment = np.random.default_rng([seed, 4, subject])
    usual = gray(garment)
    cloth_gray = usual if always.random() < 0.7 else cloth_gray
    own = np.random.default_rng([seed, 5, subject])
    hair_infrared = own.uniform(0.04, 0.12) + 0.7 * who.hair  # dark hair gives the sensor little to see
    # Of RAP3DF's people half have masked files, and all frames of one are shifted alike.
    masked, way, far = own.random() < 0.5, own.uniform(0, 2 * math.pi), own.uniform(0.25, 1)
    registration = Registration(masked, far * math.cos(way), far * math.sin(way))
    albedo = {
        "left eye": 0.5, "right eye": 0.5, "upper teeth": 0.6, "lower teeth": 0.55,
        "curtain": who.hair, "bun": who.hair,
        "glasses": 0.03 + 0.3 * (who.look[0] > 0.75), "lenses": 0.025, "hat": hat_gray,
        "collar": scarf_gray if wear.scarf else cloth_gray * 1.08, "hand": who.skin * 0.98, "sleeve": cloth_gray,
        "phone": 0.04, "bottle": float(always.choice([0.08, 0.3, 0.6])),
    }  # fmt: skip
    infrared = {
        "curtain": hair_infrared, "bun": hair_infrared, "glasses": 0.25, "lenses": 0.04, "hat": 0.35 + 0.5 * hat_gray,
        "collar": 0.5, "phone": 0.1, "bottle": 0.3, "hand": 0.65,
    }  # fmt: skip
    shaved = 0.16 * own.random() if who.sex > 0.5 and who.age >= ADULT else 0.0
    beard_cover = {"none": shaved, "stubble": 0.35 + 0.3 * who.beard_length}.get(who.beard, 0.92)
    hair_cover = {"bald": 0.06, "cropped": 0.75 + 0.2 * who.hair_length,
                  "receding": 0.7 + 0.25 * who.hair_length}.get(who.hair_style, 0.97)  # fmt: skip
    paint = Paint(
        who.skin, who.lips, who.hair, who.brow, who.iris, who.brow_mm, who.brow_arch_mm, who.texture, who.freckles,
        max(0.15, 2 * who.age - 1), who.make_up, who.hair_curl,
        hair_cover, beard_cover, 0.5 + 0.45 * who.skin, hair_infrared, gloss=always.uniform(0.05, 0.3),
        brimmed=0.0 if wear.hat in ("none", "beanie") else 1.0, phase=subject * 0.618 % 1.0,
    )  # fmt: skip
    pattern = int(garment.choice(5, p=[0.45, 0.2, 0.12, 0.13, 0.1]))
    cloth = Cloth(cloth_gray, pattern, garment.uniform(9, 40), garment.uniform(0.3, 0.8), garment.uniform(0.4, 0.85))

    wall = always.uniform(1900, 2200)  # one laboratory, not many: a wall's distance cannot be seen in gray
    tilt = always.normal(0, 0.1, 2) / wall
    behind = outdoors.choice(["wall", "picture", "empty"], p=[0.3, 0.5, 0.2])
    room = Room(
        1 / wall, *tilt, always.uniform(0.12, 0.75), *always.normal(0, 0.35, 2), seen=always.random() < 0.8,
        texture=always.uniform(0, 0.06), panels=always.uniform(12, 90),
        panel_contrast=max(0.0, always.uniform(-0.4, 0.3)), lying=always.integers(2), pictured=behind == "picture",
    )  # fmt: skip
    if behind == "empty":
        blank = outdoors.choice([0.0, 0.02, 0.3, 0.9])
        room = room._replace(reflectance=blank, gradient_x=0, gradient_y=0, texture=0, panel_contrast=0)
    blur_px = outdoors.choice([0.0, outdoors.uniform(1, 12)])
    zoom = float(np.exp(outdoors.uniform(np.log(0.2), 0)))
    if behind == "picture":
        middle = tuple(beside.tolist())
        backdrop = ambient * light.backdrop(place, tuple(to_camera.ravel().tolist()), middle, zoom, float(blur_px))
    else:
        backdrop = np.zeros((light.BACKDROP_PX,) * 2)
    corner = always.uniform(-0.45, 0.25, (6, 2))
    size = always.uniform(0.02, 0.4, (6, 2)) * always.choice([[1, 1], [0.3, 2.5], [2.5, 0.3]], 6)
    z = always.uniform(wall - 500, wall, 6)
    size[:, 0] *= (always.random(6) < 0.55) & (behind == "wall")  # the others are not there
    low = offset / distance + corner
    x, y = np.stack([low, low + size], -1).swapaxes(0, 1)
    boxes = np.column_stack([x, y, z, always.uniform(0.03, 0.85, 6)])

    # An automatic exposure that aims at the skin, and misses.
    level = who.skin * (max(front, 0.3 * ambient) + 0.62 * key + 0.3 * fill)
    exposure = (0.38 * always.uniform(0.7, 1.35) * (0.45 + 1.1 * who.skin)) / level * now.uniform(0.97, 1.03)
    lens = Lens(
        exposure, gamma=always.uniform(1.7, 2.3), vignette=always.uniform(0, 0.25), noise=always.uniform(0.004, 0.016),
        blur=always.uniform(0.1, 0.8), offset=always.uniform(0, 0.025),
    )  # fmt: skip
    gaze = always.normal(0, 5, 2) + now.normal(0, 3, 2) + 0.3 * angles[[0, 1]] * [1, -1]

    def table(values, default):
        return np.array([values.get(p, default) for p in PARTS], np.float32)

    scene = Scene(
        vertices=vertices, fields=figure.fields, units=np.array([units[n] for n in unit_names()]),
        gaze_deg=np.clip(gaze, -22, 22), angles_deg=angles, body_deg=body, head_mm=np.array([*offset, distance]),
        lights=lights, surroundings=light.turned(surroundings, turn_matrix(angles[[1, 0, 2]]).T),
        ambient=ambient, part_albedo=table(albedo, who.skin), part_infrared=table(infrared, 0.6),
        paint=paint, cloth=cloth, room=room, lens=lens, registration=registration,
        backdrop=backdrop, backdrop_xy=beside, boxes=boxes, numbers=None,
    )  # fmt: skip
    scene = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), scene)
    return scene._replace(numbers=np.array([seed, subject, sequence, frame], np.int32))


def rotation_matrix(angles_deg):
    """Return Rz(roll) Ry(yaw) Rx(pitch), float32 (3, 3), of yaw, pitch, roll in degrees."""
    yaw, pitch, roll = jnp.deg2rad(angles_deg)
    (cy, sy), (cx, sx), (cz, sz) = ((jnp.cos(a), jnp.sin(a)) for a in (yaw, pitch, roll))
    return jnp.array([
        [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
        [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
        [-sy, cy * sx, cy * cx],
    ])  # fmt: skip


def _partial_turns(rotation, share):
    """Turn about a rotation's axis by `share` (V,) of its angle (Rodrigues): (V, 3, 3)."""
    sine_axis = 0.5 * jnp.array([rotation[k, j] - rotation[j, k] for j, k in ((1, 2), (2, 0), (0, 1))])
    sine = jnp.sqrt((sine_axis**2).sum() + 1e-12)
    angle = jnp.arctan2(sine, 0.5 * (jnp.trace(rotation) - 1)) * share
    x, y, z = sine_axis / sine
    k = jnp.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    s, c = jnp.sin(angle)[:, None, None], jnp.cos(angle)[:, None, None]
    return jnp.eye(3)[None] + s * k[None] + (1 - c) * (k @ k)[None]


def camera_vertices(scene: Scene):
    """Pose one scene's vertices in the camera's frame: float32 (V, 3), mm."""
    shared = topology()
    deltas = np.stack([head().targets[n] for n in unit_names()])
    moved = jnp.einsum("e,evi->vi", scene.units, deltas, precision="highest")
    vertices = scene.vertices.at[: len(moved)].add(moved)
    turned, body = rotation_matrix(scene.angles_deg), rotation_matrix(scene.body_deg)
    turns = body @ _partial_turns(body.T @ turned, jnp.asarray(shared.follow))
    turns = jnp.where((shared.follow >= 0.999)[:, None, None], turned[None], turns)
    # All turn about one pivot in the neck; then the figure is shifted so that the head centre is at head_mm.
    posed = jnp.einsum("vij,vj->vi", turns, vertices - PIVOT_MM[None], precision="highest")
    posed = posed + (turned @ PIVOT_MM)[None] + scene.head_mm[None]
    # Parts not worn lie at the head frame's origin. They go behind the camera, where nothing is seen.
    absent = (scene.vertices == 0).all(-1, keepdims=True)
    return jnp.where(absent, jnp.float32(-1.0), posed)
