"""The whole study on one data set: the verifier and four methods, one after another, then Tables 1 and 2.

python launch/study.py --config=configs/synthetic.py --runs=runs/study --seeds=1821,1822,1823 [--config.KEY=VALUE ...]

Every run is `python -m facedepth_jax.main` in its own directory, RUNS/METHOD-SEED; the verifier has the first seed.
With `--folds=0,1,2,3,4` all of it is done for each fold of a cross-validation (the folder data set), in
RUNS/fold-K, with arrays in DATA_DIR-fold-K; the report pools the folds.
Prints first what it will cost. The same command again continues: what is finished is not touched, what was broken off
goes on from its last checkpoint. `--plan` prints costs and commands, for a scheduler, and stops there. Further
`--config.KEY=VALUE` go to all methods, `--verifier.KEY=VALUE` to the verifier; `--config.data...` to both.
"""

import argparse
import ast
import functools
import importlib.util
import json
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from facedepth_jax.errors import FaceDepthError
from facedepth_jax.runs import build, check_values, code_of
from facedepth_jax.state import init_state
from facedepth_jax.steps import METHODS

SUBJECTS = 100  # for the size of Cui et al.'s identity net, before the data are there
SHARE_OF_PEAK = (0.2, 0.8)  # of a matrix product's speed that training reaches, by net and machine


def load_config(path: pathlib.Path, argument: str, overrides: list[str]):
    """The config as `main` will see it."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(argument)
    for override in overrides:
        key, text = override.removeprefix("--config.").split("=", 1)
        *parents, name = key.split(".")
        try:
            node = functools.reduce(lambda node, parent: node[parent], parents, config)
            node[name] = text if isinstance(node[name], str) else type(node[name])(ast.literal_eval(text))
        except (KeyError, TypeError, ValueError, SyntaxError):
            raise FaceDepthError(f"the config {path} has no {key} that can be {text!r}") from None
    return config


def training_flops(config) -> float:
    """Of the whole training, as XLA counts a step before it compiles."""
    check_values(config)
    method, nets = build(config, SUBJECTS)
    size, batch_size = config.data.size, config.train.batch_size
    state = jax.eval_shape(lambda: init_state(nets, 0, size))
    images = jax.ShapeDtypeStruct((batch_size, size, size), np.uint16)
    people = jax.ShapeDtypeStruct((batch_size,), np.int32)
    batch = {"gray": images.update(dtype=np.uint8), "depth_mm": images, "subject": people}
    if config.method == "verifier":
        batch = {"depth_mm": images.update(shape=(batch_size, 2, size, size)), "same": people}
    loss_args = {name: config.loss[name] for name in method.loss_args}
    step = functools.partial(method.step, nets=nets, code=code_of(config), seed=0, **loss_args)
    return jax.jit(step).lower(state, batch).cost_analysis()["flops"] * config.train.steps


def peak_flops_per_sec() -> float:
    """Of a float32 matrix product on this machine's first device, the best of three."""
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
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.0f} min"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", required=True, type=pathlib.Path, help="configs/NAME.py")
    parser.add_argument("--runs", required=True, type=pathlib.Path, help="directory of the runs and of the report")
    parser.add_argument("--seeds", default="1821", help="comma between them (1821)")
    parser.add_argument("--methods", default=",".join(METHODS), help=f"comma between them ({','.join(METHODS)})")
    parser.add_argument("--folds", default="", help="data.options.fold to go through, comma between them")
    parser.add_argument("--plan", action="store_true", help="print costs and commands, run nothing")
    given, overrides = parser.parse_known_args()
    for override in overrides:
        if not override.startswith(("--config.", "--verifier.")) or "=" not in override:
            parser.error(f"{override} is no --config.KEY=VALUE")
    if not given.config.is_file():
        parser.error(f"there is no config file {given.config}")
    seeds, methods = given.seeds.split(","), given.methods.split(",")
    for_methods = [text for text in overrides if text.startswith("--config.")]
    for_verifier = [text for text in for_methods if text.startswith("--config.data.")]
    for_verifier += [
        text.replace("--verifier.", "--config.", 1) for text in overrides if text.startswith("--verifier.")
    ]

    methods = [(method, seed, given.config, method, for_methods) for method in methods for seed in seeds]
    runs = [("verifier", seeds[0], given.config.with_name("verifier.py"), given.config.stem, for_verifier), *methods]
    commands, costs, steps, verifiers = {}, {}, {}, []
    sys.path.insert(0, str(given.config.resolve().parents[1]))  # configs import each other
    places = {given.runs: []}
    if given.folds:
        data_dir = load_config(given.config, "", for_methods).data.dir
        places = {
            given.runs / f"fold-{fold}": [
                f"--config.data.options.fold={fold}",
                f"--config.data.dir={data_dir}-fold-{fold}",
            ]
            for fold in given.folds.split(",")
        }
    for place, of_fold in places.items():
        for method, seed, file, argument, options in runs:
            workdir, options = place / f"{method}-{seed}", [*options, *of_fold]
            commands[workdir] = [
                *(sys.executable, "-m", "facedepth_jax.main", f"--config={file}:{argument}"),
                *(f"--workdir={workdir}", f"--config.seed={seed}", *options),
            ]
            if method == "verifier":
                verifiers.append(workdir)
            if method not in costs:
                try:
                    config = load_config(file, argument, options)
                    costs[method] = config.train.steps, config.train.batch_size, training_flops(config)
                except FaceDepthError as error:
                    raise FaceDepthError(f"{method}: {error}") from error
            steps[workdir] = costs[method][0]
    peak = peak_flops_per_sec()
    print("| method | runs | steps | examples a step | PFLOP a run |\n|---|---:|---:|---:|---:|")
    total = 0.0
    for method, (count, batch_size, flops) in costs.items():
        times = sum(run[0] == method for run in runs) * len(places)
        total += times * flops
        print(f"| {method} | {times} | {count:,} | {batch_size} | {flops / 1e15:.3g} |")
    fast, slow = (hours(total / peak / share) for share in reversed(SHARE_OF_PEAK))
    print(
        f"\n{len(commands)} runs, {total / 1e15:.3g} PFLOP of training: {fast} to {slow} on this machine, whose matrix "
        f"product makes {peak / 1e9:.0f} GFLOP/s; compiling, evaluation and preparing the data not counted.\n"
    )
    report = [sys.executable, "-m", "facedepth_jax.report", f"--out={given.runs / 'report'}", "--errors"]
    report += [f"--verifier={workdir}" for workdir in verifiers]
    report += [str(workdir) for workdir in commands if workdir not in verifiers]
    if given.plan:
        print("\n".join(shlex.join(["python", *command[1:]]) for command in [*commands.values(), report]))
        return 0
    return run_all(commands, steps, report)


