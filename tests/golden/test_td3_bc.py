"""TD3+BC against numbers recorded from the authors' program: 40 updates and one action (landed/README.md)."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import td3_bc
from diffcps.networks.gaussian import Deterministic
from diffcps.types import Metrics, Real
from tests.conftest import load_golden
from tests.golden.replay import SPEC, Networks, after, batches_of, recorded, replay, state_with
from tests.golden.weights import distance, ensemble, mlp

pytestmark = pytest.mark.usefixtures("quick_compilation")

ARRAYS = load_golden("landed/td3_bc_40_updates")
CONFIG = td3_bc.Config(width=32, batch_size=16)
TOLERANCE = 1e-6
"""Of parameters; they agree to 2e-7."""


def network(prefix: str) -> Any:
    if prefix.endswith("critic"):
        layers = ([f"{prefix}/l{i}" for i in of_one] for of_one in ((1, 2, 3), (4, 5, 6)))
        return ensemble(*(mlp(ARRAYS, of_one, jax.nn.relu) for of_one in layers))
    policy = eqx.filter_eval_shape(Deterministic, SPEC, (32, 32), jax.random.key(0))
    layers = mlp(ARRAYS, [f"{prefix}/l{i}" for i in (1, 2, 3)], jax.nn.relu)
    return eqx.tree_at(lambda policy: policy.network, policy, layers)


@jax.jit
def updates(changes: dict[str, Real]) -> tuple[Networks, Metrics]:
    config = dataclasses.replace(CONFIG, **changes)
    names = ("actor", "target_actor", "critic", "target_critic")
    state = state_with(td3_bc.make(config, SPEC), **{name: network(f"before/{name}") for name in names})
    draws = td3_bc.Draws(*recorded(ARRAYS, "steps", "eps"))
    # The program counts from 1: its first update does not move the policy.
    return replay(td3_bc.make(config, SPEC), state, batches_of(ARRAYS), draws, first=1)


@cache
def forty(**changes: float) -> tuple[Networks, Metrics]:
    """The 40 updates; all changes share one program."""
    usual = {
        name: getattr(CONFIG, name) for name in ("q_weight", "policy_noise", "noise_clip", "target_rate", "discount")
    }
    return updates(jax.tree.map(jnp.float32, usual | changes))


@pytest.mark.parametrize(
    ("count", "name"),
    [(1, "critic"), (1, "target_critic")]
    + [(count, name) for count in (2, 40) for name in ("actor", "critic", "target_actor", "target_critic")],
)
def test_parameters(count, name):
    assert distance(after(forty()[0], count, name), network(f"after_{count}/{name}")) < TOLERANCE
    if (count, name) != (1, "target_critic"):  # which rests
        assert distance(network(f"before/{name}"), network(f"after_{count}/{name}")) > 100 * TOLERANCE


def test_losses():
    metrics = forty()[1]
    np.testing.assert_allclose(metrics["critic/loss"], ARRAYS["metrics/critic_loss"], rtol=0, atol=1e-5)
    actor_loss = CONFIG.q_weight * metrics["actor/q_loss"] + metrics["actor/bc_loss"]
    np.testing.assert_allclose(actor_loss, ARRAYS["metrics/actor_loss"], rtol=0, atol=2e-5)
    assert np.isnan(actor_loss).sum() == 20


def test_action():
    policy = network("after_40/actor")
    action = jax.jit(td3_bc.make(CONFIG, SPEC).act)
    state = state_with(td3_bc.make(CONFIG, SPEC), actor=policy)
    ours = action(state, jnp.asarray(ARRAYS["act/observation"]), jax.random.key(0))
    np.testing.assert_allclose(ours, ARRAYS["act/action"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"q_weight": 2.51}, "actor"),
        ({"policy_noise": 0.21}, "critic"),
        ({"noise_clip": 0.45}, "critic"),
        ({"target_rate": 0.0051}, "target_critic"),
    ],
    ids=str,
)
def test_small_departures_show_in_parameters(change, name):
    assert distance(after(forty(**change)[0], 40, name), network(f"after_40/{name}")) > 3 * TOLERANCE


def test_another_discount_shows_in_the_critics_loss():
    loss = forty(discount=0.989)[1]["critic/loss"]
    assert np.max(np.abs(loss - ARRAYS["metrics/critic_loss"])) > 1e-4
