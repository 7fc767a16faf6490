"""OGBench's single-task ant mazes (extra `ogbench`) under the names of its tasks, and reproducible.

`antmaze-large-navigate-singletask-v0` is the environment `antmaze-large-singletask-v0` of the package: the kind of data
(navigate, stitch, explore) makes no difference to it. Rewards are -1, and 0 for a step that begins within 0.5 of the
goal, which ends the episode.

Reference: https://github.com/seohongpark/ogbench (arXiv:2410.20092).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager

import gymnasium
import numpy as np

from diffcps.types import UserError

try:
    import ogbench.locomaze  # noqa: F401  # pyright: ignore[reportMissingImports]
except ImportError as error:
    raise UserError("OGBench's environments need the package ogbench: pip install 'diffcps[ogbench]'") from error


class Seeded(gymnasium.Wrapper):
    """OGBench draws start positions and teleports from NumPy's global generator, which `reset(seed=...)` does not seed.

    Here it finds a generator of the environment's own in its place, so that a seed means the same start each time.
    """

    def __init__(self, environment: gymnasium.Env) -> None:
        super().__init__(environment)
        self._state = np.random.RandomState().get_state()

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self._state = np.random.RandomState(seed).get_state()
            self.action_space.seed(seed)  # a reset takes some random steps
        with self._own_generator():
            return self.env.reset(seed=seed, options=options)

    def step(self, action):
        with self._own_generator():
            return self.env.step(action)

    @contextmanager
    def _own_generator(self) -> Iterator[None]:
        others = np.random.get_state()  # noqa: NPY002
        np.random.set_state(self._state)  # noqa: NPY002
        try:
            yield
        finally:
            self._state = np.random.get_state()  # noqa: NPY002
            np.random.set_state(others)  # noqa: NPY002


def single_task(environment_id: str, render_mode: str | None = None) -> Seeded:
    """The package's environment of this id, without its time limit: ours has it."""
    return Seeded(gymnasium.make(environment_id, render_mode=render_mode, disable_env_checker=True).unwrapped)


for _maze, _data, _task in itertools.product(
    ("medium", "large", "giant", "teleport"),
    ("navigate", "stitch", "explore"),
    ("", "-task1", "-task2", "-task3", "-task4", "-task5"),
):
    gymnasium.register(
        f"antmaze-{_maze}-{_data}-singletask{_task}-v0",
        "diffcps.envs.ogbench:single_task",
        max_episode_steps=1000,
        kwargs={"environment_id": f"antmaze-{_maze}-singletask{_task}-v0"},
    )
