"""TriFinger: three fingers push a cube over the floor, or lift it to a pose, in the simulator of the datasets' package.

Importing this module registers `diffcps/TriFingerPush-v0` and `diffcps/TriFingerLift-v0`. Both run in the extra
`trifinger` (the package `trifinger-rl-datasets` and PyBullet).

Reference: arXiv:2307.15690; the package, `sim_env.py` and `evaluation.py`.
"""

from __future__ import annotations

import io
import warnings
from contextlib import redirect_stderr
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import DependencyNotInstalled


class TriFinger(gymnasium.Env[np.ndarray, np.ndarray]):
    """The package's simulated environment of a task (`push` or `lift`): flat observations, actions are torques in N m.

    Three things differ from the package. A seed works: it draws the cube's start and the goal, and NumPy's global
    generator is left as it was. An episode after a reset has the full 750 (push) or 1500 (lift) steps, for the step
    that the package makes while resetting is not counted. And `info["success"]` says whether the goal is achieved
    (within 2 cm; for lift within 22 degrees too): at an episode's last step it is the success of the benchmark.

    Every reset starts the simulation anew, cube anywhere in the arena. The package's own evaluation does that for every
    eighth (push) or sixth (lift) episode; before the others the fingers only move the cube back to the middle.
    """

    metadata = {"render_modes": []}  # noqa: RUF012 (Gymnasium's convention)

    def __init__(self, task: str) -> None:
        self._package = _make(task)
        self.observation_space = self._package.observation_space
        self.action_space = self._package.action_space

    def reset(self, *, seed=None, options=None):
        from trifinger_simulation.tasks import move_cube  # pyright: ignore[reportMissingImports]

        super().reset(seed=seed)
        draw = int(self.np_random.integers(2**31))
        kept = np.random.get_state()  # noqa: NPY002 (the package draws the cube's start from it)
        try:
            np.random.seed(draw)  # noqa: NPY002
            move_cube.seed(draw)
            observation, _ = self._package.reset()
        finally:
            np.random.set_state(kept)  # noqa: NPY002
        self._package.sim_env.step_count = 0
        return observation, {}

    def step(self, action):
        observation, reward, terminated, truncated, info = self._package.step(action)
        return observation, float(reward), terminated, truncated, {**info, "success": bool(info["has_achieved"])}

    def close(self):
        self._package.sim_env.platform = None  # which ends its simulation


def _make(task: str) -> Any:
    """The package's environment. What it says while it is imported is about its own dependencies, and left out."""
    with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            import trifinger_rl_datasets  # noqa: F401  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise DependencyNotInstalled(f"{error}; pip install 'diffcps[trifinger]'") from error
        return gymnasium.make(f"trifinger-cube-{task}-sim-expert-v0", disable_env_checker=True).unwrapped


gymnasium.register(
    "diffcps/TriFingerPush-v0", "diffcps.envs.trifinger:TriFinger", max_episode_steps=750, kwargs={"task": "push"}
)
gymnasium.register(
    "diffcps/TriFingerLift-v0", "diffcps.envs.trifinger:TriFinger", max_episode_steps=1500, kwargs={"task": "lift"}
)
