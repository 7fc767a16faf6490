"""The fast solvers, on Gaussian data whose reverse process is known exactly."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.diffusion.dpm_solver import dpm_solver, sample_dpm, solver_orders
from diffcps.diffusion.vp_sde import log_alpha
from diffcps.envs.toy import noisy_circle
from diffcps.policies.score import even_chain

MEAN, STD = 0.7, 0.3
"""Data are N(MEAN, STD^2): the noise and the data that the best network predicts are linear in x_t."""


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def marginal(t):
    """alpha_t, std_t and the standard deviation of x_t."""
    alpha = np.exp(log_alpha(np.atleast_1d(np.asarray(t, np.float64))))
    return alpha, np.sqrt(1 - alpha**2), np.sqrt(alpha**2 * STD**2 + 1 - alpha**2)


def sampled(calls, orders, predicts, noise, end=1e-3):
    times = np.linspace(1.0, end, calls + 1)
    alpha, std, spread = (jnp.asarray(value) for value in marginal(times))
    solver = dpm_solver(log_alpha(times), orders, predicts)

    def predict(x, call):
        eps = std[call] * (x - alpha[call] * MEAN) / spread[call] ** 2
        return eps if predicts == "noise" else (x - std[call] * eps) / alpha[call]

    return np.asarray(sample_dpm(solver, predict, noise))


def exact(noise, end=1e-3):
    """Along the probability flow, the distance from the mean in standard deviations does not change."""
    (first_alpha, _, first), (alpha, _, last) = marginal(1.0), marginal(end)
    return alpha * MEAN + last / first * (np.asarray(noise) - first_alpha * MEAN)


@pytest.mark.parametrize("predicts", ["noise", "data"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_error_falls_with_the_order(double, order, predicts):
    noise = jnp.linspace(-2.0, 2.0, 9)[:, None]
    errors = [
        np.abs(sampled(calls, (order,) * (calls // order), predicts, noise, end=0.3) - exact(noise, end=0.3)).max()
        for calls in (60, 120, 240)
    ]
    measured = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(measured, order, atol=0.3)


def test_order_one_is_ddim():
    """x_s / alpha_s - x_t / alpha_t = (std_s / alpha_s - std_t / alpha_t) eps. Reference: arXiv:2010.02502, eq. 13."""
    times = np.array([0.8, 0.3])
    (alpha_t, alpha_s), (std_t, std_s), _ = marginal(times)
    solver = dpm_solver(log_alpha(times), (1,), "noise")
    x, eps = jnp.array([[0.4, -1.2]]), jnp.array([[0.5, 0.3]])
    ddim = alpha_s * (x / alpha_t + (std_s / alpha_s - std_t / alpha_t) * eps)
    np.testing.assert_allclose(sample_dpm(solver, lambda x, call: eps, x), ddim, rtol=1e-5)


@pytest.mark.parametrize(("order", "predicts"), [(3, "noise"), (2, "data")])
def test_the_chains_of_the_authors_draw_the_data(order, predicts):
    """Fifteen calls, evenly in time, narrow a law of spread 0.3 by a sixth to a fifth; 120 do not."""
    noise = jax.random.normal(jax.random.key(0), (4000, 1))
    for calls, atol in ((15, 0.07), (120, 0.01)):
        x = sampled(calls, solver_orders(calls, order), predicts, noise)
        np.testing.assert_allclose(x.mean(), exact(noise).mean(), atol=0.01)
        np.testing.assert_allclose(x.std(), exact(noise).std(), atol=atol)


@pytest.mark.parametrize(
    ("calls", "order", "orders"),
    [
        (15, 3, (3, 3, 3, 3, 2, 1)),
        (16, 3, (3, 3, 3, 3, 3, 1)),
        (17, 3, (3, 3, 3, 3, 3, 2)),
        (15, 2, (2, 2, 2, 2, 2, 2, 2, 1)),
        (10, 2, (2, 2, 2, 2, 1, 1)),
        (3, 1, (1, 1, 1)),
        (1, 3, (1,)),
        (2, 3, (2,)),
        (1, 2, (1,)),
    ],
)
def test_orders_of_a_count_of_calls(calls, order, orders):
    assert solver_orders(calls, order) == orders
    assert sum(orders) == calls


def test_nodes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one more"):
        dpm_solver(log_alpha(np.linspace(1.0, 0.1, 4)), (2, 2), "noise")


# --- SfBC's chain on the noisy circle ---


def test_few_even_calls_of_order_3_leave_the_circle_even_with_its_exact_denoiser():
    """Why SfBC has no action on the data at T = 2 and 5 (docs/figures.md): it is the solver, not what was learnt."""
    circle = jnp.asarray(noisy_circle(2000).action)
    noise = jax.random.normal(jax.random.key(0), (1000, 2))

    def median_radius(calls: int) -> float:
        chain = even_chain(calls, 3, "noise")

        def exact(x, call):
            alpha, std = jnp.asarray(chain.alpha)[call], jnp.asarray(chain.std)[call]
            distance = jnp.sum((x[:, None] - alpha * circle) ** 2, axis=-1)
            return (x - alpha * jax.nn.softmax(-distance / (2 * std**2), axis=1) @ circle) / std

        return float(np.median(np.linalg.norm(1.2 * sample_dpm(chain.solver, exact, noise), axis=1)))

    found = [median_radius(calls) for calls in (2, 5, 10, 15)]
    np.testing.assert_allclose(found, [7.8, 3.0, 0.93, 0.98], rtol=0.02)
