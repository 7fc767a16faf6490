"""Optimiser steps against Adam worked out by hand, in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.optim import (
    adam_with_decay,
    as_one_vector,
    clipped_adam,
    copied_then_averaged,
    descend,
    each_alone,
    minimise,
    momentum_sgd,
    moving_average,
    moving_average_when,
    start,
)

RATE = 0.1
LARGE = [np.array([3.0, -4.0]), np.array([0.3, 0.4])]  # norms 5 and 0.5


def steps(optimiser, gradients, like=None) -> np.ndarray:
    """What each gradient in turn adds to the model."""
    trained, moves = start(optimiser, jnp.zeros(2) if like is None else like), []
    for gradient in gradients:
        before = trained.model
        trained, _ = descend(optimiser, trained, jnp.asarray(gradient, jnp.float32))
        moves.append(np.asarray(trained.model) - np.asarray(before))
    return np.stack(moves)


def adam_by_hand(gradients, rates) -> np.ndarray:
    """arXiv:1412.6980, algorithm 1, with the paper's constants."""
    m = v = 0.0
    moves = []
    for t, (g, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        moves.append(-rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8))
    return np.stack(moves)


# --- Adam ---


def test_the_first_step_is_the_rate_against_the_sign():
    move = steps(clipped_adam(RATE, float("inf")), [np.array([5.0, -0.02])])[0]
    np.testing.assert_allclose(move, [-RATE, RATE], rtol=1e-5)


def test_later_steps_by_hand():
    gradients = [np.array([1.0, -2.0]), np.array([0.5, 3.0]), np.array([-1.0, 0.0])]
    moves = steps(clipped_adam(RATE, float("inf")), gradients)
    np.testing.assert_allclose(moves, adam_by_hand(gradients, [RATE] * 3), rtol=1e-4, atol=1e-6)


# --- One step on a loss ---


def test_minimise_by_hand():
    # Gradient descent on (w - 3)^2 at rate 0.1, from 1: the loss is 4 and the slope -4.
    optimiser = momentum_sgd(RATE, 0.0)
    trained = start(optimiser, jnp.array(1.0))
    moved, loss, aux, norm = minimise(optimiser, trained, lambda w, goal: jnp.square(w - goal), jnp.array(3.0))
    np.testing.assert_allclose([moved.model, loss, norm], [1.4, 4.0, 4.0], rtol=1e-6)
    assert aux is None
    assert float(trained.model) == 1.0


def test_minimise_hands_on_what_else_the_loss_knows():
    def loss(w, goal):
        return jnp.square(w - goal), {"distance": jnp.abs(w - goal)}

    optimiser = momentum_sgd(RATE, 0.0)
    moved, value, aux, _ = minimise(optimiser, start(optimiser, jnp.array(1.0)), loss, jnp.array(3.0))
    np.testing.assert_allclose([moved.model, value, aux["distance"]], [1.4, 4.0, 2.0], rtol=1e-6)


