"""Losses of regression that lean to one side."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.types import Real, Scalar


def expectile_loss(difference: Float[Array, "*b"], expectile: Real) -> Scalar:
    """mean |tau - 1[u < 0]| u^2 of u = `difference`, tau = `expectile`: its minimum over a constant is the expectile.

    Reference: IQL (arXiv:2110.06169).
    """
    weight = jnp.where(difference < 0, 1.0 - expectile, expectile)
    return jnp.mean(weight * jnp.square(difference))
