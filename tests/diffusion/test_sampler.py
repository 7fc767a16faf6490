"""The sampler against its own law, numbers worked out by hand, and a plain Python loop.

Data N(m, s^2) has the exact denoiser eps*(x, t) = sqrt(1 - ab) (x - sqrt(ab) m) / (ab s^2 + 1 - ab), ab = alpha_bar_t.
Each reverse step is then affine in x_t, so that the sampler's own mean and std follow by a recursion. They are not the
data's: a correct sampler of T steps is off by a term of order 1 / T, which is asserted apart.
"""

from __future__ import annotations

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diffcps.diffusion import sampler
from diffcps.diffusion.sampler import draw_noise, sample_ancestral, sample_clipped
from diffcps.diffusion.schedule import Schedule, linear_betas, make_schedule, schedule_from_betas, vp_betas

pytestmark = pytest.mark.usefixtures("quick_compilation", "strict_dtypes")

BY_HAND = schedule_from_betas(np.array([0.36, 0.4375]))  # sqrt(alpha_bar) = 0.8, 0.6; sqrt(1 - alpha_bar) = 0.6, 0.8
NO_CLIP = 1e6
MEAN, STD = 0.4, 0.3


def gaussian_denoise(schedule: Schedule, mean: float = MEAN, std: float = STD):
    def denoise(xt, t):
        alpha_bar = jnp.asarray(schedule.alpha_bar)[t]
        return jnp.sqrt(1.0 - alpha_bar) * (xt - jnp.sqrt(alpha_bar) * mean) / (alpha_bar * std**2 + 1.0 - alpha_bar)

    return denoise


def toy_denoise(xt: jax.Array, t: jax.Array) -> jax.Array:
    """Not linear, and different at every time step."""
    return jnp.sin(3.0 * xt + t.astype(jnp.float32)) + 0.5 * xt


def ancestral_law(betas: np.ndarray, m: float, s: float, mean: float = 0.0, std: float = 1.0) -> tuple[float, float]:
    """Mean and std of the ancestral sampler's output, from those of x_T, in float64."""
    alpha_bar = np.cumprod(1.0 - betas)
    for t in reversed(range(len(betas))):
        # E[x_0 | x_t] = m + gain (x_t - sqrt(ab) m), by regression; the last step returns it.
        signal = np.sqrt(alpha_bar[t])
        gain = s**2 * signal / (alpha_bar[t] * s**2 + 1.0 - alpha_bar[t])
        x0_weight, xt_weight, variance = 1.0, 0.0, 0.0
        if t > 0:  # the posterior as a product of two Gaussians in x_{t-1}
            before, beta = alpha_bar[t - 1], betas[t]
            variance = 1.0 / (1.0 / (1.0 - before) + (1.0 - beta) / beta)
            x0_weight = variance * np.sqrt(before) / (1.0 - before)
            xt_weight = variance * np.sqrt(1.0 - beta) / beta
        mean = x0_weight * (m + gain * (mean - signal * m)) + xt_weight * mean
        std = math.sqrt(((x0_weight * gain + xt_weight) * std) ** 2 + variance)
    return mean, std


# --- Statistics ---

NUM_SAMPLES = 20_000
# Dvoretzky-Kiefer-Wolfowitz with Massart's constant, true for every n: P(KS distance > d) <= 2 exp(-2 n d^2). With the
# chance of a false alarm set to 1e-4, d = sqrt(log(2 / 1e-4) / (2 n)) = 0.0157 for n = 20,000.
KS_TOLERANCE = math.sqrt(math.log(2.0 / 1e-4) / (2 * NUM_SAMPLES))


def ks_distance(samples: jax.Array, mean: float, std: float) -> float:
    return float(stats.kstest(np.asarray(samples, np.float64).ravel(), stats.norm(mean, std).cdf).statistic)


# Negative controls: a denoiser whose mean, or whose std, is a little wrong is told apart with the same noise. Of a
# shift by d standard deviations the KS distance is about 0.40 d, and of a scale by 1 + d about 0.24 d.
WRONG = [(MEAN + 0.05, STD), (MEAN, 1.25 * STD)]


