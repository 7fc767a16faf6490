"""Planners on problems with known answers: the straight way, a way that no episode went, a way that pays."""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import diffuser
from diffcps.diffusion.schedule import make_schedule
from diffcps.envs.toy import stitching
from diffcps.policies.guided import plan
from diffcps.policies.plans import knowing
from diffcps.types import Dataset, NetObservation
from tests.problems import Staged, dataset_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compilation")]

SMALL: dict[str, Any] = {
    **{"width": 16, "multipliers": (1, 2), "batch_size": 64, "num_steps": 10, "padded_below": 0},
    **{"learning_rate": 2e-3, "planner_learning_rate": 2e-3, "ema_every": 1, "ema_start": 100, "ema_rate": 0.01},
}
TO_A_GOAL: dict[str, Any] = {
    **SMALL,
    **{"plans": 1, "guide_steps": 0, "goal": "rewarded", "goal_at_rest": False, "scale": "limits", "clip_plans": True},
    **{"action_weight": 1.0},
}
AS_TO_A_GOAL: dict[str, Any] = {"num_steps": 10, "plans": 1, "guide_steps": 0, "clip_plans": True}
"""What planning reads of it."""
FIELD_STEPS = 16


def state_of(training: Staged) -> Any:
    """The first member's."""
    return jax.tree.map(lambda leaf: leaf[0], training.state)


def planned(training: Staged, config: diffuser.Config, begin, goal, count: int = 32) -> np.ndarray:
    """Positions "plan h 2" of plans between two places, in the data's units."""
    state, schedule = state_of(training), make_schedule("cosine", config.num_steps)
    into = state.scale.observation.into
    known = knowing(into(jnp.asarray(begin)), into(jnp.asarray(goal)))
    noise = jax.random.normal(jax.random.key(0), (config.num_steps, count, config.horizon, 4))
    plans, _ = plan(state.target_planner, None, schedule, known, noise, config)
    return np.asarray(state.scale.back(plans)[1])


def open_field() -> Dataset:
    """Straight ways between two places of a square, at constant speed, in `FIELD_STEPS` steps and one more."""
    rng = np.random.default_rng(0)
    begin, end = rng.uniform(-1, 1, (2, 2000, 1, 2))
    share = np.linspace(0.0, 1.0, FIELD_STEPS)[:, None]
    position = begin + (end - begin) * np.append(share, [[1.0]], axis=0)
    action = np.broadcast_to((end - begin) / 2.0, position.shape)
    last = np.tile(np.arange(FIELD_STEPS + 1) == FIELD_STEPS, len(begin))
    flat = position.reshape(-1, 2)
    return dataset_of(flat, action.reshape(-1, 2), np.ones(len(flat)), flat, np.zeros_like(last), last)


@cache
def over_the_field() -> tuple[Staged, diffuser.Config]:
    config = {**TO_A_GOAL, "horizon": FIELD_STEPS}
    return Staged("diffuser", open_field(), 1500, **config), diffuser.Config(horizon=FIELD_STEPS, **AS_TO_A_GOAL)


def test_over_an_open_field_a_plan_goes_straight():
    training, config = over_the_field()
    for begin, goal in (((-0.8, -0.6), (0.7, 0.5)), ((0.9, -0.9), (0.9, 0.8))):
        share = np.linspace(0.0, 1.0, FIELD_STEPS)[:, None]
        straight = np.array(begin) + (np.array(goal) - np.array(begin)) * share
        off = np.linalg.norm(planned(training, config, begin, goal) - straight, axis=-1)
        assert off.mean() < 0.08 and off.max() < 0.35
        # Negative control: half the way's length would be far off.
        assert np.linalg.norm(straight - straight[::-1], axis=-1).mean() > 0.5


@cache
def on_the_cross() -> tuple[Staged, diffuser.Config]:
    config = {**TO_A_GOAL, "horizon": 24}
    return Staged("diffuser", stitching(), 3000, **config), diffuser.Config(horizon=24, **AS_TO_A_GOAL)


def test_a_plan_joins_two_ways_that_no_episode_went_together():
    training, config = on_the_cross()
    plans = planned(training, config, (-1.0, 1.0), (1.0, 1.0))
    through_the_middle = np.linalg.norm(plans, axis=-1).min(axis=1) < 0.3
    step = np.linalg.norm(np.diff(plans, axis=1), axis=-1)
    off_the_cross = np.abs(np.abs(plans[..., 0]) - np.abs(plans[..., 1])).max(axis=1)
    print(through_the_middle.mean(), step.max(axis=1).mean(), np.median(off_the_cross), np.median(step.max(axis=1)))
    assert through_the_middle.mean() > 0.8


RIGHT_RETURN = 8.0


def two_ways() -> Dataset:
    """Ways of eight steps to the left, without reward, and to the right, with one at each step: half of them each."""
    rng = np.random.default_rng(0)
    side = np.where(np.arange(400) % 2 == 0, -1.0, 1.0)[:, None]
    step = np.arange(9)
    position = side * step / 8.0 + 0.02 * rng.normal(size=(400, 9))
    action = np.broadcast_to(0.5 * side, position.shape) + 0.05 * rng.normal(size=position.shape)
    reward = np.broadcast_to(side > 0, position.shape)
    last = np.tile(step == 8, 400)
    flat = position.reshape(-1, 1)
    return dataset_of(flat, action.reshape(-1, 1), reward.ravel(), flat, np.zeros_like(last), last)


@cache
def diffuser_at_the_fork() -> Staged:
    config = {**SMALL, "horizon": 8, "plans": 1, "guide_steps": 2, "guide_scale": 0.3, "unguided_steps": 0}
    return Staged("diffuser", two_ways(), 400, **config, value_interval=1, value_learning_rate=2e-3, discount=1.0)


def test_guidance_takes_the_way_that_pays():
    assert np.mean(diffuser_at_the_fork().act([0.0], 200) > 0) > 0.9


def test_without_guidance_both_ways_are_taken():
    training = diffuser_at_the_fork()
    state, schedule = state_of(training), make_schedule("cosine", 10)
    known = knowing(state.scale.observation.into(jnp.zeros((400, 1, 1))))
    noise = jax.random.normal(jax.random.key(0), (10, 400, 1, 8, 2))
    config = diffuser.Config(horizon=8, num_steps=10)
    plans, _ = plan(state.target_planner, None, schedule, known, noise, config)
    assert abs(np.mean(plans[:, 0, 0, 0] > 0) - 0.5) < 0.2


@cache
def decisions_at_the_fork() -> Staged:
    config = {**SMALL, "horizon": 8, "inverse_width": 32, "returns_scale": RIGHT_RETURN, "discount": 1.0}
    values = [{"target_return": target} for target in (0.9, 0.0)]
    return Staged("decision_diffuser", two_ways(), 400, values, **config)


def test_the_wanted_return_chooses_the_way():
    training = decisions_at_the_fork()
    rows = NetObservation(np.zeros((2, 200, 1), np.float32))
    action = training.program.act(training.state, rows, training.updates, 0)[..., 0]
    share = np.mean(action > 0, axis=1)
    assert share[0] > 0.9 and share[1] < 0.1
