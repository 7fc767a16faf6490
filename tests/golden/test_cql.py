"""CQL against numbers recorded from CORL's program: one update by piece, forty, and acting (classic/README.md)."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import cql
from diffcps.networks.squashed import ScaledSquashedGaussian, squashed_log_prob
from diffcps.rl.improvement import repeated
from diffcps.types import Metrics, Real, Transition
from tests.conftest import Arrays, load_golden
from tests.golden.replay import SPEC, Networks, after, recorded, replay, state_with
from tests.golden.weights import distance, ensemble, mlp

pytestmark = pytest.mark.usefixtures("quick_compilation")

ONE, FORTY = load_golden("classic/cql"), load_golden("classic/cql_40_updates")
TOLERANCE = 1e-5
NETWORKS = ("actor", "critic", "target_critic", "temperature", "multiplier")
USUAL = cql.Config(width=32, batch_size=16, actor_learning_rate=1e-4, temperature_learning_rate=1e-4, gap=7.0)
LAGRANGE = dataclasses.replace(USUAL, lagrange=True)
VARIANTS = {
    "plain": USUAL,
    "lagrange": LAGRANGE,
    "max_backup": dataclasses.replace(LAGRANGE, max_q_backup=True, difference_floor=-5.0),
    "no_importance": dataclasses.replace(USUAL, importance_sampling=False),
}
TRACED = ("conservative_weight", "gap", "discount", "target_rate", "entropy_per_dimension", "softmax_temperature")


def network(arrays: Arrays, prefix: str) -> Any:
    """What is stored under `prefix`, such as `before/critic`."""
    group, _, name = prefix.rpartition("/")
    match name:
        case "temperature":
            return jnp.asarray(arrays[f"{group}/scalar/log_alpha"])
        case "multiplier":
            return jnp.asarray(arrays[f"{group}/scalar/log_alpha_prime"])
        case "actor":
            policy = eqx.filter_eval_shape(ScaledSquashedGaussian, SPEC, (32,) * 3, jax.random.key(0))
            numbers = (jnp.asarray(arrays[f"{prefix}/log_std_{name}"]) for name in ("multiplier", "offset"))
            return eqx.tree_at(
                lambda policy: (policy.network, policy.log_std_scale, policy.log_std_offset),
                policy,
                (mlp(arrays, [f"{prefix}/{i}" for i in range(4)], jax.nn.relu), *numbers),
            )
    names = (prefix.replace("critic", f"q{j}") for j in (1, 2))
    return ensemble(*(mlp(arrays, [f"{name}/{i}" for i in range(4)], jax.nn.relu) for name in names))


def before() -> Networks:
    return {name: network(ONE, f"before/{name}") for name in NETWORKS}


def draws_of(arrays: Arrays, group: str, backup: bool = False) -> cql.Draws:
    noise, several = recorded(arrays, group, "noise", "next_noise_max_backup" if backup else "next_noise")
    if not backup:
        several = several[..., None, :]
    proposed = recorded(arrays, group, "cql_uniform", "cql_next_noise", "cql_current_noise")
    return cql.Draws(noise[..., None, :], several, *proposed)


def inputs(which: str, variant: str) -> tuple[Transition, cql.Draws]:
    """Batches and draws, a row for each update."""
    if which == "forty":
        return Transition(*recorded(FORTY, "steps", *Transition._fields)), draws_of(FORTY, "steps")
    batch, draws = (
        Transition(*recorded(ONE, "batch", *Transition._fields)),
        draws_of(ONE, "draws", variant == "max_backup"),
    )
    return jax.tree.map(lambda leaf: leaf[None], (batch, draws))


def updates(which: str, variant: str, changes: dict[str, Real], networks: Networks) -> tuple[Networks, Metrics]:
    config = dataclasses.replace(VARIANTS[variant], **changes)
    state = state_with(cql.make(config, SPEC), **networks)
    return replay(cql.make(config, SPEC), state, *inputs(which, variant))


compiled = jax.jit(updates, static_argnums=(0, 1))


def run(function, which: str, variant: str, **changes: float) -> tuple[Networks, Metrics]:
    """One update or forty; changes of numbers share one program."""
    usual = {name: getattr(VARIANTS[variant], name) for name in TRACED}
    return function(which, variant, jax.tree.map(jnp.float32, usual | changes), before())


@cache
def replayed(which: str, variant: str) -> tuple[Networks, Metrics]:
    return run(compiled, which, variant)


def patched(variant: str) -> tuple[Networks, Metrics]:
    """Forty updates of the module as it is now."""
    return run(jax.jit(lambda *arguments: updates(*arguments), static_argnums=(0, 1)), "forty", variant)


def relative(ours: Any, theirs: Any) -> float:
    """Largest difference, relative where the recorded number is above 1."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float(np.max(np.abs(ours - theirs) / np.maximum(1.0, np.abs(theirs))))


