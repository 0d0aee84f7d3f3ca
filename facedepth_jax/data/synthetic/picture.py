"""Make pictures of posed scenes: light, paint, the room behind, the gray camera and the depth sensor.

Everything is JAX and goes through `render_batch`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from facedepth_jax.data.synthetic import light, sensor
from facedepth_jax.data.synthetic.accessories import PARTS, ramp, topology
from facedepth_jax.data.synthetic.identity import head
from facedepth_jax.data.synthetic.render import interpolate, rasterize, vertex_normals
from facedepth_jax.data.synthetic.scene import Camera, Scene, camera_vertices, rotation_matrix

NOISE_CELLS = 32  # along each axis of the noise block: a power of two, and small enough for the cache
SKIN, EYES, CURTAIN, BUN, LENSES, HAT, COLLAR, SLEEVE, PHONE = (
    PARTS.index(p) for p in ("skin", "left eye", "curtain", "bun", "lenses", "hat", "collar", "sleeve", "phone")
)


@functools.cache
def _sky():
    """Return how much of its surroundings each vertex of the figure sees, (V, 16); accessories see nearly all."""
    shared, mesh = topology(), head()
    sky = np.zeros((len(shared.part), 16), np.float32)
    sky[:, 0] = 0.9 / 0.282095
    eyes = (shared.part == EYES) | (shared.part == EYES + 1)
    count = len(mesh.vertices)
    sky[:count] = mesh.sky * (1 - 0.75 * mesh.masks["inside_mouth"])[:, None]
    sky[eyes] = 0.7 * sky[-1]
    return sky


@functools.cache
def _noise():
    """Draw a periodic block of noise, float32 (n, n, n, 2), unit deviation: fine grain and soft blotches."""
    rng = np.random.default_rng(1821)
    n = NOISE_CELLS
    f = np.fft.fftfreq(n) * n
    r = np.sqrt(f[:, None, None] ** 2 + f[None, :, None] ** 2 + f[None, None, :] ** 2)
    out = []
    for blur in (0.7, 2.6):
        smooth = np.exp(-0.5 * (2 * np.pi * r * blur / n) ** 2)
        block = np.fft.ifftn(np.fft.fftn(rng.normal(size=(n, n, n))) * smooth).real
        out.append(block / block.std())
    return np.stack(out, -1).astype(np.float32)


def _grain(x, y, z, scale_mm, channel):
    """Look up noise at points, (H, W) per axis, in the nearest cell of `scale_mm` (one for each axis)."""
    # Axis by axis: XLA on CPU is slow where it fuses what is stacked.
    i, j, k = (
        jnp.floor(v / jnp.float32(scale)).astype(jnp.int32) & (NOISE_CELLS - 1)
        for v, scale in zip((x, y, z), scale_mm, strict=True)
    )
    return jnp.asarray(_noise()[..., channel]).reshape(-1)[(i * NOISE_CELLS + j) * NOISE_CELLS + k]


def _vertex_light(scene: Scene, normals, to_eye):
    """Light the vertices: diffuse light (V,) and gloss (V,)."""
    sky = _sky()
    turned = rotation_matrix(scene.angles_deg)

    # One harmonic after the other: XLA on CPU is slow where it fuses what is stacked.
    def combine(d, *weights):
        values = light.harmonics(*(d @ turned).T)  # in the head frame
        return [sum(v * w for v, w in zip(values, some, strict=False)) for some in weights]

    # The surroundings past the head itself: the product of light and visibility, then the cosine.
    arriving = jnp.einsum("jik,k->ji", light.products(), scene.surroundings) @ sky.T
    diffuse = jnp.maximum(combine(normals, arriving * np.float32(light.COSINE)[:, None])[0], 0.02)
    cosine = (normals * to_eye).sum(-1, keepdims=True)
    mirrored, open_ = combine(2 * cosine * normals - to_eye, scene.surroundings, sky.T)
    gloss = (0.4 + 2.5 * (1 - jnp.clip(cosine[:, 0], 0, 1)) ** 4) * jnp.maximum(mirrored, 0) * jnp.clip(open_, 0, 1)
    part = topology().part
    sharpness = np.where((part == EYES) | (part == EYES + 1), 60, 14)  # eyes are wet
    for k in range(2):
        towards, strength = scene.lights[k, :3], scene.lights[k, 3]
        seen = ramp(combine(towards, sky.T)[0], 0.2, 0.85)
        facing = normals @ towards
        diffuse += strength * seen * jnp.maximum((facing + 0.12) / 1.12, 0)  # light wraps a little: skin scatters
        half = towards[None] + to_eye
        half = half / jnp.linalg.norm(half, axis=-1, keepdims=True)
        gloss += strength * seen * (facing > 0) * jnp.maximum((normals * half).sum(-1), 0) ** sharpness
    return diffuse, gloss


def _textures(scene: Scene, at):
    """Return noise fixed to the person, six times (H, W): grain of skin and cloth, blotches, mottles, hairs, locks,
    folds.

    `at` is (H, W, 3), mm on the mean head.
    """
    curl, phase = scene.paint.curl, scene.paint.phase
    x, y, z = at[..., 0], at[..., 1], at[..., 2]
    behind = z - 10.0

    def grain(shift, scale_mm, channel):
        return _grain(x + shift, y + shift, z + shift, scale_mm, channel)

    # Hairs run down from the crown; curls have no direction.
    azimuth = x / (jnp.abs(x) + jnp.abs(behind) + 1e-3)  # of a square, not a circle: cheaper, and looks the same
    azimuth = jnp.where(behind > 0, 2 - azimuth, azimuth)
    hairs = _grain(azimuth * 100, y / 14 + phase * 48, 0 * y, (1.0,) * 3, 0)
    hairs += 0.6 * _grain(azimuth * 37, y / 40 + phase * 71, 0 * y, (1.0,) * 3, 0)  # and lie in strands
    folds = grain(31 * phase, (4.0, 9.0, 4.0), 1)
    locks = (1 - curl) * hairs + curl * 0.8 * grain(0.0, (2.2,) * 3, 0) + 0.3 * folds
    skin = (grain(48 * phase, (1.1,) * 3, 0), grain(97 * phase, (2.3,) * 3, 1), grain(61 * phase, (5.7,) * 3, 1))
    return *skin, hairs, locks, folds


def _lines(x, y, z, wobble):
    """Return the lines of a face, (H, W), 1 in their depth: forehead, beside the eyes, from the nose to the mouth."""
    aside, wave = jnp.abs(x), 0.8 * wobble

    def fold(distance, width_mm):
        return jnp.maximum(1 - (distance / width_mm) ** 2, 0)

    def folds(distance, apart_mm):
        turns = distance / apart_mm
        return fold(turns - jnp.round(turns), 0.25)

    brow = folds(y + wave + 0.004 * x * x, 9) * ramp(-y, 32, 38) * ramp(y, -72, -62) * ramp(52 - aside, 0, 12)
    feet = folds((y + 6 + wave) / (1 + 0.05 * (aside - 44)), 6)
    feet *= ramp(aside, 46, 50) * ramp(60 - aside, 0, 6) * ramp(13 - jnp.abs(y + 5), 0, 5)
    along = (y - 28) / 40  # from the wing of the nose to beside the mouth
    cheek = fold(aside - 18 - 15 * along + 4 * along * along + wave, 2.5)
    cheek *= ramp(along, -0.05, 0.1) * ramp(1.05 - along, 0, 0.3)
    bag = fold(y - 9 + 0.008 * (aside - 29) ** 2 + wave, 2.2) * ramp(14 - jnp.abs(aside - 30), 0, 5)
    frown = fold(aside - 5.5 + 0.1 * (y + 22), 1.8) * ramp(10 - jnp.abs(y + 24), 0, 5)
    return (0.6 * brow + 0.6 * feet + cheek + 0.5 * bag + 0.5 * frown) * (z < -20)


def _paint(scene: Scene, part, values, textures):
    """Paint the figure: gray radiance and infrared reflectance (H, W); `part` (H, W), `values` (H, W, 10) as in
    `_attributes`."""
    x, y, z, on_scalp, on_jaw, on_chest, lips, diffuse, gloss, _ = (values[..., i] for i in range(10))
    fine, blotch, mottle, hairs, strand, folds = textures
    (skin, lip, hair, brow, iris, brow_mm, arch_mm, texture, freckles, lines, make_up, curl, hair_cover, beard_cover,
     infrared, hair_infrared, shine, brimmed, _) = scene.paint  # fmt: skip
    aside = jnp.abs(x)
    uneven = 0.035 * fine + 0.05 * blotch + 0.05 * mottle - 0.25 * ramp(fine * blotch, 3.2, 4.2)
    freckled = freckles * jnp.maximum(1 - (aside / 70) ** 2 - ((y - 14) / 40) ** 2, 0) * (z < -20)
    albedo = skin * (1 + texture * uneven - 0.3 * freckled * ramp(fine + 0.5 * blotch, 0.9, 1.9))
    albedo *= 1 - 0.28 * jnp.clip(lines * _lines(x, y, z, blotch), 0, 1)
    red = ramp(jnp.exp(-(((aside - 36) / 18) ** 2) - ((y - 24) / 16) ** 2) * (z < -30), 0.2, 1.0)
    albedo *= 1 - 0.07 * red
    under_eye = jnp.exp(-(((aside - 29) / 12) ** 2) - ((y - 7) / 5) ** 2) * (z < -40)
    albedo *= 1 - 0.16 * texture * under_eye
    lid = (y + 10.5 + 0.012 * (aside - 29) ** 2 * 0.4) / 1.8
    at_eye = jnp.exp(-(((aside - 29) / 12.5) ** 4)) * (z < -60)
    albedo *= 1 - (0.55 + 0.3 * make_up) * at_eye * jnp.exp(-(lid**2))
    albedo *= 1 - 0.4 * make_up * at_eye * jnp.maximum(1 - ((y + 13) / 6) ** 2, 0)
    on_lip = ramp(lips, 0.3, 0.7)
    albedo += on_lip * (lip * (1 - 0.35 * make_up) * (1 + 0.06 * fine + 0.05 * blotch) - albedo)
    albedo *= 1 - 0.75 * ramp(-lips, 0.2, 0.6)  # the inside of the mouth, stored as -1

    t = (aside - 10.0) / 41.0
    along_brow = jnp.clip(t, 0, 1)
    middle = -20.5 - arch_mm * jnp.sin(jnp.pi * along_brow * jnp.sqrt(along_brow)) + 3.5 * t * t
    width = 0.5 * brow_mm * (1 - 0.72 * along_brow**2) * ramp(t, -0.08, 0.12)
    on_brow = ramp(width - jnp.abs(y - middle) + 0.7 * fine, -1.3, 1.6) * ramp(1.05 - t, 0, 0.1) * (z < -35)
    albedo += 0.82 * on_brow * (brow * (1 + 0.25 * fine) - albedo)

    on_beard = beard_cover * ramp(on_jaw + 2.5 * fine + 2 * blotch + 2 * mottle, -3.5, 5) * (1 - on_lip)
    on_beard *= 1 - 0.3 * (beard_cover < 0.7) * ramp(fine, -0.5, 1.5)  # stubble is dots
    on_hair = hair_cover * ramp(on_scalp + 3.0 * hairs, -4, 5)
    locks = jnp.maximum(1 + 0.32 * strand, 0.25)
    tone = hair * locks
    albedo += on_beard * (tone * 0.95 - albedo)
    albedo += on_hair * (tone - albedo)

    is_skin = part == SKIN
    is_cloth = is_skin * ramp(on_chest, -0.8, 0.8)
    cloth, pattern, period, contrast, shade = scene.cloth

    def wave(v):
        return jnp.sign(jnp.sin(2 * jnp.pi * v / period))

    ornaments = [wave(y), wave(x), 0.5 * (wave(y) + wave(x)), jnp.clip(0.8 * blotch, -1, 1)]
    ornament = jnp.select([pattern == i for i in (1, 2, 3, 4)], ornaments, 0.0)
    woven = cloth * (1 + 0.05 * fine) + contrast * (shade - cloth) * (0.5 + 0.5 * ornament) * (pattern > 0)
    albedo += is_cloth * (woven * (1 + 0.13 * folds) - albedo)

    # The eyeball: `at` is relative to its centre and looks along -z.
    from_axis = jnp.hypot(x, y)
    eyeball = (0.4 + 0.4 * skin) * (1 - 0.3 * ramp(-y, 2, 6)) * (1 - 0.3 * ramp(from_axis, 7, 13))
    iris_tone = iris * (1 + 0.3 * fine)
    tones = [jnp.full_like(x, 0.015), iris_tone, 0.5 * iris_tone]
    eye = jnp.select([from_axis < limit for limit in (2.6, 6.2, 7.0)], tones, eyeball)
    is_eye = (part == EYES) | (part == EYES + 1)
    hair_part = (part == CURTAIN) | (part == BUN)
    knit = (part == HAT) | (part == COLLAR) | (part == SLEEVE)
    woolly = jnp.where(knit, 1 + 0.07 * fine + 0.1 * folds, 1 + 0.03 * fine)
    other = jnp.asarray(scene.part_albedo)[part] * jnp.where(hair_part, locks, woolly)
    albedo = jnp.where(is_skin, albedo, jnp.where(is_eye, eye, other))

    # A brim's shadow on brow and eyes.
    shadow = 1 - 0.45 * brimmed * (part <= EYES + 1) * ramp(-y, -8, 40) * (z < 20)
    streaks = jnp.clip(0.55 + 0.5 * strand, 0.1, 1.6)  # hair shines in strands
    hairy = jnp.where(is_skin, jnp.maximum(on_hair, on_beard), hair_part * 1.0)
    dull = jnp.select([is_eye, is_skin, hair_part, part == LENSES, part >= PHONE],
                      [0.5, shine * (1 + hairy * (streaks - 1)) * (1 - is_cloth), shine * streaks, 0.35, 0.25],
                      0.03)  # fmt: skip
    radiance = shadow * (albedo * diffuse + 0.35 * dull * gloss)
    reflectance = jnp.where(is_skin, infrared, jnp.asarray(scene.part_infrared)[part])
    reflectance += is_skin * (hairy * (hair_infrared - infrared) + is_cloth * (0.3 + 0.5 * cloth - infrared))
    reflectance *= 1 + 0.35 * hairy * strand
    return jnp.maximum(radiance, 0.0), reflectance


def _rays(camera: Camera, size_px):
    """Return x and y, (H, W) each, of the ray (x, y, 1) through each pixel."""
    x, y = jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in size_px[::-1]))
    return (x - camera.center_px[0]) / camera.focal_px[0], (y - camera.center_px[1]) / camera.focal_px[1]


def _room(scene: Scene, x, y):
    """Draw the room behind the person: depth in mm (0 = too far) and gray radiance, (H, W) each; x, y as in `_rays`."""
    inverse_z, slope_x, slope_y, albedo, gradient_x, gradient_y, seen, texture, panels, contrast, lying, pictured = (
        scene.room
    )
    depth = 1 / jnp.maximum(inverse_z + slope_x * x + slope_y * y, 1e-4)
    tone = albedo * jnp.clip(1 + gradient_x * x + gradient_y * y, 0.3, 1.7)
    tone *= 1 - contrast * (jnp.sin(panels * jnp.where(lying > 0, y, x)) > 0.6)
    dimming = 1 + 0.4 * gradient_y * y
    for k in range(scene.boxes.shape[0]):
        left, right, top, bottom, z, gray = scene.boxes[k]
        on = (x > left) & (x < right) & (y > top) & (y < bottom) & (z < depth)
        depth, tone = jnp.where(on, z, depth), jnp.where(on, gray * dimming, tone)
    tone = tone * (1 + texture * _grain(x * 160, y * 160, 0 * x, (1.0, 1.0, 1.0), 1))
    size, lamps = light.BACKDROP_PX, 0.35 * scene.lights[:, 3].sum()

    def place(v, middle):  # beyond its border, a picture is mirrored
        at = jnp.round(((v - middle) / light.BACKDROP_REACH + 1) * (0.5 * (size - 1))).astype(jnp.int32) % (2 * size)
        return jnp.minimum(at, 2 * size - 1 - at)

    picture = scene.backdrop.ravel()[place(y, scene.backdrop_xy[1]) * size + place(x, scene.backdrop_xy[0])]
    radiance = jnp.where(pictured > 0, picture, tone * (scene.ambient + lamps))
    return jnp.where((seen > 0) & (depth < 4500), depth, 0.0), radiance


def _attributes(scene: Scene, vertices):
    """Compute the values to interpolate, float32 (V, 10): place on the mean head (3), fields (3), lips, diffuse light,
    gloss, cosine of incidence."""
    shared, mesh = topology(), head()
    normals = vertex_normals(vertices, shared.triangles)
    to_eye = -vertices / jnp.maximum(jnp.linalg.norm(vertices, axis=-1, keepdims=True), 1.0)
    cosine = (normals * to_eye).sum(-1)
    # Sheets (hair, brims, collars) are seen from both sides.
    sheet = shared.part >= CURTAIN
    normals = jnp.where((sheet & (cosine < 0))[:, None], -normals, normals)
    diffuse, gloss = _vertex_light(scene, normals, to_eye)
    count = len(mesh.vertices)
    rest = jnp.concatenate([jnp.asarray(mesh.vertices), scene.vertices[count:]])
    gaze = rotation_matrix(jnp.stack([-scene.gaze_deg[0], scene.gaze_deg[1], jnp.float32(0)]))
    for k in (EYES, EYES + 1):  # the eyeballs: about their centre, looking along -z
        ball = np.nonzero(mesh.part == k)[0]
        centre = mesh.vertices[ball].mean(0)
        rest = rest.at[ball].set((mesh.vertices[ball] - centre) @ gaze)
    lips = np.zeros(len(shared.part), np.float32)
    lips[:count] = mesh.masks["lips"] - mesh.masks["inside_mouth"]
    columns = [rest, scene.fields, lips[:, None], diffuse[:, None], gloss[:, None], jnp.abs(cosine)[:, None]]
    return jnp.concatenate(columns, axis=1)


def _develop(lens, radiance, key):
    """Turn radiance into gray uint8: exposure, lens, noise, gamma."""
    exposure, gamma, vignette, noise, blur, offset = lens
    height, width = radiance.shape
    y, x = jnp.linspace(-1, 1, height)[:, None], jnp.linspace(-1, 1, width)[None]
    light = radiance * exposure * (1 - vignette * 0.5 * (x * x + y * y)) + offset
    side = 0.25 * blur
    padded = jnp.pad(light, ((1, 1), (0, 0)), mode="edge")
    light = (1 - 2 * side) * light + side * (padded[:-2] + padded[2:])
    padded = jnp.pad(light, ((0, 0), (1, 1)), mode="edge")
    light = (1 - 2 * side) * light + side * (padded[:, :-2] + padded[:, 2:])
    light = light + noise * jnp.sqrt(jnp.maximum(light, 0) + 0.02) * jax.random.normal(key, light.shape)
    value = jnp.clip(light, 0, 1) ** (1 / gamma)
    return jnp.round(value * 255).astype(jnp.uint8)


def fragment_capacity(focal_px: float, size_px: tuple[int, int]) -> int:
    """Return the room that nearly all frames need in the rasteriser: a figure fills the picture, or is all in it."""
    return 16_000 + int(min(3.5 * size_px[0] * size_px[1], 0.42 * focal_px**2))


def cast(scene: Scene, camera: Camera, vertices, size_px: tuple[int, int], capacity: int):
    """Find one posed scene's first hits (render.Raster), without the room; `capacity` is from `fragment_capacity`."""
    return rasterize(vertices, topology().triangles, camera.focal_px, camera.center_px, *size_px, capacity)


