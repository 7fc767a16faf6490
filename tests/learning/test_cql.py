"""CQL on problems with known answers."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.types import NetObservation
from tests.problems import CHAIN_DISCOUNT, CHAIN_Q, STATES, Training, bandit, q_on_the_chain, two_step_chain

SMALL: dict[str, Any] = {"width": 32, "critic_depth": 2, "num_actions": 4, "temperature_learning_rate": 1e-3}
WEIGHTS = (0.0, 1.0)
"""Two members of one training: without the conservative term, and with it."""


@cache
def modes_of_the_bandit() -> Training:
    swept = [{"conservative_weight": weight} for weight in WEIGHTS]
    rates = {"actor_learning_rate": 3e-3, "critic_learning_rate": 3e-3, "decay_updates": 1500, "temperature_init": 0.05}
    training = Training("cql", bandit("matching"), swept, **(SMALL | rates))
    training.advance(1500)
    return training


def q_of(member: int, state: float, action: np.ndarray) -> np.ndarray:
    """Mean of both Q of some actions in one state."""
    critic = jax.tree.map(lambda leaf: leaf[member], modes_of_the_bandit().state.critic.model)
    rows = jnp.asarray(action, jnp.float32).reshape(-1, 1)
    return np.asarray(critic(jnp.full_like(rows, state), rows)).mean(axis=0)


@pytest.mark.slow  # its golden numbers are tested in every run
def test_q_is_right_on_average_over_the_data():
    # A constant added to Q in one state leaves the conservative term as it is, so that the mean of Q over the logged
    # actions is the mean of their rewards, whatever the weight. That of single actions moves.
    data = bandit("matching")
    for member in range(len(WEIGHTS)):
        for state in STATES:
            logged = np.asarray(data.action)[np.asarray(data.observation)[:, 0] == state]
            assert abs(q_of(member, state, logged).mean() - 0.5) < 0.1
            worse, better = q_of(member, state, 0.8 * state * np.array([-1.0, 1.0]))
            assert better > worse + 0.3


def test_q_is_low_where_no_action_was_logged():
    between = np.linspace(-0.3, 0.3, 7)
    for state in STATES:
        free, held = (q_of(member, state, between).mean() for member in range(len(WEIGHTS)))
        worse_free, worse_held = (q_of(member, state, np.array([-0.8 * state]))[0] for member in range(len(WEIGHTS)))
        assert held < worse_held - 0.5
        assert free > worse_free  # negative control: without the term Q is interpolated


def test_the_better_mode_is_chosen():
    training = modes_of_the_bandit()
    observation = np.broadcast_to(np.array(STATES, np.float32)[:, None], (len(WEIGHTS), 2, 1))
    action = training.program.act(training.state, NetObservation(observation), training.updates, 0)[..., 0]
    np.testing.assert_allclose(action[1] * np.array(STATES), 0.8, atol=0.2)


@pytest.mark.slow
def test_two_step_chain():
    # Without the conservative term Q is the value of the policy; and no entropy is added to it.
    training = Training("cql", two_step_chain(), [{"conservative_weight": 0.0}], discount=CHAIN_DISCOUNT, **SMALL)
    training.advance(2000)
    np.testing.assert_allclose(q_on_the_chain(training).mean(axis=(0, 2)), CHAIN_Q, atol=0.05)


# --- The multiplier ---

GAPS = (0.5, 100.0)
ROUNDS, ROUND = 4, 150


@cache
def rounds() -> dict[str, np.ndarray]:
    """Per member, the means over each round."""
    swept = [{"gap": gap} for gap in GAPS]
    how = SMALL | {"lagrange": True, "conservative_weight": 1.0, "multiplier_init": 0.05}
    training = Training("cql", bandit("matching"), swept, multiplier_learning_rate=0.01, **how)
    found = [training.advance(ROUND) for _ in range(ROUNDS)]
    return {name: np.stack([row[name] for row in found], axis=1) for name in found[0]}


@pytest.mark.slow
def test_the_multiplier_rises_while_the_difference_exceeds_the_gap():
    difference, multiplier = (rounds()[name][0] for name in ("critic/difference", "dual/multiplier"))
    assert difference[0] > GAPS[0]
    above = difference[:-1] > GAPS[0] + 0.2
    assert above[0] and np.all(np.diff(multiplier)[above] > 0.0)
    assert difference[-1] < difference[0] - 0.5  # and pulls the difference down


@pytest.mark.slow
def test_the_multiplier_falls_while_the_difference_is_below_the_gap():
    difference, multiplier = (rounds()[name][1] for name in ("critic/difference", "dual/multiplier"))
    assert np.all(difference < GAPS[1])
    assert multiplier[0] < 0.05 and np.all(np.diff(multiplier) < 0.0)
