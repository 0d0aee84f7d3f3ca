"""Train any method: set up, then [save, validate, next, step, log], then test.

The order is a law: a state is saved before the step that consumes (donates) it, and the step's number alone decides
which examples it sees and whether it is validated, so 20 steps are 10 steps and 10 resumed, to the bit. A save comes
before the validation of the same step, so a run that died in the latter does it again. Dying anywhere is harmless.
"""

import contextlib
import dataclasses
import faulthandler
import glob
import pathlib
import sys

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from facedepth_jax import config as configs
from facedepth_jax import devices, files, runtime
from facedepth_jax.checkpoint import Checkpoints
from facedepth_jax.data import arrays as arrays_on_disk
from facedepth_jax.data.frames import SPLITS
from facedepth_jax.data.prepare import prepare
from facedepth_jax.data.readers import make_source
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.logs import Logs, Pace, Silence, first_not_finite
from facedepth_jax.methods import METHODS, build, make_step
from facedepth_jax.state import init_state, keep_better, no_best, variables
from facedepth_jax.tasks import make_task
from facedepth_jax.weight_files import load_weights

GPUS = "/dev/nvidia[0-9]*"
ASK_EVERY = 10  # steps after which several processes ask each other for a signal, which takes the devices' time


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path, allow_mismatch: bool = False):
    """Train `config` in `workdir`, or go on with it, and evaluate the test split; the README lists the files.

    SIGTERM or SIGINT to any of the processes ends it between two steps, with a checkpoint.

    Args:
      allow_mismatch: go on from checkpoints of another config or other data, as far as their nets fit.

    Raises:
      FaceDepthError: the config, the data or `workdir` cannot be used, a value is not finite, or a save has failed.
    """
    configs.check(config)
    if not config.data.dir:
        raise FaceDepthError("data.dir is empty: give the directory of prepared arrays, or where to make them.")
    files.check_local(workdir)
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            stack.enter_context(files.locked(workdir))
        training = _Training(config, workdir, allow_mismatch)
        stack.callback(training.logs.close)
        stack.callback(faulthandler.cancel_dump_traceback_later)
        if training.loop():
            figures, picture = training.task.finish(training.best, training.state, training.workdir)
            training.logs.show(config.train.steps, figures, "test", picture)


