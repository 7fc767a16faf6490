"""Whole trainings of small networks on problems with known answers."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from diffcps.algorithms import ALGORITHMS
from tests.problems import (
    CHAIN_DISCOUNT,
    CHAIN_Q,
    LINE,
    LINE_DISCOUNT,
    MANY_STEPS,
    NUM_ACTIONS,
    SHARE_TOLERANCE,
    STATES,
    Training,
    bandit,
    exact_q,
    line_of_states,
    near_a_mode,
    q_on_the_chain,
    q_on_the_line,
    two_step_chain,
)

DIFFUSION_CRITICS = ["diffcps", pytest.param("diffusion_ql", marks=pytest.mark.slow)]
"""Both learn Q by the same functions, and Diffusion-QL equals its authors' program in tests/golden: one is enough."""


@cache
def trained_bandit(name: str, reward: str, num_steps: int, updates: int, action_choice: str = "sample") -> Training:
    rates = {"learning_rate": 3e-3, "actor_learning_rate": 3e-3, "decay_updates": updates}
    training = Training(
        name,
        bandit(reward),
        width=64,
        depth=3,
        batch_size=128,
        num_steps=num_steps,
        policy_interval=1,
        action_choice=action_choice,
        **rates,
    )
    training.advance(updates)
    return training


UPDATES = {"diffusion_bc": 5000, "diffcps": 2500}


@pytest.mark.parametrize("name", ["diffusion_bc", pytest.param("diffcps", marks=pytest.mark.slow)])
def test_both_modes_are_kept(name):
    training = trained_bandit(name, "matching" if name == "diffusion_bc" else "flat", MANY_STEPS, UPDATES[name])
    for state in STATES:
        action = training.act([state], NUM_ACTIONS)
        assert near_a_mode(action) > 0.95
        assert abs(np.mean(action > 0) - 0.5) < SHARE_TOLERANCE


def test_a_gaussian_does_not_keep_them():
    # Negative control: the Gaussian of highest likelihood has the data's mean and variance.
    data = np.asarray(bandit("flat").action)
    action = np.random.default_rng(1).normal(data.mean(), data.std(), NUM_ACTIONS)
    assert near_a_mode(action) < 0.5


@pytest.mark.parametrize("name", DIFFUSION_CRITICS)
def test_the_better_mode_is_chosen(name):
    training = trained_bandit(name, "matching", 5, 1000, "argmax_q")
    for state in STATES:
        action = training.act([state], 200)
        assert np.mean(action * state > 0.5) > 0.99


def test_cloning_does_not_choose():
    # Negative control for the test above: the same data, without the reward.
    training = trained_bandit("diffusion_bc", "matching", MANY_STEPS, UPDATES["diffusion_bc"])
    for state in STATES:
        assert abs(np.mean(training.act([state], NUM_ACTIONS) * state > 0) - 0.5) < SHARE_TOLERANCE


# --- A chain of two steps ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diffcps", "diffusion_ql"])
def test_two_step_chain(name):
    training = Training(name, two_step_chain(), width=32, num_steps=3, discount=CHAIN_DISCOUNT)
    training.advance(2000)
    q = q_on_the_chain(training)
    assert np.max(np.abs(q - CHAIN_Q[:, None])) < 0.1
    assert np.max(np.abs(q.mean(axis=(0, 2)) - CHAIN_Q)) < 0.05


# --- A line of four states, against exact Q* ---


