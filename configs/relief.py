"""The project's own net: a face's relief and mask, for photographs of people it has never seen.

python -m facedepth_jax.main --config=configs/relief.py[:cgan|:ae|:pix2pix|:cui]

Trained on nothing but faces that the project makes itself, augmented. The paper's methods on the same data are what it
is held against: no augmentation, Adam as in the paper, 64,000 images.

Two busy CPU cores made 50,000 of the 125,000 frames in 17 minutes and trained on them, 192,000 images, in 110. That is
the net that ships: facedepth_jax/weights/README.md has its figures.
"""

from facedepth_jax.config import base


def get_config(method="relief"):
    config = base(method)
    config.width = 16
    config.depth_code.origin = "head"
    config.train.batch_size = 32
    if method == "relief":
        config.train.steps = 6000
        config.train.warmup_steps = 200
    else:
        config.train.steps = 2000
        config.train.learning_rate = 1e-3  # so narrow a net takes larger steps than the paper's 2e-4
    config.data.dir = "data/relief"
    config.data.dataset = "synthetic"
    config.data.workers = 2
    config.data.options.subjects = 5000  # x 5 sequences x 5 frames
    config.data.options.test_subjects = 0
    config.data.options.frames_per_sequence = 5
    config.data.options.image_size = 192
    config.data.options.sensor = "none"  # exact depth: a sensor's holes and noise are nothing to learn from
    config.data.options.misregistration = 0.0  # largest shift of gray against depth, pixels
    config.data.options.seed = 0
    return config
