"""Collected maze data: the controllers arrive, the file says what it is, a collection goes on with the same bits."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import gymnasium
import h5py
import jax
import numpy as np
import pytest
from gymnasium.spaces import Box

from diffcps.cli.main import main
from diffcps.collect import ant_policy, antmaze, collect, maze2d, mazes, sac
from diffcps.collect.ant_policy import load_ant_policy
from diffcps.collect.antmaze import TASKS, ant_trajectory
from diffcps.collect.maze2d import ball_trajectory
from diffcps.data import load_dataset
from diffcps.envs.make import make_environment
from diffcps.envs.mazes import ANT_MAZES
from diffcps.envs.point_maze import PointMaze
from diffcps.networks.squashed import SquashedGaussian
from diffcps.training import checkpoint
from diffcps.types import EnvironmentSpec, Spec, UserError

pytestmark = pytest.mark.usefixtures("quick_compilation")


def quick(task: str, out: Path, **options) -> Path:
    defaults = {"transitions": 1500, "seed": 0, "fast": False, "resume": False, "say": lambda text: None}
    return collect(task, out, **(defaults | options))


def contents(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """Arrays and attributes of a file."""
    arrays: dict[str, np.ndarray] = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
        return arrays, dict(file.attrs)


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    """An ant that has learnt nothing."""
    path = tmp_path_factory.mktemp("policy") / "ant.safetensors"
    sac.save_actor(path, SquashedGaussian(Spec(29, 8), 16, 2, jax.random.key(0)), {})
    return path


# --- Maze2D ---


@pytest.mark.parametrize("size", ["umaze", "medium", "large"])
def test_ball_arrives(size):
    """Nine goals in all parts of the maze: each is reached long before the limit, and no trajectory is in a wall."""
    with closing(make_environment(f"diffcps/Maze2D-{size}-v1")) as environment:
        ball = environment.unwrapped
        assert isinstance(ball, PointMaze)
        state = np.concatenate(environment.reset(seed=0)[:1])
        for number in range(9):
            rows, state = ball_trajectory(ball, state, np.random.default_rng((0, number)), limit=600)
            ends = np.linalg.norm(rows["observations"][:, :2] - rows["infos/goal"], axis=1)
            assert ends[-1] < 0.1 and (ends[:-1] >= 0.1).all() and len(ends) < 600
            assert rows["timeouts"].tolist() == [False] * (len(ends) - 1) + [True]
            assert {ball.maze.cell(xy) for xy in rows["observations"][:, :2]} <= set(ball.maze.free_cells)
            assert (state == np.concatenate([ball.data.qpos, ball.data.qvel])).all()


def test_ball_does_not_arrive_without_the_controller(monkeypatch):
    monkeypatch.setattr(maze2d, "P_GAIN", 0.0)
    with closing(make_environment("diffcps/Maze2D-umaze-v1")) as environment:
        ball = environment.unwrapped
        assert isinstance(ball, PointMaze)
        state = np.concatenate(environment.reset(seed=0)[:1])
        rows, _ = ball_trajectory(ball, state, np.random.default_rng(0), limit=50)
    assert len(rows["rewards"]) == 50 and rows["timeouts"][-1]
    assert (np.linalg.norm(rows["observations"][:, :2] - rows["infos/goal"], axis=1) > 0.1).all()


@pytest.fixture(scope="module")
def umaze(tmp_path_factory) -> Path:
    return quick("maze2d-umaze-v1", tmp_path_factory.mktemp("maze2d") / "umaze.hdf5")


def test_maze2d_file(umaze):
    rows, attributes = contents(umaze)
    qpos, qvel = rows["infos/qpos"], rows["infos/qvel"]
    assert len(rows["rewards"]) == 1500 and not rows["terminals"].any()
    assert (rows["observations"][1:] == rows["next_observations"][:-1]).all()  # unbroken, and nothing recorded twice
    assert (np.abs(np.diff(rows["observations"], axis=0)).max(1) > 0).all()
    assert np.array_equal(np.concatenate([qpos, qvel], axis=1).astype(np.float32), rows["observations"])
    near = np.linalg.norm(rows["next_observations"][:, :2] - [1.0, 1.0], axis=1) <= 0.5
    assert (rows["rewards"] == near).mean() > 0.999 and 0 < near.sum() < 1500  # the rest: rounding to float32
    assert (attributes["env_id"], attributes["task"]) == ("diffcps/Maze2D-umaze-v1", "maze2d-umaze-v1")
    assert (attributes["ref_min_score"], attributes["ref_max_score"], attributes["seed"]) == (23.85, 161.86, 0)
    assert "mujoco" in attributes["versions"] and attributes["arrival_rate"] == 1.0


def test_stored_states_put_the_simulator_back(umaze):
    """From infos/qpos and infos/qvel the stored action leads to the stored next observation."""
    rows, _ = contents(umaze)
    with closing(make_environment("diffcps/Maze2D-umaze-v1")) as environment:
        ball = environment.unwrapped
        assert isinstance(ball, PointMaze)
        environment.reset(seed=0)
        for row in range(0, 1500, 100):
            ball.set_state(rows["infos/qpos"][row], rows["infos/qvel"][row])
            observation, reward, *_ = environment.step(rows["actions"][row])
            assert np.allclose(observation, rows["next_observations"][row], atol=1e-6)
            assert reward == rows["rewards"][row]


def test_maze2d_file_is_read_without_warnings(umaze):
    dataset = load_dataset(str(umaze))
    assert dataset.size == 1500 and dataset.info.environment == EnvironmentSpec("diffcps/Maze2D-umaze-v1")
    assert umaze.with_suffix(".png").stat().st_size > 10_000
    assert [path.name for path in sorted(umaze.parent.iterdir())] == ["umaze.hdf5", "umaze.png"]


def test_dense_task_has_dense_rewards(tmp_path):
    path = quick("maze2d-umaze-dense-v1", tmp_path / "dense.hdf5", transitions=50)
    rows, _ = contents(path)
    distance = np.linalg.norm(rows["next_observations"][:, :2] - [1.0, 1.0], axis=1)
    assert np.allclose(rows["rewards"], np.exp(-distance), atol=1e-6)


# --- AntMaze ---


class Glider:
    """Stands in for the ant: a point that glides half a metre in the direction of its first two actions, through
    anything."""

    class Data:
        qpos, qvel = np.zeros(15), np.zeros(14)

    def __init__(self, size: str):
        self.maze = ANT_MAZES[size]
        self.goal = np.zeros(2)
        self.data = self.Data()

    def reset(self, seed):
        self.data.qpos = np.random.default_rng(seed).uniform(-0.1, 0.1, 15)

    def set_state(self, qpos, qvel):
        self.data.qpos = qpos.copy()

    def state_vector(self):
        return np.concatenate([self.data.qpos, self.data.qvel])

    def step(self, action):
        self.data.qpos = self.data.qpos.copy()
        self.data.qpos[:2] += 0.5 * action[:2]
        arrived = bool(np.linalg.norm(self.data.qpos[:2] - self.goal) <= 0.5)
        return self.state_vector(), float(arrived), arrived, False, {}


def obedient(observation: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Moves where it is sent."""
    return np.concatenate([observation[27:], np.zeros(6)])


