"""The noise model against numbers worked out by hand and against the authors' network and sampler."""

from __future__ import annotations

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffcps.diffusion.loss import denoising_loss
from diffcps.diffusion.sampler import sample_ancestral
from diffcps.diffusion.schedule import make_schedule
from diffcps.networks.denoiser import Denoiser, sinusoidal_embedding
from diffcps.types import Spec
from tests.golden.weights import denoiser_from_golden

pytestmark = pytest.mark.usefixtures("quick_compilation")

SPEC = Spec(observation_size=4, action_size=2)
DENOISER = eqx.filter_jit(Denoiser)(SPEC, 8, 2, 6, jax.random.key(0))


def plain(denoiser: Denoiser, xt: jax.Array, t: jax.Array, observation: jax.Array) -> jax.Array:
    """eps_theta(x_t, s, t) as the papers write it: one product of [x_t, time, s] for each step."""
    time = denoiser.time(sinusoidal_embedding(t, denoiser.time_size))
    time = jnp.broadcast_to(time, (*xt.shape[:-1], denoiser.time_size))
    return denoiser.body(jnp.concatenate([xt, time, observation], axis=-1))


def given_observation(denoiser: Denoiser, xt: jax.Array, t: jax.Array, observation: jax.Array) -> jax.Array:
    return denoiser.given(observation, 5)(xt, t)


evaluate = eqx.filter_jit(given_observation)  # operations one by one would each be compiled, in seconds


@eqx.filter_jit
def evaluate_mapped(denoiser: Denoiser, xt: jax.Array, t: jax.Array, observation: jax.Array) -> jax.Array:
    return jax.vmap(given_observation, in_axes=(None, 0, 0, 0))(denoiser, xt, t, observation)


@partial(jax.jit, static_argnums=1)
def make_batch(seed: int, batch: tuple[int, ...]) -> tuple[jax.Array, jax.Array, jax.Array]:
    key_action, key_t, key_observation = jax.random.split(jax.random.key(seed), 3)
    t = jax.random.randint(key_t, batch, 0, 5)
    return jax.random.normal(key_action, (*batch, 2)), t, jax.random.normal(key_observation, (*batch, 4))


# --- Time ---


def test_sinusoidal_embedding_by_hand():
    # Size 4 has the frequencies 1 and 10000^-1; size 6 has 1, 10000^(-1/2) and 10000^-1.
    expected = [math.sin(3.0), math.sin(3e-4), math.cos(3.0), math.cos(3e-4)]
    np.testing.assert_allclose(sinusoidal_embedding(jnp.asarray(3), 4), expected, rtol=1e-6)
    angles = np.array([[0.0, 0.0, 0.0], [7.0, 0.07, 7e-4]])
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
    np.testing.assert_allclose(sinusoidal_embedding(jnp.array([0, 7]), 6), expected, rtol=1e-5)
    # Without the endpoint size 4 has 1 and 10000^(-1/2), at times that need not be whole, too.
    expected = [math.sin(2.5), math.sin(0.025), math.cos(2.5), math.cos(0.025)]
    np.testing.assert_allclose(sinusoidal_embedding(jnp.asarray(2.5), 4, endpoint=False), expected, rtol=1e-6)


def test_times_of_a_table_need_not_be_whole():
    xt, _, observation = make_batch(6, (6,))
    table = jnp.array([2.25, 3.0])
    at_times = eqx.filter_jit(lambda denoiser, row: denoiser.given_at(observation, table)(xt, row))
    row, whole = jnp.asarray(0), jnp.asarray(3)
    expected = evaluate(DENOISER, xt, whole, observation)
    np.testing.assert_allclose(at_times(DENOISER, row + 1), expected, rtol=0, atol=1e-6)
    # And frequencies without the endpoint.
    other = eqx.filter_jit(Denoiser)(SPEC, 8, 2, 6, jax.random.key(0), endpoint=False)

    @eqx.filter_jit
    def joined(denoiser):
        time = denoiser.time(sinusoidal_embedding(table[0], 6, endpoint=False))
        return denoiser.body(jnp.concatenate([xt, jnp.broadcast_to(time, (6, 6)), observation], axis=-1))

    np.testing.assert_allclose(at_times(other, row), joined(other), rtol=0, atol=1e-6)
    assert np.max(np.abs(at_times(DENOISER, row) - joined(other))) > 1e-4


def test_one_time_step_for_the_whole_batch():
    xt, _, observation = make_batch(1, (6,))
    shared = evaluate(DENOISER, xt, jnp.asarray(3), observation)
    assert shared.shape == (6, 2)
    np.testing.assert_allclose(shared, evaluate(DENOISER, xt, jnp.full((6,), 3), observation), rtol=0, atol=1e-6)


def test_every_input_changes_the_output():
    xt, t, observation = make_batch(2, (1,))
    outputs = [evaluate(DENOISER, xt, jnp.asarray(t), observation)[0] for t in range(5)]
    outputs += [evaluate(DENOISER, xt + 0.5, t, observation)[0], evaluate(DENOISER, xt, t, observation + 0.5)[0]]
    distances = np.abs(np.stack(outputs)[:, None] - np.stack(outputs)[None]).max(axis=-1)
    assert np.min(distances + np.eye(7)) > 1e-4


# --- Shapes and batches ---


