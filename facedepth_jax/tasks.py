"""Per-method hooks of the training loop: batching, validation, final evaluation. Generators, and the verifier.

`validate` returns figures, a picture or None, and a rank, float32 (2,), lower is better: by the first number, then by
the second. The best weights by that rank go to `finish`, which returns the test split's figures and picture.
"""

import functools
import pathlib

import jax
import numpy as np

from facedepth_jax import config as configs
from facedepth_jax import devices, evaluation, files, pictures, runtime, verification
from facedepth_jax.data import pipeline
from facedepth_jax.data.arrays import Arrays
from facedepth_jax.depth_code import without_background
from facedepth_jax.estimator import estimate_depth
from facedepth_jax.evaluation import MEAN_MAP
from facedepth_jax.methods import METHODS
from facedepth_jax.state import Best, Net, NetState, TrainState, variables
from facedepth_jax.tables import LISTS_NOTE, figures_tables, lists_tables, verification_table
from facedepth_jax.weight_files import save_weights

SAMPLES = 8  # faces in a picture


def make_task(config, nets: dict[str, Net], data: Arrays, mesh):
    """Make the task of a config's method."""
    return (VerifierTask if config.method == "verifier" else DepthTask)(config, nets, data, mesh)


class _Task:
    images = 1  # in an example

    def __init__(self, config, nets: dict[str, Net], data: Arrays, mesh):
        self._config, self._data, self._mesh = config, data, mesh
        self._code = configs.depth_code(config)
        self._module = nets[METHODS[config.method].net].module

    def batches(self, train_rows, **options):
        """Yield batches on the devices; the options are those of `pipeline.batches`."""
        arrays, put = devices.place_examples(self._mesh, self._examples(train_rows))
        return map(put, self._draw(arrays, train_rows, **options))

    def frames_of(self, step: int, train_rows, **options) -> list[str]:
        """Name the frames of a step's batch, of all processes, each once."""
        rows = {"row": np.arange(len(self._data))}
        drawn = next(self._draw(rows, train_rows, start_step=step - 1, **options))
        return self._data.frames["frame"][np.unique(drawn["row"])].tolist()

    def _save_nets(self, best: Best, state: TrainState, workdir) -> NetState:
        """Export the best weights of the evaluated net, which are returned, and the last ones of the others."""
        net_state = NetState(best.params, best.batch_stats, None)
        for name, net in (state.nets | {METHODS[self._config.method].net: net_state}).items():
            if jax.process_index() == 0 and name != "identity":  # that one distinguishes the training people alone
                save_weights(workdir / f"{name}.safetensors", variables(net))
        return net_state

    def _kept(self, best: Best, which: str, name: str, value: float) -> str:
        steps = self._config.train.steps
        return f"The weights are those of step {int(best.step)} of {steps}: {which} validation/{name}, {value:.6g}."

    def _header(self, best: Best) -> dict:
        """Begin a results.json: `step` is that of the weights, `steps` how many the run had."""
        return {
            "method": self._config.method,
            "seed": self._config.seed,
            "dataset": self._data.meta["dataset"]["name"],
            "fingerprint": self._data.fingerprint,
            "step": int(best.step),
            "steps": self._config.train.steps,
        }


