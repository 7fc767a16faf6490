"""Random data, and learning problems with known answers, for the tests of every room."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffcps.algorithms import ALGORITHMS
from diffcps.training.loop import prepared
from diffcps.training.members import Member, Program
from diffcps.types import Dataset, DatasetInfo, NetObservation, Spec, Stage

# --- Random data ---


SPEC = Spec(observation_size=3, action_size=2)


def random_dataset(rows: int = 64, spec: Spec = SPEC, episode: int = 8) -> Dataset:
    """Random numbers on the host, in episodes of equal length; those of the first half of the rows terminate."""
    rng = np.random.default_rng(0)
    end, first_half = np.arange(rows) % episode == episode - 1, np.arange(rows) < rows / 2
    box = (1.0,) * spec.action_size
    return Dataset(
        observation=rng.normal(size=(rows, spec.observation_size)).astype(np.float32),
        action=rng.uniform(-1, 1, size=(rows, spec.action_size)).astype(np.float32),
        reward=rng.normal(size=rows).astype(np.float32),
        next_observation=rng.normal(size=(rows, spec.observation_size)).astype(np.float32),
        terminal=end & first_half,
        timeout=end & ~first_half,
        info=DatasetInfo("random numbers", "0", action_low=tuple(-x for x in box), action_high=box),
    )


# --- Trainings of small networks ---

# Rates that reach an answer within a few thousand updates.
FAST = {
    "batch_size": 64,
    "depth": 2,
    "time_size": 8,
    "learning_rate": 1e-3,
    "actor_learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "target_rate": 0.05,
    "ema_rate": 0.05,
    "ema_start": 0,
}


def dataset_of(observation, action, reward, next_observation, terminal, timeout=None) -> Dataset:
    return Dataset(
        observation=jnp.asarray(observation, jnp.float32),
        action=jnp.asarray(action, jnp.float32),
        reward=jnp.asarray(reward, jnp.float32),
        next_observation=jnp.asarray(next_observation, jnp.float32),
        terminal=jnp.asarray(terminal, bool),
        timeout=jnp.zeros(len(terminal), bool) if timeout is None else jnp.asarray(timeout, bool),
        info=DatasetInfo(source="a problem with a known answer", sha256=""),
    )


def begun(stage: Stage[Any], state: Any, dataset: Dataset, key: jax.Array) -> tuple[Any, Any]:
    """The stage begins, with what it needs of the rows computed for all at once."""
    if stage.for_rows is not None:
        of_rows = stage.for_rows(state, dataset, jnp.arange(dataset.size), jax.random.clone(key))
        dataset = dataclasses.replace(dataset, labels=of_rows)
    return stage.begin(state, dataset, key)


class Training:
    """One algorithm on one dataset; a member for each row of `swept`, all of one seed."""

    def __init__(self, name: str, dataset: Dataset, swept: Sequence[Mapping[str, float]] = ({},), **config):
        module = ALGORITHMS[name]
        known = {field.name for field in dataclasses.fields(module.Config)}
        base = module.Config(**{key: value for key, value in (FAST | config).items() if key in known})
        members = [Member(index, 0, dict(values)) for index, values in enumerate(swept)]

        def make(values):
            return module.make(dataclasses.replace(base, **values), dataset.spec)

        self.dataset = dataset
        self.updates = 0
        self.program = Program(make, members, dataset)
        self.state = self.program.init()

    def advance(self, updates: int) -> dict[str, np.ndarray]:
        """Goes on for so many updates; returns the metrics, per member."""
        alive = jnp.ones(len(jax.tree.leaves(self.state)[0]), bool)
        last = self.updates + updates
        self.state, alive, metrics = self.program.advance(self.state, alive, self.updates, last)
        self.updates = last
        assert np.all(alive), "diverged"
        return {name: np.asarray(value) for name, value in metrics.items()}

    def act(self, observation: Sequence[float], num_actions: int) -> np.ndarray:
        """Actions of the first and only member in one observation."""
        rows = np.tile(np.asarray(observation, np.float32), (1, num_actions, 1))
        return self.program.act(self.state, NetObservation(rows), self.updates, 0)[0]

    def q(self, observation, action, member: int = 0) -> np.ndarray:
        """Both Q of a member, before the mean or minimum of anything."""
        critic = jax.tree.map(lambda leaf: leaf[member], self.state.critic.model)
        return np.asarray(critic(jnp.asarray(observation, jnp.float32), jnp.asarray(action, jnp.float32)))

    def diagnose(self) -> dict[str, np.ndarray]:
        return self.program.diagnose(self.state, self.dataset)


class Staged(Training):
    """A whole training in stages. It keeps the labels that each stage began with, and the states before and after."""

    def __init__(
        self, name: str, dataset: Dataset, updates: int, swept: Sequence[Mapping[str, float]] = ({},), **config
    ):
        super().__init__(name, dataset, swept, **config)
        self.updates = updates
        self.labels: list[Any] = []
        self.states = [jax.tree.map(np.array, self.state)]
        labels, alive = (), jnp.ones(len(swept), bool)
        for stage, (first, last) in enumerate(pairwise([*self.program.starts(updates), updates])):
            of_rows = prepared(self.program, self.state, labels, stage)
            self.state, labels = self.program.begin(self.state, of_rows, alive, stage)
            self.labels.append(jax.tree.map(np.array, labels))
            self.state, alive, _ = self.program.advance(self.state, alive, first, last, labels, stage)
            self.states.append(jax.tree.map(np.array, self.state))
            assert np.all(alive), "diverged"


# --- A chain of two steps ---

CHAIN_DISCOUNT, CHAIN_ROWS = 0.8, 64
CHAIN_Q = np.array([CHAIN_DISCOUNT, 1.0, 0.0])
"""Exact Q of any policy in the three states."""


def two_step_chain() -> Dataset:
    """s0 -> s1 -> end, with reward 1 at the end, whatever the action. The first step ends a logged episode by its time
    limit, and is bootstrapped all the same. s2 steps to s1 too, but terminates there: its value is 0."""
    start = np.repeat([0, 1, 2], CHAIN_ROWS)
    return dataset_of(
        observation=np.eye(3)[start],
        action=np.random.default_rng(0).uniform(-1, 1, size=(start.size, 1)),
        reward=np.array([0.0, 1.0, 0.0])[start],
        next_observation=np.eye(3)[np.ones_like(start)],
        terminal=np.array([False, True, True])[start],
        timeout=np.array([True, False, False])[start],
    )


def q_on_the_chain(training: Training) -> np.ndarray:
    """What a training has learned, (critics, states, rows)."""
    chain = two_step_chain()
    return training.q(chain.observation, chain.action).reshape(-1, 3, CHAIN_ROWS)


# --- Two modes: one action dimension, states -1 and +1, actions around -0.8 and +0.8 in equal parts in both ---

STATES, MODES, SPREAD = (-1.0, 1.0), (-0.8, 0.8), 0.05
NUM_ACTIONS = 2000
# The share of 2,000 independent actions is within sqrt(log(2 / 1e-4) / (2 n)) = 0.05 of its expectation, or a case of
# probability 1e-4 has happened (Hoeffding). Twice as much is left to the training: a small network knows no symmetry.
SHARE_TOLERANCE = 3 * math.sqrt(math.log(2 / 1e-4) / (2 * NUM_ACTIONS))


# Of few diffusion steps the last is so large that even the exact denoiser leaves actions between the modes: 0.77 of its
# actions are near a mode at T = 5, 0.976 at T = 10, 0.996 at T = 15 (worked out apart, with 200,000 actions).
MANY_STEPS = 15


def bandit(reward: str) -> Dataset:
    """One step to the end. `flat`: every action earns 1. `matching`: the mode with the sign of the state earns 1."""
    rng = np.random.default_rng(0)
    state, mode = (array.ravel() for array in np.meshgrid(np.repeat(STATES, 128), MODES))
    action = np.clip(mode + SPREAD * rng.normal(size=state.size), -1, 1)
    earned = np.ones_like(state) if reward == "flat" else np.where(state * mode > 0, 1.0, 0.0)
    observation = state[:, None]
    return dataset_of(observation, action[:, None], earned, observation, np.ones(state.size))


def near_a_mode(action: np.ndarray) -> float:
    """Share of actions within 0.3 of either mode, which is six standard deviations of the data."""
    return float(np.mean(np.abs(np.abs(action) - 0.8) < 0.3))


# --- A line of four states: past the right end waits 1, past the left end 0.3; the action's sign is the direction ---

LINE, LINE_DISCOUNT, TRAP = 4, 0.8, 0.3


def step_on_the_line(state: int, right: int) -> tuple[float, int, bool]:
    """Reward, next state, end."""
    if right:
        return (1.0, state, True) if state == LINE - 1 else (0.0, state + 1, False)
    return (TRAP, state, True) if state == 0 else (0.0, state - 1, False)


def line_of_states() -> Dataset:
    """Both directions, logged equally often in every state, by actions of any size."""
    start, right = (array.ravel() for array in np.meshgrid(np.repeat(np.arange(LINE), 64), [0, 1]))
    action = np.where(right == 1, 1, -1) * np.random.default_rng(0).uniform(0.3, 1.0, size=start.size)
    outcome = [step_on_the_line(int(state), int(side)) for state, side in zip(start, right, strict=True)]
    reward, following, end = zip(*outcome, strict=True)
    return dataset_of(np.eye(LINE)[start], action[:, None], reward, np.eye(LINE)[list(following)], end)


def exact_q(value_of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Q[state, right] at the fixed point, where `value_of` makes V (states,) of Q (states, 2); Q* with the maximum."""
    q = np.zeros((LINE, 2))
    for _ in range(200):
        value = value_of(q)
        for state in range(LINE):
            for right in (0, 1):
                reward, following, end = step_on_the_line(state, right)
                q[state, right] = reward + (0.0 if end else LINE_DISCOUNT * value[following])
    return q


def q_on_the_line(training: Training, member: int = 0) -> np.ndarray:
    """What a member has learned, Q[state, right], the mean over its critics and the logged actions."""
    line = line_of_states()
    q = training.q(line.observation, line.action, member).mean(axis=0)
    start, right = np.argmax(line.observation, axis=1), np.asarray(line.action)[:, 0] > 0
    return np.array([[q[(start == state) & (right == side)].mean() for side in (0, 1)] for state in range(LINE)])
