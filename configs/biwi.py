"""The Biwi Kinect Head Pose Database: 20 people before a Kinect v1. How to get it: docs/biwi.md.

python -m facedepth_jax.main --config=configs/biwi.py[:ae|:pix2pix|:cui] --config.data.raw_dir=BIWI

Crops from the depth camera at its calibrated focal length, as the authors' group has published them (docs/biwi.md):
add --config.data.options.register=gray_to_depth --config.data.options.focal=0.0 --config.data.dir=data/biwi_depth

Hardware: a GPU; prepares on first use (docs/preparing.md). Time and figures: not run yet, as the data cannot
be had here. The paper's on its test split, over all pixels: L1 10.503 levels, RMSE 24.865 (Table 1, cGAN).
"""

from facedepth_jax.config import base


def get_config(method="cgan"):
    config = base(method)
    config.train.steps = 20_000  # 100 epochs of some 12,600 training frames in batches of 64
    config.data.dir = "data/biwi"
    config.data.dataset = "biwi"
    config.data.workers = 8  # processes to prepare with
    config.data.options.register = "depth_to_gray"  # or "gray_to_depth": which image moves
    config.data.options.focal = 370.0  # the paper's, Eq. 6; 0.0: the calibration's
    config.data.options.mask = False  # True: depth on the head alone, by the masks that come with the data
    return config
