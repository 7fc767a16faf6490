"""Fitted Q evaluation: the value of a given policy from logged transitions (arXiv:1903.08738, algorithm 3).

    target      y = r + gamma (1 - d) Q_phi'(s', a'),   a' ~ pi(. | s')
    critic      L(phi) = E[(Q_phi(s, a) - y)^2],   (s, a, r, s', d) ~ data
    value       J(pi) = E[Q_phi(s_0, a_0)],   s_0 the first states of the data's episodes,   a_0 ~ pi(. | s_0)

Q' follows Q as a moving average where algorithm 3 solves a regression for each of its iterations. Networks predict Q in
units of the mean and deviation of the logged returns to go, so that they begin where the data are; targets are cut off
at what the rewards allow. Actions of the policy are drawn once for each row, before.

The form is a method's, so that the loop of the trainings trains it; but what is learnt is a value, and nothing acts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from diffcps.networks.critic import Critic
from diffcps.optim import Trained, clipped_adam, minimise, moving_average, start
from diffcps.rl.bellman import td_loss, td_target
from diffcps.rl.replay import draw_rows, transitions
from diffcps.types import EPISODES, Algorithm, Dataset, Key, Metrics, Scalar, Spec, Stage, Transition, Tree, UpdateIndex


@dataclass(frozen=True)
class Config:
    """How a value is fitted."""

    discount: float = 0.99
    """Discount gamma: rewards 1 / (1 - gamma) steps ahead still count."""
    target_rate: float = 0.02
    """Rate at which Q' follows Q, every update."""
    learning_rate: float = 3e-4
    """Adam's rate."""
    batch_size: int = 256
    """Transitions per update."""
    width: int = 256
    """Units per hidden layer."""
    depth: int = 2
    """Hidden layers."""
    clip_targets: bool = True
    """Cut targets off at the least and the greatest sum of rewards that there can be; without, values can run away."""


class Units(NamedTuple):
    """The units of the networks, and what a value can be."""

    mean: float
    """Of the logged returns to go."""
    std: float
    least: float
    """The least discounted sum of rewards of the size that the data have."""
    greatest: float


class State(NamedTuple):
    """What is carried from update to update."""

    critic: Trained[Critic]
    """One Q network; it predicts (Q - mean) / std of the logged returns."""
    target_critic: Critic


QFunction = Callable[[Float[Array, "*b obs"], Float[Array, "*b act"]], Float[Array, "1 *b"]]
"""A critic, in units of the returns."""


class Evaluated(NamedTuple):
    """Transitions, each with an action of the policy in its next state."""

    logged: Transition
    next_action: Float[Array, "b act"]


def value(
    critic: QFunction, scale: Units, observation: Float[Array, "*b obs"], action: Float[Array, "*b act"]
) -> Float[Array, "*b"]:
    """Q(s, a), in the units of the rewards."""
    return scale.mean + scale.std * critic(observation, action)[0]


def critic_target(critic: QFunction, scale: Units, batch: Evaluated, config: Config) -> Float[Array, " b"]:
    """y = r + gamma (1 - d) Q_phi'(s', a'), within what there can be."""
    logged = batch.logged
    q_next = value(critic, scale, logged.next_observation, batch.next_action)
    target = td_target(logged.reward, logged.terminal, q_next, config.discount)
    return jnp.clip(target, scale.least, scale.greatest) if config.clip_targets else target


def critic_loss(critic: QFunction, scale: Units, batch: Evaluated, target: Float[Array, " b"]) -> Scalar:
    """E[(Q_phi(s, a) - y)^2], in units of the returns' variance."""
    predicted = critic(batch.logged.observation, batch.logged.action)
    return td_loss(predicted, (target - scale.mean) / scale.std)


def make(config: Config, spec: Spec, scale: Units) -> Algorithm[State]:
    """Fitted Q evaluation of the policy whose next actions are the labels of the rows, "n act" in [-1, 1]."""
    optimiser = clipped_adam(config.learning_rate, float("inf"))

    def init(key: Key) -> State:
        critic = Critic(spec, (config.width,) * config.depth, key, jax.nn.relu, size=1)
        return State(start(optimiser, critic), critic)

    def batch(dataset: Dataset, key: Key) -> Evaluated:
        rows = draw_rows(dataset, key, config.batch_size)
        return Evaluated(transitions(rows), rows.labels)

    def begin(state: State, dataset: Dataset, key: Key) -> tuple[State, Tree]:
        return state, dataset.labels

    def update(state: State, batch: Evaluated, draws: tuple[()], index: UpdateIndex) -> tuple[State, Metrics]:
        target = critic_target(state.target_critic, scale, batch, config)
        critic, loss, _, _ = minimise(optimiser, state.critic, critic_loss, scale, batch, target)
        follows = moving_average(state.target_critic, critic.model, config.target_rate)
        return State(critic, follows), {"critic/loss": loss}

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> NoReturn:
        raise TypeError("a value does not act")

    def diagnose(state: State, rows: Dataset, key: Key) -> NoReturn:
        raise TypeError("a value is measured by what it says of the first states")

    return Algorithm(init, (Stage(1, batch, update, begin),), act, diagnose, needs=EPISODES)


@partial(jax.jit, static_argnames="scale")
def first_values(
    state: State, scale: Units, observation: Float[Array, "e obs"], action: Float[Array, "m e act"]
) -> Float[Array, "m e"]:
    """Q of the first states of the episodes, for each policy with its own first actions."""
    return jax.vmap(lambda critic, action: value(critic, scale, observation, action))(state.critic.model, action)
