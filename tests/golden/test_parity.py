"""DiffCPS against numbers recorded from the authors' program, update by update (README.md beside this file).

What their `actor_loss` contains, as found by comparing: -E[Q] / E|Q| + lambda L_c with the clamped lambda from before
the step, and without the constant -lambda kappa of eq. 17, which does not move the policy. `Lambda` is the value after
the step.
"""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import diffcps
from diffcps.diffusion.sampler import sample_ancestral
from diffcps.diffusion.schedule import make_schedule
from diffcps.optim import Trained
from diffcps.policies.diffusion import Draws
from diffcps.rl.bellman import clipped_double_q_target, td_loss
from diffcps.rl.improvement import normalised_q_loss
from diffcps.types import Metrics, Spec, Transition, UpdateIndex
from tests.conftest import load_golden
from tests.golden.weights import critic_from_golden, denoiser_from_golden, distance

pytestmark = pytest.mark.usefixtures("quick_compilation")

TOLERANCE = 1e-5
"""Ours and theirs stay within 1e-6 of each other; the negative controls are off by more than 1e-5."""

SPEC = Spec(observation_size=5, action_size=3)
CONFIG = diffcps.Config(kappa=0.05, width=32, batch_size=16, max_grad_norm=1.0, policy_interval=2, ema_start=10)
NETWORKS = ("actor", "target_actor", "critic", "target_critic")


def network(arrays, name: str) -> Any:
    return (denoiser_from_golden if name.endswith("actor") else critic_from_golden)(arrays, name)


def networks_of(state: diffcps.State) -> dict[str, Any]:
    return {
        "actor": state.actor.model,
        "target_actor": state.target_actor,
        "critic": state.critic.model,
        "target_critic": state.target_critic,
    }


def state_from_golden(arrays) -> diffcps.State:
    """The authors' weights before the first update, optimisers without memory, lambda = 1."""
    shapes = jax.eval_shape(diffcps.make(CONFIG, SPEC).init, jax.random.key(0))
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return diffcps.State(
        actor=Trained(network(arrays, "actor"), state.actor.optimiser_state),
        target_actor=network(arrays, "target_actor"),
        critic=Trained(network(arrays, "critic"), state.critic.optimiser_state),
        target_critic=network(arrays, "target_critic"),
        multiplier=Trained(jnp.float32(1.0), state.multiplier.optimiser_state),
    )


def update_with(state, batch: Transition, draws: Draws, index, ema_rate=CONFIG.ema_rate):
    """One update with the given numbers in place of drawn ones."""
    algorithm = diffcps.make(dataclasses.replace(CONFIG, ema_rate=ema_rate), SPEC)
    return algorithm.stages[0].update(state, batch, draws, UpdateIndex(index))


# --- One update, piece by piece ---


@pytest.fixture
def reference():
    return load_golden("diffcps_reference")


def chain(reference, name: str) -> jax.Array:
    """x_T, then the noises in the order of use but for the last one, which is not used."""
    return jnp.concatenate([reference[f"{name}/x_T"][None], reference[f"{name}/z_in_order_of_use"][:-1]])


def batch_of(reference) -> Transition:
    observation, action, reward, next_observation, not_done = (
        jnp.asarray(reference[f"batch/{name}"])
        for name in ("observation", "action", "reward", "next_observation", "not_done")
    )
    return Transition(observation, action, reward[:, 0], next_observation, 1.0 - not_done[:, 0])


@cache
def one_update(coin: bool) -> tuple[diffcps.State, Metrics]:
    reference = load_golden("diffcps_reference")
    draws = Draws(
        next_noise=chain(reference, "sample_next"),
        t=jnp.asarray(reference["denoise/t_zero_based"], jnp.int32),
        eps=jnp.asarray(reference["denoise/noise"]),
        noise=chain(reference, "sample"),
        maximise_first=jnp.asarray(coin),
    )
    return compiled_update(state_from_golden(reference), batch_of(reference), draws, jnp.asarray(0))


compiled_update = jax.jit(update_with)


