"""The VAE and the squashed Gaussian: shapes, ranges, batches, and how the pieces fit together."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.networks import squashed, vae
from diffcps.networks.squashed import SquashedGaussian
from diffcps.networks.vae import VAE, draw_latent
from diffcps.types import Spec

pytestmark = pytest.mark.usefixtures("quick_compilation")

SPEC = Spec(observation_size=3, action_size=2)
ROWS = np.random.default_rng(0)
OBSERVATION = jnp.asarray(ROWS.normal(size=(4, 5, 3)), jnp.float32)
ACTION = jnp.asarray(ROWS.uniform(-1, 1, size=(4, 5, 2)), jnp.float32)
LATENT = jnp.asarray(ROWS.normal(size=(4, 5, 4)), jnp.float32)


def make_vae(scale: float = 1.0) -> VAE:
    model = jax.jit(lambda key: VAE(SPEC, 16, key))(jax.random.key(0))
    return jax.tree.map(lambda leaf: scale * leaf, model)


def make_policy(scale: float = 1.0) -> SquashedGaussian:
    model = jax.jit(lambda key: SquashedGaussian(SPEC, 16, 2, key))(jax.random.key(0))
    return jax.tree.map(lambda leaf: scale * leaf, model)


def test_sizes_of_the_vae():
    model = make_vae()
    assert model.latent_size == 4  # twice the action's
    assert [layer.weight.shape for layer in model.encoder.layers] == [(5, 16), (16, 16), (16, 8)]
    assert [layer.weight.shape for layer in model.decoder.layers] == [(7, 16), (16, 16), (16, 2)]


def test_sizes_of_the_policy():
    assert [layer.weight.shape for layer in make_policy().network.layers] == [(3, 16), (16, 16), (16, 4)]


def test_all_networks_use_relu():
    model = make_vae()
    assert {network.activation for network in (model.encoder, model.decoder, make_policy().network)} == {jax.nn.relu}


def test_any_leading_axes():
    model, policy = make_vae(), make_policy()
    whole = [*model.encode(OBSERVATION, ACTION), model.decode(OBSERVATION, LATENT), *policy(OBSERVATION)]
    for i, j in ((0, 0), (3, 2)):
        one = (
            *model.encode(OBSERVATION[i, j], ACTION[i, j]),
            model.decode(OBSERVATION[i, j], LATENT[i, j]),
            *policy(OBSERVATION[i, j]),
        )
        for batched, single in zip(whole, one, strict=True):
            np.testing.assert_allclose(batched[i, j], single, rtol=1e-4, atol=1e-6)


def test_log_stds_are_clipped():
    # Weights so large that both ends are reached.
    for (_, log_std), (low, high) in (
        (make_vae(30.0).encode(OBSERVATION, ACTION), vae.LOG_STD_RANGE),
        (make_policy(30.0)(OBSERVATION), squashed.LOG_STD_RANGE),
    ):
        assert np.min(log_std) == low and np.max(log_std) == high
    assert vae.LOG_STD_RANGE == (-4.0, 15.0) and squashed.LOG_STD_RANGE == (-5.0, 2.0)


def test_decoding_is_the_tanh_of_what_comes_before_it():
    model = make_vae(3.0)
    before = model.decode_pre_tanh(OBSERVATION, LATENT)
    np.testing.assert_array_equal(model.decode(OBSERVATION, LATENT), jnp.tanh(before))
    assert np.max(np.abs(before)) > 1.0


def test_latents_are_clipped_normals():
    n = 10_000
    latent = np.asarray(draw_latent(jax.random.key(1), (n,), 2, 0.5))
    assert latent.shape == (n, 4) and np.max(np.abs(latent)) == 0.5
    # P(|z| < 0.5) = 0.3829; within sqrt(log(2 / 1e-4) / (2 m)) of it but for a case of probability 1e-4 (Hoeffding).
    assert abs(np.mean(np.abs(latent) < 0.5) - 0.3829) < np.sqrt(np.log(2 / 1e-4) / (2 * 4 * n))
    wide = np.asarray(draw_latent(jax.random.key(1), (n,), 2, 10.0))
    np.testing.assert_array_equal(latent, np.clip(wide, -0.5, 0.5))


def test_samples_of_the_policy_by_hand():
    policy = make_policy()
    mean, log_std = policy(OBSERVATION)
    noise = jax.random.normal(jax.random.key(0), (4, 5, 7, 2))
    samples = policy.pre_tanh(OBSERVATION, noise)
    assert samples.shape == noise.shape
    expected = mean[:, :, None] + np.exp(log_std)[:, :, None] * noise
    np.testing.assert_allclose(samples, expected, rtol=1e-5, atol=1e-6)
