"""BEAR against numbers recorded from D4RL's program: 40 and 5 updates, an action after each (landed/README.md)."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import bear
from diffcps.networks.squashed import SquashedGaussian
from diffcps.rl.divergence import Kernel
from diffcps.types import Metrics, Real
from tests.conftest import Arrays, load_golden
from tests.golden.replay import SPEC, Networks, after, batches_of, recorded, replay, state_with
from tests.golden.weights import distance, ensemble, mlp, vae_from_golden

pytestmark = pytest.mark.usefixtures("quick_compilation")

RECORDINGS: dict[Kernel, str] = {"laplacian": "landed/bear_40_updates", "gaussian": "landed/bear_gaussian_5_updates"}
UPDATES: dict[Kernel, int] = {"laplacian": 40, "gaussian": 5}
NETWORKS = ("vae", "critic", "target_critic", "actor", "multiplier")
TOLERANCE = 1e-6
"""Of parameters; they agree to 2e-7."""
LOG_ALPHA_TOLERANCE = 1e-5
"""Of itself: Adam's bias correction keeps log alpha 6.4e-6 of itself behind at every update."""
DEPARTURES = {"min_weight": (0.74, "critic"), "kl_weight": (0.51, "vae"), "mmd_threshold": (0.051, "multiplier")}
"""Field -> a value next to the program's, and a part that shows it."""


def config_of(kernel: Kernel) -> bear.Config:
    warm_up = int(load_golden(RECORDINGS[kernel])["settings/warm_up"])
    return bear.Config(width=32, vae_width=40, batch_size=16, warm_up_updates=warm_up, mmd_kernel=kernel)


def network(kernel: Kernel, prefix: str) -> Any:
    arrays, (when, _, name) = load_golden(RECORDINGS[kernel]), prefix.rpartition("/")
    match name:
        case "vae":
            return vae_from_golden(arrays, prefix)
        case "multiplier":
            return jnp.asarray(arrays[f"{when}/log_alpha"][0])
        case "actor":
            layers = (f"{prefix}/fc0", f"{prefix}/fc1", (f"{prefix}/last_fc", f"{prefix}/last_fc_log_std"))
            policy = eqx.filter_eval_shape(SquashedGaussian, SPEC, 32, 2, jax.random.key(0))
            return eqx.tree_at(lambda policy: policy.network, policy, mlp(arrays, layers, jax.nn.relu))
    first, second = (f"{when}/{name.replace('critic', f'q{j}')}" for j in (1, 2))
    layers = ([f"{q}/{layer}" for layer in ("fc0", "fc1", "last_fc")] for q in (first, second))
    return ensemble(*(mlp(arrays, of_one, jax.nn.relu) for of_one in layers))


def draws_of(arrays: Arrays) -> bear.Draws:
    noise, next_noise, policy_noise, latent = recorded(arrays, "steps", "vae_noise", "next_noise", "noise", "latent")
    return bear.Draws(noise, next_noise, policy_noise, jnp.clip(latent, -0.5, 0.5))


@jax.jit(static_argnames="kernel")
def updates(kernel: Kernel, changes: dict[str, Real], first: jax.Array) -> tuple[Networks, Metrics]:
    config = dataclasses.replace(config_of(kernel), **changes)
    state = state_with(bear.make(config, SPEC), **{name: network(kernel, f"before/{name}") for name in NETWORKS})
    arrays = load_golden(RECORDINGS[kernel])
    return replay(bear.make(config, SPEC), state, batches_of(arrays), draws_of(arrays), first)


@cache
def replayed(kernel: Kernel, first: int = 0, **changes: float) -> tuple[Networks, Metrics]:
    """All updates of a recording; changes of numbers share one program."""
    usual = {name: getattr(config_of(kernel), name) for name in DEPARTURES}
    return updates(kernel, jax.tree.map(jnp.float32, usual | changes), jnp.asarray(first))


both = pytest.mark.parametrize("kernel", list(RECORDINGS))


@both
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("which", ["first", "last"])
def test_parameters(kernel, name, which):
    count = 1 if which == "first" else UPDATES[kernel]
    theirs = network(kernel, f"after_{count}/{name}")
    tolerance = LOG_ALPHA_TOLERANCE * abs(float(theirs)) if name == "multiplier" else TOLERANCE
    assert distance(after(replayed(kernel)[0], count, name), theirs) < tolerance
    assert distance(network(kernel, f"before/{name}"), theirs) > 10 * tolerance


