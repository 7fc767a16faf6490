"""The variance-preserving process in continuous time, t from 0 (data) to 1 (noise)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.types import Key, Stored

BETA_MIN, BETA_MAX = 0.1, 20.0
"""The rate of noise beta(t) rises linearly between them."""


def log_alpha(t: Float[Stored, "*b"]) -> Float[Stored, "*b"]:
    """log alpha = -(beta_max - beta_min) t^2 / 4 - beta_min t / 2, of NumPy's arrays in their own precision.

    Reference: Score-based generative modeling through SDEs (arXiv:2011.13456), eq. 33, as in SfBC, QGPO and SRPO.
    """
    return -0.25 * (BETA_MAX - BETA_MIN) * t * t - 0.5 * BETA_MIN * t


def alpha_and_std(t: Float[Array, "*b"]) -> tuple[Float[Array, "*b"], Float[Array, "*b"]]:
    """x_t = alpha x_0 + std eps, std^2 = 1 - alpha^2."""
    return jnp.exp(log_alpha(t)), jnp.sqrt(1.0 - jnp.exp(2.0 * log_alpha(t)))


def perturbed(x0: Float[Array, "*b d"], t: Float[Array, "*b"], eps: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """alpha x_0 + std eps."""
    alpha, std = alpha_and_std(t)
    return alpha[..., None] * x0 + std[..., None] * eps


class Draws(NamedTuple):
    """All randomness of a loss on perturbed samples."""

    t: Float[Array, " b"]
    """A time for each row, whatever number of samples it has."""
    z: Float[Array, "b *k d"]
    """Noise of its own for each sample."""


def draw_between(times: tuple[float, float], x0: Float[Array, "b *k d"], key: Key) -> Draws:
    """Times uniform between these two, and noise for these samples."""
    key_t, key_z = jax.random.split(key)
    t = jax.random.uniform(key_t, x0.shape[:1], minval=times[0], maxval=times[1])
    return Draws(t, jax.random.normal(key_z, x0.shape))
