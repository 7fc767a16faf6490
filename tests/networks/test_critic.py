"""An ensemble against its members, one at a time, and against the authors' networks."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffcps.networks.critic import Critic
from diffcps.networks.mlp import MLP
from diffcps.types import Spec
from tests.golden.weights import critic_from_golden

SPEC = Spec(observation_size=4, action_size=2)


def make_critic(size: int = 2) -> Critic:
    return Critic(SPEC, 8, 2, jax.random.key(0), size=size)


def make_batch(seed: int, batch: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    key_observation, key_action = jax.random.split(jax.random.key(seed))
    return jax.random.normal(key_observation, (*batch, 4)), jax.random.uniform(key_action, (*batch, 2), minval=-1.0)


def member(critic: Critic, j: int) -> MLP:
    return jax.tree.map(lambda leaf: leaf[j], critic.networks)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_ensemble_is_each_network_alone(size):
    critic = make_critic(size)
    observation, action = make_batch(1, (6,))
    q = critic(observation, action)
    assert q.shape == (size, 6)
    x = jnp.concatenate([observation, action], axis=-1)  # the observation comes first, as in the authors' program
    for j in range(size):
        np.testing.assert_allclose(q[j], member(critic, j)(x)[:, 0], rtol=0, atol=1e-6)


def test_networks_differ_in_every_layer():
    critic = make_critic()
    for leaf in jax.tree.leaves(critic):
        assert leaf.shape[0] == 2
        assert not np.any(leaf[0] == leaf[1])
    q = critic(*make_batch(1, (6,)))
    assert np.all(np.abs(q[0] - q[1]) > 1e-4)


def test_sizes_of_the_layers():
    shapes = [layer.weight.shape for layer in make_critic().networks.layers]
    assert shapes == [(2, 6, 8), (2, 8, 8), (2, 8, 1)]


def test_the_gradient_of_one_network_leaves_the_others_alone():
    batch = make_batch(2, (6,))
    gradient = jax.grad(lambda critic: jnp.sum(critic(*batch)[0]))(make_critic())
    for leaf in jax.tree.leaves(gradient):
        assert np.any(leaf[0] != 0.0) and np.all(leaf[1] == 0.0)


CRITIC = make_critic()


@jax.jit
def evaluate(observation, action):
    return CRITIC(observation, action)


@jax.jit
def evaluate_mapped(observation, action):
    return jax.vmap(CRITIC, out_axes=1)(observation, action)


@given(st.integers(0, 2**31), st.permutations(range(6)))
def test_batch_is_the_vmap_of_single_in_any_order(seed, order):
    observation, action = make_batch(seed, (6,))
    q = CRITIC(observation, action)
    np.testing.assert_allclose(q, evaluate(observation, action), rtol=0, atol=1e-6)
    np.testing.assert_allclose(q, evaluate_mapped(observation, action), rtol=0, atol=1e-6)
    order = np.array(order)
    np.testing.assert_allclose(q[:, order], evaluate(observation[order], action[order]), rtol=0, atol=1e-6)


def test_leading_axes():
    observation, action = make_batch(3, (2, 3))
    q = CRITIC(observation, action)
    assert q.shape == (2, 2, 3) and CRITIC(observation[0, 0], action[0, 0]).shape == (2,)
    np.testing.assert_allclose(q[:, 1, 2], CRITIC(observation[1, 2], action[1, 2]), rtol=0, atol=1e-6)


def test_shapes_are_checked_in_tests():
    observation, action = make_batch(4, (6,))
    with pytest.raises(jaxtyping.TypeCheckError):  # the guard that tests/conftest.py installs
        CRITIC(observation[:5], action)


# --- The authors' numbers ---


def test_golden_online_values(golden):
    reference = golden("diffcps_reference")
    critic = critic_from_golden(reference, "critic")
    q = critic(jnp.asarray(reference["batch/observation"]), jnp.asarray(reference["batch/action"]))
    expected = np.stack([reference["critic/q1"], reference["critic/q2"]])[..., 0]
    np.testing.assert_allclose(q, expected, rtol=0, atol=1e-5)
    # Negative control: the targets' weights give other numbers, so that the parity is one of these very weights.
    target = critic_from_golden(reference, "target_critic")
    assert (
        np.max(np.abs(target(jnp.asarray(reference["batch/observation"]), jnp.asarray(reference["batch/action"])) - q))
        > 1e-3
    )


def test_golden_target_values(golden):
    reference = golden("diffcps_reference")
    critic = critic_from_golden(reference, "target_critic")
    q = critic(jnp.asarray(reference["batch/next_observation"]), jnp.asarray(reference["sample_next/action"]))
    expected = np.stack([reference["critic/target_q1"], reference["critic/target_q2"]])[..., 0]
    np.testing.assert_allclose(q, expected, rtol=0, atol=1e-5)


def test_golden_weights_fill_a_critic_of_our_own_making(golden):
    critic = critic_from_golden(golden("diffcps_reference"), "critic")
    ours = Critic(Spec(5, 3), 32, 3, jax.random.key(0))
    assert jax.tree.structure(critic) == jax.tree.structure(ours)
    assert jax.tree.map(jnp.shape, eqx.filter(critic, eqx.is_array)) == jax.tree.map(
        jnp.shape, eqx.filter(ours, eqx.is_array)
    )
