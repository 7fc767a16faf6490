"""AWAC against numbers recorded from CORL's program: one update piece by piece, forty updates (classic/README.md)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import awac
from diffcps.networks.gaussian import Gaussian
from diffcps.rl.bellman import td_loss
from diffcps.types import Metrics, Real, Transition
from tests.conftest import load_golden
from tests.golden.replay import SPEC, Networks, after, recorded, replay, state_with
from tests.golden.weights import Arrays, distance, ensemble, mlp

pytestmark = pytest.mark.usefixtures("quick_compilation")

ONE, FORTY = load_golden("classic/awac"), load_golden("classic/awac_40_updates")
CONFIG = awac.Config(width=32, batch_size=16)
TOLERANCE = 1e-5
"""Of parameters, and of losses in units of their size where that is above 1."""
NAMES = ("critic", "target_critic", "actor")


def network(arrays: Arrays, group: str, name: str) -> Any:
    if name.startswith("actor"):
        policy = eqx.filter_eval_shape(
            Gaussian, SPEC, (32, 32, 32), jax.random.key(0), log_std_range=awac.LOG_STD_RANGE
        )
        layers = mlp(arrays, [f"{group}/{name}/{i}" for i in range(4)], jax.nn.relu)
        log_std = jnp.asarray(arrays[f"{group}/{name}/log_std"])
        return eqx.tree_at(lambda policy: (policy.network, policy.log_std), policy, (layers, log_std))
    prefix = "target_q" if name == "target_critic" else "q"
    return ensemble(*(mlp(arrays, [f"{group}/{prefix}{j}/{i}" for i in range(4)], jax.nn.relu) for j in (1, 2)))


def close(ours: Any, theirs: np.ndarray, tolerance: float = TOLERANCE) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


# --- One update, piece by piece ---

BATCH = Transition(*recorded(ONE, "batch", *Transition._fields))
DRAWS = awac.Draws(*recorded(ONE, "draws", "next_noise", "noise"))
BEFORE = {name: network(ONE, "before", name) for name in NAMES}
NEW_CRITIC = network(ONE, "after", "critic")


def test_critics():
    next_action = awac.sampled_action(BEFORE["actor"], BATCH.next_observation, DRAWS.next_eps)
    close(next_action, ONE["critic/next_action"])
    target = awac.critic_target(BEFORE["actor"], BEFORE["target_critic"], BATCH, DRAWS, CONFIG.discount)
    close(target, ONE["critic/target"])
    close(td_loss(BEFORE["critic"](BATCH.observation, BATCH.action), target), ONE["critic/loss"])


def test_policy_with_the_critics_after_their_step():
    action = awac.sampled_action(BEFORE["actor"], BATCH.observation, DRAWS.eps)
    close(action, ONE["actor/sampled_action"])
    assert np.mean(np.abs(action) == 1.0) > 0.3  # the box cuts in earnest
    close(awac.advantage(BEFORE["actor"], NEW_CRITIC, BATCH, DRAWS), ONE["actor/advantage"])
    close(BEFORE["actor"].log_prob(BATCH.observation, BATCH.action), ONE["actor/log_prob"])
    loss, weight = awac.policy_loss(BEFORE["actor"], NEW_CRITIC, BATCH, DRAWS, CONFIG)
    close(loss, ONE["actor/loss"])
    close(weight, ONE["actor/weight"].mean())
    assert (ONE["actor/weight"] == CONFIG.max_weight).sum() == 2
    uncapped = dataclasses.replace(CONFIG, max_weight=float("inf"))
    close(awac.policy_loss(BEFORE["actor"], NEW_CRITIC, BATCH, DRAWS, uncapped)[0], ONE["actor_unclipped/loss"])


def test_the_log_std_is_clipped():
    for log_std, of_mean in zip(ONE["bounds/log_std"], ONE["bounds/log_prob_of_the_mean"], strict=True):
        policy = eqx.tree_at(lambda policy: policy.log_std, BEFORE["actor"], jnp.asarray(log_std))
        close(policy.log_prob(BATCH.observation[0], policy.mean(BATCH.observation[0])), of_mean)


# --- Forty updates ---

TRACED = ("temperature", "max_weight", "discount", "target_rate", "actor_learning_rate", "critic_learning_rate")


def replayed(changes: dict[str, Real]) -> tuple[Networks, Metrics]:
    config = dataclasses.replace(CONFIG, **changes)
    state = state_with(awac.make(config, SPEC), **{name: network(FORTY, "before", name) for name in NAMES})
    batches = Transition(*recorded(FORTY, "steps", *Transition._fields))
    draws = awac.Draws(*recorded(FORTY, "steps", "next_noise", "noise"))
    return replay(awac.make(config, SPEC), state, batches, draws)


updates = jax.jit(replayed)


def usual() -> dict[str, jax.Array]:
    return {name: jnp.float32(getattr(CONFIG, name)) for name in TRACED}


@cache
def forty(**changes: float) -> tuple[Networks, Metrics]:
    """The 40 updates; all changes share one program."""
    return updates(usual() | {name: jnp.float32(value) for name, value in changes.items()})


@pytest.mark.parametrize("name", NAMES)
def test_parameters(name):
    theirs = network(FORTY, "after", name)
    assert distance(after(forty()[0], 40, name), theirs) < TOLERANCE
    assert distance(network(FORTY, "before", name), theirs) > 100 * TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_parameters_after_one_update(name):
    assert distance(after(forty()[0], 1, name), network(ONE, "after", name)) < TOLERANCE


def test_losses():
    close(forty()[1]["critic/loss"], FORTY["metrics/critic_loss"])
    # Parameters lag by Adam's bias correction (docs/algorithms/diffcps.md, deviation 29); exp(3 A) makes more of it.
    close(forty()[1]["actor/loss"], FORTY["metrics/actor_loss"], 4 * TOLERANCE)


def test_action():
    """Ours is clipped to the box, as the environment clips the program's."""
    state = state_with(awac.make(CONFIG, SPEC), actor=BEFORE["actor"])
    action = awac.make(CONFIG, SPEC).act(state, jnp.asarray(ONE["act/observation"]), jax.random.key(0))
    close(action, np.clip(ONE["act/action_unclipped"], -1, 1))
    assert np.abs(ONE["act/action_unclipped"]).max() > 1


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"temperature": 0.34}, "actor"),
        ({"max_weight": float("inf")}, "actor"),
        ({"discount": 0.98}, "critic"),
        ({"target_rate": 0.006}, "target_critic"),
        ({"critic_learning_rate": 3.1e-4}, "critic"),
    ],
    ids=str,
)
def test_small_departures_show_in_parameters(change, name):
    assert distance(after(forty(**change)[0], 40, name), network(FORTY, "after", name)) > 3 * TOLERANCE


