"""Laws of initial weights against their moments and bounds."""

from __future__ import annotations

import math
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.networks.initial import initialised, lecun_normal, orthogonal, xavier_uniform
from diffcps.networks.mlp import MLP
from diffcps.networks.norm import NormedMLP

SIZES = (64, 256, 32)
# The mean of n squares of numbers of kurtosis k has a relative std of sqrt((k - 1) / n): below 0.012 for 16,384 normal
# ones. Five of those.
TOLERANCE = 0.06


@pytest.fixture(scope="module")
def network() -> MLP:
    return eqx.filter_jit(MLP)(SIZES, jax.random.key(0), jax.nn.relu)


def test_xavier_uniform(network):
    for layer in initialised(network, xavier_uniform, jax.random.key(1)).layers:
        fan_in, fan_out = layer.weight.shape
        bound = math.sqrt(6.0 / (fan_in + fan_out))
        assert bound * 0.99 < np.max(np.abs(layer.weight)) <= bound * (1 + 1e-6)
        assert np.var(layer.weight) == pytest.approx(bound**2 / 3, rel=TOLERANCE)
        assert np.all(layer.bias == 0.0)
    # Negative control: PyTorch's law has another bound in the first layer and biases that are not zero.
    assert np.max(np.abs(network.layers[0].weight)) > 0.124 and np.any(network.layers[0].bias != 0.0)


def test_lecun_normal(network):
    for layer in initialised(network, lecun_normal, jax.random.key(1)).layers:
        std = layer.weight.shape[0] ** -0.5
        assert np.std(layer.weight) == pytest.approx(std, rel=TOLERANCE)
        # Cut at two standard deviations of the normal distribution before, whose std is 0.8796 after the cut.
        assert np.max(np.abs(layer.weight)) == pytest.approx(2.0 * std / 0.87962566, rel=0.01)
        assert np.all(layer.bias == 0.0)


def test_orthogonal(network):
    ensemble = jax.vmap(lambda key: MLP(SIZES, key, jax.nn.relu))(jax.random.split(jax.random.key(0), 2))
    for networks in (network, ensemble):
        drawn = initialised(networks, orthogonal, jax.random.key(1))
        for layer in drawn.layers:
            for weight in np.asarray(layer.weight).reshape(-1, *layer.weight.shape[-2:]):
                tall = weight if weight.shape[0] >= weight.shape[1] else weight.T
                np.testing.assert_allclose(tall.T @ tall, 2.0 * np.eye(tall.shape[1]), atol=1e-4)
            assert np.all(layer.bias == 0.0)
    one, other = drawn.layers[0].weight  # of the ensemble
    assert np.max(np.abs(one - other)) > 0.1


def test_layers_and_members_of_an_ensemble_differ_and_are_drawn_by_the_fans_of_one():
    ensemble = jax.vmap(lambda key: MLP((64, 64, 64), key, jax.nn.relu))(jax.random.split(jax.random.key(0), 3))
    drawn = initialised(ensemble, xavier_uniform, jax.random.key(1))
    assert jax.tree.structure(drawn) == jax.tree.structure(ensemble)
    weights = np.concatenate([layer.weight for layer in drawn.layers]).reshape(6, -1)
    assert np.max(np.abs(np.corrcoef(weights) - np.eye(6))) < 5 / math.sqrt(weights.shape[1])
    assert np.max(np.abs(weights)) == pytest.approx(math.sqrt(6.0 / 128), rel=0.01)


def test_nothing_but_linear_layers_is_touched():
    network = NormedMLP((5, 8, 1), jax.random.key(0))
    network = eqx.tree_at(lambda n: n.norm.scale, network, jnp.arange(5.0))
    drawn = initialised(network, xavier_uniform, jax.random.key(1))
    np.testing.assert_array_equal(drawn.norm.scale, np.arange(5.0))
    assert np.all(drawn.network.layers[0].weight != network.network.layers[0].weight)


def test_matrices_are_decomposed_one_at_a_time():
    """Batched decompositions of JAX wait for one another for ever on two cores: a stack of members never began."""

    def decomposed(function) -> list[str]:
        """The shapes that `qr` returns, in the program for three members."""
        program = str(jax.make_jaxpr(jax.vmap(function))(jax.random.split(jax.random.key(0), 3)))
        return re.findall(r"f32\[([\d,]+)\] \w+:f32\[[\d,]+\] = qr\[", program)

    assert decomposed(lambda key: orthogonal(key, (2, 6, 4))) == ["6,4"]
    # Negative control: JAX's own law, mapped over, has all three at once.
    assert decomposed(lambda key: jax.nn.initializers.orthogonal()(key, (6, 4))) == ["3,6,4"]
