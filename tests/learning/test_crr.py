"""CRR on problems with known answers."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from diffcps.types import NetObservation
from tests.problems import (
    CHAIN_DISCOUNT,
    CHAIN_Q,
    LINE,
    LINE_DISCOUNT,
    STATES,
    Training,
    bandit,
    exact_q,
    line_of_states,
    q_on_the_chain,
    q_on_the_line,
    two_step_chain,
)

# --- The choice between two modes ---

RATES: dict[str, Any] = {"actor_learning_rate": 3e-3, "critic_learning_rate": 3e-3}
HOT = 1e6
"""At this temperature every weight is 1: cloning."""


@cache
def means(filter: str, *temperatures: float) -> np.ndarray:
    """Mean of the policy in each state, times the state: 0.8 is the better mode. A row for each temperature."""
    swept = [{"temperature": temperature} for temperature in temperatures] or [{}]
    training = Training(
        "crr", bandit("matching"), swept, width=32, filter=filter, action_choice="mean", decay_updates=800, **RATES
    )
    training.advance(800)
    observation = np.broadcast_to(np.array(STATES, np.float32)[:, None], (len(swept), 2, 1))
    return training.program.act(training.state, NetObservation(observation), 800, 0)[..., 0] * np.array(STATES)


@pytest.mark.slow  # its golden numbers are tested in every run
def test_the_binary_filter_clones_the_better_mode():
    # Once the policy knows the better mode, what passes is the side of it that the critic takes for a little better.
    assert np.all(means("binary") > 0.65)


@pytest.mark.slow
def test_exponential_weights_clone_it_where_the_temperature_is_low():
    cold, hot = means("exp", 0.05, HOT)
    np.testing.assert_allclose(cold, 0.8, atol=0.1)
    assert np.all(np.abs(hot) < 0.2)  # negative control: between the modes


# --- Values ---


@pytest.mark.slow
def test_two_step_chain():
    training = Training("crr", two_step_chain(), width=32, discount=CHAIN_DISCOUNT, num_critics=2)
    training.advance(1500)
    np.testing.assert_allclose(q_on_the_chain(training).mean(axis=(0, 2)), CHAIN_Q, atol=0.05)


@pytest.mark.slow
def test_a_line_of_states_against_exact_values():
    # The policy that clones what is better than itself goes right everywhere, so that its Q is Q*.
    training = Training("crr", line_of_states(), width=64, discount=LINE_DISCOUNT, decay_updates=2000)
    training.advance(2000)
    learned = q_on_the_line(training)
    assert np.max(np.abs(learned - exact_q(lambda q: q.max(axis=1)))) < 0.07
    # Negative control: not the values of the logged behaviour.
    assert np.max(np.abs(learned - exact_q(lambda q: q.mean(axis=1)))) > 0.1
    for state in range(LINE):  # and past the nearer, smaller reward; softmax(Q) may take a worse one of four samples
        assert np.mean(training.act(np.eye(LINE)[state], 100) > 0) > 0.95
