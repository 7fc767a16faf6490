"""The table, the picture and the JSON of a check against a simulator, from a report made by hand."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from diffcps.simulator.picture import check_table, save_check_figure
from diffcps.simulator.record import FileFacts
from diffcps.simulator.replay import Comparison
from diffcps.simulator.report import EntryErrors, Findings, Report, RewardErrors, Sample, StepErrors
from diffcps.simulator.reward_faults import Terminals
from diffcps.simulator.versions import Version
from diffcps.types import UserError


@pytest.fixture
def report() -> Report:
    rng = np.random.default_rng(0)
    no, ones = np.zeros(50, bool), np.full(50, 1e-5)
    row_error = np.append(rng.uniform(size=49), np.inf)
    comparison = Comparison(
        rng.uniform(size=(50, 2)), row_error, ones, no, rng.uniform(size=50), rng.uniform(size=50), ones, no, no, no
    )
    findings = Findings(
        observation=[
            EntryErrors(0, "position rootz", 1.0, median=1e-6, p99=0.25, agree=0.5),
            EntryErrors(1, "", 1.0, median=0.0, p99=0.0, agree=1.0),
        ],
        step=StepErrors(0.5, 1e-5, 0.25, close_in_contact=None, close_without_contact=0.5, worst_rows=[3]),
        reward=RewardErrors(0.25, 0.125, 2.0),
        agree_when_repaired=1.0,
        terminal=Terminals(9, 7, 2, 100, 1.0, going_on=990, ended_by_simulator=3, in_file=9, in_file_at_time_limit=2),
        fits=False,
        versions=[Version("Robot-v1", None, agree=0.75, reward=0.8)],
        comparison=comparison,
    )
    file = FileFacts("data.npz", "0", None, rows=1200, has_next_observations=True, names_action_box=False)
    reasons = {"velocity at its clip": 200}
    sample = Sample("[Robot-v0]", 0, 1200, 1000, reasons, "from the observation", [], 1.0, None)
    return Report(file, sample, ["it costs $5"], findings)


def text_of(report: Report) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(check_table(report))
    return console.export_text()


def test_the_table_says_everything(report: Report) -> None:
    text = " ".join(text_of(report).replace("│", " ").split())
    for words in (
        "0 position rootz",
        "1.0e-06",
        "2.5e-01",
        "1,000 of 1,200 steps drawn",
        "200 not judged: velocity at its clip",
        "7 of 9 looked at are confirmed, 100.0% of their rewards agree",
        "3 of 990 other steps end in the simulator",
        "75.0% of steps and 80.0% of rewards agree",
        "The data do not fit [Robot-v0]: 50.0% of 1,000 judged steps and 25.0% of their rewards agree",
        "Found: it costs $5.",
        "With that undone 100.0% of the steps agree.",
    ):
        assert words in text


def test_the_table_of_what_cannot_be_judged(report: Report) -> None:
    text = text_of(replace(report, findings=None))
    assert "Cannot be judged: only 1000 of 1200 drawn steps have a known state." in text
    assert "median error" not in text


def test_the_names_in_the_json_stay(report: Report) -> None:
    known = ["source", "sha256", "environment_of_file", "rows", "has_next_observations", "names_action_box"]
    known += ["environment", "seed", "drawn", "judged", "not_judged", "state", "left_out", "own_steps_again", "goal"]
    measured = ["observation", "step", "reward", "agree_when_repaired", "terminal"]
    content = json.loads(json.dumps(report.to_json()))
    assert list(content) == ["software", *known, *measured, "fits", "faults", "versions", "verdict"]
    assert {name: list(content[name]) for name in ("step", "reward", "terminal")} == {
        "step": ["agree", "median", "p99", "close_in_contact", "close_without_contact", "worst_rows"],
        "reward": ["agree", "median", "p99"],
        "terminal": [
            *("stored", "confirmed", "at_time_limit", "time_limit", "reward_agrees", "going_on"),
            *("ended_by_simulator", "in_file", "in_file_at_time_limit"),
        ],
    }
    assert list(content["observation"][0]) == ["entry", "name", "one_step_change", "median", "p99", "agree"]
    assert list(content["versions"][0]) == ["environment", "reward_at_terminals", "agree", "reward"]
    assert (content["fits"], content["faults"], content["step"]["p99"]) == (False, ["it costs $5"], 0.25)

    unknown = replace(report, findings=None).to_json()
    assert list(unknown) == ["software", *known, "fits", "faults", "verdict"] and unknown["fits"] is None


def test_the_picture(report: Report, tmp_path) -> None:
    save_check_figure(report, tmp_path / "check.png")
    assert (tmp_path / "check.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        save_check_figure(report, tmp_path / "file" / "check.png")
