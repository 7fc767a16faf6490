"""IDQL on problems with known answers: expectiles of Q, and the policy that has them as its value."""

from __future__ import annotations

import dataclasses
import math
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import idql
from diffcps.types import Dataset, Spec, UserError
from tests.problems import (
    LINE,
    LINE_DISCOUNT,
    MANY_STEPS,
    NUM_ACTIONS,
    SHARE_TOLERANCE,
    STATES,
    Training,
    bandit,
    dataset_of,
    exact_q,
    near_a_mode,
    step_on_the_line,
)

# --- Equations by hand ---


def test_implicit_weights_by_hand():
    q, v = jnp.array([[1.0, 2.0, 3.0], [-1.0, 0.0, 0.5]]), jnp.array([2.0, 0.1])
    np.testing.assert_allclose(
        idql.implicit_weights(q, v, 0.9), [[0.1, 0.9, 0.9], [0.1, 0.1, 0.9]], rtol=1e-6
    )  # equal counts as above


def test_the_implicit_policy_has_the_expectile_as_its_value():
    q = np.random.default_rng(0).normal(size=200)
    for tau in (0.5, 0.7, 0.9):
        weight = np.asarray(idql.implicit_weights(jnp.asarray(q), jnp.float32(expectile(q, tau)), tau))
        assert np.average(q, weights=weight) == pytest.approx(expectile(q, tau), abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"expectile": 1.0}, "expectile is 1: it must be above 0 and below 1"),
        ({"expectile": 0.0}, "expectile is 0: it must be above 0 and below 1"),
        ({"dropout": 1.0}, "dropout is 1: it must be 0 or more and below 1"),
        ({}, "observations are a single number, which value_norm would make 0: turn value_norm off"),
    ],
)
def test_impossible_values_are_refused(changes, line):
    with pytest.raises(UserError, match=line):
        idql.make(idql.Config(**changes), Spec(1, 1))


# --- Two modes of which one earns 1, the other 0 ---

TAUS = (0.7, 0.9)
CANDIDATES = 16
SIZES = {"width": 32, "actor_width": 32, "num_blocks": 2, "num_steps": MANY_STEPS, "value_norm": False, "time_size": 16}


@cache
def trained_bandit() -> Training:
    updates = 2000
    rates = {"actor_learning_rate": 3e-3, "value_learning_rate": 1e-3, "critic_learning_rate": 1e-3}
    config = {"batch_size": 64, "ema_rate": 0.01, "actor_decay_updates": updates, "dropout": 0.02, **rates, **SIZES}
    training = Training("idql", bandit("matching"), [{"expectile": tau} for tau in TAUS], **config)
    training.advance(updates)
    return training


@partial(jax.jit, static_argnums=0)
def acting(choice: str, tau: jax.Array, state: idql.State, observation: jax.Array, key: jax.Array) -> jax.Array:
    config = dataclasses.replace(idql.Config(**SIZES), expectile=tau, action_choice=choice, num_candidates=CANDIDATES)
    return idql.make(config, Spec(1, 1)).act(state, observation, key)


