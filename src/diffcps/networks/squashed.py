"""The squashed Gaussian policy: a = tanh(u), u Gaussian."""

from __future__ import annotations

import math

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


def squashed_log_prob(
    noise: Float[Array, "*b act"], mean: Float[Array, "*#b act"], log_std: Float[Array, "*#b act"]
) -> Float[Array, "*b"]:
    """log pi(a) of a = tanh(u), u = mean + std noise, summed over the dimensions of the action.

    It is log N(u; mean, std^2) - log(1 - tanh(u)^2), the last written as 2 (log 2 - u - softplus(-2 u)), which is exact
    where the tanh saturates.
    Reference: SAC (arXiv:1812.05905), appendix C.
    """
    u = mean + jnp.exp(log_std) * noise
    density = -0.5 * jnp.square(noise) - log_std - 0.5 * math.log(2.0 * math.pi)
    return jnp.sum(density - 2.0 * (math.log(2.0) - u - jax.nn.softplus(-2.0 * u)), axis=-1)


class ScaledSquashedGaussian(eqx.Module):
    """u ~ N(mean(s), diag std(s)^2), a = tanh(u), where log std = scale x(s) + offset, clipped to `log_std_range`.

    mean and x are the two halves of the last layer of one MLP with ReLU; scale and offset are two learned numbers for
    all states and dimensions, from 1 and -1. Outside of its range log std has no gradient.
    Reference: the policy of CQL (arXiv:2006.04779) in the program of CORL.
    """

    network: MLP
    log_std_scale: Float[Array, "*ensemble"]
    log_std_offset: Float[Array, "*ensemble"]
    log_std_range: tuple[float, float] = eqx.field(static=True)

    def __init__(
        self, spec: Spec, hidden: tuple[int, ...], key: Key, log_std_range: tuple[float, float] = (-20.0, 2.0)
    ):
        self.network = MLP((spec.observation_size, *hidden, 2 * spec.action_size), key, jax.nn.relu)
        self.log_std_scale, self.log_std_offset = jnp.float32(1.0), jnp.float32(-1.0)
        self.log_std_range = log_std_range

    def __call__(self, observation: Float[Array, "*b obs"]) -> tuple[Float[Array, "*b act"], Float[Array, "*b act"]]:
        """Mean and log-std of u."""
        mean, x = jnp.split(self.network(observation), 2, axis=-1)
        return mean, jnp.clip(self.log_std_scale * x + self.log_std_offset, *self.log_std_range)

    def mode(self, observation: Float[Array, "*b obs"]) -> Float[Array, "*b act"]:
        """tanh(mean(s)), the action of the mean of u."""
        return jnp.tanh(self(observation)[0])

    def sample(
        self, observation: Float[Array, "*b obs"], noise: Float[Array, "*b k act"]
    ) -> tuple[Float[Array, "*b k act"], Float[Array, "*b k"]]:
        """a_k = tanh(mean + std noise_k), k reparameterised actions for each observation, and log pi(a_k | s)."""
        mean, log_std = (part[..., None, :] for part in self(observation))
        return jnp.tanh(mean + jnp.exp(log_std) * noise), squashed_log_prob(noise, mean, log_std)
