"""Returns along episodes, against arithmetic by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.rl.returns import lambda_returns, planned_returns
from diffcps.types import Dataset, DatasetInfo


def episodes(reward, terminal, timeout) -> Dataset:
    size = len(reward)
    return Dataset(
        observation=np.zeros((size, 1), np.float32),
        action=np.zeros((size, 1), np.float32),
        reward=jnp.asarray(reward, jnp.float32),
        next_observation=np.zeros((size, 1), np.float32),
        terminal=jnp.asarray(terminal, bool),
        timeout=jnp.asarray(timeout, bool),
        info=DatasetInfo("by hand", ""),
    )


TWO = episodes(reward=[1, 2, 4, 8, 16], terminal=[0, 0, 1, 0, 0], timeout=[0, 0, 0, 0, 1])
VALUE = jnp.asarray([10.0, 20.0, 30.0, 40.0, 50.0])


def test_sum_of_logged_rewards():
    returns = lambda_returns(TWO, jnp.zeros(5), 0.5, 1.0)
    np.testing.assert_allclose(returns, [1 + 0.5 * (2 + 0.5 * 4), 2 + 0.5 * 4, 4, 8 + 0.5 * 16, 16])


def test_one_step_targets():
    returns = lambda_returns(TWO, VALUE, 0.5, 0.0)
    np.testing.assert_allclose(returns, [1 + 5, 2 + 10, 4, 8 + 20, 16 + 25])


def test_between_the_two_by_the_definition():
    trace, discount = 0.3, 0.9
    last = 16 + discount * 50  # the time limit: V stands for what would have followed
    fourth = 8 + discount * (0.7 * 40 + trace * last)
    third = 4.0  # the end: nothing follows, whatever V says
    second = 2 + discount * (0.7 * 20 + trace * third)
    first = 1 + discount * (0.7 * 10 + trace * second)
    np.testing.assert_allclose(lambda_returns(TWO, VALUE, discount, trace), [first, second, third, fourth, last])


@pytest.mark.parametrize("low", [-100.0, 0.0])
def test_planning_with_low_values_follows_the_log(low):
    planned = planned_returns(TWO, jnp.full(5, low), 0.5)
    np.testing.assert_allclose(planned, lambda_returns(TWO, jnp.zeros(5), 0.5, 1.0))


def test_planning_leaves_the_log_where_the_value_is_higher():
    planned = planned_returns(TWO, jnp.asarray([0.0, 100.0, 0.0, 0.0, 30.0]), 0.5)
    np.testing.assert_allclose(planned, [1 + 50, 100, 4, 8 + 15, 30])
