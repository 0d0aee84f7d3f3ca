"""The training step and the generator's forward pass against PyTorch (`torch_step.py`, `torch_relief.py`) and against
flax's own layers.

    pip install -e '.[bench]'
    [taskset -c 0,1] python benchmarks/train_step.py [--method=cgan] [--widths=16,32] [--batches=8,16,32] [--turns=5]

The paper's cGAN, or the project's own `--method=relief`, at 96 x 96 px, without augmentation. "Plain flax" is the same
nets with flax's nn.Conv and nn.ConvTranspose and without the XLA flag that the programs set; that freed memory is kept,
and JAX computes in the first thread, as main has it, holds for all sides. Each side lives in a process of its own, on
all cores that `taskset` leaves.

First it is proved that all sides do the same: from the same weights and batch their inference, losses (in float64 of
two steps, so through the optimisers), gradients (clipped where the method clips), the generator's running means and its
averaged weights (where the method averages) must agree, relative to their norms, to TOLERANCE: in float64 at a small
width, every array of them; then before each row in the dtype measured, each net's gradients and its averaged weights as
a whole, for an activation that is 0 but for rounding has another gradient on either side, and Adam's first step is as
long for the smallest gradient as for the largest. If they do not, it stops with a sentence.

Then they are timed in turns: medians of --turns turns of at least --seconds each. A side that has used BUDGET_S of a
row's time sits out the rest, which is said below the table. Inference, and plain flax at all, are measured beside the
first batch of a width alone. A ratio is the median of the turns' ratios, the smallest and the largest in brackets. The
peak is the best matrix product that JAX or PyTorch made beside the row; the operations an image are, for all sides,
those that XLA counts in plain flax. Compiling includes tracing; for PyTorch it is what its first inference and step
took beyond a step. Memory is the most that a process held while training, beyond what it held with the libraries
imported; what the compiler left is in it. Without PyTorch its columns are left out. Linux only.

bfloat16 and GPUs: `gpu.py`.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import importlib.util
import math
import multiprocessing
import os
import statistics
import time
import types

from facedepth_jax import runtime

USER_XLA_FLAGS = os.environ.get("XLA_FLAGS", "")
runtime.tune()  # as main does

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from flax.traverse_util import flatten_dict, unflatten_dict  # noqa: E402

from facedepth_jax import config as configs  # noqa: E402
from facedepth_jax import depth_code, methods  # noqa: E402
from facedepth_jax.depth_code import encode_gray  # noqa: E402
from facedepth_jax.methods import METHODS  # noqa: E402
from facedepth_jax.models import cgan, relief  # noqa: E402
from facedepth_jax.state import NetState, TrainState, forward, init_state, variables  # noqa: E402

runtime.dispatch_synchronously()  # as main does

OURS, TORCH, PLAIN = "this", "PyTorch", "plain flax"
SIZE_PX = 96
# Of a method: where its PyTorch is; widths and batches in training unless others are given, batches in inference.
TWINS = {"cgan": "torch_step", "relief": "torch_relief"}
SIZES = {"cgan": ([16, 32, 128], [8, 16, 32], [1, 32]), "relief": ([16], [16, 32], [1, 16, 32])}
TRAINING, FACTS = ("training",), ("facts",)  # what a side is asked for, besides ("inference" or "product", size)
BUDGET_S = 40.0
# Of values and of gradients. Of a GPU's float32, which may be computed in TF32, no more is asked than of bfloat16.
TOLERANCE = {"float64": (1e-10, 1e-10), "float32": (1e-3, 2e-2), "bfloat16": (5e-2, 0.5)}


class Jax:
    """This project's step; attributes and methods as those of `torch_step.Torch`."""

    def __init__(self, method, weights, batch, width, dtype, plain=False):
        if dtype == "float64":
            jax.config.update("jax_enable_x64", True)
            for module in (cgan, relief, depth_code):  # where float32 is written out, as outputs and images have to be
                module.jnp = types.SimpleNamespace(**vars(jnp) | {"float32": jnp.float64})
        if plain:
            cgan.Conv = relief.Conv = plain_conv
            cgan.ConvTranspose = functools.partial(nn.ConvTranspose, kernel_size=(5, 5), strides=(2, 2), use_bias=False)
        self.dtype = jnp.dtype(dtype)
        config = configured(method, width, dtype)
        self.b1 = config.train.b1
        self.nets = methods.build(config, subjects=1)
        states = {name: self.net_state(name, weights) for name in self.nets}
        average = jax.tree.map(jnp.copy, variables(states["generator"])) if config.train.average_decay else {}
        self.state = TrainState(jnp.zeros((), jnp.int32), states, average)
        self.batch = jax.device_put(batch)
        step = methods.make_step(config, self.nets, configs.depth_code(config))
        start = time.perf_counter()
        lowered = jax.jit(step, donate_argnums=0).lower(self.state, self.batch)
        self.step = lowered.compile()
        self.compile_s = time.perf_counter() - start
        self.flops = {TRAINING: lowered.cost_analysis()["flops"]}
        self.predictors, self.products = {}, {}

    def net_state(self, name, weights):
        own = {path.removeprefix(f"{name}/"): value for path, value in weights.items() if path.startswith(f"{name}/")}
        own = {path: jnp.array(value, jnp.promote_types(self.dtype, jnp.float32)) for path, value in own.items()}
        params, stats = {}, {}
        for path, value in own.items():
            (stats if path.endswith(("/mean", "/var")) else params)[path] = value
        params, stats = unflatten_dict(params, "/"), unflatten_dict(stats, "/")
        return NetState(params, stats, self.nets[name].optimizer.init(params))

    def put(self, images):
        return jax.device_put(images)

    def train(self):
        self.state, metrics = self.step(self.state, self.batch)
        return {name: value for name, value in metrics.items() if name.startswith("loss_")}

    def gradients(self):
        """Those of the first step, clipped: Adam's first moment after it is 1 - b1 of them."""
        moments = {name: optax.tree.get(net.opt_state, "mu") for name, net in self.state.nets.items()}
        return {path: np.array(value) / (1 - self.b1) for path, value in flatten_dict(moments, sep="/").items()}

    def running_means(self):
        """The generator's."""
        stats = flatten_dict(self.state.nets["generator"].batch_stats, sep="/")
        return {path: np.array(value) for path, value in stats.items() if path.endswith("/mean")}

    def averaged_weights(self):
        """The generator's; {} if the method does not average."""
        average = [flatten_dict({"generator": part}, sep="/") for part in self.state.average.values()]
        return {path: np.array(x) for part in average for path, x in part.items() if not path.endswith("/var")}

    def predict(self, gray):
        if len(gray) not in self.predictors:
            module = self.nets["generator"].module
            options = runtime.inference_options()
            call = jax.jit(lambda net, gray: forward(module, net, encode_gray(gray)), compiler_options=options)
            lowered = call.lower(self.state.nets["generator"], gray)
            self.flops["inference", len(gray)] = lowered.cost_analysis()["flops"]
            self.predictors[len(gray)] = lowered.compile()
        return self.predictors[len(gray)](self.state.nets["generator"], gray)

    def product(self, size):
        if size not in self.products:
            self.products[size] = jax.jit(lambda a: a @ a), jnp.ones((size, size), self.dtype)
        call, a = self.products[size]
        return call(a)

    def wait(self, result):
        jax.block_until_ready(result)

    def numpy(self, result):
        return np.asarray(result)

    def device(self):
        return jax.default_backend()

    def device_peak_mib(self):
        return None if self.device() == "cpu" else jax.devices()[0].memory_stats()["peak_bytes_in_use"] / 2**20