@pytest.mark.parametrize(
    ("betas", "seed"), [(vp_betas(5), 0), (linear_betas(50, 1e-4, 0.2), 1)], ids=["vp5", "linear50"]
)
def test_ancestral_draws_from_its_own_law(betas, seed):
    schedule = schedule_from_betas(betas)
    noise = draw_noise(jax.random.key(seed), schedule, (NUM_SAMPLES, 1))

    @jax.jit
    def sample(m, s):
        return sample_ancestral(schedule, gaussian_denoise(schedule, m, s), noise, NO_CLIP)

    law = ancestral_law(betas, MEAN, STD)
    assert ks_distance(sample(MEAN, STD), *law) < KS_TOLERANCE
    for m, s in WRONG:
        assert ks_distance(sample(m, s), *law) > KS_TOLERANCE


# --- The law without sampling: an affine map is known from its value at zero and its slopes ---


def law_of_ancestral(schedule: Schedule, s: float = STD, m: float = MEAN) -> tuple[float, np.ndarray]:
    """The sampler's output at zero noise, and its slope in each noise in the order of use."""
    # Chain 0 of the batch gets no noise; chain k gets the k-th noise, at one, and no other.
    noise = jnp.eye(schedule.num_steps, schedule.num_steps + 1, 1)[..., None]
    x = np.asarray(sample_ancestral(schedule, gaussian_denoise(schedule, m, s), noise, NO_CLIP), np.float64)[:, 0]
    return x[0], x[1:] - x[0]


def test_mean_and_std_of_the_affine_sampler():
    betas = vp_betas(12)
    schedule = schedule_from_betas(betas)
    mean, slopes = law_of_ancestral(schedule)
    np.testing.assert_allclose([mean, float(np.linalg.norm(slopes))], ancestral_law(betas, MEAN, STD), rtol=1e-5)


def test_error_of_the_std_is_of_order_one(monkeypatch):
    # x_T starts from its true marginal, so that only the discretisation is left. In float64 the recursion above gives a
    # slope of -0.90 between T = 100 and T = 400; the orders 1/2 and 2 are far outside.
    monkeypatch.setattr(sampler, "UNROLL", 1)  # compiles sooner
    s, errors = 0.5, []
    for num_steps in (100, 400):
        schedule = make_schedule("vp", num_steps)
        std_last = math.sqrt(schedule.alpha_bar[-1] * s**2 + 1.0 - schedule.alpha_bar[-1])
        slopes = law_of_ancestral(schedule, s)[1]
        std = np.linalg.norm(np.append(slopes[0] * std_last, slopes[1:]))
        errors.append(abs(std - s))
    assert math.log(errors[1] / errors[0]) / math.log(4.0) == pytest.approx(-1.0, abs=0.15)


# --- Clipping, by hand ---


def test_ancestral_clips_x0_at_every_step_by_hand():
    # eps = 0 and x_T = 3: x_0 = 3 / 0.6 = 5 becomes 1, and the posterior mean is 0.546875 * 1 + 0.421875 * 3 = 1.8125;
    # its std is sqrt(0.4375 * 0.36 / 0.64). The noise -4 leads to x, and the last step returns x / 0.8.
    x = 1.8125 - 4.0 * math.sqrt(0.4375 * 0.36 / 0.64)
    noise = jnp.array([[[3.0]], [[-4.0]]])
    clipped = sample_ancestral(BY_HAND, lambda xt, t: 0.0 * xt, noise)
    np.testing.assert_allclose(clipped, [[x / 0.8]], rtol=1e-5)  # -0.21477
    # Without the clip the posterior mean is 0.546875 * 5 + 0.421875 * 3 = 4.
    free = sample_ancestral(BY_HAND, lambda xt, t: 0.0 * xt, noise, clip=NO_CLIP)
    np.testing.assert_allclose(free, [[(4.0 + x - 1.8125) / 0.8]], rtol=1e-5)


