"""AWR and SfBC, which train in stages, on problems with known answers."""

from __future__ import annotations

import math
from functools import cache, partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps.algorithms import awr, sfbc
from diffcps.rl.replay import Labelled
from diffcps.types import NetObservation, Spec, UpdateIndex
from tests.problems import NUM_ACTIONS, SHARE_TOLERANCE, SPREAD, Staged, dataset_of, near_a_mode

pytestmark = pytest.mark.usefixtures("quick_compilation")


# --- AWR: equations by hand ---


def constant(network: Any, value: float) -> Any:
    """The network with nothing but `value` in its last bias, so that it answers that everywhere."""
    zeros = jax.tree.map(jnp.zeros_like, network)
    return eqx.tree_at(lambda network: network.layers[-1].bias, zeros, replace_fn=lambda bias: bias + value)


@cache
def reported(stage: int, mean: float, value: float) -> dict[str, float]:
    """What one update of AWR reports on two rows, with these answers of the two networks."""
    config = awr.Config(width=4, second_width=4, std=0.5, discount=0.9, temperature=2.0)
    algorithm = awr.make(config, Spec(1, 2))
    state = jax.jit(algorithm.init)(jax.random.key(0))
    state = eqx.tree_at(
        lambda state: (state.actor.model.network, state.critic.model),
        state,
        (constant(state.actor.model.network, mean), constant(state.critic.model, value)),
    )
    rows = Labelled(jnp.ones((2, 1)), jnp.array([[1.0, 0.0], [0.5, -0.5]]), jnp.array([0.5, 8.0]))
    _, metrics = jax.jit(algorithm.stages[stage].update)(state, rows, (), UpdateIndex(jnp.asarray(0)))
    return {name: float(metric) for name, metric in metrics.items()}


def test_the_loss_of_the_value_by_hand():
    # v = 1 / (1 - 0.9) = 10, so that the network's 0.1 stands for a value of 1.
    metrics = reported(0, mean=0.0, value=0.1)
    np.testing.assert_allclose(metrics["critic/loss"], 0.5 * (0.05**2 + 0.7**2) / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["critic/return"], (0.5 + 8.0) / 2, rtol=1e-6)


def test_the_loss_of_the_policy_by_hand():
    # In both dimensions the mean is 1.5: half a unit outside the box; 1, 3, 2 and 4 stds of 0.5 from the actions.
    metrics = reported(1, mean=1.5, value=0.0)
    weight = np.array([math.exp(0.5 / 2.0), 20.0])  # exp(8 / 2) is cut
    log_prob = -0.5 * np.array([1 + 9, 4 + 16]) - 2 * math.log(0.5) - math.log(2 * math.pi)
    bound = 0.5 * (0.5**2 + 0.5**2)
    np.testing.assert_allclose(metrics["actor/loss"], -np.mean(weight * log_prob) + 10.0 * bound, rtol=1e-5)
    np.testing.assert_allclose(metrics["actor/weight"], np.mean(weight), rtol=1e-6)


# --- AWR: a chain of two steps ---

# s0 -> s1 -> end: both actions are -0.8 and the rewards 0, or both are 0.8 and the last reward is 1. An episode from s2
# reaches s1 at its time limit, unpaid; one from s3 terminates there, with reward 3, whatever it did.
DISCOUNT = 0.8
START = [0, 1, 0, 1, 2, 3]
ACTION = np.array([-0.8, -0.8, 0.8, 0.8, 0.0, 0.0])
REWARD = np.array([0.0, 0.0, 0.0, 1.0, 0.0, 3.0])
VALUE = np.array([DISCOUNT * 0.5, 0.5, DISCOUNT * 0.5, 3.0])