def plain_conv(features, kernel_size=5, strides=1, use_bias=False, **given):
    return nn.Conv(features, (kernel_size, kernel_size), strides, use_bias=use_bias, **given)


def configured(method, width, dtype="float32"):
    """The method's config, without augmentation, and without warm-up, whose first steps hardly move a weight."""
    config = configs.base(method)
    config.width, config.dtype, config.train.augment = width, dtype, False
    config.train.steps = 6000  # as configs/relief.py has it: of the schedule
    return config


def make_weights(method, width):
    """All parameters and running statistics by name, float64: random ones, so that nothing is hidden by a 0 or a 1."""
    nets = methods.build(configured(method, width), subjects=1)
    shapes = jax.eval_shape(lambda: init_state(nets, 0, SIZE_PX))
    rng, weights = np.random.default_rng(0), {}
    for name, net in shapes.nets.items():
        for path, leaf in sorted((flatten_dict(net.params, sep="/") | flatten_dict(net.batch_stats, sep="/")).items()):
            value, kind = rng.normal(size=leaf.shape), path.split("/")[-1]
            if kind == "kernel":  # after He et al. 2015; a stride of 2 leaves each output of "up" a quarter of the taps
                value *= math.sqrt((8 if "up" in path else 2) / math.prod(leaf.shape[:-1]))
            else:
                value = {"scale": 1.0, "var": 1.0, "bias": 0.2, "mean": 0.0}[kind] + 0.1 * value.clip(-3, 3)
            weights[f"{name}/{path}"] = value
    return weights