@given(st.integers(0, 2**31))
def test_output_is_inside_the_box(seed):
    noise = 3.0 * draw_noise(jax.random.key(seed), make_schedule("vp", 5), (32, 2))
    assert np.max(np.abs(sample_toy(noise))) == 0.5  # inside, and the bound is put to use


@jax.jit
def sample_toy(noise):
    return sample_ancestral(make_schedule("vp", 5), toy_denoise, noise, 0.5)


# --- The same chain as a plain loop ---


def ancestral_loop(schedule: Schedule, denoise, noise: np.ndarray, clip: float) -> np.ndarray:
    betas = schedule.beta.astype(np.float64)
    alpha_bar = np.append(np.cumprod(1.0 - betas), 1.0)  # alpha_bar[-1] = 1 stands before the first step
    x = noise[0]
    for step, t in enumerate(reversed(range(len(betas)))):
        eps = np.asarray(denoise(jnp.asarray(x, jnp.float32), jnp.asarray(t)), np.float64)
        x0 = np.clip((x - np.sqrt(1.0 - alpha_bar[t]) * eps) / np.sqrt(alpha_bar[t]), -clip, clip)
        x = np.sqrt(alpha_bar[t - 1]) * betas[t] * x0 + np.sqrt(1.0 - betas[t]) * (1.0 - alpha_bar[t - 1]) * x
        x = x / (1.0 - alpha_bar[t])
        if t > 0:
            x = x + np.sqrt(betas[t] * (1.0 - alpha_bar[t - 1]) / (1.0 - alpha_bar[t])) * noise[step + 1]
    return np.clip(x, -clip, clip)


# The two differ in precision (float64 against float32) and are contracting maps here, so errors do not grow.
assert_same_chain = partial(np.testing.assert_allclose, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("num_steps", "unroll"), [(1, 16), (5, 16), (8, 3), (6, 3)])
def test_ancestral_equals_a_plain_loop(num_steps, unroll, monkeypatch):
    monkeypatch.setattr(
        sampler, "UNROLL", unroll
    )  # a small block, to have whole blocks and a rest without a long chain
    schedule = make_schedule("vp", num_steps)
    noise = draw_noise(jax.random.key(3), schedule, (8, 2))
    expected = ancestral_loop(schedule, toy_denoise, np.asarray(noise, np.float64), 0.5)
    assert_same_chain(sample_ancestral(schedule, toy_denoise, noise, 0.5), expected)


# --- The chain that clips x_t ---


def test_clipped_chain_by_hand():
    # eps = 0 and x_T = 3: the first step makes 3 / 0.75 of it and adds sqrt(0.4375) times the noise -4, then comes the
    # clip; the last step divides by 0.8.
    x = 3.0 / 0.75 - 4.0 * math.sqrt(0.4375)
    noise = jnp.array([[[3.0]], [[-4.0]]])
    np.testing.assert_allclose(sample_clipped(BY_HAND, lambda xt, t: 0.0 * xt, noise, NO_CLIP), [[x / 0.8]], rtol=1e-5)
    # eps = 1/2: (3 - 0.4375 / 0.8 / 2) / 0.75 - 4 sqrt(0.4375) = 0.990 is cut to 0.9. Cut at the end alone it would
    # leave 0.862.
    cut = sample_clipped(BY_HAND, lambda xt, t: 0.5 + 0.0 * xt, noise, 0.9)
    np.testing.assert_allclose(cut, [[(0.9 - 0.5 * 0.36 / 0.6) / 0.8]], rtol=1e-5)  # 0.75


def clipped_law(betas: np.ndarray, m: float, s: float, mean: float = 0.0, std: float = 1.0) -> tuple[float, float]:
    """Mean and std of `sample_clipped`'s output with a clip out of reach, from those of x_T, in float64."""
    alpha_bar = np.cumprod(1.0 - betas)
    for t in reversed(range(len(betas))):
        # sqrt(1 - ab) eps* = (1 - ab) (x - sqrt(ab) m) / (ab s^2 + 1 - ab): a step moves x towards sqrt(ab) m.
        pull = betas[t] / (alpha_bar[t] * s**2 + 1.0 - alpha_bar[t])
        root = math.sqrt(1.0 - betas[t])
        mean = (mean - pull * (mean - math.sqrt(alpha_bar[t]) * m)) / root
        std = math.sqrt(((1.0 - pull) * std / root) ** 2 + (betas[t] if t > 0 else 0.0))
    return mean, std