def run_all(commands: dict[pathlib.Path, list[str]], steps: dict[pathlib.Path, int], report: list[str]) -> int:
    """Runs what is not finished, then the report; the exit code. SIGTERM and Ctrl-C go to the run: it saves first."""
    child, stopped = None, False

    def stop(number, frame):
        nonlocal stopped
        stopped = True
        if child is not None:
            child.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    started = time.monotonic()
    for number, (workdir, command) in enumerate([*commands.items(), (None, report)], 1):
        where = workdir or "report"
        said = f"[{number}/{len(commands) + 1}, {hours(time.monotonic() - started)}] {where}"
        if workdir and finished(workdir, steps[workdir]):
            print(f"{said} is done already", flush=True)
            continue
        print(said, flush=True)
        if not stopped:
            child = subprocess.Popen(command, start_new_session=True)  # else Ctrl-C reaches it twice
            code = child.wait()
        if stopped:
            print("Stopped: the same command continues.")
            return 0
        if code:
            return code
    return 0


def finished(workdir: pathlib.Path, steps: int) -> bool:
    """Whether a run has come to its end, so many steps."""
    try:
        return json.loads((workdir / "results.json").read_text())["steps"] == steps
    except (OSError, ValueError, KeyError):
        return False


if __name__ == "__main__":
    try:
        sys.exit(main())
    except FaceDepthError as error:
        sys.exit(f"error: {error}")
