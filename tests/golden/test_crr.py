"""CRR against numbers recorded from d3rlpy's program: one update by piece, forty, and acting (classic/README.md)."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps import optim
from diffcps.algorithms import crr
from diffcps.networks.critic import Critic
from diffcps.networks.gaussian import ConditionalGaussian
from diffcps.types import Metrics, Real, Spec, Transition
from tests.conftest import load_golden
from tests.golden.replay import SPEC, Networks, after, recorded, replay, state_with
from tests.golden.weights import distance, ensemble, mlp

pytestmark = pytest.mark.usefixtures("quick_compilation")

ONE, FORTY = load_golden("classic/crr"), load_golden("classic/crr_40_updates")
TOLERANCE = 1e-5
NETWORKS = ("actor", "target_actor", "critic", "target_critic")
TRACED = ("temperature", "max_weight", "target_rate", "discount")


class Variant(NamedTuple):
    """What of the config shapes the program."""

    filter: crr.Filter
    baseline: crr.Baseline
    target_update: Literal["soft", "hard"] = "soft"


RECORDED = {
    "binary_mean_soft": Variant("binary", "mean"),
    "exp_mean_soft": Variant("exp", "mean"),
    "exp_max_hard": Variant("exp", "max", "hard"),
}
FILTERS = {
    f"{filter}_{baseline}": Variant(filter, baseline) for filter in ("binary", "exp") for baseline in ("mean", "max")
}


def config_of(variant: Variant) -> crr.Config:
    return crr.Config(width=32, batch_size=16, target_interval=7, **variant._asdict())


def network(arrays, prefix: str) -> Any:
    """A policy, or a critic of one network, as it is stored under `prefix`."""
    if "critic" in prefix:
        q = prefix.replace("critic", "q1")
        return ensemble(mlp(arrays, [f"{q}/{i}" for i in range(3)], jax.nn.relu))
    policy = eqx.filter_eval_shape(ConditionalGaussian, SPEC, (32, 32), jax.random.key(0))
    layers = mlp(arrays, [f"{prefix}/0", f"{prefix}/1", (f"{prefix}/mean", f"{prefix}/log_std")], jax.nn.relu)
    return eqx.tree_at(lambda policy: policy.network, policy, layers)


def before() -> Networks:
    return {name: network(ONE, f"before/{name}") for name in NETWORKS}


def updates(
    variant: Variant, changes: dict[str, Real], networks: Networks, first: jax.Array
) -> tuple[Networks, Metrics]:
    config = dataclasses.replace(config_of(variant), **changes)
    batches = Transition(*recorded(FORTY, "steps", *Transition._fields))
    draws = crr.Draws(*recorded(FORTY, "steps", *crr.Draws._fields))
    return replay(crr.make(config, SPEC), state_with(crr.make(config, SPEC), **networks), batches, draws, first)


compiled = jax.jit(updates, static_argnums=0)


def compiled_anew():
    """The same of the module as it is now, patched."""
    return jax.jit(lambda *arguments: updates(*arguments), static_argnums=0)


def run(function, variant: Variant, networks: Networks | None = None, first: int = 0, **changes: float):
    """The forty updates; changes of numbers and of networks share one program."""
    usual = {name: getattr(config_of(variant), name) for name in TRACED}
    values = jax.tree.map(jnp.float32, usual | changes)
    return function(variant, values, before() | (networks or {}), jnp.asarray(first))


@cache
def forty(variant: Variant) -> tuple[Networks, Metrics]:
    return run(compiled, variant)


def relative(ours: Any, theirs: Any) -> float:
    """Largest difference, relative where the recorded number is above 1."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.max(np.abs(ours - theirs) / np.maximum(1.0, np.abs(theirs))))


# --- One update, piece by piece ---

BATCH = Transition(*recorded(ONE, "batch", *Transition._fields))
DRAWS = crr.Draws(*recorded(ONE, "draws", *crr.Draws._fields))


@jax.jit
def pieces(networks: Networks, batch: Transition, draws: crr.Draws) -> dict[str, jax.Array]:
    """What an update works out, with the critic that is given."""
    policy, target_policy, critic, target_critic = (networks[name] for name in NETWORKS)
    config = config_of(FILTERS["binary_mean"])
    next_action = crr.sample_actions(target_policy, batch.next_observation, draws.next_noise[:, None, :])
    action = crr.sample_actions(policy, batch.observation, draws.noise)
    target = crr.critic_target(target_policy, target_critic, batch, draws, config)
    loss, q = crr.critic_loss(critic, batch, target)
    found = {
        "critic/next_action": next_action[:, 0],
        "critic/q_next": crr.q_of(target_critic, batch.next_observation, next_action)[:, 0],
        "critic/target": target,
        "critic/q1": q[0],
        "critic/loss": loss,
        "actor/sampled_action": action,
        "actor/q_of_samples": crr.q_of(critic, batch.observation, action),
        "actor/log_prob": policy.log_prob(batch.observation, batch.action),
    }
    for name, variant in FILTERS.items():
        advantage = crr.advantage(policy, critic, batch, draws, variant.baseline)
        weight = crr.weights(advantage, config_of(variant))
        found |= {f"{name}/advantage": advantage, f"{name}/weight": weight}
        found |= {f"{name}/loss": crr.weighted_cloning_loss(policy, batch, weight)}
    return found


