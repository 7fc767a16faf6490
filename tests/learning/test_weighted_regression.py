"""IQL and AWAC on problems with known answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.rl.regression import expectile_loss, exponential_weights
from diffcps.types import NetObservation
from tests.problems import (
    LINE,
    LINE_DISCOUNT,
    MODES,
    STATES,
    Training,
    bandit,
    exact_q,
    line_of_states,
    q_on_the_line,
)

# --- Equations by hand ---


def test_expectile_loss_by_hand():
    difference = jnp.array([2.0, -1.0, 0.0, 3.0])
    assert float(expectile_loss(difference, 0.75)) == pytest.approx((0.75 * 4 + 0.25 * 1 + 0.75 * 9) / 4)
    assert float(expectile_loss(difference, 0.5)) == pytest.approx(0.5 * float(jnp.mean(difference**2)))


def test_the_minimum_of_the_expectile_loss_is_the_expectile():
    targets = jnp.array([0.0, 0.0, 0.0, 1.0])
    grid = jnp.linspace(0.0, 1.0, 1001)
    losses = jnp.stack([expectile_loss(targets - guess, 0.9) for guess in grid])
    # 0.9 (1 - e) = 0.1 * 3 e
    assert float(grid[jnp.argmin(losses)]) == pytest.approx(0.75, abs=2e-3)


def test_exponential_weights_by_hand():
    weights = exponential_weights(jnp.array([-jnp.inf, 0.0, jnp.log(3.0), 50.0]), 20.0)
    np.testing.assert_allclose(weights, [0.0, 1.0, 3.0, 20.0], rtol=1e-6)


# --- One step to the end, two modes of which one is paid ---

UPDATES = 1500
RATES = {"actor_learning_rate": 3e-3, "critic_learning_rate": 3e-3, "value_learning_rate": 3e-3}


@cache
def trained_bandit(name: str, field: str, values: tuple[float, ...]) -> Training:
    swept = [{field: value} for value in values]
    training = Training(name, bandit("matching"), swept, width=32, batch_size=128, actor_decay_updates=UPDATES, **RATES)
    training.advance(UPDATES)
    return training


def actions(training: Training, members: int) -> np.ndarray:
    """(members, states): what each plays, times the sign of the state."""
    observation = np.broadcast_to(np.array(STATES, np.float32)[:, None], (members, len(STATES), 1))
    return training.program.act(training.state, NetObservation(observation), UPDATES, 0)[..., 0] * np.array(STATES)


def mean_of_weights(ratio: Sequence[float]) -> np.ndarray:
    """The mean of both modes, the paid one with weight exp(ratio), the other with 1."""
    return MODES[1] * np.tanh(0.5 * np.asarray(ratio))


@pytest.mark.slow
def test_v_is_the_expectile_of_what_was_paid():
    # Of 0 and 1 in equal parts the expectile tau is tau itself.
    expectiles = (0.5, 0.7, 0.9)
    training = trained_bandit("iql", "expectile", expectiles)
    np.testing.assert_allclose(training.diagnose()["value/v"], expectiles, atol=0.03)


@pytest.mark.parametrize(
    ("name", "field", "values"),
    [
        pytest.param(
            "iql", "inverse_temperature", (0.0, 1.0, 3.0), marks=pytest.mark.slow
        ),  # the same weights as AWAC's
        ("awac", "temperature", (10.0, 1.0, 0.3333)),
    ],
)
def test_the_policy_weighs_the_modes_by_their_advantages(name, field, values):
    # Q is 1 in one mode and 0 in the other, so that the ratio of their weights is exp(beta), whatever V is.
    training = trained_bandit(name, field, values)
    ratios = [value if name == "iql" else 1.0 / value for value in values]
    expected = mean_of_weights(ratios)[:, None]
    np.testing.assert_allclose(actions(training, 3), np.broadcast_to(expected, (3, 2)), atol=0.08)
    assert np.ptp(expected) > 0.5  # negative control: the values ask for other actions


# --- A line of states, against the exact fixed point ---


@pytest.mark.slow  # its golden numbers are tested in every run
def test_iql_on_a_line_of_states():
    # Both directions are logged equally often: the expectile tau of two values is tau times the larger, and 1 - tau
    # times the smaller.
    expectiles = (0.5, 0.9)
    training = Training(
        "iql",
        line_of_states(),
        [{"expectile": tau} for tau in expectiles],
        width=64,
        discount=LINE_DISCOUNT,
        inverse_temperature=20.0,
        actor_decay_updates=3000,
        **RATES,
    )
    training.advance(3000)
    fixed = [exact_q(lambda q, tau=tau: tau * q.max(axis=1) + (1 - tau) * q.min(axis=1)) for tau in expectiles]
    for member in range(2):
        assert np.max(np.abs(q_on_the_line(training, member) - fixed[member])) < 0.05
    assert np.max(np.abs(fixed[0] - fixed[1])) > 0.2  # negative control
    assert np.max(np.abs(fixed[1] - exact_q(lambda q: q.max(axis=1)))) > 0.05  # 0.9 is not yet the maximum
    observation = np.broadcast_to(np.eye(LINE, dtype=np.float32), (2, LINE, LINE))
    action = training.program.act(training.state, NetObservation(observation), 3000, 0)[..., 0]
    assert np.all(action[1] > 0)  # past the nearer, smaller reward
