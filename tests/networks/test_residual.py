"""Layer normalisation and the residual noise model against numbers worked out by hand and a plain form."""

from __future__ import annotations

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.networks.norm import LayerNorm, NormedMLP
from diffcps.networks.residual import FourierFeatures, ResidualBlock, ResidualDenoiser
from diffcps.types import Spec, UserError

pytestmark = pytest.mark.usefixtures("quick_compilation")

SPEC = Spec(observation_size=4, action_size=2)
DENOISER = eqx.filter_jit(ResidualDenoiser)(SPEC, 8, 2, 6, jax.random.key(0))

# --- Layer normalisation ---


def test_layer_norm_by_hand():
    # Mean 2, variance 2 / 3 (over n, not n - 1).
    norm = eqx.tree_at(lambda n: (n.scale, n.bias), LayerNorm(3, 0.1), (jnp.array([1.0, 2.0, 3.0]), jnp.ones(3)))
    unit = 1.0 / math.sqrt(2.0 / 3.0 + 0.1)
    np.testing.assert_allclose(norm(jnp.array([1.0, 2.0, 3.0])), [1.0 - unit, 1.0, 1.0 + 3.0 * unit], rtol=1e-6)


def test_layer_norm_starts_as_the_plain_one():
    x = jax.random.normal(jax.random.key(0), (5, 64))
    y = np.asarray(LayerNorm(64)(3.0 * x - 2.0))
    np.testing.assert_allclose(y.mean(axis=-1), 0.0, atol=1e-6)
    np.testing.assert_allclose(y.std(axis=-1), 1.0, rtol=1e-5)
    assert LayerNorm(64).epsilon == 1e-6


def test_only_the_input_of_a_normed_mlp_is_normalised():
    network = NormedMLP((4, 8, 1), jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (5, 4))
    np.testing.assert_allclose(network(x), network.network(LayerNorm(4)(x)), rtol=1e-6)
    np.testing.assert_allclose(network(x), network(7.0 * x + 3.0), rtol=0, atol=1e-4)  # neither shift nor scale counts
    assert np.max(np.abs(network.network(x) - network(x))) > 0.01  # negative control


# --- Parts ---


def test_fourier_features_by_hand():
    features = eqx.tree_at(lambda f: f.frequency, FourierFeatures(4, 0.2, jax.random.key(0)), jnp.array([0.25, 0.5]))
    np.testing.assert_allclose(features(jnp.array([0.0, 1.0])), [[1, 1, 0, 0], [0, -1, 1, 0]], atol=1e-6)


def test_frequencies_have_their_std():
    frequency = FourierFeatures(40_000, 0.2, jax.random.key(0)).frequency
    # The mean square of n = 20,000 has a relative std of sqrt(2 / n) = 0.01; five of those.
    assert np.mean(np.square(frequency)) == pytest.approx(0.04, rel=0.05)


@pytest.mark.parametrize("size", [0, 7])
def test_an_odd_number_of_features_is_refused(size):
    with pytest.raises(UserError, match=f"time_size is {size}: it must be even"):
        FourierFeatures(size, 0.2, jax.random.key(0))


