"""Collected locomotion data: what is recorded of an episode, D4RL's datasets out of one run, and what is refused."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import gymnasium
import h5py
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.spaces import Box

from diffcps.cli.main import main
from diffcps.collect import collect, files, locomotion, sac
from diffcps.collect.play import play
from diffcps.data import load_dataset
from diffcps.data.summary import describe
from diffcps.envs.make import make_environment
from diffcps.types import UserError

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Counter(gymnasium.Env):
    """Counts steps; ends for good at step `end` of an episode."""

    def __init__(self, end: int) -> None:
        self.observation_space = Box(0.0, 100.0, (1,), np.float32)
        self.action_space = Box(-1.0, 1.0, (1,), np.float32)
        self.end = end

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.count += 1
        return np.full(1, self.count, np.float32), float(self.count), self.count == self.end, False, {}


def still(observation: np.ndarray, step: int) -> np.ndarray:
    return np.zeros(1, np.float32)


# --- Episodes ---


def test_episodes_are_marked_by_how_they_end():
    rows = play(gymnasium.wrappers.TimeLimit(Counter(end=3), 5), still, steps=7, seed=0)
    assert rows["observations"][:, 0].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert rows["next_observations"][:, 0].tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert rows["terminals"].tolist() == [False, False, True, False, False, True, False]
    assert rows["timeouts"].tolist() == [False] * 6 + [True]  # cut
    assert files.episode_returns(rows).tolist() == [6.0, 6.0, 1.0]
    limited = play(gymnasium.wrappers.TimeLimit(Counter(end=3), 2), still, steps=4, seed=0)
    assert not limited["terminals"].any() and limited["timeouts"].tolist() == [False, True] * 2
    both = play(gymnasium.wrappers.TimeLimit(Counter(end=3), 3), still, steps=3, seed=0)
    assert both["terminals"].tolist() == [False, False, True] and not both["timeouts"].any()


def test_whole_episodes_are_played_to_their_end():
    environment = gymnasium.wrappers.TimeLimit(Counter(end=3), 5)
    assert len(play(environment, still, steps=7, seed=0, whole=True)["rewards"]) == 9
    rows = play(environment, still, steps=6, seed=0, whole=True)
    assert len(rows["rewards"]) == 6 and rows["terminals"][-1] and not rows["timeouts"].any()


def test_the_simulators_state_is_that_before_the_step():
    with closing(make_environment("Hopper-v5")) as environment:
        rng = np.random.default_rng(0)
        rows = play(environment, lambda *_: rng.uniform(-1, 1, 3).astype(np.float32), steps=30, seed=2)
        position, velocity = rows["infos/qpos"], rows["infos/qvel"]
        seen = np.concatenate([position[:, 1:], np.clip(velocity, -10, 10)], axis=1)
        np.testing.assert_allclose(rows["observations"], seen, rtol=1e-6, atol=1e-6)
        simulator = environment.unwrapped
        for row in (0, 10):
            environment.reset(seed=0)
            simulator.set_state(position[row], velocity[row])  # pyright: ignore[reportAttributeAccessIssue]
            observation, reward, *_ = environment.step(rows["actions"][row])
            np.testing.assert_allclose(observation, rows["next_observations"][row], atol=1e-4)
            assert reward == pytest.approx(rows["rewards"][row], abs=1e-4)


def test_rows_are_cut_with_a_mark():
    rows = play(gymnasium.wrappers.TimeLimit(Counter(end=3), 5), still, steps=7, seed=0)
    assert files.first_rows(rows, 5)["timeouts"].tolist() == [False] * 4 + [True]
    assert not files.first_rows(rows, 6)["timeouts"].any()  # the sixth is a true end
    assert len(locomotion._whole_episodes(rows, 5)["rewards"]) == 3
    assert len(locomotion._whole_episodes(rows, 2)["rewards"]) == 2  # no episode is whole
    assert len(files.first_rows(rows, 100)["rewards"]) == 7


# --- Datasets ---


def quick(task: str, out: Path, **changes) -> Path:
    settings = {"transitions": 600, "seed": 0, "fast": True, "resume": False, "say": lambda text: None}
    return collect(task, out, **(settings | changes))


def content(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    with h5py.File(path) as file:
        arrays = {}
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
        return arrays, dict(file.attrs)


@pytest.fixture(scope="module")
def hopper(tmp_path_factory) -> Path:
    """A folder with all levels of one smoke run."""
    folder = tmp_path_factory.mktemp("hopper")
    for level in locomotion.LEVELS:
        quick(f"hopper-{level}-v2", folder / f"{level}.hdf5")
    return folder


def test_layout_and_provenance(hopper: Path):
    arrays, attributes = content(hopper / "medium.hdf5")
    shapes = {name: (array.shape, array.dtype.name) for name, array in arrays.items()}
    assert shapes == {
        "observations": ((600, 11), "float32"),
        "actions": ((600, 3), "float32"),
        "rewards": ((600,), "float32"),
        "next_observations": ((600, 11), "float32"),
        "terminals": ((600,), "bool"),
        "timeouts": ((600,), "bool"),
        "infos/qpos": ((600, 6), "float64"),
        "infos/qvel": ((600, 6), "float64"),
    }
    assert attributes["env_id"] == "Hopper-v5" and attributes["task"] == "hopper-medium-v2"
    assert attributes["ref_max_score"] == 3234.3 and attributes["seed"] == 0 and attributes["transitions"] == 600
    assert "first snapshot" in attributes["recipe"] and "mujoco" in attributes["versions"]
    (snapshot,) = json.loads(attributes["snapshots"])
    assert snapshot["step"] == 200 and len(snapshot["returns"]) == locomotion.FAST.episodes
    assert json.loads(attributes["sac"])["batch_size"] == 32
    assert (hopper / "medium.png").stat().st_size > 10_000


@pytest.mark.parametrize("level", locomotion.LEVELS)
def test_our_reader_finds_nothing_wrong(hopper: Path, level: str):
    dataset = load_dataset(hopper / f"{level}.hdf5")
    found = describe(dataset)
    assert found.environment == "Hopper-v5"
    assert found.warnings == ()
    ends = np.asarray(dataset.terminal) | np.asarray(dataset.timeout)
    chained = np.asarray(dataset.next_observation)[:-1][~ends[:-1]]
    np.testing.assert_array_equal(chained, np.asarray(dataset.observation)[1:][~ends[:-1]])


def test_datasets_of_one_run_belong_together(hopper: Path):
    rows = {level: content(hopper / f"{level}.hdf5")[0] for level in locomotion.LEVELS}
    of_medium = json.loads(content(hopper / "medium.hdf5")[1]["snapshots"])[0]
    replay = rows["medium-replay"]["observations"]
    assert len(replay) == of_medium["step"]
    np.testing.assert_array_equal(replay, rows["full-replay"]["observations"][: len(replay)])
    np.testing.assert_array_equal(replay, content_of_run(hopper)[: len(replay)])
    medium, expert, both = (rows[level]["actions"] for level in ("medium", "expert", "medium-expert"))
    whole = len(both) - len(expert)
    assert 0 < whole <= len(medium)
    np.testing.assert_array_equal(both, np.concatenate([medium[:whole], expert]))
    assert rows["medium-expert"]["terminals"][whole - 1]  # a whole episode
    random = rows["random"]["actions"]
    assert np.abs(random.mean(0)).max() < 0.1 and abs(random.std() - 1 / 3**0.5) < 0.05  # uniform


def content_of_run(folder: Path) -> np.ndarray:
    """Observations stored by the online run."""
    return files.join(sac.transitions_of(folder / "hopper-v5-sac-seed0-fast", 4))["observations"]


def snapshot(iteration: int, *returns: float, score: float = 0.0) -> locomotion.Snapshot:
    return locomotion.Snapshot(Path(f"{iteration}"), iteration, 200 * iteration, returns, score)


def test_snapshots_are_chosen_by_their_returns():
    """The first two have the best episode and the best score, the third the best mean: expert goes by the mean."""
    snapshots = [snapshot(1, 0.0, 90.0, score=30.0), snapshot(2, 10.0, 20.0, score=50.0)]
    snapshots += [snapshot(3, 50.0, 60.0, score=40.0), snapshot(4, 55.0, 55.0), snapshot(5, 0.0, 0.0)]
    assert locomotion.expert_snapshot(snapshots).iteration == 3  # not the fourth, which is as good
    assert [locomotion.medium_snapshot(snapshots, level) for level in (30.0, 30.1, 50.1)] == [*snapshots[:2], None]


def log_likelihood(path: Path, rows: dict[str, np.ndarray]) -> float:
    """Of the actions under the actor in a file, but for the term that is the same under all actors."""
    mean, log_std = map(np.asarray, sac.load_actor(path)[0](jnp.asarray(rows["observations"])))
    u = np.arctanh(np.clip(rows["actions"].astype(float), -1 + 1e-7, 1 - 1e-7))
    return float(np.mean(-0.5 * ((u - mean) / np.exp(log_std)) ** 2 - log_std))


def test_expert_data_come_from_the_best_snapshot(hopper: Path):
    """The file names the snapshot of the best mean return, and its actions are likeliest under that one's actor."""
    actors = sorted((hopper / "hopper-v5-sac-seed0-fast" / "actors").iterdir())
    stored = [locomotion._read_snapshot(path) for path in actors]
    means = [np.mean(found.returns) for found in stored]
    assert len(set(means)) == 4  # so that the best is one, and another one the worst
    rows, attributes = content(hopper / "expert.hdf5")
    (used,) = json.loads(attributes["snapshots"])
    assert used["step"] == stored[int(np.argmax(means))].step
    likelihoods = [log_likelihood(path, rows) for path in actors]
    assert np.argmax(likelihoods) == np.argmax(means)
    assert np.sort(likelihoods)[-1] - np.sort(likelihoods)[-2] > 0.01  # by more than chance: 1800 numbers


