"""Your own RGB-D faces: a folder with an index.csv (README: the folder data set).

python -m facedepth_jax.main --config=configs/folder.py --config.data.raw_dir=FACES

On RAP3DF (266 frames of 62 people, with --config.data.face_mm=240.0), one CPU core: 4 minutes, the autoencoder 2.5.
Expect over pixels with true depth, five folds pooled (mean training map in brackets): L1 14.9 levels (19.7), RMSE 30.5
(36.4), 119 mm (157). pix2pix is the best there; RESULTS.md has all methods from the head.
"""

from facedepth_jax.config import base


def get_config(method="cgan"):
    config = base(method)
    config.width = 16
    config.train.batch_size = 16
    config.train.steps = 600
    if method != "relief":  # which has its own
        config.train.learning_rate = 1e-3  # so narrow a net takes larger steps than the paper's 2e-4
    config.data.dir = "data/folder"
    config.data.dataset = "folder"
    config.data.options.focal = 365.456  # Kinect v2
    config.data.options.depth_unit_mm = 1.0  # millimetres of one count of the depth images
    config.data.options.depth_none = 0  # a second value that means no depth, besides 0
    config.data.options.validation_fraction = 0.1
    config.data.options.test_fraction = 0.2
    config.data.options.fold = 0  # 0 to 4: a cross-validation in which everyone is tested once
    config.data.options.seed = 0
    config.every.save = 200
    return config
