"""The ant of gym v2, in which D4RL's ant data were recorded: 111 numbers, 84 of which are zero.

Gymnasium's Ant-v4 has its model, reward, end and reset. It lacks the contact forces in the observation (14 bodies with
6 numbers each) and their cost. Both were zero in gym v2 with mujoco-py on MuJoCo 2.0, where nobody called the function
that computes the forces (https://github.com/openai/gym/issues/1541). Which MuJoCo recorded D4RL's ant is not said.

Reference: https://github.com/openai/gym, gym/envs/mujoco/ant.py.
"""

from __future__ import annotations

import gymnasium
import numpy as np
from gymnasium.envs.mujoco.ant_v4 import AntEnv
from gymnasium.spaces import Box

CONTACT_FORCES = 14 * 6


class Ant(AntEnv):
    """Ant-v4 with the zeros that stand for the contact forces behind its observation."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.observation_space = Box(-np.inf, np.inf, (27 + CONTACT_FORCES,), np.float64)

    def _get_obs(self) -> np.ndarray:
        return np.concatenate([super()._get_obs(), np.zeros(CONTACT_FORCES)])


gymnasium.register("diffcps/Ant-v2", "diffcps.envs.ant:Ant", max_episode_steps=1000)
