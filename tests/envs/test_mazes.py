"""The mazes against D4RL's: maps and frames by hand, the two families of environments, the ant against OGBench's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import product
from typing import Any

import gymnasium
import numpy as np
import pytest

from diffcps.envs import quiet
from diffcps.envs.make import environment_sizes, make_environment
from diffcps.envs.mazes import ANT_MAZES, POINT_MAZES, goal_beside, next_cell
from diffcps.tasks.references import reference_scores

SIZES = ("umaze", "medium", "large")


@contextmanager
def made(environment_id: str) -> Iterator[tuple[gymnasium.Env, Any]]:
    """An environment and what is in its wrappers."""
    with closing(make_environment(environment_id)) as environment:
        yield environment, environment.unwrapped


# --- Maps ---


@pytest.mark.parametrize(
    ("size", "shape", "free", "goal", "point_goal"),
    [
        ("umaze", (5, 5), 7, (3, 1), (1, 1)),
        ("medium", (8, 8), 26, (6, 6), (6, 6)),
        ("large", (9, 12), 46, (7, 9), (7, 9)),
    ],
)
def test_maps(size, shape, free, goal, point_goal):
    ant, point = ANT_MAZES[size], POINT_MAZES[size]
    assert ant.walls.shape == shape and len(ant.free_cells) == free
    assert (ant.walls == point.walls).all()
    walls = ant.walls
    assert walls[0].all() and walls[-1].all() and walls[:, 0].all() and walls[:, -1].all()
    assert ant.goal == goal and point.goal == point_goal and ant.start == (1, 1)
    assert {ant.goal, point.goal, ant.start} <= set(ant.free_cells)


def test_collection_goals():
    assert ANT_MAZES["umaze"].collection_goals == [(3, 1)]
    assert ANT_MAZES["medium"].collection_goals == [(2, 6), (5, 1), (6, 5)]  # the cell of the test is not among them
    assert ANT_MAZES["large"].collection_goals == [
        (1, 6), (3, 5), (3, 10), (5, 2), (7, 4), (7, 6), (7, 9),
    ]  # fmt: skip


def test_positions_of_cells():
    assert ANT_MAZES["large"].centre((1, 1)).tolist() == [0.0, 0.0]
    assert ANT_MAZES["large"].centre((7, 9)).tolist() == [32.0, 24.0]  # x = 4 (column - 1), y = 4 (row - 1)
    assert ANT_MAZES["umaze"].centre((3, 1)).tolist() == [0.0, 8.0]
    assert POINT_MAZES["large"].centre((7, 9)).tolist() == [6.8, 8.8]  # x is the row; 0.2 below D4RL's whole numbers


@pytest.mark.parametrize("mazes", [ANT_MAZES, POINT_MAZES])
def test_a_position_lies_in_its_cell(mazes):
    generator = np.random.default_rng(0)
    for maze in mazes.values():
        for cell in maze.free_cells:
            aside = maze.unit * generator.uniform(-0.49, 0.49, 2)
            assert maze.cell(maze.centre(cell) + aside) == cell
            assert np.allclose(maze.map_position(maze.centre(cell)), cell)
    assert ANT_MAZES["umaze"].cell(np.array([7.9, -1.9])) == (1, 3)
    assert POINT_MAZES["umaze"].cell(np.array([0.45, 3.2])) == (1, 3)


@pytest.mark.parametrize("size", SIZES)
def test_breadth_first_search_against_floyd_warshall(size):
    maze = ANT_MAZES[size]
    cells = maze.free_cells
    distance = np.full((len(cells), len(cells)), np.inf)
    for i, j in product(range(len(cells)), repeat=2):
        moved = abs(cells[i][0] - cells[j][0]) + abs(cells[i][1] - cells[j][1])
        distance[i, j] = moved if moved <= 1 else np.inf
    for k in range(len(cells)):
        distance = np.minimum(distance, distance[:, k : k + 1] + distance[k])
    assert np.isfinite(distance).all()
    for j, goal in enumerate(cells):
        steps = maze.steps_to(goal)
        assert [steps[cell] for cell in cells] == distance[:, j].tolist()
        assert (steps[maze.walls] == -1).all()
        assert next_cell(steps, goal) == goal
        assert all(steps[next_cell(steps, cell)] == steps[cell] - 1 for cell in cells if cell != goal)


@pytest.mark.parametrize(
    ("size", "low", "high"),
    [("umaze", (0, 8), (1.5, 9.5)), ("medium", (20, 20), (21.5, 21.5)), ("large", (32, 24), (33.5, 25.5))],
)
def test_goals_of_ant_maze(size, low, high):
    generator = np.random.default_rng(0)
    goals = np.array([goal_beside(ANT_MAZES[size], ANT_MAZES[size].goal, generator) for _ in range(2000)])
    assert (goals >= low).all() and (goals <= high).all()
    assert np.allclose(goals.min(0), low, atol=0.1) and np.allclose(goals.max(0), high, atol=0.1)
    mean, variance = np.array(low) + 0.75, 1 / 12 + 0.25 / 12  # of U[0, 1] + U[0, 0.5]
    assert np.allclose(goals.mean(0), mean, atol=4 * (variance / 2000) ** 0.5)
    assert np.allclose(goals.var(0), variance, rtol=0.1) and not np.allclose(goals.var(0), 1.5**2 / 12, rtol=0.1)


# --- Environments by id ---


@pytest.mark.parametrize(("size", "limit"), [("umaze", 700), ("medium", 1000), ("large", 1000)])
def test_ant_maze_by_id(size, limit):
    found = environment_sizes(f"diffcps/AntMaze-{size}-v2")
    assert (found.observation_size, found.action_size, found.max_steps) == (29, 8, limit)
    assert found.action_low == (-1.0,) * 8 and found.action_high == (1.0,) * 8
    assert reference_scores(f"diffcps/AntMaze-{size}-v2") == (0.0, 1.0)


@pytest.mark.parametrize(("size", "limit"), [("umaze", 300), ("medium", 600), ("large", 800)])
@pytest.mark.parametrize("dense", ["", "-dense"])
def test_maze2d_by_id(size, limit, dense):
    found = environment_sizes(f"diffcps/Maze2D-{size}{dense}-v1")
    assert (found.observation_size, found.action_size, found.max_steps) == (4, 2, limit)
    assert found.action_low == (-1.0, -1.0) and found.action_high == (1.0, 1.0)


# --- Maze2D ---


def test_ball_observes_position_and_velocity_and_never_terminates():
    with made("diffcps/Maze2D-umaze-v1") as (environment, maze):
        observation, info = environment.reset(seed=3)
        cell = maze.maze.cell(observation[:2])
        assert cell in maze.maze.free_cells and np.abs(observation[:2] - cell).max() <= 0.1
        assert info["goal"].tolist() == [1.0, 1.0] and (info["xy"] == observation[:2]).all()
        maze.set_state(np.array([1.0, 1.0]), np.zeros(2))
        for step in range(300):
            observation, reward, terminated, truncated, info = environment.step(np.zeros(2))
            assert not terminated and reward == 1.0 and truncated == (step == 299)
        assert observation.tolist() == [1.0, 1.0, 0.0, 0.0]


def test_ball_moves_as_the_equation_of_motion_says():
    """m v' = 100 a - v with m = 1000 (4/3) pi 0.1^3; Euler's rule, damping implicit: (m + h) v_next = m v + 100 h a."""
    mass, h = 4000 / 3 * np.pi * 0.1**3, 0.01
    with made("diffcps/Maze2D-medium-v1") as (environment, ball):
        environment.reset(seed=0)
        ball.set_state(np.array([1.0, 1.0]), np.array([0.3, -0.2]))
        observation, *_ = environment.step(np.array([0.5, -0.25]))
    velocity = (mass * np.array([0.3, -0.2]) + 100 * h * np.array([0.5, -0.25])) / (mass + h)
    assert np.allclose(observation[2:], velocity, atol=1e-6)
    assert np.allclose(observation[:2], 1.0 + h * velocity, atol=1e-6)


def test_velocity_is_clipped_before_a_step():
    with made("diffcps/Maze2D-medium-v1") as (environment, ball):
        environment.reset(seed=0)
        ball.set_state(np.array([4.0, 2.0]), np.array([0.0, 40.0]))
        observation, *_ = environment.step(np.zeros(2))
        assert 4.95 < observation[3] < 5.0 and observation[1] == pytest.approx(2.0 + 0.01 * observation[3])


@pytest.mark.parametrize(("distance", "reward"), [(0.0, 1.0), (0.49, 1.0), (0.5, 1.0), (0.51, 0.0)])
def test_ball_rewards(distance, reward):
    with made("diffcps/Maze2D-large-v1") as (_, environment):
        assert environment.goal.tolist() == [7.0, 9.0]
        assert environment.reward(environment.goal + np.array([distance, 0.0])) == reward
    with made("diffcps/Maze2D-large-dense-v1") as (_, environment):
        assert environment.reward(np.array([7.0 + distance, 9.0])) == pytest.approx(np.exp(-distance))


def test_walls_hold_the_ball_where_d4rl_has_them():
    """Pushed along x in cell (1, 1): the walls around rows 0 and 2 leave the ball's centre from 0.4 to 1.2 (radius 0.1,
    centre of the cell 0.8)."""
    with made("diffcps/Maze2D-umaze-v1") as (environment, ball):
        for force, wall in ((1.0, 1.2), (-1.0, 0.4)):
            environment.reset(seed=0)
            ball.set_state(np.array([0.9, 0.9]), np.zeros(2))
            for _ in range(200):
                observation, *_ = environment.step(np.array([force, 0.0]))
            assert observation[0] == pytest.approx(wall, abs=0.03)  # contacts are soft


# --- AntMaze ---


def test_ant_observes_qpos_and_qvel():
    with made("diffcps/AntMaze-umaze-v2") as (environment, ant):
        observation, info = environment.reset(seed=0)
        assert np.abs(observation[:2]).max() <= 0.1 and 0.65 <= observation[2] <= 0.85
        assert (observation == np.concatenate([ant.data.qpos, ant.data.qvel])).all()
        assert ant.dt == pytest.approx(0.1) and (ant.model.actuator_gear[:, 0] == 30.0).all()
        again, _ = environment.reset(seed=0)
        other, _ = environment.reset(seed=1)
        assert (again == observation).all() and (other != observation).any()
        assert (info["xy"] == observation[:2]).all()
        qpos, qvel = observation[:15] + 1.0, observation[15:] - 1.0
        ant.set_state(qpos, qvel)
        assert (ant.state_vector() == np.concatenate([qpos, qvel])).all()


def test_ant_terminates_at_the_goal_only():
    with made("diffcps/AntMaze-medium-v2") as (environment, ant):
        for aside, arrives in ((0.3, True), (0.8, False)):
            environment.reset(seed=0)
            qpos = ant.data.qpos.copy()
            qpos[:2] = ant.goal + np.array([0.0, aside])
            ant.set_state(qpos, np.zeros(14))
            _, reward, terminated, truncated, info = environment.step(np.zeros(8))
            assert (reward, terminated, truncated) == (float(arrives), arrives, False)
            assert (np.linalg.norm(info["xy"] - info["goal"]) <= 0.5) == arrives
        environment.reset(seed=0)
        qpos = ant.data.qpos.copy()
        qpos[2:7] = [0.3, 0.0, 1.0, 0.0, 0.0]  # on its back
        ant.set_state(qpos, np.zeros(14))
        assert not any(environment.step(np.zeros(8))[2] for _ in range(10))


def test_goal_is_drawn_at_each_reset_in_v2_and_once_in_v0():
    with made("diffcps/AntMaze-large-v2") as (environment, _):
        goals = [environment.reset(seed=seed)[1]["goal"] for seed in (0, 1, 0)]
        assert (goals[0] != goals[1]).any() and (goals[0] == goals[2]).all()
        after = [environment.reset()[1]["goal"] for _ in range(2)]
        assert (after[0] != after[1]).any()
    quiet._tell_once.cache_clear()  # a warning is told once a process
    with pytest.warns(UserWarning, match="out of date"):
        old = make_environment("diffcps/AntMaze-large-v0")
    with closing(old):
        first = old.reset(seed=0)[1]["goal"]
        assert (old.reset(seed=1)[1]["goal"] == first).all() and (old.reset()[1]["goal"] == first).all()
        assert (first == goals[0]).all()


def test_ant_walls_stand_where_the_map_says():
    with made("diffcps/AntMaze-large-v2") as (environment, ant):
        boxes = [i for i in range(ant.model.ngeom) if ant.model.geom_type[i] == 6]  # mjGEOM_BOX
        cells = [ant.maze.cell(ant.model.geom_pos[i, :2]) for i in boxes]
        assert sorted(cells) == [tuple(cell) for cell in np.argwhere(ant.maze.walls).tolist()]
        assert np.allclose(ant.model.geom_size[boxes], [2.0, 2.0, 1.0])
        assert np.allclose(ant.model.geom_pos[boxes, 2], 1.0)
        environment.reset(seed=5)
        assert np.allclose(ant.data.site("goal").xpos[:2], ant.goal)  # the mark that is drawn


def test_ant_is_ogbench_s_which_is_d4rl_s():
    """Every number of the compiled model that acts on the motion."""
    ogbench = pytest.importorskip("ogbench.locomaze.ant", reason="needs the extra ogbench")
    mujoco = pytest.importorskip("mujoco")
    from diffcps.envs.ant_maze import ant_xml

    ours = mujoco.MjModel.from_xml_string(ant_xml(None))
    theirs = mujoco.MjModel.from_xml_path(ogbench.AntEnv.xml_file)
    drawn = ("mat", "tex", "light", "cam", "name", "names", "vis", "stat", "signature")
    numbers = ("body", "jnt", "dof", "geom", "actuator", "opt", "qpos0", "qpos")
    compared = 0
    for name in dir(ours):
        family = name.split("_")[0]
        if family in drawn or family not in numbers or name in ("geom_matid", "geom_rgba"):
            continue
        value = getattr(ours, name)
        if isinstance(value, np.ndarray):
            kept = (
                slice(1, None) if name == "geom_size" else slice(None)
            )  # the floor, which has no end, is drawn larger
            assert np.array_equal(value[kept], getattr(theirs, name)[kept]), name
            compared += 1
    assert compared > 80
    for name in ("timestep", "integrator", "solver", "iterations", "gravity", "cone"):
        assert np.array_equal(getattr(ours.opt, name), getattr(theirs.opt, name)), name


# --- The walking lesson ---


def test_walking_lesson():
    with made("diffcps/AntDirection-v0") as (environment, lesson):
        observation, _ = environment.reset(seed=0)
        assert observation.shape == (29,) and np.linalg.norm(observation[27:]) == pytest.approx(1.0)
        assert (observation[:27] == lesson.state_vector()[2:]).all()
        directions = []
        for _ in range(201):
            before = lesson.data.qpos[:2].copy()
            direction = observation[27:]
            observation, reward, terminated, *_ = environment.step(np.zeros(8))
            assert reward == pytest.approx((lesson.data.qpos[:2] - before) @ direction) and not terminated
            directions.append(tuple(direction))
        assert len(set(directions)) == 3 and len(set(directions[:100])) == 1
        qpos = lesson.data.qpos.copy()
        qpos[2] = 3.0
        lesson.set_state(qpos, np.zeros(14))
        assert environment.step(np.zeros(8))[2]
