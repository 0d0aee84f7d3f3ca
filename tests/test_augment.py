"""augment.py: geometry, background, light and camera against OpenCV, Pillow and plain NumPy; the draws; the bits."""

import io
import os
import pathlib
import subprocess
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small import lines, people_config, weights, write_arrays

from facedepth_jax import augment as augmentation
from facedepth_jax import config as configs
from facedepth_jax import train
from facedepth_jax.augment import augment
from facedepth_jax.data import arrays
from facedepth_jax.depth_code import true_foreground

ROOT = pathlib.Path(__file__).parents[1]
SIZE = 96
MIDDLE = (SIZE - 1) / 2
D = np.float32(900)
Y, X = np.mgrid[:SIZE, :SIZE].astype(np.float32)
# angle in degrees, scale, shift (y, x), side
MOVES = [(0, 1, (0, 0), 1), (0, 1, (0, 0), -1), (20, 1.3, (4.5, -7.25), 1), (-33, 0.8, (-3, 6), -1)]


def smooth(seed=0, blur=4):
    """Make a picture in 0..255 without edges, uint8 (S, S)."""
    noise = cv2.GaussianBlur(np.random.default_rng(seed).random((SIZE, SIZE)), (0, 0), blur)
    return cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def move(gray, depth_mm, angle, scale, shift, side):
    shift, angle = jnp.array(shift, jnp.float32), jnp.float32(np.deg2rad(angle))
    gray, depth_mm = jnp.float32(gray), jnp.float32(depth_mm)
    moved = jax.jit(augmentation._move)(gray, depth_mm, D, angle, jnp.float32(scale), shift, jnp.float32(side))
    return [np.asarray(image) for image in moved]


def matrix(angle, scale, shift, side):
    """Make the same move as OpenCV takes it, source -> destination: mirrored, turned clockwise, scaled, shifted."""
    turn = cv2.getRotationMatrix2D((MIDDLE, MIDDLE), -angle, scale)  # its angles are counterclockwise
    mirror = np.array([[side, 0, MIDDLE * (1 - side)], [0, 1, 0], [0, 0, 1]])
    return turn @ mirror + np.array([[0, 0, shift[1]], [0, 0, shift[0]]])


@pytest.mark.parametrize("how", MOVES)
def test_the_picture_moves_as_opencv_moves_it(how):
    gray = smooth()
    expected = cv2.warpAffine(gray.astype(np.float32), matrix(*how), (SIZE, SIZE))  # bilinear, black outside
    moved, _ = move(gray, 0 * gray, *how)
    assert np.abs(moved - expected).mean() < 0.3
    assert np.percentile(np.abs(moved - expected), 99) < 2  # both round to 1/32 pixel, at the border of the picture too


@pytest.mark.parametrize("how", MOVES)
def test_the_relief_of_plane_and_sphere_is_scaled_with_the_picture(how):
    """Each destination pixel against the surface itself at the place that it shows."""
    from_x, from_y = (row[0] * X + row[1] * Y + row[2] for row in cv2.invertAffineTransform(matrix(*how)))
    inside = (from_x > 1) & (from_x < SIZE - 2) & (from_y > 1) & (from_y < SIZE - 2)
    for surface in (
        lambda x, y: D + 1.5 * (x - MIDDLE) - 0.8 * (y - MIDDLE) + 20,
        lambda x, y: D + 100 - np.sqrt(150**2 - (x - MIDDLE) ** 2 - (y - MIDDLE) ** 2),
    ):
        _, moved = move(0 * X, surface(X, Y), *how)
        expected = D + how[1] * (surface(from_x, from_y) - D)
        np.testing.assert_allclose(moved[inside], expected[inside], rtol=0, atol=0.3)  # 1/4 mm of relief, 1/64 pixel


