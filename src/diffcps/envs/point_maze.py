"""D4RL's Maze2D on today's Gymnasium: a ball with two motors in a maze. Importing this module registers the ids.

The model is written here, with the numbers of D4RL's: unit cells, 0.01 s, a ball of radius 0.1, gear 100, damping 1,
no gravity. docs/mazes.md says what is the same and what differs.

Reference: https://github.com/Farama-Foundation/D4RL, d4rl/pointmaze/maze_model.py.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import gymnasium
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.spaces import Box

from diffcps.envs.mazes import POINT_MAZES, Maze

SUCCESS_RADIUS = 0.5
MAX_VELOCITY = 5.0
"""Each velocity is clipped to this before a step."""
EPISODE_STEPS = {"umaze": 300, "medium": 600, "large": 800}


class PointMaze(MujocoEnv):
    """Push a ball to the goal. Observation: position (2) and velocity (2); action: two forces in [-1, 1].

    The reward is that of the position which the step reaches: 1 within `SUCCESS_RADIUS` of the goal, else 0; in the
    dense version exp(-distance). An episode never terminates. It starts in a random free cell, up to 0.1 beside it.
    `info` holds `xy` and `goal`.
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array"], "render_fps": 100}  # noqa: RUF012

    def __init__(self, maze: str, dense: bool = False, render_mode: str | None = None) -> None:
        self.maze: Maze = POINT_MAZES[maze]
        self.dense = dense
        self.goal = np.array(self.maze.goal, float)
        middle = self.maze.centre((0, 0)) + (np.array(self.maze.walls.shape) - 1) / 2 + _BALL
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "maze.xml"
            path.write_text(point_maze_xml(self.maze))
            super().__init__(
                str(path),
                frame_skip=1,
                observation_space=Box(-np.inf, np.inf, (4,), np.float64),
                render_mode=render_mode,
                camera_id=-1,
                default_camera_config={
                    "lookat": np.append(middle, 0.0),
                    "distance": 1.25 * max(self.maze.walls.shape),
                    "elevation": -89.0,
                    "azimuth": 90.0,
                },  # pyright: ignore[reportArgumentType]
            )
        self.model.site("goal").pos[:2] = self.goal + _BALL

    def reset_model(self) -> np.ndarray:
        cells = self.maze.free_cells
        cell = cells[self.np_random.integers(len(cells))]
        position = np.array(cell, float) + self.np_random.uniform(-0.1, 0.1, 2)
        self.set_state(position, 0.1 * self.np_random.standard_normal(2))
        return self._observation()

    def _get_reset_info(self) -> dict[str, np.ndarray]:
        return {"xy": self.data.qpos.copy(), "goal": self.goal.copy()}

    def step(self, action):
        self.set_state(self.data.qpos, np.clip(self.data.qvel, -MAX_VELOCITY, MAX_VELOCITY))
        self.do_simulation(np.clip(action, -1.0, 1.0), self.frame_skip)
        if self.render_mode == "human":
            self.render()
        return self._observation(), float(self.reward(self.data.qpos)), False, False, self._get_reset_info()

    def reward(self, xy: np.ndarray) -> np.ndarray:
        """The reward of positions "*n 2"."""
        distance = np.linalg.norm(xy - self.goal, axis=-1)
        return np.asarray(np.exp(-distance) if self.dense else distance <= SUCCESS_RADIUS, float)

    def _observation(self) -> np.ndarray:
        return np.concatenate([self.data.qpos, self.data.qvel])


_BALL = 1.2
"""Where the ball hangs in the world, in x and y, when its joints are at 0."""


def point_maze_xml(maze: Maze) -> str:
    """The MuJoCo model of a maze: a wall box around index + 1 for each wall cell, in world coordinates."""
    walls = "\n".join(
        f'<geom type="box" conaffinity="1" pos="{row + 1} {column + 1} 0" size="0.5 0.5 0.2" rgba=".7 .5 .3 1"/>'
        for row, column in np.argwhere(maze.walls)
    )
    size = max(maze.walls.shape)
    return f"""
<mujoco model="point_maze">
  <compiler inertiafromgeom="true"/>
  <option timestep="0.01" gravity="0 0 0" iterations="20" integrator="Euler"/>
  <default>
    <joint damping="1" limited="false"/>
    <geom friction=".5 .1 .1" density="1000" margin="0.002" condim="1" contype="2" conaffinity="1"/>
  </default>
  <worldbody>
    <light directional="true" pos="0 0 5" dir="0 0 -1" diffuse=".5 .5 .5"/>
    <geom type="plane" size="{size} {size} 0.1" pos="0 0 -0.1" contype="0" conaffinity="0" rgba=".85 .87 .9 1"/>
    <body pos="{_BALL} {_BALL} 0">
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
      <geom type="sphere" size="0.1" contype="1" rgba=".2 .4 .7 1"/>
    </body>
    <site name="goal" type="cylinder" pos="0 0 -0.09" size="{SUCCESS_RADIUS} 0.01" rgba=".3 .65 .4 .6"/>
    {walls}
  </worldbody>
  <actuator>
    <motor joint="x" ctrlrange="-1 1" ctrllimited="true" gear="100"/>
    <motor joint="y" ctrlrange="-1 1" ctrllimited="true" gear="100"/>
  </actuator>
</mujoco>
"""


for _name, _limit in EPISODE_STEPS.items():
    for _infix, _dense in (("", False), ("-dense", True)):
        gymnasium.register(
            f"diffcps/Maze2D-{_name}{_infix}-v1",
            "diffcps.envs.point_maze:PointMaze",
            max_episode_steps=_limit,
            kwargs={"maze": _name, "dense": _dense},
        )
