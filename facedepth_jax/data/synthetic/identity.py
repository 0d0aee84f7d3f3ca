"""Draw people: a seeded person's neutral head (MakeHuman's shape targets, CC0) and looks.

A person is a function of (seed, number) alone. NumPy on the host, computed once per person.
"""

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np

ADULT = 0.47  # the least age of a grown person
RACES, SEXES = ("african", "asian", "caucasian"), ("female", "male")
HAIR_STYLES = ("bald", "cropped", "short", "side part", "receding", "bob", "long", "bun", "afro", "quiff", "fringe")
BEARD_STYLES = ("none", "stubble", "moustache", "goatee", "full")
GLASSES = ("none", "round", "square", "aviator")
CLOTHES = ("crew neck", "V neck", "shirt", "turtleneck", "hood")

# Probabilities of HAIR_STYLES.
MALE_HAIR = (0.09, 0.17, 0.22, 0.14, 0.1, 0.02, 0.05, 0.02, 0.06, 0.1, 0.03)
FEMALE_HAIR = (0.01, 0.03, 0.08, 0.07, 0.0, 0.24, 0.27, 0.15, 0.05, 0.02, 0.08)

# The ends of one axis, by the suffixes of MakeHuman's names: at -1 and at +1.
OPPOSITES = {"decr": "incr", "down": "up", "in": "out", "backward": "forward", "concave": "convex",
             "compress": "uncompress", "l": "r"}  # fmt: skip
# Standard deviation of an axis's coefficient, by the longest matching prefix; +-1 is MakeHuman's own limit.
SPREAD = {
    "": 0.3, "head-scale": 0.22, "head-scale-vert": 0.12, "head-angle": 0.12, "head-back": 0.2, "head-fat": 0.3,
    "neck": 0.16, "neck-scale-vert": 0.1, "neck-trans": 0.1, "neck-double": 0.3, "measure": 0.22,
    "measure-neck-height": 0.1, "torso": 0.16, "ear": 0.28, "ear-wing": 0.22, "ear-trans": 0.18, "eye": 0.28,
    "eye-scale": 0.22, "eye-trans": 0.22, "eye-bag": 0.35, "eye-height": 0.13, "eye-eyefold": 0.2, "eye-push": 0.25,
    "nose": 0.34,
    "nose-trans": 0.2, "nose-base": 0.28, "nose-compression": 0.2, "mouth": 0.3, "mouth-trans": 0.2,
    "mouth-angles": 0.2, "mouth-laugh": 0.3, "mouth-dimples": 0.2, "chin": 0.33, "chin-jaw-drop": 0.22,
    "chin-cleft": 0.2, "cheek": 0.34, "forehead": 0.24, "forehead-scale-vert": 0.12, "forehead-nubian": 0.2,
    "eyebrows": 0.3, "asym": 0.1, "asym-top": 0.06, "asym-temple": 0.06,
}  # fmt: skip
# Vertices of the head, the left one of two, and the mean adult's distances in mm with their play: apart, or in
# front of or below the outer eye corners. From RAP3DF's faces (62 people before a Kinect v2) and anthropometry;
# MakeHuman's own adult is a tenth smaller and a third flatter.
LANDMARKS = {"outer eye": 4195, "inner eye": 5533, "mouth": 3689, "nose tip": 2479, "nasion": 133, "chin": 2721,
             "hairline": 2148}  # fmt: skip
