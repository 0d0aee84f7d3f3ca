"""Train each method by one step: pure functions `(state, batch) -> (state, metrics)`.

The batch is the pipeline's, stored arrays: gray uint8 (B, S, S), depth_mm uint16 (B, S, S), 0 = none, distance_mm
float32 (B,), D of Eq. 6, subject int32 (B,), the person's place among the training people. Metrics are float32 scalars.
Randomness comes from `fold_in(key(seed), state.step)`. methods.py says which step belongs to which method.

Where there is nothing to learn (`DepthCode.learnt`) the generated map shows the true one: no loss and no net that looks
at it can tell the two apart there, and no gradient comes back. What the cGAN's discriminator sees can be chosen.
"""

import jax
import jax.numpy as jnp

from facedepth_jax import losses
from facedepth_jax.depth_code import RELIEF_MM, DepthCode, encode_gray, true_foreground
from facedepth_jax.metrics import FACE_MM
from facedepth_jax.models import siamese
from facedepth_jax.state import Net, NetState, TrainState, apply_gradients, forward_train, gradient_norm

INSIDE_MM = 250.0  # relief that counts in the loss of it
CROP_MM = 320.0  # side of the crops; in others the slopes are so much flatter or steeper
STEEPEST = 3.0  # slope of a surface whose normals count
EDGE_MM = 30.0  # errors of a difference count up to this


def encode(batch, code: DepthCode):
    """Turn stored arrays into what the nets see: gray and depth, float32 (B, S, S, 1) in [-1, 1].

    And masks of pixels, bool (B, S, S, 1): "learnt", "all", and "valid", those with true depth.
    """
    valid = (batch["depth_mm"] > 0)[..., None]
    return {
        "gray": encode_gray(batch["gray"]),
        "depth": code.encode(batch["depth_mm"], batch["distance_mm"]),
        "learnt": code.learnt(batch["depth_mm"]),
        "all": jnp.ones_like(valid),
        "valid": valid,
    }


def _generator(net: Net, net_state: NetState, batch, key=None):
    """Close the generator over a batch: params -> (map, batch statistics)."""

    def generate(params):
        image, stats = forward_train(net, params, net_state.batch_stats, batch["gray"], key)
        return jnp.where(batch["learnt"], image, batch["depth"]), stats

    return generate


def adversarial_step(
    state: TrainState,
    batch,
    *,
    nets: dict[str, Net],
    code: DepthCode,
    seed: int,
    lam: float,
    discriminator_pixels: str,
):
    """Apply the paper's step (section 3.1.2): D on real and generated maps, then G by Eq. 5 through the D just updated.

    The generator runs forward once: its vjp waits while D learns on its maps, then takes the gradient of Eq. 5 by the
    generated image back to the weights. D normalises real and generated maps as two batches. It sees the generated map
    in `discriminator_pixels` ("learnt", "all" or "valid", see `encode`) and the true one elsewhere.
    """
    batch = encode(batch, code)
    g, d = state.nets["generator"], state.nets["discriminator"]

    def generate(params):
        return forward_train(nets["generator"], params, g.batch_stats, batch["gray"])

    def shown(image, pixels):
        return jnp.where(batch[pixels], image, batch["depth"])

    image, pull_back, g_stats = jax.vjp(generate, g.params, has_aux=True)
    generated = shown(image, discriminator_pixels)

    def d_loss(params):
        real_logits, stats = forward_train(nets["discriminator"], params, d.batch_stats, batch["depth"])
        generated_logits, stats = forward_train(nets["discriminator"], params, stats, generated)
        loss = jnp.mean(losses.discriminator(real_logits, generated_logits))
        return loss, (stats, real_logits, generated_logits)

    (loss_d, (d_stats, real_logits, generated_logits)), d_grads = jax.value_and_grad(d_loss, has_aux=True)(d.params)
    d = apply_gradients(nets["discriminator"], d, d_grads, d_stats)

    def g_loss(image):
        logits, _ = forward_train(nets["discriminator"], d.params, d.batch_stats, shown(image, discriminator_pixels))
        loss = jnp.mean(losses.generator(shown(image, "learnt"), batch["depth"], logits, lam))
        return loss, jnp.mean(losses.adversarial(logits, 1.0))

    (loss_g, loss_adv), image_grad = jax.value_and_grad(g_loss, has_aux=True)(image)
    (g_grads,) = pull_back(image_grad)
    g = apply_gradients(nets["generator"], g, g_grads, g_stats)

    metrics = {
        "loss_g": loss_g,
        "loss_mse": jnp.mean(losses.mse(shown(image, "learnt"), batch["depth"])),
        "loss_adv": loss_adv,
        "loss_d": loss_d,
        "d_accuracy_real": jnp.mean(real_logits > 0),
        "d_accuracy_generated": jnp.mean(generated_logits <= 0),
        "grad_norm_g": gradient_norm(g_grads),
        "grad_norm_d": gradient_norm(d_grads),
    }
    return TrainState(state.step + 1, {"generator": g, "discriminator": d}), metrics


