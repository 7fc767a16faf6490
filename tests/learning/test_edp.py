"""EDP on two modes of which one earns 1, the other 0: each of its losses against the exact policy where it is known."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import edp
from diffcps.diffusion.sampler import sample_ancestral
from diffcps.diffusion.schedule import make_schedule
from diffcps.rl.replay import transitions
from diffcps.types import Dataset, NetObservation, Spec, UserError
from tests.problems import MANY_STEPS, MODES, NUM_ACTIONS, SPREAD, Training, dataset_of, near_a_mode

# The second member of each training improves nothing: it is a clone.
SWEEPS = {
    "td3": [{"q_weight": weight} for weight in (2.0, 0.0)],
    "iql": [{"iql_inverse_temperature": beta} for beta in (3.0, 0.0)],
    "crr": [{"crr_temperature": temperature} for temperature in (0.5, 1e6)],
}
SCHEDULE = make_schedule("vp", MANY_STEPS)
DISCOUNT, EXPECTILE, BETTER, ROWS = 0.8, 0.7, (-1, 1), 128
STATES = np.eye(4, dtype=np.float32)
"""In the first two the mode with the sign in `BETTER` earns 1, the other 0, and all ends. The others lead to the second
and earn nothing: from the third it goes on there, from the fourth it does not."""


def problem() -> Dataset:
    """Both modes, logged equally often in every state."""
    state, mode = (array.ravel() for array in np.meshgrid(np.repeat(np.arange(4), ROWS), MODES))
    action = np.clip(mode + SPREAD * np.random.default_rng(0).normal(size=state.size), -1, 1)
    earned = (state < 2) & (np.sign(mode) == np.where(state == 0, *BETTER))
    following = STATES[np.where(state < 2, state, 1)]
    return dataset_of(STATES[state], action[:, None], earned, following, state != 2)


@cache
def trained(improvement: str) -> Training:
    rates = {"actor_learning_rate": 2e-3, "critic_learning_rate": 2e-3, "value_learning_rate": 2e-3}
    config = {"improvement": improvement, "schedule": "vp", "num_steps": MANY_STEPS, "action_choice": "sample"}
    sizes = {"width": 32, "batch_size": 128, "discount": DISCOUNT, "expectile": EXPECTILE}
    training = Training("edp", problem(), SWEEPS[improvement], **rates, **config, **sizes)
    training.advance(2000)
    return training


@cache
def actions(improvement: str) -> np.ndarray:
    """(members, 2, actions) in the first two states, with the sign that makes the better mode positive."""
    training = trained(improvement)
    rows = np.broadcast_to(np.repeat(STATES[:2], NUM_ACTIONS // 2, axis=0), (2, NUM_ACTIONS, 4))
    action = training.program.act(training.state, NetObservation(rows), training.updates, 0)
    return action.reshape(2, 2, -1) * np.array(BETTER)[:, None]


def shares(improvement: str) -> np.ndarray:
    """How often each member takes the better mode, the mean over both states."""
    return np.mean(actions(improvement) > 0, axis=(1, 2))


def q_of(improvement: str, member: int) -> np.ndarray:
    """Mean Q of the logged actions of each state."""
    data = problem()
    return trained(improvement).q(data.observation, data.action, member).mean(axis=0).reshape(2, 4, ROWS).mean((0, 2))


# --- The exact policy of L_d - E[w log N(a; a_0, I)] ---


def exact_share(better: float, worse: float) -> float:
    """How often the chain ends in the better mode where a_0(x) minimises the loss for these weights of the two modes.

    In one dimension eps - eps_theta is (alpha / std) (a_0 - a), so that each logged a enters by (a_0 - a)^2 with the
    weight c + w / 2, c = (alpha / std)^2: a_0 is the mean of a given x, under the posterior with these weights.
    """
    alpha_bar = jnp.asarray(SCHEDULE.alpha_bar)
    modes, weight = jnp.array(MODES[::-1]), jnp.array([better, worse])

    def denoise(x, t):
        alpha, variance = jnp.sqrt(alpha_bar[t]), 1.0 - alpha_bar[t]
        spread = alpha_bar[t] * SPREAD**2 + variance
        from_mean = x - alpha * modes
        posterior = modes + alpha * SPREAD**2 / spread * from_mean
        share = jax.nn.softmax(-0.5 * jnp.square(from_mean) / spread) * (alpha_bar[t] / variance + weight / 2.0)
        a0 = jnp.sum(share * posterior, axis=-1, keepdims=True) / jnp.sum(share, axis=-1, keepdims=True)
        return (x - alpha * a0) / jnp.sqrt(variance)

    noise = jax.random.normal(jax.random.key(1), (MANY_STEPS, 20_000, 1))
    return float(jnp.mean(jax.jit(partial(sample_ancestral, SCHEDULE, denoise))(noise) > 0))


SHARE_TOLERANCE = 0.07
"""2,000 actions are within 0.05 of their expectation (tests/problems.py); the rest is left to a small network."""


def iql_share(beta: float) -> float:
    """V is the expectile of a 0 and a 1 that are logged equally often, EXPECTILE itself."""
    return exact_share(np.exp(beta * (1.0 - EXPECTILE)), np.exp(-beta * EXPECTILE))


@pytest.mark.slow
def test_iql_takes_the_better_mode_as_often_as_its_exact_policy():
    exact = [iql_share(member["iql_inverse_temperature"]) for member in SWEEPS["iql"]]
    np.testing.assert_allclose(shares("iql"), exact, rtol=0, atol=SHARE_TOLERANCE)
    assert abs(exact[1] - 0.5) < 0.01 and exact[0] - exact[1] > 2 * SHARE_TOLERANCE


@pytest.mark.slow
def test_the_critic_of_iql_is_bootstrapped_from_the_expectile():
    for member in (0, 1):
        expected = [0.5, 0.5, DISCOUNT * EXPECTILE, 0.0]  # the mean of both modes in the first two
        np.testing.assert_allclose(q_of("iql", member), expected, rtol=0, atol=0.07)


@pytest.mark.slow  # three of its updates equal the program's in tests/golden
def test_td3_finds_the_better_mode():
    improved, clone = shares("td3")
    assert improved > 0.8
    assert abs(clone - 0.5) < SHARE_TOLERANCE and near_a_mode(actions("td3")[1]) > 0.9


@pytest.mark.slow
def test_the_critic_of_td3_is_bootstrapped_from_the_policys_actions():
    training = trained("td3")
    for member in (0, 1):
        action = actions("td3")[member, 1][:, None]
        value = training.q(np.tile(STATES[1], (len(action), 1)), action, member).mean()
        expected = [0.5, 0.5, DISCOUNT * value, 0.0]
        np.testing.assert_allclose(q_of("td3", member), expected, rtol=0, atol=0.08)
    # Negative control: the two policies are worth different values.
    assert q_of("td3", 0)[2] - q_of("td3", 1)[2] > 0.16


@pytest.mark.slow  # the same loss as iql's with other weights
def test_crr_takes_the_better_mode_as_often_as_its_exact_policy():
    # The mean of Q around a_0, which the weights subtract, is the same for both modes, and known to lie in [0, 1].
    temperature = SWEEPS["crr"][0]["crr_temperature"]
    low, high = (exact_share(*np.exp((np.array([1.0, 0.0]) - mean) / temperature)) for mean in (1.0, 0.0))
    improved, clone = shares("crr")
    assert low - SHARE_TOLERANCE < improved < high + SHARE_TOLERANCE
    assert abs(clone - 0.5) < SHARE_TOLERANCE
    assert improved - clone > 2 * SHARE_TOLERANCE


@pytest.mark.parametrize(("improvement", "backup", "samples"), [("td3", 1, 0), ("crr", 1, 7), ("iql", 0, 0)])
def test_what_an_improvement_does_not_read_is_not_drawn(improvement, backup, samples):
    config = edp.Config(improvement=improvement, crr_samples=7)
    draws = edp.draw(config, transitions(problem()), jax.random.key(0))
    assert (draws.next_noise.shape[2], draws.sample_noise.shape[1]) == (backup, samples)


def test_impossible_values_are_refused():
    with pytest.raises(UserError, match="num_steps is 1: sampler dpm"):
        edp.make(edp.Config(sampler="dpm", schedule="vp", num_steps=1), Spec(1, 1))
    with pytest.raises(UserError, match="num_steps is 20: schedule linear_rate needs more than 20"):
        edp.make(edp.Config(num_steps=20), Spec(1, 1))
