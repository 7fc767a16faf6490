"""Regression with weights: of values towards an expectile, of policies towards the better actions."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.types import Real, Scalar, Transition


def expectile_loss(difference: Float[Array, "*b"], expectile: Real) -> Scalar:
    """mean |tau - 1[u < 0]| u^2, u the target less the prediction: above 1/2 it weighs what lies above the prediction.

    Its minimum over a constant prediction is the expectile tau of the targets: their mean for 1/2, their maximum as tau
    goes to 1.
    Reference: IQL (arXiv:2110.06169), eq. 5.
    """
    weight = jnp.where(difference < 0.0, 1.0 - expectile, expectile)
    return jnp.mean(weight * jnp.square(difference))


def value_loss(
    value: Callable[[Float[Array, "b obs"]], Float[Array, " b"]],
    critic: Callable[[Float[Array, "b obs"], Float[Array, "b act"]], Float[Array, "n b"]],
    batch: Transition,
    expectile: Real,
) -> tuple[Scalar, Float[Array, " b"]]:
    """`expectile_loss` of u = min_j Q_j(s, a) - V(s), the Q of logged actions; also V(s).

    Reference: IQL (arXiv:2110.06169), eq. 5.
    """
    v = value(batch.observation)
    return expectile_loss(jnp.min(critic(batch.observation, batch.action), axis=0) - v, expectile), v


def exponential_weights(scaled_advantage: Float[Array, "*b"], max_weight: Real) -> Float[Array, "*b"]:
    """min(exp(x), w_max), x the advantage in units of the temperature.

    Reference: AWR (arXiv:1910.00177), section 3; IQL (arXiv:2110.06169), eq. 7, and AWAC (arXiv:2006.09359) as run.
    """
    return jnp.minimum(jnp.exp(scaled_advantage), max_weight)