def test_critic_target_and_loss(reference):
    batch = batch_of(reference)

    def target_by(actor: str, critic: str) -> jax.Array:
        denoise = network(reference, actor).given(batch.next_observation, 5)
        action = sample_ancestral(make_schedule("vp", 5), denoise, chain(reference, "sample_next"))
        q_next = network(reference, critic)(batch.next_observation, action)
        return clipped_double_q_target(batch.reward, batch.terminal, q_next, 0.99)

    target = target_by("target_actor", "target_critic")
    np.testing.assert_allclose(target, reference["critic/target"][:, 0], rtol=0, atol=TOLERANCE)
    q = network(reference, "critic")(batch.observation, batch.action)
    np.testing.assert_allclose(td_loss(q, target), reference["critic/loss_sum_of_both"], rtol=0, atol=TOLERANCE)
    # Negative controls: the online network in the place of either target.
    for networks in (("actor", "target_critic"), ("target_actor", "critic")):
        assert np.max(np.abs(target_by(*networks) - reference["critic/target"][:, 0])) > TOLERANCE


@pytest.mark.parametrize("coin", [True, False], ids=["update_q1", "update_q2"])
def test_metrics_of_one_update(reference, coin):
    _, metrics = one_update(coin)
    recorded = "update_q1" if coin else "update_q2"
    actor_loss = metrics["actor/q_loss"] + CONFIG.multiplier_init * metrics["actor/bc_loss"]
    for ours, name in (
        (actor_loss, "actor_loss"),
        (metrics["actor/bc_loss"], "kl_loss"),
        (metrics["critic/loss"], "critic_loss"),
        (metrics["dual/multiplier"], "Lambda"),
    ):
        np.testing.assert_allclose(ours, reference[f"{recorded}/{name}"], rtol=0, atol=TOLERANCE, err_msg=name)

    # Negative controls: the other coin, and the whole of eq. 17.
    other = "update_q2" if coin else "update_q1"
    assert abs(float(actor_loss - reference[f"{other}/actor_loss"])) > 1.0
    with_bound = actor_loss - CONFIG.multiplier_init * CONFIG.kappa
    assert abs(float(with_bound - reference[f"{recorded}/actor_loss"])) > 0.04


def test_the_policy_is_improved_against_the_critic_after_its_step(reference):
    batch, (state, metrics) = batch_of(reference), one_update(True)
    denoise = network(reference, "actor").given(batch.observation, 5)
    action = sample_ancestral(make_schedule("vp", 5), denoise, chain(reference, "sample"))
    np.testing.assert_allclose(action, reference["actor/action_before_update"], rtol=0, atol=TOLERANCE)
    after = normalised_q_loss(*state.critic.model(batch.observation, action))
    before = normalised_q_loss(*network(reference, "critic")(batch.observation, action))
    np.testing.assert_allclose(metrics["actor/q_loss"], after, rtol=0, atol=TOLERANCE)
    assert abs(float(after - before)) > 1e-3  # negative control


@pytest.mark.parametrize("name", ["actor", "critic", "target_critic"])
def test_parameters_after_one_update(reference, name):
    theirs = network(reference, f"update_q1/after/{name}")
    assert distance(networks_of(one_update(True)[0])[name], theirs) < TOLERANCE
    assert distance(network(reference, name), theirs) > TOLERANCE  # negative control: it did move


def test_the_coin_reaches_the_policy(reference):
    theirs = network(reference, "update_q1/after/actor")
    assert distance(one_update(False)[0].actor.model, theirs) > TOLERANCE


def test_multiplier_after_one_update(reference):
    multiplier = one_update(True)[0].multiplier.model
    np.testing.assert_allclose(multiplier, reference["update_q1/after/lambda"], rtol=0, atol=1e-7)
    assert float(multiplier) != 1.0


def test_the_target_policy_waits(reference):
    assert distance(one_update(True)[0].target_actor, network(reference, "target_actor")) == 0.0


# --- Forty updates ---


def recorded_steps(arrays) -> tuple[Transition, Draws]:
    """Everything that entered the forty updates, along the first axis."""

    def step(name: str) -> jax.Array:
        return jnp.asarray(arrays[f"steps/{name}"])

    batch = Transition(
        observation=step("observation"),
        action=step("action"),
        reward=step("reward")[..., 0],
        next_observation=step("next_observation"),
        terminal=1.0 - step("not_done")[..., 0],
    )
    draws = Draws(
        next_noise=jnp.concatenate([step("xT_next")[:, None], step("z_next")[:, :-1]], axis=1),
        t=step("t").astype(jnp.int32),
        eps=step("noise"),
        noise=jnp.concatenate([step("xT")[:, None], step("z")[:, :-1]], axis=1),
        maximise_first=step("coin_first"),
    )
    return batch, draws