MEMBERS = {
    "default": {"trace": 0.5, "temperature": 1.0, "max_weight": 20.0},
    "no trace": {"trace": 0.0, "temperature": 1.0, "max_weight": 20.0},
    "full trace": {"trace": 1.0, "temperature": 1.0, "max_weight": 20.0},
    "cold": {"trace": 0.5, "temperature": 0.5, "max_weight": 20.0},
    "cut": {"trace": 0.5, "temperature": 0.5, "max_weight": 0.7},
    "hot": {"trace": 0.5, "temperature": 1e6, "max_weight": 20.0},
}
# SGD at a constant rate never comes to rest: about its optimum, where the loss has curvature h = E[w] / std^2, a mean
# has the variance rate / (1 - momentum) * var(gradient) / (2 h n). With n = 512 / 6 rows of its state in a batch that
# is 0.01^2 for the default weights in s0. Five of these; the values jitter less.
JITTER = 0.05


@cache
def chain() -> Staged:
    repeats = 32
    start = np.tile(START, repeats)
    data = dataset_of(
        observation=np.eye(4)[start],
        action=np.tile(ACTION, repeats)[:, None],
        reward=np.tile(REWARD, repeats),
        next_observation=np.eye(4)[np.ones_like(start)],
        terminal=(start == 1) | (start == 3),
        timeout=start == 2,
    )
    return Staged(
        "awr",
        data,
        2400,
        list(MEMBERS.values()),
        iterations=2,
        actor_share=1,
        discount=DISCOUNT,
        std=0.5,
        width=32,
        second_width=32,
        batch_size=512,
        actor_learning_rate=1e-3,
        critic_learning_rate=0.02,
    )


def labels(stage: int) -> dict[str, np.ndarray]:
    """Per member, means over the repetitions of the six rows."""
    rows = chain().labels[stage].reshape(len(MEMBERS), -1, len(START)).mean(axis=1)
    return dict(zip(MEMBERS, rows, strict=True))


@cache
def learned_means() -> dict[str, np.ndarray]:
    """Per member: what it does in s0 and in s1."""
    rows = np.broadcast_to(np.eye(4, dtype=np.float32)[:2], (len(MEMBERS), 2, 4))
    return dict(
        zip(MEMBERS, chain().program.act(chain().state, NetObservation(rows), chain().updates, 0)[..., 0], strict=True)
    )


def exact_returns(trace: float) -> np.ndarray:
    """G of the six rows, with exact values."""
    first = [DISCOUNT * ((1 - trace) * 0.5 + trace * last) for last in (0.0, 1.0)]
    return np.array([first[0], 0.0, first[1], 1.0, DISCOUNT * 0.5, 3.0])


def weighted_means(advantage: np.ndarray, temperature: float, max_weight: float) -> np.ndarray:
    """In s0 and in s1, the Gaussian of highest weighted likelihood: its mean is sum w a / sum w."""
    standardised = (advantage - advantage.mean()) / advantage.std()
    weight = np.minimum(np.exp(standardised / temperature), max_weight)
    return np.array([np.average(ACTION[[i, i + 2]], weights=weight[[i, i + 2]]) for i in (0, 1)])


def predicted_means(trace: float, **weights: float) -> np.ndarray:
    return weighted_means(exact_returns(trace) - VALUE[START], **weights)


def test_values_are_bootstrapped_at_time_limits_and_not_at_ends():
    for member in range(len(MEMBERS)):
        critic = jax.tree.map(lambda leaf: leaf[member], chain().states[-1].critic.model)  # noqa: B023
        value = np.asarray(critic(jnp.eye(4)))[:, 0] / (1 - DISCOUNT)
        np.testing.assert_allclose(value, VALUE, rtol=0, atol=JITTER)


def test_returns_are_made_anew_with_the_values_of_the_stage_before():
    # Stages: value, policy, value, policy. The error of V(s1) enters once, times the discount.
    for name, values in MEMBERS.items():
        np.testing.assert_allclose(labels(2)[name], exact_returns(values["trace"]), rtol=0, atol=JITTER)
        assert abs(labels(0)[name][4] - DISCOUNT * 0.5) > 0.2  # negative control: of an untrained V(s1)


@pytest.mark.parametrize("name", list(MEMBERS))
def test_the_mean_moves_as_far_as_the_weights_say(name):
    np.testing.assert_allclose(learned_means()[name], predicted_means(**MEMBERS[name]), rtol=0, atol=JITTER)


