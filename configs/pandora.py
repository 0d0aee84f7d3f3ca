"""Pandora, the paper's main data set: 22 people before a Kinect v2. How to get it: docs/pandora.md.

python -m facedepth_jax.main --config=configs/pandora.py[:ae|:pix2pix|:cui] --config.data.raw_dir=PANDORA

Hardware: a GPU; prepares on first use (docs/preparing.md). Time and figures: not run yet, as the data cannot
be had here. The paper's on its test split, over all pixels: L1 11.792 levels, RMSE 18.677 (Table 1, cGAN).
"""

from facedepth_jax.config import base


def get_config(method="cgan"):
    config = base(method)
    config.train.steps = 250_000  # 100 epochs of some 160,000 training frames in batches of 64
    config.data.dir = "data/pandora"
    config.data.dataset = "pandora"
    config.data.workers = 8  # processes to prepare with
    config.data.options.register = "head"  # "joints": by the map between the two images' joints
    config.data.options.focal = 365.0  # pixels, the paper's; the calibration's is about 365.456
    config.data.options.gray_focal = 1081.37  # of the colour camera, Kinect v2's
    config.data.options.max_angle = 90.0  # degrees; poses beyond are left out, an assumption
    config.every.log = 100
    config.every.save = 2500
    return config