@both
def test_losses(kernel):
    arrays, (networks, metrics) = load_golden(RECORDINGS[kernel]), replayed(kernel)
    alpha = np.exp(np.append(0.0, networks["multiplier"][:-1]))
    moved_by_q = np.arange(UPDATES[kernel]) >= config_of(kernel).warm_up_updates
    policy_loss = alpha * (metrics["actor/mmd"] - 0.05) - np.where(moved_by_q, metrics["actor/q"], 0.0)
    for ours, name in (
        (policy_loss, "policy_loss"),
        (metrics["actor/mmd"], "mmd"),
        (metrics["critic/loss"], "qf_loss"),
        (metrics["vae/loss"], "vae_loss"),
    ):
        np.testing.assert_allclose(ours, arrays[f"metrics/{name}"], rtol=0, atol=1e-5, err_msg=name)
    np.testing.assert_allclose(networks["multiplier"], arrays["metrics/log_alpha"], rtol=LOG_ALPHA_TOLERANCE, atol=0)


@both
def test_action(kernel, monkeypatch):
    arrays, algorithm = load_golden(RECORDINGS[kernel]), bear.make(config_of(kernel), SPEC)
    networks = {name: network(kernel, f"after_{UPDATES[kernel]}/{name}") for name in ("actor", "critic")}
    state, observation = state_with(algorithm, **networks), jnp.asarray(arrays["act/observation"])
    monkeypatch.setattr(jax.random, "normal", lambda key, shape: jnp.asarray(arrays["act/noise"]).reshape(shape))
    action = jax.jit(algorithm.act)(state, observation, jax.random.key(0))
    np.testing.assert_allclose(action, arrays["act/action"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("field", DEPARTURES)
def test_small_departures_show(field):
    value, name = DEPARTURES[field]
    theirs = network("laplacian", f"after_40/{name}")
    tolerance = LOG_ALPHA_TOLERANCE * abs(float(theirs)) if name == "multiplier" else TOLERANCE
    ours = after(replayed("laplacian", **{field: value})[0], 40, name)
    assert distance(ours, theirs) > 3 * tolerance


def test_a_longer_warm_up_shows():
    ours = after(replayed("laplacian", first=-1)[0], 40, "actor")  # each update counted one too low
    assert distance(ours, network("laplacian", "after_40/actor")) > 10 * TOLERANCE


@both
def test_the_other_kernel_shows(kernel):
    """The MMD of the first update, by either kernel: the policy before it, the VAE after its step."""
    arrays, config = load_golden(RECORDINGS[kernel]), config_of(kernel)
    policy, vae, critic = (network(kernel, name) for name in ("before/actor", "after_1/vae", "after_1/critic"))
    batch, draws = jax.tree.map(lambda rows: rows[0], (batches_of(arrays), draws_of(arrays)))

    @jax.jit
    def divergences() -> dict[Kernel, jax.Array]:
        configs = {other: dataclasses.replace(config, mmd_kernel=other) for other in RECORDINGS}
        networks = (policy, critic, vae)
        return {other: bear.value_and_divergence(*networks, batch, draws, configs[other])[1] for other in RECORDINGS}

    for other, divergence in divergences().items():
        error = abs(float(divergence) - arrays["metrics/mmd"][0])
        assert (error < 1e-5) if other == kernel else (error > 1e-3)


# --- Initial weights ---


def test_initial_weights_follow_the_law_of_the_program():
    state = jax.jit(bear.make(bear.Config(width=64, depth=2, vae_width=64), SPEC).init)(jax.random.key(0))
    policy, critics, targets = state.actor.model.network, state.critic.model.networks, state.target_critic.networks
    for network, head in ((policy, 1e-3), (critics, 3e-3), (targets, 3e-3)):
        *hidden, last = network.layers
        for layer in hidden:
            assert np.all(layer.bias == np.float32(0.1))
            within(layer.weight, 64**-0.5)  # fan_out is 64 in all of them, fan_in is not
        within(last.weight, head)
        assert np.max(np.abs(last.bias)) <= head and np.unique(last.bias).size == last.bias.size
    within(state.vae.model.encoder.layers[0].weight, 8**-0.5)  # 1/sqrt(fan_in)
    assert not np.array_equal(critics.layers[0].weight, targets.layers[0].weight)
    first, second = critics.layers[0].weight
    assert not np.array_equal(first, second)


def within(weight: jax.Array, bound: float) -> None:
    """Uniform in +-bound: at least 64 numbers, of which the largest is beyond 0.9 bound but with probability 0.9^64."""
    assert weight.size >= 64
    assert 0.9 * bound < np.max(np.abs(weight)) <= bound
