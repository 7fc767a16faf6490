"""A bound that cannot be met is told from one that is met, is being approached, or does not bind."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from diffcps.algorithms import bear, cql, diffcps
from diffcps.records.folder import RunFolder
from diffcps.records.record import Measurement, RunRecord, Summary
from diffcps.records.settings import Settings
from diffcps.run.bounds import LEAST_ROWS, stands_above, unmet_bounds, unmet_line
from diffcps.run.train import summarise
from diffcps.types import Configuration, DatasetInfo, Reading
from tests.run.test_folder import record_of

ROWS = 60
STEP = np.arange(ROWS)
RISING = 1 + 0.01 * STEP
FLOOR = 0.11 + 0.5 * np.exp(-STEP / 3) + 0.0005 * np.random.default_rng(0).normal(size=ROWS)
"""A loss that falls to 0.11 and stays there, but for noise."""


def verdict(values: np.ndarray, multipliers: np.ndarray, bound: float = 0.05) -> bool:
    return stands_above(values.tolist(), multipliers.tolist(), bound)


def test_a_metric_that_stands_still_above_its_bound():
    assert verdict(FLOOR, RISING)
    assert verdict(FLOOR, np.minimum(RISING, 1.2))  # the multiplier has come to its upper end
    assert verdict(FLOOR, np.maximum(3 - 0.2 * STEP, RISING))  # it fell at first, when Q was small
    assert verdict(FLOOR - 0.0001 * STEP, RISING)  # it falls, but 0.06 are missing
    assert verdict(FLOOR, RISING, 0.1)


@pytest.mark.parametrize(
    ("values", "multipliers", "bound"),
    [
        (FLOOR, RISING, 0.2),  # met
        (0.4 - 0.005 * STEP, RISING, 0.05),  # on its way: 0.3 to 0.1 in the last half
        (FLOOR - 0.0003 * STEP, RISING, 0.085),  # the same fall as would be nothing further up
        (FLOOR, 3 - 0.01 * STEP, 0.05),  # the multiplier falls
        (FLOOR, np.full(ROWS, 0.3), 0.05),  # it lies at an end from the start
        (FLOOR, np.maximum(3 - 0.2 * STEP, 0.3), 0.05),  # it has fallen to its lower end
        (FLOOR, np.where(STEP == 50, RISING - 0.02, RISING), 0.05),  # it falls once
        (FLOOR, RISING, math.inf),
    ],
)
def test_others(values: np.ndarray, multipliers: np.ndarray, bound: float):
    assert not verdict(values, multipliers, bound)


def test_a_bound_that_was_met_for_a_moment():
    values, rising = np.full(400, 0.11), np.arange(400.0)  # so many rows that one of them is little noise
    assert verdict(values, rising)
    values[250] = 0.049
    assert not verdict(values, rising)


def test_where_noise_could_hide_a_fall_nothing_is_said():
    loud = FLOOR + 0.02 * np.random.default_rng(1).normal(size=ROWS)
    assert (loud > 0.04).all()
    assert not verdict(loud, RISING, 0.04)


def test_of_few_rows_nothing_is_said():
    rising = [float(row) for row in range(2 * LEAST_ROWS)]
    assert stands_above([0.11] * len(rising), rising, 0.05)
    assert not stands_above([0.11] * (len(rising) - 1), rising[1:], 0.05)
    assert not stands_above([], [], 0.05)


# --- Runs ---

Course = Callable[[int], dict[str, float | None]]


def log(record: RunRecord, courses: Mapping[int, Course], rows: int = ROWS) -> list[Measurement]:
    """A row of each member, by its index, every ten updates."""
    return [
        Measurement(10 * (row + 1), member, courses[member.index](row), 50.0)
        for row in range(rows)
        for member in record.members
        if member.index in courses
    ]


def unmet(row: int) -> dict[str, float | None]:
    return {"actor/bc_loss": float(FLOOR[row]), "dual/multiplier": float(RISING[row]), "actor/mmd": float(FLOOR[row])}


def met(row: int) -> dict[str, float | None]:
    return unmet(row) | {"dual/multiplier": 3 - 0.01 * row}


def run_of(config: Configuration, algorithm: str = "diffcps", **changes: Any) -> RunRecord:
    return record_of(config=config, algorithm=algorithm, **({"sweep": {}} | changes))


def test_members_have_their_own_bounds():
    record = run_of(diffcps.Config(kappa=0.03), sweep={"kappa": (0.03, 0.2)})
    found = unmet_bounds(record, log(record, {0: unmet, 1: met, 2: unmet, 3: unmet}))
    assert [(row.member.index, row.metric, row.field, row.bound) for row in found] == [
        (0, "actor/bc_loss", "kappa", 0.03)
    ]
    assert found[0].value == pytest.approx(0.11, abs=0.001) and found[0].multiplier == pytest.approx(1.59)
    assert "L_c stands still at 0.11 above kappa 0.03 (multiplier 1.59, which only rose; 1 of 2 members)" in unmet_line(
        record, found
    )


def test_updates_that_report_nothing_are_passed_over():
    record = run_of(diffcps.Config(kappa=0.03), settings=Settings(seeds=(0,)))

    def now_and_then(row: int) -> dict[str, float | None]:
        return unmet(row) if row % 2 else {"actor/bc_loss": None, "dual/multiplier": 1.0}

    assert len(unmet_bounds(record, log(record, {0: now_and_then}))) == 1
    assert unmet_bounds(record, log(record, {0: lambda row: {"actor/bc_loss": None, "dual/multiplier": None}})) == []


def test_a_member_that_diverged_is_not_judged():
    record = run_of(diffcps.Config(kappa=0.03))
    rows = log(record, {0: unmet}, 40) + log(record, {1: met})
    assert unmet_bounds(record, rows) == []


def test_any_method_that_names_a_bound():
    record = run_of(bear.Config(), "bear", settings=Settings(seeds=(0,)))
    found = unmet_bounds(record, log(record, {0: unmet}))
    assert [(row.metric, row.field, row.bound) for row in found] == [("actor/mmd", "mmd_threshold", 0.05)]
    assert unmet_line(record, found).endswith("Take a larger mmd_threshold, or train longer")
    lagrange = run_of(cql.Config(lagrange=True), "cql", settings=Settings(seeds=(0,)))  # a multiplier, and no bound
    assert unmet_bounds(lagrange, log(lagrange, {0: unmet})) == []


def test_the_hint_is_a_command_for_the_runs_data():
    data = DatasetInfo("my logs/a.npz,b.npz", "0", reading=Reading(normalise_observation=True, action_low=(-2.0,)))
    record = run_of(diffcps.Config(width=64, num_steps=7), dataset=data, settings=Settings(seeds=(0,)))
    line = unmet_line(record, unmet_bounds(record, log(record, {0: unmet})))
    assert line.endswith(
        "What these data allow: diffcps kappa 'my logs/a.npz' b.npz --env Hopper-v5 --steps 7 --width 64 "
        "--action-low -2.0 --normalise-observation"
    )


def test_summary_and_table_say_it(tmp_path):
    folder, record = RunFolder(tmp_path), run_of(diffcps.Config(kappa=0.03), settings=Settings(seeds=(0,)))
    summary = summarise(record, [], log(record, {0: unmet}))
    folder.write_record(record)
    folder.write_summary(summary)
    assert len(summary.unmet_bounds) == 1 and folder.read_summary() == summary
    old = {name: value for name, value in summary.to_json().items() if name != "unmet_bounds"}
    assert Summary.from_json(old, record.members).unmet_bounds == ()
