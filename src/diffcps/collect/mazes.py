"""Maze2D and AntMaze data by D4RL's recipes: a walker is led by way-points from one goal to the next.

A collection is a chain of pieces, each of which follows from the seed, its number and (for Maze2D) the state in which
the piece before it ended. Whole pieces are stored as they come, so that a collection goes on where it was left, with
the same bits. docs/mazes.md lists what differs from D4RL's scripts.

Reference: https://github.com/Farama-Foundation/D4RL, scripts/generation/generate_{maze2d,ant_maze}_datasets.py.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diffcps.collect.files import (
    Rows,
    arrays,
    claim,
    first_rows,
    holds,
    join,
    load_rows,
    provenance,
    save_rows,
    write_d4rl,
)
from diffcps.envs.mazes import Cell, Maze, goal_beside, next_cell
from diffcps.run.folder import RunFolder
from diffcps.types import UserError

if TYPE_CHECKING:
    from diffcps.envs.ant_maze import AntMaze
    from diffcps.envs.point_maze import PointMaze

Act = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`act(observation (29,), noise (8,)) -> action (8,)` of an ant that walks in a direction; float32."""

PART_ROWS = 20_000
"""Rows after which a part is stored."""
FAST_ROWS = 3_000
P_GAIN, D_GAIN = 10.0, 1.0
ARRIVAL_RADIUS = 0.1
"""The ball has reached a way-point, or its goal, within this."""
ANT_STEPS = 1000
"""Steps of a trajectory of the ant."""
ANT_NOISE = 0.2
"""Standard deviation of what is added to the ant's actions, which are sampled from its policy."""


class Plan(NamedTuple):
    """Where the trajectories of an AntMaze task begin and where they lead."""

    maze: str
    random_start: bool
    """In any free cell that is no goal, else in the cell where the test starts."""
    random_goal: bool
    """To any free cell, else to one of those that D4RL's map marks."""


ANT_PLANS = {
    "antmaze-umaze": Plan("umaze", random_start=False, random_goal=False),
    "antmaze-umaze-diverse": Plan("umaze", random_start=True, random_goal=True),
    "antmaze-medium-play": Plan("medium", random_start=True, random_goal=False),
    "antmaze-medium-diverse": Plan("medium", random_start=True, random_goal=True),
    "antmaze-large-play": Plan("large", random_start=True, random_goal=False),
    "antmaze-large-diverse": Plan("large", random_start=True, random_goal=True),
}
ANT_POLICY = Path(__file__).parents[2] / "envs" / "ant_direction.safetensors"
"""The walking ant that comes with the package."""


def collect_maze2d(
    task: str, out: Path, *, transitions: int, seed: int, fast: bool, resume: bool, say: Callable[[str], None]
) -> Path:
    """Maze2D data (`maze2d-umaze-v1`, `maze2d-large-dense-v1`, ...) into `out`, an HDF5 file in D4RL's layout.

    One unbroken trajectory of a ball under D4RL's way-point controller; `timeouts` marks arrivals at its goals, rewards
    are those of the task's environment. With `fast` at most `FAST_ROWS` transitions. Raises `UserError` for an unknown
    task and where `out`, or an unfinished collection for it, is in the way.
    """
    from diffcps.envs.make import make_environment
    from diffcps.tasks.references import reference_scores

    sizes = [size + dense for size in ("umaze", "medium", "large") for dense in ("", "-dense")]
    _one_of(task, [f"maze2d-{size}-v1" for size in sizes])
    environment_id = task.replace("maze2d-", "diffcps/Maze2D-")
    reference = reference_scores(environment_id)
    assert reference is not None
    recipe = "D4RL's way-point controller without noise, goal after goal; docs/mazes.md"
    with closing(make_environment(environment_id)) as limited:
        environment: PointMaze = limited.unwrapped  # pyright: ignore[reportAssignmentType]
        assert limited.spec is not None and limited.spec.max_episode_steps is not None
        limit = limited.spec.max_episode_steps
        limited.reset(seed=seed)

        def pieces(piece: int, state: np.ndarray) -> Iterator[tuple[Rows, np.ndarray]]:
            while True:
                rows, state = ball_leg(environment, state, np.random.default_rng((seed, piece)), limit)
                yield rows, state
                piece += 1

        rows = _gather(
            out,
            min(transitions, FAST_ROWS) if fast else transitions,
            provenance(task, environment_id, recipe, seed) | _bounds(reference, 2),
            pieces,
            np.concatenate([environment.data.qpos, environment.data.qvel]),
            resume=resume,
            say=say,
            statistics=_arrivals,
        )
        if rows is not None:
            ends = np.flatnonzero(rows["timeouts"]) + 1
            _draw(out, task, environment.maze, rows, ends, _arrived(rows)[ends - 1], environment.goal, None)
    return _finish(out)