def test_a_block_keeps_what_comes_in_and_drops_in_its_branch_alone():
    block = ResidualBlock(8, jax.random.key(0), jax.nn.silu, 1e-6)
    x, kept = jax.random.normal(jax.random.key(1), (5, 8)), jnp.array([0.0, 2.0] * 4)
    branch = block.narrow(jax.nn.silu(block.widen(LayerNorm(8)(kept * x))))
    np.testing.assert_allclose(block(x, jnp.broadcast_to(kept, x.shape)), x + branch, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(block(x, jnp.ones_like(x)), block(x), rtol=1e-5, atol=1e-6)
    assert block.widen.weight.shape == (8, 32)
    silent = eqx.tree_at(lambda b: b.narrow, block, jax.tree.map(jnp.zeros_like, block.narrow))
    np.testing.assert_array_equal(silent(x), x)


# --- The whole ---


def plain(
    denoiser: ResidualDenoiser, xt: jax.Array, t: jax.Array, observation: jax.Array, kept: jax.Array | None
) -> jax.Array:
    """eps_theta(x_t, s, t) with one product of [x_t, s, time] for each step."""
    time = denoiser.time(denoiser.features(t.astype(jnp.float32)))
    time = jnp.broadcast_to(time, (*xt.shape[:-1], time.shape[-1]))
    hidden = denoiser.first(jnp.concatenate([xt, observation, time], axis=-1))
    for index, block in enumerate(denoiser.body.blocks):
        hidden = block(hidden, None if kept is None else kept[index])
    return denoiser.body.last(jax.nn.silu(hidden))


def given_observation(denoiser, xt, t, observation, kept):
    return denoiser.given(observation, 5, kept)(xt, t)


evaluate = eqx.filter_jit(given_observation)


@partial(jax.jit, static_argnums=1)
def make_batch(seed: int, batch: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    key_action, key_t, key_observation = jax.random.split(jax.random.key(seed), 3)
    t = jax.random.randint(key_t, batch, 0, 5)
    return jax.random.normal(key_action, (*batch, 2)), t, jax.random.normal(key_observation, (*batch, 4))


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("shared_t", [True, False])
def test_given_an_observation_equals_the_plain_form(shared_t, dropout):
    xt, t, observation = make_batch(4, (6,))
    t = jnp.asarray(3) if shared_t else t
    kept = 2.0 * jax.random.bernoulli(jax.random.key(5), 0.5, (2, 6, 8)) if dropout else None

    @eqx.filter_jit
    def value_and_gradients(function, denoiser, xt):
        # Weighting every output differently shows an exchange that a plain sum would hide.
        weight = jnp.arange(1.0, 13.0).reshape(6, 2)
        gradients = jax.grad(lambda both: jnp.sum(weight * function(*both, t, observation, kept)))((denoiser, xt))
        return jax.tree.leaves((function(denoiser, xt, t, observation, kept), gradients))

    leaves = value_and_gradients(given_observation, DENOISER, xt), value_and_gradients(plain, DENOISER, xt)
    for fast, slow in zip(*leaves, strict=True):
        np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-5 * (1.0 + float(np.max(np.abs(slow)))))


def test_many_candidates_for_each_observation():
    xt, _, observation = make_batch(5, (3, 4))
    eps = evaluate(DENOISER, xt, jnp.asarray(2), observation[:, :1], None)
    for k in range(4):
        alone = evaluate(DENOISER, xt[:, k], jnp.asarray(2), observation[:, 0], None)
        np.testing.assert_allclose(eps[:, k], alone, rtol=0, atol=1e-5)


def test_every_input_changes_the_output():
    xt, t, observation = make_batch(2, (1,))
    outputs = [evaluate(DENOISER, xt, jnp.asarray([t]), observation, None)[0] for t in range(5)]
    changed = ((xt + 0.5, t, observation, None), (xt, t, observation + 0.5, None))
    outputs += [evaluate(DENOISER, *inputs)[0] for inputs in changed]
    outputs += [evaluate(DENOISER, xt, t, observation, jnp.zeros((2, 1, 8)))[0]]
    distances = np.abs(np.stack(outputs)[:, None] - np.stack(outputs)[None]).max(axis=-1)
    assert np.min(distances + np.eye(8)) > 1e-4


def test_every_parameter_has_a_gradient():
    xt, t, observation = make_batch(3, (6,))
    gradient = jax.jit(jax.grad(lambda denoiser: jnp.sum(jnp.square(plain(denoiser, xt, t, observation, None)))))
    assert all(np.any(leaf != 0.0) for leaf in jax.tree.leaves(gradient(DENOISER)))
    assert gradient(DENOISER).features.frequency.shape == (3,)