@pytest.mark.parametrize("how", MOVES)
def test_holes_and_edges_are_never_mixed(how):
    """A hole in a wall before another wall: every depth is one of the two walls', or none."""
    depth_mm = np.where(X < 40, 850.0, 1400.0)
    depth_mm[20:50, 30:60] = 0
    _, moved = move(X, depth_mm, *how)
    near, far = (D + how[1] * (wall - D) for wall in (850, 1400))
    which = [np.abs(moved - value) < 1 for value in (0, near, far)]
    assert np.logical_or.reduce(which).all() and all(one.any() for one in which)
    hole = np.where(depth_mm, 0, 1).astype(np.uint8)
    expected = cv2.warpAffine(hole, matrix(*how), (SIZE, SIZE), flags=cv2.INTER_NEAREST, borderValue=1)
    assert ((moved == 0) != expected).mean() < 0.005  # ties of the rounding at the edge


@pytest.mark.parametrize("how", MOVES)
def test_gray_and_depth_stay_aligned(how):
    """A dot that is painted in both is at the same place after."""
    dot = np.hypot(X - 60, Y - 35) < 4
    gray, depth_mm = move(200 * dot, np.where(dot, D - 40, D), *how)
    where = matrix(*how) @ [60, 35, 1]
    for painted in (gray, np.where(depth_mm > 0, D - depth_mm, 0)):
        centre = [np.average(Y, weights=painted), np.average(X, weights=painted)]
        np.testing.assert_allclose(centre, where[::-1], atol=0.1)


def test_what_is_drawn_of_a_move():
    keys = jax.random.split(jax.random.key(0), 2000)
    angle, scale, shift, side = jax.device_get(jax.vmap(lambda key: augmentation._draw_move(SIZE, key))(keys))
    a = augmentation
    for drawn, deviation in ((np.rad2deg(angle), a.ROTATION_DEG), (np.log(scale), a.SCALE), (shift / SIZE, a.SHIFT)):
        assert abs(drawn.mean()) < 0.1 * deviation and drawn.std() == pytest.approx(deviation, rel=0.1)
    assert abs((side == -1).mean() - 0.5) < 0.05 and set(side) == {-1, 1}


def face():
    """Make a head with a small hole in front of a wall: gray uint8, depth uint16 (S, S), the head, bool."""
    head = np.hypot(X - 48, Y - 48) < 30
    depth_mm = np.where(head, D + 20, D + 900).astype(np.uint16)
    depth_mm[40:43, 40:44] = 0
    return np.maximum(smooth(), 10), depth_mm, head


def test_the_background_is_replaced_and_the_head_is_not():
    gray, depth_mm, head = face()
    found = np.asarray(augmentation._close(true_foreground(depth_mm[None], np.float32([D]))[0]))
    assert found[head].all()  # the hole too
    closed = cv2.morphologyEx(head.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((5, 5), np.uint8))
    np.testing.assert_array_equal(found, closed)

    change = jax.jit(jax.vmap(augmentation._change_background, (None, None, 0)))
    changed = np.asarray(change(gray / np.float32(255), found, jax.random.split(jax.random.key(0), 1000)))
    before = gray / np.float32(255)
    assert (changed[:, found] == before[found]).all()
    behind = changed[:, ~found]
    black, kept = (behind == 0).all(1), (behind == before[~found]).all(1)
    assert abs(black.mean() - augmentation.BLACK) < 0.05
    assert abs((~black & ~kept).mean() - augmentation.EXCHANGED) < 0.05
    assert (behind[~black & ~kept] != before[~found]).mean() > 0.9


def test_a_large_hole_is_background():
    depth_mm = np.full((SIZE, SIZE), D)
    depth_mm[40:60, 40:60] = 0
    head = true_foreground(depth_mm[None], np.float32([D]))[0]
    assert not np.asarray(augmentation._close(head))[40:60, 40:60].any()


