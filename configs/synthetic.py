"""The demo: the paper's cGAN at an eighth of its width on faces that the project makes itself.

python -m facedepth_jax.main --config=configs/synthetic.py[:ae|:pix2pix|:cui]

Two CPU cores: 2 to 4 minutes with making the faces and evaluating; 105 to 290 images a second. Expect on the test
split, over pixels with true depth (mean training map in brackets): L1 10.1 levels (19.3), RMSE 24.6 (45.6), 81 mm
(154); relief 13.5 mm (13.2). RESULTS.md has all methods on more people and for longer.
"""

from facedepth_jax.config import base


def get_config(method="cgan"):
    config = base(method)
    config.width = 16
    config.depth_code.origin = "head"  # absolute depth, "camera", is mostly a guess: see the README
    config.train.batch_size = 16
    config.train.steps = 800
    if method != "relief":  # which has its own
        config.train.learning_rate = 1e-3  # so narrow a net takes larger steps than the paper's 2e-4
    config.data.dir = "data/synthetic"
    config.data.dataset = "synthetic"
    config.data.workers = 2
    config.data.options.subjects = 120
    config.data.options.test_subjects = 0
    config.data.options.frames_per_sequence = 4
    config.data.options.image_size = 192
    config.data.options.sensor = "kinect_v2"
    config.data.options.misregistration = 0.0  # largest shift of gray against depth, pixels
    config.data.options.seed = 0
    config.every.save = 200
    return config
