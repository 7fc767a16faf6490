"""Diffusion-QL against numbers recorded from the authors' program: 40 updates; 3 with max-Q backup; one action."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import diffusion_ql
from diffcps.policies import diffusion
from diffcps.types import Metrics, Real
from tests.conftest import Arrays, load_golden
from tests.golden.replay import SPEC, Networks, after, batches_of, recorded, replay, state_with
from tests.golden.weights import critic_from_golden, denoiser_from_golden, distance

pytestmark = pytest.mark.usefixtures("quick_compilation")

PLAIN, MAX_Q = load_golden("landed/diffusion_ql_40_updates"), load_golden("landed/diffusion_ql_max_q_3_updates")
CONFIG = diffusion_ql.Config(q_weight=2.0, width=32, batch_size=16, max_grad_norm=1.0, ema_start=10)
NETWORKS = ("actor", "target_actor", "critic", "target_critic")
TOLERANCE = 1e-6
"""Of parameters; they agree to 2e-7."""


def network(arrays: Arrays, prefix: str) -> Any:
    return (denoiser_from_golden if prefix.endswith("actor") else critic_from_golden)(arrays, prefix)


@jax.jit(static_argnames="max_q_backup")
def updates(max_q_backup: bool, changes: dict[str, Real]) -> tuple[Networks, Metrics]:
    arrays = MAX_Q if max_q_backup else PLAIN
    config = dataclasses.replace(CONFIG, max_q_backup=max_q_backup, **changes)
    networks = {name: network(arrays, f"before/{name}") for name in NETWORKS}
    state = state_with(diffusion_ql.make(config, SPEC), **networks)
    draws = diffusion.Draws(*recorded(arrays, "steps", "next_noise", "t", "eps", "noise", "coin_first"))
    return replay(diffusion_ql.make(config, SPEC), state, batches_of(arrays), draws)


@cache
def replayed(max_q_backup: bool = False, **changes: float) -> tuple[Networks, Metrics]:
    """All updates of a recording; changes of numbers share one program."""
    usual = {"ema_rate": CONFIG.ema_rate, "q_weight": CONFIG.q_weight}
    return updates(max_q_backup, jax.tree.map(jnp.float32, usual | changes))


def test_the_recorded_settings_are_ours():
    fields = ("num_steps", "q_weight", "discount", "target_rate", "max_grad_norm", "ema_start", "ema_every", "ema_rate")
    np.testing.assert_allclose(
        PLAIN["settings/T_eta_discount_tau_clip_emastart_emaevery_emarate_lr"],
        [getattr(CONFIG, field) for field in (*fields, "actor_learning_rate")],
        rtol=1e-6,
    )


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("count", [1, 40])
def test_parameters(count, name):
    assert distance(after(replayed()[0], count, name), network(PLAIN, f"after_{count}/{name}")) < TOLERANCE
    moved = distance(network(PLAIN, f"before/{name}"), network(PLAIN, f"after_{count}/{name}"))
    assert moved > 100 * TOLERANCE or (count, name) == (1, "target_actor")  # which rests


@pytest.mark.parametrize("name", ["actor", "critic"])
def test_parameters_with_max_q_backup(name):
    theirs = network(MAX_Q, f"after_3/{name}")
    assert distance(after(replayed(max_q_backup=True)[0], 3, name), theirs) < TOLERANCE
    assert distance(network(MAX_Q, f"before/{name}"), theirs) > 100 * TOLERANCE


@pytest.mark.parametrize("max_q_backup", [False, True])
def test_losses(max_q_backup):
    arrays, metrics = MAX_Q if max_q_backup else PLAIN, replayed(max_q_backup)[1]
    actor_loss = metrics["actor/bc_loss"] + CONFIG.q_weight * metrics["actor/q_loss"]
    for ours, name, tolerance in (
        (metrics["actor/bc_loss"], "bc_loss", 1e-5),
        (metrics["actor/q_loss"], "ql_loss", 5e-5),  # a quotient by small numbers
        (actor_loss, "actor_loss", 1e-4),
        (metrics["critic/loss"], "critic_loss", 1e-5),
    ):
        np.testing.assert_allclose(ours, arrays[f"metrics/{name}"], rtol=0, atol=tolerance, err_msg=name)


def test_clipping_took_part():
    # Otherwise the clip norm of the recording would go untested.
    assert np.max(replayed()[1]["critic/grad_norm"]) > CONFIG.max_grad_norm


def test_action(monkeypatch):
    """The probabilities of 50 candidates, and the one that the program drew."""
    found = []

    def choose(candidates, q, choice, temperature, key):
        assert choice == "softmax_q"
        found.append((candidates, jax.nn.softmax(q / temperature)))
        return candidates[..., 0, :]

    monkeypatch.setattr(diffusion, "draw_noise", lambda *_: jnp.asarray(MAX_Q["act/noise"]))
    monkeypatch.setattr(diffusion, "choose_candidate", choose)
    algorithm, observation = diffusion_ql.make(CONFIG, SPEC), jnp.asarray(MAX_Q["act/observation"])

    @jax.jit
    def chosen_from(networks: Networks, observation: jax.Array) -> tuple[jax.Array, jax.Array]:
        algorithm.act(state_with(algorithm, **networks), observation, jax.random.key(0))
        return found.pop()

    networks = {name: after(replayed(True)[0], 3, name) for name in NETWORKS}
    candidates, probability = chosen_from(networks, observation)
    np.testing.assert_allclose(probability, MAX_Q["act/probability"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(candidates[MAX_Q["act/index"][0]], MAX_Q["act/action"], rtol=0, atol=1e-5)
    # Negative control: the critics themselves in the place of their targets.
    _, by_critics = chosen_from({**networks, "target_critic": networks["critic"]}, observation)
    assert np.max(np.abs(by_critics - MAX_Q["act/probability"])) > 1e-3


@pytest.mark.parametrize(
    ("change", "name"), [({"ema_rate": 0.006}, "target_actor"), ({"q_weight": 2.01}, "actor")], ids=str
)
def test_small_departures_show(change, name):
    ours = after(replayed(**change)[0], 40, name)
    assert distance(ours, network(PLAIN, f"after_40/{name}")) > 10 * TOLERANCE
