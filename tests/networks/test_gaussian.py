"""The Gaussian against jax.scipy and arithmetic done by hand; what is learned, what is clipped, what is fixed."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from diffcps.networks.gaussian import Deterministic, Gaussian
from diffcps.networks.mlp import mish
from diffcps.optim import clipped_adam, descend, start
from diffcps.types import Spec

pytestmark = pytest.mark.usefixtures("quick_compilation")

SPEC = Spec(observation_size=4, action_size=3)
HIDDEN = (8, 8)


@eqx.filter_jit  # operations one by one would each be compiled, in seconds
def make_gaussian(std: float | None = None, log_std: tuple[float, ...] | None = None) -> Gaussian:
    """With `log_std` in place of the initial one."""
    policy = Gaussian(SPEC, HIDDEN, jax.random.key(0), std=std)
    if log_std is None:
        return policy
    return eqx.tree_at(lambda p: p.log_std, policy, jnp.asarray(log_std, jnp.float32))


@eqx.filter_jit
def make_deterministic() -> Deterministic:
    return Deterministic(SPEC, HIDDEN, jax.random.key(0))


@jax.jit
def mean(policy: Gaussian, observation: jax.Array) -> jax.Array:
    return policy.mean(observation)


@jax.jit
def log_prob(policy: Gaussian, observation: jax.Array, action: jax.Array) -> jax.Array:
    return policy.log_prob(observation, action)


@jax.jit
def sample(policy: Gaussian, observation: jax.Array, key: jax.Array) -> jax.Array:
    return policy.sample(observation, key)


@jax.jit
def gradient(policy: Gaussian, observation: jax.Array, action: jax.Array) -> Gaussian:
    return jax.grad(lambda policy: jnp.sum(policy.log_prob(observation, action)))(policy)


def batch(axes: tuple[int, ...], seed: int = 0) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(seed)
    observation = rng.normal(size=(*axes, SPEC.observation_size))
    return jnp.asarray(observation, jnp.float32), jnp.asarray(rng.uniform(-1, 1, (*axes, 3)), jnp.float32)


# --- The density ---


@pytest.mark.parametrize("axes", [(), (6,), (2, 3)])
def test_log_prob_is_the_sum_of_one_dimensional_ones(axes):
    log_std = (-1.0, 0.0, 0.5)
    policy = make_gaussian(log_std=log_std)
    observation, action = batch(axes)
    value = log_prob(policy, observation, action)
    each = jax.scipy.stats.norm.logpdf(action, mean(policy, observation), jnp.exp(jnp.asarray(log_std)))
    assert value.shape == axes
    np.testing.assert_allclose(value, jnp.sum(each, axis=-1), rtol=1e-5, atol=1e-5)


def zero_mean(policy: Gaussian) -> Gaussian:
    return eqx.tree_at(lambda p: p.network, policy, jax.tree.map(jnp.zeros_like, policy.network))


def test_log_prob_by_hand():
    # z = (0.5 / 0.5, 0 / 1, -4 / 2), minus the logs of the three std and three times log sqrt(2 pi).
    policy = zero_mean(make_gaussian(log_std=(math.log(0.5), 0.0, math.log(2.0))))
    value = log_prob(policy, jnp.ones(4), jnp.array([0.5, 0.0, -4.0]))
    by_hand = -0.5 * (1.0 + 0.0 + 4.0) - (math.log(0.5) + math.log(2.0)) - 1.5 * math.log(2.0 * math.pi)
    np.testing.assert_allclose(value, by_hand, rtol=1e-6)


def test_gradient_by_hand():
    # d/dmu = (a - mu) / std^2, and the last bias is mu; d/dlog_std = z^2 - 1.
    policy = zero_mean(make_gaussian(log_std=(math.log(0.5), 0.0, math.log(2.0))))
    found = gradient(policy, jnp.ones(4), jnp.array([0.5, 0.0, -4.0]))
    np.testing.assert_allclose(found.network.layers[-1].bias, [2.0, 0.0, -1.0], rtol=1e-5)
    np.testing.assert_allclose(found.log_std, [0.0, -1.0, 3.0], rtol=1e-5, atol=1e-6)


def test_the_mean_has_no_squashing():
    policy = make_gaussian()
    far = eqx.tree_at(lambda p: p.network.layers[-1].bias, policy, jnp.array([5.0, -7.0, 0.0]))
    moved = mean(far, jnp.ones(4)) - mean(policy, jnp.ones(4))
    np.testing.assert_allclose(moved + policy.network.layers[-1].bias, [5.0, -7.0, 0.0], atol=1e-5)


def test_shapes_are_checked_in_tests():
    observation, action = batch((6,))
    with pytest.raises(jaxtyping.TypeCheckError):  # the guard that tests/conftest.py installs
        make_gaussian().log_prob(observation[:5], action)


# --- The std ---


def test_a_learned_log_std_starts_at_zero_and_is_clipped_where_it_is_used():
    np.testing.assert_array_equal(make_gaussian().log_std, np.zeros(3))
    outside, bounds = make_gaussian(log_std=(-9.0, 9.0, 0.1)), make_gaussian(log_std=(-5.0, 2.0, 0.1))
    observation, action = batch((6,))
    np.testing.assert_array_equal(log_prob(outside, observation, action), log_prob(bounds, observation, action))
    key = jax.random.key(1)
    drawn = sample(outside, observation, key)
    np.testing.assert_array_equal(drawn, sample(bounds, observation, jax.random.clone(key)))
    slope = gradient(outside, observation, action).log_std
    assert slope[0] == slope[1] == 0.0 and slope[2] != 0.0  # no way back from outside, as in the references


def test_the_range_of_the_log_std_can_be_chosen():
    policy = Gaussian(SPEC, HIDDEN, jax.random.key(0), log_std_range=(-0.5, 0.5))
    wide = eqx.tree_at(lambda p: p.log_std, policy, jnp.full(3, 9.0))
    value = log_prob(zero_mean(wide), jnp.ones(4), jnp.zeros(3))
    np.testing.assert_allclose(value, -3 * (0.5 + 0.5 * math.log(2.0 * math.pi)), rtol=1e-6)


def test_a_given_std_is_used_and_stays():
    policy = make_gaussian(std=0.4)
    observation, action = batch((64,))
    each = jax.scipy.stats.norm.logpdf(action, mean(policy, observation), 0.4)
    np.testing.assert_allclose(log_prob(policy, observation, action), jnp.sum(each, axis=-1), rtol=1e-5, atol=1e-5)
    slope = gradient(policy, observation, action)
    assert np.all(slope.log_std == 0.0) and np.any(slope.network.layers[0].weight != 0.0)
    optimiser = clipped_adam(0.1, 1.0)

    @jax.jit
    def step(policy: Gaussian, slope: Gaussian) -> Gaussian:
        return descend(optimiser, start(optimiser, policy), slope)[0].model

    np.testing.assert_array_equal(step(policy, slope).log_std, policy.log_std)
    learned = make_gaussian()  # negative control: the learned one moves
    assert np.all(step(learned, gradient(learned, observation, action)).log_std != 0.0)


def test_a_given_std_may_be_traced():
    def at_the_mean(std: jax.Array) -> jax.Array:
        policy = Gaussian(SPEC, HIDDEN, jax.random.key(0), std=std)
        return policy.log_prob(jnp.ones(4), policy.mean(jnp.ones(4)))

    std = jnp.array([0.01, 0.4, 20.0])  # the range is for a learned one: it does not touch 20
    values = jax.jit(jax.vmap(at_the_mean))(std)
    np.testing.assert_allclose(values, -3 * (np.log(std) + 0.5 * math.log(2.0 * math.pi)), rtol=1e-5)


# --- Samples ---


def test_samples_have_the_mean_and_the_std():
    std = np.array([0.1, 0.5, 3.0])
    policy = make_gaussian(log_std=tuple(np.log(std)))
    size = 20_000
    observation = jnp.broadcast_to(batch(())[0], (size, 4))
    z = np.asarray((sample(policy, observation, jax.random.key(2)) - mean(policy, observation)) / std)
    # Over n draws the mean has std 1 / sqrt(n), the mean square sqrt(2 / n), a correlation 1 / sqrt(n): five of each.
    assert np.all(np.abs(z.mean(axis=0)) < 5 / math.sqrt(size))
    assert np.all(np.abs((z**2).mean(axis=0) - 1) < 5 * math.sqrt(2 / size))
    assert not np.any(np.abs(((1.1 * z) ** 2).mean(axis=0) - 1) < 5 * math.sqrt(2 / size))  # negative control
    correlation = np.corrcoef(z.T)[np.triu_indices(3, 1)]
    assert np.all(np.abs(correlation) < 5 / math.sqrt(size))
    assert np.max(np.abs(z * std)) > 1.0  # nothing is clipped to the box


def test_another_key_another_sample():
    policy, observation = make_gaussian(), batch((5,))[0]
    first, other = (sample(policy, observation, jax.random.key(seed)) for seed in (0, 1))
    assert np.all(np.abs(first - other) > 1e-6)


@pytest.mark.parametrize("axes", [(), (5,), (2, 3)])
def test_leading_axes(axes):
    observation, _ = batch(axes)
    assert sample(make_gaussian(), observation, jax.random.key(0)).shape == (*axes, 3)
    policy, evaluate = make_deterministic(), jax.jit(lambda policy, observation: policy(observation))
    rows = observation.reshape(-1, 4)
    for network, function in ((make_gaussian(), mean), (policy, evaluate)):
        expected = np.stack([function(network, row) for row in rows]).reshape(*axes, 3)
        np.testing.assert_allclose(function(network, observation), expected, atol=1e-6)


# --- Layers ---


@pytest.mark.parametrize("network", [make_gaussian().network, make_deterministic().network])
def test_layers_are_initialised_as_pytorch_does(network):
    assert [layer.weight.shape for layer in network.layers] == [(4, 8), (8, 8), (8, 3)]
    for layer in network.layers:
        bound = 1.0 / math.sqrt(layer.weight.shape[0])
        for array in (layer.weight, layer.bias):
            assert np.all(np.abs(array) <= bound * (1 + 1e-7)) and np.any(np.abs(array) > 0.5 * bound)


def test_the_deterministic_policy_by_hand():
    # Hidden: relu of [1 - 3, 1 + 1] = [0, 2]; before tanh: 2 w + b.
    policy = eqx.tree_at(
        lambda p: [array for layer in p.network.layers for array in (layer.weight, layer.bias)],
        Deterministic(Spec(1, 2), (2,), jax.random.key(0)),
        [jnp.ones((1, 2)), jnp.array([-3.0, 1.0]), jnp.array([[9.0, 9.0], [0.5, -20.0]]), jnp.array([-0.5, 0.0])],
    )
    np.testing.assert_allclose(policy(jnp.ones(1)), [math.tanh(0.5), -1.0], rtol=1e-6)


def test_another_activation():
    policies = [Gaussian(SPEC, HIDDEN, jax.random.key(0)), Gaussian(SPEC, HIDDEN, jax.random.key(0), mish)]
    relu, other = (mean(policy, jnp.ones(4)) for policy in policies)
    assert np.all(np.abs(relu - other) > 1e-4)