# --- One update, piece by piece ---


def pieces(variant: str, networks: Networks) -> dict[str, jax.Array]:
    """What an update works out, under the names of the record."""
    config = VARIANTS[variant]
    batch, draws = jax.tree.map(lambda leaf: leaf[0], inputs("one", variant))
    policy, critic, target_critic, log_alpha, nu = (networks[name] for name in NETWORKS)
    action, log_prob = policy.sample(batch.observation, draws.noise)
    policy_loss, (log_pi, q_min) = cql.policy_loss(policy, critic, jnp.exp(log_alpha), batch, draws)
    next_action, _ = policy.sample(batch.next_observation, draws.next_noise)
    q_next = target_critic(repeated(batch.next_observation, next_action.shape[1]), next_action)
    target = cql.critic_target(policy, target_critic, batch, draws, config.discount)
    proposals, multiplier = cql.propose(policy, batch, draws), cql.multiplier_of(nu, config)
    gap = config.gap if config.lagrange else 0.0
    loss, (_, q, difference) = cql.conservative_loss(critic, batch, target, proposals, multiplier, gap, config)
    z = cql.summands(critic, q, batch, proposals, config.importance_sampling)
    penalty = multiplier * config.conservative_weight * (difference - gap)
    own = slice(20, 30), slice(10, 20)
    return {
        "entropy/new_action": action[:, 0],
        "entropy/log_pi": log_pi,
        "entropy/log_prob": log_prob,
        "entropy/alpha": jnp.exp(log_alpha),
        "entropy/loss": cql.temperature_loss(log_alpha, log_pi, -3.0),
        "policy/q_min": q_min,
        "policy/loss": policy_loss,
        "critic/next_action": next_action if config.max_q_backup else next_action[:, 0],
        "critic/q_next_of_all": q_next,
        "critic/q_next": jnp.max(jnp.min(q_next, axis=0), axis=-1),
        "critic/target": target,
        "critic/loss": loss,
        "conservative/current_action": proposals.action[:, own[0]],
        "conservative/current_log_pi": proposals.log_density[:, own[0]],
        "conservative/next_action": proposals.action[:, own[1]],
        "conservative/next_log_pi": proposals.log_density[:, own[1]],
        "lagrange/alpha_prime": multiplier,
        "lagrange/loss": cql.multiplier_loss(nu, difference, config),
        **{f"critic/q{j + 1}": q[j] for j in range(2)},
        **{f"critic/td_loss_{j + 1}": jnp.mean(jnp.square(q[j] - target)) for j in range(2)},
        **{f"conservative/logits_{j + 1}": z[j] for j in range(2)},
        **{f"conservative/logsumexp_{j + 1}": jax.nn.logsumexp(z[j], axis=-1) for j in range(2)},
        **{f"conservative/difference_{j + 1}": difference[j] for j in range(2)},
        **{f"conservative/loss_{j + 1}": penalty[j] for j in range(2)},
    }


