"""What is said of the time of a study: that it is measured once for equal programs, and scaled to the plan."""

from __future__ import annotations

import io
import tomllib

import pytest
from rich.console import Console

from diffcps.study import estimate
from diffcps.study.estimate import TYPICAL_ROWS, RunSizes, Seconds, measure, sizes_of, times_of
from diffcps.study.plan import Cell, study_of
from diffcps.study.table import time_table
from diffcps.training.timing import StageTiming
from diffcps.types import EnvironmentSpec, Spec

PLAN = """
[study]
updates = 1_000
eval_every = 250
episodes = 2
seeds = [0, 1]

[data.replay]
task = "hopper-medium-replay-v2"

[data.medium]
task = "hopper-medium-v2"

[data.cheetah]
task = "halfcheetah-medium-v2"
max_episode_steps = 20

[methods.bc]
depth = 1
width = 8

[methods.awr]
iterations = 2
"""


def cells(text: str = PLAN) -> tuple[Cell, ...]:
    return study_of(tomllib.loads(text), "study").cells


def test_sizes_are_those_of_the_task():
    by_name = {cell.name: cell for cell in cells()}
    replay, cheetah = sizes_of(by_name["replay/bc"]), sizes_of(by_name["cheetah/bc"])
    assert replay.spec == Spec(11, 3) and replay.rows == TYPICAL_ROWS  # the catalogue does not say how many
    assert cheetah.spec == Spec(17, 6) and cheetah.environment is not None
    assert cheetah.environment.max_episode_steps == 20


def test_equal_programs_are_measured_once(monkeypatch):
    """Presets differ between tasks in real-valued fields, which are no other program; sizes are."""
    measured: list[str] = []

    def fake(cell: Cell, sizes: RunSizes) -> Seconds:
        measured.append(cell.name)
        return Seconds(0.001, 60.0, 3600.0)

    monkeypatch.setattr(estimate, "measure", fake)
    monkeypatch.setattr(estimate, "sizes_of", lambda cell: sizes_of(cell)._replace(rows=1000))
    found = list(times_of([cell for cell in cells() if cell.entry == "bc"]))
    assert measured == ["replay/bc", "cheetah/bc"] and len(found) == 3
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(time_table(found, 3))
    text = console.export_text()
    assert "training 0 h 03 min, evaluations at most 3 h 00 min" in text and "1000" in text


def test_it_is_measured_in_the_precision_of_the_plan(monkeypatch):
    """Products in another precision are another program."""
    exact = cells(PLAN.replace("episodes = 2", 'episodes = 2\nprecision = "float32"'))
    pair = [next(cell for cell in each if cell.name == "replay/bc") for each in (cells(), exact)]
    asked: list[str] = []

    def in_precision(algorithm, precision):
        asked.append(precision)
        return algorithm

    monkeypatch.setattr(estimate, "in_precision", in_precision)
    monkeypatch.setattr(
        estimate, "time_stages", lambda program: ([StageTiming(1.0, 1, 0.0, 0.0, 0.001)], program.init())
    )
    monkeypatch.setattr(estimate, "_evaluation", lambda program, state, sizes, episodes: 10.0)
    assert all(found.seconds is not None for found in times_of(pair))
    assert set(asked) == {"device", "float32"}


def test_what_cannot_be_measured_is_told():
    missing = PLAN.replace('task = "hopper-medium-v2"', 'dataset = "no/such.hdf5"')
    found = list(times_of([cell for cell in cells(missing) if cell.name == "medium/bc"]))
    assert found[0].seconds is None and "no/such.hdf5" in found[0].why_not


@pytest.mark.parametrize("name", ["bc", "awr"])
def test_a_measurement_counts_updates_stages_and_evaluations(name, monkeypatch):
    """By a clock that stands still but for what is asked: here only how the parts are put together."""
    (cell,) = (cell for cell in cells() if cell.name == f"cheetah/{name}")
    sizes = RunSizes(Spec(3, 1), 4_000, None)
    stages = [StageTiming(0.25, 2, 0.5, 3.0, 0.002), StageTiming(0.75, 1, 0.0, 1.0, 0.004)]
    monkeypatch.setattr(estimate, "time_stages", lambda program: (stages, program.init()))
    monkeypatch.setattr(estimate, "_evaluation", lambda program, state, sizes, episodes: 10.0)
    seconds = measure(cell, sizes)
    assert seconds.per_update == pytest.approx(0.0035)
    # 1,000 updates, two beginnings of half a second on half of the rows, two compilations; evaluations at 250 ... 1000
    assert seconds.training == pytest.approx(3.5 + 2 * 0.5 * 2 + 4.0)
    assert seconds.evaluations == pytest.approx(40.0)


def test_a_further_rule_costs_as_much_again(monkeypatch):
    text = PLAN + "[methods.diffcps]\n"
    monkeypatch.setattr(estimate, "time_stages", lambda program: ([StageTiming(1.0, 1, 0.0, 0.0, 0.001)], ()))
    monkeypatch.setattr(estimate, "_evaluation", lambda program, state, sizes, episodes: 10.0)
    found = {}
    for words in ("", 'also_act = ["sample", "argmax_q"]\n'):
        (cell,) = (
            each
            for each in cells(text.replace("episodes = 2\n", f"episodes = 2\n{words}"))
            if each.name == "replay/diffcps"
        )
        found[words] = measure(cell, RunSizes(Spec(3, 1), 4_000, None)).evaluations
    assert list(found.values()) == pytest.approx([40.0, 120.0])


def test_a_measurement_in_an_environment(monkeypatch):
    (cell,) = (cell for cell in cells() if cell.name == "cheetah/bc")
    sizes = RunSizes(Spec(4, 1), 2_000, EnvironmentSpec("InvertedPendulum-v5", max_episode_steps=20))
    monkeypatch.setattr(estimate, "_environment_step", lambda environment: (20, 0.5))
    seconds = measure(cell, sizes)
    # four evaluations of 20 steps of two seeds and two episodes, half a second each, and what the policy takes
    assert seconds.evaluations > 4 * 20 * 4 * 0.5
    assert seconds.training > 1_000 * seconds.per_update > 0


def test_a_step_of_an_environment_is_timed():
    limit, seconds = estimate._environment_step(EnvironmentSpec("InvertedPendulum-v5", max_episode_steps=20))
    assert limit == 20 and seconds > 0