@pytest.mark.parametrize("only", ["SIDE_LIGHT", "GAMMA", "CONTRAST", "BRIGHTNESS"])
def test_each_change_of_the_light(only, monkeypatch):
    """Gamma scales the logarithms, contrast what differs from the mean; brightness adds, the side light is a ramp."""
    for name in {"SIDE_LIGHT", "GAMMA", "CONTRAST", "BRIGHTNESS"} - {only}:
        monkeypatch.setattr(augmentation, name, 0.0)
    gray = 0.4 + 0.1 * smooth().astype(np.float64) / 255  # far from where it is clipped
    keys = jax.random.split(jax.random.key(3), 400)
    light = jax.jit(jax.vmap(augmentation._change_light, (None, 0)))
    changed = np.asarray(light(jnp.float32(gray), keys), np.float64)
    unclipped = ((changed > 0) & (changed < 1)).all((1, 2))
    unclipped &= (changed / gray).min((1, 2)) > 0.051  # no side is darker
    assert unclipped.mean() > 0.9
    changed = changed[unclipped]
    if only == "SIDE_LIGHT":
        ratio = changed / gray
        plane = np.stack([Y.ravel() - MIDDLE, X.ravel() - MIDDLE], 1) / MIDDLE
        slopes = np.linalg.lstsq(plane, ratio.reshape(len(ratio), -1).T - 1, rcond=None)[0].T
        np.testing.assert_allclose(ratio.reshape(len(ratio), -1), 1 + slopes @ plane.T, atol=1e-5)
        assert np.sqrt((slopes**2).sum(1).mean()) == pytest.approx(augmentation.SIDE_LIGHT, rel=0.15)
        assert np.abs(slopes.mean(0)).max() < 0.05
        return
    value = {
        "GAMMA": lambda: np.log(changed) / np.log(gray),
        "CONTRAST": lambda: (changed - changed.mean((1, 2), keepdims=True)) / (gray - gray.mean()),
        "BRIGHTNESS": lambda: changed - gray,
    }[only]()
    usual = np.median(value, (1, 2))
    sure = np.abs(gray - gray.mean()) > 0.01
    np.testing.assert_allclose(value[:, sure], np.broadcast_to(usual[:, None], value[:, sure].shape), atol=1e-3)
    drawn = usual if only == "BRIGHTNESS" else np.log(usual)
    assert drawn.std() == pytest.approx(getattr(augmentation, only), rel=0.15)


def test_the_occluder_is_a_rectangle_in_some_images():
    gray = jnp.full((SIZE, SIZE), -1.0)  # what no pattern has
    hidden = np.asarray(
        jax.vmap(augmentation._hide_part, (None, 0))(gray, jax.random.split(jax.random.key(0), 1000)) >= 0
    )
    some = hidden.any((1, 2))
    assert abs(some.mean() - augmentation.HIDDEN) < 0.05
    for mask in hidden[some]:
        rows, columns = mask.any(1), mask.any(0)
        np.testing.assert_array_equal(mask, rows[:, None] & columns[None])
        assert 2 < rows.sum() <= SIZE / 2 + 1 and np.ptp(np.flatnonzero(rows)) == rows.sum() - 1


@pytest.mark.parametrize("sigma", [0.4, 1.0, 1.5])
def test_blur_is_opencvs(sigma):
    gray = smooth(blur=1).astype(np.float32)
    blur = np.asarray(augmentation._blur(SIZE, sigma))

    def by_opencv(image):
        return cv2.GaussianBlur(image, (25, 25), sigma, borderType=cv2.BORDER_CONSTANT)

    expected = by_opencv(gray) / by_opencv(np.ones_like(gray))  # at the edge what is there counts alone
    np.testing.assert_allclose(blur @ gray @ blur.T, expected, atol=0.5)