def make_batch(batch_size, size_px=SIZE_PX):
    """As the pipeline delivers it: noise, a tenth without depth."""
    rng = np.random.default_rng(1)
    shape = batch_size, size_px, size_px
    depth_mm = rng.integers(400, 2700, shape) * (rng.random(shape) > 0.1)
    batch = {"gray": rng.integers(0, 256, shape, np.uint8), "depth_mm": depth_mm.astype(np.uint16)}
    distance_mm = rng.uniform(800, 1000, batch_size).astype(np.float32)
    return batch | {"distance_mm": distance_mm, "subject": np.zeros(batch_size, np.int32)}


# ---- a side's own process ----


def memory_mib(name):
    """VmRSS, what this process holds, or VmHWM, the most that it held."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024


def serve(pipe, name, xla_flags, method, width, batch_size, dtype, steps):
    """Builds a side, sends the proof of what it computes, then does and times what it is asked for."""
    os.environ["XLA_FLAGS"] = xla_flags  # read when JAX first computes
    if name == TORCH:
        twin = importlib.import_module(TWINS[method])
    before_mib = memory_mib("VmRSS")
    args = make_weights(method, width), make_batch(batch_size), width, dtype
    side = twin.Torch(*args, METHODS[method].loss) if name == TORCH else Jax(method, *args, plain=name == PLAIN)
    del args
    gray = side.put(make_batch(batch_size)["gray"])
    start = time.perf_counter()
    proof = {"inference": {"output": side.numpy(side.predict(gray))}, "losses": {}}
    losses = side.train()
    side.wait(losses)
    first_s = time.perf_counter() - start
    proof |= {"gradients": side.gradients(), "running means": side.running_means()}
    for step in range(1, steps + 1):
        proof["losses"] |= {f"{loss} of step {step}": side.numpy(value) for loss, value in losses.items()}
        losses = side.train() if step < steps else losses
    if average := side.averaged_weights():
        proof["averaged weights"] = average
    pipe.send((side.device(), proof))
    del proof
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the most held is counted anew

    calls, counts = {TRAINING: side.train}, {}
    for request in iter(pipe.recv, None):
        work, seconds = request
        if work == FACTS:
            facts = {"device": side.device(), "flops": getattr(side, "flops", None), "first_s": first_s}
            facts["compile_s"] = getattr(side, "compile_s", None)
            pipe.send(facts | {"memory_mib": side.device_peak_mib() or memory_mib("VmHWM") - before_mib})
            continue
        if work not in calls:
            kind, number = work
            if kind == "inference":
                calls[work] = functools.partial(side.predict, side.put(make_batch(number)["gray"]))
            else:
                calls[work] = functools.partial(side.product, number)
            side.wait(calls[work]())  # compiles
        pipe.send(timed(side, calls[work], counts, work, seconds))


def timed(side, call, counts, work, seconds):
    """Seconds a call, of as many as fill a turn."""

    def run(count):
        start = time.perf_counter()
        for _ in range(count):
            result = call()
        side.wait(result)
        return (time.perf_counter() - start) / count

    if work not in counts:
        one = run(1)
        counts[work] = max(1, math.ceil(seconds / one))
        if counts[work] == 1:
            return one
    return run(counts[work])


# ---- the process that compares ----


@contextlib.contextmanager
def contest(method, names, width, batch_size, dtype, steps=1):
    """Starts the sides one after another and proves that they do the same; pipes by name, and how near they are."""
    spawn = multiprocessing.get_context("spawn")  # neither XLA nor OpenMP survives a fork
    pipes, processes, proofs = {}, [], {}
    try:
        for name in names:
            pipes[name], theirs = spawn.Pipe()
            flags = USER_XLA_FLAGS if name == PLAIN else os.environ.get("XLA_FLAGS", "")
            process = spawn.Process(
                target=serve, args=(theirs, name, flags, method, width, batch_size, dtype, steps), daemon=True
            )
            process.start()
            theirs.close()
            processes.append(process)
            proofs[name] = received(pipes[name], name)
        yield pipes, agreement(proofs, width, dtype)
    finally:
        for pipe in pipes.values():
            with contextlib.suppress(OSError):
                pipe.send(None)
        for process in processes:
            process.join(10)
            process.kill()


def ended(name):
    return SystemExit(f"The process of {name} has ended: see above, or it was out of memory.")


def received(pipe, name):
    try:
        return pipe.recv()
    except (EOFError, OSError):
        raise ended(name) from None


def asked(pipe, name, request):
    try:
        pipe.send(request)
    except OSError:
        raise ended(name) from None
    return received(pipe, name)


def measured_in_a_fresh_process(measure, *args):
    """What it returns in a process that has not computed yet."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as fresh:
        try:
            return fresh.submit(measure, *args).result()
        except concurrent.futures.process.BrokenProcessPool:
            raise ended(f"{measure.__name__}{args}") from None


