"""Every format into every format: what is loaded afterwards is what was loaded before, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest

from diffcps.data import load_dataset
from diffcps.data.convert import convert
from diffcps.types import Dataset, EnvironmentSpec, Reading, UserError

FORMATS = {"hdf5": "new.hdf5", "npz": "new.npz", "minari": "toy/new-v0"}
FIELDS = ("observation", "action", "reward", "next_observation", "terminal", "timeout")


@pytest.fixture(autouse=True)
def minari_root(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


@pytest.fixture
def source(tmp_path) -> str:
    """Episodes that end by termination, by time limit, by both at once, and by the end of the file; one of one step."""
    rng = np.random.default_rng(0)
    ends = np.cumsum([4, 6, 1, 3, 5])
    observation = rng.normal(size=(20, 3)).astype(np.float32)
    following = np.roll(observation, -1, axis=0)
    following[ends - 1] = rng.normal(size=(5, 3))
    observation[8, 1], following[7, 1] = -0.0, -0.0
    terminals, timeouts = np.zeros((2, 19), bool)
    terminals[ends[[0, 2]] - 1], timeouts[ends[[1, 2, 3]] - 1] = True, True
    low, high = np.array([-2, -0.3], np.float32), np.array([2, 0.7], np.float32)
    path = tmp_path / "source.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"], file["next_observations"] = observation[:19], following[:19]
        file["actions"] = rng.uniform(low, high, size=(19, 2))  # float64
        file["rewards"] = rng.normal(size=19)
        file["terminals"], file["timeouts"] = terminals, timeouts
        file["infos/qpos"] = np.zeros((19, 5))
        facts = {"action_low": low, "action_high": high, "env_id": "Pendulum-v1", "ref_min_score": -1.5}
        file.attrs.update(facts | {"ref_max_score": 7.25})
    return str(path)


def assert_same(one: Dataset, other: Dataset) -> None:
    for field in FIELDS:
        before, after = np.asarray(getattr(one, field)), np.asarray(getattr(other, field))
        assert before.dtype == after.dtype, field
        assert before.tobytes() == after.tobytes(), field
    for field in ("environment", "reference_min", "reference_max", "action_low", "action_high"):
        assert getattr(one.info, field) == getattr(other.info, field), field


def into(kind: str, folder: Path, name: str = "new") -> str:
    target = FORMATS[kind].replace("new", name)
    return target if kind == "minari" else str(folder / target)


@pytest.mark.parametrize(("first", "second"), list(product(FORMATS, FORMATS)))
def test_every_direction(source, tmp_path, first, second):
    expected = load_dataset(source)
    assert np.flatnonzero(np.asarray(expected.terminal)).tolist() == [3, 10]
    assert np.flatnonzero(np.asarray(expected.timeout)).tolist() == [9, 13, 18]
    one, two = into(first, tmp_path, "one"), into(second, tmp_path, "two")
    convert(source, one, spec_of=lambda environment: gymnasium.spec(environment.id))
    convert(one, two, spec_of=lambda environment: gymnasium.spec(environment.id))
    assert_same(load_dataset(one), expected)
    assert_same(load_dataset(two), expected)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_in_d4rls_own_layout(tmp_path, kind):
    """Without next observations, environment and scores: D4RL's rule of the rows is applied."""
    rng = np.random.default_rng(1)
    steps = np.arange(30)
    np.savez(
        tmp_path / "d4rl.npz",
        observations=rng.normal(size=(30, 4)).astype(np.float32),
        actions=rng.uniform(-1, 1, size=(30, 2)).astype(np.float32),
        rewards=rng.normal(size=30).astype(np.float32),
        terminals=steps == 6,
        timeouts=steps == 19,
    )
    expected = load_dataset(tmp_path / "d4rl.npz")
    assert expected.size == 28
    convert(str(tmp_path / "d4rl.npz"), into(kind, tmp_path))
    assert_same(load_dataset(into(kind, tmp_path)), expected)


def test_states_that_do_not_chain(source, tmp_path):
    """Minari stores a state once: an episode ends where the next one is another, and the transitions stay the same."""
    with h5py.File(source, "a") as file:
        following = file["next_observations"]
        assert isinstance(following, h5py.Dataset)
        following[5, 0] += np.float32(1e-3)
        following[7, 1] = 0.0  # equal to -0.0, and another number
    expected = load_dataset(source)
    for kind in FORMATS:
        convert(source, into(kind, tmp_path))
        found = load_dataset(into(kind, tmp_path))
        ends = [5, 7, 9, 13, 18] if kind == "minari" else [9, 13, 18]
        assert np.flatnonzero(np.asarray(found.timeout)).tolist() == ends
        for field in FIELDS[:5]:
            assert getattr(found, field).tobytes() == getattr(expected, field).tobytes()