@pytest.mark.parametrize("name", TASKS)
def test_ant_is_led_to_its_target_and_stays_there(name):
    task = TASKS[name]
    starts, targets = set(), set()
    for seed in range(4):
        glider = Glider(task.maze)
        goal = glider.maze.centre(glider.maze.goal) + 0.5
        rows = ant_trajectory(glider, obedient, task, goal, np.random.default_rng(seed))  # pyright: ignore[reportArgumentType]
        xy = rows["next_observations"][:, :2]
        assert len(xy) == 1000
        assert (np.linalg.norm(xy[300:] - rows["infos/goal"][300:], axis=1) < 1.5).all()
        assert {glider.maze.cell(position) for position in xy} <= set(glider.maze.free_cells)
        near = np.linalg.norm(xy.astype(float) - goal, axis=1) <= 0.5
        assert (rows["rewards"] == near).mean() > 0.99 and (rows["terminals"] == (rows["rewards"] == 1)).all()
        assert not rows["timeouts"][:-1].any() and (rows["timeouts"][-1] or rows["terminals"][-1])
        starts.add(glider.maze.cell(rows["observations"][0, :2]))
        targets.add(glider.maze.cell(rows["infos/goal"][0]))
    assert (len(starts) > 1) == task.random_start and (task.random_start or starts == {(1, 1)})
    assert task.random_goal or targets <= set(glider.maze.collection_goals)


