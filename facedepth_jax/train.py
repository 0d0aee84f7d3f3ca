"""The loop, the same for every method: prepare, restore, [save, next, step, log, evaluate], test.

The order is a law: a state is saved before the step that consumes (donates) it, and the step's number alone decides
which examples it sees, so 20 steps are 10 steps and 10 resumed, to the bit.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from facedepth_jax import files, mesh
from facedepth_jax.checkpoint import Checkpoints
from facedepth_jax.data import arrays as arrays_on_disk
from facedepth_jax.data.frames import SPLITS
from facedepth_jax.data.prepare import prepare
from facedepth_jax.data.sources import make_source
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.logs import Clock, Logs, check_finite
from facedepth_jax.runs import build, check_values, code_of
from facedepth_jax.state import init_state, keep_better, no_best
from facedepth_jax.stopping import stop_event
from facedepth_jax.tasks import make_task


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path):
    """Trains `config` in `workdir`, or goes on with it, and evaluates the test split; the README says what it leaves.

    Raises FaceDepthError for a config, data or a workdir that cannot be used, and for values that are not finite.
    """
    workdir = pathlib.Path(workdir)
    check_values(config)
    build(config, subjects=1)  # what no run can be made with is found before the data are made
    devices = mesh.make_mesh()
    mesh.check_batch_size(devices, config.train.batch_size, "train.batch_size")
    stop = stop_event()
    data = _open_data(config, stop)
    train_rows, _, _ = (data.rows(split) for split in SPLITS)  # an empty one is found now
    method, nets = build(config, subjects=len(np.unique(data.frames["subject"][train_rows])))
    task = make_task(config, nets, data, devices)

    state = init_state(nets, config.seed, config.data.size)
    saved = jax.device_put({"state": state, "best": no_best(state.nets[task.net])}, mesh.replicated(devices))
    checkpoints = Checkpoints(workdir / "checkpoints", _identity(config, data))
    saved = checkpoints.restore(saved) or saved
    state, best = saved.pop("state"), saved.pop("best")
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
            code=code_of(config),
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
        checkpoints.save(step, {"state": state, "best": best})

    def validate(step):
        settle()
        with clock.paused():
            figures, rank = task.validate(state.nets[task.net], step, workdir)
            logs.write(step, figures, "validation")
        return keep_better(best, state.nets[task.net], np.int32(step), rank)

    try:
        for step in range(start + 1, config.train.steps + 1):
            if step - 1 > start and (stop.is_set() or (step - 1) % config.every.save == 0):
                save(step - 1)
            if stop.is_set():
                checkpoints.finish()
                print(f"Stopped at step {step - 1}, which is saved: the same command continues.")
                return
            batch = next(batches)
            with jax.transfer_guard("disallow"):
                state, metrics = step_fn(state, batch)
            settle()
            pending = step, metrics
            if step % config.every.evaluate == 0:
                best = validate(step)
        if start < config.train.steps:
            save(config.train.steps)
            checkpoints.finish()
        settle()
        if config.train.steps % config.every.evaluate:  # after the save: a longer run would not measure here
            best = validate(config.train.steps)
    finally:
        logs.close()
    task.finish(best, workdir)


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
    return identity | {"data": data.fingerprint, "every.evaluate": config.every.evaluate}  # it decides what is kept


def _write_config(config, workdir):
    """The resolved config into the run, for who reads it later. What may not change is in the checkpoints."""
    if jax.process_index() == 0:
        files.write_json(workdir / "config.json", config.to_dict())


@jax.jit
def _all_finite(state):
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(state)]))
