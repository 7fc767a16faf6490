"""The forward process against its closed form, its inverse, and the chain of one-step kernels."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffcps.diffusion.process import add_noise, clip_noise, predict_x0
from diffcps.diffusion.schedule import ScheduleName, make_schedule, schedule_from_betas

pytestmark = pytest.mark.usefixtures("quick_compilation")

BY_HAND = schedule_from_betas(np.array([0.36, 0.4375]))  # sqrt(alpha_bar) = 0.8, 0.6; sqrt(1 - alpha_bar) = 0.6, 0.8
ROUNDING = 2.0**-24
schedules: st.SearchStrategy[ScheduleName] = st.sampled_from(("vp", "linear", "cosine"))


def draw(seed: int, shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    key_x0, key_eps = jax.random.split(jax.random.key(seed))
    return jax.random.uniform(key_x0, shape, minval=-1.0, maxval=1.0), jax.random.normal(key_eps, shape)


def test_add_noise_by_hand(strict_promotion):
    x0, eps = jnp.array([[1.0, -0.5], [1.0, -0.5]]), jnp.array([[2.0, 1.0], [2.0, 1.0]])
    xt = add_noise(BY_HAND, x0, jnp.array([0, 1]), eps)
    np.testing.assert_allclose(xt, [[0.8 + 1.2, -0.4 + 0.6], [0.6 + 1.6, -0.3 + 0.8]], rtol=1e-6)


def test_predict_x0_by_hand(strict_promotion):
    xt, eps = jnp.array([[2.0], [2.2]]), jnp.array([[1.0], [-1.0]])
    x0 = predict_x0(BY_HAND, xt, jnp.array([0, 1]), eps)
    np.testing.assert_allclose(x0, [[(2.0 - 0.6) / 0.8], [(2.2 + 0.8) / 0.6]], rtol=1e-6)


def test_clip_noise_by_hand(strict_dtypes):
    # x_0 = (2 - 0.6 eps) / 0.8 is in the box for eps from 2 to 14 / 3, x_0 = (-1 - 0.8 eps) / 0.6 from -2 to -0.5.
    xt, t = jnp.array([[2.0] * 3, [-1.0] * 3]), jnp.array([0, 1])
    eps = clip_noise(BY_HAND, xt, t, jnp.array([[1.0, 3.0, 5.0], [-3.0, -1.0, 0.0]]))
    np.testing.assert_allclose(eps, [[2.0, 3.0, 14.0 / 3.0], [-2.0, -1.0, -0.5]], rtol=1e-6)
    np.testing.assert_allclose(predict_x0(BY_HAND, xt, t, eps)[:, ::2], [[1.0, -1.0], [1.0, -1.0]], rtol=1e-5)
    shared = clip_noise(BY_HAND, xt[:1], jnp.asarray(0), jnp.array([[1.0, 3.0, 5.0]]))
    np.testing.assert_array_equal(shared, eps[:1])


@given(schedules, st.integers(1, 60), st.integers(0, 2**31), st.data())
def test_predict_x0_inverts_add_noise(name, num_steps, seed, data):
    schedule = make_schedule(name, num_steps)
    t = jnp.array(data.draw(st.lists(st.integers(0, num_steps - 1), min_size=4, max_size=4)))
    x0, eps = draw(seed, (4, 3))
    xt = add_noise(schedule, x0, t, eps)
    # x_t carries a few roundings of numbers below 1 + |eps|, and is divided by sqrt(alpha_bar). Rounding 1 / alpha_bar
    # before one is subtracted moves the weight of eps, sqrt(1 / alpha_bar - 1), by as much over twice that weight.
    alpha_bar = schedule.alpha_bar[np.asarray(t)][:, None]
    signal, noise = np.sqrt(alpha_bar), np.sqrt(1.0 - alpha_bar)
    size = 1.0 + np.abs(np.asarray(eps))
    tolerance = ROUNDING * size * (4.0 / signal + 1.0 / (signal * noise))
    error = np.abs(np.asarray(predict_x0(schedule, xt, t, eps) - x0))
    assert np.all(error <= tolerance), np.max(error / tolerance)


@pytest.mark.parametrize("name", ["vp", "linear", "cosine"])
@pytest.mark.parametrize("num_steps", [1, 5, 50])
def test_one_step_kernels_compose_to_the_closed_form(name, num_steps, strict_dtypes):
    # q(x_t | x_{t-1}) = N(sqrt(1 - beta) x_{t-1}, beta), from x_0 = 1: the mean shrinks, and variances add.
    schedule = make_schedule(name, num_steps)
    mean, variance, means, variances = 1.0, 0.0, [], []
    for beta in schedule.beta.astype(np.float64):
        mean, variance = np.sqrt(1.0 - beta) * mean, (1.0 - beta) * variance + beta
        means.append(mean)
        variances.append(variance)
    t, zero, one = jnp.arange(num_steps), jnp.zeros((num_steps, 1)), jnp.ones((num_steps, 1))
    # A beta near one leaves 1 - beta with few digits in float32.
    assert_close = partial(np.testing.assert_allclose, rtol=1e-5, atol=4 * ROUNDING)
    assert_close(add_noise(schedule, one, t, zero)[:, 0], means)
    assert_close(add_noise(schedule, zero, t, one)[:, 0] ** 2, variances)


@pytest.mark.parametrize("function", [add_noise, predict_x0])
def test_batch_is_the_vmap_of_single_under_jit_too(function, strict_dtypes):
    schedule = make_schedule("vp", 5)
    x, eps = draw(1, (4, 6, 3))
    t = jnp.arange(24).reshape(4, 6) % 5
    batch = function(schedule, x, t, eps)
    single = jax.vmap(jax.vmap(lambda x, t, eps: function(schedule, x, t, eps)))(x, t, eps)
    jitted = jax.jit(lambda x, t, eps: function(schedule, x, t, eps))(x, t, eps)
    np.testing.assert_allclose(batch, single, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(batch, jitted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("function", [add_noise, predict_x0])
def test_one_time_step_for_the_whole_batch(function, strict_dtypes):
    schedule = make_schedule("vp", 5)
    x, eps = draw(2, (6, 3))
    shared = function(schedule, x, jnp.asarray(3), eps)
    np.testing.assert_array_equal(shared, function(schedule, x, jnp.full((6,), 3), eps))
    assert not np.allclose(shared, function(schedule, x, jnp.full((6,), 2), eps))
