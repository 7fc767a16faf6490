"""D4RL's kitchen on the model of gymnasium-robotics (extra `robotics`): its files of the robot and the kitchen.

Its own environment FrankaKitchen-v1 cannot be made with MuJoCo 4 (it asks whether a number is in a tuple of enumerated
values, which has become False), and its observations and noise are not D4RL's. So D4RL's environment is written here:

    observation   9 joints of the robot, 21 of the kitchen, each with noise; then the goal, 30 numbers, zero where free
    action        9 joint velocities, scaled by 2 rad/s; the position controllers aim at last seen + velocity * 0.08 s
    reward        number of tasks completed in this step: seen joints within 0.3 of their goal; a task pays once
    end           all tasks completed, or 280 steps

docs/environments.md lists what differs.
Reference: https://github.com/Farama-Foundation/D4RL, d4rl/kitchen; arXiv:1910.11956.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from xml.etree import ElementTree

import gymnasium
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.spaces import Box

from diffcps.types import UserError

try:
    with contextlib.redirect_stderr(io.StringIO()):  # it prints a note on Adroit
        import gymnasium_robotics  # pyright: ignore[reportMissingImports]
        from gymnasium_robotics.envs.franka_kitchen.kitchen_env import (  # pyright: ignore[reportMissingImports]
            OBS_ELEMENT_GOALS,
            OBS_ELEMENT_INDICES,
        )
except ImportError as error:
    raise UserError(
        "the Kitchen environments need the package gymnasium-robotics: pip install 'diffcps[robotics]'"
    ) from error

ASSETS = Path(str(gymnasium_robotics.__file__)).parent / "envs" / "assets" / "kitchen_franka"
JOINTS = 9
"""Of the robot: seven and two fingers."""
NOISE = 0.1
"""Of a joint's amplitude of noise, which the robot's configuration lists."""
SPEED = 2.0
"""Of an action of 1, in rad/s (fingers: m/s)."""
NEAR = 0.3
"""A task is completed within this Euclidean distance of its goal."""
START = np.array(
    [
        0.148388023, -1.76848573, 1.84390296, -2.4768576, 0.260252026, 0.712533105, 1.59515394, 0.0479267505,
        0.0371350919, -2.6627985e-4, -5.18043486e-5, 3.1287722e-5, -4.51199853e-5, -3.90842156e-6, -4.22629655e-5,
        6.28065475e-5, 4.04984708e-5, 4.62730939e-4, -2.26906415e-4, -4.65501369e-4, -6.44129196e-3, -1.77048263e-3,
        1.08009684e-3, -0.26939744, 0.350383255, 1.61944683, 1.00618764, 4.0639512e-3, -6.62095997e-3, -2.68278933e-4,
    ]
)  # fmt: skip
"""Joint positions at the start of each episode, D4RL's."""

COMPLETE = ("microwave", "kettle", "light switch", "slide cabinet")
"""The tasks of kitchen-complete and kitchen-partial."""
MIXED = ("microwave", "kettle", "bottom burner", "light switch")


class Kitchen(MujocoEnv):
    """A robot arm that has `tasks` to do, in any order."""

    metadata = {"render_modes": ["human", "rgb_array", "depth_array"], "render_fps": 12}  # noqa: RUF012

    def __init__(self, tasks: tuple[str, ...] = COMPLETE, **options) -> None:
        space = Box(-np.inf, np.inf, (2 * len(START),), np.float64)
        model = str(ASSETS / "kitchen_assets" / "kitchen_env_model.xml")
        super().__init__(model, frame_skip=40, observation_space=space, **options)
        self.action_space = Box(-1.0, 1.0, (JOINTS,), np.float32)
        self.init_qpos = START.copy()
        self.init_qvel = np.zeros(self.model.nv)

        root = ElementTree.parse(ASSETS / "franka_assets" / "franka_config.xml").getroot()
        joints = [root.find(f"qpos{i}") for i in range(len(START))]
        self._noise = NOISE * np.array([float(joint.attrib["pos_noise_amp"]) for joint in joints if joint is not None])
        bounds = [joint.attrib["pos_bound"].split() for joint in joints[:JOINTS] if joint is not None]
        self._low, self._high = np.array(bounds, float).T
        self._goal = np.zeros(len(START))
        for task in tasks:
            self._goal[OBS_ELEMENT_INDICES[task]] = OBS_ELEMENT_GOALS[task]
        self._tasks, self._left = tasks, set(tasks)
        self._seen = START.copy()

    def step(self, action):
        target = self._seen[:JOINTS] + SPEED * np.clip(action, -1.0, 1.0) * self.dt
        self.do_simulation(np.clip(target, self._low, self._high), self.frame_skip)
        observation = self._look()
        completed = [task for task in sorted(self._left) if self._distance(task) < NEAR]
        self._left -= set(completed)
        if self.render_mode == "human":
            self.render()
        return observation, float(len(completed)), not self._left, False, {"completed": completed}

    def reset_model(self) -> np.ndarray:
        self._left = set(self._tasks)
        self.set_state(self.init_qpos, self.init_qvel)
        return self._look()

    def _look(self) -> np.ndarray:
        """The noise of a look stays: the next step of the controllers starts from what was seen."""
        self._seen = self.data.qpos + self._noise * self.np_random.uniform(-1.0, 1.0, len(START))
        return np.concatenate([self._seen, self._goal])

    def _distance(self, task: str) -> float:
        index = OBS_ELEMENT_INDICES[task]
        return float(np.linalg.norm(self._seen[index] - self._goal[index]))


for _name, _tasks in (("complete", COMPLETE), ("partial", COMPLETE), ("mixed", MIXED)):
    gymnasium.register(
        f"diffcps/Kitchen-{_name}-v0", "diffcps.envs.kitchen:Kitchen", max_episode_steps=280, kwargs={"tasks": _tasks}
    )