def agreement(proofs, width, dtype):
    """{(name, kind): the worst relative difference from OURS}. Ends the program where it is above TOLERANCE."""
    device, ours = proofs[OURS]
    tolerances = TOLERANCE["bfloat16" if device != "cpu" and dtype == "float32" else dtype]
    worst = {}
    for name, (theirs_on, theirs) in proofs.items():
        if name == OURS:
            continue
        if theirs_on != device:
            raise SystemExit(f"{name} computes on {theirs_on}, this project on {device}: let both see it.")
        for kind, arrays in ours.items():
            by_gradients = kind in ("gradients", "averaged weights")
            others, tolerance = theirs[kind], tolerances[by_gradients]
            if {what: array.shape for what, array in arrays.items()} != {what: a.shape for what, a in others.items()}:
                raise SystemExit(f"{name} has other {kind} than this project: nothing was measured.")
            if by_gradients and dtype != "float64":
                arrays, others = whole_nets(arrays), whole_nets(others)
            apart = {what: difference(others[what], array) for what, array in arrays.items()}
            what = max(apart, key=apart.get)
            worst[name, kind] = apart[what]
            if not apart[what] <= tolerance:
                raise SystemExit(
                    f"{name} does not compute the same at width {width} in {dtype}: {kind}, {what}: {apart[what]:.1e} "
                    f"of its norm apart, {tolerance:.0e} is allowed. Nothing was measured from here on."
                )
    return worst


def whole_nets(arrays):
    """{net: all its arrays in one vector}"""
    return {
        net: np.concatenate([value.ravel() for path, value in sorted(arrays.items()) if path.startswith(net)])
        for net in sorted({path.split("/")[0] for path in arrays})
    }


def difference(theirs, ours):
    """Relative to the norm of ours; infinite where a number is not finite."""
    theirs, ours = np.float64(theirs), np.float64(ours)
    if not (np.isfinite(theirs).all() and np.isfinite(ours).all()):
        return math.inf
    return float(np.linalg.norm(theirs - ours) / max(np.linalg.norm(ours), 1e-30))


def measure(pipes, work, turns, seconds):
    """{name: seconds a call, one a turn}"""
    times, used_s = {name: [] for name in pipes}, dict.fromkeys(pipes, 0.0)
    for _ in range(turns):
        for name, pipe in pipes.items():
            if used_s[name] < BUDGET_S:
                start = time.perf_counter()
                times[name].append(asked(pipe, name, (work, seconds)))
                used_s[name] += time.perf_counter() - start
    return times


def heads(names):
    """The first two lines of the table."""
    titles = ["", "width", "batch", *(f"images/s: {name}" for name in names)]
    titles += [f"{OURS} / {name}" for name in names[1:]]
    for what in ("of the peak", "compiling, s", "memory, MiB"):
        titles += [f"{what}: {name}" for name in names]
    return f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}"


