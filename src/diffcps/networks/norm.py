"""Layer normalisation, and an MLP behind it."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.networks.mlp import MLP, Activation
from diffcps.types import Key


class LayerNorm(eqx.Module):
    """scale (x - mean) / sqrt(variance + epsilon) + bias, mean and variance over the last axis.

    At first scale is 1 and bias 0. Epsilon is 1e-6 by default in Flax and 1e-5 in PyTorch. Reference: arXiv:1607.06450.
    """

    scale: Float[Array, "*ensemble d"]
    bias: Float[Array, "*ensemble d"]
    epsilon: float = eqx.field(static=True)

    def __init__(self, size: int, epsilon: float = 1e-6):
        self.scale, self.bias = jnp.ones(size), jnp.zeros(size)
        self.epsilon = epsilon

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        mean, variance = jnp.mean(x, axis=-1, keepdims=True), jnp.var(x, axis=-1, keepdims=True)
        return (x - mean) * (self.scale * jax.lax.rsqrt(variance + self.epsilon)) + self.bias


class NormedMLP(eqx.Module):
    """An MLP of the normalised input; nothing is normalised between its layers.

    Reference: the network V(s) in the program of IDQL (arXiv:2304.10573).
    """

    norm: LayerNorm
    network: MLP

    def __init__(self, sizes: tuple[int, ...], key: Key, activation: Activation = jax.nn.relu):
        self.norm = LayerNorm(sizes[0])
        self.network = MLP(sizes, key, activation)

    def __call__(self, x: Float[Array, "*b fan_in"]) -> Float[Array, "*b fan_out"]:
        return self.network(self.norm(x))
