"""Targets and losses against arithmetic done by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffcps.rl.bellman import (
    clipped_double_q_target,
    critic_loss,
    max_over_candidates,
    soft_clipped_target,
    td_loss,
    td_target,
)
from diffcps.types import Transition

pytestmark = pytest.mark.usefixtures("strict_dtypes")

REWARD = jnp.array([1.0, 2.0, -1.0])
TERMINAL = jnp.array([0.0, 1.0, 0.0])
Q_NEXT = jnp.array([[2.0, 5.0, 4.0], [3.0, 4.0, -2.0]])


# --- Target ---


def test_target_by_hand():
    target = clipped_double_q_target(REWARD, TERMINAL, Q_NEXT, 0.5)
    # 1 + 0.5 min(2, 3); 2, as it is terminal; -1 + 0.5 min(4, -2)
    np.testing.assert_array_equal(target, [2.0, 2.0, -2.0])


def test_target_of_any_ensemble_and_any_leading_axes():
    q_next = jnp.array([[[7.0, 1.0]], [[5.0, 2.0]], [[6.0, 3.0]]])  # three networks, a batch of one by two
    target = clipped_double_q_target(jnp.array([[0.5, 0.5]]), jnp.zeros((1, 2)), q_next, 2.0)
    np.testing.assert_array_equal(target, [[10.5, 2.5]])


def test_no_gradient_flows_through_the_target():
    gradient = jax.grad(lambda r, d, q: clipped_double_q_target(r, d, q, 0.5).sum(), argnums=(0, 1, 2))
    for part in gradient(REWARD, TERMINAL, Q_NEXT):
        np.testing.assert_array_equal(part, np.zeros_like(part))


def test_max_over_candidates_by_hand():
    q_next = jnp.array([[[1.0, 5.0, 2.0], [0.0, -1.0, -2.0]], [[6.0, 0.0, 3.0], [-4.0, -3.0, -5.0]]])
    np.testing.assert_array_equal(max_over_candidates(q_next), [[5.0, 0.0], [6.0, -3.0]])


def test_the_maximum_is_taken_before_the_minimum():
    q_next = jnp.array([[[1.0, 5.0, 2.0]], [[6.0, 0.0, 3.0]]])
    target = clipped_double_q_target(jnp.zeros(1), jnp.zeros(1), max_over_candidates(q_next), 1.0)
    np.testing.assert_array_equal(target, [5.0])  # min(5, 6); the other way round, max(1, 0, 2), it would be 2


@given(st.lists(st.tuples(*[st.floats(-100, 100, width=32)] * 3, st.booleans()), min_size=1, max_size=6))
def test_target_of_a_batch_is_that_of_its_rows(rows):
    reward, q1, q2 = (jnp.array([row[i] for row in rows], jnp.float32) for i in range(3))
    terminal = jnp.array([float(row[3]) for row in rows])
    target = clipped_double_q_target(reward, terminal, jnp.stack([q1, q2]), 0.9)
    expected = [r + (0.0 if end else 0.9 * min(a, b)) for r, a, b, end in rows]
    np.testing.assert_allclose(target, expected, rtol=1e-5, atol=1e-4)
    single = [clipped_double_q_target(reward[i], terminal[i], jnp.stack([q1[i], q2[i]]), 0.9) for i in range(len(rows))]
    np.testing.assert_array_equal(target, single)


def test_td_target_by_hand():
    np.testing.assert_array_equal(td_target(REWARD, TERMINAL, jnp.array([2.0, 5.0, 4.0]), 0.5), [2.0, 2.0, 1.0])


def test_soft_clipped_target_by_hand():
    q_next = jnp.array([[[1.0, 5.0, 2.0], [0.0, -1.0, -2.0]], [[6.0, 0.0, 3.0], [-4.0, -3.0, -5.0]]])
    reward, terminal = jnp.array([1.0, 2.0]), jnp.array([0.0, 0.0])
    # 3/4 of the smaller and 1/4 of the larger Q: 2.25, 1.25, 2.25 and -3, -2.5, -4.25; the largest of each.
    target = soft_clipped_target(reward, terminal, q_next, 0.75, 0.5)
    np.testing.assert_array_equal(target, [1.0 + 0.5 * 2.25, 2.0 - 0.5 * 2.5])
    # At either end it is the smaller or the larger Q alone, the largest over candidates.
    np.testing.assert_array_equal(soft_clipped_target(reward, terminal, q_next, 1.0, 1.0), [1.0 + 2.0, 2.0 - 3.0])
    np.testing.assert_array_equal(soft_clipped_target(reward, terminal, q_next, 0.0, 1.0), [1.0 + 6.0, 2.0 + 0.0])
    np.testing.assert_array_equal(soft_clipped_target(reward, jnp.ones(2), q_next, 0.75, 0.5), reward)


def test_no_gradient_flows_through_the_soft_clipped_target():
    gradient = jax.grad(lambda q: soft_clipped_target(REWARD, TERMINAL, q, 0.75, 0.5).sum())(Q_NEXT[..., None])
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


# --- Loss ---


def test_td_loss_is_the_sum_of_two_means():
    q = jnp.array([[1.0, 2.0], [0.0, 4.0]])
    # ((1 - 1)^2 + (2 - 0)^2) / 2 + ((0 - 1)^2 + (4 - 0)^2) / 2
    assert float(td_loss(q, jnp.array([1.0, 0.0]))) == 10.5


def test_td_loss_means_over_every_leading_axis():
    q = jnp.array([[[1.0, 2.0], [3.0, 4.0]]])
    assert float(td_loss(q, jnp.zeros((2, 2)))) == 7.5  # (1 + 4 + 9 + 16) / 4


def test_gradient_of_td_loss():
    q, target = jnp.array([[1.0, 2.0], [0.0, 4.0]]), jnp.array([1.0, 0.0])
    np.testing.assert_array_equal(jax.grad(td_loss)(q, target), [[0.0, 2.0], [-1.0, 4.0]])  # 2 (q - y) / 2


def test_the_critic_follows_the_target_and_not_the_other_way_round():
    def loss(w):
        target = clipped_double_q_target(jnp.ones(1), jnp.zeros(1), 3.0 * w * jnp.ones((2, 1)), 0.5)
        return td_loss(2.0 * w * jnp.ones((2, 1)), target)

    # Q = 2 w, y = 1 + 1.5 w. With y held fixed each of two networks adds 2 (Q - y) 2; through the target it would add
    # 2 (Q - y) (2 - 1.5).
    assert float(jax.grad(loss)(4.0)) == 2 * 2 * (8.0 - 7.0) * 2


def test_critic_loss_is_that_of_q_on_the_logged_actions():
    batch = Transition(jnp.ones((2, 1)), jnp.array([[1.0], [3.0]]), jnp.zeros(2), jnp.zeros((2, 1)), jnp.zeros(2))
    target = jnp.array([1.0, 0.0])
    loss, q = critic_loss(lambda observation, action: jnp.stack([action[:, 0], 2.0 * observation[:, 0]]), batch, target)
    np.testing.assert_array_equal(q, [[1.0, 3.0], [2.0, 2.0]])
    assert float(loss) == float(td_loss(q, target)) == 4.5 + 2.5
