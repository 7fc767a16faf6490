"""Policies with one action or one Gaussian per observation."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.networks.mlp import MLP, Activation
from diffcps.types import Key, Real, Spec


class Deterministic(eqx.Module):
    """a = tanh(MLP(s)), inside the box [-1, 1]. Reference: the actor of TD3 (arXiv:1802.09477) and TD3+BC."""

    network: MLP

    def __init__(self, spec: Spec, hidden: tuple[int, ...], key: Key, activation: Activation = jax.nn.relu):
        self.network = MLP((spec.observation_size, *hidden, spec.action_size), key, activation)

    def __call__(self, observation: Float[Array, "*b obs"]) -> Float[Array, "*b act"]:
        return jnp.tanh(self.network(observation))


def log_density(
    action: Float[Array, "*b act"], mean: Float[Array, "*b act"], log_std: Float[Array, "... act"]
) -> Float[Array, "*b"]:
    """log N(a; mean, diag(std^2)), summed over the dimensions of the action."""
    z = (action - mean) * jnp.exp(-log_std)
    return -jnp.sum(0.5 * jnp.square(z) + log_std + 0.5 * math.log(2.0 * math.pi), axis=-1)


class Gaussian(eqx.Module):
    """N(mean(s), diag(std^2)): the mean by an MLP, one std per action dimension for all s.

    The density is over all of R^act: no sample is held in the box [-1, 1], and the mean only where `tanh_mean` squashes
    the MLP's end. Clip actions where they are used. The log-std is learned, starts at 0 and is clipped to
    `log_std_range` where it is used, so that a log-std outside has no gradient. With `std` given, the std is that
    number in every dimension and has no gradient at all.
    Reference: the policies of AWR (arXiv:1910.00177; fixed std) and of IQL's program (arXiv:2110.06169; learned).
    """

    network: MLP
    log_std: Float[Array, "*ensemble act"]
    log_std_range: tuple[float, float] = eqx.field(static=True)
    learns_std: bool = eqx.field(static=True)
    tanh_mean: bool = eqx.field(static=True)

    def __init__(
        self,
        spec: Spec,
        hidden: tuple[int, ...],
        key: Key,
        activation: Activation = jax.nn.relu,
        std: Real | None = None,
        log_std_range: tuple[float, float] = (-5.0, 2.0),
        tanh_mean: bool = False,
    ):
        self.network = MLP((spec.observation_size, *hidden, spec.action_size), key, activation)
        self.log_std = jnp.full(spec.action_size, 0.0 if std is None else jnp.log(std), jnp.float32)
        self.log_std_range = log_std_range
        self.learns_std = std is None
        self.tanh_mean = tanh_mean

    def mean(self, observation: Float[Array, "*b obs"]) -> Float[Array, "*b act"]:
        """The mean, which is also the mode."""
        mean = self.network(observation)
        return jnp.tanh(mean) if self.tanh_mean else mean

    def log_prob(self, observation: Float[Array, "*b obs"], action: Float[Array, "*b act"]) -> Float[Array, "*b"]:
        """log N(a; mean(s), diag(std^2)), summed over the dimensions of the action."""
        return log_density(action, self.mean(observation), self._used_log_std())

    def sample(self, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        """One action per observation. Differentiable in the mean and the std."""
        return self.sample_with(observation, jax.random.normal(key, (*observation.shape[:-1], self.log_std.shape[-1])))

    def sample_with(self, observation: Float[Array, "*b obs"], eps: Float[Array, "*b act"]) -> Float[Array, "*b act"]:
        """mean(s) + std eps, eps ~ N(0, I)."""
        return self.mean(observation) + jnp.exp(self._used_log_std()) * eps

    def _used_log_std(self) -> Float[Array, " act"]:
        if not self.learns_std:
            return jax.lax.stop_gradient(self.log_std)
        return jnp.clip(self.log_std, *self.log_std_range)


class ConditionalGaussian(eqx.Module):
    """N(tanh(mean(s)), diag(std(s)^2)): mean and log-std by one MLP, the two halves of its last layer.

    The density is over all of R^act and has no term for the tanh, which holds the mean in the box [-1, 1] but no
    sample: clip actions where they are used. The log-std is clipped to `log_std_range`, outside of which it has no
    gradient.
    Reference: the policy of CRR (arXiv:2006.15134) in the program of d3rlpy.
    """

    network: MLP
    log_std_range: tuple[float, float] = eqx.field(static=True)

    def __init__(
        self,
        spec: Spec,
        hidden: tuple[int, ...],
        key: Key,
        activation: Activation = jax.nn.relu,
        log_std_range: tuple[float, float] = (-20.0, 2.0),
    ):
        self.network = MLP((spec.observation_size, *hidden, 2 * spec.action_size), key, activation)
        self.log_std_range = log_std_range

    def __call__(self, observation: Float[Array, "*b obs"]) -> tuple[Float[Array, "*b act"], Float[Array, "*b act"]]:
        """Mean, which is also the mode, and log-std."""
        mean, log_std = jnp.split(self.network(observation), 2, axis=-1)
        return jnp.tanh(mean), jnp.clip(log_std, *self.log_std_range)

    def log_prob(self, observation: Float[Array, "*b obs"], action: Float[Array, "*b act"]) -> Float[Array, "*b"]:
        """log N(a; tanh(mean(s)), diag(std(s)^2)), summed over the dimensions of the action."""
        return log_density(action, *self(observation))

    def sample(self, observation: Float[Array, "*b obs"], noise: Float[Array, "*b k act"]) -> Float[Array, "*b k act"]:
        """tanh(mean(s)) + std(s) noise_k: k samples for each observation, not clipped."""
        mean, log_std = self(observation)
        return mean[..., None, :] + jnp.exp(log_std)[..., None, :] * noise
