"""MMD, the KL and the VAE's loss against arithmetic done by hand."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.rl.divergence import gaussian_kl, mmd, vae_loss

# --- MMD ---

KERNELS = ("gaussian", "laplacian")
FLOOR = 1e-3  # sqrt(1e-6)


def mmd_in_float64(x: np.ndarray, y: np.ndarray, kernel: str, sigma: float) -> float:
    """For one pair of samples, by a double loop over the definition."""

    def k(a, b):
        distance = np.sum((a - b) ** 2) if kernel == "gaussian" else np.sum(np.abs(a - b))
        return math.exp(-distance / (2.0 * sigma))

    def mean(p, q):
        return np.mean([k(a, b) for a in p for b in q])

    return math.sqrt(mean(x, x) + mean(y, y) - 2.0 * mean(x, y) + 1e-6)


@pytest.mark.parametrize(("kernel", "distance"), [("gaussian", 3.0**2 + 4.0**2), ("laplacian", 3.0 + 4.0)])
def test_mmd_of_two_points_by_hand(kernel, distance):
    # One sample each: k(x, x) = k(y, y) = 1, and the diagonal is all there is.
    value = mmd(jnp.zeros((1, 2)), jnp.array([[3.0, -4.0]]), kernel, 5.0)
    assert value.shape == ()
    np.testing.assert_allclose(value, math.sqrt(2.0 - 2.0 * math.exp(-distance / 10.0) + 1e-6), rtol=1e-6)


def test_the_diagonal_is_part_of_the_mean():
    # x = {0, 2}, y = {0}, laplacian, sigma 1: the means are (1 + 1 + 2 / e) / 4, 1 and (1 + 1 / e) / 2.
    e = math.exp(-1.0)
    expected = math.sqrt((2.0 + 2.0 * e) / 4.0 + 1.0 - (1.0 + e) + 1e-6)
    np.testing.assert_allclose(
        mmd(jnp.array([[0.0], [2.0]]), jnp.array([[0.0]]), "laplacian", 1.0), expected, rtol=1e-6
    )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sigma", [0.5, 20.0])
def test_mmd_against_a_double_loop(kernel, sigma):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 3, 4, 2)), rng.normal(size=(2, 3, 5, 2))
    value = mmd(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), kernel, sigma)
    expected = [[mmd_in_float64(x[i, j], y[i, j], kernel, sigma) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(value, expected, rtol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_mmd_of_equal_samples_is_its_floor_and_grows_with_a_shift(kernel):
    x = jax.random.normal(jax.random.key(0), (4, 2))
    shuffled = x[jnp.array([2, 0, 3, 1])]
    np.testing.assert_allclose(mmd(x, shuffled, kernel, 20.0), FLOOR, rtol=1e-2)
    values = [float(mmd(x, x + shift, kernel, 20.0)) for shift in (0.0, 0.1, 0.5, 1.0, 2.0)]
    assert np.all(np.diff(values) > 0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_small_distances_are_not_lost(kernel):
    # Wide kernels put all kernel values next to 1, where float32 steps by 6e-8.
    x, y = np.array([[0.0]]), np.array([[0.02]])
    value = mmd(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), kernel, 1000.0)
    np.testing.assert_allclose(value, mmd_in_float64(x, y, kernel, 1000.0), rtol=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_gradient_of_mmd_is_finite_where_samples_meet(kernel):
    x = jnp.array([[0.5, 0.5], [0.5, 0.5]])
    assert np.all(np.isfinite(jax.grad(lambda y: mmd(x, y, kernel, 20.0))(x)))
    toward = jax.grad(lambda y: mmd(x, y, kernel, 20.0))(x + 1.0)
    assert np.all(np.asarray(toward) > 0.0)  # descending it brings the samples back


# --- KL and the VAE's loss ---


def test_gaussian_kl_by_hand():
    mean, log_std = jnp.array([0.0, 1.0, 0.0]), jnp.array([0.0, 0.0, math.log(2.0)])
    np.testing.assert_allclose(gaussian_kl(mean, log_std), [0.0, 0.5, 1.5 - math.log(2.0)], rtol=1e-6)


def test_gaussian_kl_against_its_definition():
    # E_q[log q - log p], q = N(0.7, 0.5^2), on a grid.
    u = np.linspace(-6.0, 6.0, 20_001)
    log_q = -0.5 * ((u - 0.7) / 0.5) ** 2 - math.log(0.5)
    density = np.exp(log_q) / math.sqrt(2.0 * math.pi)
    expected = np.sum(density * (log_q + 0.5 * u**2)) * (u[1] - u[0])
    np.testing.assert_allclose(
        gaussian_kl(jnp.float32(0.7)[None], jnp.log(jnp.float32(0.5))[None])[0], expected, rtol=1e-5
    )


def test_vae_loss_by_hand():
    reconstruction, action = jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.zeros((2, 2))
    mean, log_std = jnp.array([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), jnp.zeros((2, 3))
    # mean squared error 1 / 4; KL 2 in one of the six places.
    loss, squared_error, kl = vae_loss(reconstruction, action, mean, log_std, 0.5)
    np.testing.assert_allclose([loss, squared_error, kl], [0.25 + 0.5 / 3.0, 0.25, 1.0 / 3.0], rtol=1e-6)
