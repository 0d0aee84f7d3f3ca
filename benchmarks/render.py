"""Compare the rasteriser with embree on the same head: frames per second and their ratio.

    pip install -e '.[dev]'
    taskset -c 0 python benchmarks/render.py [--size=192] [--turns=20]

Both cast one ray per pixel, in turns, so that other load on the machine affects both. Embree's tree is rebuilt for each
frame, as a moving head requires; the last row leaves that out. Both run on one core (taskset): embree by trimesh uses
one thread.
"""

import argparse
import time

import jax
import numpy as np
import trimesh
from trimesh.ray.ray_pyembree import RayMeshIntersector

from facedepth_jax.data.synthetic import identity
from facedepth_jax.data.synthetic.render import rasterize


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--turns", type=int, default=20)
    args = parser.parse_args()

    head = identity.head()
    vertices = head.vertices + np.float32([0, 0, 770])
    triangles = head.triangles.astype(np.int32)
    focal = 1.9 * args.size, 1.9 * args.size
    center = (args.size - 1) / 2, (args.size - 1) / 2
    y, x = np.mgrid[: args.size, : args.size]
    rays = np.stack([(x - center[0]) / focal[0], (y - center[1]) / focal[1], np.ones(x.shape)], -1).reshape(-1, 3)
    draw = jax.jit(lambda v: rasterize(v, triangles, focal, center, args.size, args.size, 2 * args.size**2))

    def ours():
        return jax.block_until_ready(draw(vertices))

    def embree():
        mesh = trimesh.Trimesh(vertices, triangles, process=False)
        built = RayMeshIntersector(mesh)
        built.intersects_first(np.zeros((1, 3)), rays[:1])  # the tree is built at the first ray
        start = time.perf_counter()
        hit = built.intersects_first(np.zeros_like(rays), rays)
        return hit, time.perf_counter() - start

    raster = ours()
    if raster.overflow:
        raise SystemExit("the buffer is too small for this size")
    hit = embree()[0].reshape(args.size, args.size)
    same = ((np.asarray(raster.triangle) >= 0) == (hit >= 0)).mean()
    seconds = {"this rasteriser": [], "embree, tree built anew": [], "embree, rays only": []}
    for _ in range(args.turns):
        start = time.perf_counter()
        ours()
        middle = time.perf_counter()
        _, rays_only = embree()
        for name, value in zip(seconds, (middle - start, time.perf_counter() - middle, rays_only), strict=True):
            seconds[name].append(value)
    median = {name: float(np.median(values)) for name, values in seconds.items()}
    print(f"{len(triangles)} triangles, {args.size} x {args.size} px, {(hit >= 0).mean():.0%} covered, hit or not:")
    print(f"{same:.2%} of pixels alike, {args.turns} turns, {jax.default_backend()}\n")
    print("| | frames per second (median) | this rasteriser is faster by |\n|---|---|---|")
    for name, value in median.items():
        print(f"| {name} | {1 / value:.0f} | {value / median['this rasteriser']:.1f} x |")


if __name__ == "__main__":
    main()
