"""d3rlpy's dumps, written by hand as d3rlpy/dataset/io.py (version 2) and MDPDataset.dump (version 1) write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import h5py
import numpy as np
import pytest

from diffcps.readers.d3rlpy import is_d3rlpy, read_d3rlpy
from tests.data.rows import kept, peak_over_kept, refused

COLUMNS = ("observations", "actions", "rewards", "terminated")


def episode(steps: int, terminated: bool, seed: int) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    return {
        "observations": rng.normal(size=(steps, 3)),
        "actions": rng.uniform(-1, 1, (steps, 2)),
        "rewards": rng.normal(size=(steps, 1)),
        "terminated": terminated,
    }


@pytest.fixture
def episodes() -> list[dict[str, object]]:
    """Twelve, so that names as text are in another order; every third one is cut."""
    return [episode(2 + i, i % 3 > 0, i) for i in range(12)]


@pytest.fixture
def dump(tmp_path: Path) -> Callable[..., Path]:
    def dump(episodes: list[dict[str, object]], version: str = "2.1", columns: tuple[str, ...] = COLUMNS) -> Path:
        path = tmp_path / "buffer.h5"
        with h5py.File(path, "w") as file:
            file["columns"], file["num_episodes"], file["version"] = list(columns), len(episodes), version
            for i, each in enumerate(episodes):
                for name in columns:
                    value = each.get(name)
                    if isinstance(value, tuple):
                        for j, part in enumerate(value):
                            file[f"{name}_{i}_{j}"] = part
                    elif value is not None:
                        file[f"{name}_{i}"] = value
        return path

    return dump


@pytest.fixture
def dump_flat(tmp_path: Path) -> Callable[[Mapping[str, object]], Path]:
    def dump(fields: Mapping[str, object]) -> Path:
        path = tmp_path / "dataset.h5"
        with h5py.File(path, "w") as file:
            for name, value in fields.items():
                file[name] = value
        return path

    return dump


@pytest.fixture
def flat() -> dict[str, object]:
    """Eight steps of version 1: terminal at row 2, cut at row 5, terminal at row 7."""
    step = np.arange(8)
    return {
        "observations": np.stack([step, 10.0 * step], axis=1),
        "actions": step[:, None] / 10,
        "rewards": step + 1.0,
        "terminals": np.isin(step, (2, 7)).astype(np.float32),
        "episode_terminals": np.isin(step, (2, 5, 7)).astype(np.float32),
        "discrete_action": False,
        "version": "1.0",
    }


def test_episodes_follow_their_numbers(episodes, dump):
    raw = read_d3rlpy(dump(episodes), "buffer")
    for values, name in ((raw.observation, "observations"), (raw.action, "actions"), (raw.reward, "rewards")):
        expected = np.concatenate([each[name] for each in episodes]).astype(np.float32)
        np.testing.assert_array_equal(kept(values), expected.ravel() if name == "rewards" else expected)
    lengths = np.arange(2, 14)
    last = np.cumsum(lengths) - 1
    assert np.flatnonzero(kept(raw.terminal)).tolist() == last[np.arange(12) % 3 > 0].tolist()
    assert np.flatnonzero(kept(raw.timeout)).tolist() == last[np.arange(12) % 3 == 0].tolist()
    np.testing.assert_array_equal(kept(raw.episode), np.repeat(np.arange(12), lengths))
    assert raw.next_observation is None
    assert "4 episodes were cut" in raw.notes[0]


def test_observations_in_parts_stand_side_by_side(episodes, dump):
    for each in episodes:
        observations = np.asarray(each["observations"])
        each["observations"] = (observations[:, :1], observations[:, 1:])
    expected = np.concatenate([np.concatenate(each["observations"], axis=1) for each in episodes])
    raw = read_d3rlpy(dump(episodes), "buffer")
    np.testing.assert_array_equal(kept(raw.observation), expected.astype(np.float32))


def test_other_columns_are_named(episodes, dump):
    path = dump([each | {"embeddings": np.zeros(3)} for each in episodes], columns=(*COLUMNS, "embeddings"))
    assert read_d3rlpy(path, "buffer").ignored == ("embeddings",)


def test_incomplete(episodes, dump):
    path = dump(episodes, version="2.0")
    assert "d3rlpy 2.0" in refused(lambda: read_d3rlpy(path, "buffer"), "buffer")
    dump(episodes, columns=COLUMNS[:3])
    assert "no column `terminated`" in refused(lambda: read_d3rlpy(path, "buffer"), "buffer")
    dump([])
    assert "one episode at least" in refused(lambda: read_d3rlpy(path, "buffer"), "buffer")
    dump([*episodes, episode(0, True, 0)])
    assert "episode 12 has no steps" in refused(lambda: read_d3rlpy(path, "buffer"), "buffer")
    wide = episode(4, True, 0) | {"actions": np.zeros((4, 3))}
    dump([*episodes, wide])
    assert "`actions_12` has rows of shape (3,)" in refused(lambda: read_d3rlpy(path, "buffer"), "buffer")
    short = episode(4, True, 0) | {"rewards": np.zeros((3, 1))}
    dump([*episodes, short])
    assert "`rewards_12` has 3 rows" in refused(lambda: read_d3rlpy(path, "buffer"), "buffer")
    del episodes[3]["actions"]
    dump(episodes)
    assert "no `actions_3`" in refused(lambda: read_d3rlpy(path, "buffer"), "buffer")


def test_truncated_and_recognised(episodes, dump, dump_flat, flat, tmp_path):
    path = dump(episodes)
    assert is_d3rlpy(path) and is_d3rlpy(dump_flat(flat))
    del flat["discrete_action"]
    assert not is_d3rlpy(dump_flat(flat)), "this is D4RL's layout"
    path.write_bytes(path.read_bytes()[:-5000])
    assert not is_d3rlpy(path) and not is_d3rlpy(tmp_path / "nothing.h5")
    assert "not a complete HDF5 file" in refused(lambda: read_d3rlpy(path, "buffer"), "buffer")


def test_version_1(dump_flat, flat):
    raw = read_d3rlpy(dump_flat(flat | {"create_mask": False}), "dataset")
    np.testing.assert_array_equal(kept(raw.observation), flat["observations"])
    np.testing.assert_array_equal(kept(raw.action), np.asarray(flat["actions"], np.float32))
    np.testing.assert_array_equal(kept(raw.reward), flat["rewards"])
    assert np.flatnonzero(kept(raw.terminal)).tolist() == [2, 7]
    assert np.flatnonzero(kept(raw.timeout)).tolist() == [5]
    assert raw.ignored == ("create_mask",) and "1 episodes were cut" in raw.notes[0]
    assert raw.names["timeout"] == "episode_terminals"


def test_version_1_before_it_had_episode_terminals(dump_flat, flat):
    del flat["episode_terminals"]
    raw = read_d3rlpy(dump_flat(flat), "dataset")
    assert raw.timeout is None and np.flatnonzero(kept(raw.terminal)).tolist() == [2, 7]


def test_version_1_damaged(dump_flat, flat):
    path = dump_flat(flat | {"discrete_action": True})
    assert "actions are choices" in refused(lambda: read_d3rlpy(path, "dataset"), "dataset")
    dump_flat(flat | {"episode_terminals": np.zeros(5)})
    assert "`episode_terminals` has 5 rows" in refused(lambda: read_d3rlpy(path, "dataset"), "dataset")
    dump_flat(flat | {"terminals": np.full(8, 0.5)})
    assert "`terminals` at row 0 is 0.5" in refused(lambda: read_d3rlpy(path, "dataset"), "dataset")
    dump_flat({name: value for name, value in flat.items() if name != "rewards"})
    assert "no field `rewards`" in refused(lambda: read_d3rlpy(path, "dataset"), "dataset")


def test_memory(dump):
    """float64 episodes: no array is there twice."""
    zeros = {"observations": np.zeros((5000, 16)), "actions": np.zeros((5000, 4)), "rewards": np.zeros((5000, 1))}
    path = dump([zeros | {"terminated": True} for _ in range(20)])
    assert peak_over_kept(lambda: read_d3rlpy(path, "buffer")) < 1.3
