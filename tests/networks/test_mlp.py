"""Mish where float32 is at its limits; initialisation; batches of any shape."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diffcps.networks.mlp import MLP, Linear, mish

# --- Mish ---


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, 1.0 / (1.0 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1.0 + np.exp(-np.abs(x))))


def mish_in_float64(x: np.ndarray) -> np.ndarray:
    return x * np.tanh(np.log1p(np.exp(x)))


def slope_in_float64(x: np.ndarray) -> np.ndarray:
    """d/dx x tanh(softplus(x)), by the product and chain rules."""
    ratio = np.tanh(np.log1p(np.exp(x)))
    return ratio + x * (1.0 - ratio**2) * sigmoid(x)


GRID = np.linspace(-100.0, 100.0, 20_001, dtype=np.float32)
WIDE = GRID.astype(np.float64)
FLUSHED = 2e-36  # below x = -87.3 e^x is no normal float32 and becomes zero: |x| e^x is 1.03e-36 there


def test_mish_against_float64():
    assert mish(jnp.zeros(())) == 0.0
    np.testing.assert_allclose(mish(jnp.ones(())), 0.86509839, rtol=1e-6)  # tanh(log(1 + e))
    np.testing.assert_allclose(mish(jnp.asarray(GRID)), mish_in_float64(WIDE), rtol=2e-6, atol=FLUSHED)


def test_slope_of_mish_against_float64():
    slope = np.asarray(jax.vmap(jax.grad(mish))(jnp.asarray(GRID)))
    # The slope is the sum of two terms that cancel at x = -1.19, so the error is judged by the size of the terms.
    ratio = np.tanh(np.log1p(np.exp(WIDE)))
    size = ratio + np.abs(WIDE) * (1.0 - ratio**2) * sigmoid(WIDE)
    assert np.all(np.abs(slope - slope_in_float64(WIDE)) <= 2e-6 * size + FLUSHED)


def naive_mish(x: jax.Array) -> jax.Array:
    """Right values and, for cotangents near one, right gradients: the trap that once ruined a training."""
    e = jnp.exp(jnp.minimum(x, 20.0))
    n = e * (e + 2.0)
    return x * n / (n + 2.0)


def error_of_small_cotangents(activation) -> float:
    """Largest relative error of a pulled-back cotangent, over pre-activations 10..100 and cotangents 1e-12..1e-30."""
    x, cotangent = np.meshgrid(np.linspace(10.0, 100.0, 181), np.logspace(-12, -30, 37))
    x, cotangent = x.astype(np.float32), cotangent.astype(np.float32)
    _, pull_back = jax.vjp(activation, jnp.asarray(x))
    (pulled,) = pull_back(jnp.asarray(cotangent))
    expected = slope_in_float64(x.astype(np.float64)) * cotangent.astype(np.float64)
    return float(np.max(np.abs(np.asarray(pulled, np.float64) - expected) / expected))


def test_small_cotangents_pass_large_activations():
    assert error_of_small_cotangents(mish) < 1e-6
    assert error_of_small_cotangents(jax.jit(mish)) < 1e-6


def test_negative_control_the_naive_form_loses_small_cotangents():
    # It passes the check of values, and that of slopes with a cotangent of one ...
    np.testing.assert_allclose(naive_mish(jnp.asarray(GRID)), mish_in_float64(WIDE), rtol=2e-6, atol=FLUSHED)
    large = np.linspace(10.0, 100.0, 181, dtype=np.float32)
    slope = jax.vmap(jax.grad(naive_mish))(jnp.asarray(large))
    np.testing.assert_allclose(slope, slope_in_float64(large.astype(np.float64)), rtol=1e-5)
    # ... and yet it flushes small cotangents to zero: a relative error of one.
    assert error_of_small_cotangents(naive_mish) >= 1.0 - 1e-6


def test_small_cotangents_pass_whole_layers():
    # A chain of two layers with pre-activations of about 30: d(scale * y)/dx = scale * dy/dx, however small the scale.
    mlp = make_mlp((4, 8, 8, 1))
    mlp = eqx.tree_at(lambda m: [layer.bias for layer in m.layers[:-1]], mlp, [jnp.full((8,), 30.0)] * 2)

    @jax.jit
    def gradient(scale):
        return jax.grad(lambda m: scale * m(jnp.ones((4,)))[0])(mlp)

    for small, one in zip(jax.tree.leaves(gradient(1e-25)), jax.tree.leaves(gradient(1.0)), strict=True):
        assert np.all(one != 0.0)
        np.testing.assert_allclose(small / 1e-25, one, rtol=1e-5)


def test_mish_under_jit_vmap_and_grad():
    x = jnp.linspace(-8.0, 20.0, 57)
    np.testing.assert_allclose(jax.jit(mish)(x), mish(x), rtol=2e-6)
    np.testing.assert_allclose(jax.vmap(mish)(x), mish(x), rtol=2e-6)
    slope = jax.vmap(jax.grad(mish))(x)
    np.testing.assert_allclose(jax.jit(jax.grad(lambda x: jnp.sum(mish(x))))(x), slope, rtol=2e-6, atol=1e-6)
    value, tangent = jax.jit(lambda x: jax.jvp(mish, (x,), (jnp.full_like(x, 2.0),)))(x)
    np.testing.assert_allclose(value, mish(x), rtol=2e-6)
    np.testing.assert_allclose(tangent, 2.0 * slope, rtol=2e-6, atol=1e-6)


def test_second_derivative_of_mish():
    x = np.linspace(-8.0, 20.0, 57)
    step = 1e-5  # central differences of the float64 slope: their error is of order step^2 + 1e-16 / step
    expected = (slope_in_float64(x + step) - slope_in_float64(x - step)) / (2.0 * step)
    second = jax.vmap(jax.jit(jax.grad(jax.grad(mish))))(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(second, expected, rtol=0, atol=2e-6)


# --- Linear ---


def variance_is_uniform(x: np.ndarray, bound: float) -> bool:
    # U(-c, c) has mean 0, variance c^2 / 3 and fourth moment c^4 / 5. Over n draws the mean has std c / sqrt(3 n), and
    # the mean square has std c^2 sqrt((1/5 - 1/9) / n). Five of each: a false alarm once in a million.
    n = x.size
    mean_holds = abs(np.mean(x)) < 5.0 * bound / np.sqrt(3 * n)
    return bool(mean_holds and abs(np.mean(x**2) - bound**2 / 3) < 5.0 * bound**2 * np.sqrt((1 / 5 - 1 / 9) / n))


@pytest.mark.parametrize(("fan_in", "fan_out"), [(16, 20_000), (1000, 300)])
def test_linear_is_initialised_as_pytorch_does(fan_in, fan_out):
    linear = Linear(fan_in, fan_out, jax.random.key(0))
    bound = 1.0 / np.sqrt(fan_in)
    weight, bias = np.asarray(linear.weight, np.float64), np.asarray(linear.bias, np.float64)
    assert weight.shape == (fan_in, fan_out) and bias.shape == (fan_out,)
    for x in (weight.ravel(), bias):
        assert np.all(np.abs(x) <= bound * (1 + 1e-7))
        assert variance_is_uniform(x, bound)
        # DKW: P(KS distance > d) <= 2 exp(-2 n d^2), with a chance of 1e-5.
        distance = stats.kstest(x, stats.uniform(-bound, 2 * bound).cdf).statistic
        assert distance < np.sqrt(np.log(2 / 1e-5) / (2 * x.size))
    assert not np.any(bias == weight[0])  # drawn apart
    # Negative controls: a bound 5 % off, and a normal of the same variance.
    assert not variance_is_uniform(1.05 * weight.ravel(), bound)
    normal = np.random.default_rng(0).normal(0.0, bound / np.sqrt(3), weight.size)
    assert np.any(np.abs(normal) > bound)
    assert not variance_is_uniform(normal.clip(-bound, bound), bound)


def test_linear_by_hand():
    linear = eqx.tree_at(
        lambda m: (m.weight, m.bias),
        Linear(2, 3, jax.random.key(0)),
        (jnp.array([[1.0, 2.0, 3.0], [-1.0, 0.5, 0.0]]), jnp.array([0.5, 0.0, -1.0])),
    )
    np.testing.assert_allclose(linear(jnp.array([2.0, 4.0])), [2.0 - 4.0 + 0.5, 4.0 + 2.0, 6.0 - 1.0])


def test_a_key_is_consumed():
    key = jax.random.key(0)
    Linear(2, 3, key)
    with pytest.raises(jax.errors.KeyReuseError):  # the guard that tests/conftest.py switches on
        Linear(2, 3, key)


# --- MLP ---


@eqx.filter_jit  # operations one by one would each be compiled, in seconds
def make_mlp(sizes: tuple[int, ...]) -> MLP:
    return MLP(sizes, jax.random.key(0))


def test_mlp_by_hand():
    # Hidden pre-activations [-1, 2]; the output is their Mish summed, minus 10: nothing after the last layer.
    mlp = eqx.tree_at(
        lambda m: [array for layer in m.layers for array in (layer.weight, layer.bias)],
        make_mlp((1, 2, 1)),
        [jnp.array([[1.0, 2.0]]), jnp.array([-2.0, 0.0]), jnp.ones((2, 1)), jnp.array([-10.0])],
    )
    expected = mish_in_float64(np.array([-1.0, 2.0])).sum() - 10.0
    np.testing.assert_allclose(mlp(jnp.ones((1,))), [expected], rtol=1e-6)


def test_layers_of_an_mlp_differ_and_have_the_given_sizes():
    mlp = make_mlp((4, 8, 8, 8, 2))
    assert [layer.weight.shape for layer in mlp.layers] == [(4, 8), (8, 8), (8, 8), (8, 2)]
    assert not np.any(mlp.layers[1].weight == mlp.layers[2].weight)
    assert all(eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves(mlp))  # a module is its own parameters
    assert len(jax.tree.leaves(mlp)) == 8


MLP_OF_TWO_LAYERS = make_mlp((3, 5, 2))


@jax.jit
def evaluate(x):
    return MLP_OF_TWO_LAYERS(x)


@given(st.sampled_from([(1,), (6,), (2, 3)]), st.integers(0, 2**31))
def test_batch_is_the_vmap_of_single(batch, seed):
    x = np.random.default_rng(seed).normal(size=(*batch, 3)).astype(np.float32)
    y = np.asarray(evaluate(jnp.asarray(x)))
    assert y.shape == (*batch, 2)
    rows = [evaluate(jnp.asarray(row)) for row in x.reshape(-1, 3)]  # no leading axis
    np.testing.assert_allclose(y.reshape(-1, 2), np.stack(rows), rtol=0, atol=1e-6)
    np.testing.assert_allclose(y, MLP_OF_TWO_LAYERS(jnp.asarray(x)), rtol=0, atol=1e-6)
