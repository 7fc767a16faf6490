"""SRPO on a problem with a known answer: a Gaussian of logged actions, and a reward that grows with the action."""

from __future__ import annotations

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms.srpo import POLICY_TIMES
from diffcps.diffusion.vp_sde import alpha_and_std
from diffcps.types import NetObservation
from tests.problems import STATES, Staged, dataset_of

MEAN, STD, SLOPE = 0.1, 0.3, 0.5
BETAS = (0.0, 0.2)


@cache
def trained() -> Staged:
    rng = np.random.default_rng(0)
    state = np.repeat(STATES, 1024)
    action = np.clip(MEAN + STD * rng.normal(size=state.size), -1, 1)
    observation = state[:, None]
    data = dataset_of(observation, action[:, None], SLOPE * action, observation, np.ones(state.size))
    return Staged(
        "srpo",
        data,
        6000,
        [{"beta": beta} for beta in BETAS],
        **{"width": 32, "behaviour_width": 32, "num_blocks": 1, "num_features": 16, "time_width": 16},
        **{"batch_size": 256, "behaviour_batch_size": 256, "dropout": 0.0, "weight_decay": 0.0},
        **{"behaviour_learning_rate": 1e-3, "value_learning_rate": 2e-3, "critic_learning_rate": 2e-3},
        **{"actor_learning_rate": 2e-3, "actor_decay_updates": 1300, "depth": 1, "actor_depth": 1},
    )


def where_both_pulls_meet(beta: float) -> float:
    """The action at which E_t[sigma_t^2 eps*(a_t, t)] = beta dQ/da, eps* the best noise model of a Gaussian.

    eps*(x, t) = sigma (x - alpha m) / (alpha^2 s^2 + sigma^2), and a_t has the mean alpha a.
    """
    t = np.linspace(*POLICY_TIMES, 10_001)
    alpha, std = (np.asarray(value) for value in alpha_and_std(jnp.asarray(t)))
    strength = float(np.mean(std**3 * alpha / (alpha**2 * STD**2 + std**2)))
    return MEAN + beta * SLOPE / strength


@pytest.mark.slow
def test_the_policy_stands_where_the_score_and_q_pull_equally():
    training = trained()
    observation = np.broadcast_to(np.array(STATES, np.float32)[:, None], (len(BETAS), len(STATES), 1))
    action = training.program.act(training.state, NetObservation(observation), training.updates, 0)[..., 0]
    expected = np.array([where_both_pulls_meet(beta) for beta in BETAS])
    np.testing.assert_allclose(action, np.broadcast_to(expected[:, None], action.shape), atol=0.12)
    assert expected[-1] - expected[0] > 0.25  # negative control: beta asks for other actions


@pytest.mark.slow
def test_each_stage_moves_its_own_part():
    states = trained().states
    for stage, parts in enumerate((("behaviour",), ("value", "critic", "target_critic"), ("actor",))):
        for part in ("behaviour", "value", "critic", "target_critic", "actor"):
            before, after = (jax.tree.leaves(getattr(state, part)) for state in states[stage : stage + 2])
            assert any(np.any(x != y) for x, y in zip(before, after, strict=True)) == (part in parts), (stage, part)
