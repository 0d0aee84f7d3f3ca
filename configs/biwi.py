"""The Biwi Kinect Head Pose Database, the paper's widths and schedule; for a GPU. docs/biwi.md: terms, layout, defaults.

python -m facedepth_jax.main --config=configs/biwi.py[:ae] --config.data.raw_dir=DIR

Hardware, time and figures: not run yet, the data cannot be had here. The paper's column for Biwi is in tables.
"""

from configs.base import base


def get_config(method="cgan"):
    config = base(method)
    config.train.steps = 19_000  # 100 epochs of the 19 training sequences, some 12,000 frames, in batches of 64
    config.data.dir = "data/biwi"
    config.data.dataset = "biwi"
    config.data.options.register = "depth_to_gray"  # or "gray_to_depth"
    config.data.options.focal = 370.0  # the paper's, Eq. 6; 0.0: the calibration's
    config.data.options.mask = False
    config.every.log = 50
    config.every.save = 1000
    config.every.evaluate = 1000
    return config