def softmax_weights(x: jax.Array, max_weight: Real) -> jax.Array:
    return x.size * jax.nn.softmax(x)


def target_of_s(policy, critic, batch: Transition, draws: awac.Draws, discount: Real) -> jax.Array:
    q = critic(batch.next_observation, awac.sampled_action(policy, batch.observation, draws.next_eps))
    return batch.reward + discount * (1 - batch.terminal) * q.min(0)


@pytest.mark.parametrize(
    ("function", "other", "name"),
    [
        ("sampled_action", lambda policy, observation, eps: policy.sample_with(observation, eps), "actor"),
        ("exponential_weights", softmax_weights, "actor"),
        ("critic_target", target_of_s, "critic"),
    ],
    ids=["samples not clipped", "softmax over the batch", "a' from pi(s)"],
)
def test_other_equations_show(function: str, other: Callable[..., Any], name: str, monkeypatch):
    monkeypatch.setattr(awac, function, other)
    networks, _ = jax.jit(lambda changes: replayed(changes))(usual())
    assert distance(after(networks, 40, name), network(FORTY, "after", name)) > 100 * TOLERANCE


def test_an_advantage_of_the_critics_before_their_step_shows():
    old, _ = awac.policy_loss(BEFORE["actor"], BEFORE["critic"], BATCH, DRAWS, CONFIG)
    of_targets, _ = awac.policy_loss(BEFORE["actor"], BEFORE["target_critic"], BATCH, DRAWS, CONFIG)
    assert all(abs(float(other) / ONE["actor/loss"] - 1) > 1e-3 for other in (old, of_targets))
