"""AdaptDiffuser: what the discriminator keeps, what a fine-tuning reads, what a planner learns from its own plans."""

from __future__ import annotations

from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import adapt_diffuser
from diffcps.algorithms.adapt_diffuser import (
    Dynamics,
    Followed,
    Generated,
    discriminate,
    followed,
    label,
    mixed,
    usual_error,
    window_returns,
)
from diffcps.diffusion.schedule import make_schedule
from diffcps.networks.mlp import MLP
from diffcps.policies.guided import plan
from diffcps.policies.plans import PlanScale, Windows, knowing, unscaled
from diffcps.rl.windows import starts_first
from diffcps.types import Dataset, Spec, UserError
from tests.problems import SPEC, Staged, dataset_of, random_dataset

pytestmark = pytest.mark.usefixtures("quick_compilation")


# --- The discriminator ---


def test_what_pays_more_than_the_data_is_kept():
    """The rule of the third party's program, whose threshold is one for all (its record, adaptdiffuser_third_party:
    generate/log_p, select/threshold, select/kept)."""
    returns = jnp.array([-0.65686095, -0.4751155, -0.610398, -0.44190258])
    found = Followed(jnp.zeros((4, 1, 1)), jnp.zeros((4, 1, 1)), returns, jnp.zeros(4))
    kept = discriminate(found, jnp.full(4, -0.4761155), 1.0)
    np.testing.assert_array_equal(kept, [False, True, False, True])
    assert not discriminate(found, returns, 1.0).any()


def test_what_could_not_be_followed_is_not_kept():
    found = Followed(jnp.zeros((3, 1, 1)), jnp.zeros((3, 1, 1)), jnp.ones(3), jnp.array([0.1, 0.3, jnp.nan]))
    np.testing.assert_array_equal(discriminate(found, jnp.zeros(3), 0.3), [True, False, False])


class Exact(Dynamics):
    """s' = s + a, r = 2 s, of (a, s)."""

    def __init__(self):
        self.network = MLP((2, 2), jax.random.key(0))  # not asked

    def __call__(self, scaled):
        return scaled * jnp.array([1.0, 2.0])


def test_a_plan_is_followed_as_the_dynamics_answer():
    action = jnp.array([[1.0, 0.5, -1.0, 0.0], [1.0, 0.5, -1.0, 0.0]])[..., None]
    observation = jnp.array([[0.0, 1.0, 1.5, 0.5], [0.0, 1.0, 4.5, 0.5]])[..., None]  # the second one jumps by 3
    scale = PlanScale(unscaled(1), unscaled(1))
    found = followed(Exact(), scale, unscaled(2), action, observation, "actions")
    np.testing.assert_allclose(found.observation[..., 0], np.tile([0.0, 1.0, 1.5, 0.5], (2, 1)))
    np.testing.assert_array_equal(found.action, action)
    np.testing.assert_allclose(found.error, [0.0, 3.0**2 / 4])
    np.testing.assert_allclose(found.returns, [6.0, 6.0])


def test_waypoints_are_driven_to():
    """A point mass: (x, v) -> (x + v, v + a), without a reward."""

    class Mass(Exact):
        def __init__(self):
            super().__init__()

        def __call__(self, scaled):
            return jnp.stack([scaled[..., 2], scaled[..., 0], 0.0 * scaled[..., 0]], axis=-1)

    waypoint = jnp.array([[0.0, 0.0], [0.2, 0.2], [0.5, 0.0], [0.5, 0.0]])[None]
    scale = PlanScale(unscaled(1), unscaled(2))
    found = followed(Mass(), scale, unscaled(3), jnp.zeros((1, 4, 1)), waypoint, "waypoints")
    drive = [0.4]  # (0.2 - 0) + (0.2 - 0)
    drive.append(0.5 - 0.0 + 0.0 - 0.4)  # at (0, 0.4)
    drive.append(0.5 - 0.4 + 0.0 - 0.5)  # at (0.4, 0.5)
    drive.append(0.5 - 0.9 - 0.1)  # at (0.9, 0.1), the end is held at rest
    np.testing.assert_allclose(found.action[0, :, 0], drive, atol=1e-6)
    np.testing.assert_allclose(found.observation[0], [[0.0, 0.0], [0.0, 0.4], [0.4, 0.5], [0.9, 0.1]], atol=1e-6)


def test_the_usual_error_is_that_of_whole_windows_of_the_data():
    """Episodes of three steps: a window of three that begins at the second holds zeros, far from anything."""
    step = np.tile([0.0, 1.0, 2.0], 20)[:, None]
    end = np.tile([False, False, True], 20)
    dataset = dataset_of(100.0 + step, 0.0 * step, np.zeros(60), 101.0 + step, np.zeros(60, bool), end)
    config = adapt_diffuser.Config(horizon=3)
    labels = label(dataset, config)
    assert int(labels.start.count[0]) == 40
    still = eqx.tree_at(lambda d: d.network.layers[-1], Dynamics(Spec(1, 1), 8, jax.random.key(0)), replace_fn=zero)
    scale, change = PlanScale(unscaled(1), unscaled(1)), unscaled(2)  # nothing changes
    found = usual_error(still, scale, change, dataset, labels, jax.random.key(1), config)
    np.testing.assert_allclose(found, (0.0 + 1.0 + 4.0) / 3)


def zero(layer):
    return jax.tree.map(jnp.zeros_like, layer)