class _Training:
    """A run: set up, the loop, and the loop's verbs."""

    def __init__(self, config, workdir, allow_mismatch):
        self.config, self.workdir = configs.with_absolute_paths(config), pathlib.Path(workdir).absolute()
        config, self.method = self.config, METHODS[config.method]
        # All that needs no data is looked at before they are made: that may take hours.
        shapes = jax.eval_shape(lambda: init_state(build(config, subjects=1), config.seed, config.data.size))
        folder = self.workdir / "checkpoints"
        known = Checkpoints(folder, configs.identity(config, None))
        # A run that goes on has its weights in a checkpoint, and needs the other run no more.
        begins = not known.steps()
        if begins:
            _check_new(self.workdir)
        elif jax.process_index() == 0 and not allow_mismatch:
            known.check_newest()
        if config.init_from and begins:
            there, here = configs.depth_code(configs.read_run(config.init_from)), configs.depth_code(config)
            if there != here:
                raise FaceDepthError(
                    f"The run in init_from, {config.init_from}, has {there}, this one {here}: give the same depth_code."
                )
            _start_from(config.init_from, shapes, self.method.net)
        mesh = devices.make_mesh()
        devices.check_batch_size(mesh, config.train.batch_size, "train.batch_size")
        _warn_of_unused_gpus()
        data = _open_data(config.data)
        configs.check_crops(config, data)  # `predict` crops by the run's own
        self.train_rows, _, _ = (data.rows(split) for split in SPLITS)  # an empty one is found now
        nets = build(config, subjects=len(np.unique(data.frames["subject"][self.train_rows])))
        self.task = make_task(config, nets, data, mesh)

        state = init_state(nets, config.seed, config.data.size)
        if config.init_from and begins:
            state = _start_from(config.init_from, state, self.method.net)
        net = state.nets[self.method.net]
        if config.train.average_decay:
            state = dataclasses.replace(state, average=variables(net))
        saved = devices.put_everywhere(mesh, {"state": state, "best": no_best(net)})
        self.checkpoints = Checkpoints(folder, configs.identity(config, data.fingerprint), allow_mismatch)
        saved = self.checkpoints.restore(saved) or saved
        self.state, self.best = saved["state"], saved["best"]
        if self.checkpoints.mismatched:  # the rank is of other values, or other data
            self.best = no_best(self.state.nets[self.method.net])
        self.start = self.saved_step = int(self.state.step)
        if self.start > config.train.steps:
            raise FaceDepthError(
                f"{workdir} has done {self.start} steps, train.steps is {config.train.steps}: "
                f"give at least {self.start}, or another --workdir."
            )
        if jax.process_index() == 0:  # only now is the run known to be this one
            files.remove_partial(self.workdir)
            # For later readers. The checkpoint's identity, not this file, decides whether a run may resume.
            path, values = self.workdir / "config.json", config.to_dict()
            with contextlib.suppress(FaceDepthError, KeyError, TypeError):
                if not begins:  # where the weights came from, whatever this command line says
                    values["init_from"] = files.read_json(path)["init_from"]
            files.write_json(path, values)
        self.step_fn = jax.jit(make_step(config, nets, configs.depth_code(config)), donate_argnums=0)
        self.drawn = {"batch_size": config.train.batch_size, "seed": config.seed}
        self.logs = Silence() if jax.process_index() else Logs(self.workdir, self.start, config.train.steps)
        self.logs.say(self._title(data, mesh))
        self.pace = Pace(self.task.images * config.train.batch_size)
        # Step and metrics of the step before, read one step late, so that a device never waits for the host.
        self.pending = None
        # Of the metrics since the last line of the log; checkpoints have them too, or a kill would change the means.
        self.sums = {} if self.checkpoints.mismatched else self.checkpoints.notes

    def _title(self, data, mesh) -> str:
        """Say in one line what is trained, on what, and from where on."""
        counts = {name: _count(net.params) for name, net in self.state.nets.items()}
        nets = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        frames = ", ".join(f"{data.meta['counts'][split]['frames']:,} {split}" for split in SPLITS)
        steps = self.config.train.steps
        begin = f"goes on from step {self.start:,} of {steps:,}" if self.start else f"{steps:,} steps"
        return (
            f"{self.config.method}: {sum(counts.values()):,} parameters ({nets}); frames: {frames}; "
            f"{mesh.size} x {jax.devices()[0].device_kind}; {begin}"
        )

    def loop(self) -> bool:
        """Train up to the last step; False if a signal came first."""
        every, steps = self.config.every, self.config.train.steps
        ask_every = 1 if jax.process_count() == 1 else ASK_EVERY
        part = {"process": jax.process_index(), "processes": jax.process_count()}
        batches = self.task.batches(self.train_rows, start_step=self.start, **part, **self.drawn)
        batches = self.pace.watch(batches, self._device_is_idle)
        with runtime.StopSignal() as stop:
            for step in range(self.start, steps + 1):
                faulthandler.dump_traceback_later(self.config.watchdog_sec, file=sys.__stderr__)
                self.checkpoints.check()
                stopping = step % ask_every == 0 and runtime.any_process(stop.seen)
                due = step == steps or step > 0 and step % every.save == 0
                if step > self.saved_step and (due or stopping):
                    self.save(step)
                if stopping:
                    return self.stop(step)
                if due:
                    self.validate(step)
                if step < steps:
                    batch = next(batches)
                    with jax.transfer_guard("disallow"):
                        self.state, metrics = self.step_fn(self.state, batch)
                    self.log()
                    self.pending = step + 1, metrics
                    if self._device_is_idle():  # a CPU has computed it by now
                        self.log()
                if step == self.start:  # the compilation does not count
                    self.pace.restart(step + (self.pending is None))
            if runtime.any_process(stop.seen):  # it came in the last validation
                return self.stop(steps)
        self.checkpoints.finish()
        return True

    def stop(self, step: int) -> bool:
        """Wait until the state is on the disk, and say so; False."""
        self.checkpoints.finish()
        if jax.process_index() == 0:
            at = f"at step {step}, which is saved" if step else "before a step"
            print(f"Stopped {at}: the same command continues.", flush=True)
        return False

    def save(self, step: int):
        """Start to save the state, which must be finite."""
        self.log()
        with self.pace.paused():
            if not bool(_all_finite(self.state)):
                raise self._not_finite(step, "a parameter is not finite")
            saved = {"state": self.state, "best": self.best}
            self.checkpoints.save(step, saved, int(self.best.step), notes=self.sums)
        self.saved_step = step

    def validate(self, step: int):
        """Measure the net on the validation split and keep its weights if they are the best."""
        self.log()
        net = dataclasses.replace(self.state.nets[self.method.net], **self.state.average)
        with self.pace.paused():
            figures, picture, rank = self.task.validate(net, step, self.workdir)
            self.best = keep_better(self.best, net, np.int32(step), rank)
            self.logs.write(step, figures | {"best_step": int(self.best.step)}, "validation")
            self.logs.show(step, {}, "validation", picture)

    def log(self):
        """Read the metrics of the step before, which must be finite, and write their means when it is their turn."""
        if self.pending is None:
            return
        (step, metrics), self.pending = self.pending, None
        metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if what := first_not_finite(metrics):
            raise self._not_finite(step, what)
        self.logs.advance(step, {name: f"{metrics[name]:.3g}" for name in sorted(metrics) if name.startswith("loss")})
        self.sums = {name: self.sums.get(name, 0) + value for name, value in {"steps": 1, **metrics}.items()}
        if step % self.config.every.log == 0 or step == self.config.train.steps:
            means = {name: self.sums[name] / self.sums["steps"] for name in metrics}
            self.logs.write(step, means | self.pace.lap(step), "train")
            self.sums = {}

    def _device_is_idle(self):
        return self.pending is None or all(value.is_ready() for value in self.pending[1].values())

    def _not_finite(self, step, what):
        self.checkpoints.finish()  # the save on its way to the disk is good
        names = ", ".join(self.task.frames_of(step, self.train_rows, **self.drawn))
        return FaceDepthError(
            f"Step {step}: {what}. The run stops, the last good checkpoint is kept; try a lower learning rate, "
            f"or look at the frames of this step: {names}."
        )


