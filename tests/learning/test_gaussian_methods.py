"""Behaviour cloning and TD3+BC on problems with known answers."""

from __future__ import annotations

import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import td3_bc
from diffcps.networks.gaussian import Deterministic, Gaussian
from diffcps.policies.gaussian import negative_log_likelihood, squared_error
from diffcps.types import NetObservation, Spec, Transition
from tests.problems import STATES, Training, bandit, dataset_of

# --- Equations by hand ---


def zeros(policy):
    """a = 0 for every observation (and std 1)."""
    return jax.tree.map(jnp.zeros_like, policy)


ROWS = Transition(jnp.ones((2, 3)), jnp.array([[1.0, 0.5], [0.0, -1.0]]), jnp.zeros(2), jnp.ones((2, 3)), jnp.zeros(2))


def test_squared_error_by_hand():
    policy = zeros(Deterministic(Spec(3, 2), (4,), jax.random.key(0)))
    assert float(squared_error(policy, ROWS)) == (1.0 + 0.25 + 0.0 + 1.0) / 4


def test_negative_log_likelihood_by_hand():
    policy = zeros(Gaussian(Spec(3, 2), (4,), jax.random.key(0)))
    by_hand = 0.5 * (1.25 + 1.0) / 2 + math.log(2.0 * math.pi)  # summed over dimensions, mean over rows
    np.testing.assert_allclose(negative_log_likelihood(policy, ROWS), by_hand, rtol=1e-6)


def test_smoothed_action_by_hand():
    # Noise 0.2 eps = 0.1, 0.6 (cut to 0.5), -0.6 (cut to -0.5), 0.4; the last one meets the box.
    eps = jnp.array([0.5, 3.0, -3.0, 2.0])
    action = td3_bc.smoothed_action(jnp.array([0.0, 0.0, 0.1, 0.9]), eps, 0.2, 0.5)
    np.testing.assert_allclose(action, [0.1, 0.5, -0.4, 1.0], rtol=1e-6)


# --- Cloning: a = W s + b + noise, of another size in each dimension ---

WEIGHT, BIAS, NOISE = np.array([[0.3, -0.1], [0.0, 0.2]]), np.array([0.1, -0.2]), np.array([0.1, 0.2])


@cache
def linear_gaussian():
    rng = np.random.default_rng(0)
    observation = rng.uniform(-1, 1, size=(8192, 2))
    action = observation @ WEIGHT + BIAS + NOISE * rng.normal(size=observation.shape)
    assert np.mean(np.abs(action) > 1) < 1e-2  # the box plays no part
    return dataset_of(observation, action, np.zeros(8192), observation, np.zeros(8192))


@cache
def cloned(**config) -> Training:
    updates = 1000  # the log-std has to fall from 0 to -2.3, by about the rate an update
    training = Training("bc", linear_gaussian(), width=32, learning_rate=1e-2, decay_updates=updates, **config)
    training.advance(updates)
    return training


GRID = np.stack(np.meshgrid(np.linspace(-0.9, 0.9, 7), np.linspace(-0.9, 0.9, 7)), axis=-1).reshape(-1, 2)


def error_of_the_mean(training: Training) -> float:
    action = training.program.act(training.state, NetObservation(GRID[None].astype(np.float32)), training.updates, 0)[0]
    return float(np.max(np.abs(action - (GRID @ WEIGHT + BIAS))))


@pytest.mark.parametrize("policy", ["deterministic", "gaussian"])
def test_cloning_finds_the_conditional_mean(policy):
    # A linear fit of 8,192 rows errs by about 0.2 sqrt(3 / 8192) = 0.004; a network of 1,200 weights by more.
    assert error_of_the_mean(cloned(policy=policy)) < 0.06


def test_before_training_the_mean_is_elsewhere():
    assert error_of_the_mean(Training("bc", linear_gaussian(), width=32)) > 0.2  # negative control


def test_cloning_finds_the_std_and_the_best_loss():
    training = cloned(policy="gaussian")
    np.testing.assert_allclose(np.exp(training.state.actor.model.log_std[0]), NOISE, rtol=0.05)
    # The entropy of the noise is what is left of the loss: log(std) + (1 + log(2 pi)) / 2 per dimension.
    entropy = np.sum(np.log(NOISE) + 0.5 * (1.0 + math.log(2.0 * math.pi)))
    assert abs(training.diagnose()["selection/loss"][0] - entropy) < 0.05


def test_only_a_stochastic_policy_spreads():
    observation, num_actions = [0.0, 0.0], 4000
    assert np.ptp(cloned(policy="gaussian").act(observation, num_actions), axis=0).max() < 1e-6
    action = cloned(policy="gaussian", stochastic=True).act(observation, num_actions)
    # The std of n draws has a relative error of 1 / sqrt(2 n) = 0.011; the learned std one of 0.05.
    np.testing.assert_allclose(action.std(axis=0), NOISE, rtol=0.1)


