"""The whole study on one data set: the verifier and all methods, one after another, then Tables 1 and 2.

python launch/study.py --config=configs/synthetic.py --runs=runs/study --seeds=1821,1822,1823 [--config.KEY=VALUE ...]

Every run is `python -m facedepth_jax.main` in its own directory, RUNS/METHOD-SEED; the verifier has the first seed.
With `--folds=0,1,2,3,4` all of it is done for each fold of a cross-validation (the folder data set), in
RUNS/fold-K, with arrays in DATA_DIR-fold-K; the report pools the folds. Without people enough for the verifier the
rest goes on, and the report has no face verification.
Prints the cost first. The same command again continues: finished runs are not touched, interrupted ones go on from
their last checkpoint; with other values it is refused. `--plan` prints costs and commands, for a scheduler, and stops
there. Further `--config.KEY=VALUE` go to all methods, `--config.loss.KEY=VALUE` to those that have it,
`--verifier.KEY=VALUE` to the verifier; `--config.data...` and `--config.depth_code...` to both. Methods that do not
have the verifier's `depth_code.origin` are left out.
"""

import argparse
import dataclasses
import json
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from facedepth_jax import runtime

runtime.tune()

import jax
import jax.numpy as jnp
import numpy as np

from facedepth_jax import config as configs
from facedepth_jax import files
from facedepth_jax.data import arrays
from facedepth_jax.errors import FaceDepthError, NoPairs
from facedepth_jax.methods import METHODS, build, make_step
from facedepth_jax.nested import differing_keys
from facedepth_jax.state import init_state, variables

GENERATORS = [name for name, method in METHODS.items() if method.net == "generator"]
LOSSES = {name for method in METHODS.values() for name in method.loss}
SUBJECTS = 100  # for the size of Cui et al.'s identity net, before the data are there
SHARE_OF_PEAK = (0.2, 0.8)  # of a matrix product's speed that training reaches, by net and machine


def training_flops(config) -> float:
    """Count the operations of the whole training, as XLA counts a step before it compiles."""
    configs.check(config)
    nets = build(config, SUBJECTS)
    size, batch_size = config.data.size, config.train.batch_size
    state = jax.eval_shape(lambda: init_state(nets, 0, size))
    if config.train.average_decay:
        state = dataclasses.replace(state, average=variables(state.nets[METHODS[config.method].net]))
    images = jax.ShapeDtypeStruct((batch_size, size, size), np.uint16)
    people = jax.ShapeDtypeStruct((batch_size,), np.int32)
    batch = {"gray": images.update(dtype=np.uint8), "depth_mm": images, "subject": people}
    batch["distance_mm"] = people.update(dtype=np.float32)
    if config.method == "verifier":
        batch = {"depth_mm": images.update(shape=(batch_size, 2, size, size)), "same": people}
        batch["distance_mm"] = people.update(shape=(batch_size, 2), dtype=np.float32)
    step = make_step(config, nets, configs.depth_code(config))
    return jax.jit(step).lower(state, batch).cost_analysis()["flops"] * config.train.steps


def peak_flops_per_sec() -> float:
    """Measure a float32 matrix product on this machine's first device, the best of three."""
    size = 2048
    product = jax.jit(lambda a: a @ a)
    a = jnp.ones((size, size))
    product(a).block_until_ready()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        product(a).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def hours(seconds: float) -> str:
    """Write a duration for people."""
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min"


