"""BC against numbers recorded from CORL's program: 40 updates on normalised observations, one action."""

from __future__ import annotations

import dataclasses
from functools import cache

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import bc
from diffcps.networks.gaussian import Deterministic
from diffcps.types import Metrics, Real, Transition
from tests.conftest import load_golden
from tests.golden.replay import SPEC, Networks, after, recorded, replay, state_with
from tests.golden.weights import distance, mlp

pytestmark = pytest.mark.usefixtures("quick_compilation")

ARRAYS = load_golden("landed/bc_40_updates")
CONFIG = bc.Config(width=32, batch_size=16)
TOLERANCE = 1e-6
"""Of parameters; they agree to 9e-8."""


def policy(prefix: str) -> Deterministic:
    shapes = eqx.filter_eval_shape(Deterministic, SPEC, (32, 32), jax.random.key(0))
    layers = mlp(ARRAYS, [f"{prefix}/actor/net.{i}" for i in (0, 2, 4)], jax.nn.relu)
    return eqx.tree_at(lambda policy: policy.network, shapes, layers)


@jax.jit
def updates(rate: Real) -> tuple[Networks, Metrics]:
    algorithm = bc.make(dataclasses.replace(CONFIG, learning_rate=rate), SPEC)
    observation, action = recorded(ARRAYS, "batch", "observation", "action")
    unread = jnp.zeros(action.shape[:2])
    batches = Transition(observation, action, unread, observation, unread)
    return replay(algorithm, state_with(algorithm, actor=policy("before")), batches, ())


@cache
def forty(rate: float = 3e-4) -> tuple[Networks, Metrics]:
    return updates(jnp.float32(rate))


@pytest.mark.parametrize("count", [1, 40])
def test_parameters(count):
    theirs = policy(f"after_{count}")
    assert distance(after(forty()[0], count, "actor"), theirs) < TOLERANCE
    assert distance(policy("before"), theirs) > 100 * TOLERANCE
    assert distance(after(forty(3.01e-4)[0], count, "actor"), theirs) > TOLERANCE / 2  # negative control


def test_losses():
    np.testing.assert_allclose(forty()[1]["actor/bc_loss"], ARRAYS["metrics/actor_loss"], rtol=0, atol=1e-6)


def test_action():
    algorithm = bc.make(CONFIG, SPEC)
    state = state_with(algorithm, actor=policy("after_40"))
    action = jax.jit(algorithm.act)(state, jnp.asarray(ARRAYS["act/observation"]), jax.random.key(0))
    np.testing.assert_allclose(action, ARRAYS["act/action"], rtol=0, atol=TOLERANCE)
