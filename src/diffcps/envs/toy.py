"""The paper's two toy problems: a bandit whose good actions form a ring, and an X of trajectories to be stitched.

Each is a Gymnasium environment and a maker of its dataset. Importing this module registers the environments; as their
ids name it, Gymnasium imports it by itself: `gymnasium.make(NOISY_CIRCLE)` works anywhere.

The paper says little more than what the two classes quote. Every other choice is a constant below; docs/figures.md
lists them.

Reference: arXiv:2310.05333, section 3.1 and appendix D (noisy circle), appendix F.1 (stitching).
"""

from __future__ import annotations

import hashlib

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from diffcps.types import Dataset, DatasetInfo, EnvironmentSpec

NOISY_CIRCLE = "diffcps.envs.toy:diffcps/NoisyCircle-v0"
STITCHING = "diffcps.envs.toy:diffcps/Stitching-v0"

CIRCLE_NOISE = 0.05
"""Standard deviation of the noise on each coordinate. The paper writes N(0, 0.05); read as a variance, it would be 0.22
and the ring would have no hole."""
CIRCLE_BOUND = 1.2
"""The bandit's actions lie in [-1.2, 1.2]^2: the smallest round box that holds the data, which reach to 1.16. Actions
are scaled to [-1, 1]; with few diffusion steps a smaller ring comes out worse: its radius is what noise must spare."""
CIRCLE_MARGIN = 3 * CIRCLE_NOISE
"""The bandit pays 1 for an action whose radius is within this of 1 (as are all but 0.3% of the data), else 0."""

START, GOAL = (-1.0, 1.0), (1.0, 1.0)
STEP = 0.2
"""How far an action moves each coordinate: position + 0.2 action."""
DRIVE = 0.5
"""Size of both coordinates of the data's mean action: 0.1 per step and coordinate, 20 steps from corner to corner."""
ACTION_NOISE = 0.15
"""Standard deviation of the noise on each coordinate of the data's actions."""
START_NOISE = 0.05
"""Standard deviation of the noise on each coordinate of the data's first positions."""
HORIZON = 30
"""Steps of an episode: 20 to cross the square and 10 at the end of the arm, pushing on into the corner."""
REWARD_CONSTANT = 2 * 2**0.5
"""The constant in the reward: rewards run from 0 in the corner opposite to the goal to 2.83 at the goal."""


class NoisyCircle(gymnasium.Env[np.ndarray, np.ndarray]):
    """ "The noisy circle is composed of a unit circle with added Gaussian noise." One step; the observation is zero."""

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's convention)

    def __init__(self) -> None:
        self.observation_space = Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = Box(-CIRCLE_BOUND, CIRCLE_BOUND, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        reward = float(abs(np.linalg.norm(action) - 1.0) <= CIRCLE_MARGIN)
        return np.zeros(1, np.float32), reward, True, False, {}


class Stitching(gymnasium.Env[np.ndarray, np.ndarray]):
    """ "The sum of the negative Euclidean distance from the point (1, 1) and a constant", states and actions in 2-D.

    An episode starts at (-1, 1). The reward is that of the position which the action reaches; there is no termination.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self) -> None:
        self.observation_space = Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)
        self._position = np.asarray(START, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._position = np.asarray(START, np.float32)
        return self._position.copy(), {}

    def step(self, action):
        self._position = moved(self._position, action)
        return self._position.copy(), float(stitching_reward(self._position)), False, False, {}


gymnasium.register("diffcps/NoisyCircle-v0", "diffcps.envs.toy:NoisyCircle", max_episode_steps=1)
gymnasium.register("diffcps/Stitching-v0", "diffcps.envs.toy:Stitching", max_episode_steps=HORIZON)


def moved(position: np.ndarray, action: np.ndarray) -> np.ndarray:
    """The next position, "*b 2": the square has walls, along which one slides."""
    return np.clip(position + STEP * np.clip(action, -1.0, 1.0), -1.0, 1.0).astype(np.float32)


def stitching_reward(position: np.ndarray) -> np.ndarray | np.floating:
    """REWARD_CONSTANT - ||position - (1, 1)||, for "*b 2"."""
    return REWARD_CONSTANT - np.linalg.norm(position - np.asarray(GOAL), axis=-1)


def noisy_circle(num_actions: int = 5000, seed: int = 0) -> Dataset:
    """Actions at uniform angles of the unit circle, with noise N(0, CIRCLE_NOISE^2) on each coordinate; reward 1 each.

    All actions have reward 1, as in the paper, also those few that the environment would not pay for.
    """
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0.0, 2 * np.pi, num_actions)
    action = np.stack([np.cos(angle), np.sin(angle)], axis=1) + rng.normal(0.0, CIRCLE_NOISE, (num_actions, 2))
    observation = np.zeros((num_actions, 1))
    ends = np.ones(num_actions, bool)
    return _dataset(
        "noisy circle", NOISY_CIRCLE, CIRCLE_BOUND, observation, action, np.ones(num_actions), observation, ends, ~ends
    )


def stitching(num_trajectories: int = 200, seed: int = 0) -> Dataset:
    """Half of the trajectories go from (-1, 1) to (1, -1), the other half from (-1, -1) to (1, 1): an X.

    Actions are (DRIVE, -DRIVE) or (DRIVE, DRIVE) plus noise N(0, ACTION_NOISE^2) on each coordinate, HORIZON of them.
    No trajectory terminates: its last step is a timeout.
    """
    rng = np.random.default_rng(seed)
    down = np.arange(num_trajectories) % 2 == 0
    first = np.where(down[:, None], START, (-1.0, -1.0)) + rng.normal(0.0, START_NOISE, (num_trajectories, 2))
    drive = np.where(down[:, None], (DRIVE, -DRIVE), (DRIVE, DRIVE))
    action = drive[:, None] + rng.normal(0.0, ACTION_NOISE, (num_trajectories, HORIZON, 2))
    action = np.clip(action, -1.0, 1.0).astype(np.float32)
    position = [np.clip(first, -1.0, 1.0).astype(np.float32)]
    for step in range(HORIZON):
        position.append(moved(position[-1], action[:, step]))
    observation, next_observation = np.stack(position[:-1], axis=1), np.stack(position[1:], axis=1)
    timeout = np.tile(np.arange(HORIZON) == HORIZON - 1, num_trajectories)
    flat = [array.reshape(-1, 2) for array in (observation, action, next_observation)]
    reward = stitching_reward(flat[2])
    return _dataset("stitching", STITCHING, 1.0, flat[0], flat[1], reward, flat[2], np.zeros_like(timeout), timeout)


def _dataset(
    name: str, environment: str, bound: float, observation, action, reward, next_observation, terminal, timeout
) -> Dataset:
    """Arrays as float32, actions scaled from [-bound, bound]^2 to [-1, 1]^2."""
    action = np.clip(action / bound, -1.0, 1.0)
    arrays = [np.asarray(array, np.float32) for array in (observation, action, reward, next_observation)]
    info = DatasetInfo(
        source=f"toy problem: {name}",
        sha256=hashlib.sha256(b"".join(array.tobytes() for array in (*arrays, terminal, timeout))).hexdigest(),
        environment=EnvironmentSpec(environment),
        action_low=(-bound, -bound),
        action_high=(bound, bound),
    )
    return Dataset(*arrays, terminal=terminal, timeout=timeout, info=info)
