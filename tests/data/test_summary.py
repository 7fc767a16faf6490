from __future__ import annotations

import io
import json

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
    assert (found["transitions"], found["episodes"]) == (6, 3)
    assert (found["observation_size"], found["action_size"]) == (2, 2)
    assert (found["environment"], found["sha256"]) == ("Toy-v0", dataset.info.sha256)
    expected = {
        "mean": 22 / 3,
        "std": np.sqrt(14 / 9),
        "min": 6,
        "q25": 6.5,
        "median": 7,
        "q75": 8,
        "max": 9,
        "normalised_mean": 100 * (22 / 3 - 2) / 10,
    }
    assert found["return"] == pytest.approx(expected)
    assert found["length"]["mean"] == 2 and found["length"]["max"] == 3
    assert found["end"] == pytest.approx({"terminal": 1 / 3, "timeout": 2 / 3})
    action = found["action"]
    assert action["min"] == pytest.approx([0, -0.5])
    assert action["max"] == pytest.approx([0.6, 1])
    assert action["mean"] == pytest.approx([1.6 / 6, 0.25])
    assert action["std"] == pytest.approx([np.sqrt(35) / 30, 0.75])
    assert action["at_bound"] == [0, 0.5]
    assert found["reward"]["mean"] == pytest.approx(22 / 6)
    assert found["reward"]["zero"] == 0
    assert found["warnings"] == []
    assert json.loads(json.dumps(found)) == found


def test_describe_without_references(rows, write_hdf5):
    found = describe(load_dataset(write_hdf5(rows)))
    assert found["return"]["normalised_mean"] is None
    assert found["environment"] is None


def test_describe_builtin():
    found = describe(load_dataset("builtin"))
    assert (found["transitions"], found["episodes"]) == (139_630, 833)
    assert found["return"]["mean"] == pytest.approx(465.84, abs=0.01)
    assert found["return"]["normalised_mean"] == pytest.approx(14.94, abs=0.01)
    assert found["warnings"] == []


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
        save_dataset_figure(dataset, *episode_returns(dataset), tmp_path / "absent" / "dataset.png")
