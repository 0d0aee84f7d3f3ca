"""Carry the training state from step to step; initialise, apply and update nets."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NetState:
    """One net: parameters and batch statistics (nested dicts, float32), the optimiser's state."""

    params: Any
    batch_stats: Any
    opt_state: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything a step changes. Arrays only.

    Attributes:
      step: int32 (), the number of updates done.
      nets: by name.
      average: {"params", "batch_stats"} of the net that is evaluated, averaged over the steps; {} if that is off.
    """

    step: jax.Array
    nets: dict[str, NetState]
    average: dict[str, Any] = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Best:
    """The weights of one net that did best on the validation split so far.

    Attributes:
      step: int32 (), after which they were measured; 0 when nothing was.
      rank: float32 (2,), lower is better: by the first number, then by the second.
      params, batch_stats: as in NetState.
    """

    step: jax.Array
    rank: jax.Array
    params: Any
    batch_stats: Any


@dataclasses.dataclass(frozen=True)
class Net:
    """The static part of a net, closed over by a step: a module with `(x, train)` and its optimiser."""

    module: nn.Module
    optimizer: optax.GradientTransformation


def adam(learning_rate, b1, b2, *, schedule="constant", warmup_steps=0, steps=0, clip_norm=0.0, weight_decay=0.0):
    """Build the paper's optimiser (section 3.1.2: Adam, 2e-4, 0.5, 0.999), with what others add to it.

    Args:
      learning_rate: the highest.
      schedule: "constant", as in the paper, or "cosine", down to a hundredth at the last of `steps`.
      warmup_steps: steps in which the rate grows linearly from 0.
      clip_norm: the most that the norm of a net's gradient may be; 0.0 is off.
      weight_decay: share of itself, times the rate, that a weight loses in a step (Loshchilov and Hutter 2019, AdamW).
    """
    if schedule == "cosine":
        learning_rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, steps, learning_rate / 100)
    elif warmup_steps:
        learning_rate = optax.warmup_constant_schedule(0.0, learning_rate, warmup_steps)
    optimizer = optax.adam(learning_rate, b1=b1, b2=b2)
    if weight_decay:
        optimizer = optax.adamw(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip_norm), optimizer) if clip_norm else optimizer


def init_net(net: Net, key, image_size):
    """Make a fresh NetState for inputs (B, image_size, image_size, C); C is the module's `channels`, else 1."""
    x = jnp.zeros((1, image_size, image_size, getattr(net.module, "channels", 1)))
    initial = jax.jit(lambda key: net.module.init(key, x, train=False))(key)
    params = initial["params"]
    return NetState(params, initial.get("batch_stats", {}), net.optimizer.init(params))


def init_state(nets: dict[str, Net], seed, image_size):
    """Make a fresh TrainState; a net depends on the seed, its name's place in the alphabet and the kind of device."""
    # XLA's own generator: for threefry a CPU compiles seconds for each shape of weights.
    keys = jax.random.split(jax.random.key(seed, impl="rbg"), len(nets))

    @jax.jit  # one program for all nets and their optimisers compiles sooner
    def init(keys):
        states = {name: init_net(nets[name], key, image_size) for name, key in zip(sorted(nets), keys, strict=True)}
        return TrainState(jnp.zeros((), jnp.int32), states)

    return init(keys)


def no_best(net_state: NetState) -> Best:
    """Make a Best that is worse than any."""
    params, batch_stats = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), (net_state.params, net_state.batch_stats))
    return Best(np.zeros((), np.int32), np.full((2,), np.inf, np.float32), params, batch_stats)


@jax.jit
def keep_better(best: Best, net_state: NetState, step, rank) -> Best:
    """Take the better of the two by rank, `best` where they are equal."""
    better = (rank[0] < best.rank[0]) | ((rank[0] == best.rank[0]) & (rank[1] < best.rank[1]))
    new = Best(step, rank, net_state.params, net_state.batch_stats)
    return jax.tree.map(lambda new, old: jnp.where(better, new, old), new, best)


def variables(net_state: NetState) -> dict[str, Any]:
    """Return {"params", "batch_stats"}, as flax applies them and files of weights hold them."""
    return {"params": net_state.params, "batch_stats": net_state.batch_stats}


def forward_train(net: Net, params, batch_stats, x, key=None):
    """Apply a net with the batch's own statistics: output and new running ones. `key` draws dropout's noise."""
    rngs = {} if key is None else {"dropout": key}
    output, new = net.module.apply(
        {"params": params, "batch_stats": batch_stats}, x, train=True, mutable=["batch_stats"], rngs=rngs
    )
    return output, new.get("batch_stats", {})


def forward(net_module: nn.Module, net_state: NetState, x):
    """Apply a net with the running statistics, as in evaluation."""
    return net_module.apply(variables(net_state), x, train=False)


def apply_gradients(net: Net, net_state: NetState, gradients, batch_stats):
    """Update a net by its optimiser."""
    with jax.named_scope("optimizer"):  # by which a profile finds it
        updates, opt_state = net.optimizer.update(gradients, net_state.opt_state, net_state.params)
        return NetState(optax.apply_updates(net_state.params, updates), batch_stats, opt_state)


def gradient_norm(gradients):
    """Measure the Euclidean norm over all gradients of a net, float32 ()."""
    return optax.tree.norm(gradients)


def average_weights(average, net_state: NetState, step, decay):
    """Move the averaged weights towards those after step `step`, by 1 - min(decay, (1 + step) / (10 + step)).

    The ramp keeps the random start out of a short run's average (as TensorFlow's ExponentialMovingAverage does). Batch
    statistics are averaged alike, or they would be those of other weights.
    """
    decay = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: old + (1.0 - decay) * (new - old), average, variables(net_state))