def test_minimise_is_descending_the_gradient():
    optimiser = clipped_adam(RATE, 1.0)

    def loss(w):
        return jnp.sum(jnp.sin(w))

    trained = start(optimiser, jnp.array([1.0, -2.0]))
    moved, _, _, norm = minimise(optimiser, trained, loss)
    by_hand, norm_by_hand = descend(optimiser, trained, jax.grad(loss)(trained.model))
    for ours, theirs in zip(jax.tree.leaves((moved, norm)), jax.tree.leaves((by_hand, norm_by_hand)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


# --- Clipping ---


def test_clips_to_the_global_norm():
    moves = steps(clipped_adam(RATE, 1.0), LARGE)
    clipped = [LARGE[0] / 5.0, LARGE[1]]  # the second is short enough
    np.testing.assert_allclose(moves, adam_by_hand(clipped, [RATE] * 2), rtol=1e-4)
    assert np.max(np.abs(moves - adam_by_hand(LARGE, [RATE] * 2))) > 0.01  # negative control: not clipped
    assert np.max(np.abs(moves - adam_by_hand([LARGE[0] / 5.0, LARGE[1] / 0.5], [RATE] * 2))) > 0.01  # not normalised


def test_the_norm_is_that_of_the_whole_tree():
    optimiser = clipped_adam(RATE, 1.0)
    model = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    trained = start(optimiser, model)
    for gradient in LARGE:
        parts = {"a": jnp.asarray(gradient[:1], jnp.float32), "b": jnp.asarray(gradient[1:], jnp.float32)}
        trained, norm = descend(optimiser, trained, parts)
        np.testing.assert_allclose(norm, np.linalg.norm(gradient), rtol=1e-6)  # reported before clipping
    total = adam_by_hand([LARGE[0] / 5.0, LARGE[1]], [RATE] * 2).sum(axis=0)
    np.testing.assert_allclose([trained.model["a"][0], trained.model["b"][0]], total, rtol=1e-4)


def test_each_network_of_an_ensemble_is_clipped_by_its_own_norm():
    # The first member's gradients have the norms 5 and 0.5, the second's 0.5 and 5.
    members = np.stack([np.stack(LARGE), np.stack(LARGE[::-1])], axis=1)
    moves = steps(each_alone(clipped_adam(RATE, 1.0)), members, like=jnp.zeros((2, 2)))
    for member, gradients in enumerate(([LARGE[0] / 5.0, LARGE[1]], [LARGE[1], LARGE[0] / 5.0])):
        np.testing.assert_allclose(moves[:, member], adam_by_hand(gradients, [RATE] * 2), rtol=1e-4)
    together = steps(clipped_adam(RATE, 1.0), members, like=jnp.zeros((2, 2)))  # negative control
    assert np.max(np.abs(moves - together)) > 0.01


def test_an_infinite_norm_does_not_clip():
    large = [1e6 * gradient for gradient in LARGE]
    moves = steps(clipped_adam(RATE, float("inf")), large)
    np.testing.assert_allclose(moves, adam_by_hand(large, [RATE] * 2), rtol=1e-4)


@pytest.mark.parametrize("norm", [1.0, float("inf")])
def test_a_zero_gradient_moves_nothing(norm):
    np.testing.assert_array_equal(steps(clipped_adam(RATE, norm), [np.zeros(2)] * 2), np.zeros((2, 2)))


# --- Rates ---


def test_the_cosine_falls_from_the_rate_to_zero():
    # Under a constant gradient every step of Adam is the rate of that step.
    sizes = -steps(clipped_adam(RATE, float("inf"), decay_steps=4), [np.ones(2)] * 6)[:, 0]
    half = RATE / 2
    expected = [RATE, half * (1 + np.sqrt(0.5)), half, half * (1 - np.sqrt(0.5)), 0.0, 0.0]
    np.testing.assert_allclose(sizes, expected, rtol=1e-4, atol=1e-7)


def test_no_decay_keeps_the_rate():
    sizes = -steps(clipped_adam(RATE, float("inf"), decay_steps=0), [np.ones(2)] * 6)[:, 0]
    np.testing.assert_allclose(sizes, RATE, rtol=1e-4)


@pytest.mark.parametrize("decay_steps", [0, 4])
def test_rates_and_norms_may_be_traced(decay_steps):
    def two_steps(rate, norm):
        optimiser = clipped_adam(rate, norm, decay_steps)
        trained = start(optimiser, jnp.zeros(2))
        for gradient in LARGE:
            trained, _ = descend(optimiser, trained, jnp.asarray(gradient, jnp.float32))
        return trained.model

    rates, norms = jnp.array([0.1, 0.02]), jnp.array([1.0, jnp.inf])
    together = jax.jit(jax.vmap(two_steps))(rates, norms)
    alone = [two_steps(float(rate), float(norm)) for rate, norm in zip(rates, norms, strict=True)]
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-5)


# --- Weight decay ---


def test_decay_by_hand():
    # Adam's step, and rate * decay of the parameter itself, which is not in the gradient's moments.
    gradients, decay, model = [np.array([1.0, -2.0]), np.array([0.5, 3.0])], 0.3, np.array([2.0, -4.0])
    moves = steps(adam_with_decay(RATE, decay), gradients, jnp.asarray(model, jnp.float32))
    for adam, move in zip(adam_by_hand(gradients, [RATE] * 2), moves, strict=True):
        np.testing.assert_allclose(move, adam - RATE * decay * model, rtol=1e-4)
        model = model + move


def test_decay_falls_with_the_rate():
    still = np.zeros(2)  # no gradient: what moves is the decay alone
    moves = steps(adam_with_decay(RATE, 0.5, decay_steps=2), [still] * 3, jnp.ones(2))[:, 0]
    np.testing.assert_allclose(moves, [-0.05, -0.025 * 0.95, 0.0], rtol=1e-5)


# --- Moving averages ---


def test_moving_average_by_hand():
    average = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(-4.0)}
    new = {"a": jnp.array([3.0, -2.0]), "b": jnp.array(4.0)}
    result = moving_average(average, new, 0.25)
    np.testing.assert_array_equal(result["a"], [1.5, 1.0])
    np.testing.assert_array_equal(result["b"], -2.0)


@pytest.mark.parametrize(("rate", "expected"), [(0.0, 1.0), (1.0, 3.0)])
def test_ends_of_the_moving_average(rate, expected):
    assert float(moving_average(jnp.array(1.0), jnp.array(3.0), rate)) == expected


@pytest.mark.parametrize(("condition", "expected"), [(True, 1.5), (False, 1.0)])
def test_a_moving_average_may_wait(condition, expected):
    assert float(moving_average_when(jnp.asarray(condition), jnp.array(1.0), jnp.array(3.0), 0.25)) == expected


def test_as_one_vector_the_steps_are_the_same():
    model = {"weight": jnp.arange(6.0).reshape(2, 3), "bias": jnp.ones(3)}
    plain, vector = (clipped_adam(0.1, 1.0), as_one_vector(clipped_adam(0.1, 1.0)))
    one, other = start(plain, model), start(vector, model)
    for factor in (3.0, -0.5, 2.0):
        gradient = jax.tree.map(lambda leaf: factor * jnp.cos(leaf), model)  # noqa: B023
        one, norm = descend(plain, one, gradient)
        other, of_vector = descend(vector, other, gradient)
        np.testing.assert_allclose(norm, of_vector, rtol=1e-6)  # cut at 1 where it is above
    for name in model:
        np.testing.assert_allclose(one.model[name], other.model[name], rtol=1e-6)
        assert np.abs(one.model[name] - model[name]).max() > 0.05


def test_an_average_is_a_copy_at_first():
    """At every second update; a copy before update 4, then a step of a quarter."""
    average, found = jnp.float32(0.0), []
    for index in range(8):
        average = copied_then_averaged(average, jnp.float32(index + 1), jnp.asarray(index), 2, 4, 0.25)
        found.append(float(average))
    assert found == [1.0, 1.0, 3.0, 3.0, 3.5, 3.5, 4.375, 4.375]