compiled_pieces = jax.jit(pieces, static_argnums=0)


@cache
def found(variant: str) -> dict[str, jax.Array]:
    return compiled_pieces(variant, before())


def names_of(variant: str) -> list[str]:
    prefix = f"{variant}/"
    return [name.removeprefix(prefix) for name in ONE if name.startswith(prefix) and "/after/" not in name]


def test_the_record_has_what_is_compared():
    assert min(len(names_of(variant)) for variant in ("all", *VARIANTS)) >= 11
    assert {"lagrange/loss", "critic/loss", "conservative/logits_2"} <= set(names_of("lagrange"))


@pytest.mark.parametrize(("variant", "name"), [(variant, name) for variant in VARIANTS for name in names_of(variant)])
def test_pieces(variant, name):
    theirs = ONE[f"{variant}/{name}"]
    if name.startswith("conservative/logits") and variant == "no_importance":  # theirs: random, data, next, current
        theirs = np.concatenate([theirs[:, :10], theirs[:, 11:], theirs[:, 10:11]], axis=1)
    assert relative(found(variant)[name], theirs) < TOLERANCE


@pytest.mark.parametrize("name", names_of("all"))
def test_pieces_that_the_variants_share(name):
    for variant in VARIANTS:
        assert relative(found(variant)[name], ONE[f"all/{name}"]) < TOLERANCE


# --- Parameters and losses after one and after forty updates ---


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_after_one_update(variant, name):
    theirs = network(ONE, f"{'all' if name == 'actor' else variant}/after/{name}")
    assert distance(after(replayed("one", variant)[0], 1, name), theirs) < TOLERANCE
    if name != "multiplier" or VARIANTS[variant].lagrange:
        assert distance(before()[name], theirs) > 5 * TOLERANCE


@pytest.mark.parametrize("variant", ["plain", "lagrange"])
@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_after_forty_updates(variant, name):
    theirs = network(FORTY, f"{variant}/after/{name}")
    assert distance(after(replayed("forty", variant)[0], 40, name), theirs) < TOLERANCE
    if name != "multiplier" or VARIANTS[variant].lagrange:
        assert distance(before()[name], theirs) > 100 * TOLERANCE


def losses(variant: str, metrics: Metrics) -> dict[str, jax.Array]:
    """What the program logs, from what we report; of the two critics, the sum."""
    config, alpha = VARIANTS[variant], metrics["actor/temperature"]
    gap = config.gap if config.lagrange else 0.0
    penalty = 2.0 * metrics["dual/multiplier"] * config.conservative_weight * (metrics["critic/difference"] - gap)
    found = {
        "policy_loss": metrics["actor/loss"],
        "alpha_loss": jnp.log(alpha) * (metrics["actor/entropy"] + 3.0),
        "alpha": alpha,
        "qf_loss": metrics["critic/loss"],
        "cql_min_qf_loss": penalty,
    }
    of_lagrange = {"alpha_prime": metrics["dual/multiplier"], "alpha_prime_loss": -0.5 * penalty}
    return found | (of_lagrange if config.lagrange else {})


def logged(variant: str, name: str) -> np.ndarray:
    names = [name.replace("qf", f"qf{j}") for j in (1, 2)] if "qf" in name else [name]
    return np.stack([FORTY[f"{variant}/metrics/{each}"] for each in names]).sum(axis=0)


@pytest.mark.parametrize("variant", ["plain", "lagrange"])
def test_losses(variant):
    ours = losses(variant, replayed("forty", variant)[1])
    errors = {name: relative(loss, logged(variant, name)) for name, loss in ours.items()}
    assert max(errors.values()) < TOLERANCE, errors


# --- Departures that must show: the order of the steps ---


def moved(*names: str) -> dict[str, jax.Array]:
    """Pieces of the Lagrange form with some of the networks as they are after the update."""
    group = {"actor": "all"}
    later = {name: network(ONE, f"{group.get(name, 'lagrange')}/after/{name}") for name in names}
    return compiled_pieces("lagrange", before() | later)


