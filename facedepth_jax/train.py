"""The loop, the same for every method: prepare, restore, [save, next, step, log, evaluate], test.

The order is a law: a state is saved before the step that consumes (donates) it, and the step's number alone decides
which examples it sees, so 20 steps are 10 steps and 10 resumed, to the bit.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from facedepth_jax import files, mesh, pictures, steps, verification
from facedepth_jax.checkpoint import Checkpoints, load_weights, save_weights
from facedepth_jax.data import arrays as arrays_on_disk
from facedepth_jax.data import pipeline
from facedepth_jax.data.frames import SPLITS
from facedepth_jax.data.prepare import prepare
from facedepth_jax.data.sources import make_source
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.evaluate import MEAN_MAP, evaluate, mean_map_baseline
from facedepth_jax.levels import DepthCode, image_from_gray, levels_from_image, mm_from_levels
from facedepth_jax.logs import Clock, Logs, check_finite
from facedepth_jax.state import Net, NetState, TrainState, adam, forward, init_net, init_state
from facedepth_jax.stopping import stop_event
from facedepth_jax.tables import markdown_table, verification_table
from facedepth_jax.verification import Verifier, verify

METHODS = steps.METHODS | {"verifier": steps.VERIFIER}
SAMPLES = 8  # faces in a picture
EVALUATION_BATCH = 32  # images a device; no figure depends on it


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path):
    """Trains `config` in `workdir`, or goes on with it, and evaluates the test split; the README says what it leaves.

    Raises FaceDepthError for a config, data or a workdir that cannot be used, and for values that are not finite.
    """
    workdir = pathlib.Path(workdir)
    _check_values(config)
    _build(config, subjects=1)  # what no run can be made with is found before the data are made
    devices = mesh.make_mesh()
    mesh.check_batch_size(devices, config.train.batch_size, "train.batch_size")
    stop = stop_event()
    data = _open_data(config, stop)
    train_rows, _, _ = (data.rows(split) for split in SPLITS)  # an empty one is found now
    method, nets = _build(config, subjects=len(np.unique(data.frames["subject"][train_rows])))
    task = (_Verification if "verifier" in nets else _Depth)(config, nets, data, devices)

    state = task.prepare(init_state(nets, config.seed, config.data.size))
    state = jax.device_put(state, mesh.replicated(devices))
    checkpoints = Checkpoints(workdir / "checkpoints", _identity(config, data))
    state = checkpoints.restore(state) or state
    start = int(state.step)
    if start > config.train.steps:
        raise FaceDepthError(
            f"{workdir} has done {start} steps, train.steps is {config.train.steps}: "
            f"give at least {start}, or another --workdir."
        )
    _write_config(config, workdir)  # now that the run is known to be this one
    step_fn = jax.jit(
        functools.partial(
            method.step,
            nets=nets,
            code=_code(config),
            seed=config.seed,
            **{name: config.loss[name] for name in method.loss_args},
        ),
        donate_argnums=0,
    )
    batches = task.batches(
        train_rows,
        batch_size=config.train.batch_size,
        seed=config.seed,
        start_step=start,
        process=jax.process_index(),
        processes=jax.process_count(),
    )
    logs = Logs(workdir, start, config.train.steps)
    clock = Clock(config.train.batch_size)
    pending = None  # the metrics of the step before: read one step late, so that the device never waits for the host

    def settle():
        nonlocal pending
        if pending is not None:
            step, metrics = pending
            pending = None
            metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
            check_finite(step, metrics)
            logs.advance(step, {name: f"{metrics[name]:.3g}" for name in sorted(metrics) if name.startswith("loss")})
            if step % config.every.log == 0 or step == config.train.steps:
                logs.write(step, metrics | clock.lap(step), "train")

    def save(step):
        settle()
        if not bool(_all_finite(state)):
            raise FaceDepthError(f"Step {step}: a parameter is not finite. The run stops, the last checkpoint is kept.")
        checkpoints.save(step, state)

    try:
        for step in range(start + 1, config.train.steps + 1):
            if step - 1 > start and (stop.is_set() or (step - 1) % config.every.save == 0):
                save(step - 1)
            if stop.is_set():
                checkpoints.finish()
                print(f"Stopped at step {step - 1}, which is saved: the same command continues.")
                return
            batch = mesh.put_batch(devices, next(batches))
            with jax.transfer_guard("disallow"):
                state, metrics = step_fn(state, batch)
            settle()
            pending = step, metrics
            if step % config.every.evaluate == 0 or step == config.train.steps:
                settle()
                with clock.paused():
                    state, figures = task.validate(state, step, workdir)
                    logs.write(step, figures, "validation")
        if start < config.train.steps:
            save(config.train.steps)
            checkpoints.finish()
        settle()
    finally:
        logs.close()
    task.finish(state, workdir)


def _header(config, data):
    """What every results.json begins with."""
    return {
        "method": config.method,
        "seed": config.seed,
        "dataset": data.meta["dataset"]["name"],
        "fingerprint": data.fingerprint,
    }


class _Depth:
    """What the loop asks of a method with a generator: batches of frames, a validation, the end."""

    def __init__(self, config, nets: dict[str, Net], data, devices):
        module = nets["generator"].module
        self._config = config
        self._code = _code(config)
        self._data = data
        self._put = functools.partial(_put, devices)
        self._batch_size = EVALUATION_BATCH * devices.size
        self._predict = jax.jit(
            lambda net_state, gray: forward(module, net_state, image_from_gray(gray)[..., None]),
            out_shardings=mesh.replicated(devices),
        )

    def prepare(self, state):
        """The state that the run begins with."""
        return state

    def batches(self, train_rows, **options):
        """Frames with their person's place among the training people, sorted; -1 for others, who are never drawn."""
        data = self._data
        subject = np.full(len(data), -1, np.int32)
        subject[train_rows] = np.unique(data.frames["subject"][train_rows], return_inverse=True)[1]
        arrays = {"gray": data.gray, "depth_mm": data.depth_mm, "subject": subject}
        return pipeline.batches(arrays, train_rows, **options)

    def validate(self, state, step, workdir):
        """The state, as it is, and the validation split's figures; a picture beside."""
        rows = self._data.rows("validation")
        figures = self._measure(state.nets["generator"], rows)
        sample = self._sample(state.nets["generator"], rows)
        if jax.process_index() == 0:
            pictures.write_png(workdir / f"samples/{step:08d}.png", _grid(sample))
        return state, figures["valid"] | figures["mm"]

    def finish(self, state, workdir):
        """Weights, the test split's figures, table and pictures."""
        config, data, generator = self._config, self._data, state.nets["generator"]
        _save_net(workdir / "generator.safetensors", generator.params, generator.batch_stats)
        rows = data.rows("test")
        test = self._measure(generator, rows)
        validation = self._measure(generator, data.rows("validation"))  # what a setting is chosen by
        mean_map = self._run(mean_map_baseline(data.depth_mm, data.rows("train"), self._code), rows)
        results = _header(config, data) | {
            "lam": config.loss.lam if "lam" in METHODS[config.method].loss_args else None,
            "step": config.train.steps,
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
            put=self._put,
        )

    def _sample(self, generator: NetState, rows):
        """SAMPLES faces, spread evenly over the rows: names, gray, true and estimated depth in mm."""
        rows = rows[np.linspace(0, len(rows) - 1, min(SAMPLES, len(rows))).round().astype(int)]
        gray, truth = self._data.gray[rows], self._data.depth_mm[rows]
        padded = np.resize(gray, (self._batch_size, *gray.shape[1:]))
        image = self._predict(generator, self._put({"gray": padded})["gray"])
        image = jax.device_get(image)[: len(rows), ..., 0]
        estimate = mm_from_levels(levels_from_image(image, self._code), self._code)
        return {
            "frame": self._data.frames["frame"][rows],
            "gray": gray,
            "truth_mm": truth,
            "estimate_mm": np.asarray(estimate),
        }