def test_numpy_ant_is_the_trained_one(policy):
    actor, _ = sac.load_actor(policy)
    act, generator = load_ant_policy(policy), np.random.default_rng(0)
    for _ in range(3):
        observation, noise = 3 * generator.standard_normal(29, np.float32), generator.standard_normal(8, np.float32)
        assert np.allclose(act(observation, noise), sac.sample(actor, observation, noise), atol=1e-5)


def test_an_ant_policy_is_trained_and_its_run_goes_on(tmp_path, monkeypatch):
    small = sac.Config(batch_size=32, width=16, random_steps=200, iteration_steps=200)
    monkeypatch.setattr(ant_policy, "CONFIG", small)
    monkeypatch.setattr(ant_policy, "evaluate_ant_policy", lambda actor: (0.1, 0.5))
    told: list[str] = []

    def train(name: str, steps: int) -> Path:
        return ant_policy.train_ant_policy(tmp_path / name, tmp_path / "run", steps=steps, seed=0, say=told.append)

    random, trained, again = train("random", 200), train("trained", 400), train("again", 400)
    evaluation = "evaluation: 0.100 m a step"
    assert [line.split(",")[0] for line in told] == ["200 steps", evaluation, "400 steps", evaluation, evaluation]
    assert random.read_bytes() != trained.read_bytes() == again.read_bytes()
    action = load_ant_policy(trained)(np.zeros(29, np.float32), np.zeros(8, np.float32))
    assert action.shape == (8,) and (np.abs(action) <= 1.0).all()
    assert checkpoint.information(trained).keys() == checkpoint.information(ant_policy.SHIPPED_POLICY).keys()


def test_an_ant_policy_is_scored_by_steps_and_episodes(policy, monkeypatch):
    """Half a metre, a quarter, then a fall: three eighths of a metre a step, one fall an episode."""

    class Stumble(gymnasium.Env):
        observation_space, action_space = Box(-1.0, 1.0, (29,), np.float32), Box(-1.0, 1.0, (8,), np.float32)

        def reset(self, *, seed=None, options=None):
            self.rewards = [0.25, 0.5]
            return np.zeros(29, np.float32), {}

        def step(self, action):
            assert action.shape == (8,)
            return np.zeros(29, np.float32), self.rewards.pop(), not self.rewards, False, {}

    monkeypatch.setattr(ant_policy, "make_environment", lambda name: Stumble())
    assert ant_policy.evaluate_ant_policy(sac.load_actor(policy)[0], episodes=3) == (0.375, 1.0)


def test_antmaze_file(policy, tmp_path):
    path = quick("antmaze-umaze-diverse-v2", tmp_path / "ant.hdf5", transitions=1100, policy=policy)
    rows, attributes = contents(path)
    assert rows["observations"].shape == (1100, 29) and rows["actions"].shape == (1100, 8)
    assert np.flatnonzero(rows["timeouts"]).tolist() == [999, 1099] and np.abs(rows["actions"]).max() <= 1.0
    assert attributes["env_id"] == "diffcps/AntMaze-umaze-v2" and attributes["ref_max_score"] == 1.0
    assert attributes["success_rate"] == 0.0 and len(attributes["policy_sha256"]) == 64
    low, high = np.array([0.0, 8.0]), np.array([1.5, 9.5])
    assert (attributes["goal"] >= low).all() and (attributes["goal"] <= high).all()
    assert load_dataset(str(path)).size == 1100
    assert path.with_suffix(".png").exists()


