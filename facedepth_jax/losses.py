"""Compute the losses of the paper, Eqs. 2 to 5, and of its baselines: one value an example, (B,); steps take the mean.

Labels are 1 = real, 0 = generated, as in Eqs. 1 and 5 (the text of section 3.1.1 says the opposite).
"""

import jax.numpy as jnp
import optax


def mse(image, target):
    """Average Eq. 3 over the pixels: (B, S, S, 1) twice -> (B,)."""
    return jnp.mean(jnp.square(image - target), axis=(1, 2, 3))


def adversarial(logits, label):
    """Compute Eq. 2 for one label, 0.0 or 1.0: logits (B,), or (B, h, w) of patches whose mean counts -> (B,).

    From logits, as the log of a sigmoid would be infinite at 40.
    """
    entropy = optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, label))
    return jnp.mean(entropy, axis=tuple(range(1, logits.ndim)))


def discriminator(logits_real, logits_generated):
    """Sum Eq. 2 over the real and the generated maps: logits as in `adversarial`, twice -> (B,)."""
    return adversarial(logits_real, 1.0) + adversarial(logits_generated, 0.0)


def generator(image, target, logits, lam):
    """Compute Eq. 5, lambda * MSE + adversarial loss against "real": (B, S, S, 1) twice, (B,), scalar -> (B,)."""
    return lam * mse(image, target) + adversarial(logits, 1.0)


def verification(logits, same):
    """Compute the verifier's binary cross entropy from logits (B,); same (B,) is 1 for one person, 0 for two."""
    return optax.sigmoid_binary_cross_entropy(logits, same.astype(logits.dtype))


def l1(image, target):
    """Average the absolute error over the pixels: (B, S, S, 1) twice -> (B,)."""
    return jnp.mean(jnp.abs(image - target), axis=(1, 2, 3))


def conditional_discriminator(logits_real, logits_generated):
    """Compute pix2pix's loss for its discriminator (Isola et al., section 3.3), Eq. 2 halved: logits twice -> (B,)."""
    return 0.5 * discriminator(logits_real, logits_generated)


def conditional_generator(image, target, logits, l1_weight):
    """Compute pix2pix's loss for its generator (Isola et al., Eq. 4): (B, S, S, 1) twice, (B, h, w), scalar -> (B,)."""
    return l1_weight * l1(image, target) + adversarial(logits, 1.0)


def identity(scores, subject):
    """Compute the cross entropy of the person, of the scores' softmax: (B, subjects), int (B,) -> (B,)."""
    return optax.softmax_cross_entropy_with_integer_labels(scores, subject)


def shift_aware_l1(image, target, weight):
    """Average the absolute error, half of it after the image's mean error is taken away: (B, S, S) thrice -> (B,).

    The shape of a face counts even where its distance is wrong. After Eigen et al. (2014), Eq. 4, whose log-scale is a
    shift here. Both means are weighted by `weight`, at least 0; an image of zeros there has no error.
    """
    error = image - target
    total = weight.sum((1, 2))
    total = jnp.where(total > 0, total, 1.0)
    shift = ((weight * error).sum((1, 2)) / total)[:, None, None]
    return 0.5 * (weight * (jnp.abs(error) + jnp.abs(error - shift))).sum((1, 2)) / total


def gradient_matching(image, target, counted, limit, steps=(1, 2, 4)):
    """Average the absolute error of differences over `steps` pixels, along rows and columns: (B, S, S) thrice -> (B,).

    After Ranftl et al. (MiDaS, 2020), Eq. 11, with differences instead of a pyramid. Each error counts up to `limit`:
    what lies beyond is an edge in another place.
    """
    error, total = jnp.where(counted, image - target, 0.0), 0.0
    for turned, here in ((error, counted), (error.swapaxes(1, 2), counted.swapaxes(1, 2))):
        for step in steps:
            both = here[:, step:] & here[:, :-step]
            change = jnp.minimum(jnp.abs(turned[:, step:] - turned[:, :-step]), limit)
            total += jnp.where(both, change, 0.0).sum((1, 2)) / jnp.maximum(both.sum((1, 2)), 1)
    return total / (2 * len(steps))


def normals(image, target, counted, pitch, steepest):
    """Average 1 - the cosine of the angle between the normals: (B, S, S) thrice, the side of a pixel -> (B,).

    Hu et al. (WACV 2019), their third loss. Slopes are central differences. A pixel counts if it and its four
    neighbours do (`counted`, bool) and the target has no slope beyond `steepest`, an edge.
    """

    def slopes(depth):
        depth = jnp.where(counted, depth, 0.0) / (2 * pitch)
        return depth[:, 2:, 1:-1] - depth[:, :-2, 1:-1], depth[:, 1:-1, 2:] - depth[:, 1:-1, :-2]

    (ay, ax), (by, bx) = slopes(image), slopes(target)
    cosine = (1 + ay * by + ax * bx) / jnp.sqrt((1 + ay**2 + ax**2) * (1 + by**2 + bx**2))
    here = counted[:, 1:-1, 1:-1] & counted[:, 2:, 1:-1] & counted[:, :-2, 1:-1] & counted[:, 1:-1, 2:]
    here &= counted[:, 1:-1, :-2] & (jnp.maximum(jnp.abs(by), jnp.abs(bx)) < steepest)
    return jnp.where(here, 1 - cosine, 0.0).sum((1, 2)) / jnp.maximum(here.sum((1, 2)), 1)


def foreground(logits, inside):
    """Average the binary cross entropy of the foreground's mask: float and bool (B, S, S) -> (B,)."""
    return jnp.mean(optax.sigmoid_binary_cross_entropy(logits, inside.astype(logits.dtype)), axis=(1, 2))
