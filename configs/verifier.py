"""The verifier of any data set: the paper's Siamese net on true depth, the judge of the generators' runs.

python -m facedepth_jax.main --config=configs/verifier.py:synthetic --workdir=runs/verifier

Behind the colon stands the config of the generators' runs, for its data and levels. The width is this net's own: 64 in
the paper, a quarter of that for the demo's data, where 3000 steps take one busy CPU core 15 minutes.

Expect with 480 people of the demo's kind, on 200 it has never seen (4000 pairs, depth from the head, one seed):
accuracy 0.801, area under the curve 0.894; on silhouettes alone 0.764 (RESULTS.md). The paper's width has not
been run yet.
"""

from facedepth_jax.config import find, load
from facedepth_jax.errors import FaceDepthError

# Configs of narrow generators: a quarter of the paper's net judges them.
SMALL = ("synthetic", "folder", "relief")


def get_config(name="synthetic"):
    path, method = find(name)
    if path.stem == "verifier" or method:
        raise FaceDepthError("The verifier judges all methods of another config: give its name alone behind the colon.")
    config = load(f"{path}:verifier")
    narrow = path.stem in SMALL
    config.width = 16 if narrow else 64
    config.train.batch_size = 32  # pairs
    config.train.steps = 3000 if narrow else 20_000
    config.train.learning_rate = 1e-3
    config.train.b1 = 0.9
    config.every.save = 200
    return config