def test_the_order_and_interruptions_change_nothing(hopper: Path, tmp_path: Path, monkeypatch):
    """Here expert is asked for first, and the run is broken at the second evaluation and while episodes are played."""
    calls = {"play": 0}
    real = locomotion.play

    def breaks(*arguments, **options):
        calls["play"] += 1
        if calls["play"] == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(locomotion, "play", breaks)
    with pytest.raises(KeyboardInterrupt):
        quick("hopper-expert-v2", tmp_path / "expert.hdf5")
    assert not (tmp_path / "expert.hdf5").exists()
    quick("hopper-expert-v2", tmp_path / "expert.hdf5", resume=True)
    quick("hopper-medium-v2", tmp_path / "medium.hdf5")
    for level in ("expert", "medium"):
        assert (tmp_path / f"{level}.hdf5").read_bytes() == (hopper / f"{level}.hdf5").read_bytes()
    quick("hopper-medium-v2", tmp_path / "seed1" / "medium.hdf5", seed=1)
    assert (tmp_path / "seed1" / "medium.hdf5").read_bytes() != (hopper / "medium.hdf5").read_bytes()


def test_a_level_that_is_not_reached(hopper: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(locomotion, "FAST", locomotion.FAST._replace(medium=90.0))
    with pytest.raises(UserError, match=r"no snapshot of 800 steps has the medium level.*90\.0"):
        quick("hopper-medium-v2", tmp_path / "medium.hdf5")


def test_the_command(tmp_path: Path, capsys):
    out = tmp_path / "r.hdf5"
    command = ["data", "collect", "halfcheetah-random-v2", "--fast", "--transitions", "400", "--out", str(out)]
    assert main(command) == 0
    assert f"written: {out}" in capsys.readouterr().out
    before = out.read_bytes()
    assert main([*command, "--resume"]) == 0
    assert "complete" in capsys.readouterr().out and out.read_bytes() == before
    assert main(command) == 2
    assert "exists; remove it" in capsys.readouterr().err
    assert main([*command, "--resume", "--seed", "1"]) == 2  # another collection
    capsys.readouterr()


@pytest.mark.parametrize(
    ("task", "out", "options", "words"),
    [
        ("hopper-best-v2", "a.hdf5", {}, "ROBOT-LEVEL-v2"),
        ("hopper-medium-v0", "a.hdf5", {}, "ROBOT-LEVEL-v2"),
        ("door-human-v1", "a.hdf5", {}, "no recipe"),
        ("hopper-random-v2", "a.npz", {}, r"ends in \.hdf5"),
        ("hopper-random-v2", "a.hdf5", {"transitions": 0}, "at least 1"),
        ("hopper-random-v2", "a.hdf5", {"environment": "Swimmer-v5"}, "no reference scores"),
        ("maze2d-umaze-v1", "a.hdf5", {"environment": "Hopper-v5"}, "leave out --env"),
    ],
)
def test_refusals(task: str, out: str, options: dict, words: str, tmp_path: Path):
    with pytest.raises(UserError, match=words):
        quick(task, tmp_path / out, **options)
    assert list(tmp_path.iterdir()) == []