@pytest.mark.parametrize("factor", [1.5, 2, 3])
def test_the_resolution_is_lowered_as_pillow_does_it(factor):
    gray = smooth(blur=1).astype(np.float32)
    coarser = np.asarray(augmentation._coarsen(SIZE, jnp.float32(factor)))
    small = Image.fromarray(gray).resize(2 * [round(SIZE / factor)], Image.Resampling.BILINEAR)
    expected = np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    edge = slice(4, -4)  # ours has one more coarse pixel, half outside
    np.testing.assert_allclose((coarser @ gray @ coarser.T)[edge, edge], expected[edge, edge], atol=0.7)


@pytest.mark.parametrize("quality", [30, 50, 75, 95])
def test_jpeg_is_opencvs(quality):
    """But for ties: a coefficient rounded the other way is some levels in its block. Other qualities are farther."""
    gray = smooth(blur=2)
    _, data = cv2.imencode(".jpg", gray, [cv2.IMWRITE_JPEG_QUALITY, quality])
    expected = cv2.imdecode(data, cv2.IMREAD_GRAYSCALE).astype(np.float32)

    def apart(quality):
        lossy = np.asarray(augmentation._compress(jnp.float32(gray) / 255, jnp.float32(quality))) * 255
        return np.abs(lossy - expected)

    assert apart(quality).mean() < 0.6 and np.percentile(apart(quality), 99) < 5
    assert apart(quality).mean() < 0.8 * min(apart(quality - 4).mean(), apart(quality + 4).mean())
    if quality == 50:  # the table itself
        (table,) = Image.open(io.BytesIO(data.tobytes())).quantization.values()
        np.testing.assert_array_equal(augmentation.JPEG_TABLE, np.reshape(table, (8, 8)))


def test_the_cosine_transform_is_orthonormal():
    np.testing.assert_allclose(augmentation.DCT @ augmentation.DCT.T, np.eye(8), atol=5e-4)
    picture = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    np.testing.assert_allclose(augmentation.DCT @ picture @ augmentation.DCT.T, cv2.dct(picture), atol=3e-3)


def test_noise_up_to_its_largest_deviation(monkeypatch):
    for name in ("BLURRED", "COARSE", "COMPRESSED"):
        monkeypatch.setattr(augmentation, name, 0.0)
    gray = jnp.full((SIZE, SIZE), 128 / 255)
    keys = jax.random.split(jax.random.key(0), 300)
    noise = np.asarray(jax.jit(jax.vmap(augmentation._photograph, (None, 0)))(gray, keys)) - 128 / 255
    deviation = noise.std((1, 2))
    assert deviation.max() < 1.05 * augmentation.NOISE and deviation.min() < 0.05 * augmentation.NOISE
    assert deviation.mean() == pytest.approx(augmentation.NOISE / 2, rel=0.1) and abs(noise.mean()) < 1e-3
    neighbours = (noise[:, 1:] * noise[:, :-1]).mean() / (noise**2).mean()
    assert abs(neighbours) < 0.01
    assert abs((np.abs(noise) < deviation[:, None, None]).mean() - 0.683) < 0.01  # as a normal distribution has it


def batch(count):
    gray, depth_mm, _ = face()
    depth_mm = depth_mm + smooth(1) // 8 * (depth_mm > 0)
    return {
        "gray": np.stack([np.roll(gray, i, 1) for i in range(count)]),
        "depth_mm": np.stack([np.roll(depth_mm, i, 1) for i in range(count)]).astype(np.uint16),
        "distance_mm": np.linspace(880, 920, count, dtype=np.float32),
        "subject": np.arange(count, dtype=np.int32),
    }


def test_a_batch_keeps_its_types_and_an_image_alone_is_the_same():
    before, key = batch(8), jax.random.key(7)
    after = jax.jit(augment)(before, key)
    assert {name: (x.shape, x.dtype) for name, x in after.items()} == {
        name: (x.shape, x.dtype) for name, x in before.items()
    }
    for name in ("distance_mm", "subject"):
        np.testing.assert_array_equal(after[name], before[name])
    one = jax.jit(augmentation._augment_one)
    for i, own in enumerate(jax.random.split(key, 8)):
        gray, depth_mm = one(*(before[name][i] for name in ("gray", "depth_mm", "distance_mm")), own)
        np.testing.assert_array_equal(gray, after["gray"][i])
        np.testing.assert_array_equal(depth_mm, after["depth_mm"][i])
    other = jax.jit(augment)(before, jax.random.key(8))
    assert all((other["gray"][i] != after["gray"][i]).any() for i in range(8))


