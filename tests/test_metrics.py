"""The metrics against a plain computation in float64, by hand, and against the paper's own table."""

import json
import math

import jax
import numpy as np
import pytest

from facedepth_jax import metrics
from facedepth_jax.errors import FaceDepthError


def reference(pred, true, mask):
    """Table 1 from its definitions, pixel lists instead of sums, float64."""
    pred, true = pred.astype(np.float64), true.astype(np.float64)
    images = [i for i in range(len(pred)) if mask[i].any()]
    differences = [pred[i][mask[i]] - true[i][mask[i]] for i in images]
    ps = [np.clip(pred[i][mask[i]], 1, None) for i in images]
    ts = [np.clip(true[i][mask[i]], 1, None) for i in images]
    d, p, t = np.concatenate(differences), np.concatenate(ps), np.concatenate(ts)
    ratio = np.maximum(p / t, t / p)
    return {
        "l1": np.mean(np.abs(d)),
        "l2": np.mean([np.linalg.norm(image) for image in differences]),
        "abs_diff": np.mean(np.abs(d) / t),
        "squared_diff": np.mean(d**2 / t),
        "rmse_lin": np.sqrt(np.mean(d**2)),
        "rmse_log": np.sqrt(np.mean((np.log(p) - np.log(t)) ** 2)),
        "rmse_scale_inv": np.sqrt(np.mean([np.var(np.log(a) - np.log(b)) for a, b in zip(ps, ts, strict=True)])),
        "delta_1.25": np.mean(ratio < 1.25),
        "delta_1.25^2": np.mean(ratio < 1.5625),
        "delta_1.25^3": np.mean(ratio < 1.953125),
        "delta_1.25^(1/4)": np.mean(ratio < 1.25**0.25),
        "delta_1.25^(1/3)": np.mean(ratio < 1.25 ** (1 / 3)),
        "delta_1.25^(1/2)": np.mean(ratio < 1.25**0.5),
    }


def sums_by_person(pred, true, mask, subjects=None):
    """As an evaluation makes them, "all" and "valid" alike; 8 mm a level for "mm"."""
    pred, true = np.float32(pred), np.float32(true)
    sums = jax.device_get(jax.jit(metrics.image_sums)(pred, true, mask))
    mm = jax.device_get(jax.jit(metrics.mm_sums)(8 * pred, 8 * true, mask))
    return metrics.person_sums(
        {"all": sums, "valid": sums, "mm": mm}, ["a"] * len(pred) if subjects is None else subjects
    )


def measure(pred, true, mask):
    return metrics.figures(sums_by_person(pred, true, mask))["all"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(1, 5, 7), (9, 24, 24), (3, 96, 96)])
def test_equals_plain_numpy_on_random_data_with_holes(seed, shape):
    rng = np.random.default_rng(seed)
    true = rng.integers(0, 256, shape).astype(np.float32)  # zeros too: raised to one level
    pred = np.clip(true * rng.normal(1, 0.2, shape) + rng.normal(0, 5, shape), 0, 255).astype(np.float32)
    mask = rng.random(shape) < rng.random((shape[0], 1, 1))
    mask.flat[0] = True
    if shape[0] > 2:
        mask[1] = False  # an image without a valid pixel
    got, want = measure(pred, true, mask), reference(pred, true, mask)
    assert got.keys() == want.keys()
    for key in want:
        assert got[key] == pytest.approx(want[key], rel=2e-6), key


def test_keys_are_those_of_the_metrics_table():
    ones = np.ones((1, 2, 2))
    assert tuple(measure(ones, ones, ones > 0)) == tuple(metric.key for metric in metrics.METRICS)
    assert len(metrics.METRICS) == 13


def test_perfect_estimate():
    true = np.random.default_rng(0).integers(0, 256, (4, 8, 8))
    for metric, value in zip(metrics.METRICS, measure(true, true, np.ones(true.shape, bool)).values(), strict=True):
        assert value == (1.0 if metric.better == "higher" else 0.0), metric.key


