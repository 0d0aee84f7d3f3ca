"""The losses of the paper, Eqs. 2 to 5: one value an example, (B,); whoever trains takes the mean.

Labels are 1 = real, 0 = generated, as in Eqs. 1 and 5 (the text of section 3.1.1 says the opposite).
"""

import jax.numpy as jnp
import optax


def mse(image, target):
    """Eq. 3 an example, as the mean over the pixels: (B, S, S, 1) twice -> (B,)."""
    return jnp.mean(jnp.square(image - target), axis=(1, 2, 3))


def adversarial(logits, label):
    """Eq. 2 an example, from logits (B,), for one label 0.0 or 1.0: the log of a sigmoid would be infinite at 40."""
    return optax.sigmoid_binary_cross_entropy(logits, jnp.full_like(logits, label))


def discriminator(logits_real, logits_generated):
    """Eq. 2 over the real and the generated maps, summed: (B,) twice -> (B,)."""
    return adversarial(logits_real, 1.0) + adversarial(logits_generated, 0.0)


def generator(image, target, logits, lam):
    """Eq. 5, lambda * MSE + adversarial loss against "real": (B, S, S, 1) twice, (B,), scalar -> (B,)."""
    return lam * mse(image, target) + adversarial(logits, 1.0)