DISTANCES_MM = {
    "outer eyes": (90, 3), "inner eyes": (34, 2), "pupils": (63, 2), "face height": (165, 6), "mouth": (51, 3),
    "nose tip": (42, 4), "nasion": (23, 4), "chin": (15, 6), "mouth below eyes": (67, 3), "chin below eyes": (115, 4),
}  # fmt: skip
# Adults' mean coefficient of an axis towards one of its ends, where it is not 0: by tools/fit_proportions.py.
MEANS = {
    "head-angle-out": 0.07, "head-scale-horiz-incr": 0.06, "forehead-trans-forward": 0.1, "eye-push1-out": 0.28,
    "eye-push2-out": 0.23, "eye-scale-incr": 0.25, "eye-trans-out": 0.47, "nose-scale-depth-decr": 0.1,
    "nose-scale-depth-incr": 0.45, "nose-trans-forward": 0.4, "mouth-lowerlip-width-incr": 0.07,
    "mouth-scale-horiz-incr": 0.35, "mouth-trans-down": 0.1, "mouth-upperlip-width-incr": 0.31,
    "chin-height-incr": 0.54, "chin-prognathism-incr": 0.27, "chin-prominent-incr": 0.46, "cheek-bones-incr": 0.61,
    "cheek-volume-incr": 0.22,
}  # fmt: skip
HEAD_OUTLINES = ("diamond", "invertedtriangular", "oval", "rectangular", "round", "square", "triangular")
EAR_OUTLINES = ("round", "square", "triangle")


class Head(NamedTuple):
    """MakeHuman's head, as tools/build_head.py wrote it, in millimetres.

    The head frame is that of a camera which the person looks at (x to its right, y down, z away from it), its origin in
    the middle of the head between the eyes.
    """

    vertices: np.ndarray  # float32 (V, 3), the mean adult
    triangles: np.ndarray  # int32 (T, 3)
    part: np.ndarray  # uint8 (V,): 0 skin, 1 left eye, 2 right eye, 3 upper teeth, 4 lower teeth
    masks: dict  # {name: float32 (V,)} in 0..1: lips, inside_mouth, eyelids, ears
    follow: np.ndarray  # float32 (V,), share of the head's turn: 1 the head, 0 the body
    sky: np.ndarray  # float32 (V, 16), how much of its surroundings a vertex sees, in spherical harmonics
    targets: dict  # {name: float32 (V, 3)}, displacements of a whole unit
    hand: np.ndarray  # float32 (P, W, 3), a right hand in P poses, wrist at 0, fingers along -y, palm facing +z
    hand_triangles: np.ndarray  # int32 (U, 3)


@functools.cache
def head() -> Head:
    """Read the head, which lies next to this file."""
    with np.load(Path(__file__).with_name("head.npz"), allow_pickle=False) as f:
        f = dict(f)
    deltas = np.cumsum(f["targets"], axis=2, dtype=np.int16)  # stored as differences from vertex to vertex
    deltas = np.ascontiguousarray(deltas.transpose(0, 2, 1)).astype(np.float32) * f["step_mm"]
    return Head(
        f["vertices"],
        f["triangles"].astype(np.int32),
        f["part"],
        {str(n): m.astype(np.float32) / 255 for n, m in zip(f["mask_names"], f["masks"].T, strict=True)},
        f["follow"].astype(np.float32) / 255,
        f["sky"].astype(np.float32) * (4 / 127),
        {str(n): d for n, d in zip(f["target_names"], deltas, strict=True)},
        f["hand"],
        f["hand_triangles"].astype(np.int32),
    )


def distances_mm(vertices) -> dict[str, float]:
    """Measure the distances of DISTANCES_MM on a neutral head's vertices (V, 3)."""
    part, at = head().part, {name: vertices[vertex] for name, vertex in LANDMARKS.items()}

    def ahead(name):
        return float(at["outer eye"][2] - at[name][2])

    return {
        "outer eyes": 2 * float(at["outer eye"][0]),
        "inner eyes": 2 * float(at["inner eye"][0]),
        "pupils": float(vertices[part == 1, 0].mean() - vertices[part == 2, 0].mean()),
        "face height": float(at["chin"][1] - at["hairline"][1]),
        "mouth": 2 * float(at["mouth"][0]),
        "nose tip": ahead("nose tip"),
        "nasion": ahead("nasion"),
        "chin": ahead("chin"),
        "mouth below eyes": float(at["mouth"][1] - at["outer eye"][1]),
        "chin below eyes": float(at["chin"][1] - at["outer eye"][1]),
    }


