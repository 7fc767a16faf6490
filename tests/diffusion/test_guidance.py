"""Guided chains against closed forms on Gaussian data, where every step is affine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.diffusion.guidance import classifier_free, pulled, sample_known, with_gradient
from diffcps.diffusion.process import predict_x0
from diffcps.diffusion.schedule import make_schedule

MEAN, STD, SLOPE = 0.7, 0.5, 1.2
STEPS, CHAINS = 400, 20_000


def weight_of(schedule, t):
    """dE[x_0 | x_t] / dx_t."""
    alpha_bar = jnp.asarray(schedule.alpha_bar)[t]
    return jnp.sqrt(alpha_bar) * STD**2 / (alpha_bar * STD**2 + 1.0 - alpha_bar)


def exact(schedule, mean=MEAN):
    """E[x_0 | x_t] for x_0 ~ N(mean, STD^2)."""

    def estimate(xt, t):
        return mean + weight_of(schedule, t) * (xt - jnp.sqrt(jnp.asarray(schedule.alpha_bar)[t]) * mean)

    return estimate


def as_it_is(x):
    return x


def pull_of(schedule, steps, stop_below, scale=1.0):
    """Guidance by SLOPE E[x_0 | x_t], the exact value of SLOPE x_0 up to a constant."""
    estimate = exact(schedule)
    guide = with_gradient(lambda xt, t: SLOPE * estimate(xt, t)[..., 0])
    return pulled(schedule, guide, as_it_is, scale, steps, stop_below)


def by_recursion(schedule, steps, stop_below):
    """Mean and deviation of a guided chain, from N(0, 1)."""
    mean, variance = 0.0, 1.0
    for t in reversed(range(schedule.num_steps)):
        k = float(weight_of(schedule, t))
        if t >= stop_below:
            mean += steps * SLOPE * k * schedule.posterior_std[t] ** 2
        x0 = MEAN + k * (mean - np.sqrt(schedule.alpha_bar[t]) * MEAN)
        mean = schedule.posterior_x0_weight[t] * x0 + schedule.posterior_xt_weight[t] * mean
        slope = schedule.posterior_x0_weight[t] * k + schedule.posterior_xt_weight[t]
        variance = slope**2 * variance + (schedule.posterior_std[t] ** 2 if t else 0.0)
    return mean, np.sqrt(variance)


@pytest.mark.parametrize(("steps", "stop_below"), [(1, 0), (2, 0), (1, 160)])
def test_a_linear_value_tilts_the_mean_by_a_known_amount(steps, stop_below):
    """exp(n c x) times N(m, s^2) is N(m + n c s^2, s^2); a long chain has this, up to what its own recursion leaves."""
    schedule = make_schedule("cosine", STEPS)
    noise = jax.random.normal(jax.random.key(0), (STEPS, CHAINS, 1))
    x, values = sample_known(schedule, exact(schedule), as_it_is, noise, pull=pull_of(schedule, steps, stop_below))
    tolerance = 5 * STD / np.sqrt(CHAINS)
    mean, std = by_recursion(schedule, steps, stop_below)
    assert abs(np.mean(x) - mean) < tolerance and abs(np.std(x) - std) < tolerance
    assert abs(std / STD - 1.0) < 0.02
    tilted = MEAN + steps * SLOPE * STD**2
    assert (abs(np.mean(x) - tilted) < 0.05 * STD) == (stop_below == 0)
    assert values is not None
    np.testing.assert_allclose(values, SLOPE * x[:, 0], atol=0.05)  # at t = 0 the value of x_0 itself, nearly
    unguided, _ = sample_known(schedule, exact(schedule), as_it_is, noise)
    assert abs(np.mean(unguided) - MEAN) < tolerance


def test_classifier_free_guidance_moves_the_mean():
    """With N(m_0, s^2) without and N(m_1, s^2) with a condition the mean is m_0 + w (m_1 - m_0)."""
    schedule = make_schedule("cosine", STEPS)
    without, with_condition, w = 0.2, 0.8, 1.5

    def eps(mean, xt, t):
        alpha_bar = jnp.asarray(schedule.alpha_bar)[t]
        x0 = exact(schedule, mean)(xt, t)
        return (xt - jnp.sqrt(alpha_bar) * x0) / jnp.sqrt(1.0 - alpha_bar)

    def estimate(xt, t):
        guided = classifier_free(eps(with_condition, xt, t), eps(without, xt, t), w)
        return predict_x0(schedule, xt, t[None], guided)

    noise = jax.random.normal(jax.random.key(0), (STEPS, CHAINS, 1))
    x, values = sample_known(schedule, estimate, as_it_is, noise)
    assert values is None
    assert abs(np.mean(x) - (without + w * (with_condition - without))) < 5 * STD / np.sqrt(CHAINS)
    assert abs(np.std(x) - by_recursion(schedule, 0, 0)[1]) < 5 * STD / np.sqrt(CHAINS)


def test_what_is_known_stays_and_the_rest_is_as_without():
    schedule = make_schedule("cosine", 20)
    noise = jax.random.normal(jax.random.key(0), (20, 5, 3))
    plain, _ = sample_known(schedule, exact(schedule), as_it_is, noise)
    held, _ = sample_known(schedule, exact(schedule), lambda x: x.at[..., 1].set(0.25), noise)
    np.testing.assert_array_equal(held[:, 1], 0.25)
    np.testing.assert_array_equal(held[:, (0, 2)], plain[:, (0, 2)])  # the dimensions are independent here


def test_predictions_are_clipped():
    schedule = make_schedule("cosine", 20)
    noise = jax.random.normal(jax.random.key(0), (20, 200, 1))
    clipped, _ = sample_known(schedule, lambda x, t: 3.0 * x, as_it_is, noise, clip=0.5)
    assert np.abs(clipped).max() <= 0.5 + 1e-5


def test_fewer_steps_are_the_last_part_of_a_chain():
    schedule = make_schedule("cosine", 20)
    noise = jax.random.normal(jax.random.key(0), (20, 4, 1))
    whole, _ = sample_known(schedule, exact(schedule), as_it_is, noise)
    x = noise[0]
    for step, t in enumerate(range(19, 4, -1)):
        x0 = exact(schedule)(x, t)
        x = schedule.posterior_x0_weight[t] * x0 + schedule.posterior_xt_weight[t] * x
        x += schedule.posterior_std[t] * noise[step + 1]
    rest, _ = sample_known(schedule, exact(schedule), as_it_is, jnp.concatenate([x[None], noise[16:]]))
    np.testing.assert_allclose(rest, whole, atol=1e-5)


def test_a_guide_has_the_value_and_the_gradient_of_each_sample():
    values, gradient = with_gradient(lambda x, t: t * jnp.sum(jnp.square(x), axis=-1))(
        jnp.array([[1.0, 2.0]]), jnp.int32(3)
    )
    np.testing.assert_allclose(values, [15.0])
    np.testing.assert_allclose(gradient, [[6.0, 12.0]])