def test_constant_offset_by_hand():
    # 60 everywhere, truth 50 everywhere, 2 images of 3 x 4 pixels
    got = measure(np.full((2, 3, 4), 60), np.full((2, 3, 4), 50), np.ones((2, 3, 4), bool))
    assert got["l1"] == 10 and got["rmse_lin"] == 10
    assert got["l2"] == pytest.approx(10 * np.sqrt(12))
    assert got["abs_diff"] == pytest.approx(0.2) and got["squared_diff"] == pytest.approx(2.0)
    assert got["rmse_log"] == pytest.approx(np.log(1.2), rel=1e-6)
    assert got["rmse_scale_inv"] < 1e-6  # right up to a factor
    assert [got[key] for key in metrics.DELTAS] == [1, 1, 1, 0, 0, 0]  # 1.25^(1/2) = 1.118 < 1.2 < 1.25


@pytest.mark.parametrize("pred,true", [(100, 80), (80, 100)])
def test_delta_is_strict_and_symmetric(pred, true):
    got = measure(np.full((1, 2, 2), pred), np.full((1, 2, 2), true), np.ones((1, 2, 2), bool))
    assert got["delta_1.25"] == 0 and got["delta_1.25^2"] == 1  # the ratio is 1.25 exactly


def test_scale_invariant_error_ignores_a_factor_of_its_own_for_each_image():
    rng = np.random.default_rng(1)
    true = rng.uniform(20, 100, (3, 96, 96)).astype(np.float32)
    pred = true * np.array([0.5, 1.25, 2.0], np.float32)[:, None, None]
    got = measure(pred, true, np.ones(true.shape, bool))
    assert got["rmse_scale_inv"] < 1e-6
    assert got["rmse_log"] > 0.5


def test_roots_are_taken_last_and_the_norm_by_image():
    # one image off by 6, one right: RMSE pools to sqrt(18), the mean of the two images' RMSE would be 3
    pred, true = np.full((2, 2, 2), 50.0), np.full((2, 2, 2), 50.0)
    pred[0] += 6
    got = measure(pred, true, np.ones((2, 2, 2), bool))
    assert got["rmse_lin"] == pytest.approx(np.sqrt(18))
    assert got["l2"] == pytest.approx((6 * np.sqrt(4) + 0) / 2)


def test_pixels_outside_the_mask_never_count():
    rng = np.random.default_rng(2)
    true = rng.integers(1, 256, (2, 6, 6)).astype(np.float32)
    pred = true + 3
    mask = rng.random(true.shape) < 0.5
    want = measure(pred, true, mask)
    pred[~mask], true[~mask] = np.inf, np.nan
    assert measure(pred, true, mask) == want


def test_images_without_pixels_are_left_out_of_means_over_images():
    true = np.full((2, 2, 2), 50)
    mask = np.ones((2, 2, 2), bool)
    mask[1] = False
    assert measure(true + 4, true, mask) == measure(true[:1] + 4, true[:1], mask[:1])


def test_no_pixel_at_all_is_an_error():
    some, none = (sums_by_person(*np.ones((2, 2, 2, 2)), np.full((2, 2, 2), mask))["a"] for mask in (True, False))
    for parts, sentence in (
        ({"all": some["all"], "valid": none["valid"], "mm": none["mm"]}, "No pixel with depth"),
        ({"all": some["all"], "valid": some["valid"], "mm": none["mm"]}, "depth code"),
    ):
        with pytest.raises(FaceDepthError, match=sentence):
            metrics.figures({"a": parts})


def test_mm_errors():
    true = np.array([[[800, 900], [1000, 0]]], np.float32) / 8
    pred = np.array([[[810, 880], [1000, 555]]], np.float32) / 8
    got = metrics.figures(sums_by_person(pred, true, true > 0))["mm"]
    assert got == {"mae_mm": pytest.approx(10), "rmse_mm": pytest.approx(np.sqrt(500 / 3))}


# L2 and RMSE lin of the paper's Table 1, Pandora then Biwi: cGAN, AE, pix2pix, Cui et al.
PAPER_L2_RMSE = [
    (1678.2, 18.677),
    (2224.8, 25.213),
    (3109.0, 33.526),
    (2093.3, 22.599),
    (2368.5, 24.865),
    (2342.5, 24.699),
    (6661.3, 72.084),
    (2319.8, 24.521),
]


