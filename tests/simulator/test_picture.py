"""The table and the picture of a check against a simulator, from a summary made by hand."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from diffcps.simulator.picture import check_table, save_check_figure
from diffcps.types import UserError


@pytest.fixture
def summary():
    return {
        "source": "data.npz",
        "environment": "Robot-v0",
        "drawn": 1200,
        "judged": 1000,
        "not_judged": {"velocity at its clip": 200},
        "state": "from the observation",
        "observation": [
            {"entry": 0, "name": "position rootz", "median": 1e-6, "p99": 0.25, "agree": 0.5},
            {"entry": 1, "name": "", "median": 0.0, "p99": 0.0, "agree": 1.0},
        ],
        "step": {"median": 1e-5, "p99": 0.25, "agree": 0.5},
        "reward": {"median": 0.125, "p99": 2.0, "agree": 0.25},
        "terminal": {"stored": 9, "confirmed": 7, "reward_agrees": 1.0, "ended_by_simulator": 3, "going_on": 990},
        "versions": [{"environment": "Robot-v1", "agree": 0.75, "reward": 0.8, "reward_at_terminals": None}],
        "verdict": "The data do not fit [Robot-v0] for $5.",
    }


def text_of(summary):
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(check_table(summary))
    return console.export_text()


def test_the_table_says_everything(summary):
    text = text_of(summary)
    for words in (
        "0 position rootz",
        "1.0e-06",
        "2.5e-01",
        "1,000 of 1,200 steps drawn",
        "200 not judged: velocity at its clip",
        "7 of 9 looked at are confirmed",
        "3 of 990 other steps end in the simulator",
        "75.0% of steps and 80.0% of rewards agree",
        "The data do not fit [Robot-v0] for $5.",
    ):
        assert words in text


def test_the_table_of_what_cannot_be_judged(summary):
    few = {key: summary[key] for key in ("source", "environment", "drawn", "judged", "not_judged", "state", "verdict")}
    assert "The data do not fit" in text_of(few)


def test_the_picture(summary, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "error": rng.uniform(size=(50, 2)),
        "row_error": np.append(rng.uniform(size=49), np.inf),
        "tolerance": np.full(50, 1e-5),
        "agree": np.zeros(50, bool),
        "reward": rng.uniform(size=50),
        "predicted_reward": rng.uniform(size=50),
        "reward_agrees": np.zeros(50, bool),
    }
    save_check_figure(summary, arrays, tmp_path / "check.png")
    assert (tmp_path / "check.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="cannot be written"):
        save_check_figure(summary, arrays, tmp_path / "no" / "check.png")