def test_the_camera_sees_an_image_alone_as_in_a_batch(monkeypatch):
    """To the last bit of float32, which whole levels would hide."""
    monkeypatch.setattr(augmentation, "COARSE", 1.0)
    gray, keys = np.stack([smooth(seed) for seed in range(8)]) / np.float32(255), jax.random.split(jax.random.key(0), 8)
    seen, alone = jax.jit(jax.vmap(augmentation._photograph))(gray, keys), jax.jit(augmentation._photograph)
    for one, key, expected in zip(gray, keys, seen, strict=True):
        np.testing.assert_array_equal(alone(one, key), expected)


DIVIDED = """
import sys
sys.path[:0] = ["tests"]
import jax, numpy as np
from test_augment import batch
from facedepth_jax import augment as augmentation
from facedepth_jax import devices

augmentation.COARSE = augmentation.COMPRESSED = 0.5

@jax.jit
def step(batch, key):
    camera = jax.vmap(augmentation._photograph)  # not rounded: small differences would be lost in whole levels
    unrounded = camera(batch["gray"] / np.float32(255), jax.random.split(key, len(batch["gray"])))
    return augmentation.augment(batch, key) | {"unrounded": unrounded}

for seed in range(3):
    found = []
    for count in (1, 2, 4):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("data",))
        after = step(devices.put_batch(mesh, batch(32)), jax.random.key(seed))
        assert len(after["gray"].addressable_shards) == count
        assert after["gray"].addressable_shards[0].data.shape[0] == 32 // count
        found.append(jax.device_get(after))
    for name in found[0]:
        for other in found[1:]:
            np.testing.assert_array_equal(other[name], found[0][name])
"""


@pytest.mark.slow
def test_the_same_bits_on_one_two_and_four_devices():
    """Optimised as in a training: without, XLA's programs for 8, 16 and 32 images differ less."""
    flags = f"{os.environ['XLA_FLAGS']} --xla_backend_optimization_level=3 --xla_force_host_platform_device_count=4"
    env = os.environ | {"XLA_FLAGS": flags}
    done = subprocess.run([sys.executable, "-c", DIVIDED], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_ten_steps_and_ten_resumed_are_twenty(ae_run, people_dir, tmp_path):
    """To the bit; and the net sees other examples than without."""
    people = arrays.open(people_dir)
    data = write_arrays(
        tmp_path / "arrays",
        *(people.gray, people.depth_mm, people.frames["subject"], people.frames["split"]),
        distance_mm=[800.0] * len(people),
    )
    for name, steps in (("whole", 20), ("resumed", 10), ("resumed", 20)):
        changes = {"train.augment": True, "train.steps": steps, "every.save": 10}
        train.run(people_config("ae", data.path, **changes), tmp_path / name)
    whole, resumed = weights(tmp_path / "whole"), weights(tmp_path / "resumed")
    for name, expected in whole.items():
        np.testing.assert_array_equal(resumed[name], expected, err_msg=name)
    assert lines(tmp_path / "resumed") == lines(tmp_path / "whole")
    assert lines(tmp_path / "whole")[0]["train/loss_g"] != lines(ae_run)[0]["train/loss_g"]


def test_the_papers_configs_do_without():
    for path in sorted((ROOT / "configs").glob("*.py")):
        if path.stem not in ("base", "relief"):
            assert configs.load(str(path)).train.augment is False, path
    for method in ("cgan", "ae", "pix2pix", "cui"):
        assert configs.load(f"relief:{method}").train.augment is False
