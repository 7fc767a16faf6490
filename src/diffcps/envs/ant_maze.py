"""D4RL's AntMaze on today's Gymnasium, and the ant that learns to walk for it. Importing this registers the ids.

D4RL's ant is Gymnasium's with a step of 0.1 s, a fifth of the torque and softer contacts: the model is Gymnasium's
`ant.xml` with these three numbers changed and the walls added. docs/mazes.md says what is the same and what differs.

Reference: https://github.com/Farama-Foundation/D4RL, d4rl/locomotion/{ant,maze_env,goal_reaching_env}.py; for
`AntDirection` https://github.com/seohongpark/ogbench, ogbench/online_locomotion/{ant,wrappers}.py.
"""

from __future__ import annotations

import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import gymnasium
import gymnasium.envs.mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.spaces import Box

from diffcps.envs.mazes import ANT_MAZES, Maze, goal_beside

SUCCESS_RADIUS = 0.5
EPISODE_STEPS = {"umaze": 700, "medium": 1000, "large": 1000}
FRAME_SKIP = 5
HEALTHY_HEIGHT = (0.2, 1.0)
"""Outside of these an episode ends: the ant has fallen over or leapt."""
DIRECTION_STEPS = 100
"""Steps after which another direction is drawn."""


class _Ant(MujocoEnv):
    """D4RL's ant: qpos (15) and qvel (14), eight torques in [-1, 1], ten steps per second."""

    metadata = {"render_modes": ["human", "rgb_array", "depth_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, maze: Maze | None, observation_size: int, render_mode: str | None) -> None:
        camera: dict[str, Any] = {"distance": 6.0}
        if maze is not None:
            middle = maze.unit * (np.array(maze.walls.shape[::-1]) - 1) / 2 + maze.offset
            camera = {"lookat": np.append(middle, 0.0), "distance": 1.25 * maze.unit * max(maze.walls.shape)}
            camera |= {"elevation": -89.0, "azimuth": 90.0}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "ant.xml"
            path.write_text(ant_xml(maze))
            super().__init__(
                str(path),
                frame_skip=FRAME_SKIP,
                observation_space=Box(-np.inf, np.inf, (observation_size,), np.float64),
                render_mode=render_mode,
                camera_id=-1 if maze is not None else None,
                default_camera_config=camera,
            )

    def _noisy_start(self) -> tuple[np.ndarray, np.ndarray]:
        """D4RL's: every position is moved by up to 0.1, every velocity by 0.1 times a standard normal number."""
        qpos = self.init_qpos + self.np_random.uniform(-0.1, 0.1, self.model.nq)
        return qpos, self.init_qvel + 0.1 * self.np_random.standard_normal(self.model.nv)


class AntMaze(_Ant):
    """Walk to the goal. Observation (29): x, y, height, quaternion, 8 joints; 6 velocities of the torso, 8 of joints.

    The reward is 1, and the episode terminates, when the step ends within `SUCCESS_RADIUS` of the goal; else it is 0.
    Falling over ends nothing. The goal is not observed. `info` holds `xy` and `goal`.

    With `goal_every_reset` (version 2) every reset draws the goal anew, otherwise (version 0) the first reset draws
    it for the life of the object.
    """

    def __init__(self, maze: str, goal_every_reset: bool = True, render_mode: str | None = None) -> None:
        self.maze: Maze = ANT_MAZES[maze]
        self.goal_every_reset = goal_every_reset
        super().__init__(self.maze, 29, render_mode)
        self._goal_is_drawn = False
        self.goal = self.maze.centre(self.maze.goal)

    @property
    def goal(self) -> np.ndarray:
        """Position of the goal (2,): the middle of its cell until the first reset."""
        return self._goal

    @goal.setter
    def goal(self, xy: np.ndarray) -> None:
        self._goal = np.array(xy, float)
        self.model.site("goal").pos[:2] = self._goal

    def reset_model(self) -> np.ndarray:
        if self.goal_every_reset or not self._goal_is_drawn:
            self.goal = goal_beside(self.maze, self.maze.goal, self.np_random)
            self._goal_is_drawn = True
        self.set_state(*self._noisy_start())
        return self.state_vector()

    def _get_reset_info(self) -> dict[str, np.ndarray]:
        return {"xy": self.data.qpos[:2].copy(), "goal": self.goal.copy()}

    def step(self, action):
        self.do_simulation(np.clip(action, -1.0, 1.0), self.frame_skip)
        if self.render_mode == "human":
            self.render()
        arrived = bool(self.arrived(self.data.qpos[:2]))
        return self.state_vector(), float(arrived), arrived, False, self._get_reset_info()

    def arrived(self, xy: np.ndarray) -> np.ndarray:
        """Whether positions "*n 2" lie within `SUCCESS_RADIUS` of the goal."""
        return np.asarray(np.linalg.norm(xy - self.goal, axis=-1) <= SUCCESS_RADIUS)


class AntDirection(_Ant):
    """What the ant that collects AntMaze data learns: to move in a direction, another every `DIRECTION_STEPS` steps.

    Observation (29): AntMaze's without x and y, and the direction as a unit vector. The reward is the displacement of
    a step along the direction, in metres. Terminates when the torso leaves `HEALTHY_HEIGHT`.
    """

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(None, 29, render_mode)
        self._direction = np.array([1.0, 0.0])
        self._steps = 0

    def reset_model(self) -> np.ndarray:
        self.set_state(*self._noisy_start())
        self._steps = 0
        self._draw_direction()
        return self._observation()

    def step(self, action):
        before = self.data.qpos[:2].copy()
        self.do_simulation(np.clip(action, -1.0, 1.0), self.frame_skip)
        if self.render_mode == "human":
            self.render()
        reward = float((self.data.qpos[:2] - before) @ self._direction)
        state = self.state_vector()
        healthy = bool(np.isfinite(state).all() and HEALTHY_HEIGHT[0] <= state[2] <= HEALTHY_HEIGHT[1])
        self._steps += 1
        if self._steps % DIRECTION_STEPS == 0:
            self._draw_direction()
        return self._observation(), reward, not healthy, False, {}

    def _draw_direction(self) -> None:
        angle = self.np_random.uniform(0.0, 2 * np.pi)
        self._direction = np.array([np.cos(angle), np.sin(angle)])

    def _observation(self) -> np.ndarray:
        return np.concatenate([self.state_vector()[2:], self._direction])


def ant_xml(maze: Maze | None) -> str:
    """Gymnasium's ant with D4RL's step, torque and contacts; with a maze walls of 2 m and a mark at the goal."""
    tree = ET.parse(Path(gymnasium.envs.mujoco.__file__).parent / "assets" / "ant.xml").getroot()
    _find(tree, "option").set("timestep", "0.02")
    _find(tree, "default/geom").set("solimp", ".8 .8 .01")
    for motor in tree.iterfind("actuator/motor"):
        motor.set("gear", "30")
    if maze is not None:
        world, half = _find(tree, "worldbody"), maze.unit / 2
        for row, column in np.argwhere(maze.walls):
            x, y = maze.centre((int(row), int(column)))
            box = {"type": "box", "pos": f"{x} {y} 1", "size": f"{half} {half} 1", "rgba": ".7 .5 .3 1"}
            ET.SubElement(world, "geom", box | {"contype": "1", "conaffinity": "1"})
        _find(tree, "asset/texture[@name='texplane']").set("rgb1", ".7 .7 .7")  # black squares would hide ant and goal
        # Not at the origin of the world: MuJoCo would hold it for fixed there.
        mark = {"name": "goal", "type": "cylinder", "pos": "0 0 .05", "size": f"{SUCCESS_RADIUS} 0.05"}
        ET.SubElement(world, "site", mark | {"rgba": ".1 .5 .2 1"})
    return ET.tostring(tree, encoding="unicode")


def _find(tree: ET.Element, path: str) -> ET.Element:
    element = tree.find(path)
    assert element is not None, path
    return element


for _name, _limit in EPISODE_STEPS.items():
    for _version in (0, 2):
        gymnasium.register(
            f"diffcps/AntMaze-{_name}-v{_version}",
            "diffcps.envs.ant_maze:AntMaze",
            max_episode_steps=_limit,
            kwargs={"maze": _name, "goal_every_reset": _version == 2},
        )
gymnasium.register("diffcps/AntDirection-v0", "diffcps.envs.ant_maze:AntDirection", max_episode_steps=1000)
