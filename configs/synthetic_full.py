"""The paper's widths and schedule on 100,000 faces that the project makes itself; for a GPU.

python -m facedepth_jax.main --config=configs/synthetic_full.py[:ae|:pix2pix|:cui]

Hardware, time and figures: not run yet.
"""

from facedepth_jax.config import base


def get_config(method="cgan"):
    config = base(method)
    config.train.steps = 125_000  # 100 epochs of 80,000 training frames in batches of 64
    config.data.dir = "data/synthetic_full"
    config.data.dataset = "synthetic"
    config.data.options.subjects = 400  # x 5 sequences x 50 frames
    config.data.options.test_subjects = 0
    config.data.options.frames_per_sequence = 50
    config.data.options.image_size = 192
    config.data.options.sensor = "kinect_v2"
    config.data.options.misregistration = 0.0  # largest shift of gray against depth, pixels
    config.data.options.seed = 0
    config.every.log = 100
    config.every.save = 2500
    return config
