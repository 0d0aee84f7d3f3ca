"""The loop, the same for every method: prepare, restore, [save, evaluate, next, step, log], test.

The order is a law: a state is saved before the step that consumes (donates) it, and the step's number alone decides
which examples it sees and whether it is evaluated, so 20 steps are 10 steps and 10 resumed, to the bit. A save comes
before the evaluation of the same step, so whatever ends the one, the run that goes on does it again.
"""

import faulthandler
import functools
import glob
import itertools
import pathlib
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from facedepth_jax import devices, files
from facedepth_jax.checkpoint import Checkpoints
from facedepth_jax.data import arrays as arrays_on_disk
from facedepth_jax.data.frames import SPLITS
from facedepth_jax.data.prepare import prepare
from facedepth_jax.data.readers import make_source
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.logs import Clock, Logs, Silence, first_not_finite
from facedepth_jax.runs import build, check_values, code_of
from facedepth_jax.state import init_state, keep_better, no_best
from facedepth_jax.stopping import Stopped, stop_event
from facedepth_jax.tasks import make_task

GPUS = "/dev/nvidia[0-9]*"
ASK_EVERY = 10  # steps or batches: when several processes ask each other for a signal, which takes the devices' time


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path, insist: bool = False):
    """Trains `config` in `workdir`, or goes on with it, and evaluates the test split; the README says what it leaves.

    SIGTERM and SIGINT, to any of the processes, save and end it with a line that says how to go on.

    Args:
      insist: go on from checkpoints of another config or other data, as far as their nets fit.

    Raises FaceDepthError for a config, data or a workdir that cannot be used, for values that are not finite, and at
    the next step after a save that failed.
    """
    check_values(config)
    clock = Clock(config.train.batch_size)
    try:
        _run(config, pathlib.Path(workdir), clock, insist)
        last = clock.account()
    except Stopped as stopped:
        last = f"{clock.account()}\n{stopped}"
    finally:
        faulthandler.cancel_dump_traceback_later()
    if jax.process_index() == 0:
        print(last)


