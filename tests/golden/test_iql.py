"""IQL against numbers recorded from its authors' program: one update in pieces, and forty (classic/README.md)."""

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

from diffcps.algorithms import iql
from diffcps.networks.critic import VNetwork
from diffcps.networks.gaussian import Gaussian
from diffcps.rl.bellman import td_loss
from diffcps.rl.regression import expectile_loss, value_loss
from diffcps.types import Metrics, Real, Transition
from tests.conftest import load_golden
from tests.golden.replay import SPEC, Networks, after, recorded, replay, state_with
from tests.golden.weights import Arrays, distance, ensemble, mlp

pytestmark = pytest.mark.usefixtures("quick_compilation")

ONE, FORTY = load_golden("classic/iql_original"), load_golden("classic/iql_original_40_updates")
CONFIG = iql.Config(width=32, batch_size=16, actor_decay_updates=50)
TOLERANCE = 1e-5
"""Of parameters, and of losses in units of their size where that is above 1."""
NAMES = ("value", "actor", "critic", "target_critic")


def network(arrays: Arrays, group: str, name: str) -> Any:
    relu = jax.nn.relu
    if name == "value":
        value = eqx.filter_eval_shape(VNetwork, SPEC, (32, 32), jax.random.key(0))
        return eqx.tree_at(lambda value: value.network, value, mlp(arrays, [f"{group}/v/{i}" for i in range(3)], relu))
    if name.startswith("actor"):
        policy = eqx.filter_eval_shape(Gaussian, SPEC, (32, 32), jax.random.key(0), tanh_mean=True)
        layers = mlp(arrays, [f"{group}/{name}/{i}" for i in range(3)], relu)
        log_std = jnp.asarray(arrays[f"{group}/{name}/log_std"])
        return eqx.tree_at(lambda policy: (policy.network, policy.log_std), policy, (layers, log_std))
    prefix = "target_q" if name == "target_critic" else "q"
    return ensemble(*(mlp(arrays, [f"{group}/{prefix}{j}/{i}" for i in range(3)], relu) for j in (1, 2)))


def close(ours: Any, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=TOLERANCE, atol=TOLERANCE)


# --- One update, piece by piece ---

BATCH = Transition(*recorded(ONE, "batch", *Transition._fields))
BEFORE = {name: network(ONE, "before", name) for name in NAMES}
NEW_VALUE = network(ONE, "after", "value")


def test_value_before_its_step():
    advantage = iql.advantage(BEFORE["value"], BEFORE["target_critic"], BATCH)
    close(advantage, ONE["value/advantage"])
    loss, v = iql.value_loss(BEFORE["value"], BEFORE["target_critic"], BATCH, CONFIG.expectile)
    close(loss, ONE["value/loss"])
    close(v, ONE["value/v"])
    # Negative control: the online critics have another minimum.
    assert np.abs(iql.advantage(BEFORE["value"], BEFORE["critic"], BATCH) - advantage).max() > 0.1


def test_policy_with_the_value_after_its_step():
    close(iql.advantage(NEW_VALUE, BEFORE["target_critic"], BATCH), ONE["actor/advantage"])
    close(-BEFORE["actor"].log_prob(BATCH.observation, BATCH.action), ONE["actor/negative_log_prob"])
    loss, weight = iql.policy_loss(BEFORE["actor"], NEW_VALUE, BEFORE["target_critic"], BATCH, CONFIG)
    close(loss, ONE["actor/loss"])
    close(weight, ONE["actor/weight"].mean())
    assert (ONE["actor/weight"] == CONFIG.max_weight).sum() == 1
    # Negative controls: V before its step, and no cap.
    old, _ = iql.policy_loss(BEFORE["actor"], BEFORE["value"], BEFORE["target_critic"], BATCH, CONFIG)
    uncapped = dataclasses.replace(CONFIG, max_weight=float("inf"))
    free, _ = iql.policy_loss(BEFORE["actor"], NEW_VALUE, BEFORE["target_critic"], BATCH, uncapped)
    assert all(abs(other / loss - 1) > 10 * TOLERANCE for other in (old, free))


def test_critics_with_the_value_after_its_step():
    target = iql.critic_target(NEW_VALUE, BATCH, CONFIG.discount)
    close(target, ONE["critic/target"])
    q = BEFORE["critic"](BATCH.observation, BATCH.action)
    close(q, np.stack([ONE["critic/q1"], ONE["critic/q2"]]))
    close(td_loss(q, target), ONE["critic/loss"])  # the sum of both errors
    assert np.abs(iql.critic_target(BEFORE["value"], BATCH, CONFIG.discount) - target).max() > 1e-4