class DepthTask(_Task):
    """Train a generator; keep the weights of the lowest L1 over all pixels, the first row of Table 1.

    The paper does not say which weights it takes. Where depth is counted from the head, the lowest error of relief
    decides. A batch has each person's place among the training people, sorted.
    """

    def __init__(self, config, nets: dict[str, Net], data: Arrays, mesh):
        super().__init__(config, nets, data, mesh)
        estimate = functools.partial(estimate_depth, self._module, self._code)
        options = runtime.inference_options()
        self._estimate = jax.jit(estimate, out_shardings=devices.divided(mesh), compiler_options=options)

    def _examples(self, train_rows):
        data = self._data
        subject = np.full(len(data), -1, np.int32)  # the others are never drawn
        subject[train_rows] = np.unique(data.frames["subject"][train_rows], return_inverse=True)[1]
        return {"gray": data.gray, "depth_mm": data.depth_mm, "distance_mm": self._data.distance_mm, "subject": subject}

    _draw = staticmethod(pipeline.batches)

    def validate(self, generator: NetState, step: int, workdir: pathlib.Path):
        """Measure the validation split, and write a picture."""
        rows = self._data.rows("validation")
        found = self._evaluate(generator, rows)
        picture = _grid(self._sample(generator, rows))
        if jax.process_index() == 0:
            pictures.write_png(workdir / f"samples/{step:08d}.png", picture)
        ranks = self._ranks(found)
        return _shown(found) | ranks, picture, np.float32([*ranks.values()])

    def _ranks(self, found: dict) -> dict[str, float]:
        """Choose the figures that decide which weights are kept, lower is better, as they are called in the log."""
        if self._code.origin == "head" and "relief" in found:
            return {"relief_mae": found["relief"]["relief_mae"], "all_l1": found["all"]["l1"]}
        return {"all_l1": found["all"]["l1"], "all_rmse_lin": found["all"]["rmse_lin"]}

    def finish(self, best: Best, state: TrainState, workdir: pathlib.Path):
        """Write the weights, and the test split's figures, table and pictures."""
        config, data, generator = self._config, self._data, self._save_nets(best, state, workdir)
        rows = data.rows("test")
        test = self._evaluate(generator, rows)
        validation = self._evaluate(generator, data.rows("validation"))  # settings are chosen by it
        mean_map = evaluation.evaluate(evaluation.mean_map(data, self._code), data, rows, self._code, self._mesh)
        results = self._header(best) | {
            "test": test,
            "validation": validation,
            "baseline_mean_map": mean_map,
        }
        sample = self._sample(generator, rows)
        figures, picture = _shown(test), _grid(sample)
        if jax.process_index():
            return figures, picture
        files.write_json(workdir / "results.json", results)
        pictures.write_png(workdir / "samples/test.png", picture)
        files.write_npz(workdir / "samples/test.npz", sample)
        table = figures_tables({MEAN_MAP: mean_map, config.method: test}, baseline=MEAN_MAP)
        files.write_bytes(workdir / "results.md", table.encode())
        kept = self._kept(best, "lowest", *next(iter(self._ranks(validation).items())))
        print(f"\n{table}\n{kept}")
        print(f"Test faces: {workdir}/samples/test.png   figures: {workdir}/results.md, results.json")
        return figures, picture

    def _evaluate(self, generator: NetState, rows):
        estimate = functools.partial(self._estimate, generator)
        return evaluation.evaluate(estimate, self._data, rows, self._code, self._mesh)

    def _sample(self, generator: NetState, rows):
        """Estimate SAMPLES faces, spread evenly over the rows: names, gray, true and estimated depth in mm."""
        rows = rows[np.linspace(0, len(rows) - 1, min(SAMPLES, len(rows))).round().astype(int)]
        mine = devices.share(np.resize(rows, evaluation.BATCH * self._mesh.size))
        batch = devices.put_batch(self._mesh, (self._data.gray[mine], self._data.distance_mm[mine]))
        estimate_mm = without_background(*self._estimate(generator, *batch))
        return {
            "frame": self._data.frames["frame"][rows],
            "gray": self._data.gray[rows],
            "truth_mm": self._data.depth_mm[rows],
            "estimate_mm": jax.device_get(devices.put_everywhere(self._mesh, estimate_mm))[: len(rows)],
        }


class VerifierTask(_Task):
    """Train the verifier on pairs of real depth maps; keep the weights of the highest accuracy on the validation pairs.

    Among equals those with the lowest loss are kept.
    """

    images = 2

    def __init__(self, config, nets: dict[str, Net], data: Arrays, mesh):
        super().__init__(config, nets, data, mesh)
        for split in ("validation", "test"):
            verification.pair_rows(data, split)  # unusable lists are found now
        self.frames_of(1, data.rows("train"), batch_size=2, seed=0)  # so are people who make no pairs

    def _examples(self, train_rows):
        return {"depth_mm": self._data.depth_mm, "distance_mm": self._data.distance_mm}

    def _draw(self, arrays, train_rows, **options):
        return pipeline.pair_batches(arrays, train_rows, self._data.frames["subject"][train_rows], **options)

    def validate(self, verifier: NetState, step: int, workdir: pathlib.Path):
        """Measure the validation pairs."""
        true_depth = verification.true_depth(self._data)
        found = verification.verify(self._verifier(verifier), true_depth, self._data, "validation")
        return self._shown(found), None, np.float32([-found["accuracy"], found["loss"]])

    @staticmethod
    def _shown(found):
        return {name: found[name] for name in ("accuracy", "auc", "loss") if found[name] is not None}

    def finish(self, best: Best, state: TrainState, workdir: pathlib.Path):
        """Write the weights, their figures and bounds on both lists of pairs, and a table of Table 2's cells."""
        data, verifier = self._data, self._verifier(self._save_nets(best, state, workdir))
        maps = verification.bounds(data, self._code)
        bounds = {title: verification.verify_lists(verifier, depth_maps, data) for title, depth_maps in maps.items()}
        test, validation = (bounds[verification.TRUE_DEPTH][split] for split in ("test", "validation"))
        results = self._header(best) | {"test": test, "validation": validation, "bounds": bounds}
        if jax.process_index():
            return self._shown(test), None
        files.write_json(workdir / "results.json", results)
        rows = {title: [found] for title, found in bounds.items()}
        table = verification_table(test["cells"], [], "accuracy on true depth (pairs)")
        table = f"{LISTS_NOTE}\n\n{lists_tables(rows)}\n{table}"
        files.write_bytes(workdir / "results.md", table.encode())
        print(f"\n{table}\n{self._kept(best, 'highest', 'accuracy', validation['accuracy'])}")
        print(f"Figures: {workdir}/results.md, results.json")
        return self._shown(test), None

    def _verifier(self, net_state):
        return verification.Verifier(self._module, net_state, self._code)


def _shown(found):
    return found["valid"] | found["mm"] | found.get("relief", {})


def _grid(sample):
    return pictures.grid(sample["gray"], {"truth": sample["truth_mm"], "estimate": sample["estimate_mm"]})
