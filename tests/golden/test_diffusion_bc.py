"""Diffusion BC against numbers recorded from the authors' program: 40 updates (landed/README.md)."""

from __future__ import annotations

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import diffusion_bc
from diffcps.policies.diffusion import BCDraws
from diffcps.types import Metrics, Real, Transition
from tests.conftest import load_golden
from tests.golden.replay import SPEC, Networks, after, recorded, replay, state_with
from tests.golden.weights import denoiser_from_golden, distance

pytestmark = pytest.mark.usefixtures("quick_compilation")

ARRAYS = load_golden("landed/diffusion_bc_40_updates")
CONFIG = diffusion_bc.Config(width=32, batch_size=16)
TOLERANCE = 2e-6
"""Of parameters; they agree to 5e-7."""


@jax.jit
def updates(rate: Real, eps_scale: Real) -> tuple[Networks, Metrics]:
    config = dataclasses.replace(CONFIG, learning_rate=rate)
    observation, action = recorded(ARRAYS, "batch", "observation", "action")
    unread = jnp.zeros(action.shape[:2])
    batches = Transition(observation, action, unread, observation, unread)
    t, eps = recorded(ARRAYS, "steps", "t", "eps")
    draws = BCDraws(t, eps_scale * eps)
    state = state_with(diffusion_bc.make(config, SPEC), actor=denoiser_from_golden(ARRAYS, "before/actor"))
    return replay(diffusion_bc.make(config, SPEC), state, batches, draws)


@cache
def forty(rate: float = 3e-4, eps_scale: float = 1.0) -> tuple[Networks, Metrics]:
    return updates(jnp.float32(rate), jnp.float32(eps_scale))


@pytest.mark.parametrize("count", [1, 40])
def test_parameters(count):
    theirs = denoiser_from_golden(ARRAYS, f"after_{count}/actor")
    assert distance(after(forty()[0], count, "actor"), theirs) < TOLERANCE
    assert distance(denoiser_from_golden(ARRAYS, "before/actor"), theirs) > 100 * TOLERANCE


def test_losses():
    np.testing.assert_allclose(forty()[1]["actor/bc_loss"], ARRAYS["metrics/bc_loss"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("change", [{"rate": 3.01e-4}, {"eps_scale": 1.001}], ids=str)
def test_small_departures_show(change):
    theirs = denoiser_from_golden(ARRAYS, "after_40/actor")
    assert distance(after(forty(**change)[0], 40, "actor"), theirs) > 10 * TOLERANCE