def collect_antmaze(
    task: str,
    out: Path,
    *,
    transitions: int,
    seed: int,
    fast: bool,
    resume: bool,
    say: Callable[[str], None],
    policy: Path | None = None,
) -> Path:
    """AntMaze data (`antmaze-umaze-v2`, `antmaze-large-diverse-v2`, ...) into `out`, an HDF5 file in D4RL's layout.

    Trajectories of `ANT_STEPS` steps of an ant that walks from way-point to way-point by `policy`, a file of
    tools/train_ant_policy.py (None: the one in the package). Reward and `terminals` are those of the environment for
    one goal, drawn from `seed` as a test would. Otherwise as `collect_maze2d`.
    """
    from diffcps.data.hashes import sha256_of_file
    from diffcps.envs.make import make_environment
    from diffcps.tasks.references import reference_scores

    _one_of(task, [f"{name}-v{version}" for name in ANT_PLANS for version in (0, 2)])
    plan, version = ANT_PLANS[task[: task.rindex("-v")]], task[task.rindex("-v") :]
    path = policy or ANT_POLICY
    act = load_ant(path)
    environment_id = f"diffcps/AntMaze-{plan.maze}{version}"
    reference = reference_scores(environment_id)
    assert reference is not None
    recipe = "D4RL's way-points for a walking ant, sampled actions with noise 0.2; docs/mazes.md"
    with closing(make_environment(f"diffcps/AntMaze-{plan.maze}-v2")) as limited:
        environment: AntMaze = limited.unwrapped  # pyright: ignore[reportAssignmentType]
        goal = goal_beside(environment.maze, environment.maze.goal, np.random.default_rng(seed))

        def pieces(piece: int, state: np.ndarray) -> Iterator[tuple[Rows, np.ndarray]]:
            while True:
                yield ant_trajectory(environment, act, plan, goal, np.random.default_rng((seed, piece))), state
                piece += 1

        attributes = provenance(task, environment_id, recipe, seed) | _bounds(reference, 8)
        attributes |= {"policy_sha256": sha256_of_file(path, str(path)), "goal": goal, "trajectory_steps": ANT_STEPS}
        rows = _gather(
            out,
            min(transitions, FAST_ROWS) if fast else transitions,
            attributes,
            pieces,
            np.zeros(0),
            resume=resume,
            say=say,
            statistics=_successes,
        )
        if rows is not None:
            ends = np.arange(ANT_STEPS, len(rows["rewards"]) + ANT_STEPS, ANT_STEPS)
            reached = np.add.reduceat(rows["rewards"], ends - ANT_STEPS) > 0
            start = None if plan.random_start else environment.maze.centre(environment.maze.start)
            _draw(out, task, environment.maze, rows, ends, reached, goal, start)
    return _finish(out)


def ball_leg(
    environment: PointMaze, state: np.ndarray, generator: np.random.Generator, limit: int
) -> tuple[Rows, np.ndarray]:
    """The rows of a ball on its way to a new goal, from `state` (qpos, qvel) on, and the state in which it ends.

    The last row is that of the arrival, or the `limit`th. The goal lies up to 0.1 beside a free cell other than the
    ball's own; a way-point up to 0.2 before the index of each cell on the way.
    """
    environment.reset(seed=0)  # what MuJoCo remembers of earlier steps must not reach into this piece
    environment.set_state(state[:2], state[2:])
    maze = environment.maze
    here = maze.cell(state[:2])
    others = [cell for cell in maze.free_cells if cell != here]
    cell = others[generator.integers(len(others))]
    goal = np.array(cell, float) + generator.uniform(-0.1, 0.1, 2)
    waypoints = [np.array(step, float) - generator.uniform(0.0, 0.2, 2) for step in _way(maze, here, cell)[:-1]]
    waypoints.append(goal)

    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts", "infos/goal")
    columns: dict[str, list] = {name: [] for name in (*names, "infos/qpos", "infos/qvel")}
    arrived = False
    while not arrived and len(columns["rewards"]) < limit:
        position, velocity = state[:2], state[2:]
        arrived = bool(np.linalg.norm(position - goal) < ARRIVAL_RADIUS)
        action = np.clip(P_GAIN * (waypoints[0] - position) - D_GAIN * velocity, -1.0, 1.0).astype(np.float32)
        if len(waypoints) > 1 and np.linalg.norm(position - waypoints[0]) < ARRIVAL_RADIUS:
            waypoints.pop(0)
        following, reward, *_ = environment.step(action)
        done = arrived or len(columns["rewards"]) == limit - 1
        for name, value in zip(
            columns, (state, action, reward, following, False, done, goal, position, velocity), strict=True
        ):
            columns[name].append(value)
        state = following
    return arrays(columns), state