def rows(names, pipes, works, width, flops_an_image, args, kind=""):
    """Lines of the table, the best matrix product in FLOP/s, and sentences about who had fewer turns.

    Args:
      names: of the columns; where one has no pipe, its cells are empty.
      works: {work: images a call}, the training first.
      flops_an_image: {"training" or "inference": FLOP}; filled here if it is empty.
      kind: said before each work.
    """
    times, facts, sat_out = {}, {}, []
    for work, images in works.items():
        times[work] = measure(pipes, work, args.turns, args.seconds)
        sat_out += [
            f"{kind}{work[0]}, width {width}, batch {images}: {name} had {len(turns)} turns."
            for name, turns in times[work].items()
            if len(turns) < args.turns
        ]
        if work == TRAINING:
            facts = asked_for_facts(pipes)
    side = 2048 if facts[OURS]["device"] == "cpu" else 8192
    fast = {name: pipe for name, pipe in pipes.items() if name != PLAIN}
    peak = 2 * side**3 / min(map(min, measure(fast, ("product", side), args.turns, 0.2).values()))
    if not flops_an_image:
        flops = asked_for_facts({name: pipes[name] for name in pipes if name != TORCH})
        flops = flops.get(PLAIN, flops[OURS])["flops"]
        flops_an_image |= {work[0]: flops[work] / images for work, images in works.items()}

    lines = []
    for work, images in works.items():
        median = {name: statistics.median(values) for name, values in times[work].items()}
        cells = [f"{kind}{work[0]}", str(width), str(images)]
        cells += [f"{images / median[name]:.3g}" if name in pipes else "" for name in names]
        for name in names[1:]:
            ratios = [t / o for t, o in zip(times[work].get(name, []), times[work][OURS], strict=False)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})" if ratios else "")
        speed = flops_an_image[work[0]] * images / peak
        cells += [f"{speed / median[name]:.0%}" if name in pipes else "" for name in names]
        for fact in ("compile_s", "memory_mib"):
            for name in names:
                told = work == TRAINING and name in pipes
                value = facts[name][fact] if told else 0
                if told and value is None:
                    value = max(0, facts[name]["first_s"] - median[name])
                cells.append(f"{value:.{1 if fact == 'compile_s' else 0}f}" if told else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines, peak, sat_out


def asked_for_facts(pipes):
    return {name: asked(pipe, name, (FACTS, 0)) for name, pipe in pipes.items()}


def machine():
    """What a CPU's figures depend on, for a table's head."""
    return f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"


def numbers(text):
    return [int(number) for number in text.split(",")]


def sides():
    """Who takes part here."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # several processes share a GPU
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed (pip install -e '.[bench]'): the table is without it.\n")
        return [OURS, PLAIN]
    return [OURS, TORCH, PLAIN]


def agreements(worst, what):
    """A sentence for each side but OURS."""
    for name in dict.fromkeys(name for name, _ in worst):
        kinds = ", ".join(f"{kind} {value:.0e}" for (of, kind), value in worst.items() if of == name)
        yield f"{what} {name} agrees to: {kinds}."


def proved_in_float64(method, names):
    with contest(method, names, 4, 3, "float64", steps=2) as (_, worst):
        return list(agreements(worst, "Float64, width 4, batch 3, two steps:"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--method", choices=TWINS, default="cgan")
    parser.add_argument("--widths", type=numbers, help="as 16,32,128; even")
    parser.add_argument("--batches", type=numbers, help="as 8,16,32")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="the least that a turn takes")
    args = parser.parse_args()
    widths, batches, inference = SIZES[args.method]
    widths, batches = args.widths or widths, args.batches or batches
    names = sides()
    said, peaks = proved_in_float64(args.method, names), []
    print(f"{args.method}, float32, {machine()}, {args.turns} turns of {args.seconds} s\n")
    print(heads(names), flush=True)
    for width in widths:
        flops_an_image = {}
        for batch_size in batches:
            works, taking_part = {TRAINING: batch_size}, names
            if batch_size == batches[0]:
                works |= {("inference", images): images for images in inference}
            else:
                taking_part = names[:-1]  # plain flax takes minutes
            with contest(args.method, taking_part, width, batch_size, "float32") as (pipes, worst):
                said += agreements(worst, f"Float32, width {width}, batch {batch_size}:")
                lines, peak, sat_out = rows(names, pipes, works, width, flops_an_image, args)
            said += sat_out
            print(*lines, sep="\n", flush=True)
            peaks.append(peak)
    print(f"\nThe peak: {min(peaks) / 1e9:.0f} to {max(peaks) / 1e9:.0f} GFLOP/s.", *said, sep="\n")


if __name__ == "__main__":
    main()
