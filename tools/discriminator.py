"""Measure whether a cGAN's discriminator judges faces or holes: the share of maps that it calls real.

    python tools/discriminator.py --run=runs/demo --data=data/synthetic [--split=test]

Faces and holes (pixels without true depth) of true and generated maps are swapped. The weights are those that the run
has exported: the generator's best, the discriminator's last. The discriminator normalises each batch of maps of a kind
by itself, as in training, in batches of that size; a last one that is smaller is left out.
"""

import argparse
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from facedepth_jax import config as configs
from facedepth_jax.data import arrays
from facedepth_jax.data.frames import SPLITS
from facedepth_jax.depth_code import encode_gray, true_foreground
from facedepth_jax.errors import FaceDepthError
from facedepth_jax.methods import build
from facedepth_jax.state import forward_train, init_state, variables
from facedepth_jax.weight_files import load_weights

KINDS = "true", "generated", "generated face, true holes", "true face, generated holes", "flat face, true holes"


def swaps(generated, depth_mm, distance_mm, code) -> list[jax.Array]:
    """Make maps (B, S, S, 1) of the KINDS from generated ones and true depth (B, S, S), millimetres, 0 = none."""
    true, valid = code.encode(depth_mm, distance_mm), (depth_mm > 0)[..., None]
    flat_mm = jnp.where(true_foreground(depth_mm, distance_mm), distance_mm[:, None, None], depth_mm)
    flat = code.encode(flat_mm, distance_mm)
    return [true, generated, jnp.where(valid, generated, true), jnp.where(valid, true, generated), flat]


def measure(run: pathlib.Path, data: arrays.Arrays, split: str) -> tuple[dict[str, float], int]:
    """Return the share of each kind of maps that is called real, and how many maps of a kind there were.

    Raises FaceDepthError if it is no run of the cGAN, does not fit the arrays, or a batch is more than the split.
    """
    config = configs.read_run(run)
    if config.method != "cgan":
        raise FaceDepthError(f"{run} is a run of '{config.method}': give one of the cGAN.")
    configs.check_crops(config, data)
    rows, size, code = data.rows(split), config.train.batch_size, configs.depth_code(config)
    if len(rows) < size:
        raise FaceDepthError(f"{split} has {len(rows)} frames, train.batch_size is {size}: take a larger split.")
    nets = build(config, subjects=1)
    like = jax.eval_shape(lambda: init_state(nets, 0, config.data.size)).nets
    g, d = (load_weights(run / f"{name}.safetensors", variables(like[name])) for name in ("generator", "discriminator"))

    @jax.jit
    def called_real(g, d, gray, depth_mm, distance_mm):
        def judge(maps):
            return jnp.mean(forward_train(nets["discriminator"], d["params"], d["batch_stats"], maps)[0] > 0)

        generated = nets["generator"].module.apply(g, encode_gray(gray), train=False)
        return jnp.stack([judge(maps) for maps in swaps(generated, depth_mm, distance_mm, code)])

    batches = rows[: len(rows) // size * size].reshape(-1, size)
    found = [called_real(g, d, data.gray[b], data.depth_mm[b].astype(np.float32), data.distance_mm[b]) for b in batches]
    return dict(zip(KINDS, np.mean(found, 0).tolist(), strict=True)), batches.size


def main(argv=None) -> int:
    """Run the command line; see --help."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=pathlib.Path, help="directory of a finished run of the cGAN")
    parser.add_argument("--data", required=True, type=pathlib.Path, help="prepared arrays")
    parser.add_argument("--split", default="test", choices=(*SPLITS, "all"), help="of the arrays (test)")
    args = parser.parse_args(argv)
    try:
        found, n = measure(args.run, arrays.open(args.data.resolve()), args.split)
    except FaceDepthError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"| {args.split}, n = {n} | called real |\n|---|---:|")
    print("\n".join(f"| {name} | {share:.3f} |" for name, share in found.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
