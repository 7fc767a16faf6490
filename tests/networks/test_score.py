"""The U-shaped score and the energy against a plain form; their numbers are compared in tests/golden/test_qgpo.py."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.networks.score import EnergyNetwork, ScoreUNet
from diffcps.types import Spec

pytestmark = pytest.mark.usefixtures("quick_compilation")

SPEC = Spec(observation_size=4, action_size=2)
SCORE = eqx.filter_jit(ScoreUNet)(SPEC, (8, 4), 6, 8, jax.random.key(0))
ENERGY = eqx.filter_jit(EnergyNetwork)(SPEC, (8, 8), 6, jax.random.key(1))


@jax.jit
def inputs() -> tuple[jax.Array, jax.Array, jax.Array]:
    """x_t of five actions for each of three observations, the observations, and features of four calls."""
    key_x, key_observation, key_features = jax.random.split(jax.random.key(2), 3)
    x, observation = jax.random.normal(key_x, (3, 5, 2)), jax.random.normal(key_observation, (3, 4))
    return x, observation, jax.random.normal(key_features, (4, 6))


def test_the_widths_of_the_u():
    def sizes(layer) -> tuple[int, int]:
        return layer.weight.shape

    score = eqx.filter_eval_shape(ScoreUNet, SPEC, (12, 6, 4), 6, 8, jax.random.key(0))
    assert [sizes(block.first) for block in score.down] == [(2, 12), (12, 6), (6, 4)]
    assert sizes(score.middle.first) == (4, 4) and score.middle.skip is None
    assert [sizes(block.first) for block in score.up] == [(8, 6), (12, 12)]
    assert [block.skip is None for block in score.up] == [False, True]  # x itself where the widths are equal
    assert sizes(score.last) == (24, 2)


@eqx.filter_jit
def by_chain(score: ScoreUNet, x: jax.Array, observation: jax.Array, features: jax.Array) -> jax.Array:
    h = score.given(observation[:, None], features)
    return jax.lax.map(lambda call: h(x, call), jnp.arange(4))


@eqx.filter_jit
def plainly(score: ScoreUNet, x: jax.Array, observation: jax.Array, features: jax.Array) -> jax.Array:
    shape = (4, *x.shape[:-1])
    x, observation, features = (
        jnp.broadcast_to(array, (*shape, array.shape[-1]))
        for array in (x, observation[:, None], features[:, None, None])
    )
    return score(x, observation, features)


def test_a_chain_equals_the_plain_form():
    x, observation, features = inputs()
    np.testing.assert_allclose(
        by_chain(SCORE, x, observation, features), plainly(SCORE, x, observation, features), atol=1e-5
    )
    # Negative control: calls, observations and actions are told apart.
    h = np.asarray(by_chain(SCORE, x, observation, features))
    for axis in range(3):
        assert np.abs(np.diff(h, axis=axis)).max(axis=-1).min() > 1e-6


def test_the_energy_takes_one_observation_for_many_actions():
    x, observation, features = inputs()
    energy = ENERGY(x, observation[:, None], features[:3, None])
    assert energy.shape == (3, 5)
    for row, column in ((0, 0), (2, 3)):
        alone = ENERGY(x[row, column], observation[row], features[row])
        np.testing.assert_allclose(energy[row, column], alone, rtol=1e-5, atol=1e-6)
