"""Laws of initial weights other than PyTorch's, which `Linear` has of itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.nn.initializers import variance_scaling
from jaxtyping import Array, Float

from diffcps.networks.mlp import Linear
from diffcps.types import Key

Network = TypeVar("Network")
Law = Callable[[Key, tuple[int, ...]], Float[Array, "*ensemble fan_in fan_out"]]


def xavier_uniform(key: Key, shape: tuple[int, ...]) -> Float[Array, "*ensemble fan_in fan_out"]:
    """Uniform within sqrt(6 / (fan_in + fan_out)). Reference: Glorot and Bengio, AISTATS 2010."""
    return variance_scaling(1.0, "fan_avg", "uniform", batch_axis=_ensemble(shape))(key, shape, jnp.float32)


def lecun_normal(key: Key, shape: tuple[int, ...]) -> Float[Array, "*ensemble fan_in fan_out"]:
    """A normal distribution of variance 1 / fan_in, cut at two of its standard deviations before it is scaled to it.

    Reference: LeCun, Bottou, Orr and Mueller, Efficient BackProp, 1998; in this form the default of Flax.
    """
    return variance_scaling(1.0, "fan_in", "truncated_normal", batch_axis=_ensemble(shape))(key, shape, jnp.float32)


def orthogonal(key: Key, shape: tuple[int, ...]) -> Float[Array, "*ensemble fan_in fan_out"]:
    """sqrt(2) times a matrix with orthogonal rows or columns. Reference: Saxe, McClelland and Ganguli (1312.6120)."""
    *ensemble, fan_in, fan_out = shape
    if ensemble:
        return jax.vmap(lambda key: orthogonal(key, shape[1:]))(jax.random.split(key, shape[0]))
    columns = _orthonormal(jax.random.normal(key, (max(fan_in, fan_out), min(fan_in, fan_out))))
    return 2.0**0.5 * (columns.T if fan_in < fan_out else columns)


@jax.custom_batching.sequential_vmap
def _orthonormal(normal: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
    """The Q of Q R, with R's diagonal positive, so that Q is uniform among orthonormal columns.

    One matrix after the other, however many are mapped over: two batched decompositions that run side by side wait for
    each other for ever on a CPU of two cores (jaxlib 0.10.2: each holds a thread of XLA's, and waits for a third).
    """
    q, r = jnp.linalg.qr(normal)
    return q * jnp.sign(jnp.diag(r))


def initialised(network: Network, law: Law, key: Key) -> Network:
    """The network with the weight of each linear layer drawn anew by `law`, and its bias zero."""

    def is_linear(node: object) -> bool:
        return isinstance(node, Linear)

    layers = [node for node in jax.tree.leaves(network, is_leaf=is_linear) if is_linear(node)]
    keys = iter(jax.random.split(key, len(layers)))

    def drawn(node):
        if not is_linear(node):
            return node
        weight = law(next(keys), node.weight.shape)
        return jax.tree.unflatten(jax.tree.structure(node), [weight, jnp.zeros_like(node.bias)])

    return jax.tree.map(drawn, network, is_leaf=is_linear)


def _ensemble(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axes before fan-in and fan-out: networks of an ensemble."""
    return tuple(range(len(shape) - 2))
