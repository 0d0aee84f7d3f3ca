"""What the loop asks of a kind of method: its batches, its validation, its end. Generators, and the verifier.

Both name the `net` that they are for, whose best weights by the validation split are kept. `validate` gives figures and
a rank, float32 (2,), lower is better: by the first number, then by the second. `finish` gets the best weights.
"""

import functools
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from facedepth_jax import devices, files, pictures, verification
from facedepth_jax.checkpoint import save_weights
from facedepth_jax.data import pipeline
from facedepth_jax.data.arrays import Arrays
from facedepth_jax.depth_code import image_from_gray, levels_from_image, mm_from_levels
from facedepth_jax.evaluation import MEAN_MAP, evaluate, mean_map_baseline
from facedepth_jax.runs import METHODS, code_of
from facedepth_jax.state import Best, Net, NetState, forward
from facedepth_jax.tables import markdown_table, verification_table
from facedepth_jax.verification import Verifier, verify

SAMPLES = 8  # faces in a picture
EVALUATION_BATCH = 32  # images a device; no figure depends on it


def make_task(config, nets: dict[str, Net], data: Arrays, devices, between: Callable[[], None] = lambda: None):
    """The task of a method, by the net that it has; `between` is called before each batch of an evaluation."""
    return (Verification if "verifier" in nets else Depth)(config, nets, data, devices, between)


class Depth:
    """Methods with a generator. Kept are the weights of the lowest L1 over all pixels, the first row of Table 1; the
    paper does not say which it takes."""

    net = "generator"

    def __init__(self, config, nets: dict[str, Net], data, devices, between):
        module = nets["generator"].module
        self._config = config
        self._code = code_of(config)
        self._data = data
        self._devices = devices
        self._between = between
        self._batch_size = EVALUATION_BATCH * devices.size
        self._predict = jax.jit(
            lambda net_state, gray: forward(module, net_state, image_from_gray(gray)[..., None]),
            out_shardings=devices.divided(devices),
        )

    def batches(self, train_rows, **options):
        """Batches on the devices: frames with their person's place among the training people, sorted; -1 for others,
        who are never drawn."""
        data = self._data
        subject = np.full(len(data), -1, np.int32)
        subject[train_rows] = np.unique(data.frames["subject"][train_rows], return_inverse=True)[1]
        arrays = {"gray": data.gray, "depth_mm": data.depth_mm, "subject": subject}
        arrays, put = devices.place_examples(self._devices, arrays)
        return map(put, pipeline.batches(arrays, train_rows, **options))

    def frames_of(self, step: int, train_rows, **options) -> list[str]:
        """Names of the frames of a step's batch, of all processes."""
        return _names(
            self._data, pipeline.batches(_row_numbers(self._data), train_rows, start_step=step - 1, **options)
        )

    def validate(self, generator: NetState, step: int, workdir: pathlib.Path):
        """The validation split's figures and their rank; a picture beside."""
        rows = self._data.rows("validation")
        found = self._measure(generator, rows)
        sample = self._sample(generator, rows)
        if jax.process_index() == 0:
            pictures.write_png(workdir / f"samples/{step:08d}.png", _grid(sample))
        return found["valid"] | found["mm"], np.float32([found["all"]["l1"], found["all"]["rmse_lin"]])

    def finish(self, best: Best, workdir: pathlib.Path):
        """Weights, the test split's figures, table and pictures."""
        config, data, generator = self._config, self._data, NetState(best.params, best.batch_stats, None)
        _save_net(workdir / "generator.safetensors", best)
        rows = data.rows("test")
        test = self._measure(generator, rows)
        validation = self._measure(generator, data.rows("validation"))  # what a setting is chosen by
        mean_map = self._run(mean_map_baseline(data.depth_mm, data.rows("train"), self._code), rows)
        results = _header(config, data, best) | {
            "lam": config.loss.lam if "lam" in METHODS[config.method].loss_args else None,
            "n_frames": test["n_frames"],
            "test": test,
            "validation": validation,
            "baseline_mean_map": mean_map,
        }
        sample = self._sample(generator, rows)
        if jax.process_index():
            return
        files.write_json(workdir / "results.json", results)
        pictures.write_png(workdir / "samples/test.png", _grid(sample))
        files.write_npz(workdir / "samples/test.npz", sample)
        columns = {MEAN_MAP: mean_map, config.method: test}
        table = "\n".join(
            markdown_table({name: figures[part] for name, figures in columns.items()}, caption, baseline=MEAN_MAP)
            for part, caption in (
                ("all", f"all pixels, n = {test['n_frames']} frames"),
                ("valid", f"pixels with depth, n = {test['n_frames'] - test['n_frames_without_depth']} frames"),
                ("mm", f"millimetres, n = {test['n_pixels_mm']} pixels"),
            )
        )
        files.write_bytes(workdir / "results.md", table.encode())
        print(f"\n{table}\nTest faces: {workdir}/samples/test.png   figures: {workdir}/results.md, results.json")

    def _measure(self, generator: NetState, rows):
        return self._run(functools.partial(self._predict, generator), rows)

    def _run(self, predict, rows):
        data = self._data
        return evaluate(
            predict,
            data.gray,
            data.depth_mm,
            rows,
            self._code,
            self._batch_size,
            frames=data.frames["frame"],
            devices=self._devices,
            between=self._between,
        )

    def _sample(self, generator: NetState, rows):
        """SAMPLES faces, spread evenly over the rows: names, gray, true and estimated depth in mm."""
        rows = rows[np.linspace(0, len(rows) - 1, min(SAMPLES, len(rows))).round().astype(int)]
        gray, truth = self._data.gray[rows], self._data.depth_mm[rows]
        padded = np.resize(gray, (self._batch_size, *gray.shape[1:]))
        batch = devices.put_batch(self._devices, {"gray": devices.share(padded)})
        image = devices.put_everywhere(self._devices, self._predict(generator, batch["gray"]))
        image = jax.device_get(image)[: len(rows), ..., 0]
        estimate = mm_from_levels(levels_from_image(image, self._code), self._code)
        return {
            "frame": self._data.frames["frame"][rows],
            "gray": gray,
            "truth_mm": truth,
            "estimate_mm": np.asarray(estimate),
        }