def _check_new(workdir):
    """Raise FaceDepthError if a run without checkpoints has left what a new one would replace."""
    for path in sorted([*workdir.glob("*.safetensors"), *workdir.glob("results.json")]):
        raise FaceDepthError(
            f"{workdir} holds {path.name} but no checkpoint to go on from, and a new run would replace it: give "
            f"another --workdir (and --config.init_from={workdir} to start from these weights), or remove them."
        )


def _count(params) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _warn_of_unused_gpus():
    if jax.default_backend() == "cpu" and glob.glob(GPUS):
        print(
            "warning: this machine has a GPU and JAX uses the CPU: install the extra [cuda], or look at JAX_PLATFORMS.",
            file=sys.stderr,
        )


def _open_data(data):
    """Open the arrays. If the config says from what, the first process makes them, while the others wait."""
    opened = None
    if data.dataset and jax.process_index() == 0:
        source = make_source(data.dataset, data.raw_dir, data.options.to_dict())
        if empty := sorted(set(SPLITS) - {info.split for info in source.index()}):
            raise FaceDepthError(f"the data set has no frame in {' and '.join(empty)}: training needs all three splits")
        opened = prepare(
            source,
            data.dir,
            face_mm=data.face_mm,
            size=data.size,
            seed=data.seed,
            pair_lists={"validation": data.pairs_validation, "test": data.pairs_test},
            workers=data.workers,
        )
    runtime.any_process(False)
    return opened or arrays_on_disk.open(data.dir)


def _start_from(run: str, state, evaluated: str):
    """Take the weights of every net that another run has exported, at least of the evaluated one."""
    nets = {}
    for name, net in state.nets.items():
        path = pathlib.Path(run) / f"{name}.safetensors"
        if path.is_file() or name == evaluated:
            net = dataclasses.replace(net, **load_weights(path, variables(net)))
        nets[name] = net
    return dataclasses.replace(state, nets=nets)


@jax.jit
def _all_finite(state):
    return jnp.all(jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(state)]))