def test_the_builtin_dataset(tmp_path):
    expected = load_dataset("builtin")
    for kind in FORMATS:
        convert("builtin", into(kind, tmp_path))
    for kind in FORMATS:
        found = load_dataset(into(kind, tmp_path))
        assert found.observation.tobytes() == expected.observation.tobytes()
        assert found.next_observation.tobytes() == expected.next_observation.tobytes()
        assert found.info.reference_max == 3234.3


def test_where_it_came_from(source, tmp_path):
    sha256 = load_dataset(source).info.sha256
    convert(source, str(tmp_path / "new.hdf5"))
    with h5py.File(tmp_path / "new.hdf5") as file:
        assert (file.attrs["source"], file.attrs["source_sha256"]) == (source, sha256)
        assert str(file.attrs["converted_by"]).startswith("diffcps ")
        assert sorted(file) == sorted(
            ["observations", "actions", "rewards", "next_observations", "terminals", "timeouts"]
        )


def test_the_task_gives_environment_and_scores(tmp_path):
    convert("builtin", str(tmp_path / "new.npz"), task="hopper-medium-replay-v2")
    info = load_dataset(tmp_path / "new.npz").info
    assert (info.environment, info.reference_min, info.reference_max) == (
        EnvironmentSpec("Hopper-v4"),
        -20.272305,
        3234.3,
    )


def test_minari_accepts_it(source, minari_root):
    import minari

    path = convert(source, "toy/sub/new-v3", spec_of=lambda environment: gymnasium.spec(environment.id))
    assert path == minari_root / "toy/sub/new-v3"
    dataset = minari.load_dataset("toy/sub/new-v3")
    assert (dataset.total_episodes, dataset.total_steps, dataset.id) == (5, 19, "toy/sub/new-v3")
    assert [len(episode) for episode in dataset.iterate_episodes()] == [4, 6, 1, 3, 5]
    assert dataset.storage.metadata["ref_min_score"] == -1.5
    assert minari.get_normalized_score(dataset, np.array([-1.5, 7.25])).tolist() == [0.0, 1.0]
    low, high = np.array([-2, -0.3], np.float32), np.array([2, 0.7], np.float32)
    assert dataset.action_space == gymnasium.spaces.Box(low, high)
    assert dataset.env_spec is not None and dataset.env_spec.id == "Pendulum-v1"
    dataset.recover_environment().close()
    assert "toy/sub/new-v3" in minari.list_local_datasets()
    assert [path.name for path in minari_root.iterdir()] == ["toy"]  # nothing temporary is left

    command = [sys.executable, "-c", "from minari.cli import app; app()", "show", "toy/sub/new-v3"]
    shown = subprocess.run(command, capture_output=True)
    assert shown.returncode == 0, shown.stderr
    assert b"toy/sub/new-v3" in shown.stdout and b"19" in shown.stdout


def test_without_an_environment(source, tmp_path):
    import minari

    convert(source, "toy/new-v0", spec_of=lambda environment_id: None)
    dataset = minari.load_dataset("toy/new-v0")
    assert dataset.env_spec is None
    assert minari.get_normalized_score(dataset, np.array([7.25])).tolist() == [1.0]


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_there_stays(source, tmp_path, minari_root, monkeypatch, kind):
    target = into(kind, tmp_path)
    convert(source, target)
    before = load_dataset(target).info.sha256
    with pytest.raises(UserError, match=r"is there already .*--overwrite"):
        convert("builtin", target)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    step = {
        "hdf5": "h5py.Group.create_dataset",
        "npz": "numpy.savez",
        "minari": "diffcps.data.writers._minari_episodes",
    }
    with monkeypatch.context() as patch:
        patch.setattr(step[kind], full)
        with pytest.raises(OSError, match="No space left"):
            convert("builtin", target, overwrite=True)
    assert load_dataset(target).info.sha256 == before

    with h5py.File(source, "a") as file:
        rewards = file["rewards"]
        assert isinstance(rewards, h5py.Dataset)
        rewards[0] = 5.0
    convert(source, target, overwrite=True)
    assert load_dataset(target).reward[0] == 5.0
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]


def test_a_file_onto_itself(source):
    expected = load_dataset(source)
    convert(source, source, overwrite=True)
    assert_same(load_dataset(source), expected)


@pytest.mark.parametrize("target", ["new.csv", "new", "folder/", "Hopper v5"])
def test_what_is_no_target(source, target, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"name a \.hdf5, \.h5 or \.npz file, or a Minari id"):
        convert(source, target)


def test_actions_that_are_cut_off_are_written_so(tmp_path):
    rows = np.arange(20.0)
    np.savez(
        tmp_path / "wide.npz",
        observations=rows[:, None],
        next_observations=rows[:, None] + 1,
        actions=np.linspace(-2, 2, 20)[:, None],
        rewards=rows,
        terminals=np.zeros(20, bool),
    )
    convert(str(tmp_path / "wide.npz"), str(tmp_path / "cut.npz"), Reading(clip_actions=True))
    with np.load(tmp_path / "cut.npz") as file:
        assert (file["actions"].min(), file["actions"].max()) == (-1, 1)