@pytest.mark.parametrize(
    ("later", "name"),
    [
        ("critic", "all/policy/loss"),
        ("temperature", "all/policy/loss"),
        ("actor", "lagrange/critic/target"),
        ("target_critic", "lagrange/critic/target"),
        ("actor", "all/conservative/current_action"),
        ("multiplier", "lagrange/critic/loss"),
        ("critic", "lagrange/lagrange/loss"),
    ],
)
def test_a_network_after_its_step_shows(later, name):
    piece = name.split("/", 1)[1]
    assert relative(found("lagrange")[piece], ONE[name]) < TOLERANCE < 0.5 * relative(moved(later)[piece], ONE[name])


# --- In the losses of one update ---


def test_alpha_in_the_place_of_its_logarithm_shows():
    loss = -jnp.exp(-0.5) * jnp.mean(found("plain")["entropy/log_pi"] - 3.0)
    assert relative(loss, ONE["all/entropy/loss"]) > 100 * TOLERANCE


def test_the_maximum_before_the_minimum_shows():
    theirs = ONE["max_backup/critic/q_next"]
    q_next = found("max_backup")["critic/q_next_of_all"]
    assert relative(jnp.min(jnp.max(q_next, axis=-1), axis=0), theirs) > 100 * TOLERANCE


def test_a_cut_of_the_mean_shows():
    soft_maximum, q = (ONE[name] for name in ("max_backup/conservative/logsumexp_1", "all/critic/q1"))
    assert np.mean(soft_maximum - q < 5.0) == 0.25  # a cut that acts
    uncut = max(5.0, float(np.mean(soft_maximum - q)))
    assert relative(uncut, ONE["max_backup/conservative/difference_1"]) > 100 * TOLERANCE


def test_the_number_of_actions_is_not_divided_by():
    divided = found("plain")["conservative/difference_1"] - jnp.log(30.0)
    assert relative(divided, ONE["plain/conservative/difference_1"]) > 100 * TOLERANCE


# --- In forty updates ---


def departure(variant: str, name: str, networks: Networks) -> float:
    return distance(after(networks, 40, name), network(FORTY, f"{variant}/after/{name}"))


@pytest.mark.parametrize(
    ("variant", "changes", "name"),
    [
        ("plain", {"conservative_weight": 9.9}, "critic"),
        ("plain", {"softmax_temperature": 0.98}, "critic"),
        ("plain", {"discount": 0.98}, "critic"),
        ("plain", {"target_rate": 0.0051}, "target_critic"),
        ("lagrange", {"gap": 3.5}, "multiplier"),
        ("plain", {"entropy_per_dimension": -0.5}, "temperature"),
    ],
    ids=str,
)
def test_small_departures_show(variant, changes, name):
    assert departure(variant, name, run(compiled, "forty", variant, **changes)[0]) > 3 * TOLERANCE


def test_entropy_in_the_target_shows(monkeypatch):
    usual = cql.critic_target

    def critic_target(policy, critic, batch, draws, discount):
        _, log_prob = policy.sample(batch.next_observation, draws.next_noise)
        entropy = -jnp.exp(-0.5) * log_prob[:, 0]
        return usual(policy, critic, batch, draws, discount) + discount * (1.0 - batch.terminal) * entropy

    monkeypatch.setattr(cql, "critic_target", critic_target)
    assert departure("plain", "critic", patched("plain")[0]) > 100 * TOLERANCE


def test_actions_of_the_next_state_at_the_next_state_show(monkeypatch):
    usual = cql.summands

    def summands(critic, q, batch, proposals, importance_sampling):
        at_next = batch._replace(observation=batch.next_observation)
        here, there = (usual(critic, q, each, proposals, importance_sampling) for each in (batch, at_next))
        return jnp.concatenate([here[..., :4], there[..., 4:8], here[..., 8:]], axis=-1)

    monkeypatch.setattr(cql, "summands", summands)
    assert departure("plain", "critic", patched("plain")[0]) > 100 * TOLERANCE


