"""Write tests/golden/METHOD.json: the metrics of two training steps of a method.

python tools/golden.py

Run it when a step's numbers change on purpose, and read the diff before you commit it: every change must have a reason.
"""

import json
import pathlib

import jax
import numpy as np

from facedepth_jax import config, methods
from facedepth_jax.state import NetState, TrainState, init_state

FOLDER = pathlib.Path(__file__).parents[1] / "tests" / "golden"
NAMES = [name for name in methods.METHODS if name != "ae"]  # which is the generator of cgan on Eq. 3 alone
LOSS = {"cgan": {"lam": 100.0}}  # else the methods' own
WIDTH, SIZE_PX, BATCH = 4, 32, 4
SUBJECTS, SEED = 3, 7


def batch(name="cgan"):
    """Make random images with holes, as stored: of one value in blocks, with noise where rounding would break ties."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(size=(2, BATCH, 4, 4)).repeat(SIZE_PX // 4, 2).repeat(SIZE_PX // 4, 3)
    gray = (255 * coarse[0]).astype(np.uint8)
    depth_mm = (400 + 2300 * coarse[1]).astype(np.uint16)  # beyond level 0 and 255
    depth_mm[:, 5:9, 20:30] = 0
    if name == "cui":  # its pools take the largest
        gray = rng.integers(0, 256, gray.shape, np.uint8)
    if name == "verifier":  # pairs, of the one size that it takes
        depth_mm = rng.integers(400, 2700, (BATCH, 2, 96, 96)).astype(np.uint16)
        distance_mm = np.full((BATCH, 2), 1000, np.float32)
        return {"depth_mm": depth_mm, "distance_mm": distance_mm, "same": np.arange(BATCH, dtype=np.int32) % 2}
    distance_mm = np.linspace(700, 1300, BATCH, dtype=np.float32)
    subject = np.arange(BATCH, dtype=np.int32) % SUBJECTS
    return {"gray": gray, "depth_mm": depth_mm, "distance_mm": distance_mm, "subject": subject}


def start(nets, size_px=SIZE_PX):
    """Make a TrainState for images of size_px: kernels N(0, 0.02) by NumPy, so that JAX's generators are not pinned."""
    rng = np.random.default_rng(1)

    def fill(path, leaf):
        kind = path[-1].key
        if kind == "kernel":
            return (0.02 * rng.normal(size=leaf.shape)).astype(leaf.dtype)
        return np.full(leaf.shape, {"scale": 1, "var": 1, "slope": 0.25}.get(kind, 0), leaf.dtype)

    def fill_net(net):
        params, batch_stats = (jax.tree_util.tree_map_with_path(fill, part) for part in (net.params, net.batch_stats))
        return NetState(params, batch_stats, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), net.opt_state))

    shapes = jax.eval_shape(lambda: init_state(nets, 0, size_px))
    return TrainState(np.int32(0), {name: fill_net(net) for name, net in sorted(shapes.nets.items())})


def measure(name: str) -> list[dict[str, float]]:
    """Take two steps and return their metrics; the second one sees what the first did to the state."""
    values = config.base(name)
    values.width, values.seed = WIDTH, SEED
    values.loss.update(LOSS.get(name, {}))
    values.train.update(average_decay=0.0, augment=False)  # the step alone
    nets = methods.build(values, SUBJECTS)
    step = jax.jit(
        methods.make_step(values, nets, config.depth_code(values)),
        compiler_options={"xla_backend_optimization_level": 0},  # compiles in half the time
    )
    first = batch(name)
    state, measured = start(nets, first["depth_mm"].shape[-1]), []
    for _ in range(2):
        state, metrics = step(state, first)
        measured.append({name: float(value) for name, value in sorted(metrics.items())})
    return measured


def main():
    FOLDER.mkdir(exist_ok=True)
    for name in NAMES:
        (FOLDER / f"{name}.json").write_text(json.dumps(measure(name), indent=2) + "\n")


if __name__ == "__main__":
    main()