# --- Resume ---


@pytest.mark.parametrize("task", ["maze2d-medium-v1", "antmaze-medium-play-v2"])
def test_an_interrupted_collection_goes_on_with_the_same_bits(task, policy, tmp_path, monkeypatch):
    monkeypatch.setattr(mazes, "PART_ROWS", 400)
    monkeypatch.setattr(antmaze, "TRAJECTORY_STEPS", 200)
    options = {"policy": policy} if task.startswith("ant") else {}
    whole = quick(task, tmp_path / "whole.hdf5", **options)

    class Stop(Exception):
        pass

    def stop_at(parts):
        told = []

        def say(text):
            told.append(text)
            if len(told) == parts:
                raise Stop

        return say

    out = tmp_path / "broken.hdf5"
    with pytest.raises(Stop):
        quick(task, out, say=stop_at(2), **options)
    assert not out.exists()
    with pytest.raises(UserError, match="unfinished"):
        quick(task, out, **options)
    with pytest.raises(UserError, match="another seed"):
        quick(task, out, resume=True, seed=1, **options)
    with pytest.raises(Stop):
        quick(task, out, resume=True, say=stop_at(1), **options)
    quick(task, out, resume=True, **options)
    assert out.read_bytes() == whole.read_bytes()
    other = quick(task, tmp_path / "other.hdf5", seed=1, **options)
    assert other.read_bytes() != whole.read_bytes()


def test_a_finished_file_is_left_alone(umaze):
    before = umaze.read_bytes()
    with pytest.raises(UserError, match="exists"):
        quick("maze2d-umaze-v1", umaze)
    with pytest.raises(UserError, match="exists"):
        quick("maze2d-umaze-v1", umaze, resume=True, seed=5)
    told = []
    assert quick("maze2d-umaze-v1", umaze, resume=True, say=told.append) == umaze
    assert told == [f"{umaze} is complete"] and umaze.read_bytes() == before


# --- Errors ---


def test_bad_wishes(tmp_path, policy):
    with pytest.raises(UserError, match="maze2d-umaze-v1"):
        quick("maze2d-open-v0", tmp_path / "a.hdf5")
    with pytest.raises(UserError, match="antmaze-large-diverse-v2"):
        quick("antmaze-ultra-v2", tmp_path / "a.hdf5", policy=policy)
    with pytest.raises(UserError, match="at least 1"):
        quick("maze2d-umaze-v1", tmp_path / "a.hdf5", transitions=0)
    with pytest.raises(UserError, match="no such checkpoint"):
        quick("antmaze-umaze-v2", tmp_path / "a.hdf5", policy=tmp_path / "none.safetensors")
    wrong = tmp_path / "wrong.safetensors"
    checkpoint.save(wrong, {"weight": np.zeros(3)}, {})
    with pytest.raises(UserError, match="29 numbers in"):
        quick("antmaze-umaze-v2", tmp_path / "a.hdf5", policy=wrong)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["wrong.safetensors"]


def test_the_ant_of_the_package_walks_to_its_goals(tmp_path):
    out = quick("antmaze-umaze-v2", tmp_path / "umaze.hdf5", transitions=2000)
    rows, attributes = contents(out)
    assert attributes["arrival_rate"] == 1.0
    start, place = rows["observations"][::1000, :2], rows["infos/goal"][::1000]
    assert (np.linalg.norm(place - start, axis=1) > 6.0).all()  # round the wall it is twice as far and more


def test_command(tmp_path, policy, capsys):
    out = tmp_path / "umaze.hdf5"
    assert main(["data", "collect", "maze2d-umaze-v1", "--transitions", "300", "--out", str(out)]) == 0
    assert load_dataset(str(out)).size == 300
    assert main(["data", "collect", "maze2d-umaze-v1", "--policy", str(policy), "--out", str(out)]) == 2
    assert "leave out --policy" in capsys.readouterr().err
