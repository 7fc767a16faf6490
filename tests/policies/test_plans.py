"""What planners share, by hand: scales, what is known, which plan is followed at which step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import diffuser
from diffcps.diffusion.schedule import make_schedule
from diffcps.policies.guided import action_on, check_data
from diffcps.policies.plans import (
    Planner,
    acting,
    best_of,
    by_deviation,
    by_limits,
    by_ranks,
    knowing,
    shifted,
    steps_read,
    towards,
    unranked,
    warm_noise,
)
from diffcps.types import DatasetInfo, Spec, UserError
from tests.problems import random_dataset

DATA = jnp.array([[0.0, 5.0], [2.0, 5.0], [4.0, 5.0], [4.0, 5.0]])


@pytest.mark.parametrize("by", [by_deviation, by_limits, by_ranks])
def test_a_constant_dimension_is_harmless_when_it_moves(by):
    scale = by(DATA)
    np.testing.assert_array_equal(scale.into(jnp.array([[1.0, 5.0], [1.0, 1e6]]))[:, 1], 0.0)
    np.testing.assert_array_equal(scale.back(jnp.array([[0.5, 0.5]]))[:, 1], 5.0)


@pytest.mark.parametrize("by", [by_deviation, by_limits])
def test_scales_lead_back(by):
    np.testing.assert_allclose(by(DATA).back(by(DATA).into(DATA)), DATA, atol=1e-6)


def test_scales_by_hand():
    np.testing.assert_allclose(
        by_deviation(DATA).into(DATA)[:, 0], (DATA[:, 0] - 2.5) / np.std([0, 2, 4, 4]), rtol=1e-6
    )
    np.testing.assert_allclose(by_limits(DATA).into(DATA)[:, 0], [-1.0, 0.0, 1.0, 1.0])


def test_ranks_by_hand():
    """A quarter is no larger than 0, a half no larger than 2, all no larger than 4; beyond the data it is held."""
    ranks = by_ranks(DATA)
    found = ranks.into(jnp.array([[-1.0, 5.0], [0.0, 5.0], [1.0, 5.0], [2.0, 5.0], [3.0, 5.0], [4.0, 5.0], [9.0, 5.0]]))
    np.testing.assert_allclose(found[:, 0], [-0.5, -0.5, -0.25, 0.0, 0.5, 1.0, 1.0], atol=1e-6)
    np.testing.assert_allclose(
        ranks.back(jnp.array([[-1.0, 0.0], [0.0, 0.0], [0.5, 0.0]]))[:, 0], [0.0, 2.0, 3.0], atol=1e-5
    )


def test_ranks_of_many_rows_are_uniform():
    x = jax.random.normal(jax.random.key(0), (50_000, 1))
    found = np.sort(np.asarray(by_ranks(x).into(x))[:, 0])
    np.testing.assert_allclose(found, np.linspace(-1, 1, len(x)), atol=2e-3)


def test_without_data_numbers_are_as_they_are():
    x = jnp.array([[-1.0, 0.25], [0.5, 1.0]])
    np.testing.assert_allclose(unranked(2).into(x), x, atol=1e-6)
    np.testing.assert_allclose(unranked(2).back(x), x, atol=1e-6)


def test_what_is_known():
    plan = knowing(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]))(jnp.zeros((5, 4, 3)))
    np.testing.assert_array_equal(plan[2, 0], [0.0, 1.0, 2.0])
    np.testing.assert_array_equal(plan[2, -1], [0.0, 3.0, 4.0])
    assert not plan[:, 1:3].any()


def test_the_best_plan_is_that_of_the_highest_value():
    plan = jnp.arange(12.0).reshape(2, 3, 2, 1)
    np.testing.assert_array_equal(best_of(plan, jnp.array([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])), plan[[0, 1], [1, 0]])
    np.testing.assert_array_equal(best_of(plan, None), plan[:, 0])


def test_a_point_mass_is_driven_to_the_next_place():
    observation, waypoint = jnp.array([0.0, 1.0, 0.5, 0.0]), jnp.array([0.2, 1.1, 0.4, 0.3])
    np.testing.assert_allclose(towards(waypoint, observation, 0.0), [0.2 - 0.1, 0.1 + 0.3], atol=1e-6)
    np.testing.assert_allclose(towards(waypoint, observation, 1.0), [0.2 - 0.5, 0.1], atol=1e-6)


def test_a_plan_is_followed_by_its_actions_or_its_places():
    """Three steps of a point mass; behind the end the last action, and the last place without its velocity."""
    action, waypoint = jnp.array([[0.1], [0.2], [3.0]]), jnp.array([[0.0, 0.5], [0.3, 0.4], [0.6, 0.1]])
    observation = jnp.array([0.1, 0.2])
    by_actions, by_places = (
        [float(action_on(action, waypoint, observation, jnp.asarray(since), how)[0]) for since in range(4)]
        for how in ("actions", "waypoints")
    )
    np.testing.assert_allclose(by_actions, [0.1, 0.2, 1.0, 1.0], atol=1e-6)  # 3 lies outside the box
    np.testing.assert_allclose(by_places, [0.2 + 0.2, 0.5 - 0.1, 0.5 - 0.2, 0.5 - 0.2], atol=1e-6)


def test_warm_noise_begins_with_the_plan():
    schedule = make_schedule("cosine", 10)
    plan, noise = jnp.ones((4, 2)), jax.random.normal(jax.random.key(0), (3, 5, 4, 2))
    found = warm_noise(schedule, plan, noise)
    np.testing.assert_array_equal(found[1:], noise[1:])
    alpha_bar = schedule.alpha_bar[2]
    np.testing.assert_allclose(found[0], np.sqrt(alpha_bar) + np.sqrt(1 - alpha_bar) * noise[0], rtol=1e-6)


@pytest.mark.parametrize(("horizon", "padded_below", "steps"), [(32, 1000, 2), (32, 0, 33), (32, 32, 33), (32, 33, 2)])
def test_steps_that_an_episode_must_have(horizon, padded_below, steps):
    assert steps_read(horizon, padded_below) == steps


# --- Which plan is followed when ---


def counting() -> Planner[Any]:
    """Plans that hold 100 where they are new and the last plan's first number plus 1000 where it was renewed."""

    def new(state, observation, key):
        return jnp.full((*observation.shape[:-1], 4, 1), 100.0) + jnp.arange(4.0)[:, None]

    def renewed(state, observation, last, key):
        return last + 1000.0

    def follow(state, plan, observation, since):
        return plan[..., jnp.minimum(since, 3), :]

    return Planner(new, renewed, follow)