@functools.partial(jax.jit, static_argnames=("size_px", "sensor_name", "capacity"))
def render_batch(scenes: Scene, cameras: Camera, shift_px, size_px: tuple[int, int], sensor_name: str, capacity: int):
    """Render a batch of scenes, each through its own camera; `shift_px` is the largest misregistration.

    Returns gray uint8 (B, H, W), depth uint16 (B, H, W) in mm with 0 = none, and bool (B,): `capacity` was too small.
    """

    # One picture after the other, and a loop for each stage: XLA does not fuse across loops, and if it fused these
    # stages it would compute them several times over. A picture cannot depend on its neighbours in the batch.
    def stage(function, *batch):
        return jax.lax.map(lambda item: function(*item), batch)

    def key(scene, purpose):
        seed, *numbers = scene.numbers
        out = jax.random.key(seed)
        for number in (*numbers, purpose):
            out = jax.random.fold_in(out, number)
        return out

    shared = topology()
    vertices = stage(camera_vertices, scenes)
    raster = stage(lambda s, c, v: cast(s, c, v, size_px, capacity), scenes, cameras, vertices)
    values = stage(lambda r, t: interpolate(r, shared.triangles, t), raster, stage(_attributes, scenes, vertices))
    hit = raster.triangle >= 0
    part = jnp.asarray(shared.part[shared.triangles[:, 0]])[jnp.maximum(raster.triangle, 0)]
    textures = stage(lambda s, v: _textures(s, v[..., :3]), scenes, values)
    radiance, reflectance = stage(_paint, scenes, part, values, textures)
    room_depth, room_radiance = stage(_room, scenes, *stage(lambda c: _rays(c, size_px), cameras))
    radiance = jnp.where(hit, radiance, room_radiance)
    depth = jnp.where(hit, raster.depth_mm, room_depth)
    cosine = jnp.where(hit, jnp.clip(values[..., 9], 0.03, 1), 0.95)
    reflectance = jnp.where(hit, jnp.clip(reflectance, 0.01, 1), 0.5)
    gray = stage(lambda s, r: _develop(s.lens, r, key(s, 0)), scenes, radiance)
    if sensor_name == "none":
        return gray, jnp.round(depth).astype(jnp.uint16), raster.overflow
    draw, measure = sensor.KINECTS[sensor_name]
    noise = stage(lambda s: draw(key(s, 1), size_px), scenes)
    measured = stage(measure, noise, depth, cosine, reflectance)

    def register(scene, camera, gray, depth_mm):
        masked, right, down = scene.registration
        shift = jnp.round(shift_px * jnp.stack([right, down])).astype(jnp.int32)
        return sensor.registered(gray, depth_mm, camera.focal_px[0], sensor.COLOUR_MM[sensor_name], shift, masked)

    return stage(register, scenes, cameras, gray, measured), measured, raster.overflow
