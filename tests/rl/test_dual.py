"""The Lagrangian and its multiplier against arithmetic done by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.rl.dual import dual_loss, lagrangian

pytestmark = pytest.mark.usefixtures("strict_promotion")


LOSS, MULTIPLIER = jnp.float32(2.0), jnp.float32(3.0)


@pytest.mark.parametrize(
    ("constraint", "bound", "penalty", "expected"),
    [
        (0.75, 0.25, 0.0, 2.0 + 3.0 * 0.5),
        (0.75, 0.25, 4.0, 2.0 + 3.0 * 0.5 + 2.0 * 0.25),
        (0.25, 0.75, 0.0, 2.0 - 3.0 * 0.5),
        (0.25, 0.75, 4.0, 2.0 - 3.0 * 0.5),  # not violated: no penalty
    ],
)
def test_lagrangian_by_hand(constraint, bound, penalty, expected):
    assert float(lagrangian(LOSS, MULTIPLIER, jnp.float32(constraint), bound, penalty)) == expected


@pytest.mark.parametrize(
    ("constraint", "penalty", "expected"),
    [(0.75, 0.0, 3.0), (0.75, 4.0, 3.0 + 4.0 * 0.5), (0.125, 4.0, 3.0), (0.25, 4.0, 3.0)],
    ids=["violated", "violated, penalised", "kept", "on the bound"],
)
def test_gradient_of_lagrangian(constraint, penalty, expected):
    slopes = jax.grad(lagrangian, argnums=(0, 2))(LOSS, MULTIPLIER, jnp.float32(constraint), 0.25, penalty)
    assert [float(slope) for slope in slopes] == [1.0, expected]  # lambda + penalty max(0, constraint - bound)


@pytest.mark.parametrize("penalty", [0.0, 4.0])
def test_the_primal_step_does_not_move_the_multiplier(penalty):
    assert float(jax.grad(lagrangian, argnums=1)(LOSS, MULTIPLIER, jnp.float32(0.75), 0.25, penalty)) == 0.0


@pytest.mark.parametrize("constraint", [0.75, 0.25, 0.125])
def test_dual_loss_by_hand(constraint):
    arguments = (MULTIPLIER, jnp.float32(constraint), 0.25)
    assert float(dual_loss(*arguments)) == 3.0 * (0.25 - constraint)
    assert float(jax.grad(dual_loss)(*arguments)) == 0.25 - constraint
    assert float(jax.grad(dual_loss, argnums=1)(*arguments)) == 0.0  # the constraint is the primal step's affair


def test_bounds_and_penalties_may_be_traced():
    bounds, penalties = jnp.array([0.25, 0.75]), jnp.array([4.0, 0.0])
    constraint = jnp.float32(0.75)
    values = jax.vmap(lambda bound, penalty: lagrangian(LOSS, MULTIPLIER, constraint, bound, penalty))(
        bounds, penalties
    )
    np.testing.assert_array_equal(values, [4.0, 2.0])
    np.testing.assert_array_equal(jax.vmap(lambda bound: dual_loss(MULTIPLIER, constraint, bound))(bounds), [-1.5, 0.0])