@jax.jit
def forty_updates(state, batch: Transition, draws: Draws, ema_rate):
    def body(state, inputs):
        batch, draws, index = inputs
        return update_with(state, batch, draws, index, ema_rate)

    return jax.lax.scan(body, state, (batch, draws, jnp.arange(40)))


@cache
def replay(variant: str = "recorded") -> tuple[diffcps.State, dict[str, np.ndarray]]:
    arrays = load_golden("diffcps_reference_40_updates")
    batch, draws = recorded_steps(arrays)
    ema_rate = CONFIG.ema_rate
    if variant == "one coin swapped":  # that of the last update which moves the policy
        draws = draws._replace(maximise_first=draws.maximise_first.at[38].set(~draws.maximise_first[38]))
    elif variant == "target policy at another rate":
        ema_rate = 0.006
    state, metrics = forty_updates(state_from_golden(arrays), batch, draws, jnp.asarray(ema_rate))
    return state, {name: np.asarray(values) for name, values in metrics.items()}


@pytest.fixture
def forty():
    return load_golden("diffcps_reference_40_updates")


def test_the_recorded_settings_are_ours(forty):
    config = CONFIG
    np.testing.assert_array_equal(
        forty["settings/batch_T_kappa_gradclip_policyfreq_emastart_emaevery_lr"],
        [
            config.batch_size,
            config.num_steps,
            config.kappa,
            config.max_grad_norm,
            config.policy_interval,
            config.ema_start,
            config.ema_every,
            config.actor_learning_rate,
        ],
    )


def test_metrics_of_forty_updates(forty):
    metrics = replay()[1]
    theirs = {name: forty[f"metrics_every_second_update/{name}"] for name in ("kl_loss", "critic_loss", "Lambda")}
    np.testing.assert_allclose(metrics["actor/bc_loss"][::2], theirs["kl_loss"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(metrics["critic/loss"][::2], theirs["critic_loss"], rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(metrics["dual/multiplier"][::2], theirs["Lambda"], rtol=0, atol=TOLERANCE / 10)

    before = np.append(1.0, metrics["dual/multiplier"][::2][:-1])
    actor_loss = metrics["actor/q_loss"][::2] + before * metrics["actor/bc_loss"][::2]
    recorded = forty["metrics_every_second_update/actor_loss"]
    np.testing.assert_allclose(actor_loss, recorded, rtol=1e-5, atol=TOLERANCE)


def test_the_policy_rests_on_odd_updates():
    metrics = replay()[1]
    for name in ("actor/bc_loss", "actor/q_loss", "actor/grad_norm"):
        np.testing.assert_array_equal(np.isnan(metrics[name]), np.arange(40) % 2 == 1)
    assert not np.any(np.isnan(metrics["critic/loss"]))


@pytest.mark.parametrize("name", NETWORKS)
def test_parameters_after_forty_updates(forty, name):
    theirs = network(forty, f"after/{name}")
    assert distance(networks_of(replay()[0])[name], theirs) < TOLERANCE
    assert distance(network(forty, name), theirs) > 1e-3  # negative control: all four moved


def test_multiplier_after_forty_updates(forty):
    np.testing.assert_allclose(replay()[0].multiplier.model, forty["after/lambda"], rtol=0, atol=1e-6)
    assert abs(float(forty["after/lambda"]) - 1.0) > 1e-4


@pytest.mark.parametrize(
    ("variant", "name"), [("one coin swapped", "actor"), ("target policy at another rate", "target_actor")]
)
def test_small_departures_show(forty, variant, name):
    state, _ = replay(variant)
    assert distance(networks_of(state)[name], network(forty, f"after/{name}")) > TOLERANCE


def test_clipping_took_part():
    # Otherwise the clip norm of the recording would go untested.
    assert np.nanmax(replay()[1]["critic/grad_norm"]) > CONFIG.max_grad_norm
