"""Policies with one action or one Gaussian per observation: losses of cloning, and acting."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.networks.gaussian import ConditionalGaussian, Deterministic, Gaussian
from diffcps.rl.replay import Labelled
from diffcps.types import Key, Scalar, Transition


def squared_error(policy: Deterministic, batch: Transition) -> Scalar:
    """mean (a_theta(s) - a)^2 over the batch and the dimensions of the action."""
    return jnp.mean(jnp.square(policy(batch.observation) - batch.action))


def negative_log_likelihood(policy: Gaussian | ConditionalGaussian, batch: Transition) -> Scalar:
    """-mean log pi_theta(a | s) over the batch."""
    return -jnp.mean(policy.log_prob(batch.observation, batch.action))


def weighted_cloning_loss(
    policy: Gaussian | ConditionalGaussian, batch: Transition | Labelled, weight: Float[Array, " b"]
) -> Scalar:
    """-mean w log pi_theta(a | s), w a number for each row, under stop-gradient."""
    return -jnp.mean(jax.lax.stop_gradient(weight) * policy.log_prob(batch.observation, batch.action))


def act(policy: Gaussian, observation: Float[Array, "*b obs"], stochastic: bool, key: Key) -> Float[Array, "*b act"]:
    """The mean, or a sample where `stochastic`, clipped to the action box."""
    action = policy.sample(observation, key) if stochastic else policy.mean(observation)
    return jnp.clip(action, -1.0, 1.0)