@cache
def found(which: str) -> dict[str, jax.Array]:
    """Pieces with the critic before or after its step."""
    critic = network(ONE, "before/critic" if which == "before" else "all/after/critic")
    return pieces(before() | {"critic": critic}, BATCH, DRAWS)


@pytest.mark.parametrize("name", ["next_action", "q_next", "target", "q1", "loss"])
def test_pieces_of_the_critics_step(name):
    assert relative(found("before")[f"critic/{name}"], ONE[f"all/critic/{name}"]) < TOLERANCE


@pytest.mark.parametrize("name", ["sampled_action", "q_of_samples", "log_prob"])
def test_pieces_of_the_policys_step(name):
    assert relative(found("after")[f"actor/{name}"], ONE[f"all/actor/{name}"]) < TOLERANCE


@pytest.mark.parametrize("name", ["advantage", "weight", "loss"])
@pytest.mark.parametrize("variant", FILTERS)
def test_filters(variant, name):
    theirs = ONE[f"{variant}/actor/{name}"]
    assert relative(found("after")[f"{variant}/{name}"], theirs) < TOLERANCE
    if name == "advantage":  # negative control: the critic before its step
        assert relative(found("before")[f"{variant}/advantage"], theirs) > 100 * TOLERANCE


def test_the_advantage_asks_the_policy_and_the_target_its_target():
    # Negative controls: each with the other's policy.
    networks = before() | {"critic": network(ONE, "all/after/critic")}
    networks |= {"actor": networks["target_actor"], "target_actor": networks["actor"]}
    swapped = pieces(networks, BATCH, DRAWS)
    assert relative(swapped["exp_mean/advantage"], ONE["exp_mean/actor/advantage"]) > 100 * TOLERANCE
    assert relative(swapped["critic/target"], ONE["all/critic/target"]) > 100 * TOLERANCE


def test_the_density_has_no_term_for_the_tanh():
    # Negative control: the density of a squashed Gaussian would have one.
    squashed = found("after")["actor/log_prob"] - jnp.sum(jnp.log1p(-0.999 * jnp.square(BATCH.action)), axis=-1)
    assert relative(squashed, ONE["all/actor/log_prob"]) > 100 * TOLERANCE


def test_weights_are_not_normalised():
    policy, weight = before()["actor"], jnp.asarray(ONE["exp_mean/actor/weight"])
    loss = jax.jit(crr.weighted_cloning_loss)(policy, BATCH, weight / jnp.mean(weight))
    assert relative(loss, ONE["exp_mean/actor/loss"]) > 100 * TOLERANCE


def test_bounds_of_the_log_std():
    density = []
    for log_std in ONE["bounds/log_std"]:
        policy = jax.tree.map(jnp.zeros_like, before()["actor"])
        bias = jnp.concatenate([jnp.zeros(3), jnp.asarray(log_std)])
        policy = eqx.tree_at(lambda policy: policy.network.layers[-1].bias, policy, bias)
        density.append(policy.log_prob(jnp.zeros(5), jnp.zeros(3)))
    assert relative(np.array(density), ONE["bounds/log_prob_of_the_mean"]) < TOLERANCE


# --- Parameters and losses after one and after forty updates ---