def test_the_returns_of_windows_end_with_their_episodes():
    dataset = random_dataset(64)
    labels = label(dataset, adapt_diffuser.Config(horizon=4))
    row = np.arange(dataset.size)
    end = np.asarray(dataset.terminal | dataset.timeout)
    expected = []
    for first in row:
        total = 0.0
        for at in range(first, min(first + 4, dataset.size)):
            total += float(dataset.reward[at])
            if end[at]:
                break
        expected.append(total)
    np.testing.assert_allclose(window_returns(dataset, labels, jnp.asarray(row), 4), expected, rtol=1e-5, atol=1e-6)
    assert end.any()


# --- The batches of a fine-tuning ---


def generated(dataset: Dataset, config: adapt_diffuser.Config, kept: list[bool]) -> Generated:
    """Plans that are full of their own number."""
    number = 100.0 + jnp.arange(len(kept), dtype=jnp.float32)
    shape = len(kept), config.horizon
    action, observation = (
        jnp.broadcast_to(number[:, None, None], (*shape, size)) for size in (SPEC.action_size, SPEC.observation_size)
    )
    return Generated(label(dataset, config), Windows(action, observation, number), starts_first(jnp.array(kept)))


def test_half_of_a_batch_are_kept_plans():
    dataset, config = random_dataset(64), adapt_diffuser.Config(horizon=4, batch_size=64, generated_in_batch=32)
    batch = mixed(dataset, generated(dataset, config, [False, True, False, True]), jax.random.key(0), config)
    first, second = np.asarray(batch.observation[:32]), np.asarray(batch.observation[32:])
    assert set(first.ravel().tolist()) == {101.0, 103.0}
    assert np.abs(second).max() < 100.0 and len(np.unique(second[:, 0], axis=0)) > 10
    assert np.array_equal(np.unique(batch.action[:32]), [101.0, 103.0])


def test_where_no_plan_is_kept_a_batch_is_data():
    dataset, config = random_dataset(64), adapt_diffuser.Config(horizon=4, batch_size=64, generated_in_batch=32)
    batch = mixed(dataset, generated(dataset, config, [False] * 4), jax.random.key(0), config)
    assert np.abs(np.asarray(batch.observation)).max() < 100.0


def test_a_batch_has_no_more_plans_than_places():
    with pytest.raises(UserError, match="generated_in_batch is 9, of a batch of 8: take at most 8"):
        adapt_diffuser.make(adapt_diffuser.Config(batch_size=8, generated_in_batch=9), SPEC)


# --- Learning ---


def two_ways() -> Dataset:
    """Ways of eight steps to the left and to the right, half of them each; the reward is the position."""
    rng = np.random.default_rng(0)
    side = np.where(np.arange(400) % 2 == 0, -1.0, 1.0)[:, None]
    step = np.arange(9)
    position = side * step / 8.0 + 0.02 * rng.normal(size=(400, 9))
    action = np.broadcast_to(0.5 * side, position.shape) + 0.05 * rng.normal(size=position.shape)
    last = np.tile(step == 8, 400)
    after = np.append(position[:, 1:], position[:, -1:] + side / 8.0, axis=1)
    columns = (column.reshape(-1, 1) for column in (position, action, after))
    observation, flat_action, next_observation = columns
    return dataset_of(observation, flat_action, position.ravel(), next_observation, np.zeros_like(last), last)


@cache
def at_the_fork() -> Staged:
    config: dict[str, Any] = {
        **{"width": 16, "multipliers": (1, 2), "batch_size": 64, "num_steps": 10, "padded_below": 0, "horizon": 8},
        **{"planner_learning_rate": 2e-3, "value_learning_rate": 2e-3, "dynamics_learning_rate": 2e-3},
        **{"ema_every": 1, "ema_start": 100, "ema_rate": 0.01, "value_interval": 1, "discount": 1.0},
        **{"plans": 1, "guide_steps": 2, "guide_scale": 0.3, "unguided_steps": 0, "dynamics_width": 32},
        **{"training_share": 2, "tuning_share": 1, "generated": 512},
    }
    return Staged("adapt_diffuser", two_ways(), 600, **config)


def share_to_the_right(state: Any) -> float:
    """Of plans from the fork that nothing guides."""
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), state)
    known = knowing(state.scale.observation.into(jnp.zeros((400, 1, 1))))
    noise = jax.random.normal(jax.random.key(0), (10, 400, 1, 8, 2))
    config = adapt_diffuser.Config(horizon=8, num_steps=10)
    plans, _ = plan(state.target_planner, None, make_schedule("cosine", 10), known, noise, config)
    return float(np.mean(np.asarray(plans)[:, 0, -1, 1] > 0))


@pytest.mark.slow
def test_a_planner_learns_from_its_own_plans_to_go_where_it_pays():
    training = at_the_fork()
    _, before, after = training.states
    assert abs(share_to_the_right(before) - 0.5) < 0.2
    assert share_to_the_right(after) > 0.7  # half of a batch are kept plans, half of the others go to the left
    generated = jax.tree.map(lambda leaf: leaf[0], training.labels[-1])
    kept = generated.kept.row[: generated.kept.count[0]]
    # One to the left may pay a little more than what was logged on the way to the left.
    assert np.mean(generated.plans.observation[kept, -1, 0] > 0.5) > 0.9
    assert 0.1 < float(after.kept[0]) < 0.95