def supervised_step(state: TrainState, batch, *, nets: dict[str, Net], code: DepthCode, seed: int):
    """Apply the autoencoder's step: the same generator on Eq. 3 alone."""
    batch = encode(batch, code)
    g = state.nets["generator"]
    generate = _generator(nets["generator"], g, batch)

    def loss_of(params):
        image, stats = generate(params)
        return jnp.mean(losses.mse(image, batch["depth"])), stats

    (loss, stats), grads = jax.value_and_grad(loss_of, has_aux=True)(g.params)
    g = apply_gradients(nets["generator"], g, grads, stats)
    metrics = {"loss_g": loss, "loss_mse": loss, "grad_norm_g": gradient_norm(grads)}
    return TrainState(state.step + 1, {"generator": g}), metrics


def conditional_adversarial_step(
    state: TrainState, batch, *, nets: dict[str, Net], code: DepthCode, seed: int, l1_weight: float
):
    """Apply pix2pix's step (Isola et al., section 3): D with half its loss, then G by Eq. 4 through the D just updated.

    D sees gray and depth together. As in `adversarial_step` the generator runs forward once, with its dropout's noise.
    """
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    batch = encode(batch, code)
    g, d = state.nets["generator"], state.nets["discriminator"]
    generate = _generator(nets["generator"], g, batch, key)
    generated, pull_back, g_stats = jax.vjp(generate, g.params, has_aux=True)

    def judge(params, stats, depth):
        pair = jnp.concatenate([batch["gray"], depth], -1)
        return forward_train(nets["discriminator"], params, stats, pair)

    def d_loss(params):
        real_logits, stats = judge(params, d.batch_stats, batch["depth"])
        generated_logits, stats = judge(params, stats, generated)
        loss = jnp.mean(losses.conditional_discriminator(real_logits, generated_logits))
        return loss, (stats, real_logits, generated_logits)

    (loss_d, (d_stats, real_logits, generated_logits)), d_grads = jax.value_and_grad(d_loss, has_aux=True)(d.params)
    d = apply_gradients(nets["discriminator"], d, d_grads, d_stats)

    def g_loss(image):
        logits, _ = judge(d.params, d.batch_stats, image)
        loss = jnp.mean(losses.conditional_generator(image, batch["depth"], logits, l1_weight))
        return loss, jnp.mean(losses.adversarial(logits, 1.0))

    (loss_g, loss_adv), image_grad = jax.value_and_grad(g_loss, has_aux=True)(generated)
    (g_grads,) = pull_back(image_grad)
    g = apply_gradients(nets["generator"], g, g_grads, g_stats)

    metrics = {
        "loss_g": loss_g,
        "loss_l1": jnp.mean(losses.l1(generated, batch["depth"])),
        "loss_mse": jnp.mean(losses.mse(generated, batch["depth"])),
        "loss_adv": loss_adv,
        "loss_d": loss_d,
        "d_accuracy_real": jnp.mean(real_logits > 0),
        "d_accuracy_generated": jnp.mean(generated_logits <= 0),
        "grad_norm_g": gradient_norm(g_grads),
        "grad_norm_d": gradient_norm(d_grads),
    }
    return TrainState(state.step + 1, {"generator": g, "discriminator": d}), metrics