@pytest.mark.parametrize("variant", FILTERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_after_one_update(variant, name):
    group = "all" if name.endswith("critic") else variant
    theirs = network(ONE, f"{group}/after/{name}")
    assert distance(after(forty(FILTERS[variant])[0], 1, name), theirs) < TOLERANCE
    assert distance(before()[name], theirs) > 10 * TOLERANCE


@pytest.mark.parametrize("variant", RECORDED)
@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_after_forty_updates(variant, name):
    theirs = network(FORTY, f"{variant}/after/{name}")
    assert distance(after(forty(RECORDED[variant])[0], 40, name), theirs) < TOLERANCE
    assert distance(before()[name], theirs) > 100 * TOLERANCE


@pytest.mark.parametrize("variant", RECORDED)
@pytest.mark.parametrize("name", ["critic", "actor"])
def test_losses(variant, name):
    loss = forty(RECORDED[variant])[1][f"{name}/loss"]
    assert relative(loss, FORTY[f"{variant}/metrics/{name}_loss"]) < TOLERANCE


# --- Departures that must show ---


def departure(variant: str, name: str, networks: Networks) -> float:
    """How far a network lies from the record after forty updates."""
    return distance(after(networks, 40, name), network(FORTY, f"{variant}/after/{name}"))


@pytest.mark.parametrize(
    ("variant", "changes", "name"),
    [
        ("exp_mean_soft", {"temperature": 1.01}, "actor"),
        ("exp_mean_soft", {"max_weight": float("inf")}, "actor"),
        ("binary_mean_soft", {"target_rate": 0.0051}, "target_critic"),
        ("binary_mean_soft", {"target_rate": 0.0051}, "target_actor"),
        ("binary_mean_soft", {"discount": 0.98}, "critic"),
        ("exp_max_hard", {"first": 1}, "critic"),  # the first copy after six updates more
        ("exp_max_hard", {"first": 1}, "target_actor"),
    ],
    ids=str,
)
def test_small_departures_show(variant, changes, name):
    networks, _ = run(compiled, RECORDED[variant], **changes)
    assert departure(variant, name, networks) > 3 * TOLERANCE


def test_targets_of_the_online_policy_show():
    networks, metrics = run(compiled, RECORDED["binary_mean_soft"], {"target_actor": before()["actor"]})
    assert departure("binary_mean_soft", "critic", networks) > 10 * TOLERANCE
    theirs = FORTY["binary_mean_soft/metrics/critic_loss"]
    assert relative(metrics["critic/loss"], theirs) > 100 * TOLERANCE


def without_clip(policy, observation, noise):
    return policy.sample(observation, noise)


def test_samples_that_are_not_clipped_show(monkeypatch):
    monkeypatch.setattr(crr, "sample_actions", without_clip)
    networks, _ = run(compiled_anew(), RECORDED["exp_mean_soft"])
    assert departure("exp_mean_soft", "actor", networks) > 10 * TOLERANCE
    assert departure("exp_mean_soft", "critic", networks) > 10 * TOLERANCE


def test_an_advantage_of_the_critic_before_its_step_shows(monkeypatch):
    usual, old = crr.advantage, {}

    def minimise(optimiser, trained, loss, *arguments):
        if loss is crr.critic_loss:
            old["critic"] = trained.model
        return optim.minimise(optimiser, trained, loss, *arguments)

    def advantage(policy, critic, batch, draws, baseline):
        return usual(policy, old["critic"], batch, draws, baseline)

    monkeypatch.setattr(crr, "minimise", minimise)
    monkeypatch.setattr(crr, "advantage", advantage)
    networks, _ = run(compiled_anew(), RECORDED["exp_mean_soft"])
    assert departure("exp_mean_soft", "actor", networks) > 10 * TOLERANCE


# --- Acting ---


def test_action(monkeypatch):
    observation = jnp.asarray(ONE["act/observation"])
    algorithm = crr.make(config_of(FILTERS["binary_mean"]), SPEC)
    asked: dict[str, jax.Array] = {}

    def categorical(key, logits, axis):
        asked["probability"] = jax.nn.softmax(logits, axis)
        return jnp.asarray(ONE["act/chosen"])

    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.asarray(ONE["act/noise"]).reshape(shape))
    monkeypatch.setattr(jax.random, "categorical", categorical)
    state = state_with(algorithm, actor=before()["actor"], critic=before()["critic"])
    action = algorithm.act(state, observation, jax.random.key(0))
    assert relative(action, ONE["act/action"]) < TOLERANCE
    assert relative(asked["probability"], ONE["act/probability"]) < TOLERANCE


# --- What the records do not hold ---


def test_the_binary_filter_is_strict():
    weight = crr.weights(jnp.array([-1.0, 0.0, 1e-6]), crr.Config(filter="binary"))
    assert weight.tolist() == [0.0, 0.0, 1.0]


def test_two_critics_by_hand():
    # Q_1 = 1 + a_1 and Q_2 = 3 + 3 a_1, and the policy plays 0: the target has the minimum there, 1. The advantage of
    # a_1 = 1/2 has the means, (1.5 + 4.5) / 2 - (1 + 3) / 2.
    critic = jax.tree.map(jnp.zeros_like, Critic(Spec(3, 2), (), jax.random.key(0), jax.nn.relu))
    weight = jnp.zeros((2, 5, 1)).at[:, 3, 0].set(jnp.array([1.0, 3.0]))
    where = lambda critic: (critic.networks.layers[0].weight, critic.networks.layers[0].bias)  # noqa: E731
    critic = eqx.tree_at(where, critic, (weight, jnp.array([[1.0], [3.0]])))
    policy = jax.tree.map(jnp.zeros_like, ConditionalGaussian(Spec(3, 2), (4,), jax.random.key(0)))
    batch = Transition(jnp.ones((2, 3)), jnp.full((2, 2), 0.5), jnp.ones(2), jnp.ones((2, 3)), jnp.array([0.0, 1.0]))
    draws = crr.Draws(jnp.zeros((2, 2)), jnp.zeros((2, 4, 2)))
    assert crr.critic_target(policy, critic, batch, draws, crr.Config(discount=0.5)).tolist() == [1.5, 1.0]
    assert crr.advantage(policy, critic, batch, draws, "max").tolist() == [1.0, 1.0]
