"""Online SAC: the densities it uses, that it learns, and that a broken run ends with the bits of an unbroken one."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.spaces import Box

from diffcps.collect import sac
from diffcps.networks.squashed import SquashedGaussian
from diffcps.types import Spec, Transition, UserError

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = sac.Config(learning_rate=3e-3, batch_size=64, width=32, random_steps=200, iteration_steps=200)


class Bandit(gymnasium.Env):
    """One step; the reward is highest for the action `best`, and does not matter where `best` is None."""

    def __init__(self, best: float | None, bound: float = 1.0) -> None:
        self.observation_space = Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = Box(-bound, bound, (1,), np.float32)
        self.best = best

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        reward = 0.0 if self.best is None else -10.0 * float((action[0] - self.best) ** 2)
        return np.zeros(1, np.float32), reward, True, False, {}


class Point(gymnasium.Env):
    """A point on a line that starts anywhere and is paid for being near 0; its place follows from the seed."""

    def __init__(self) -> None:
        self.observation_space = Box(-2.0, 2.0, (1,), np.float32)
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1.0, 1.0, 1).astype(np.float32)
        return self.place.copy(), {}

    def step(self, action):
        self.place = np.clip(self.place + 0.3 * action, -2.0, 2.0).astype(np.float32)
        return self.place.copy(), -abs(float(self.place[0])), False, False, {}


def limited(environment: gymnasium.Env, steps: int = 20) -> gymnasium.Env:
    return gymnasium.wrappers.TimeLimit(environment, steps)


def choice(actor: SquashedGaussian, observation: float = 0.0) -> float:
    return float(sac.sample(actor, np.full(1, observation, np.float32), np.zeros(1, np.float32))[0])


# --- Equations ---


def test_density_of_actions_is_that_of_the_change_of_variables():
    actor = SquashedGaussian(Spec(3, 2), 8, 1, jax.random.key(0))
    observation = jax.random.normal(jax.random.key(1), (5, 3))
    action, log_prob = sac.sample_with_log_prob(actor, observation, jax.random.key(2))
    mean, log_std = actor(observation)
    u = np.arctanh(np.asarray(action, np.float64))
    normal = -0.5 * ((u - mean) / np.exp(log_std)) ** 2 - log_std - 0.5 * np.log(2 * np.pi)
    expected = np.sum(normal - np.log(1.0 - np.asarray(action, np.float64) ** 2), axis=-1)
    np.testing.assert_allclose(log_prob, expected, rtol=1e-3, atol=1e-3)


def test_first_update_by_hand():
    """With one row the losses are plain arithmetic: here the TD error and the way the temperature moves."""
    spec, config = Spec(2, 1), sac.Config(width=8, depth=1, discount=0.9)
    state = sac.init(config, spec, jax.random.key(0))
    row = Transition(jnp.ones((1, 2)), jnp.full((1, 1), 0.3), jnp.ones(1), 2 * jnp.ones((1, 2)), jnp.zeros(1))
    key = jax.random.key(5)
    after, metrics = sac.update(config, state, row, key)
    key_now, key_next = jax.random.split(jax.random.clone(key))
    next_action, next_log_prob = sac.sample_with_log_prob(state.actor.model, row.next_observation, key_next)
    q_next = np.min(state.target_critic(row.next_observation, next_action), axis=0) - next_log_prob
    target = 1.0 + 0.9 * q_next
    q = state.critic.model(row.observation, row.action)
    np.testing.assert_allclose(metrics["critic/td_error"], np.sum((q - target) ** 2), rtol=1e-5)
    _, log_prob = sac.sample_with_log_prob(state.actor.model, row.observation, key_now)
    wants_more_entropy = -float(log_prob[0]) < -1.0  # the target entropy for one action
    assert (float(after.log_alpha.model) > 0) == wants_more_entropy

    ended, _ = sac.update(config, state, row._replace(terminal=jnp.ones(1)), jax.random.clone(key))
    assert float(metrics["critic/target"]) != pytest.approx(1.0)
    again = sac.update(config, state, row._replace(terminal=jnp.ones(1)), jax.random.clone(key))[1]
    assert float(again["critic/target"]) == 1.0  # nothing is bootstrapped
    assert jax.tree.structure(ended) == jax.tree.structure(state)


# --- Learning ---


@pytest.mark.parametrize("best", [0.6, -0.4])
def test_learns_the_best_arm(best: float, tmp_path: Path):
    actor = sac.train_online(Bandit(best), SMALL, tmp_path, steps=800, seed=0)
    assert choice(actor) == pytest.approx(best, abs=0.15)


def test_without_rewards_no_arm_is_preferred(tmp_path: Path):
    """The negative control: what is left is the entropy, so that actions spread over the whole box."""
    actor = sac.train_online(Bandit(None), SMALL, tmp_path, steps=800, seed=0)
    noise = np.random.default_rng(0).standard_normal((2000, 1), np.float32)
    actions = np.asarray(sac.sample(actor, np.zeros((2000, 1), np.float32), noise))
    assert abs(actions.mean()) < 0.2 and actions.std() > 0.4


def test_learns_to_come_back(tmp_path: Path):
    actor = sac.train_online(limited(Point()), SMALL, tmp_path, steps=1600, seed=0)
    assert choice(actor, 1.0) < -0.5 and choice(actor, -1.0) > 0.5


# --- Files ---


def broken_at(iteration: int):
    def on_iteration(done: int, actor: SquashedGaussian) -> bool:
        if done == iteration:
            raise KeyboardInterrupt
        return False

    return on_iteration


def contents(folder: Path) -> dict[str, bytes]:
    paths = [*folder.rglob("*.npz"), *folder.rglob("*.safetensors")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_a_broken_run_ends_with_the_same_bits(tmp_path: Path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = sac.train_online(limited(Point()), SMALL, whole, steps=800, seed=3)
    for iteration in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            sac.train_online(limited(Point()), SMALL, broken, steps=800, seed=3, on_iteration=broken_at(iteration))
    sac.train_online(limited(Point()), SMALL, broken, steps=800, seed=3, on_iteration=lambda done, _: done == 3)
    assert not (broken / "transitions" / "000003.npz").exists()  # it paused after the third
    actor = sac.train_online(limited(Point()), SMALL, broken, steps=800, seed=3)
    assert len(contents(whole)) == 5  # four parts and the checkpoint
    assert contents(whole) == contents(broken)
    assert all(map(np.array_equal, jax.tree.leaves(actor), jax.tree.leaves(expected)))

    other = sac.train_online(limited(Point()), SMALL, tmp_path / "other", steps=800, seed=4)
    assert not all(map(np.array_equal, jax.tree.leaves(other), jax.tree.leaves(expected)))


def test_a_longer_run_begins_with_a_shorter_one(tmp_path: Path):
    sac.train_online(limited(Point()), SMALL, tmp_path / "a", steps=400, seed=0)
    at_once = sac.train_online(limited(Point()), SMALL, tmp_path / "b", steps=800, seed=0)
    in_two = sac.train_online(limited(Point()), SMALL, tmp_path / "a", steps=800, seed=0)
    assert all(map(np.array_equal, jax.tree.leaves(at_once), jax.tree.leaves(in_two)))


def test_stored_transitions(tmp_path: Path):
    sac.train_online(limited(Point()), SMALL, tmp_path, steps=800, seed=0, on_iteration=lambda done, _: done == 2)
    first, second = sac.transitions_of(tmp_path, 2)
    assert len(first["rewards"]) == len(second["rewards"]) == 200
    assert np.flatnonzero(first["timeouts"]).tolist() == list(range(19, 200, 20))
    assert not first["terminals"].any()
    assert np.array_equal(first["next_observations"][0], first["observations"][1])
    assert not np.array_equal(first["next_observations"][19], first["observations"][20])  # another episode begins


def test_an_actor_in_a_file(tmp_path: Path):
    actor = SquashedGaussian(Spec(4, 2), 16, 3, jax.random.key(0))
    sac.save_actor(tmp_path / "actor.safetensors", actor, {"step": 5})
    loaded, information = sac.load_actor(tmp_path / "actor.safetensors")
    assert information == {"step": 5}
    assert all(map(np.array_equal, jax.tree.leaves(loaded), jax.tree.leaves(actor)))


def test_errors(tmp_path: Path):
    with pytest.raises(UserError, match="multiples"):
        sac.train_online(Bandit(0.0), SMALL, tmp_path, steps=500, seed=0)
    with pytest.raises(UserError, match=r"\[-1, 1\]"):
        sac.train_online(Bandit(0.0, bound=2.0), SMALL, tmp_path, steps=400, seed=0)
    sac.train_online(Bandit(0.0), SMALL, tmp_path, steps=200, seed=0)
    with pytest.raises(UserError, match="another seed"):
        sac.train_online(Bandit(0.0), SMALL, tmp_path, steps=400, seed=1)
    with pytest.raises(UserError, match="another environment"):
        sac.train_online(limited(Point()), SMALL, tmp_path, steps=400, seed=0)
    (tmp_path / "transitions" / "000000.npz").write_bytes(b"half")
    with pytest.raises(UserError, match="damaged"):
        sac.train_online(Bandit(0.0), SMALL, tmp_path, steps=400, seed=0)
    with pytest.raises(UserError, match="no such checkpoint"):
        sac.load_actor(tmp_path / "none.safetensors")