def test_other_weights_would_move_it_elsewhere():
    # Negative controls: what is compared above lies apart. "hot" is the data's mean. Without a trace the first step of
    # an episode gets no credit for the last one. And s3 would count if returns were weighed in the place of advantages.
    first = {name: predicted_means(**values)[0] for name, values in MEMBERS.items()}
    assert abs(first["hot"]) < 1e-5 and abs(first["no trace"]) < 1e-5
    for higher, lower in (("cold", "default"), ("full trace", "default"), ("default", "cut"), ("cut", "hot")):
        assert first[higher] - first[lower] > 2 * JITTER, (higher, lower)
    by_return = weighted_means(exact_returns(0.5), temperature=1.0, max_weight=20.0)
    assert np.all(predicted_means(**MEMBERS["default"]) - by_return > 4 * JITTER)


# --- SfBC ---

# Three kinds of episodes, of which only the second knows what to do in s1, and only the first how to get there from s0:
#
#   s0  0.8 -> s1 -0.8 -> end, reward 0
#   s2  0.8 -> s1  0.8 -> time limit, reward 1
#   s0 -0.8 -> end, reward 0.3
#
# In s0 the log speaks for -0.8. Stitched, 0.8 earns the discounted 1.
FIRST_STATE = [0, 1, 2, 1, 0]
MODE = [0.8, -0.8, 0.8, 0.8, -0.8]
EARNED = [0.0, 0.0, 0.0, 1.0, 0.3]
LOGGED = np.array([0.0, 0.0, DISCOUNT, 1.0, 0.3])
# Planning takes the larger of what follows and V of the same state, so that the poor action in s1 inherits V(s1) = 1.
PLANNED = np.array([DISCOUNT, 1.0, DISCOUNT, 1.0, 0.3])
BEHAVIOUR, ROUND_1, ROUND_2 = 1, 2, 3  # what the stages leave, by its place in `Staged.states`
SFBC: dict[str, Any] = {
    **{"width": 64, "behaviour_width": 64, "behaviour_depth": 1, "num_features": 8},
    **{"num_steps": 40, "discount": DISCOUNT, "num_candidates": 8},
}


@cache
def stitched() -> Staged:
    repeats = 60  # more rows than are planned at once, and no multiple of them
    start, mode = np.tile(FIRST_STATE, repeats), np.tile(MODE, repeats)
    data = dataset_of(
        observation=np.eye(3)[start],
        action=np.clip(mode + SPREAD * np.random.default_rng(0).normal(size=start.size), -1, 1)[:, None],
        reward=np.tile(EARNED, repeats),
        next_observation=np.eye(3)[np.ones_like(start)],
        terminal=np.tile([False, True, False, False, True], repeats),
        timeout=np.tile([False, False, False, True, False], repeats),
    )
    rates = {"actor_learning_rate": 4e-3, "critic_learning_rate": 3e-3}
    return Staged("sfbc", data, 4000, actor_share=6, critic_share=1, **rates, **SFBC)


@partial(jax.jit, static_argnums=0)
def sfbc_act(averaged_actions: int, sharpness: jax.Array, state: sfbc.State, observation: jax.Array, key: jax.Array):
    config = sfbc.Config(averaged_actions=averaged_actions, selection_sharpness=sharpness, **SFBC)
    return sfbc.make(config, Spec(3, 1)).act(state, observation, key)


@cache
def act(stage: int, start: int, sharpness: float = 100.0, averaged_actions: int = 1) -> np.ndarray:
    """Actions in one of the three states, as one of the stages left the policy; with the same key each time."""
    state = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), stitched().states[stage])
    observation = jnp.tile(jnp.eye(3)[start], (NUM_ACTIONS, 1))
    return np.asarray(sfbc_act(averaged_actions, jnp.float32(sharpness), state, observation, jax.random.key(0)))[:, 0]


def returns(stage: int) -> np.ndarray:
    """What the critic of a stage learns, row by row, in the units of the rewards: "repetitions 5"."""
    state = stitched().states[stage]
    return (state.return_mean + state.return_std * stitched().labels[stage - 1][0]).reshape(-1, len(LOGGED))