def test_the_log_std_is_clipped_and_has_no_gradient_outside():
    for log_std, of_mean in zip(ONE["bounds/log_std"], ONE["bounds/log_prob_of_the_mean"], strict=True):
        policy = eqx.tree_at(lambda policy: policy.log_std, BEFORE["actor"], jnp.asarray(log_std))
        close(policy.log_prob(BATCH.observation[0], policy.mean(BATCH.observation[0])), of_mean)
    first, last = FORTY["before/actor/log_std"], FORTY["after/actor/log_std"]
    assert ((first > 2.0) == (first == last)).all() and (first > 2.0).any()


# --- Forty updates ---


def replayed(changes: dict[str, Real]) -> tuple[Networks, Metrics]:
    config = dataclasses.replace(CONFIG, **changes)
    state = state_with(iql.make(config, SPEC), **{name: network(FORTY, "before", name) for name in NAMES})
    batches = Transition(*recorded(FORTY, "steps", *Transition._fields))
    return replay(iql.make(config, SPEC), state, batches, ())


updates = jax.jit(replayed)
TRACED = ("expectile", "inverse_temperature", "max_weight", "discount", "target_rate", "actor_learning_rate")


@cache
def forty(**changes: float) -> tuple[Networks, Metrics]:
    """The 40 updates; all changes share one program."""
    usual = {name: getattr(CONFIG, name) for name in TRACED}
    return updates(jax.tree.map(jnp.float32, usual | changes))


@pytest.mark.parametrize("name", NAMES)
def test_parameters(name):
    theirs = network(FORTY, "after", name)
    assert distance(after(forty()[0], 40, name), theirs) < TOLERANCE
    assert distance(network(FORTY, "before", name), theirs) > 100 * TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_parameters_after_one_update(name):
    assert distance(after(forty()[0], 1, name), network(ONE, "after", name)) < TOLERANCE


@pytest.mark.parametrize(
    ("ours", "theirs"), [("value/loss", "value_loss"), ("critic/loss", "q_loss"), ("actor/loss", "actor_loss")]
)
def test_losses(ours, theirs):
    close(forty()[1][ours], FORTY[f"metrics/{theirs}"])


def test_a_constant_rate():
    constant = dataclasses.replace(CONFIG, actor_decay_updates=0)
    state = state_with(iql.make(constant, SPEC), **{name: network(FORTY, "before", name) for name in NAMES})
    batches = Transition(*recorded(FORTY, "steps", *Transition._fields))
    networks, metrics = jax.jit(lambda state: replay(iql.make(constant, SPEC), state, batches, ()))(state)
    theirs = network(FORTY, "after", "actor_constant_rate")
    assert distance(after(networks, 40, "actor"), theirs) < TOLERANCE
    close(metrics["actor/loss"], FORTY["metrics/actor_constant_rate_loss"])
    assert distance(theirs, network(FORTY, "after", "actor")) > 100 * TOLERANCE  # negative control


def test_action():
    state = state_with(iql.make(CONFIG, SPEC), actor=BEFORE["actor"])
    action = iql.make(CONFIG, SPEC).act(state, jnp.asarray(ONE["act/observation"]), jax.random.key(0))
    close(action, ONE["act/action"])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"expectile": 0.71}, "value"),
        ({"inverse_temperature": 3.1}, "actor"),
        ({"max_weight": 90.0}, "actor"),
        ({"discount": 0.98}, "critic"),
        ({"target_rate": 0.006}, "target_critic"),
        ({"actor_learning_rate": 3.1e-4}, "actor"),
    ],
    ids=str,
)
def test_small_departures_show_in_parameters(change, name):
    assert distance(after(forty(**change)[0], 40, name), network(FORTY, "after", name)) > 3 * TOLERANCE


def of_the_mean(value, critic, batch: Transition, expectile: Real) -> tuple[jax.Array, jax.Array]:
    v = value(batch.observation)
    return expectile_loss(critic(batch.observation, batch.action).mean(0) - v, expectile), v


def of_the_other_half(value, critic, batch: Transition, expectile: Real) -> tuple[jax.Array, jax.Array]:
    return value_loss(value, critic, batch, 1.0 - expectile)


def without_ends(value, batch: Transition, discount: Real) -> jax.Array:
    return batch.reward + discount * value(batch.next_observation)


@pytest.mark.parametrize(
    ("function", "other", "name"),
    [
        ("value_loss", of_the_mean, "value"),
        ("value_loss", of_the_other_half, "value"),
        ("critic_target", without_ends, "critic"),
    ],
)
def test_other_equations_show(function: str, other: Callable[..., Any], name: str, monkeypatch):
    monkeypatch.setattr(iql, function, other)
    usual = {field: jnp.float32(getattr(CONFIG, field)) for field in TRACED}
    networks, _ = jax.jit(lambda changes: replayed(changes))(usual)
    assert distance(after(networks, 40, name), network(FORTY, "after", name)) > 100 * TOLERANCE
