"""The conditional variational auto-encoder over actions: a model of the behaviour policy."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.networks.mlp import MLP
from diffcps.types import Key, Real, Spec

LOG_STD_RANGE = (-4.0, 15.0)
"""The encoder's log-std is clipped to it (BCQ's program)."""


LATENT_SIZES = 2
"""Dimensions of the latent for each dimension of an action (BCQ's program)."""


class VAE(eqx.Module):
    """q(z | s, a) = N(mean, diag std^2) and a decoder a = tanh(u(s, z)); z has twice the dimensions of an action.

    Two hidden layers of `width` units each in encoder and decoder, with ReLU.
    Reference: BCQ (arXiv:1812.02900), with the sizes of its program; BEAR (arXiv:1906.00949) uses the same.
    """

    encoder: MLP
    decoder: MLP
    latent_size: int = eqx.field(static=True)

    def __init__(self, spec: Spec, width: int, key: Key):
        key_encoder, key_decoder = jax.random.split(key)
        observation, action = spec
        self.latent_size = LATENT_SIZES * action
        self.encoder = MLP((observation + action, width, width, 2 * self.latent_size), key_encoder, jax.nn.relu)
        self.decoder = MLP((observation + self.latent_size, width, width, action), key_decoder, jax.nn.relu)

    def encode(
        self, observation: Float[Array, "*b obs"], action: Float[Array, "*b act"]
    ) -> tuple[Float[Array, "*b latent"], Float[Array, "*b latent"]]:
        """Mean and log-std of q(z | s, a)."""
        mean, log_std = jnp.split(self.encoder(jnp.concatenate([observation, action], axis=-1)), 2, axis=-1)
        return mean, jnp.clip(log_std, *LOG_STD_RANGE)

    def decode_pre_tanh(
        self, observation: Float[Array, "*b obs"], latent: Float[Array, "*b latent"]
    ) -> Float[Array, "*b act"]:
        """u(s, z), any real numbers."""
        return self.decoder(jnp.concatenate([observation, latent], axis=-1))

    def decode(self, observation: Float[Array, "*b obs"], latent: Float[Array, "*b latent"]) -> Float[Array, "*b act"]:
        """a = tanh(u(s, z))."""
        return jnp.tanh(self.decode_pre_tanh(observation, latent))


def draw_latent(key: Key, axes: tuple[int, ...], action_size: int, bound: Real) -> Float[Array, "*axes latent"]:
    """z ~ N(0, I) clipped to [-bound, bound]: what actions are decoded from when there is none to encode."""
    return jnp.clip(jax.random.normal(key, (*axes, LATENT_SIZES * action_size)), -bound, bound)
