"""An ensemble against its members, one at a time, and against the authors' networks."""

from __future__ import annotations

from functools import partial

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

pytestmark = pytest.mark.usefixtures("quick_compilation")

SPEC = Spec(observation_size=4, action_size=2)


@eqx.filter_jit  # operations one by one would each be compiled, in seconds
def make_critic(size: int = 2) -> Critic:
    return Critic(SPEC, (8, 8), jax.random.key(0), size=size)


@eqx.filter_jit
def evaluate(critic: Critic, observation: jax.Array, action: jax.Array) -> jax.Array:
    return critic(observation, action)


@eqx.filter_jit
def evaluate_mapped(critic: Critic, observation: jax.Array, action: jax.Array) -> jax.Array:
    return jax.vmap(critic, out_axes=1)(observation, action)


@partial(jax.jit, static_argnums=1)
def make_batch(seed: int, batch: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    key_observation, key_action = jax.random.split(jax.random.key(seed))
    return jax.random.normal(key_observation, (*batch, 4)), jax.random.uniform(key_action, (*batch, 2), minval=-1.0)


@eqx.filter_jit
def evaluate_member(network: MLP, x: jax.Array) -> jax.Array:
    return network(x)[..., 0]


@pytest.mark.parametrize("size", [1, 3])
def test_ensemble_is_each_network_alone(size):
    critic = make_critic(size)
    observation, action = make_batch(1, (6,))
    q = evaluate(critic, observation, action)
    assert q.shape == (size, 6)
    # The observation comes first, as in the authors' program.
    x = jnp.asarray(np.concatenate([observation, action], axis=-1))
    host = jax.tree.map(np.asarray, critic.networks)
    for j in range(size):
        alone = jax.tree.map(lambda leaf, j=j: leaf[j], host)
        np.testing.assert_allclose(q[j], evaluate_member(alone, x), rtol=0, atol=1e-6)


def test_networks_differ_in_every_layer():
    critic = make_critic()
    for leaf in map(np.asarray, jax.tree.leaves(critic)):
        assert leaf.shape[0] == 2
        assert not np.any(leaf[0] == leaf[1])
    q = np.asarray(evaluate(critic, *make_batch(1, (6,))))
    assert np.all(np.abs(q[0] - q[1]) > 1e-4)


def test_sizes_of_the_layers():
    shapes = [layer.weight.shape for layer in make_critic().networks.layers]
    assert shapes == [(2, 6, 8), (2, 8, 8), (2, 8, 1)]


def test_the_gradient_of_one_network_leaves_the_others_alone():
    batch = make_batch(2, (6,))
    gradient = jax.jit(jax.grad(lambda critic: jnp.sum(critic(*batch)[0])))(make_critic())
    for leaf in map(np.asarray, jax.tree.leaves(gradient)):
        assert np.any(leaf[0] != 0.0) and np.all(leaf[1] == 0.0)


CRITIC = make_critic()


@given(st.integers(0, 2**31), st.permutations(range(6)))
def test_batch_is_the_vmap_of_single_in_any_order(seed, order):
    observation, action = make_batch(seed, (6,))
    q = np.asarray(CRITIC(observation, action))
    np.testing.assert_allclose(q, evaluate(CRITIC, observation, action), rtol=0, atol=1e-6)
    np.testing.assert_allclose(q, evaluate_mapped(CRITIC, observation, action), rtol=0, atol=1e-6)
    order = np.array(order)
    np.testing.assert_allclose(
        q[:, order],
        evaluate(CRITIC, *(jnp.asarray(np.asarray(array)[order]) for array in (observation, action))),
        rtol=0,
        atol=1e-6,
    )


@eqx.filter_jit
def evaluate_pair(critic: Critic, first: jax.Array, observation: jax.Array, action: jax.Array):
    return tuple(network(observation, action) for network in critic.pair(first))


@pytest.mark.parametrize("first", [True, False])
def test_a_pair_is_both_networks_in_the_order_asked_for(first):
    batch = make_batch(5, (6,))
    chosen, other = evaluate_pair(CRITIC, jnp.asarray(first), *batch)
    expected = evaluate(CRITIC, *batch)
    j = 0 if first else 1
    np.testing.assert_allclose(chosen, expected[j], rtol=0, atol=1e-6)
    np.testing.assert_allclose(other, expected[1 - j], rtol=0, atol=1e-6)


def test_the_first_network_alone():
    batch = make_batch(6, (6,))
    first = eqx.filter_jit(lambda critic, *batch: critic.first(*batch))(CRITIC, *batch)
    np.testing.assert_allclose(first, evaluate(CRITIC, *batch)[0], rtol=0, atol=1e-6)


def test_leading_axes():
    observation, action = make_batch(3, (2, 3))
    q = np.asarray(evaluate(CRITIC, observation, action))
    assert q.shape == (2, 2, 3)
    np.testing.assert_allclose(q[:, 1, 2], evaluate(CRITIC, observation[1, 2], action[1, 2]), rtol=0, atol=1e-6)


def test_shapes_are_checked_in_tests():
    observation, action = make_batch(4, (6,))
    with pytest.raises(jaxtyping.TypeCheckError):  # the guard that tests/conftest.py installs
        CRITIC(observation[:5], action)


# --- The authors' numbers ---


def test_golden_online_values(golden):
    reference = golden("diffcps_reference")
    batch = jnp.asarray(reference["batch/observation"]), jnp.asarray(reference["batch/action"])
    q = evaluate(critic_from_golden(reference, "critic"), *batch)
    expected = np.stack([reference["critic/q1"], reference["critic/q2"]])[..., 0]
    np.testing.assert_allclose(q, expected, rtol=0, atol=1e-5)
    # Negative control: the targets' weights give other numbers, so that the parity is one of these very weights.
    assert np.max(np.abs(evaluate(critic_from_golden(reference, "target_critic"), *batch) - q)) > 1e-3


def test_golden_target_values(golden):
    reference = golden("diffcps_reference")
    critic = critic_from_golden(reference, "target_critic")
    q = evaluate(critic, jnp.asarray(reference["batch/next_observation"]), jnp.asarray(reference["sample_next/action"]))
    expected = np.stack([reference["critic/target_q1"], reference["critic/target_q2"]])[..., 0]
    np.testing.assert_allclose(q, expected, rtol=0, atol=1e-5)


def test_golden_weights_fill_a_critic_of_our_own_making(golden):
    critic = critic_from_golden(golden("diffcps_reference"), "critic")
    ours = eqx.filter_eval_shape(Critic, Spec(5, 3), (32, 32, 32), jax.random.key(0))
    assert jax.tree.structure(critic) == jax.tree.structure(ours)
    assert [leaf.shape for leaf in jax.tree.leaves(critic)] == [leaf.shape for leaf in jax.tree.leaves(ours)]
