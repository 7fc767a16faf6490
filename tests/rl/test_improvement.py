"""Policy improvement against arithmetic done by hand, and the frequencies of the drawn candidates."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.rl.improvement import choose_candidate, normalised_q_loss, softmax_value

pytestmark = pytest.mark.usefixtures("strict_dtypes")

# --- The loss ---

Q, OTHER = jnp.array([1.0, 3.0]), jnp.array([-2.0, 6.0])


def test_normalised_q_loss_by_hand():
    assert float(normalised_q_loss(Q, OTHER)) == -0.5  # -((1 + 3) / 2) / ((2 + 6) / 2): mean of |Q|, not |mean of Q|


def test_gradient_of_normalised_q_loss():
    np.testing.assert_array_equal(jax.grad(normalised_q_loss)(Q, OTHER), [-0.125, -0.125])  # -1 / 2 / 4 each


def test_no_gradient_flows_through_the_other_q():
    np.testing.assert_array_equal(jax.grad(normalised_q_loss, argnums=1)(Q, OTHER), [0.0, 0.0])


def test_no_gradient_flows_through_the_denominator_of_a_shared_scale():
    # -mean(w Q) / mean |w Q'|: the value does not depend on w > 0, but its slope with the denominator held does.
    slope = jax.grad(lambda w: normalised_q_loss(w * Q, w * OTHER))(2.0)
    assert float(slope) == -2.0 / 8.0


# --- The value of many actions ---


def test_softmax_value_by_hand():
    q = jnp.array([[0.0, math.log(3.0)], [2.0, 2.0]])
    # Weights 1/4 and 3/4; equal ones.
    np.testing.assert_allclose(softmax_value(q, 1.0), [0.75 * math.log(3.0), 2.0], rtol=1e-6)
    np.testing.assert_allclose(softmax_value(q, 0.0), [0.5 * math.log(3.0), 2.0], rtol=1e-6)
    np.testing.assert_allclose(softmax_value(q, 100.0), [math.log(3.0), 2.0], rtol=1e-6)


# --- The choice ---

CANDIDATES = jnp.arange(12.0).reshape(2, 3, 2)  # two observations, three candidates, two action dimensions


def test_argmax_picks_the_candidate_of_highest_q_for_each_row():
    q = jnp.array([[0.0, 2.0, 1.0], [5.0, -1.0, 4.0]])
    action = choose_candidate(CANDIDATES, q, "argmax_q", 1.0, jax.random.key(0))
    np.testing.assert_array_equal(action, [[2.0, 3.0], [6.0, 7.0]])


def test_sample_takes_the_first_candidate_whatever_its_q():
    q = jnp.array([[-9.0, 2.0, 1.0], [-9.0, 5.0, 4.0]])
    action = choose_candidate(CANDIDATES, q, "sample", 1.0, jax.random.key(0))
    np.testing.assert_array_equal(action, [[0.0, 1.0], [6.0, 7.0]])


@pytest.mark.parametrize("choice", ["sample", "softmax_q", "argmax_q"])
def test_leading_axes(choice):
    # Q leaves no doubt: the second candidate in the first row, the first one in the others, for all three choices but
    # "sample", which takes the first everywhere.
    q = jnp.where(jnp.arange(3) == 0, 0.0, -1e6) * jnp.ones((4, 2, 1))
    q = q.at[0, 0].set(jnp.array([-1e6, 0.0, -1e6]))
    candidates = jnp.broadcast_to(CANDIDATES, (4, 2, 3, 2))
    action = choose_candidate(candidates, q, choice, 1.0, jax.random.key(0))
    expected = np.array(candidates[:, :, 0])
    if choice != "sample":
        expected[0, 0] = [2.0, 3.0]
    np.testing.assert_array_equal(action, expected)
    one = choose_candidate(candidates[0, 0], q[0, 0], choice, 1.0, jax.random.key(0))
    np.testing.assert_array_equal(one, expected[0, 0])


# --- Frequencies ---

NUM_DRAWS = 20_000
PROBABILITIES = np.array([0.5, 0.3, 0.2])
# Hoeffding: P(|frequency - p| > d) <= 2 exp(-2 n d^2) for each of three candidates. With the chance of any false alarm
# set to 1e-4, d = sqrt(log(6 / 1e-4) / (2 n)) = 0.0166 for n = 20,000.
TOLERANCE = math.sqrt(math.log(6 / 1e-4) / (2 * NUM_DRAWS))


def frequencies_over_keys(q: jax.Array, temperature: float) -> np.ndarray:
    """A key for each draw."""
    candidates = jnp.arange(3.0)[:, None]
    keys = jax.random.split(jax.random.key(0), NUM_DRAWS)
    draw = jax.jit(jax.vmap(lambda key: choose_candidate(candidates, q, "softmax_q", temperature, key)))
    return np.bincount(np.asarray(draw(keys), int)[:, 0], minlength=3) / NUM_DRAWS


def frequencies_over_rows(q: jax.Array, temperature: float) -> np.ndarray:
    """One key, a row for each draw."""
    candidates = jnp.broadcast_to(jnp.arange(3.0)[:, None], (NUM_DRAWS, 3, 1))
    q = jnp.broadcast_to(q, (NUM_DRAWS, 3))
    action = choose_candidate(candidates, q, "softmax_q", temperature, jax.random.key(1))
    return np.bincount(np.asarray(action, int)[:, 0], minlength=3) / NUM_DRAWS


@pytest.mark.parametrize("frequencies", [frequencies_over_keys, frequencies_over_rows])
@pytest.mark.parametrize("temperature", [1.0, 0.25, 5.0])
def test_softmax_draws_with_its_probabilities(frequencies, temperature):
    q = jnp.asarray(temperature * np.log(PROBABILITIES) + 3.0, jnp.float32)  # a constant changes nothing
    assert np.max(np.abs(frequencies(q, temperature) - PROBABILITIES)) < TOLERANCE
    # Negative control: at twice the temperature the probabilities are those of the square roots, 0.42, 0.32 and 0.26.
    assert np.max(np.abs(frequencies(q, 2.0 * temperature) - PROBABILITIES)) > 3 * TOLERANCE


def test_extreme_values_stay_finite():
    q = jnp.array([1e30, 0.0, -1e30])
    action = choose_candidate(jnp.arange(3.0)[:, None], q, "softmax_q", 1e-3, jax.random.key(0))
    np.testing.assert_array_equal(action, [0.0])