# --- TD3+BC: between the data and the best action ---


@cache
def quadratic_bandit():
    """One step to the end, actions uniform in both states, reward 3 - 3 (a - 0.6 s)^2."""
    state, action = (array.ravel() for array in np.meshgrid(STATES, np.linspace(-0.96, 0.96, 128)))
    reward = 3.0 - 3.0 * (action - 0.6 * state) ** 2
    return dataset_of(state[:, None], action[:, None], reward, state[:, None], np.ones(state.size))


def best_compromise(q_weight: float) -> float:
    """The a > 0 where lambda dQ/da = d/da a^2, with Q = 3 - 3 (a - 0.6)^2 and lambda = alpha / Q held fixed.

    The 3 drops out.
    """
    grid = np.linspace(0.0, 0.6, 60_001)
    slope = q_weight / (1.0 - (grid - 0.6) ** 2) * (0.6 - grid) - grid
    return float(grid[np.argmin(np.abs(slope))])


Q_WEIGHTS = (0.5, 2.5)


@pytest.mark.slow  # its golden numbers are tested in every run
def test_the_policy_is_the_compromise_that_the_loss_asks_for():
    swept = [{"q_weight": weight} for weight in Q_WEIGHTS]
    updates = 2000
    training = Training("td3_bc", quadratic_bandit(), swept, width=32, batch_size=128, decay_updates=updates)
    training.advance(updates)
    observation = np.broadcast_to(np.array(STATES, np.float32)[:, None], (2, 2, 1))
    action = training.program.act(training.state, NetObservation(observation), updates, 0)[..., 0]
    expected = np.array([best_compromise(weight) for weight in Q_WEIGHTS])
    np.testing.assert_allclose(action, expected[:, None] * np.array(STATES), atol=0.05)
    # Negative controls: the two weights ask for other actions, and so would alpha in the place of alpha / E|Q|.
    unscaled = 0.6 * 3.0 * Q_WEIGHTS[0] / (1.0 + 3.0 * Q_WEIGHTS[0])
    assert expected[1] - expected[0] > 0.1 and unscaled - expected[0] > 0.1


@pytest.mark.slow
def test_the_better_mode_is_chosen():
    chosen = {}
    rates = {"learning_rate": 3e-3, "actor_learning_rate": 3e-3, "critic_learning_rate": 3e-3, "decay_updates": 800}
    for name in ("td3_bc", "bc"):
        training = Training(name, bandit("matching"), width=32, **rates)
        training.advance(800)
        chosen[name] = np.array([training.act([state], 1)[0, 0] * state for state in STATES])
    assert np.all(chosen["td3_bc"] > 0.3)
    assert np.all(np.abs(chosen["bc"]) < 0.15)  # negative control: without the reward, between the modes


# --- A chain of two steps ---


@pytest.mark.slow
def test_two_step_chain():
    # s0 -> s1 -> end, with the action as the reward at the end. The first step ends a logged episode by its time limit,
    # and is bootstrapped all the same, with the policy's action in s1. s2 steps to s1 too, but terminates there.
    discount, rows, std, noise_clip = 0.8, 64, 0.5, 0.4
    start = np.repeat([0, 1, 2], rows)
    action = np.tile(np.linspace(-1, 1, rows), 3)
    chain = dataset_of(
        observation=np.eye(3)[start],
        action=action[:, None],
        reward=np.where(start == 1, action, 0.0),
        next_observation=np.eye(3)[np.ones_like(start)],
        terminal=np.array([False, True, True])[start],
        timeout=np.array([True, False, False])[start],
    )
    training = Training("td3_bc", chain, width=32, discount=discount, policy_noise=std, noise_clip=noise_clip)
    training.advance(2500)
    q = training.q(chain.observation, chain.action).reshape(2, 3, rows)

    policy = training.act([0.0, 1.0, 0.0], 1)[0, 0]
    noise = np.clip(std * np.random.default_rng(0).normal(size=100_000), -noise_clip, noise_clip)
    value = discount * np.clip(policy + noise, -1, 1).mean()
    assert np.max(np.abs(q[:, 0].mean(axis=1) - value)) < 0.05
    assert np.max(np.abs(q[:, 1] - np.linspace(-1, 1, rows))) < 0.15
    assert np.max(np.abs(q[:, 2])) < 0.1
    # Negative controls: not the value of the logged actions, nor that of the policy without the noise on its actions.
    assert value > 0.3 and discount * policy - value > 0.05
