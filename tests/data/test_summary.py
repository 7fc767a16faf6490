from __future__ import annotations

import io
from dataclasses import asdict

import numpy as np
import pytest
from rich.console import Console

from diffcps.data import load_dataset
from diffcps.data.picture import dataset_table, save_dataset_figure
from diffcps.data.summary import describe, episode_returns
from diffcps.types import UserError


@pytest.fixture
def dataset(rows, write_hdf5):
    """Kept rewards 1, 2, 3 (terminal) | 4, 5 (timeout) | 7 (end of file); actions 0, .1, .2, .3, .4, .6."""
    rows["actions"] = np.stack([rows["actions"][:, 0], np.where(np.arange(8) < 3, 1, -0.5)], axis=1)
    return load_dataset(write_hdf5(rows, {"env_id": "Toy-v0", "ref_min_score": 2.0, "ref_max_score": 12.0}))


def test_episode_returns(dataset):
    returns, lengths = episode_returns(dataset)
    assert returns.tolist() == [6, 9, 7]
    assert lengths.tolist() == [3, 2, 1]


def test_describe(dataset):
    found = describe(dataset)
    assert (found.transitions, found.episodes) == (6, 3)
    assert (found.observation_size, found.action_size) == (2, 2)
    assert (found.environment, found.sha256) == ("Toy-v0", dataset.info.sha256)
    expected = {
        "mean": 22 / 3,
        "std": np.sqrt(14 / 9),
        "min": 6,
        "q25": 6.5,
        "median": 7,
        "q75": 8,
        "max": 9,
    }
    assert asdict(found.returns) == pytest.approx(expected)
    assert found.normalised_mean == pytest.approx(100 * (22 / 3 - 2) / 10)
    assert found.lengths.mean == 2 and found.lengths.max == 3
    assert found.terminal_share == pytest.approx(1 / 3)
    assert [action.min for action in found.actions] == pytest.approx([0, -0.5])
    assert [action.max for action in found.actions] == pytest.approx([0.6, 1])
    assert [action.mean for action in found.actions] == pytest.approx([1.6 / 6, 0.25])
    assert [action.std for action in found.actions] == pytest.approx([np.sqrt(35) / 30, 0.75])
    assert [action.at_bound for action in found.actions] == [0, 0.5]
    assert found.rewards.mean == pytest.approx(22 / 6)
    assert found.zero_reward_share == 0
    assert found.warnings == ()


def test_returns_are_those_of_the_rewards_in_the_file(rows, write_hdf5):
    path = write_hdf5(rows)
    assert describe(load_dataset(path, normalise_observation=True)).returns.mean == pytest.approx(22 / 3)
    for transform in ("cql_antmaze", "iql_antmaze", "iql_locomotion", "standardise"):
        with pytest.raises(UserError, match=rf"^{path}: its rewards were transformed \({transform}, times 1\)"):
            describe(load_dataset(path, reward=transform))


def test_describe_without_references(rows, write_hdf5):
    found = describe(load_dataset(write_hdf5(rows)))
    assert found.normalised_mean is None
    assert found.environment is None


def test_describe_builtin():
    found = describe(load_dataset("builtin"))
    assert (found.transitions, found.episodes) == (139_631, 833)
    assert found.returns.mean == pytest.approx(465.84, abs=0.01)
    assert found.normalised_mean == pytest.approx(14.94, abs=0.01)
    assert found.warnings == ()


def test_table(dataset):
    text = io.StringIO()
    Console(file=text, width=100).print(dataset_table(describe(dataset)))
    for part in ("Toy-v0", "6 in 3 episodes", "33.3% terminal, 66.7% timeout", "53.3 (of the mean return)", "none"):
        assert part in text.getvalue()


def test_picture(rows, write_hdf5, tmp_path):
    rows["actions"] = np.tile(rows["actions"], (1, 8))
    dataset = load_dataset(write_hdf5(rows, {"env_id": "Costs $5 or $6-v0"}))
    path = tmp_path / "dataset.png"
    save_dataset_figure(dataset, *episode_returns(dataset), path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(content[i : i + 4]) for i in (16, 20))
    assert (width, height) == (1650, pytest.approx(150 * (2.9 + 0.5 + 2 * 1.9 + 0.9), abs=1))  # two rows of actions
    with pytest.raises(UserError, match="the picture cannot be written"):
        save_dataset_figure(dataset, *episode_returns(dataset), path / "dataset.png")  # a file where a folder must be