def test_sizes_of_the_layers():
    assert [layer.weight.shape for layer in DENOISER.time.layers] == [(6, 12), (12, 6)]
    assert [layer.weight.shape for layer in DENOISER.body.layers] == [(2 + 6 + 4, 8), (8, 8), (8, 2)]
    first, second = DENOISER.time.layers[0].weight, DENOISER.body.layers[0].weight
    assert not np.any(first[:, :8] * 6**0.5 == second[:6] * 12**0.5)  # time and body have keys of their own


@given(st.integers(0, 2**31), st.permutations(range(6)))
def test_batch_is_the_vmap_of_single_in_any_order(seed, order):
    batch = make_batch(seed, (6,))
    eps = given_observation(DENOISER, *batch)
    np.testing.assert_allclose(eps, evaluate(DENOISER, *batch), rtol=0, atol=1e-6)
    np.testing.assert_allclose(eps, evaluate_mapped(DENOISER, *batch), rtol=0, atol=1e-6)
    order = np.array(order)
    np.testing.assert_allclose(
        np.asarray(eps)[order],
        evaluate(DENOISER, *(jnp.asarray(np.asarray(array)[order]) for array in batch)),
        rtol=0,
        atol=1e-6,
    )


def test_leading_axes():
    xt, t, observation = make_batch(3, (2, 3))
    eps = evaluate(DENOISER, xt, t, observation)
    assert eps.shape == (2, 3, 2)
    np.testing.assert_allclose(eps[1, 2], evaluate(DENOISER, xt[1, 2], t[1, 2], observation[1, 2]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("shared_t", [True, False])
def test_given_an_observation_equals_the_plain_form(depth, shared_t):
    denoiser = eqx.filter_jit(Denoiser)(SPEC, 8, depth, 6, jax.random.key(1))
    xt, t, observation = make_batch(4, (6,))
    t = jnp.asarray(3) if shared_t else t

    @eqx.filter_jit
    def value_and_gradients(function, denoiser, xt):
        # Weighting every output differently shows an exchange that a plain sum would hide.
        weight = jnp.arange(1.0, 13.0).reshape(6, 2)
        gradients = jax.grad(lambda both: jnp.sum(weight * function(*both, t, observation)))((denoiser, xt))
        return jax.tree.leaves((function(denoiser, xt, t, observation), gradients))

    leaves = value_and_gradients(given_observation, denoiser, xt), value_and_gradients(plain, denoiser, xt)
    for fast, slow in zip(*leaves, strict=True):
        # Another order of summation: a few roundings (2^-24) of sums whose size is that of the largest entry.
        np.testing.assert_allclose(fast, slow, rtol=0, atol=1e-5 * (1.0 + float(np.max(np.abs(slow)))))


def test_given_an_observation_for_many_candidates():
    xt, _, observation = make_batch(5, (4, 6))  # four candidates for each of six observations

    @jax.jit
    def candidates(xt, observation):
        return DENOISER.given(observation, 5)(xt, jnp.asarray(2))

    eps = np.asarray(candidates(xt, observation[:1]))
    for k in range(4):
        expected = plain(DENOISER, xt[k], jnp.asarray(2), observation[0])
        np.testing.assert_allclose(eps[k], expected, rtol=0, atol=1e-5)


# --- The authors' numbers ---


def test_golden_prediction_and_loss(golden):
    reference = golden("diffcps_reference")
    denoiser = denoiser_from_golden(reference, "actor")
    t, observation = (
        jnp.asarray(reference["denoise/t_zero_based"], jnp.int32),
        jnp.asarray(reference["batch/observation"]),
    )
    eps = evaluate(denoiser, jnp.asarray(reference["denoise/x_t"]), t, observation)
    np.testing.assert_allclose(eps, reference["denoise/eps_prediction"], rtol=0, atol=1e-5)
    action, noise = jnp.asarray(reference["batch/action"]), jnp.asarray(reference["denoise/noise"])
    loss = denoising_loss(
        make_schedule("vp", 5), lambda xt, t: evaluate(denoiser, xt, t, observation), action, t, noise
    )
    np.testing.assert_allclose(loss, reference["denoise/loss"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("weights", "observation", "draws", "action"),
    [
        ("target_actor", "batch/next_observation", "sample_next", "sample_next/action"),
        ("actor", "batch/observation", "sample", "actor/action_before_update"),
    ],
)
def test_golden_chain(golden, weights, observation, draws, action):
    reference = golden("diffcps_reference")
    denoiser, condition = denoiser_from_golden(reference, weights), jnp.asarray(reference[observation])
    # Ours draws x_T first and then one noise a step; the authors' last noise is multiplied by zero, and left out here.
    x_last, z = reference[f"{draws}/x_T"], reference[f"{draws}/z_in_order_of_use"]
    noise = jnp.asarray(np.concatenate([x_last[None], z[:-1]]))

    @jax.jit
    def sample(noise):
        return sample_ancestral(make_schedule("vp", 5), denoiser.given(condition, 5), noise)

    np.testing.assert_allclose(sample(noise), reference[action], rtol=0, atol=1e-5)
    if draws == "sample_next":
        chain = reference["sample_next/chain_from_target_actor"]  # x_T, ..., x_0 before the clip at the end
        np.testing.assert_allclose(sample(noise), np.clip(chain[:, -1], -1.0, 1.0), rtol=0, atol=1e-5)
    # Negative control: with two noises exchanged the actions are others.
    assert np.max(np.abs(sample(noise[jnp.array([0, 2, 1, 3, 4])]) - reference[action])) > 1e-3
