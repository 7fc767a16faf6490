"""The squashed Gaussian policy: a = tanh(u), u Gaussian."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.networks.mlp import MLP
from diffcps.types import Key, Spec

LOG_STD_RANGE = (-5.0, 2.0)
"""The log-std of u is clipped to it (BEAR in the evaluations of D4RL)."""


class SquashedGaussian(eqx.Module):
    """u ~ N(mean(s), diag std(s)^2), a = tanh(u); `depth` hidden layers of `width` units with ReLU."""

    network: MLP

    def __init__(self, spec: Spec, width: int, depth: int, key: Key):
        sizes = (spec.observation_size, *(width,) * depth, 2 * spec.action_size)
        self.network = MLP(sizes, key, jax.nn.relu)

    def __call__(self, observation: Float[Array, "*b obs"]) -> tuple[Float[Array, "*b act"], Float[Array, "*b act"]]:
        """Mean and log-std of u."""
        mean, log_std = jnp.split(self.network(observation), 2, axis=-1)
        return mean, jnp.clip(log_std, *LOG_STD_RANGE)

    def pre_tanh(
        self, observation: Float[Array, "*b obs"], noise: Float[Array, "*b k act"]
    ) -> Float[Array, "*b k act"]:
        """u_k = mean + std noise_k, the reparameterised samples for each observation."""
        mean, log_std = self(observation)
        return mean[..., None, :] + jnp.exp(log_std)[..., None, :] * noise