@functools.cache
def shape_axes():
    """List the detail axes: [(spread, [(target at -1, target at +1), ...])], left and right sides in one axis."""
    targets, axes = head().targets, {}
    for name in targets:
        stem, _, end = name.rpartition("-")
        high = f"{stem}-{OPPOSITES.get(end)}"
        if name.split("-")[0] not in (*RACES, "minweight", "maxweight", "maxmuscle") and high in targets:
            axes.setdefault(sideless(stem), []).append((name, high))
    return [(SPREAD[max(filter(stem.startswith, SPREAD), key=len)], pairs) for stem, pairs in axes.items()]


@dataclasses.dataclass(frozen=True, eq=False)
class Person:
    """The neutral head and looks of one person."""

    sex: float  # 0 female .. 1 male
    age: float  # 0 child, 0.5 young adult, 1 old
    vertices: np.ndarray  # float32 (V, 3), the neutral head, mm
    skin: float  # diffuse reflectance in 0..1 (gray), like the next four
    lips: float
    hair: float
    brow: float
    iris: float
    brow_mm: float  # thickness
    brow_arch_mm: float  # height
    texture: float  # strength of moles and blotches, 0..1
    freckles: float  # 0..1
    make_up: float  # of lips, lids and lashes, 0..1
    hair_style: str  # one of HAIR_STYLES
    hair_length: float  # 0..1 within the style
    hair_curl: float  # 0..1
    beard: str  # one of BEARD_STYLES
    beard_length: float
    glasses: str  # one of GLASSES
    glasses_mm: float  # thickness of the frame
    glasses_size: float  # around 1
    clothes: str  # one of CLOTHES
    expressive: float  # how strong expressions get, around 1
    look: np.ndarray  # float32 (8,), uniform numbers that decide further details (parting, hairline, hats, ...)


def sideless(target: str) -> str:
    """Return the name of a target without its side, l- or r-."""
    return target.removeprefix("l-").removeprefix("r-")


def _shape(rng, races, sex, age, weight, muscle):
    """Draw neutral vertices: macros (race, sex, age, weight) plus detail axes, outlines and asymmetry."""
    mesh = head()
    out = mesh.vertices.copy()

    def add(target, amount):
        if target in mesh.targets and amount:
            out[:] += np.float32(amount) * mesh.targets[target]

    ages = {"child": max(0.0, 1 - 2 * age), "young": 1 - abs(2 * age - 1), "old": max(0.0, 2 * age - 1)}
    for s, sex_share in (("female", 1 - sex), ("male", sex)):
        for a, age_share in ages.items():
            for r, race_share in zip(RACES, races, strict=True):
                add(f"{r}-{s}-{a}", sex_share * age_share * race_share)
            add(f"minweight-{s}-{a}", sex_share * age_share * max(0.0, -weight))
            add(f"maxweight-{s}-{a}", sex_share * age_share * max(0.0, weight))
            add(f"maxmuscle-{s}-{a}", sex_share * age_share * muscle)
    # Some people are further from the mean than others in everything.
    strength = rng.uniform(0.8, 1.15)
    for spread, pairs in shape_axes():
        both = np.clip(0.8 * rng.standard_t(5) * spread * strength, -0.9, 0.9)
        for low, high in pairs:
            amount = np.clip(both + (rng.normal(0, 0.2 * spread) if len(pairs) > 1 else 0), -1, 1)
            amount += (1 - ages["child"]) * (MEANS.get(sideless(high), 0) - MEANS.get(sideless(low), 0))
            add(high if amount > 0 else low, abs(amount))
    for outlines, prefixes in ((HEAD_OUTLINES, ("head-",)), (EAR_OUTLINES, ("l-ear-shape-", "r-ear-shape-"))):
        shares = rng.dirichlet(np.full(len(outlines), 0.5)) * rng.uniform(0.1, 0.5)
        for outline, share in zip(outlines, shares, strict=True):
            for prefix in prefixes:
                add(prefix + outline, share)
    eyes = (mesh.part == 1) | (mesh.part == 2)
    out -= (out[eyes].mean(0) - mesh.vertices[eyes].mean(0)).astype(np.float32)
    size = np.float32(np.exp(rng.normal(-0.012 + 0.024 * sex, 0.022)))
    return (out * size).astype(np.float32)


