"""BCQ and BEAR on a problem with known answers.

States -1 and +1, actions around -0.8 and +0.8 in equal parts in both, and one step to the end. The reward is the state
times the action, so that the better mode has the sign of the state and Q pulls beyond it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import ALGORITHMS
from diffcps.types import Dataset
from tests.problems import MODES, NUM_ACTIONS, SPREAD, STATES, Training, dataset_of

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL: dict[str, Any] = {"width": 32, "second_width": 32, "vae_width": 64, "warm_up_updates": 100}

# Two members of one training each.
BCQ = {"near": {"max_perturbation": 0.05}, "far": {"max_perturbation": 1.0}}
BEAR = {
    # The bound is never met: alpha rises to its upper bound, where Q no longer counts.
    "held": {"mmd_threshold": 0.0, "multiplier_learning_rate": 0.01, "multiplier_min": 0.01, "multiplier_max": 1000.0},
    # The bound is always met: alpha falls to its lower bound, where nothing but Q counts.
    "free": {"mmd_threshold": 10.0, "multiplier_learning_rate": 0.01, "multiplier_min": 0.1, "multiplier_max": 1000.0},
}
ROUNDS, ROUND = 5, 200


def two_modes() -> Dataset:
    rng = np.random.default_rng(0)
    state, mode = (array.ravel() for array in np.meshgrid(np.repeat(STATES, 128), MODES))
    action = np.clip(mode + SPREAD * rng.normal(size=state.size), -1, 1)
    observation = state[:, None]
    return dataset_of(observation, action[:, None], state * action, observation, np.ones(state.size))


@cache
def history(name: str) -> dict[str, dict[str, np.ndarray]]:
    """Per member: its final state, its metrics' means over each round, the diagnosis before and after the training."""
    members = {"bcq": BCQ, "bear": BEAR}[name]
    training = Training(name, two_modes(), list(members.values()), **SMALL, vae_learning_rate=3e-3)
    before = training.diagnose()
    rounds = [training.advance(ROUND) for _ in range(ROUNDS)]
    found = {key: np.stack([row[key] for row in rounds], axis=1) for key in rounds[0]}
    found |= {f"before/{key}": value for key, value in before.items()}
    found |= {f"after/{key}": value for key, value in training.diagnose().items()}
    return {
        member: {key: value[index] for key, value in found.items()}
        | {"state": jax.tree.map(lambda leaf: leaf[index], training.state)}  # noqa: B023
        for index, member in enumerate(members)
    }


def act(name: str, member: str, observation: float, num_actions: int = NUM_ACTIONS, **config) -> np.ndarray:
    """Actions of one member in one state, with the same key each time."""
    spec = two_modes().spec
    known = ALGORITHMS[name].Config.__dataclass_fields__
    values = {key: value for key, value in (SMALL | config).items() if key in known}
    algorithm = ALGORITHMS[name].make(ALGORITHMS[name].Config(**values), spec)
    observations = jnp.full((num_actions, 1), observation, jnp.float32)
    return np.asarray(jax.jit(algorithm.act)(history(name)[member]["state"], observations, jax.random.key(0)))


def decoded(observation: float) -> np.ndarray:
    """Behaviour cloning: actions of the VAE alone, as BCQ draws them."""
    return act("bcq", "near", observation, num_candidates=1, max_perturbation=0.0)


# --- The VAE ---


@pytest.mark.slow
def test_the_vae_reconstructs_and_covers_both_modes():
    # An auto-encoder that ignores the action answers with its mean, 0, and has an error of 0.8^2.
    assert history("bcq")["near"]["before/vae/squared_error"] > 0.5 * 0.64
    assert history("bcq")["near"]["after/vae/squared_error"] < 0.2 * 0.64
    for state in STATES:
        action = decoded(state)
        for mode in MODES:
            assert np.mean(np.abs(action - mode) < 0.3) > 0.25
        # But, decoded from latents without a gap, not all of them are near a mode.
        assert np.mean(np.abs(np.abs(action) - 0.8) > 0.3) > 0.02


# --- The choice ---


@pytest.mark.slow  # its golden numbers are tested in every run
def test_bcq_chooses_the_better_mode():
    for state in STATES:
        assert np.mean(act("bcq", "near", state, 200) * state > 0.5) > 0.98


@pytest.mark.slow  # its golden numbers are tested in every run
def test_bear_chooses_the_better_mode():
    for state in STATES:
        # With Q's help among 100 candidates; and by the policy alone, where the MMD does not hold it.
        assert np.mean(act("bear", "held", state, 200) * state > 0.5) > 0.98
        assert np.mean(act("bear", "free", state, num_candidates=1) * state > 0.5) > 0.98


def test_cloning_does_not_choose():
    # Negative controls: the VAE, and the policy that descends the MMD alone.
    for state in STATES:
        assert 0.3 < np.mean(decoded(state) * state > 0) < 0.7
        assert 0.2 < np.mean(act("bear", "held", state, num_candidates=1) * state > 0) < 0.8


# --- BCQ's bound ---


def moved(member: str, observation: float) -> np.ndarray:
    """How far the perturbation moves actions of the VAE towards higher Q."""
    bound = BCQ[member]["max_perturbation"]
    drawn, perturbed = (
        act("bcq", member, observation, num_candidates=1, max_perturbation=reach) for reach in (0.0, bound)
    )
    return (perturbed - drawn) * observation


def test_bcq_leaves_the_vae_by_no_more_than_its_bound():
    for state in STATES:
        assert np.max(np.abs(moved("near", state))) <= 0.05 + 1e-6
        assert np.mean(moved("near", state)) > 0.03  # and Q does pull


def test_without_the_bound_bcq_leaves_the_vae():
    for state in STATES:
        assert np.mean(moved("far", state)) > 0.4  # negative control


# --- BEAR's multiplier ---


def test_the_multiplier_rises_while_the_mmd_exceeds_its_bound():
    held = history("bear")["held"]
    assert np.all(held["actor/mmd"] > 0.0)
    rounds = np.append(1.0, held["dual/multiplier"])
    assert np.all((np.diff(rounds) > 0) | (rounds[:-1] > 999.0)) and rounds[2] < 999.0  # up to its upper bound
    # Adam's steps under a gradient of one sign are of the order of its rate: after 200 updates log alpha is about 2.
    assert 0.5 < np.log(held["dual/multiplier"][0]) < 2.5
    np.testing.assert_allclose(held["after/dual/multiplier"], 1000.0, rtol=1e-4)


def test_the_multiplier_falls_while_the_mmd_is_below_its_bound():
    free = history("bear")["free"]
    assert np.all(free["actor/mmd"] < 10.0)
    assert 0.1 < free["dual/multiplier"][0] < 0.9
    assert np.all(np.diff(free["dual/multiplier"]) <= 0)
    np.testing.assert_allclose(free["after/dual/multiplier"], 0.1, rtol=1e-4)


def test_the_mmd_holds_the_policy_near_the_vae():
    held, free = (history("bear")[member]["after/actor/mmd"] for member in ("held", "free"))
    assert held < 0.7 * free