class _Verification:
    """The same for the verifier: pairs of real depth maps; the validation pairs choose which weights are kept.

    The best so far is part of the state, so a run that goes on keeps it: `nets["best"]`, the weights with their step,
    accuracy and loss on the validation pairs.
    """

    def __init__(self, config, nets: dict[str, Net], data, devices):
        self._config = config
        self._data = data
        self._module = nets["verifier"].module
        for split in ("validation", "test"):
            verification.pair_rows(data, split)  # what cannot be used is found now

    def prepare(self, state):
        """With a place for the best, worse than any."""
        verifier = state.nets["verifier"]
        weights = jax.tree.map(jnp.zeros_like, {"params": verifier.params, "batch_stats": verifier.batch_stats})
        best = weights | {"step": jnp.int32(0), "accuracy": jnp.float32(-1), "loss": jnp.float32(0)}
        return TrainState(state.step, state.nets | {"best": best})

    def batches(self, train_rows, **options):
        """Pairs, drawn anew for every step."""
        data = self._data
        return pipeline.pair_batches(
            {"depth_mm": data.depth_mm}, train_rows, data.frames["subject"][train_rows], **options
        )

    def validate(self, state, step, workdir):
        """The state with the better of its weights and the best before them, and the validation pairs' figures."""
        found = self._verify(state.nets["verifier"], "validation")
        accuracy, loss = np.float32(found["accuracy"]), np.float32(found["loss"])
        best = _keep_better(state.nets["best"], state.nets["verifier"], np.int32(step), accuracy, loss)
        figures = {name: found[name] for name in ("accuracy", "auc", "loss") if found[name] is not None}
        return TrainState(state.step, state.nets | {"best": best}), figures

    def finish(self, state, workdir):
        """The best weights, and their figures on both lists of pairs; on the test pairs by cell of Table 2."""
        config, data, best = self._config, self._data, state.nets["best"]
        _save_net(workdir / "verifier.safetensors", best["params"], best["batch_stats"])
        verifier = NetState(best["params"], best["batch_stats"], None)
        test = self._verify(verifier, "test")
        mean_map = mean_map_baseline(data.depth_mm, data.rows("train"), _code(config))
        bound = verification.generated_depth(mean_map, data, _code(config))
        results = _header(config, data) | {
            "step": int(best["step"]),
            "steps": config.train.steps,
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
        code = _code(self._config)
        depth_levels = depth_levels or verification.true_depth(self._data, code)
        return verify(Verifier(self._module, net_state, code), depth_levels, self._data, split)


@jax.jit
def _keep_better(best, verifier: NetState, step, accuracy, loss):
    """By accuracy, then by loss; the earlier one where both are equal."""
    better = (accuracy > best["accuracy"]) | ((accuracy == best["accuracy"]) & (loss < best["loss"]))
    new = {"params": verifier.params, "batch_stats": verifier.batch_stats}
    new |= {"step": step, "accuracy": accuracy, "loss": loss}
    return jax.tree.map(lambda new, old: jnp.where(better, new, old), new, best)


def _save_net(path, params, batch_stats):
    if jax.process_index() == 0:
        save_weights(path, {"params": params, "batch_stats": batch_stats})


def _grid(sample):
    return pictures.grid(sample["gray"], {"truth": sample["truth_mm"], "estimate": sample["estimate_mm"]})


def _put(devices, batch):
    """A batch that every process has whole: gray is divided, for the net; depth goes everywhere, for the sums."""
    return {
        name: jax.device_put(value, mesh.divided(devices) if name == "gray" else mesh.replicated(devices))
        for name, value in batch.items()
    }


@dataclasses.dataclass(frozen=True)
class Generator:
    """A trained generator and what is needed to read its images.

    Attributes:
      predict: gray uint8 (B, S, S) -> image float32 (B, S, S, 1) in [-1, 1], jitted.
      size: S, pixels.
      code: what a level stands for.
      face_mm: width of the window that a face must be cropped to, R of Eq. 6.
    """

    predict: Callable
    size: int
    code: DepthCode
    face_mm: float


def load_generator(run_dir) -> Generator:
    """The generator of a run from its `config.json` and `generator.safetensors`. Raises FaceDepthError without them."""
    config, module, net_state = _load(run_dir, "generator")
    predict = jax.jit(lambda gray: forward(module, net_state, image_from_gray(gray)[..., None]))
    return Generator(predict, config.data.size, _code(config), config.data.face_mm)


def load_verifier(run_dir) -> Verifier:
    """The verifier of a run from its `config.json` and `verifier.safetensors`. Raises FaceDepthError without them."""
    config, module, net_state = _load(run_dir, "verifier")
    return Verifier(module, net_state, _code(config))


def verify_run(verifier: Verifier, run_dir, data) -> dict:
    """A run's generated depth on the test pairs, both images of a pair generated; as `verification.verify` gives it.

    Raises FaceDepthError for a run without a generator, or whose images do not suit the verifier or the data.
    """
    generator = load_generator(run_dir)
    if generator.code != verifier.code:
        raise FaceDepthError(f"{run_dir} and the verifier differ in what a level of depth stands for (config.code).")
    if generator.size != data.gray.shape[1]:
        raise FaceDepthError(f"{run_dir} takes images of {generator.size} px, {data.path} has {data.gray.shape[1]}.")
    return verify(verifier, verification.generated_depth(generator.predict, data, verifier.code), data, "test")


def _load(run_dir, name):
    """Config, module and NetState of a run's net, the one that it is for."""
    run_dir = pathlib.Path(run_dir)
    if not (run_dir / "config.json").is_file():
        raise FaceDepthError(f"There is no run in {run_dir}: give the --workdir of a training.")
    values = files.read_json(run_dir / "config.json")
    try:
        config = ml_collections.ConfigDict(values)
        nets = _build(config, subjects=1)[1]
        if name not in nets:
            raise FaceDepthError(f"{run_dir} is a run of '{config.method}', which has no {name}: give another.")
        size, _, _ = config.data.size, _code(config), config.data.face_mm
        like = jax.eval_shape(lambda: init_net(nets[name], jax.random.key(0), size))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FaceDepthError(f"{run_dir / 'config.json'} is damaged or of another version: train again.") from error
    variables = load_weights(run_dir / f"{name}.safetensors", {"params": like.params, "batch_stats": like.batch_stats})
    return config, nets[name].module, NetState(variables["params"], variables["batch_stats"], None)


def _check_values(config):
    """Raises FaceDepthError for a number that no run can be made with."""
    every = config.every
    for name, value, least in (
        ("seed", config.seed, 0),
        ("width", config.width, 2),
        ("train.steps", config.train.steps, 1),
        ("data.size", config.data.size, 16),
        ("every.log", every.log, 1),
        ("every.save", every.save, 1),
        ("every.evaluate", every.evaluate, 1),
    ):
        if value < least:
            raise FaceDepthError(f"{name} is {value}: it must be at least {least}.")


def _build(config, subjects):
    """The row of METHODS and its nets with their optimisers, for so many training people."""
    if config.method not in METHODS:
        raise FaceDepthError(f"There is no method {config.method!r}: take one of {', '.join(METHODS)}.")
    if config.dtype not in ("float32", "bfloat16"):
        raise FaceDepthError(f"dtype is {config.dtype!r}: take float32 or bfloat16.")
    if config.data.size % 16:
        raise FaceDepthError(f"data.size is {config.data.size}: the nets halve it four times, take a multiple of 16.")
    method = METHODS[config.method]
    net_args = {name: config.net[name] for name in method.net_args}
    modules = method.modules(config.width, jnp.dtype(config.dtype), subjects, **net_args)
    train = config.train
    return method, {
        name: Net(module, adam(train.learning_rate, train.b1, train.b2)) for name, module in modules.items()
    }


def _code(config):
    return DepthCode(**config.code.to_dict())


def _open_data(config, stop):
    """The arrays, prepared first if the config says from what."""
    data = config.data
    if data.dataset and jax.process_index() == 0:
        source = make_source(data.dataset, data.raw_dir, data.options.to_dict())
        prepare(
            source,
            data.dir,
            face_mm=data.face_mm,
            size=data.size,
            seed=data.seed,
            pair_lists={"validation": data.pairs_validation, "test": data.pairs_test},
            workers=data.workers,
            stopped=stop.is_set,
        )
    _wait_for_all("prepared")
    opened = arrays_on_disk.open(data.dir)
    if opened.gray.shape[1] != data.size:
        raise FaceDepthError(f"{data.dir} holds images of {opened.gray.shape[1]} px, data.size is {data.size}.")
    face_mm = opened.meta["crop"]["face_mm"]
    if face_mm != data.face_mm:  # `predict` crops by the run's own
        raise FaceDepthError(f"{data.dir} holds crops of {face_mm:g} mm, data.face_mm is {data.face_mm:g}.")
    return opened


def _wait_for_all(name):
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def _identity(config, data):
    """What must not change while a run goes on: all that decides its numbers but how long it goes."""
    identity = config.to_dict()
    for name in ("every", "data"):
        del identity[name]
    del identity["train"]["steps"]
    return identity | {"data": data.fingerprint}


def _write_config(config, workdir):
    """The resolved config into the run, for who reads it later. What may not change is in the checkpoints."""
    if jax.process_index() == 0:
        files.write_json(workdir / "config.json", config.to_dict())


@jax.jit
def _all_finite(state):
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(state)]))
