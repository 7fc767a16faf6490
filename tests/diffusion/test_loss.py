"""The denoising loss against arithmetic done by hand and the authors' numbers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffcps.diffusion.loss import denoising_loss
from diffcps.diffusion.process import add_noise
from diffcps.diffusion.schedule import make_schedule, schedule_from_betas

pytestmark = pytest.mark.usefixtures("quick_compilation")

BY_HAND = schedule_from_betas(np.array([0.36, 0.4375]))  # sqrt(alpha_bar) = 0.8, 0.6; sqrt(1 - alpha_bar) = 0.6, 0.8


def toy_denoise(xt: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.sin(2.0 * xt) + 0.1 * t.astype(jnp.float32)[..., None]


def draw(seed: int, batch: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    key_x0, key_t, key_eps = jax.random.split(jax.random.key(seed), 3)
    x0 = jax.random.uniform(key_x0, (batch, 3), minval=-1.0, maxval=1.0)
    return x0, jax.random.randint(key_t, (batch,), 0, 5), jax.random.normal(key_eps, (batch, 3))


def test_by_hand(strict_promotion):
    # x_t = [0.8 * 1 + 0.6 * 2, 0] = [2, 0] at t = 0 and [0, 0.6 * 1 - 0.8 * 1] = [0, -0.2] at t = 1. The denoiser says
    # (t + 1) x_t = [2, 0] and [0, -0.4], so that the errors are [0, 0] and [0, -0.6]: the mean of four squares is 0.09.
    x0, eps, t = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[2.0, 0.0], [0.0, -1.0]]), jnp.array([0, 1])
    loss = denoising_loss(BY_HAND, lambda xt, t: (t + 1).astype(jnp.float32)[:, None] * xt, x0, t, eps)
    np.testing.assert_allclose(loss, 0.09, rtol=1e-5)


def test_zero_for_the_exact_eps_and_only_then():
    x0, t, eps = draw(0, 16)
    schedule = make_schedule("vp", 5)
    assert denoising_loss(schedule, lambda xt, t: eps, x0, t, eps) == 0.0
    np.testing.assert_allclose(denoising_loss(schedule, lambda xt, t: eps + 0.1, x0, t, eps), 0.01, rtol=1e-4)


def test_mean_over_dimensions_and_batch():
    # Repeating the dimensions or the batch leaves a mean unchanged; a sum would double.
    x0, t, eps = draw(1, 8)
    schedule = make_schedule("vp", 5)
    loss = denoising_loss(schedule, toy_denoise, x0, t, eps)
    wide = denoising_loss(schedule, toy_denoise, jnp.tile(x0, (1, 2)), t, jnp.tile(eps, (1, 2)))
    long = denoising_loss(schedule, toy_denoise, jnp.tile(x0, (2, 1)), jnp.tile(t, 2), jnp.tile(eps, (2, 1)))
    np.testing.assert_allclose([wide, long], [loss, loss], rtol=1e-6)


def toy_loss(x0, t, eps):
    return denoising_loss(make_schedule("vp", 5), toy_denoise, x0, t, eps)


jitted_toy_loss, mapped_toy_loss = jax.jit(toy_loss), jax.jit(jax.vmap(toy_loss))


@given(st.integers(0, 2**31), st.permutations(range(8)))
def test_permutation_jit_and_vmap(seed, order):
    x0, t, eps = draw(seed, 8)
    order = jnp.array(order)
    expected = toy_loss(x0, t, eps)
    np.testing.assert_allclose(toy_loss(x0[order], t[order], eps[order]), expected, rtol=1e-5)
    np.testing.assert_allclose(jitted_toy_loss(x0, t, eps), expected, rtol=1e-5)
    np.testing.assert_allclose(np.mean(mapped_toy_loss(x0, t, eps)), expected, rtol=1e-5)


def test_golden_noisy_action(golden):
    reference = golden("diffcps_reference")
    t, eps = jnp.asarray(reference["denoise/t_zero_based"], jnp.int32), jnp.asarray(reference["denoise/noise"])
    x0, schedule = jnp.asarray(reference["batch/action"]), make_schedule("vp", 5)
    np.testing.assert_allclose(add_noise(schedule, x0, t, eps), reference["denoise/x_t"], rtol=0, atol=1e-6)
    # The loss asks the denoiser about that very action at those steps; the stored prediction gives the stored loss.
    asked = {}

    def denoise(xt, t):
        asked.update(xt=xt, t=t)
        return jnp.asarray(reference["denoise/eps_prediction"])

    loss = denoising_loss(schedule, denoise, x0, t, eps)
    np.testing.assert_allclose(loss, reference["denoise/loss"], rtol=1e-6)
    np.testing.assert_allclose(asked["xt"], reference["denoise/x_t"], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(asked["t"], t)