def _run(config, workdir, clock, insist):
    stop = stop_event()
    files.check_local(workdir)
    build(config, subjects=1)  # what no run can be made with is found before the data are made
    devices = devices.make_mesh()
    devices.check_batch_size(devices, config.train.batch_size, "train.batch_size")
    _warn_of_unused_gpus()

    calls = itertools.count()

    def alive():
        """Between the steps and between an evaluation's batches: puts off the watchdog, looks for a signal."""
        faulthandler.dump_traceback_later(config.every.stuck_sec, file=sys.__stderr__)
        asks = jax.process_count() == 1 or next(calls) % ASK_EVERY == 0
        if asks and devices.any_process(stop.is_set()):
            raise Stopped("Stopped before a step: the same command continues.")

    _prepare(config.data, stop)
    data = _open_data(config.data)
    alive()
    train_rows, _, _ = (data.rows(split) for split in SPLITS)  # an empty one is found now
    method, nets = build(config, subjects=len(np.unique(data.frames["subject"][train_rows])))
    task = make_task(config, nets, data, devices, alive)

    state = init_state(nets, config.seed, config.data.size)
    saved = devices.put_everywhere(devices, {"state": state, "best": no_best(state.nets[task.net])})
    checkpoints = Checkpoints(workdir / "checkpoints", _identity(config, data), insist=insist)
    saved = checkpoints.restore(saved) or saved
    state, best = saved.pop("state"), saved.pop("best")
    if checkpoints.insisted:  # its rank is of other values, or other data
        best = no_best(state.nets[task.net])
    start = saved_step = int(state.step)
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
    drawn = {"batch_size": config.train.batch_size, "seed": config.seed}
    batches = task.batches(
        train_rows, start_step=start, process=jax.process_index(), processes=jax.process_count(), **drawn
    )
    logs = Silence() if jax.process_index() else Logs(workdir, start, config.train.steps)
    pending = None  # the metrics of the step before: read one step late, so that the device never waits for the host

    def not_finite(step, what):
        checkpoints.finish()  # what is on its way to the disk is good
        return FaceDepthError(
            f"Step {step}: {what}. The run stops, the last good checkpoint is kept; try a lower learning rate, "
            f"or look at the frames of this step: {', '.join(task.frames_of(step, train_rows, **drawn))}."
        )

    def settle():
        nonlocal pending
        if pending is not None:
            step, metrics = pending
            pending = None
            metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
            if what := first_not_finite(metrics):
                raise not_finite(step, what)
            logs.advance(step, {name: f"{metrics[name]:.3g}" for name in sorted(metrics) if name.startswith("loss")})
            if step % config.every.log == 0 or step == config.train.steps:
                logs.write(step, metrics | clock.lap(step), "train")

    def save(step):
        nonlocal saved_step
        settle()
        if not bool(_all_finite(state)):
            raise not_finite(step, "a parameter is not finite")
        clock.charge("step")
        checkpoints.save(step, {"state": state, "best": best}, int(best.step))
        saved_step = step
        clock.charge("save")

    def validate(step):
        settle()
        clock.charge("step")
        try:
            figures, rank = task.validate(state.nets[task.net], step, workdir)
            logs.write(step, figures, "validation")
        finally:
            clock.charge("evaluation")
        return keep_better(best, state.nets[task.net], np.int32(step), rank)

    clock.charge("start")
    step = start
    try:
        for step in range(start, config.train.steps + 1):
            alive()
            checkpoints.check()
            last = step == config.train.steps
            if step > saved_step and (last or step % config.every.save == 0):
                save(step)
            if last or step and step % config.every.evaluate == 0:
                best = validate(step)
            if last:
                break
            clock.charge("step")
            batch = next(batches)
            idle = pending is None or all(value.is_ready() for value in pending[1].values())
            clock.charge("data" if idle else "step")
            with jax.transfer_guard("disallow"):
                state, metrics = step_fn(state, batch)
            if step == start:
                clock.charge("compile")
            settle()
            pending = step + 1, metrics
    except Stopped:
        if step > saved_step:
            save(step)
        checkpoints.finish()
        clock.charge("save")
        if step:
            raise Stopped(f"Stopped at step {step}, which is saved: the same command continues.") from None
        raise
    finally:
        logs.close()
    checkpoints.finish()
    clock.charge("save")
    try:
        task.finish(best, workdir)
    except Stopped:
        raise Stopped(f"Stopped in the last evaluation, step {step} is saved: the same command continues.") from None
    finally:
        clock.charge("test")


def _warn_of_unused_gpus():
    if jax.default_backend() == "cpu" and glob.glob(GPUS):
        print(
            "warning: this machine has a GPU and JAX uses the CPU: install the extra [cuda], or look at JAX_PLATFORMS.",
            file=sys.stderr,
        )


def _prepare(data, stop):
    """Makes the arrays if the config says from what: one process does, the others wait."""
    stopped = Stopped("Stopped before a step: the same command continues.")
    if data.dataset and jax.process_index() == 0:
        source = make_source(data.dataset, data.raw_dir, data.options.to_dict())
        try:
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
        except Stopped as raised:
            stopped = raised
    if devices.any_process(stop.is_set()):
        raise stopped


def _open_data(data):
    opened = arrays_on_disk.open(data.dir)
    if opened.gray.shape[1] != data.size:
        raise FaceDepthError(f"{data.dir} holds images of {opened.gray.shape[1]} px, data.size is {data.size}.")
    face_mm = opened.meta["crop"]["face_mm"]
    if face_mm != data.face_mm:  # `predict` crops by the run's own
        raise FaceDepthError(f"{data.dir} holds crops of {face_mm:g} mm, data.face_mm is {data.face_mm:g}.")
    return opened


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
        files.remove_partial(workdir)
        files.write_json(workdir / "config.json", config.to_dict())


@jax.jit
def _all_finite(state):
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(state)]))