def test_definitions_of_l2_and_rmse_fit_the_papers_columns():
    """By Jensen the mean norm is at most 96 RMSE when the root is taken last, whatever the errors; so in the paper."""
    rng = np.random.default_rng(3)
    true = np.full((6, 96, 96), 100.0)
    pred = true + rng.normal(0, 1, true.shape) * np.arange(1, 7)[:, None, None]
    got = measure(pred, true, np.ones(true.shape, bool))
    for l2, rmse in [(got["l2"], got["rmse_lin"]), *PAPER_L2_RMSE]:
        assert 0.8 * 96 * rmse < l2 < 96 * rmse


# --- sums by person --------------------------------------------------------------------------------------------------

PARTS = ("all", "valid", "mm")


@pytest.fixture(scope="module", name="people")
def _people():
    """Seven people with other numbers of images and of holes; one image has no pixel, and "g" has none at all."""
    rng = np.random.default_rng(4)
    subjects = np.array(list("abacbcaadebffffacbg"))
    true = rng.integers(1, 256, (len(subjects), 8, 8)).astype(np.float32)
    pred = true * rng.uniform(0.5, 1.5, (len(subjects), 1, 1)) + rng.normal(0, 5, true.shape)
    mask = rng.random(true.shape) < rng.random((len(subjects), 1, 1))
    mask[[2, -1]] = False
    full = jax.device_get(metrics.image_sums(np.float32(pred), true, np.ones_like(mask)))
    holes = jax.device_get(metrics.image_sums(np.float32(pred), true, mask))
    per_image = {"all": full, "valid": holes, "mm": jax.device_get(metrics.mm_sums(np.float32(pred), true, mask))}
    return per_image, subjects, (np.float32(pred), true, mask)


def chosen(per_image, subjects, rows):
    kept = {part: {name: values[rows] for name, values in sums.items()} for part, sums in per_image.items()}
    return metrics.person_sums(kept, subjects[rows])


def test_figures_count_what_they_were_taken_over(people):
    per_image, subjects, (pred, true, mask) = people
    got = metrics.figures(metrics.person_sums(per_image, subjects))
    assert got["n_people"] == 7 and got["n_frames"] == len(subjects)
    assert got["n_frames_without_depth"] == (~mask.any((1, 2))).sum() >= 2
    assert got["n_pixels"] == true.size and got["n_pixels_valid"] == got["n_pixels_mm"] == mask.sum()
    assert json.loads(json.dumps(got)) == got
    want = reference(pred, true, mask)
    assert got["valid"] == {key: pytest.approx(value, rel=2e-6) for key, value in want.items()}


@pytest.mark.parametrize("apart", [True, False])
def test_folds_pooled_are_one_evaluation(people, apart):
    """Folds of other people, as in a cross-validation, and parts that share people."""
    per_image, subjects, _ = people
    order = np.random.default_rng(5).permutation(len(subjects))
    folds = [np.isin(subjects, list(names)) for names in ("ab", "cdg", "ef")] if apart else np.array_split(order, 3)
    pooled = metrics.figures(metrics.join_people([chosen(per_image, subjects, rows) for rows in folds]))
    together = metrics.figures(metrics.person_sums(per_image, subjects))
    assert pooled.keys() == together.keys()
    for part in PARTS:
        assert pooled[part] == pytest.approx(together[part], rel=1e-12)
        assert pooled["standard_error"][part] == pytest.approx(together["standard_error"][part], rel=1e-9)
    for name in (name for name in together if name.startswith("n_")):
        assert pooled[name] == together[name]
    assert pooled["people"].keys() == together["people"].keys()


@pytest.mark.parametrize("apart", [True, False])
def test_a_metric_whose_sums_one_fold_lacks_is_left_out(people, apart):
    per_image, subjects, _ = people
    folds = [chosen(per_image, subjects, np.isin(subjects, list(names))) for names in ("abc", "defg" if apart else "c")]
    want = metrics.figures(metrics.join_people(folds))
    for parts in folds[1].values():
        del parts["all"]["log_squared"]
    for order in (folds, folds[::-1]):
        got = metrics.figures(metrics.join_people(order))
        assert want["all"].keys() - got["all"].keys() == {"rmse_log"}
        assert want["standard_error"]["all"].keys() - got["standard_error"]["all"].keys() == {"rmse_log"}
        assert got["all"]["l1"] == pytest.approx(want["all"]["l1"]) and got["valid"] == pytest.approx(want["valid"])


