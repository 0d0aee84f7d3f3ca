"""Measure the speed of the synthetic faces: whole frames per second, and the share of each stage.

    taskset -c 0 python benchmarks/synthetic.py [image size in pixels]

Medians of repeated batches without compile time. On one core, times are the process's CPU seconds, so that other load
on a shared machine counts less.
"""

import functools
import os
import statistics
import sys
import time

import jax
import numpy as np

from facedepth_jax.data.synthetic import BATCH_FRAMES, SENSORS, SyntheticSource, picture, scene, sensor, window
from facedepth_jax.data.synthetic.render import interpolate

REPEATS = 36


def seconds(function, *inputs):
    """Return the median seconds of a call, and those of the first one, which compiles."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # macOS has none
    clock = time.process_time if cores == 1 else time.perf_counter
    times = []
    for _ in range(REPEATS + 1):
        start = clock()
        jax.block_until_ready(function(*inputs))
        times.append(clock() - start)
    return statistics.median(times[1:]), times[0]


def main(size_px):
    source = SyntheticSource(image_size=size_px)
    size = (size_px, size_px)
    capacity = picture.fragment_capacity(SENSORS[source.sensor][0][0], size)
    positions = iter(range(0, 10**6))
    source.scene(0)

    def draw():
        return [source.scene(next(positions)) for _ in range(BATCH_FRAMES)]

    scenes = [source.scene(p * 97) for p in range(BATCH_FRAMES)]
    cameras = [window(s, source.sensor, size_px) for s in scenes]
    stack = functools.partial(jax.tree.map, lambda *leaves: np.stack(leaves))
    scenes, cameras = jax.device_put((stack(*scenes), stack(*cameras)))

    def loop(function):
        return jax.jit(lambda *batch: jax.lax.map(lambda item: function(*item), batch))

    render = jax.jit(lambda s, c: picture.render_batch(s, c, 0.0, size, source.sensor, capacity))
    pose, attributes = loop(scene.camera_vertices), loop(picture._attributes)
    cast = loop(lambda s, c, v: picture.cast(s, c, v, size, capacity))
    spread = loop(lambda r, t: interpolate(r, picture.topology().triangles, t))
    draw_noise = loop(lambda k: sensor.v2_noise(k, size))
    measure = loop(sensor.v2_measurement)
    vertices = pose(scenes)
    raster, table = cast(scenes, cameras, vertices), attributes(scenes, vertices)
    keys = jax.random.split(jax.random.key(0), BATCH_FRAMES)
    ones = np.ones(raster.depth_mm.shape, np.float32)
    whole, first = seconds(render, scenes, cameras)
    rows = {
        "drawing the scene (host)": seconds(draw)[0],
        "posing": seconds(pose, scenes)[0],
        "light on vertices": seconds(attributes, scenes, vertices)[0],
        "rasteriser": seconds(cast, scenes, cameras, vertices)[0],
        "interpolation": seconds(spread, raster, table)[0],
        "sensor": seconds(draw_noise, keys)[0] + seconds(measure, draw_noise(keys), raster.depth_mm, ones, ones)[0],
    }
    total = whole + rows["drawing the scene (host)"]
    rows["paint, room, camera"] = total - sum(rows.values())
    print(f"{size_px} x {size_px} px, {jax.default_backend()}, compiling {first - whole:.1f} s\n")
    print("| | ms a frame | of a frame | frames a second |\n|---|---|---|---|")
    print(f"| whole frame | {1e3 * total / BATCH_FRAMES:.2f} | 100% | {BATCH_FRAMES / total:.0f} |")
    for name, value in rows.items():
        print(f"| {name} | {1e3 * value / BATCH_FRAMES:.2f} | {value / total:.0%} | |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 192)
