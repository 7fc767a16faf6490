"""QGPO on problems with known answers: tilted mixtures, and the value of the policy that they stand for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp

from diffcps.algorithms import qgpo
from diffcps.diffusion.vp_sde import alpha_and_std
from diffcps.policies.score import even_chain, sample_chain
from diffcps.types import Algorithm, Dataset, Spec, UpdateIndex, UserError
from tests.problems import MODES, NUM_ACTIONS, SPREAD, begun, dataset_of, near_a_mode


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"num_features": 7}, "num_features is 7: it must be even"),
        ({"behaviour_width": 3}, "behaviour_width is 3: halved 2 times"),
    ],
)
def test_impossible_sizes_are_refused(changes, line):
    with pytest.raises(UserError, match=line):
        jax.eval_shape(qgpo.make(qgpo.Config(**changes), Spec(1, 1)).init, jax.random.key(0))


# --- The exact energy leads the exact score to the tilted law ---

WEIGHTS, MEANS, STD, ALPHA = jnp.array([0.7, 0.3]), jnp.array([-0.8, 0.6]), 0.2, 1.5
"""A mixture of Gaussians, tilted by exp(ALPHA Q) with Q(a) = a."""


def log_terms(x: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For each component log (weight times density) of x_t, and the mean of x_0 given x_t."""
    alpha, std = alpha_and_std(t)
    variance = alpha**2 * STD**2 + std**2
    away = x[..., None] - alpha[..., None] * MEANS
    mean = MEANS + (alpha * STD**2 / variance)[..., None] * away
    return jnp.log(WEIGHTS) - 0.5 * away**2 / variance[..., None], mean


def exact_energy(xt: jax.Array, observation: jax.Array, features: jax.Array) -> jax.Array:
    """log E[exp(ALPHA x_0) | x_t] but for a constant; the features are sine and cosine of pi t / 2."""
    t = jnp.arctan2(features[..., 0], features[..., 1]) / (0.5 * math.pi)
    logits, mean = log_terms(xt[..., 0], t)
    return logsumexp(logits + ALPHA * mean, axis=-1) - logsumexp(logits, axis=-1)


@jax.jit
def led(scale: jax.Array) -> jax.Array:
    """Actions of a chain with the exact noise and the exact energy."""
    chain, noise = even_chain(60, 2, "data"), jax.random.normal(jax.random.key(0), (10_000, 1))

    def denoise(xt: jax.Array, call: jax.Array) -> jax.Array:
        t = jnp.asarray(chain.t)[call]
        slope = jax.grad(lambda x: jnp.sum(logsumexp(log_terms(x, t)[0], axis=-1)))(xt[..., 0])
        return -jnp.asarray(chain.std)[call] * slope[..., None]

    observation, frequency = jnp.zeros((len(noise), 1)), jnp.array([0.25])
    return sample_chain(chain, qgpo.guided(denoise, exact_energy, frequency, chain, observation, scale), noise)[:, 0]


def tilted(alpha: float) -> tuple[float, np.ndarray]:
    """The share of the second component of the mixture times exp(alpha a), and both means."""
    weight = np.asarray(WEIGHTS) * np.exp(alpha * np.asarray(MEANS))
    return weight[1] / weight.sum(), np.asarray(MEANS) + alpha * STD**2


def test_the_guided_chain_draws_the_tilted_law():
    for scale, alpha in ((1.0, ALPHA), (0.0, 0.0)):
        action = np.asarray(led(jnp.float32(scale)))
        share, means = tilted(alpha)
        # Of 10,000 actions a share is within 0.02 of its expectation (Hoeffding, but for 1 case in 1,000).
        assert np.mean(action > 0) == pytest.approx(share, abs=0.02)
        np.testing.assert_allclose([action[action < 0].mean(), action[action > 0].mean()], means, rtol=0, atol=0.02)
    # Negative control: what the scales ask for lies apart.
    assert tilted(ALPHA)[0] - tilted(0.0)[0] > 0.3


# --- The whole training ---

# State 0 pays 1 for the upper mode, state 1 for the lower one, and ends; state 2 leads to state 0, unpaid, and has only
# the upper mode.
MEMBERS = ({"alpha": 0.5, "alpha_q": 4.0}, {"alpha": 2.0, "alpha_q": 0.0})
DISCOUNT, SUPPORT = 0.8, 16
CONFIG = qgpo.Config(
    discount=DISCOUNT,
    support_actions=SUPPORT,
    target_rate=0.05,
    behaviour_learning_rate=4e-3,
    critic_learning_rate=3e-3,
    guidance_learning_rate=5e-4,
    behaviour_batch_size=128,
    batch_size=64,
    width=32,
    depth=1,
    guidance_depth=2,
    behaviour_width=64,
    behaviour_depth=1,
    num_features=8,
)
UPDATES = (3000, 2000)


@cache
def rows() -> Dataset:
    state, mode = (array.ravel() for array in np.meshgrid(np.repeat(np.arange(3), 128), MODES))
    mode = np.where(state == 2, np.abs(mode), mode)
    action = np.clip(mode + SPREAD * np.random.default_rng(0).normal(size=state.size), -1, 1)
    paid = np.where(state == 0, mode > 0, mode < 0) & (state < 2)
    return dataset_of(np.eye(3)[state], action[:, None], paid, np.eye(3)[np.zeros_like(state)], state < 2)