def test_standard_errors_are_an_independent_jackknife(people):
    """Each person left out in turn, their images out of the arrays, everything measured again by the slow reference."""
    per_image, subjects, (pred, true, mask) = people
    got = metrics.figures(metrics.person_sums(per_image, subjects))["standard_error"]
    for part, counted in (("all", np.ones_like(mask)), ("valid", mask)):
        with_pixels = [name for name in "abcdefg" if counted[subjects == name].any()]
        left_out = [reference(*(x[subjects != name] for x in (pred, true, counted))) for name in with_pixels]
        n = len(with_pixels)
        assert n == (7 if part == "all" else 6)
        for key in left_out[0]:
            values = [figures[key] for figures in left_out]
            mean = sum(values) / n
            want = math.sqrt((n - 1) / n * sum((value - mean) ** 2 for value in values))
            assert got[part][key] == pytest.approx(want, rel=1e-4), (part, key)


def test_with_as_many_pixels_of_everybody_the_l1_has_the_error_of_a_mean():
    rng = np.random.default_rng(6)
    true = rng.uniform(50, 200, (12, 4, 4)).astype(np.float32)
    pred = true + rng.normal(0, 9, true.shape).astype(np.float32)
    subjects = [f"person {i // 3}" for i in range(12)]
    got = metrics.figures(sums_by_person(pred, true, np.ones(true.shape, bool), subjects))
    means = np.abs(pred.astype(np.float64) - true).reshape(4, -1).mean(1)
    want = means.std(ddof=1) / np.sqrt(4)
    assert got["standard_error"]["all"]["l1"] == pytest.approx(want, rel=1e-5)
    assert got["standard_error"]["mm"]["mae_mm"] == pytest.approx(8 * want, rel=1e-5)


def test_one_person_has_no_standard_error():
    errors = metrics.figures(sums_by_person(*np.ones((2, 3, 2, 2)), np.ones((3, 2, 2), bool)))["standard_error"]
    assert errors["all"] == dict.fromkeys((metric.key for metric in metrics.METRICS), None)
    assert errors["mm"] == dict.fromkeys((metric.key for metric in metrics.MM_METRICS), None)


# --- relief ----------------------------------------------------------------------------------------------------------