class Verification:
    """The verifier, on pairs of real depth maps. Kept are the weights of the highest accuracy on the validation pairs,
    of those the ones with the lowest loss."""

    net = "verifier"

    def __init__(self, config, nets: dict[str, Net], data, devices, between):
        self._config = config
        self._devices = devices
        self._between = between
        self._data = data
        self._module = nets["verifier"].module
        for split in ("validation", "test"):
            verification.pair_rows(data, split)  # what cannot be used is found now

    def batches(self, train_rows, **options):
        """Batches of pairs on the devices, drawn anew for every step."""
        data = self._data
        arrays, put = devices.place_examples(self._devices, {"depth_mm": data.depth_mm})
        return map(put, pipeline.pair_batches(arrays, train_rows, data.frames["subject"][train_rows], **options))

    def frames_of(self, step: int, train_rows, **options) -> list[str]:
        """Names of the frames of a step's batch, of all processes."""
        subjects = self._data.frames["subject"][train_rows]
        drawn = pipeline.pair_batches(_row_numbers(self._data), train_rows, subjects, start_step=step - 1, **options)
        return _names(self._data, drawn)

    def validate(self, verifier: NetState, step: int, workdir: pathlib.Path):
        """The validation pairs' figures and their rank."""
        found = self._verify(verifier, "validation")
        figures = {name: found[name] for name in ("accuracy", "auc", "loss") if found[name] is not None}
        return figures, np.float32([-found["accuracy"], found["loss"]])

    def finish(self, best: Best, workdir: pathlib.Path):
        """Weights, and their figures on both lists of pairs; on the test pairs by cell of Table 2."""
        config, data, verifier = self._config, self._data, NetState(best.params, best.batch_stats, None)
        _save_net(workdir / "verifier.safetensors", best)
        test = self._verify(verifier, "test")
        mean_map = mean_map_baseline(data.depth_mm, data.rows("train"), code_of(config))
        bound = verification.generated_depth(mean_map, data, code_of(config))
        results = _header(config, data, best) | {
            "test": test,
            "validation": self._verify(verifier, "validation"),
            "baseline_mean_map": self._verify(verifier, "test", bound),
        }
        if jax.process_index():
            return
        files.write_json(workdir / "results.json", results)
        table = verification_table(test["cells"], [], "accuracy on true depth (pairs)")
        files.write_bytes(workdir / "results.md", table.encode())
        print(f"\n{table}\nFigures: {workdir}/results.md, results.json")

    def _verify(self, net_state, split, depth_levels=None):
        code = code_of(self._config)
        depth_levels = depth_levels or verification.true_depth(self._data, code)
        return verify(Verifier(self._module, net_state, code), depth_levels, self._data, split, self._between)


def _header(config, data, best: Best):
    """What every results.json begins with: `step` is that of the weights, `steps` how many the run had."""
    return {
        "method": config.method,
        "seed": config.seed,
        "dataset": data.meta["dataset"]["name"],
        "fingerprint": data.fingerprint,
        "step": int(best.step),
        "steps": config.train.steps,
    }


def _row_numbers(data):
    return {"row": np.arange(len(data))}


def _names(data, batches):
    """Of the frames of the first of such batches, each once."""
    return data.frames["frame"][np.unique(next(batches)["row"])].tolist()


def _save_net(path, best: Best):
    if jax.process_index() == 0:
        save_weights(path, {"params": best.params, "batch_stats": best.batch_stats})


def _grid(sample):
    return pictures.grid(sample["gray"], {"truth": sample["truth_mm"], "estimate": sample["estimate_mm"]})