def test_the_clipped_chain_draws_from_its_own_law():
    schedule = make_schedule("vp", 5)
    noise = draw_noise(jax.random.key(4), schedule, (NUM_SAMPLES, 1))

    @jax.jit
    def sample(m, s):
        return sample_clipped(schedule, gaussian_denoise(schedule, m, s), noise, NO_CLIP)

    law = clipped_law(vp_betas(5), MEAN, STD)
    assert ks_distance(sample(MEAN, STD), *law) < KS_TOLERANCE
    for m, s in WRONG:
        assert ks_distance(sample(m, s), *law) > KS_TOLERANCE
    # Its variance is not the posterior's: it is another chain than the ancestral one.
    assert ks_distance(sample(MEAN, STD), *ancestral_law(vp_betas(5), MEAN, STD)) > KS_TOLERANCE


def clipped_loop(schedule: Schedule, denoise, noise: np.ndarray, clip: float) -> np.ndarray:
    betas = schedule.beta.astype(np.float64)
    alpha_bar = np.cumprod(1.0 - betas)
    x = noise[0]
    for step, t in enumerate(reversed(range(len(betas)))):
        eps = np.asarray(denoise(jnp.asarray(x, jnp.float32), jnp.asarray(t)), np.float64)
        x = (x - betas[t] / np.sqrt(1.0 - alpha_bar[t]) * eps) / np.sqrt(1.0 - betas[t])
        if t > 0:
            x = x + np.sqrt(betas[t]) * noise[step + 1]
        x = np.clip(x, -clip, clip)
    return x


@pytest.mark.parametrize("num_steps", [1, 5, 20])
def test_the_clipped_chain_equals_a_plain_loop(num_steps):
    schedule = make_schedule("vp", num_steps)
    noise = draw_noise(jax.random.key(3), schedule, (8, 2))
    expected = clipped_loop(schedule, toy_denoise, np.asarray(noise, np.float64), 0.5)
    # Where a state is not at its bound the toy's slope of 3 makes errors grow, by less than this.
    found = sample_clipped(schedule, toy_denoise, noise, 0.5)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)
    if num_steps > 1:  # and the clip took part
        assert np.max(np.abs(sample_clipped(schedule, toy_denoise, noise, NO_CLIP) - found)) > 0.01


# --- Noise and batches ---


def test_draw_noise_is_one_standard_normal_for_each_step():
    schedule = make_schedule("vp", 5)
    noise = draw_noise(jax.random.key(6), schedule, (4000, 1))
    assert noise.shape == (5, 4000, 1)
    # Correlations of n = 4,000 independent pairs have std 1 / sqrt(n) = 0.016; five of those, for ten pairs of steps.
    np.testing.assert_allclose(np.corrcoef(noise[..., 0]), np.eye(5), atol=5 / math.sqrt(4000))
    # DKW as above, with n = 20,000 numbers in all.
    assert ks_distance(noise, 0.0, 1.0) < KS_TOLERANCE
    assert ks_distance(1.1 * noise, 0.0, 1.0) > KS_TOLERANCE  # negative control


def test_batch_is_the_vmap_of_single_and_jit_is_eager():
    schedule = make_schedule("vp", 5)
    noise = draw_noise(jax.random.key(7), schedule, (3, 4, 2))

    def sample(noise):
        return sample_ancestral(schedule, toy_denoise, noise)

    batch = sample(noise)
    assert batch.shape == (3, 4, 2)
    single = jax.vmap(jax.vmap(sample, in_axes=1), in_axes=1)(noise)
    np.testing.assert_allclose(batch, single, rtol=0, atol=1e-5)
    np.testing.assert_allclose(batch, jax.jit(sample)(noise), rtol=0, atol=1e-5)