def options_of(method: str, overrides: Sequence[str]) -> list[str]:
    """Choose the command line's --config.KEY=VALUE that are for one method, or for the verifier."""
    if method == "verifier":
        both = "--config.data.", "--config.depth_code."
        overrides = [text for text in overrides if text.startswith(("--verifier.", *both))]
        return [text.replace("--verifier.", "--config.", 1) for text in overrides]
    foreign = tuple(f"--config.loss.{name}=" for name in LOSSES - METHODS[method].loss.keys())
    return [text for text in overrides if text.startswith("--config.") and not text.startswith(foreign)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; see --help."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    flag = parser.add_argument
    flag("--config", required=True, help="configs/NAME.py, or NAME alone")
    flag("--runs", required=True, type=files.path, help="directory of the runs and of the report")
    flag("--seeds", default="1821", help="comma between them (1821)")
    flag("--methods", help=f"comma between them; all, that is some of {', '.join(GENERATORS)}")
    flag("--folds", default="", help="data.options.fold to go through, comma between them")
    flag("--plan", action="store_true", help="print costs and commands, run nothing")
    given, overrides = parser.parse_known_args(argv)
    if ":" in given.config:
        parser.error(f"--config={given.config}: name the config without a method, and the methods by --methods")
    verifier = f"verifier:{given.config}"
    judge = configs.load(verifier, options_of("verifier", overrides))
    origin, data_dir = judge.depth_code.origin, judge.data.dir
    able = [name for name in GENERATORS if origin in METHODS[name].origins]
    seeds, methods = given.seeds.split(","), given.methods.split(",") if given.methods else able
    if unknown := set(methods) - set(able):
        parser.error(f"{min(unknown)!r} is no method of depth from the {origin}: take some of {', '.join(able)}")
    for text in overrides:
        if not text.startswith(("--config.", "--verifier.")) or "=" not in text:
            parser.error(f"{text} is neither --config.KEY=VALUE nor --verifier.KEY=VALUE")
        if text.startswith(("--config.seed=", "--config.method=", "--verifier.seed=", "--verifier.method=")):
            parser.error(f"{text}: give --seeds and --methods instead")
        if text.startswith("--config.loss.") and not any(text in options_of(method, overrides) for method in methods):
            parser.error(f"{text}: none of {', '.join(methods)} has this loss value")

    runs = [("verifier", seeds[0]), *((method, seed) for method in methods for seed in seeds)]
    places = {given.runs: []}
    if given.folds:
        places = {
            given.runs / f"fold-{k}": [f"--config.data.options.fold={k}", f"--config.data.dir={data_dir}-fold-{k}"]
            for k in given.folds.split(",")
        }
    jobs, costs = {}, {}
    for place, of_fold in places.items():
        for method, seed in runs:
            name = verifier if method == "verifier" else f"{given.config}:{method}"
            options = [f"--config.seed={seed}", *options_of(method, overrides), *of_fold]
            try:
                config = configs.load(name, options)
                configs.check(config)
                if method not in costs:
                    costs[method] = config.train.steps, config.train.batch_size, training_flops(config)
            except FaceDepthError as error:
                raise FaceDepthError(f"{method}: {error}") from error
            workdir = place / f"{method}-{seed}"
            command = [sys.executable, "-m", "facedepth_jax.main", f"--config={name}", f"--workdir={workdir}"]
            jobs[workdir] = [*command, *options], finished(workdir, config)

    total, peak = 0.0, peak_flops_per_sec()
    print("| method | runs | steps | examples a step | PFLOP a run |\n|---|---:|---:|---:|---:|")
    for method, (count, batch_size, flops) in costs.items():
        times = sum(run[0] == method for run in runs) * len(places)
        total += times * flops
        print(f"| {method} | {times} | {count:,} | {batch_size} | {flops / 1e15:.3g} |")
    fast, slow = (hours(total / peak / share) for share in reversed(SHARE_OF_PEAK))
    print(
        f"\n{len(jobs)} runs, {total / 1e15:.3g} PFLOP of training: {fast} to {slow} on this machine, whose matrix "
        f"product makes {peak / 1e9:.0f} GFLOP/s; compiling, evaluation and preparing the data not counted.\n"
    )
    judges = [place / f"verifier-{seeds[0]}" for place in places]
    report = [sys.executable, "-m", "facedepth_jax.report", f"--out={given.runs / 'report'}", "--errors"]
    report += [f"--verifier={path}" for path in judges] + [str(path) for path in jobs if path not in judges]
    jobs[given.runs / "report"] = report, False
    if given.plan:
        print("\n".join(shlex.join(command) for command, _ in jobs.values()))
        return 0
    return run_all(jobs)


def run_all(jobs: dict[pathlib.Path, tuple[list[str], bool]]) -> int:
    """Run the commands that are not done, by their directories; return the exit code.

    SIGTERM and Ctrl-C go to the command that runs: a training saves first. A verifier without pairs is left out, and
    with it all `--verifier` of the report.
    """
    child, stopped, unverified = None, False, False

    def stop(number, frame):
        nonlocal stopped
        stopped = True
        if child is not None:
            child.terminate()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    started = time.monotonic()
    for number, (workdir, (command, done)) in enumerate(jobs.items(), 1):
        place = f"[{number}/{len(jobs)}, {hours(time.monotonic() - started)}] {workdir}"
        if done:
            print(f"{place} is done already", flush=True)
            continue
        print(place, flush=True)
        if not stopped:
            command = [word for word in command if not (unverified and word.startswith("--verifier="))]
            child = subprocess.Popen(command, start_new_session=True)  # else Ctrl-C reaches it twice
            code = child.wait()
        if stopped:
            print("Stopped: the same command continues.")
            return 0
        if code == NoPairs.exit_code:
            unverified = True
            print("Going on without face verification: the report will have no row of it.", flush=True)
        elif code:
            return code
    return 0


def finished(workdir: pathlib.Path, config) -> bool:
    """Return whether a run has come to its end. Raises FaceDepthError if it was one of other values, or other data."""
    try:
        results = json.loads((workdir / "results.json").read_text())
        steps, data = results["steps"], results["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    then, now = configs.read_run(workdir), configs.with_absolute_paths(config)
    there, here = _values(then, data), _values(now, data)
    if (pathlib.Path(now.data.dir) / arrays.META).is_file():
        here["data"] = arrays.fingerprint(arrays.read_meta(pathlib.Path(now.data.dir)))
    if then.data.dataset and now.data.dataset:  # else one of the two has taken arrays that were there
        there["data.options"], here["data.options"] = then.data.options.to_dict(), now.data.options.to_dict()
    if differing := differing_keys(there, here):
        raise FaceDepthError(
            f"{workdir} is finished, with other values of {', '.join(differing)}: give another --runs."
        )
    return steps == config.train.steps


def _values(config, data):
    """Collect what decides a run's numbers."""
    names = "size", "face_mm", "seed", "pairs_validation", "pairs_test"
    more = {f"data.{name}": config.data[name] for name in names}
    return configs.identity(config, data) | more | {"init_from": config.init_from}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FaceDepthError as error:
        sys.exit(f"error: {error}")