def discriminative_step(
    state: TrainState, batch, *, nets: dict[str, Net], code: DepthCode, seed: int, mse_weight: float
):
    """Apply Cui et al.'s step: G on the MSE and the cross entropy of the identity net; then that net on the latter.

    The cross entropy is of the person that the identity net sees in G's map. Its gradients by the map (for G) and by
    that net's weights come from one pass.
    """
    batch = encode(batch, code) | {"subject": batch["subject"]}
    g, i = state.nets["generator"], state.nets["identity"]
    generate = _generator(nets["generator"], g, batch)
    generated, pull_back, g_stats = jax.vjp(generate, g.params, has_aux=True)

    def identity_loss(image, params):
        scores, stats = forward_train(nets["identity"], params, i.batch_stats, image)
        return jnp.mean(losses.identity(scores, batch["subject"])), (stats, scores)

    (loss_identity, (i_stats, scores)), (identity_grad, i_grads) = jax.value_and_grad(
        identity_loss, argnums=(0, 1), has_aux=True
    )(generated, i.params)
    i = apply_gradients(nets["identity"], i, i_grads, i_stats)

    def mse_loss(image):
        return jnp.mean(losses.mse(image, batch["depth"]))

    loss_mse, mse_grad = jax.value_and_grad(mse_loss)(generated)
    (g_grads,) = pull_back(mse_weight * mse_grad + identity_grad)
    g = apply_gradients(nets["generator"], g, g_grads, g_stats)

    metrics = {
        "loss_g": mse_weight * loss_mse + loss_identity,
        "loss_mse": loss_mse,
        "loss_identity": loss_identity,
        "identity_accuracy": jnp.mean(jnp.argmax(scores, -1) == batch["subject"]),
        "grad_norm_g": gradient_norm(g_grads),
        "grad_norm_identity": gradient_norm(i_grads),
    }
    return TrainState(state.step + 1, {"generator": g, "identity": i}), metrics


def relief_step(
    state: TrainState,
    batch,
    *,
    nets: dict[str, Net],
    code: DepthCode,
    seed: int,
    gradient_weight: float,
    normals_weight: float,
    foreground_weight: float,
    far_weight: float,
):
    """Apply the step of the project's own net: relief within INSIDE_MM of D, and the foreground everywhere.

    Relief beyond FACE_MM weighs `far_weight` in the L1. Losses are in units of 100 mm.
    """
    in_front = true_foreground(batch["depth_mm"], batch["distance_mm"])
    batch = encode(batch, code)
    g, unit = state.nets["generator"], RELIEF_MM / 100
    target = unit * batch["depth"][..., 0]
    inside = jnp.abs(target) < INSIDE_MM / 100  # where there is no depth, the target is the farthest
    weight = inside * jnp.where(jnp.abs(target) < FACE_MM / 100, 1.0, far_weight)
    pitch = CROP_MM / target.shape[-1] / 100

    def loss_of(params):
        output, stats = forward_train(nets["generator"], params, g.batch_stats, batch["gray"])
        relief, logits = unit * output[..., 0], output[..., 1]
        terms = {
            "loss_relief": jnp.mean(losses.shift_aware_l1(relief, target, weight)),
            "loss_gradient": jnp.mean(losses.gradient_matching(relief, target, inside, EDGE_MM / 100)),
            "loss_normals": jnp.mean(losses.normals(relief, target, inside, pitch, STEEPEST)),
            "loss_foreground": jnp.mean(losses.foreground(logits, in_front)),
        }
        loss = terms["loss_relief"] + gradient_weight * terms["loss_gradient"]
        loss += normals_weight * terms["loss_normals"]
        return loss + foreground_weight * terms["loss_foreground"], (stats, terms)

    (loss, (stats, terms)), grads = jax.value_and_grad(loss_of, has_aux=True)(g.params)
    g = apply_gradients(nets["generator"], g, grads, stats)
    metrics = {"loss_g": loss, "grad_norm_g": gradient_norm(grads)} | terms
    return TrainState(state.step + 1, {"generator": g}), metrics


def pairwise_step(state: TrainState, batch, *, nets: dict[str, Net], code: DepthCode, seed: int):
    """Apply the verifier's step (section 4.2): binary cross entropy of pairs of real depth maps, augmented.

    The batch is the pairs': depth_mm uint16 (B, 2, S, S), distance_mm float32 (B, 2), same int32 (B,), 1 = one person.
    """
    size = batch["depth_mm"].shape[-1]
    maps = code.picture(batch["depth_mm"].reshape(-1, size, size), batch["distance_mm"].reshape(-1))
    maps = siamese.augment(maps, jax.random.fold_in(jax.random.key(seed), state.step))
    pair = siamese.normalize(maps).reshape(-1, 2, size, size).transpose(0, 2, 3, 1)
    same = batch["same"]
    v = state.nets["verifier"]

    def loss_of(params):
        logits, stats = forward_train(nets["verifier"], params, v.batch_stats, pair)
        return jnp.mean(losses.verification(logits, same)), (stats, logits)

    (loss, (stats, logits)), grads = jax.value_and_grad(loss_of, has_aux=True)(v.params)
    v = apply_gradients(nets["verifier"], v, grads, stats)
    metrics = {"loss": loss, "accuracy": jnp.mean((logits > 0) == (same > 0)), "grad_norm": gradient_norm(grads)}
    return TrainState(state.step + 1, {"verifier": v}), metrics
