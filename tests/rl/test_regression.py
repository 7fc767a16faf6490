"""Expectile regression against arithmetic done by hand and the definition of an expectile."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.rl.regression import expectile_loss


def test_by_hand():
    # 0.7 * 2^2 and 0.3 * 1^2; their mean.
    np.testing.assert_allclose(expectile_loss(jnp.array([2.0, -1.0]), 0.7), (2.8 + 0.3) / 2, rtol=1e-6)
    np.testing.assert_allclose(expectile_loss(jnp.array([2.0, -1.0]), 0.5), 2.5 / 2, rtol=1e-6)  # half a mean square
    assert expectile_loss(jnp.zeros(3), 0.7) == 0.0


@pytest.mark.parametrize("expectile", [0.1, 0.5, 0.7, 0.9])
def test_the_minimum_over_a_constant_is_the_expectile(expectile):
    # Of k ones and n - k zeros it solves tau k (1 - m) = (1 - tau) (n - k) m.
    ones, zeros = 3, 7
    m = expectile * ones / (expectile * ones + (1.0 - expectile) * zeros)
    data = jnp.array([1.0] * ones + [0.0] * zeros)
    slope = jax.grad(lambda constant: expectile_loss(data - constant, expectile))
    np.testing.assert_allclose(slope(jnp.float32(m)), 0.0, atol=1e-6)
    assert slope(jnp.float32(m + 0.01)) > 1e-3 and slope(jnp.float32(m - 0.01)) < -1e-3  # negative controls