@pytest.mark.parametrize("start", [0, 1])
def test_the_behaviour_model_keeps_both_modes_and_does_not_choose(start):
    # Negative control for what follows: candidates drawn without a look at Q, sharpness 0. A Gaussian with the data's
    # mean and std would leave less than half of its actions near a mode, the exact model 0.996 of them.
    action = act(BEHAVIOUR, start, sharpness=0.0)
    assert near_a_mode(action) > 0.85
    assert abs(np.mean(action > 0) - 0.5) < SHARE_TOLERANCE


def test_the_behaviour_model_knows_the_states_apart():
    # In s2 nothing but 0.8 is logged. Over all states its share is 0.6.
    assert np.mean(act(BEHAVIOUR, 2, sharpness=0.0) > 0.5) > 0.9


def test_selection_chooses_the_mode_of_higher_logged_return():
    # All 8 candidates are of the other mode in one case of 256; some of the others lie between the modes.
    assert np.mean(act(ROUND_1, 1) > 0.5) > 0.95
    assert np.mean(act(ROUND_1, 0) < -0.5) > 0.95


def test_the_choice_is_as_sharp_as_said():
    # Sharpness 1: of 8 candidates, k of the better mode, that one is taken with probability k r / (k r + 8 - k), with r
    # = exp(1 / std) for returns that are 1 apart. k is binomial, about the share that sharpness 0 shows.
    share = np.mean(act(ROUND_1, 1, sharpness=0.0) > 0)
    k = np.arange(9)
    probability = np.array([math.comb(8, i) * share**i * (1 - share) ** (8 - i) for i in k])

    def predicted(ratio: float) -> float:
        return float(np.sum(probability * k * ratio / (k * ratio + 8 - k)))

    expected = predicted(math.exp(1.0 / LOGGED.std()))
    # The share of 2,000 actions may be off by 0.05 (see SHARE_TOLERANCE), and the candidates between the modes by a few
    # hundredths more.
    assert abs(np.mean(act(ROUND_1, 1, sharpness=1.0) > 0) - expected) < 0.08
    assert expected - predicted(math.e) > 0.16  # negative control: in the units of the rewards


def test_the_action_is_the_mean_of_different_candidates():
    # The mean of four independent actions has half the std of one. Drawn with replacement, from eight, it would have
    # sqrt(1/8 + 7/8 / 4) = 0.59 of it. The std of 2,000 such means has a relative error of 0.015.
    one, four = (act(BEHAVIOUR, 1, sharpness=0.0, averaged_actions=count).std() for count in (1, 4))
    assert abs(four / one - 0.5) < 0.04


def test_the_first_round_learns_logged_returns():
    np.testing.assert_allclose(returns(ROUND_1), np.broadcast_to(LOGGED, returns(ROUND_1).shape), atol=1e-5)


def test_the_second_round_learns_planned_returns():
    # Softmax tilts V to the highest of 16 estimates, a few hundredths up on average (by up to 0.3 in a row, where an
    # action lies outside the box). V of the logged behaviour would be 0.5 in s1.
    np.testing.assert_allclose(returns(ROUND_2).mean(axis=0), PLANNED, rtol=0, atol=0.1)


@pytest.mark.parametrize("stage", [ROUND_1, ROUND_2])
def test_the_critic_finds_them(stage):
    state, data = stitched().states[stage], stitched().dataset
    critic = jax.tree.map(lambda leaf: leaf[0], state.critic.model)
    q = (state.return_mean + state.return_std * critic(data.observation, data.action)[0]).reshape(-1, len(LOGGED))
    np.testing.assert_allclose(q.mean(axis=0), returns(stage).mean(axis=0), rtol=0, atol=0.05)


def test_planning_stitches_two_episodes():
    # Negative control: with rounds = 1 the training would end as the first round left it, on the logged 0.3.
    assert np.mean(act(ROUND_1, 0) > 0.5) < 0.05
    assert np.mean(act(ROUND_2, 0) > 0.5) > 0.95
