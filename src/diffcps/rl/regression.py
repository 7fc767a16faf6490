"""Regression with weights: of policies towards the better actions."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.types import Real


def exponential_weights(scaled_advantage: Float[Array, "*b"], max_weight: Real) -> Float[Array, "*b"]:
    """min(exp(x), w_max), x the advantage in units of the temperature.

    Reference: AWR (arXiv:1910.00177), section 3; IQL (arXiv:2110.06169), eq. 7, and AWAC (arXiv:2006.09359) as run.
    """
    return jnp.minimum(jnp.exp(scaled_advantage), max_weight)