@pytest.mark.slow  # the same line with IQL is in every run
@pytest.mark.parametrize("name", ["diffcps", "diffusion_ql"])
def test_a_line_of_states_against_exact_values(name):
    # The sign of the action is the direction, and both directions are logged in every state. With the backup over the
    # best of ten actions of a policy that keeps both, the fixed point is Q* whatever the shares.
    line = line_of_states()
    training = Training(
        name,
        line,
        width=64,
        num_steps=5,
        discount=LINE_DISCOUNT,
        max_q_backup=True,
        action_choice="argmax_q",
        decay_updates=3000,
    )
    training.advance(3000)

    learned = q_on_the_line(training)
    assert np.max(np.abs(learned - exact_q(lambda q: q.max(axis=1)))) < 0.05
    # Negative control: not the values of the logged behaviour.
    assert np.max(np.abs(learned - exact_q(lambda q: q.mean(axis=1)))) > 0.1
    for state in range(LINE):  # and past the nearer, smaller reward
        assert np.all(training.act(np.eye(LINE)[state], 100) > 0)


# --- The constraint ---


# Four members of one training. A reward pulls the policy away from the data: both modes are logged, one is paid.
CONSTRAINED: dict[str, dict[str, float]] = {
    "violated": {"kappa": 0.0, "multiplier_min": 0.5, "multiplier_learning_rate": 0.01},
    "satisfied": {"kappa": 10.0, "multiplier_min": 0.5, "multiplier_learning_rate": 0.01},
    # The multiplier is held at zero, so that nothing but the penalty ties the policy to the data.
    "free": {"kappa": 0.0, "multiplier_init": 0.0, "multiplier_learning_rate": 0.0},
    "penalised": {"kappa": 0.0, "multiplier_init": 0.0, "multiplier_learning_rate": 0.0, "penalty": 10.0},
}
ROUNDS, ROUND = 3, 100


@cache
def constrained() -> dict[str, dict[str, np.ndarray]]:
    """Per member: its metrics' means over each round; the multiplier as stored, and the diagnosis, after each round."""
    names = {name for values in CONSTRAINED.values() for name in values}
    defaults = {name: getattr(ALGORITHMS["diffcps"].Config(), name) for name in names}
    swept = [defaults | values for values in CONSTRAINED.values()]
    training = Training("diffcps", bandit("matching"), swept, width=32, num_steps=5, policy_interval=1)
    rounds = []
    for _ in range(ROUNDS):
        metrics = training.advance(ROUND)
        stored = {"stored": np.asarray(training.state.multiplier.model)}
        rounds.append(metrics | stored | {f"after/{name}": value for name, value in training.diagnose().items()})
    history = {name: np.stack([row[name] for row in rounds], axis=1) for name in rounds[0]}
    return {
        member: {name: values[index] for name, values in history.items()} for index, member in enumerate(CONSTRAINED)
    }


def test_the_multiplier_rises_while_the_constraint_is_violated():
    history = constrained()["violated"]
    assert np.all(history["actor/bc_loss"] > 0.0)
    assert np.all(np.diff(np.append(1.0, history["dual/multiplier"])) > 0)
    # Adam's steps under a gradient of one sign are of the order of its rate, 0.01: from 1 to about 4.
    assert 2.5 < history["stored"][-1] < 5.5


def test_the_multiplier_falls_to_its_floor_and_the_stored_one_through_it():
    history = constrained()["satisfied"]
    assert np.all(history["actor/bc_loss"] < 10.0)
    # From 1 by 0.01 an update it reaches the floor of 0.5 after about fifty, and zero after a hundred.
    assert 0.5 < history["dual/multiplier"][0] < 0.9
    assert np.all(history["dual/multiplier"][1:] == 0.5) and np.all(history["after/dual/multiplier"] == 0.5)
    assert np.all(np.diff(history["stored"]) < 0) and history["stored"][-1] < -1.0


def test_the_penalty_lowers_the_denoising_loss():
    # On all rows and with the same noise. Seed, batches and noise are shared by the members, so that the difference is
    # the penalty's. Predicting eps = 0 scores 1: the free policy is worse than that, the penalised one knows the data.
    free, penalised = (constrained()[member]["after/actor/bc_loss"][-1] for member in ("free", "penalised"))
    assert penalised < 0.5 and free > 1.0
    assert np.all(constrained()["free"]["stored"] == 0.0)  # the multiplier had no part in it
