"""BCQ against numbers recorded from the authors' program: 40 updates and one action (landed/README.md)."""

from __future__ import annotations

import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import bcq
from diffcps.types import Metrics, Real
from tests.conftest import load_golden
from tests.golden.replay import SPEC, Networks, after, batches_of, recorded, replay, state_with
from tests.golden.weights import distance, ensemble, mlp, vae_from_golden

pytestmark = pytest.mark.usefixtures("quick_compilation")

ARRAYS = load_golden("landed/bcq_40_updates")
CONFIG = bcq.Config(width=32, second_width=24, vae_width=40, batch_size=16)
NETWORKS = ("vae", "critic", "target_critic", "actor", "target_actor")
TOLERANCE = 1e-5
"""Of parameters; they agree to 2e-6."""
DEPARTURES = {
    "kl_weight": (0.51, "vae"),
    "min_weight": (0.74, "critic"),
    "latent_bound": (0.51, "critic"),
    "max_perturbation": (0.051, "actor"),
    "discount": (0.989, "critic"),
    "target_rate": (0.0051, "target_critic"),
}
"""Field -> a value next to the program's, and a network that shows it."""


def network(prefix: str) -> Any:
    if prefix.endswith("vae"):
        return vae_from_golden(ARRAYS, prefix)
    first, second = ([f"{prefix}/l{i}" for i in layers] for layers in ((1, 2, 3), (4, 5, 6)))
    if prefix.endswith("actor"):
        return mlp(ARRAYS, first, jax.nn.relu)
    return ensemble(mlp(ARRAYS, first, jax.nn.relu), mlp(ARRAYS, second, jax.nn.relu))


@jax.jit
def updates(changes: dict[str, Real]) -> tuple[Networks, Metrics]:
    config = dataclasses.replace(CONFIG, **changes)
    state = state_with(bcq.make(config, SPEC), **{name: network(f"before/{name}") for name in NETWORKS})
    noise, next_latent, latent = recorded(ARRAYS, "steps", "vae_noise", "latent_next", "latent")
    bound = config.latent_bound
    draws = bcq.Draws(noise, jnp.clip(next_latent, -bound, bound), jnp.clip(latent, -bound, bound))
    return replay(bcq.make(config, SPEC), state, batches_of(ARRAYS), draws)


@cache
def forty(**changes: float) -> tuple[Networks, Metrics]:
    """The 40 updates; all changes share one program."""
    usual = {name: getattr(CONFIG, name) for name in DEPARTURES}
    return updates(jax.tree.map(jnp.float32, usual | changes))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("count", [1, 40])
def test_parameters(count, name):
    assert distance(after(forty()[0], count, name), network(f"after_{count}/{name}")) < TOLERANCE
    assert distance(network(f"before/{name}"), network(f"after_{count}/{name}")) > 10 * TOLERANCE


def test_losses():
    metrics = forty()[1]
    for name in ("vae", "critic", "actor"):
        theirs = ARRAYS[f"metrics/{name}_loss"]
        np.testing.assert_allclose(metrics[f"{name}/loss"], theirs, rtol=0, atol=2e-5, err_msg=name)


def test_action(monkeypatch):
    candidates = jnp.asarray(ARRAYS["act/latent"])
    monkeypatch.setattr(bcq, "draw_latent", lambda key, axes, size, bound: jnp.clip(candidates, -bound, bound))
    algorithm = bcq.make(CONFIG, SPEC)
    state = state_with(algorithm, **{name: network(f"after_40/{name}") for name in ("vae", "critic", "actor")})
    action = jax.jit(algorithm.act)(state, jnp.asarray(ARRAYS["act/observation"]), jax.random.key(0))
    np.testing.assert_allclose(action, ARRAYS["act/action"], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("field", DEPARTURES)
def test_small_departures_show(field):
    value, name = DEPARTURES[field]
    theirs = network(f"after_40/{name}")
    assert distance(after(forty(**{field: value})[0], 40, name), theirs) > 10 * TOLERANCE
