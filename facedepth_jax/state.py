"""What training carries from step to step, and the three things done with a net: init, forward, apply gradients."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
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
    """`step` int32 (), the number of updates done; `nets` by name. Arrays only."""

    step: jax.Array
    nets: dict[str, NetState]


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
    """What is closed over by a step: a module with `(x, train)` and its optimiser."""

    module: nn.Module
    optimizer: optax.GradientTransformation


def adam(learning_rate, b1, b2):
    """The paper's optimiser (section 3.1.2: 2e-4, 0.5, 0.999)."""
    return optax.adam(learning_rate, b1=b1, b2=b2)


def init_net(net: Net, key, image_size):
    """A fresh NetState for inputs (B, image_size, image_size, C); C is 1, or what the module gives as `channels`."""
    x = jnp.zeros((1, image_size, image_size, getattr(net.module, "channels", 1)))
    variables = jax.jit(lambda key: net.module.init(key, x, train=False))(key)
    params = variables["params"]
    return NetState(params, variables.get("batch_stats", {}), net.optimizer.init(params))


def init_state(nets: dict[str, Net], seed, image_size):
    """A fresh TrainState; a net's start depends on the seed, its name's place in the alphabet and the device's kind."""
    # XLA's own generator: for threefry a CPU compiles seconds for each shape of weights.
    keys = jax.random.split(jax.random.key(seed, impl="rbg"), len(nets))
    states = {name: init_net(nets[name], key, image_size) for name, key in zip(sorted(nets), keys, strict=True)}
    return TrainState(jnp.zeros((), jnp.int32), states)


def no_best(net_state: NetState) -> Best:
    """A place for the best weights, worse than any."""
    params, batch_stats = jax.tree.map(jnp.zeros_like, (net_state.params, net_state.batch_stats))
    return Best(jnp.zeros((), jnp.int32), jnp.full((2,), jnp.inf), params, batch_stats)


@jax.jit
def keep_better(best: Best, net_state: NetState, step, rank) -> Best:
    """The better of the two by rank, `best` where they are equal."""
    better = (rank[0] < best.rank[0]) | ((rank[0] == best.rank[0]) & (rank[1] < best.rank[1]))
    new = Best(step, rank, net_state.params, net_state.batch_stats)
    return jax.tree.map(lambda new, old: jnp.where(better, new, old), new, best)


def forward_train(net: Net, params, batch_stats, x, key=None):
    """Output and new batch statistics, normalised by the batch's own; `key` draws the noise of nets with dropout."""
    rngs = {} if key is None else {"dropout": key}
    output, new = net.module.apply(
        {"params": params, "batch_stats": batch_stats}, x, train=True, mutable=["batch_stats"], rngs=rngs
    )
    return output, new.get("batch_stats", {})


def forward(net_module: nn.Module, net_state: NetState, x):
    """Output with the running statistics, as in evaluation."""
    return net_module.apply({"params": net_state.params, "batch_stats": net_state.batch_stats}, x, train=False)


def apply_gradients(net: Net, net_state: NetState, gradients, batch_stats):
    """One update of the optimiser."""
    with jax.named_scope("optimizer"):  # by which a profile finds it
        updates, opt_state = net.optimizer.update(gradients, net_state.opt_state, net_state.params)
        return NetState(optax.apply_updates(net_state.params, updates), batch_stats, opt_state)


def gradient_norm(gradients):
    """Euclidean norm over all gradients of a net, float32 ()."""
    return optax.tree.norm(gradients)