def ant_trajectory(
    environment: AntMaze, act: Act, plan: Plan, goal: np.ndarray, generator: np.random.Generator
) -> Rows:
    """The rows of an ant on its way to a place of its own; rewards and terminals are about `goal`, as at test.

    At each step it is sent towards a point up to 1 m beside the centre of the next cell, in the last cell to its place,
    where it stays until `ANT_STEPS` have passed.
    """
    maze = environment.maze
    environment.reset(seed=int(generator.integers(2**31)))
    environment.goal = goal
    goals = maze.free_cells if plan.random_goal else maze.collection_goals
    cell = goals[generator.integers(len(goals))]
    if plan.random_start:
        kept = [cell] if plan.random_goal else goals
        starts = [free for free in maze.free_cells if free not in kept]
        qpos = environment.data.qpos.copy()
        qpos[:2] = maze.centre(starts[generator.integers(len(starts))]) + generator.uniform(0.0, 1.0, 2)
        environment.set_state(qpos, environment.data.qvel)
    place = goal_beside(maze, cell, generator)
    steps = maze.steps_to(cell)
    asides = generator.uniform(0.0, 1.0, (ANT_STEPS, 2))
    samples = generator.standard_normal((ANT_STEPS, 8), np.float32)
    noises = ANT_NOISE * generator.standard_normal((ANT_STEPS, 8), np.float32)

    names = ("observations", "actions", "rewards", "next_observations", "terminals", "timeouts", "infos/goal")
    columns: dict[str, list] = {name: [] for name in (*names, "infos/qpos", "infos/qvel")}
    state = environment.state_vector()
    for step in range(ANT_STEPS):
        ahead = next_cell(steps, maze.cell(state[:2]))
        waypoint = place if ahead == cell else maze.centre(ahead) + asides[step]
        way = waypoint - state[:2]
        direction = way / max(float(np.linalg.norm(way)), 1e-6)
        mean = act(np.concatenate([state[2:], direction]).astype(np.float32), samples[step])
        action = np.clip(mean + noises[step], -1.0, 1.0)
        following, reward, terminal, *_ = environment.step(action)
        timeout = step == ANT_STEPS - 1 and not terminal
        row = (state, action, reward, following, terminal, timeout, place, state[:15], state[15:])
        for name, value in zip(columns, row, strict=True):
            columns[name].append(value)
        state = following
    return arrays(columns)


