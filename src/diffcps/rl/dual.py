"""Lagrange multipliers for a constraint value <= bound."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from diffcps.types import Real, Scalar


def lagrangian(loss: Scalar, multiplier: Scalar, constraint: Scalar, bound: Real, penalty: Real) -> Scalar:
    """loss + lambda (constraint - bound) + penalty / 2 max(0, constraint - bound)^2, lambda under stop-gradient.

    With penalty = 0 it is the Lagrangian that the primal step minimises; with penalty > 0 the augmented one.
    Reference: DiffCPS (arXiv:2310.05333), eq. 17 and appendix G.
    """
    violation = constraint - bound
    return (
        loss + jax.lax.stop_gradient(multiplier) * violation + 0.5 * penalty * jnp.square(jnp.maximum(violation, 0.0))
    )


def dual_loss(multiplier: Scalar, constraint: Scalar, bound: Real) -> Scalar:
    """lambda (bound - constraint): descending it raises lambda exactly while the constraint is violated.

    Reference: DiffCPS (arXiv:2310.05333), eq. 18.
    """
    return multiplier * (bound - jax.lax.stop_gradient(constraint))
