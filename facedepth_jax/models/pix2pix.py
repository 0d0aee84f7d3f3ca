"""Define pix2pix: U-Net and 70 x 70 PatchGAN of Isola et al., "Image-to-Image Translation with Conditional Adversarial
Networks", CVPR 2017 (appendix 6.1).

`width` is the number of feature maps of the first layer, 64 there. Convolutions are k4; before batch norm they have no
bias (the authors' PyTorch version). Kernels start from N(0, 0.02), the scales of batch norm from N(1, 0.02).

Differences from the paper: batch norm is over our batch (theirs is one image, which makes it an instance norm), and
evaluation uses the running statistics.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from facedepth_jax.errors import FaceDepthError
from facedepth_jax.models.layers import BatchNorm, Conv, ConvTranspose


def _scale_init(key, shape, dtype=jnp.float32):
    return 1 + 0.02 * jax.random.normal(key, shape, dtype)


def _resize(x, size):
    """Resize (B, S, S, 1) -> (B, size, size, 1), float32, bilinearly; shrinking averages over the source pixels."""
    return jax.image.resize(x.astype(jnp.float32), (x.shape[0], size, size, x.shape[3]), "bilinear")


class Generator(nn.Module):
    """Map gray (B, S, S, 1) in [-1, 1] to a depth image (B, S, S, 1) in [-1, 1], float32.

    Images are resized to the next power of two, 128 for 96, which the U-Net halves down to one pixel (seven levels).
    Dropout 0.5 follows the first three decoder blocks that have 8 width maps. Training draws its noise from the key
    "dropout"; in evaluation, where the authors keep dropout on, one fixed draw serves every image and every call.
    """

    width: int = 64
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, gray, train):
        levels = (gray.shape[1] - 1).bit_length()
        features = [self.width * min(2**i, 8) for i in range(levels)]

        def norm(x, name):
            return BatchNorm(self.dtype, scale_init=_scale_init, name=name)(x, train)

        x = _resize(gray, 2**levels)
        skips = []
        for i in range(levels):  # (B, 2^levels / 2^(i + 1), .., features[i])
            if i:
                x = nn.leaky_relu(x, 0.2)
            x = Conv(features[i], 4, 2, dtype=self.dtype, name=f"down{i + 1}")(x)
            if 0 < i < levels - 1:
                x = norm(x, f"down_norm{i + 1}")
            skips.append(x)
        for i in range(levels - 1, 0, -1):  # (B, 2^levels / 2^i, .., features[i - 1])
            if i < levels - 1:
                x = jnp.concatenate([x, skips[i]], -1)
            x = ConvTranspose(features[i - 1], 4, dtype=self.dtype, name=f"up{i + 1}")(nn.relu(x))
            x = norm(x, f"up_norm{i + 1}")
            if i >= levels - 3 and features[i - 1] == 8 * self.width:
                x = self._dropout(x, train, i)
        x = jnp.concatenate([x, skips[0]], -1)
        x = ConvTranspose(1, 4, use_bias=True, dtype=self.dtype, name="up1")(nn.relu(x))
        return _resize(jnp.tanh(x.astype(jnp.float32)), gray.shape[1])

    def _dropout(self, x, train, i):
        dropout = nn.Dropout(0.5, broadcast_dims=() if train else (0,), deterministic=False)
        return dropout(x, rng=self.make_rng("dropout") if train else jax.random.key(i))


class Discriminator(nn.Module):
    """Map gray and depth image (B, S, S, 2) in [-1, 1] to logits (B, S/8 - 2, S/8 - 2) of being real, float32.

    Each logit sees 70 x 70 pixels. Raises FaceDepthError for images under 24 px, which leave no logit.
    """

    width: int = 64
    dtype: jnp.dtype = jnp.float32
    channels = 2

    @nn.compact
    def __call__(self, gray_and_depth, train):
        x = gray_and_depth
        if (size := x.shape[1]) < 24:
            raise FaceDepthError(f"The method pix2pix needs images of at least 24 px, data.size is {size}.")
        for i, (features, strides) in enumerate([(1, 2), (2, 2), (4, 2), (8, 1)], 1):
            padding = "SAME" if strides == 2 else (1, 1)
            x = Conv(features * self.width, 4, strides, padding, use_bias=i == 1, dtype=self.dtype, name=f"conv{i}")(x)
            if i > 1:
                x = BatchNorm(self.dtype, scale_init=_scale_init, name=f"norm{i}")(x, train)
            x = nn.leaky_relu(x, 0.2)
        x = Conv(1, 4, 1, (1, 1), use_bias=True, dtype=self.dtype, name="out")(x)
        return x[..., 0].astype(jnp.float32)
