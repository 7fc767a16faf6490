"""Maze2D data by D4RL's recipe: a ball is led by way-points from one goal to the next. `mazes.py` stores them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffcps.collect.files import Columns, as_columns, provenance
from diffcps.collect.mazes import (
    FAST_TRANSITIONS,
    NAMES,
    check_task,
    collect_trajectories,
    draw_trajectories,
    remove_parts,
)
from diffcps.collect.request import CollectionRequest
from diffcps.envs.make import make_environment
from diffcps.envs.mazes import Cell, Maze, next_cell
from diffcps.tasks.references import reference_scores

if TYPE_CHECKING:
    from diffcps.envs.point_maze import PointMaze

P_GAIN, D_GAIN = 10.0, 1.0
ARRIVAL_RADIUS = 0.1
"""The ball has reached a way-point, or its goal, within this."""


def collect_maze2d(request: CollectionRequest) -> Path:
    """Maze2D data (`maze2d-umaze-v1`, `maze2d-large-dense-v1`, ...) into an HDF5 file in D4RL's layout.

    One unbroken chain of trajectories of a ball under D4RL's way-point controller; `timeouts` marks arrivals at its
    goals, rewards are those of the task's environment. Raises `UserError` for an unknown task and where the file, or an
    unfinished collection for it, is in the way.
    """
    from diffcps.envs.point_maze import PointMaze

    sizes = [size + dense for size in ("umaze", "medium", "large") for dense in ("", "-dense")]
    check_task(request.task, [f"maze2d-{size}-v1" for size in sizes])
    request = request.limited(FAST_TRANSITIONS)
    environment_id = request.task.replace("maze2d-", "diffcps/Maze2D-")
    reference = reference_scores(environment_id)
    assert reference is not None
    recipe = "D4RL's way-point controller without noise, goal after goal; docs/mazes.md"
    with closing(make_environment(environment_id)) as limited:
        environment = limited.unwrapped
        assert isinstance(environment, PointMaze)
        assert limited.spec is not None and limited.spec.max_episode_steps is not None
        limit = limited.spec.max_episode_steps
        limited.reset(seed=request.seed)
        columns = collect_trajectories(
            request,
            provenance(request.task, environment_id, recipe, request.seed, reference, action_size=2),
            lambda number, state: ball_trajectory(
                environment, state, np.random.default_rng((request.seed, number)), limit
            ),
            np.concatenate([environment.data.qpos, environment.data.qvel]),
            _statistics,
        )
        if columns is not None:
            ends = np.flatnonzero(columns["timeouts"]) + 1
            arrived = _at_goal(columns)[ends - 1]
            draw_trajectories(request, environment.maze, columns, ends, arrived, start=None, goal=environment.goal)
    return remove_parts(request)


def ball_trajectory(
    environment: PointMaze, state: np.ndarray, generator: np.random.Generator, limit: int
) -> tuple[Columns, np.ndarray]:
    """The trajectory of a ball to a new goal, from `state` (qpos, qvel) on, and the state in which it ends.

    The last row is that of the arrival, or the `limit`th. The goal lies up to 0.1 beside a free cell other than the
    ball's own; a way-point up to 0.2 before the index of each cell on the path.
    """
    environment.reset(seed=0)  # what MuJoCo remembers of earlier steps must not reach into this trajectory
    environment.set_state(state[:2], state[2:])
    maze = environment.maze
    here = maze.cell(state[:2])
    others = [cell for cell in maze.free_cells if cell != here]
    cell = others[generator.integers(len(others))]
    goal = np.array(cell, float) + generator.uniform(-0.1, 0.1, 2)
    waypoints = [np.array(step, float) - generator.uniform(0.0, 0.2, 2) for step in _path(maze, here, cell)[:-1]]
    waypoints.append(goal)

    rows: list[tuple[object, ...]] = []
    arrived = False
    while not arrived and len(rows) < limit:
        position, velocity = state[:2], state[2:]
        arrived = bool(np.linalg.norm(position - goal) < ARRIVAL_RADIUS)
        action = np.clip(P_GAIN * (waypoints[0] - position) - D_GAIN * velocity, -1.0, 1.0).astype(np.float32)
        if len(waypoints) > 1 and np.linalg.norm(position - waypoints[0]) < ARRIVAL_RADIUS:
            waypoints.pop(0)
        following, reward, *_ = environment.step(action)
        timeout = arrived or len(rows) == limit - 1
        rows.append((state, action, reward, following, False, timeout, goal, position, velocity))
        state = following
    return as_columns(NAMES, rows), state


def _path(maze: Maze, here: Cell, goal: Cell) -> list[Cell]:
    """The cells from the one after `here` to `goal`."""
    steps, path = maze.steps_to(goal), [here]
    while path[-1] != goal:
        path.append(next_cell(steps, path[-1]))
    return path[1:]


def _at_goal(columns: Columns) -> np.ndarray:
    """Of each row, whether the ball is at the goal of its trajectory."""
    return np.linalg.norm(columns["infos/qpos"] - columns["infos/goal"], axis=1) < ARRIVAL_RADIUS


def _statistics(columns: Columns) -> dict[str, float]:
    """Share of the trajectories that end at their goal, not by the limit; the file's end may cut the last one."""
    ends = np.flatnonzero(columns["timeouts"])
    return {"arrival_rate": float(_at_goal(columns)[ends[:-1] if len(ends) > 1 else ends].mean())}
