"""Schedules against formulas evaluated another way, and against the authors' constants."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffcps.diffusion.schedule import (
    cosine_betas,
    linear_betas,
    linear_rate_betas,
    log_alpha_between,
    make_schedule,
    schedule_from_betas,
    vp_betas,
)
from diffcps.types import UserError

# Constants are computed in float64 and rounded once (2^-24 = 6e-8).
assert_float32 = partial(np.testing.assert_allclose, rtol=3e-7)


def test_vp_betas_of_five_steps():
    expected = [0.195875, 0.458818, 0.635781, 0.754878, 0.835031]  # the paper's default, to the digits given
    np.testing.assert_allclose(vp_betas(5), expected, rtol=0, atol=5.1e-7)


@pytest.mark.parametrize("num_steps", [1, 2, 5, 50, 1000])
def test_vp_ends_at_the_same_noise_for_any_number_of_steps(num_steps):
    # sum over i of (2i - 1) is T^2, so that alpha_bar_T = exp(-beta_min - (beta_max - beta_min) / 2) = exp(-5.05).
    np.testing.assert_allclose(np.prod(1.0 - vp_betas(num_steps)), math.exp(-5.05), rtol=1e-11)
    assert_float32(make_schedule("vp", num_steps).alpha_bar[-1], math.exp(-5.05))


def test_vp_betas_by_the_integral_of_the_rate():
    # 1 - beta_i = exp(-integral over ((i-1)/T, i/T) of beta_min + (beta_max - beta_min) s), and midpoints are exact.
    beta_min, beta_max, num_steps = 0.3, 7.0, 4
    rates = [beta_min + (beta_max - beta_min) * midpoint for midpoint in (0.125, 0.375, 0.625, 0.875)]
    expected = [1.0 - math.exp(-rate / num_steps) for rate in rates]
    np.testing.assert_allclose(vp_betas(num_steps, beta_min, beta_max), expected, rtol=1e-12)


def test_linear_betas_by_hand():
    np.testing.assert_allclose(linear_betas(5), [0.0001, 0.005075, 0.01005, 0.015025, 0.02], rtol=1e-12)
    np.testing.assert_allclose(linear_betas(3, 0.1, 0.4), [0.1, 0.25, 0.4], rtol=1e-12)


def test_linear_rate_betas_by_hand():
    np.testing.assert_allclose(linear_rate_betas(100)[[0, 99]], [1e-3, 0.2], rtol=1e-12)
    np.testing.assert_allclose(linear_rate_betas(3, 0.1, 0.5), [0.1 / 3, 0.1, 0.5 / 3], rtol=1e-12)
    np.testing.assert_allclose(linear_rate_betas(1000), linear_betas(1000), rtol=1e-12)
    for num_steps in (25, 400):  # the sum of all betas is that of the rates' ends, whatever T
        assert np.sum(linear_rate_betas(num_steps)) == pytest.approx(10.05)
    with pytest.raises(UserError, match=r"num_steps is 20: schedule linear_rate needs more than 20, .* schedule vp"):
        make_schedule("linear_rate", 20)


def test_log_alpha_between_steps_by_hand():
    schedule = schedule_from_betas(np.array([0.36, 0.4375, 0.5]))  # alpha = 0.8, 0.6, sqrt(0.18)
    low, high = math.log(0.8), math.log(0.6)
    expected = [low, 0.75 * low + 0.25 * high, high, 0.5 * high + 0.25 * math.log(0.18)]
    np.testing.assert_allclose(log_alpha_between(schedule, np.array([0.0, 0.25, 1.0, 1.5])), expected, rtol=1e-6)


def test_cosine_betas_by_the_half_angle():
    # cos^2(x) = (1 + cos 2x) / 2, with the angle 2x = pi (i/T + s) / (1 + s).
    height = [(1.0 + math.cos(math.pi * (i / 4 + 0.008) / 1.008)) / 2.0 for i in range(5)]
    expected = [1.0 - height[i + 1] / height[i] for i in range(3)] + [0.999]  # alpha_bar reaches 0: the last is capped
    np.testing.assert_allclose(cosine_betas(4), expected, rtol=1e-12)
    assert_float32(make_schedule("cosine", 4).alpha_bar[:3], np.array(height[1:4]) / height[0])


def test_constants_by_hand():
    schedule = schedule_from_betas(np.array([0.36, 0.4375]))
    assert_float32(schedule.alpha_bar, [0.64, 0.36])
    assert_float32(schedule.posterior_x0_weight, [1.0, 0.4375 * 0.8 / 0.64])
    assert_float32(schedule.posterior_xt_weight, [0.0, 0.36 * 0.75 / 0.64])
    assert_float32(schedule.posterior_std, [1e-10, math.sqrt(0.4375 * 0.36 / 0.64)])


@given(st.lists(st.floats(1e-4, 0.999), min_size=2, max_size=12))
def test_posterior_is_the_product_of_two_gaussians(betas):
    # As functions of x_{t-1}: q(x_{t-1} | x_0) = N(sqrt(before) x_0, 1 - before), and q(x_t | x_{t-1}) is proportional
    # to N(x_t / sqrt(alpha), beta / alpha). Precisions add, and means are weighted by precision.
    beta = np.array(betas)
    schedule = schedule_from_betas(beta)
    before, beta = np.cumprod(1.0 - beta)[:-1], beta[1:]
    prior_precision, likelihood_precision = 1.0 / (1.0 - before), (1.0 - beta) / beta
    variance = 1.0 / (prior_precision + likelihood_precision)
    assert_close = partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-30)
    assert_close(schedule.posterior_x0_weight[1:], variance * prior_precision * np.sqrt(before))
    assert_close(schedule.posterior_xt_weight[1:], variance * likelihood_precision / np.sqrt(1.0 - beta))
    assert_close(schedule.posterior_std[1:] ** 2, np.maximum(variance, 1e-20))
    # Nothing is between x_0 and the first step: the posterior is x_0 itself.
    assert schedule.posterior_x0_weight[0] == pytest.approx(1.0, rel=1e-7)
    assert schedule.posterior_xt_weight[0] == 0.0
    assert schedule.posterior_std[0] == pytest.approx(1e-10, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "num_steps"),
    [(name, num_steps) for name in ("vp", "linear", "cosine") for num_steps in (1, 5, 100)] + [("linear_rate", 100)],
)
def test_every_schedule_adds_noise_at_every_step(name, num_steps):
    schedule = make_schedule(name, num_steps)
    assert schedule.num_steps == num_steps
    assert all(constant.shape == (num_steps,) and constant.dtype == np.float32 for constant in schedule)
    assert np.all((schedule.beta > 0.0) & (schedule.beta < 1.0))
    assert np.all(np.diff(schedule.alpha_bar, prepend=1.0) < 0.0) and schedule.alpha_bar[-1] > 0.0
    assert all(np.all(np.isfinite(constant)) for constant in schedule)


def test_names_select_their_betas():
    np.testing.assert_array_equal(make_schedule("vp", 7).beta, vp_betas(7).astype(np.float32))
    np.testing.assert_array_equal(make_schedule("linear", 7).beta, linear_betas(7).astype(np.float32))
    np.testing.assert_array_equal(make_schedule("cosine", 7).beta, cosine_betas(7).astype(np.float32))
    np.testing.assert_array_equal(make_schedule("linear_rate", 30).beta, linear_rate_betas(30).astype(np.float32))


def test_golden_constants(golden):
    reference = golden("diffcps_reference")
    schedule = make_schedule("vp", 5)
    assert_close = partial(
        np.testing.assert_allclose, rtol=1e-6
    )  # the authors' program computes some of them in float32
    assert_close(schedule.beta, reference["schedule/betas"])
    assert_close(schedule.alpha_bar, reference["schedule/alphas_cumprod"])
    assert_close(schedule.posterior_x0_weight, reference["schedule/posterior_mean_coef1"])
    assert_close(schedule.posterior_xt_weight, reference["schedule/posterior_mean_coef2"])
    variance = reference["schedule/posterior_variance"]
    assert_close(schedule.posterior_std[1:] ** 2, variance[1:])
    assert variance[0] == 0.0
