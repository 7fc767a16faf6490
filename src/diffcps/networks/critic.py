"""Networks for values: V, Q, and ensembles of Q."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from diffcps.networks.mlp import MLP, Activation, mish
from diffcps.networks.norm import NormedMLP
from diffcps.types import Key, Spec


class QNetwork(eqx.Module):
    """Q(s, a)."""

    network: MLP

    def __call__(self, observation: Float[Array, "*b obs"], action: Float[Array, "*b act"]) -> Float[Array, "*b"]:
        return self.network(jnp.concatenate([observation, action], axis=-1))[..., 0]


class VNetwork(eqx.Module):
    """V(s); of the normalised observation where `normed`."""

    network: MLP | NormedMLP

    def __init__(
        self,
        spec: Spec,
        hidden: tuple[int, ...],
        key: Key,
        normed: bool = False,
        activation: Activation = jax.nn.relu,
    ):
        sizes = (spec.observation_size, *hidden, 1)
        self.network = (NormedMLP if normed else MLP)(sizes, key, activation)

    def __call__(self, observation: Float[Array, "*b obs"]) -> Float[Array, "*b"]:
        return self.network(observation)[..., 0]


class Critic(eqx.Module):
    """`size` independent Q networks, evaluated together: Q_j(s, a), j = 1..size."""

    networks: MLP

    def __init__(self, spec: Spec, hidden: tuple[int, ...], key: Key, activation: Activation = mish, size: int = 2):
        sizes = (spec.observation_size + spec.action_size, *hidden, 1)
        self.networks = jax.vmap(lambda k: MLP(sizes, k, activation))(jax.random.split(key, size))

    def __call__(self, observation: Float[Array, "*b obs"], action: Float[Array, "*b act"]) -> Float[Array, "size *b"]:
        x = jnp.concatenate([observation, action], axis=-1)
        return jax.vmap(lambda network: network(x)[..., 0])(self.networks)

    @property
    def first(self) -> QNetwork:
        """Q_1 alone."""
        return QNetwork(jax.tree.map(lambda leaf: leaf[0], self.networks))

    def pair(self, first: Bool[Array, ""]) -> tuple[QNetwork, QNetwork]:
        """Both networks of an ensemble of two, one by one: Q_1, Q_2 where `first`, else Q_2, Q_1."""
        index = jnp.where(first, 0, 1)
        chosen, other = (jax.tree.map(lambda leaf: leaf[i], self.networks) for i in (index, 1 - index))  # noqa: B023
        return QNetwork(chosen), QNetwork(other)
