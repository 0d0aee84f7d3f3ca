"""Define the face verification net (section 4.2): do two depth maps show the same person?

`width` is the number of feature maps of the first layer, 64 in the paper; the others follow from it. Details that the
text leaves open follow the authors' group: no padding, batch norm and ReLU after each convolution, ReLU between the
dense layers, the two feature vectors concatenated, and the preprocessing of depth maps. The concatenation makes the net
asymmetric in its two images; `verification.py` averages both orders.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from facedepth_jax.errors import FaceDepthError
from facedepth_jax.models.layers import BatchNorm, Conv

ROTATION_DEG = 5.0


def equalize(levels):
    """Equalise histograms, bit for bit as OpenCV's `equalizeHist` on 8 bits.

    Args:
      levels: (B, S, S), whole numbers 0..255 of any type.

    Returns:
      float32 (B, S, S), whole numbers 0..255; an image of one level stays as it is.
    """

    def one(flat):
        counts = jnp.zeros(256, jnp.int32).at[flat].add(1)
        up_to = jnp.cumsum(counts)  # pixels of this level or a lower one
        lowest = jnp.min(jnp.where(up_to > 0, up_to, flat.size))  # pixels of the lowest level that occurs
        scale = jnp.float32(255) / jnp.maximum(flat.size - lowest, 1).astype(jnp.float32)
        table = jnp.round((up_to - lowest).astype(jnp.float32) * scale)
        return jnp.where(lowest == flat.size, flat.astype(jnp.float32), table[flat])

    return jax.vmap(one)(levels.reshape(len(levels), -1).astype(jnp.int32)).reshape(levels.shape)


def normalize(levels):
    """Prepare depth maps for the net: equalise, then scale each image to zero mean and unit deviation.

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
    """Flip each image or not and turn it by up to ROTATION_DEG around its centre, each by its own draw.

    The nearest pixel is taken, so that levels stay levels and holes stay holes; the border repeats the edge.

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
    y, x = (y - (height - 1) / 2)[None], (x - (width - 1) / 2)[None]
    x = jnp.where(flip, -x, x)
    from_x = jnp.cos(angle) * x - jnp.sin(angle) * y + (width - 1) / 2
    from_y = jnp.sin(angle) * x + jnp.cos(angle) * y + (height - 1) / 2
    column = jnp.clip(jnp.round(from_x), 0, width - 1).astype(jnp.int32)
    row = jnp.clip(jnp.round(from_y), 0, height - 1).astype(jnp.int32)
    return jax.vmap(lambda image, row, column: image[row, column])(levels, row, column)


class _Branch(nn.Module):
    """Apply k3s2 to width, 2, 4, 4, 4 times width, average pool k2: (B, 96, 96, 1) -> (B, 4 width), float32."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, train):
        for i, times in enumerate([1, 2, 4, 4, 4], 1):  # 96 -> 47 -> 23 -> 11 -> 5 -> 2
            x = Conv(times * self.width, 3, 2, "VALID", dtype=self.dtype, name=f"conv{i}")(x)
            x = BatchNorm(self.dtype, name=f"norm{i}")(x, train)
            x = nn.relu(x)
        return x.astype(jnp.float32).mean((1, 2))  # the pool sees the whole of a 2x2 map


class Siamese(nn.Module):
    """Map two images of `normalize` as channels (B, 96, 96, 2) to the logit (B,) of one person, float32.

    Both images go through the same branch in one batch. `features` and `compare` are the net's two halves. Raises
    FaceDepthError for images of another size.
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
        """Map an image (B, 96, 96, 1) to features (B, 4 width), float32."""
        if image.shape[1:] != (96, 96, 1):
            height, width = image.shape[1:3]
            raise FaceDepthError(f"The verifier's net takes depth maps of 96x96 px, not {height}x{width}.")
        return self.branch(image, train)

    def compare(self, a, b):
        """Map the features of two images, (B, 4 width) each, to the logit (B,), float32."""
        x = jnp.concatenate([a, b], -1)
        for dense in self.dense[:-1]:
            x = nn.relu(dense(x))
        return self.dense[-1](x)[:, 0].astype(jnp.float32)