@functools.lru_cache(maxsize=64)
def person(seed: int, number: int) -> Person:
    """Draw person `number` (1-based) of the data set with this seed."""
    rng = np.random.default_rng([seed, 1, number])
    races = rng.dirichlet([0.35, 0.4, 0.5])
    sex = float(np.clip(rng.beta(0.25, 0.25), 0.03, 0.97))
    male = sex > 0.5
    age = float(rng.choice([rng.uniform(0.36, 0.47), 0.5 + 0.42 * rng.beta(0.8, 1.5)], p=[0.07, 0.93]))
    grown = age >= ADULT
    weight = float(np.clip(rng.normal(0.05, 0.5), -0.9, 1))
    muscle = float(sex * rng.beta(1.2, 2))
    vertices = _shape(rng, races, sex, age, weight, muscle)

    # Near infrared and gray: skin differs less between people than in visible colour pictures.
    skin = float(np.clip(races @ [0.21, 0.5, 0.56] + rng.normal(0, 0.055), 0.13, 0.68))
    gray_haired = float(np.clip((age - 0.62) * 3.2 + rng.normal(0, 0.2), 0, 1))
    natural = rng.choice([0.05, 0.09, 0.2, 0.38], p=[0.3, 0.3, 0.25, 0.15]) * (1 - 0.6 * (races[0] + races[1]))
    natural = float(np.clip(natural, 0.03, 0.4))
    hair = natural * (1 - gray_haired) + 0.6 * gray_haired
    chances = np.array(MALE_HAIR if male else FEMALE_HAIR)
    if not grown:
        chances[[0, 4]] = 0
    chances[8] *= 0.3 + 3 * races[0]
    style = str(rng.choice(HAIR_STYLES, p=chances / chances.sum()))
    beard = str(rng.choice(BEARD_STYLES, p=[0.42, 0.2, 0.09, 0.12, 0.17])) if male and grown else "none"
    surface = np.random.default_rng([seed, 7, number])
    return Person(
        freckles=float(surface.uniform(0.3, 1) * (surface.random() < 0.5 * skin)),
        make_up=float(surface.uniform(0.2, 1) * (surface.random() < 0.5) * (not male and grown)),
        sex=sex, age=age, vertices=vertices, skin=skin, hair=hair, hair_style=style, beard=beard,
        lips=skin * float(rng.uniform(0.72, 0.92) if male else rng.uniform(0.62, 0.85)),
        brow=float(np.clip(hair * 0.75, 0.03, 0.5 * skin)),
        iris=float(rng.choice([0.06, 0.12, 0.28], p=[0.55, 0.25, 0.2])),
        brow_mm=float(rng.uniform(5.5, 11) if male else rng.uniform(3.2, 7.5)),
        brow_arch_mm=float(rng.uniform(0.5, 4) if male else rng.uniform(2, 6)),
        texture=float(rng.uniform(0.15, 1) * (0.5 + age)),
        hair_length=float(rng.uniform(0, 1)),
        hair_curl=float(np.clip(rng.beta(0.6, 1) * 0.8 + 0.5 * races[0], 0, 1)),
        beard_length=float(rng.beta(1.1, 1.8)),
        glasses=str(rng.choice(GLASSES, p=[0.7, 0.1, 0.14, 0.06])),
        glasses_mm=float(rng.uniform(1.6, 4.6)),
        glasses_size=float(rng.uniform(0.88, 1.12)),
        clothes=str(rng.choice(CLOTHES, p=[0.4, 0.2, 0.2, 0.08, 0.12])),
        expressive=float(rng.uniform(0.6, 1.25)),
        look=rng.random(8).astype(np.float32),
    )  # fmt: skip
