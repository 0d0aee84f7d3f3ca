"""What all configs share: the paper's values. A config file changes what differs and says what to expect."""

import ml_collections

METHODS = ("cgan", "ae", "pix2pix", "cui")


def base(method: str) -> ml_collections.ConfigDict:
    """The paper's run for one method; without data. Every number the code uses stands here."""
    config = ml_collections.ConfigDict()
    config.method = method or "cgan"
    config.seed = 1821
    config.width = 128  # feature maps of the first layer, the others follow; pix2pix takes half of it, cui a quarter
    config.dtype = "float32"  # of the computation; "bfloat16" on GPUs and TPUs. Parameters and losses stay float32

    config.loss = ml_collections.ConfigDict()
    # Lambda of Eq. 5, not in the paper: RESULTS.md has the sweep. With Eq. 3 as a mean over 96 x 96 pixels, 3,000 is
    # what a lambda of 0.33 is with Eq. 3 as a sum.
    config.loss.lam = 3_000.0
    config.loss.l1_weight = 100.0  # pix2pix
    # Cui et al.: 0.001 on the MSE. Read as a sum over 96 x 96 pixels, for it to weigh as much as a cross entropy; here
    # the MSE is a mean, so 0.001 x 9,216. An assumption.
    config.loss.mse_weight = 9.216

    config.net = ml_collections.ConfigDict()
    config.net.dropout_at_test = True  # pix2pix: the authors leave it on

    config.train = ml_collections.ConfigDict()
    config.train.batch_size = 64
    config.train.steps = 100_000
    config.train.learning_rate = 2e-4
    config.train.b1 = 0.5
    config.train.b2 = 0.999

    config.data = ml_collections.ConfigDict()
    config.data.dir = ""  # prepared arrays
    config.data.dataset = ""  # if they are missing: prepared from this data set ...
    config.data.raw_dir = ""  # ... in this directory
    config.data.size = 96
    config.data.face_mm = 320.0
    config.data.workers = 0  # processes to prepare with; 0: the training's own
    config.data.seed = 0  # of the verification pairs
    config.data.pairs_validation = ""  # a list of pairs to take instead, see docs/preparing.md
    config.data.pairs_test = ""
    config.data.options = ml_collections.ConfigDict()  # of the data set, as in `prepare --help`

    config.code = ml_collections.ConfigDict()  # levels.DepthCode
    config.code.offset_mm = 500.0
    config.code.step_mm = 8.0
    config.code.half_range = 127.5
    config.code.none_level = 194

    config.every = ml_collections.ConfigDict()  # in steps
    config.every.log = 50
    config.every.save = 1000
    config.every.evaluate = 1000  # on the validation split, with a picture
    config.every.stuck_sec = 600  # seconds without a step after which every thread's stack is printed
    return config