def act(tau: float, state: float, choice: str, num_actions: int = NUM_ACTIONS // 2) -> np.ndarray:
    """Actions of one member in one state, with the same key each time."""
    member = jax.tree.map(lambda leaf: jnp.asarray(leaf[TAUS.index(tau)]), trained_bandit().state)
    observation = jnp.full((num_actions, 1), state, jnp.float32)
    return np.asarray(acting(choice, jnp.float32(tau), member, observation, jax.random.key(0)))[:, 0]


@pytest.mark.slow
def test_the_value_is_the_expectile():
    # Half of the logged actions earn 1 and half 0: tau (1 - v) = (1 - tau) v.
    for index, tau in enumerate(TAUS):
        member = jax.tree.map(lambda leaf: leaf[index], trained_bandit().state)  # noqa: B023
        v = np.asarray(member.value.model(jnp.asarray(STATES)[:, None]))
        np.testing.assert_allclose(v, tau, rtol=0, atol=0.06)


@pytest.mark.slow
def test_the_clone_keeps_both_modes_and_does_not_choose():
    # The exact model would leave 0.99 of its actions near a mode.
    action = np.concatenate([act(0.7, state, "sample") * state for state in STATES])
    assert near_a_mode(action) > 0.9
    assert abs(np.mean(action > 0) - 0.5) < SHARE_TOLERANCE


@pytest.mark.slow
def test_the_best_candidate_is_of_the_better_mode():
    for state in STATES:
        assert np.mean(act(0.7, state, "argmax_q") * state > 0.5) > 0.98


def expected_share(tau: float, share: float) -> float:
    """How often the implicit policy takes the better mode, of which the candidates have that share."""
    k = np.arange(CANDIDATES + 1)
    probability = np.array([math.comb(CANDIDATES, i) * share**i * (1 - share) ** (CANDIDATES - i) for i in k])
    return float(np.sum(probability * k * tau / (k * tau + (CANDIDATES - k) * (1 - tau))))


@pytest.mark.slow
def test_the_implicit_policy_takes_the_better_mode_as_often_as_its_value_says():
    # Its value is V = tau and the better mode alone earns anything, so that with many candidates tau is its share.
    clone = np.mean([np.mean(act(0.7, state, "sample") * state > 0) for state in STATES])
    for tau in TAUS:
        assert abs(expected_share(tau, 0.5) - tau) < 0.02
        share = np.mean([np.mean(act(tau, state, "implicit") * state > 0) for state in STATES])
        # 2,000 actions are within 0.05 of their expectation (see SHARE_TOLERANCE); a few lie between the modes.
        assert abs(share - expected_share(tau, float(clone))) < 0.08
    # Negative controls: the clone's share and that of the best candidate lie outside.
    assert TAUS[0] - 0.5 > 0.16 and 1.0 - TAUS[1] > 0.08


# --- A line of states, against the exact fixed point ---


def expectile(q: np.ndarray, tau: float) -> float:
    """The m with tau mean max(q - m, 0) = (1 - tau) mean max(m - q, 0), by bisection."""
    low, high = float(q.min()), float(q.max())
    for _ in range(100):
        middle = 0.5 * (low + high)
        above, below = np.maximum(q - middle, 0.0).sum(), np.maximum(middle - q, 0.0).sum()
        low, high = (middle, high) if tau * above > (1.0 - tau) * below else (low, middle)
    return low


def exact_expectile_q(tau: float) -> np.ndarray:
    """Q[state, right] with V(s) the expectile over both directions, which are logged equally often."""
    return exact_q(lambda q: np.array([expectile(row, tau) for row in q]))


LINE_TAUS = (0.5, 0.7, 0.95)


@cache
def line() -> tuple[Dataset, np.ndarray, np.ndarray]:
    """The line, and two states more that step to its right end: after one the episode has ended, after the other not.

    Also each row's state and direction.
    """
    rows = 64
    start, right = (array.ravel() for array in np.meshgrid(np.repeat(np.arange(LINE + 2), rows), [0, 1]))
    action = np.where(right == 1, 1, -1) * np.random.default_rng(0).uniform(0.3, 1.0, size=start.size)
    of_line = [step_on_the_line(min(int(state), LINE - 1), int(side)) for state, side in zip(start, right, strict=True)]
    extra = start >= LINE
    reward, following, end = (np.array(column) for column in zip(*of_line, strict=True))
    data = dataset_of(
        observation=np.eye(LINE + 2)[start],
        action=action[:, None],
        reward=np.where(extra, 0.0, reward),
        next_observation=np.eye(LINE + 2)[np.where(extra, LINE - 1, following)],
        terminal=np.where(extra, start == LINE, end),
        timeout=start == LINE + 1,
    )
    return data, start, right


@cache
def trained_line() -> tuple[np.ndarray, np.ndarray]:
    """Mean Q for each member, state and direction; V for each member and state."""
    data, start, right = line()
    sizes = {"width": 32, "actor_width": 4, "num_blocks": 1, "num_steps": 2, "time_size": 2}
    rates = {"value_learning_rate": 1e-3, "critic_learning_rate": 1e-3}
    swept = [{"expectile": tau} for tau in LINE_TAUS]
    training = Training("idql", data, swept, batch_size=64, discount=LINE_DISCOUNT, **sizes, **rates)
    training.advance(4000)
    q = np.asarray(jax.vmap(lambda critic: critic(data.observation, data.action))(training.state.critic.model)).mean(
        axis=1
    )
    v = jax.vmap(lambda value: value(jnp.eye(LINE + 2)))(training.state.value.model)
    mean = [[[row[(start == s) & (right == side)].mean() for side in (0, 1)] for s in range(LINE + 2)] for row in q]
    return np.array(mean), np.asarray(v)


@pytest.mark.slow
def test_a_line_of_states_against_the_exact_expectiles():
    q, v = trained_line()
    for member, tau in enumerate(LINE_TAUS):
        exact = exact_expectile_q(tau)
        np.testing.assert_allclose(q[member, :LINE], exact, rtol=0, atol=0.07)
        np.testing.assert_allclose(v[member, :LINE], [expectile(row, tau) for row in exact], rtol=0, atol=0.07)


def test_the_expectile_leads_from_the_logged_policy_to_the_best():
    # What is compared above lies apart: tau = 1/2 is Q of the logged policy, tau near 1 is near Q*.
    exact = {tau: exact_expectile_q(tau) for tau in LINE_TAUS}
    np.testing.assert_allclose(exact[0.5], exact_q(lambda q: q.mean(axis=1)), rtol=0, atol=1e-6)
    for lower, higher in ((0.5, 0.7), (0.7, 0.95)):
        assert np.max(exact[higher] - exact[lower]) > 0.14
    assert np.max(np.abs(exact_q(lambda q: q.max(axis=1)) - exact[0.95])) < np.max(
        np.abs(exact_q(lambda q: q.max(axis=1)) - exact[0.7])
    )


@pytest.mark.slow
def test_time_limits_are_bootstrapped_and_ends_are_not():
    q, _ = trained_line()
    for member, tau in enumerate(LINE_TAUS):
        value = LINE_DISCOUNT * expectile(exact_expectile_q(tau)[LINE - 1], tau)
        assert np.max(np.abs(q[member, LINE])) < 0.07
        assert np.max(np.abs(q[member, LINE + 1] - value)) < 0.07 and value > 0.3
