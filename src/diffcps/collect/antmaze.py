"""AntMaze data by D4RL's recipe: an ant is led by way-points to a goal of its own. `mazes.py` stores them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diffcps.collect.ant_policy import SHIPPED_POLICY, AntPolicy, load_ant_policy
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
from diffcps.envs.mazes import goal_beside, next_cell
from diffcps.readers.hashes import sha256_of_file
from diffcps.tasks.references import reference_scores

if TYPE_CHECKING:
    from diffcps.envs.ant_maze import AntMaze

TRAJECTORY_STEPS = 1000
ACTION_NOISE = 0.2
"""Standard deviation of what is added to the ant's actions, which are sampled from its policy."""


class AntMazeTask(NamedTuple):
    """Where the trajectories of an AntMaze task begin and where they lead."""

    maze: str
    random_start: bool
    """In any free cell that is no goal, else in the cell where the test starts."""
    random_goal: bool
    """To any free cell, else to one of those that D4RL's map marks."""


TASKS = {
    "antmaze-umaze": AntMazeTask("umaze", random_start=False, random_goal=False),
    "antmaze-umaze-diverse": AntMazeTask("umaze", random_start=True, random_goal=True),
    "antmaze-medium-play": AntMazeTask("medium", random_start=True, random_goal=False),
    "antmaze-medium-diverse": AntMazeTask("medium", random_start=True, random_goal=True),
    "antmaze-large-play": AntMazeTask("large", random_start=True, random_goal=False),
    "antmaze-large-diverse": AntMazeTask("large", random_start=True, random_goal=True),
}


def collect_antmaze(request: CollectionRequest, policy: Path | None = None) -> Path:
    """AntMaze data (`antmaze-umaze-v2`, `antmaze-large-diverse-v2`, ...) into an HDF5 file in D4RL's layout.

    Trajectories of `TRAJECTORY_STEPS` steps of an ant that walks from way-point to way-point by `policy`, a file of
    `train_ant_policy` (None: the one in the package). Reward and `terminals` are those of the environment for one goal,
    drawn from the seed as a test would. Raises `UserError` for an unknown task, a file that holds no such policy, and
    where the file to write, or an unfinished collection for it, is in the way.
    """
    from diffcps.envs.ant_maze import AntMaze

    check_task(request.task, [f"{name}-v{version}" for name in TASKS for version in (0, 2)])
    request = request.limited(FAST_TRANSITIONS)
    name, _, version = request.task.rpartition("-")
    task = TASKS[name]
    policy_path = policy or SHIPPED_POLICY
    ant_policy = load_ant_policy(policy_path)
    environment_id = f"diffcps/AntMaze-{task.maze}-{version}"
    reference = reference_scores(environment_id)
    assert reference is not None
    recipe = "D4RL's way-points for a walking ant, sampled actions with noise 0.2; docs/mazes.md"
    with closing(make_environment(f"diffcps/AntMaze-{task.maze}-v2")) as limited:
        environment = limited.unwrapped
        assert isinstance(environment, AntMaze)
        maze = environment.maze
        goal = goal_beside(maze, maze.goal, np.random.default_rng(request.seed))

        def trajectory(number: int, state: np.ndarray) -> tuple[Columns, np.ndarray]:
            generator = np.random.default_rng((request.seed, number))
            return ant_trajectory(environment, ant_policy, task, goal, generator), state

        attributes = provenance(request.task, environment_id, recipe, request.seed, reference, action_size=8) | {
            "policy_sha256": sha256_of_file(policy_path, str(policy_path)),
            "goal": goal,
            "trajectory_steps": TRAJECTORY_STEPS,
        }
        columns = collect_trajectories(request, attributes, trajectory, np.zeros(0), _statistics)
        if columns is not None:
            ends = np.arange(TRAJECTORY_STEPS, len(columns["rewards"]) + TRAJECTORY_STEPS, TRAJECTORY_STEPS)
            passed = np.add.reduceat(columns["rewards"], ends - TRAJECTORY_STEPS) > 0
            start = None if task.random_start else maze.centre(maze.start)
            draw_trajectories(request, maze, columns, ends, passed, start=start, goal=goal)
    return remove_parts(request)


def ant_trajectory(
    environment: AntMaze, policy: AntPolicy, task: AntMazeTask, goal: np.ndarray, generator: np.random.Generator
) -> Columns:
    """The trajectory of an ant to a target of its own; rewards and terminals are about `goal` (2,), as at test.

    At each step it is sent towards a point up to 1 m beside the centre of the next cell, in the last cell to its
    target, where it stays until `TRAJECTORY_STEPS` have passed.
    """
    maze = environment.maze
    environment.reset(seed=int(generator.integers(2**31)))
    environment.goal = goal
    goals = maze.free_cells if task.random_goal else maze.collection_goals
    cell = goals[generator.integers(len(goals))]
    if task.random_start:
        kept = [cell] if task.random_goal else goals
        starts = [free for free in maze.free_cells if free not in kept]
        qpos = environment.data.qpos.copy()
        qpos[:2] = maze.centre(starts[generator.integers(len(starts))]) + generator.uniform(0.0, 1.0, 2)
        environment.set_state(qpos, environment.data.qvel)
    target = goal_beside(maze, cell, generator)
    steps = maze.steps_to(cell)
    offsets = generator.uniform(0.0, 1.0, (TRAJECTORY_STEPS, 2))
    samples = generator.standard_normal((TRAJECTORY_STEPS, 8), np.float32)
    noises = ACTION_NOISE * generator.standard_normal((TRAJECTORY_STEPS, 8), np.float32)

    rows: list[tuple[object, ...]] = []
    state = environment.state_vector()
    for step in range(TRAJECTORY_STEPS):
        ahead = next_cell(steps, maze.cell(state[:2]))
        waypoint = target if ahead == cell else maze.centre(ahead) + offsets[step]
        path = waypoint - state[:2]
        direction = path / max(float(np.linalg.norm(path)), 1e-6)
        mean = policy(np.concatenate([state[2:], direction]).astype(np.float32), samples[step])
        action = np.clip(mean + noises[step], -1.0, 1.0)
        following, reward, terminal, *_ = environment.step(action)
        timeout = step == TRAJECTORY_STEPS - 1 and not terminal
        rows.append((state, action, reward, following, terminal, timeout, target, state[:15], state[15:]))
        state = following
    return as_columns(NAMES, rows)


def _statistics(columns: Columns) -> dict[str, float]:
    """Share of the trajectories that pass the goal of the test, and that arrive where they were sent."""
    first = np.arange(0, len(columns["rewards"]), TRAJECTORY_STEPS)
    near = np.linalg.norm(columns["next_observations"][:, :2] - columns["infos/goal"], axis=1) <= 0.5
    return {
        "success_rate": float(np.mean(np.add.reduceat(columns["rewards"], first) > 0)),
        "arrival_rate": float(np.mean(np.logical_or.reduceat(near, first))),
    }