@pytest.mark.parametrize(
    ("replan_every", "warm_start", "expected"),
    [
        (2, False, [100, 101, 100, 101, 100, 101]),
        (0, False, [100, 101, 102, 103, 103, 103]),
        (0, True, [100, 101, 102, 103, 103, 103]),
        (1, True, [100, 1101, 2102, 3103, 4103, 5103]),  # each made of the last one, moved on by one
        (2, True, [100, 101, 1102, 1103, 2103, 2103]),
    ],
)
def test_plans_are_followed_and_renewed(replan_every, warm_start, expected):
    act, in_episode = acting(counting(), (4, 1), replan_every, warm_start)
    observation = jnp.zeros((2, 3))
    assert in_episode is not None
    memory, found = in_episode.begin(observation), []
    for step in range(6):
        action, memory = in_episode.act((), observation, memory, jnp.asarray(step), jax.random.key(step))
        found.append(float(action[1, 0]))
    assert found == expected
    np.testing.assert_array_equal(act((), observation, jax.random.key(0)), 100.0)


def test_who_plans_at_every_step_remembers_nothing():
    assert acting(counting(), (4, 1), 1, False)[1] is None


def test_shifted():
    np.testing.assert_array_equal(shifted(jnp.arange(4.0)[:, None], 2)[:, 0], [2.0, 3.0, 3.0, 3.0])


# --- What excludes what ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"guide_steps": 0}, "plans is 64, but without guidance .* take plans 1"),
        ({"control": "waypoints"}, "an observation has 3 numbers: take control actions"),
        ({"warm_start_steps": 21}, "warm_start_steps is 21, and a plan has 20 diffusion steps: take fewer"),
        ({"horizon": 30}, "horizon is 30: .* multiple of 8; take 32"),
    ],
)
def test_settings_that_exclude_one_another(fields, message):
    with pytest.raises(UserError, match=message):
        diffuser.make(diffuser.Config(**fields), Spec(3, 2))


def test_waypoints_are_in_the_units_of_the_environment():
    config = diffuser.Config(control="waypoints", plans=1, guide_steps=0)
    info: DatasetInfo = random_dataset(spec=Spec(4, 2)).info
    for changed in ({"observation_mean": (0.0,) * 4}, {"action_high": (2.0, 2.0)}):
        data = random_dataset(spec=Spec(4, 2))
        data = data.__class__(**{**vars(data), "info": info.__class__(**{**vars(info), **changed})})
        with pytest.raises(UserError, match="leave out --normalise-observation, or take control actions"):
            check_data(data, config)
    check_data(random_dataset(spec=Spec(4, 2)), config)
