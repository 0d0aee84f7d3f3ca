"""The face verification net (section 4.2): do two depth maps show the same person?

`width` is the number of feature maps of the first layer, 64 in the paper; the others follow from it. What the text
leaves open follows the authors' group: no padding, batch norm and ReLU behind each convolution, ReLU between the dense
layers, the two feature vectors concatenated, and what is done to a depth map before the net sees it. By the
concatenation the net is not symmetric in its two images; `verification.py` is.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from facedepth_jax.errors import FaceDepthError
from facedepth_jax.models.layers import KERNEL_INIT, BatchNorm

ROTATION_DEG = 5.0


def equalize(levels):
    """Histogram equalisation, bit for bit OpenCV's `equalizeHist` on 8 bits.

    Args:
      levels: (B, S, S), whole numbers 0..255 of any type.

    Returns:
      float32 (B, S, S), whole numbers 0..255; an image of one level stays as it is.
    """

    def one(flat):
        counts = jnp.zeros(256, jnp.int32).at[flat].add(1)
        up_to = jnp.cumsum(counts)  # how many pixels have this level or a lower one
        lowest = jnp.min(jnp.where(up_to > 0, up_to, flat.size))  # how many have the lowest that occurs
        scale = jnp.float32(255) / jnp.maximum(flat.size - lowest, 1).astype(jnp.float32)
        table = jnp.round((up_to - lowest).astype(jnp.float32) * scale)
        return jnp.where(lowest == flat.size, flat.astype(jnp.float32), table[flat])

    return jax.vmap(one)(levels.reshape(len(levels), -1).astype(jnp.int32)).reshape(levels.shape)


def normalize(levels):
    """What the net sees of a depth map: equalised, then zero mean and unit deviation an image.

    Args:
      levels: (B, S, S), whole numbers 0..255 of any type.

    Returns:
      float32 (B, S, S, 1); zero for an image of one level.
    """
    image = equalize(levels)
    image = image - image.mean((1, 2), keepdims=True)
    # Equalised, an image of two levels or more deviates by more than 1.
    return (image / jnp.maximum(image.std((1, 2), keepdims=True), 1))[..., None]


def augment(levels, key):
    """Every image flipped or not and turned by up to ROTATION_DEG around its centre, each by its own draw.

    By the nearest pixel, so that levels stay levels and holes stay holes; what comes in from outside is the edge's.

    Args:
      levels: (B, S, S).
      key: of the draws.

    Returns:
      The same shape and type.
    """
    count, height, width = levels.shape
    flip_key, turn_key = jax.random.split(key)
    flip = jax.random.bernoulli(flip_key, shape=(count, 1, 1))
    limit = jnp.deg2rad(ROTATION_DEG)
    angle = jax.random.uniform(turn_key, (count, 1, 1), minval=-limit, maxval=limit)
    y, x = jnp.mgrid[:height, :width]
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    x = jnp.where(flip, -x, x)
    from_x = jnp.cos(angle) * x - jnp.sin(angle) * y + (width - 1) / 2
    from_y = jnp.sin(angle) * x + jnp.cos(angle) * y + (height - 1) / 2
    column = jnp.clip(jnp.round(from_x), 0, width - 1).astype(jnp.int32)
    row = jnp.clip(jnp.round(from_y), 0, height - 1).astype(jnp.int32)
    return jax.vmap(lambda image, row, column: image[row, column])(levels, row, column)


class _Branch(nn.Module):
    """k3s2 to width, 2, 4, 4, 4 times width, average pool k2: (B, 96, 96, 1) -> (B, 4 width), float32."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train):
        for i, times in enumerate([1, 2, 4, 4, 4], 1):  # 96 -> 47 -> 23 -> 11 -> 5 -> 2
            convolution = {"padding": "VALID", "use_bias": False, "kernel_init": KERNEL_INIT, "dtype": self.dtype}
            x = nn.Conv(times * self.width, (3, 3), (2, 2), name=f"conv{i}", **convolution)(x)
            x = BatchNorm(self.dtype, name=f"norm{i}")(x, train)
            x = nn.relu(x)
        return x.astype(jnp.float32).mean((1, 2))  # the pool sees the whole of a 2x2 map


class Siamese(nn.Module):
    """Two images as two channels (B, 96, 96, 2) -> logit (B,) of showing one person, float32.

    The images are those of `normalize`. Both go through the same branch, in one batch.
    `features` and `compare` are its two halves. FaceDepthError for images of another size.
    """

    width: int = 64
    dtype: jnp.dtype = jnp.float32
    channels = 2

    def setup(self):
        self.branch = _Branch(self.width, self.dtype)
        self.dense = [nn.Dense(features, dtype=self.dtype) for features in (128, 32, 1)]

    def __call__(self, pair, train):
        a, b = pair[..., :1], pair[..., 1:]
        a, b = jnp.split(self.features(jnp.concatenate([a, b]), train), 2)
        return self.compare(a, b)

    def features(self, image, train=False):
        """(B, 96, 96, 1) -> (B, 4 width), float32."""
        if image.shape[1:] != (96, 96, 1):
            height, width = image.shape[1:3]
            raise FaceDepthError(f"The verifier's net takes depth maps of 96x96 px, not {height}x{width}.")
        return self.branch(image, train)

    def compare(self, a, b):
        """Features of two images, (B, 4 width) each -> logit (B,), float32."""
        x = jnp.concatenate([a, b], -1)
        for dense in self.dense[:-1]:
            x = nn.relu(dense(x))
        return self.dense[-1](x)[:, 0].astype(jnp.float32)