def test_a_weight_inside_the_bracket_shows(monkeypatch):
    def multiplier_loss(nu, difference, config):
        return -0.5 * jnp.sum(jnp.exp(nu) * (config.conservative_weight * difference - config.gap))

    monkeypatch.setattr(cql, "multiplier_loss", multiplier_loss)
    assert departure("lagrange", "multiplier", patched("lagrange")[0]) > 100 * TOLERANCE


# --- The policy ---


def test_action():
    algorithm = cql.make(USUAL, SPEC)
    state = state_with(algorithm, actor=before()["actor"])
    action = algorithm.act(state, jnp.asarray(ONE["act/observation"]), jax.random.key(0))
    assert relative(action, ONE["act/action"]) < TOLERANCE


def test_density_of_the_squashed_gaussian():
    mean, log_std, noise = recorded(ONE, "squash", "mean", "log_std", "noise")
    action = jnp.tanh(mean + jnp.exp(log_std) * noise)
    assert relative(action, ONE["squash/action"]) < TOLERANCE
    assert relative(squashed_log_prob(noise, mean, log_std), ONE["squash/log_prob"]) < TOLERANCE
    # Negative control: a bound on 1 - tanh^2, as other programs have it, shows where the tanh saturates.
    density = -0.5 * noise**2 - log_std - 0.5 * jnp.log(2.0 * jnp.pi)
    bounded = jnp.sum(density - jnp.log(1.0 - action**2 + 1e-6), axis=-1)
    assert relative(bounded, ONE["squash/log_prob"]) > 100 * TOLERANCE


def test_bounds_of_the_log_std():
    density = []
    for log_std in ONE["bounds/log_std"]:
        policy = jax.tree.map(jnp.zeros_like, before()["actor"])
        bias = jnp.concatenate([jnp.zeros(3), jnp.asarray(log_std)])
        where = lambda policy: (policy.network.layers[-1].bias, policy.log_std_scale)  # noqa: E731
        policy = eqx.tree_at(where, policy, (bias, jnp.asarray(1.0)))
        density.append(policy.sample(jnp.zeros(5), jnp.zeros((1, 3)))[1][0])
    assert relative(np.array(density), ONE["bounds/log_prob_of_zero"]) < TOLERANCE


def test_initial_weights_follow_the_law_of_the_program():
    state = jax.jit(cql.make(cql.Config(width=64), SPEC).init)(jax.random.key(0))
    for index, layer in enumerate(state.critic.model.networks.layers):
        gain = 1e-4 if index == 3 else 2.0  # squares of 0.01 and sqrt 2
        for weight, bias in zip(np.asarray(layer.weight), layer.bias, strict=True):
            small = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
            np.testing.assert_allclose(small, gain * np.eye(len(small)), atol=1e-4 * gain)
            assert np.all(bias == 0.0)
    first, second = state.critic.model.networks.layers[1].weight
    assert not np.allclose(first, second)
    *hidden, last = state.actor.model.network.layers
    bound = 0.01 * np.sqrt(6 / (64 + 6))
    assert np.all(last.bias == 0.0) and 0.9 * bound < np.max(np.abs(last.weight)) <= bound
    for layer, fan_in in zip(hidden, (5, 64, 64), strict=True):
        assert 0.9 * fan_in**-0.5 < np.max(np.abs(layer.weight)) <= fan_in**-0.5
        assert np.any(layer.bias != 0.0)
    numbers = state.actor.model.log_std_scale, state.actor.model.log_std_offset, state.temperature.model
    np.testing.assert_allclose([*numbers, state.multiplier.model], [1.0, -1.0, 0.0, 1.0], rtol=1e-6)