def load_ant(path: Path) -> Act:
    """The policy in a file of tools/train_ant_policy.py, in NumPy. Raises `UserError` where it is another file."""
    import safetensors.numpy

    from diffcps.networks.squashed import LOG_STD_RANGE
    from diffcps.training import checkpoint

    checkpoint.information(path)  # readable, and ours
    arrays = safetensors.numpy.load_file(path)
    layers = [
        (arrays[f"network.layers.{i}.weight"], arrays[f"network.layers.{i}.bias"])
        for i in range(len(arrays) // 2)
        if f"network.layers.{i}.bias" in arrays and f"network.layers.{i}.weight" in arrays
    ]
    if not layers or 2 * len(layers) != len(arrays) or (len(layers[0][0]), len(layers[-1][1])) != (29, 16):
        raise UserError(f"{path}: not a walking ant (29 numbers in, 16 out); make one with tools/train_ant_policy.py")

    def act(observation: np.ndarray, noise: np.ndarray) -> np.ndarray:
        x = observation
        for weight, bias in layers[:-1]:
            x = np.maximum(x @ weight + bias, 0.0)
        mean, log_std = np.split(x @ layers[-1][0] + layers[-1][1], 2)
        return np.tanh(mean + np.exp(np.clip(log_std, *LOG_STD_RANGE)) * noise)

    return act


def _gather(
    out: Path,
    transitions: int,
    attributes: dict[str, Any],
    pieces: Callable[[int, np.ndarray], Iterator[tuple[Rows, np.ndarray]]],
    state: np.ndarray,
    *,
    resume: bool,
    say: Callable[[str], None],
    statistics: Callable[[Rows], dict[str, Any]],
) -> Rows | None:
    """Collects until there are `transitions` rows and writes them; None where the file was complete before.

    `pieces(number, state)` makes the pieces from that number on. Whole ones are kept in parts beside `out` until the
    file is written.
    """
    folder = RunFolder(out.with_name(out.name + ".parts"))
    if transitions < 1:
        raise UserError(f"a collection needs at least 1 transition, not {transitions}")
    if out.exists() and not folder.path.exists():
        if resume and holds(out, attributes | {"transitions": transitions}):
            say(f"{out} is complete")
            return None
        raise UserError(f"{out}: exists; remove it or name another file with --out")
    if folder.config.exists() and not resume:
        raise UserError(f"{out}: an unfinished collection lies in {folder.path}; add --resume, or remove it")

    settings = {name: np.asarray(value).tolist() for name, value in attributes.items()}
    with folder.locked():
        claim(folder, settings)
        parts: list[Rows] = []
        piece, rows = 0, 0
        for path in sorted(folder.path.glob("*.npz")):
            part = load_rows(path)
            piece, state = int(part.pop("next_piece")), part.pop("next_state")
            parts.append(part)
            rows += len(part["rewards"])
        began, before = time.monotonic(), rows
        following = pieces(piece, state)
        while rows < transitions:
            new: list[Rows] = []
            while (count := sum(len(part["rewards"]) for part in new)) < min(PART_ROWS, transitions - rows):
                part, state = next(following)
                new.append(part)
                piece += 1
            parts.append(join(new))
            save_rows(
                folder.path / f"{len(parts) - 1:06d}.npz",
                parts[-1] | {"next_piece": np.asarray(piece), "next_state": state},
            )
            rows += count
            say(f"{min(rows, transitions):,} of {transitions:,} transitions, {_rate(rows - before, began)}")
        joined = first_rows(join(parts), transitions)
        write_d4rl(out, joined, attributes | statistics(joined))
    return joined


def _finish(out: Path) -> Path:
    """The parts are no longer needed."""
    shutil.rmtree(out.with_name(out.name + ".parts"), ignore_errors=True)
    return out


def _rate(rows: int, began: float) -> str:
    return f"{rows / max(time.monotonic() - began, 1e-9):,.0f} a second"


def _one_of(task: str, known: list[str]) -> None:
    if task not in known:
        raise UserError(f"{task} cannot be collected here; known are {', '.join(known)}")


def _bounds(reference: tuple[float, float], action_size: int) -> dict[str, Any]:
    low, high = reference
    side = np.ones(action_size, np.float32)
    return {"ref_min_score": low, "ref_max_score": high, "action_low": -side, "action_high": side}


def _arrived(rows: Rows) -> np.ndarray:
    """Of each row, whether the ball is at its own goal."""
    return np.linalg.norm(rows["infos/qpos"] - rows["infos/goal"], axis=1) < ARRIVAL_RADIUS


def _arrivals(rows: Rows) -> dict[str, Any]:
    """Share of the ways that ended at their goal, and not by the limit; the file's end may cut the last one."""
    ends = np.flatnonzero(rows["timeouts"])
    return {"arrival_rate": float(_arrived(rows)[ends[:-1] if len(ends) > 1 else ends].mean())}


def _successes(rows: Rows) -> dict[str, Any]:
    """Share of the trajectories that pass the goal of the test, and that arrive where they were sent."""
    first = np.arange(0, len(rows["rewards"]), ANT_STEPS)
    near = np.linalg.norm(rows["next_observations"][:, :2] - rows["infos/goal"], axis=1) <= 0.5
    return {
        "success_rate": float(np.mean(np.add.reduceat(rows["rewards"], first) > 0)),
        "arrival_rate": float(np.mean(np.logical_or.reduceat(near, first))),
    }


def _way(maze: Maze, here: Cell, goal: Cell) -> list[Cell]:
    """The cells from the one after `here` to `goal`."""
    steps, way = maze.steps_to(goal), [here]
    while way[-1] != goal:
        way.append(next_cell(steps, way[-1]))
    return way[1:]


def _draw(
    out: Path,
    task: str,
    maze: Maze,
    rows: Rows,
    ends: np.ndarray,
    reached: np.ndarray,
    goal: np.ndarray,
    start: np.ndarray | None,
) -> None:
    from diffcps.collect.maze_picture import save_maze_figure

    xy = maze.map_position(rows["infos/qpos"][:, :2])
    marks = [None if place is None else maze.map_position(place) for place in (start, goal)]
    title = f"{task}: {len(xy):,} transitions, collected by diffcps"
    save_maze_figure(maze.walls, xy, ends, reached, title, out.with_suffix(".png"), start=marks[0], goal=marks[1])