def make(values: Mapping[str, jax.Array]) -> Algorithm[qgpo.State]:
    return qgpo.make(dataclasses.replace(CONFIG, **values), rows().spec)


@partial(jax.jit, static_argnums=0)
def advanced(stage: int, values: Mapping[str, jax.Array], state: qgpo.State, labels: Any) -> qgpo.State:
    """After a stage: written out here, as `problems.Staged` would compile all of it for devices and three stages."""
    made = make(values).stages[stage]
    data = dataclasses.replace(rows(), labels=labels)

    def body(index: jax.Array, state: qgpo.State) -> qgpo.State:
        key_batch, key_draws = jax.random.split(jax.random.fold_in(jax.random.key(stage), index))
        batch = made.batch(data, key_batch)
        return made.update(state, batch, made.draw(batch, key_draws), UpdateIndex(index))[0]

    return jax.lax.fori_loop(0, UPDATES[stage], body, state)


@cache
def cloned() -> tuple[qgpo.State, qgpo.Support]:
    """The behaviour model after its stage, and the support actions that the next one begins with."""
    state = advanced(0, {}, jax.jit(make({}).init)(jax.random.key(0)), ())
    return jax.jit(lambda state: begun(make({}).stages[1], state, rows(), jax.random.key(1)))(state)


@cache
def trained(member: int) -> qgpo.State:
    """After critics and guidance have learned, too. The last stage makes more of the guidance's updates alone."""
    values = {name: jnp.float32(value) for name, value in MEMBERS[member].items()}
    return advanced(1, values, *cloned())


@jax.jit
def acting(scale: jax.Array, state: qgpo.State, observation: jax.Array, key: jax.Array) -> jax.Array:
    # Of 15 calls, as the program has it, the shares are off by another 0.05.
    config = dataclasses.replace(CONFIG, guidance_scale=scale, num_steps=40)
    return qgpo.make(config, rows().spec).act(state, observation, key)


@cache
def act(member: int, start: int, scale: float) -> np.ndarray:
    """Actions of one member in one state, with the same key each time."""
    observation = jnp.tile(jnp.eye(3)[start], (NUM_ACTIONS, 1))
    return np.asarray(acting(jnp.float32(scale), trained(member), observation, jax.random.key(0)))[:, 0]


def share(member: int, start: int, scale: float) -> float:
    """Of the mode that pays."""
    return float(np.mean(act(member, start, scale) * (1 if start == 0 else -1) > 0))


def test_without_guidance_it_is_a_clone_that_keeps_both_modes():
    for start in (0, 1):
        assert near_a_mode(act(0, start, 0.0)) > 0.85
        assert abs(share(0, start, 0.0) - 0.5) < 0.15


def test_guidance_multiplies_the_odds_of_the_better_mode():
    for member, values in enumerate(MEMBERS):
        for start in (0, 1):
            clone = share(member, start, 0.0)
            odds = clone / (1.0 - clone) * math.exp(values["alpha"])  # Q is 1 in the one mode and 0 in the other
            assert share(member, start, 1.0) == pytest.approx(odds / (1.0 + odds), abs=0.1), (member, start)
            assert near_a_mode(act(member, start, 1.0)) > 0.85
    # Negative control: both members ask for other shares, and so would alpha_q in the place of alpha.
    first, second = (1.0 / (1.0 + math.exp(-values["alpha"])) for values in MEMBERS)
    of_critics = [1.0 / (1.0 + math.exp(-values["alpha_q"])) for values in MEMBERS]
    assert second - first > 0.2 and of_critics[0] - first > 0.2 and second - of_critics[1] > 0.2


def soft_value(alpha_q: float, good: float) -> float:
    """E[sum_j softmax_j(alpha_q Q) Q] over support actions of which each pays 1 with that probability."""
    k = np.arange(SUPPORT + 1)
    probability = np.array([math.comb(SUPPORT, i) * good**i * (1 - good) ** (SUPPORT - i) for i in k])
    return float(np.sum(probability * k / (k + (SUPPORT - k) * math.exp(-alpha_q))))


def test_the_critics_learn_the_soft_value_of_the_support_actions():
    observation, action = rows().observation, rows().action
    start = np.argmax(observation, axis=1)
    good = float(np.mean(cloned()[1].next_action > 0))  # what follows is state 0 everywhere
    for member, values in enumerate(MEMBERS):
        q = np.asarray(trained(member).critic.model(observation, action)).mean(axis=0)[start == 2].mean()
        assert q == pytest.approx(DISCOUNT * soft_value(values["alpha_q"], good), abs=0.06)
    assert soft_value(4.0, 0.5) - soft_value(0.0, 0.5) > 0.4  # negative control


def test_support_actions_are_drawn_for_each_row_and_once():
    state, support = cloned()
    for drawn in support:
        assert drawn.shape == (rows().size, SUPPORT, 1)
        assert len(np.unique(drawn)) > 0.95 * drawn.size  # noise of its own
        assert near_a_mode(np.asarray(drawn)) > 0.85
    # For s and for s': state 2 has one mode, state 0, which follows, has both.
    start = np.argmax(rows().observation, axis=1)
    assert np.mean(support.action[start == 2] > 0) > 0.95
    assert abs(np.mean(support.next_action[start == 2] > 0) - 0.5) < 0.15
    labelled = dataclasses.replace(rows(), labels=support)
    assert make({}).stages[2].begin(state, labelled, jax.random.key(2))[1] is support