def faces(seed=0, size=96, count=6):
    """Make domes with holes about heads at several distances, and estimates that are off by scale, shift and noise."""
    rng = np.random.default_rng(seed)
    distance = rng.uniform(600, 1300, count).astype(np.float32)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    shape = np.stack(
        [60 * rng.uniform(0.5, 2) * np.hypot(x, y * rng.uniform(0.6, 1)) / (0.3 * size) - 70 for _ in distance]
    )
    shape += 8 * rng.normal(size=shape.shape)
    true = (distance[:, None, None] + shape).round()
    true[rng.random(true.shape) < 0.1] = 0
    true[1, :, size // 2 :] += 300  # half a face
    true[2] += 500  # none
    pred = (
        distance[:, None, None] * 1.2 + shape * rng.uniform(0.5, 1.5, (count, 1, 1)) + 15 * rng.normal(size=shape.shape)
    )
    pred[:, :10] = 0
    return np.float32(pred), np.float32(true), distance


def slow_relief(pred, true, distance, pitch):
    """One image in float64, pixel by pixel where it can be: the figures, None without a face."""
    size = len(true)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    face = (true > 0) & (abs(true - distance) <= 100) & (np.hypot(x, y) <= 0.3 * size)
    if face.sum() < 200 * size**2 / 96**2:
        return None
    p, t = (image[face].astype(np.float64) for image in (pred, true))
    p, t = p - np.median(p), t - np.median(t)
    scaled = np.linalg.lstsq(p[:, None], t, rcond=None)[0] * p - t

    def smooth(image, i, j):
        return np.mean(
            [image[a, b] for a in range(i - 1, i + 2) for b in range(j - 1, j + 2) if face[a, b]], dtype=float
        )

    angles = []
    for i, j in zip(*np.nonzero(face), strict=True):
        around = [(i, j - 1), (i, j + 1), (i - 1, j), (i + 1, j)]
        if all(face[at] for at in around):
            normals = []
            for image in (pred, true):
                left, right, above, below = (smooth(image, *at) for at in around)
                # the cross product of the two tangents
                normal = np.cross([2 * pitch, 0, right - left], [0, 2 * pitch, below - above])
                normals.append(normal / np.linalg.norm(normal))
            angles.append(np.degrees(np.arccos(np.clip(normals[0] @ normals[1], -1, 1))))
    return {
        "relief_mae": abs(p - t - np.median(p - t)).mean(),
        "relief_mae_scaled": abs(scaled - np.median(scaled)).mean(),
        "normals_deg": np.mean(angles),
    }


@pytest.mark.parametrize("size", [96, 64])
def test_relief_equals_plain_numpy_on_random_maps_with_holes(size):
    pred, true, distance = faces(size=size)
    got = jax.device_get(jax.jit(metrics.relief_sums)(pred, true, distance, 3.3))
    for i in range(len(pred)):
        want = slow_relief(pred[i], true[i], distance[i], 3.3)
        assert (got["count"][i] > 0) == (want is not None) == (i != 2), i
        for key in want or ():
            assert got[key][i] == pytest.approx(want[key], rel=2e-5), (i, key)


def relief_figures(pred, true, distance, subjects):
    pred, true, distance = (np.float32(x) for x in (pred, true, distance))
    some = jax.device_get(metrics.image_sums(pred, true, true > 0))
    relief = jax.device_get(metrics.relief_sums(pred, true, distance, 3.3))
    sums = {"all": some, "valid": some, "mm": jax.device_get(metrics.mm_sums(pred, true, true > 0)), "relief": relief}
    return metrics.figures(metrics.person_sums(sums, subjects))


def test_relief_is_a_mean_over_faces_with_its_error_over_people():
    pred, true, distance = faces()
    subjects = np.array(list("aababb"))
    got = relief_figures(pred, true, distance, subjects)
    slow = [slow_relief(*images, 3.3) for images in zip(pred, true, distance, strict=True)]
    shown = np.array([figures is not None for figures in slow])
    assert got["n_faces"] == shown.sum() == 5 and got["n_frames"] == 6
    for key in ("relief_mae", "normals_deg"):
        values = np.array([figures[key] for figures in slow if figures])
        assert got["relief"][key] == pytest.approx(values.mean(), rel=1e-5)
        means = [values[subjects[shown] != name].mean() for name in "ab"]
        assert got["standard_error"]["relief"][key] == pytest.approx(abs(means[0] - means[1]) / 2, rel=1e-3)


def test_relief_does_not_see_where_a_face_is_or_how_it_is_scaled():
    _, true, distance = faces()
    exact = relief_figures(np.where(true > 0, true + 40, 7), true, distance, ["a"] * 6)["relief"]
    assert exact["relief_mae"] < 1e-4 and exact["normals_deg"] < 1e-2
    flatter = relief_figures(np.where(true > 0, true / 2 + 40, 7), true, distance, ["a"] * 6)["relief"]
    assert flatter["relief_mae_scaled"] < 1e-3 and flatter["relief_mae"] > 5


def test_the_angle_between_two_planes():
    """Normals of planes that rise by 0.2 and 0.7 mm a mm: the difference of two arc tangents, but for the edge."""
    x = 3.3 * np.arange(96, dtype=np.float32)[None, None] * np.ones((1, 96, 1), np.float32)
    true, pred = 900 + 0.2 * x - 0.2 * 3.3 * 48, 900 + 0.7 * x
    got = relief_figures(pred, true, np.float32([900]), ["a"])["relief"]
    assert got["normals_deg"] == pytest.approx(np.degrees(np.arctan(0.7) - np.arctan(0.2)), abs=0.3)


def test_without_a_face_there_is_no_relief():
    pred, true, distance = faces()
    got = relief_figures(pred[2:3], true[2:3], distance[2:3], ["a"])
    assert "relief" not in got and got["n_faces"] == 0


def test_intersection_over_union():
    a = np.array([[[1, 1], [0, 0]], [[1, 0], [0, 0]], [[0, 0], [0, 0]]], bool)
    b = np.array([[[1, 0], [1, 0]], [[1, 0], [0, 0]], [[0, 0], [0, 0]]], bool)
    np.testing.assert_allclose(metrics.intersection_over_union(a, b), [1 / 3, 1, 0])
