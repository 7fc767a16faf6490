"""Naming what is wrong with stored steps that a simulator does not confirm.

`REPAIRS` undo one fault each that files are known to have: the one that makes the steps agree names the fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import combinations
from typing import NamedTuple

import numpy as np

from diffcps.envs.make import boxes
from diffcps.simulator.record import Record
from diffcps.simulator.replay import Case, Simulator
from diffcps.simulator.versions import other_simulators, spread

CLOSE = 1e-3
"""A step counts as close up to this error (in one-step changes of the worst entry)."""
TRIAL_ROWS = 48
"""Rows on which a repair is tried."""
ROUNDS = 3
"""Faults that may be found one after the other."""
FEWEST = 20
"""Below this number of steps nothing is judged."""


class Repaired(NamedTuple):
    """A case with one fault undone, and that fault."""

    fault: str
    case: Case


class _Misfit(NamedTuple):
    log_error: float
    """Mean logarithm (base 10) of the rows' errors."""
    far: float
    """Share of rows that are not close."""


def _misfit(case: Case) -> _Misfit:
    rows = case.rows[np.isfinite(case.record.next_observation[case.rows]).all(axis=1)]
    if len(rows) < FEWEST // 2:
        return _Misfit(np.inf, 1.0)
    error = case._replace(rows=rows).compare().row_error
    return _Misfit(float(np.log10(np.clip(error, 1e-6, 1e3)).mean()), float((error > CLOSE).mean()))


def _better(new: _Misfit, old: _Misfit) -> bool:
    """Ten times nearer on the (geometric) mean, or five times fewer steps that are not close."""
    return new.log_error <= old.log_error - 1.0 or (old.far > 0.02 and new.far <= old.far / 5)


def step_faults(
    case: Case, row_error: np.ndarray, stack: ExitStack, environment_id: str, seed: int
) -> tuple[list[str], Case]:
    """Faults of the steps, and the case with all of them undone.

    `row_error` (n,) belongs to the rows of `case`; `stack` closes what is made here.
    """
    faults: list[str] = []
    trial = case._replace(rows=_trial_rows(case, row_error))
    others = [*other_simulators(environment_id, case.simulator, stack, seed)]
    for _ in range(ROUNDS):
        now = _misfit(trial)
        if now.far < 0.01:
            break
        candidates = [repaired for repair in REPAIRS for repaired in repair(trial)]
        candidates += [Repaired(fault, trial._replace(simulator=simulator)) for fault, simulator in others]
        scored = [(_misfit(candidate.case), candidate) for candidate in candidates]
        scored = [(score, candidate) for score, candidate in scored if _better(score, now)]
        if not scored:
            break
        least = min(score.log_error for score, _ in scored)
        best = next(candidate for score, candidate in scored if score.log_error <= least + 0.3)  # the first of equals
        faults.append(best.fault)
        trial = best.case
    return faults, trial._replace(rows=case.rows)


def _trial_rows(case: Case, error: np.ndarray) -> np.ndarray:
    """Rows in the midst of episodes and far from every clip; half of them among those that do not agree."""
    record, clip = case.record, case.simulator.layout.clip
    inside = ~record.end[case.rows[:, None] + np.arange(-2, 2)].any(axis=1)
    fine = inside & (np.abs(record.observation[case.rows]) < 0.8 * clip).all(axis=1)
    rows, error = (case.rows[fine], error[fine]) if fine.sum() >= TRIAL_ROWS else (case.rows, error)
    wrong, right = rows[error > CLOSE], rows[error <= CLOSE]
    half = max(TRIAL_ROWS // 2, TRIAL_ROWS - len(right))
    return np.sort(np.concatenate([spread(wrong, half), spread(right, TRIAL_ROWS - min(half, len(wrong)))]))


def normalised(record: Record) -> str | None:
    """The fault that observations are normalised; None where they are not."""
    mean, std = record.observation.mean(axis=0), record.observation.std(axis=0)
    if (np.abs(mean) < 0.02).all() and (np.abs(std - 1) < 0.05).all():
        return "observations are normalised (mean 0, deviation 1 in every entry): store them in the environment's units"
    return None


def other_rows_after(case: Case) -> Iterator[Repaired]:
    """The next observation belongs to another row."""
    for shift, which in (
        (1, "each row holds that of the row after it"),
        (-1, "each row holds that of the row before it, which is its own observation"),
    ):
        after = np.roll(case.record.next_observation, shift, axis=0)
        yield Repaired(
            f"next observations are off by one: {which}",
            case._replace(record=case.record._replace(next_observation=after)),
        )


def other_rows_actions(case: Case) -> Iterator[Repaired]:
    """The action belongs to another row."""
    for shift, side in ((1, "after"), (-1, "before")):
        fault = f"actions are off by one: the action of a row is stored in the row {side} it"
        action = np.roll(case.record.action, -shift, axis=0)
        yield Repaired(fault, case._replace(record=case.record._replace(action=action)))


def changed_actions(case: Case) -> Iterator[Repaired]:
    """Actions negated, swapped in two dimensions, or scaled from the environment's box."""
    stored, size = case.record.action, case.record.action.shape[1]

    def changed(how: str, action: np.ndarray) -> Repaired:
        record = case.record._replace(action=action.astype(np.float32))
        return Repaired(f"actions are {how}", case._replace(record=record))

    for i, j in combinations(range(size), 2):
        order = np.arange(size)
        order[[i, j]] = j, i
        yield changed(f"swapped: dimensions {i} and {j}", stored[:, order])
    for i in range(size):
        yield changed(f"negated in dimension {i}", stored * np.where(np.arange(size) == i, -1, 1))
    if size > 1:
        yield changed("negated in every dimension", -stored)
    box = boxes(case.simulator.environment).action
    half, middle = (box.high - box.low) / 2, (box.high + box.low) / 2
    if not np.allclose(half, 1) or not np.allclose(middle, 0):
        yield changed("scaled from the environment's box to [-1, 1]", middle + half * stored)


def shifted_observations(case: Case) -> Iterator[Repaired]:
    """A constant is added to entries of both observations, of the first, or of the next one.

    The constant is found by Gauss-Newton on the errors of a few rows, in which large errors count little: what is left
    of a step after a shift of both is f(s - c, a) + c - s', which vanishes at the right c.
    """
    record = case.record

    def shifted(which: str, offset: np.ndarray, first: bool, second: bool) -> Repaired:
        observation = (record.observation - offset).astype(np.float32) if first else record.observation
        moved = record._replace(observation=observation, next_observation=record.next_observation - offset * second)
        return Repaired(f"{which} are shifted: {_offset_text(case.simulator, offset)}", case._replace(record=moved))

    for which, second in (("both observations", True), ("observations", False)):
        offset = _fit_offset(case, second)
        if offset is not None:
            yield shifted(which, offset, True, second)
    offset = np.median(record.next_observation[case.rows] - case.predict().next_observation, axis=0)
    offset = np.where(np.abs(offset) > CLOSE * record.scale, offset, 0.0)
    if offset.any():
        yield shifted("next observations", offset, False, True)


def following_observation(case: Case) -> Iterator[Repaired]:
    """The next observation is of no use, but the following row's observation is."""
    fault = "next observations are wrong: the following row's observation is the right one"
    after = np.roll(case.record.observation, -1, axis=0)
    yield Repaired(fault, case._replace(record=case.record._replace(next_observation=after)))


REPAIRS: tuple[Callable[[Case], Iterator[Repaired]], ...] = (
    other_rows_after,
    other_rows_actions,
    changed_actions,
    shifted_observations,
    following_observation,
)


def _fit_offset(case: Case, second: bool) -> np.ndarray | None:
    """The constant c (obs,) that makes the steps agree when taken off observations and, with `second`, the next ones.

    None where none makes them nearer.
    """
    record, rows, scale = case.record, case.rows, case.record.scale
    size = len(scale)
    step = 1e-4 * np.maximum(scale, 1e-3)

    def remains(offset: np.ndarray) -> np.ndarray:
        moved = record._replace(observation=record.observation.astype(np.float64) - offset)
        after = case._replace(record=moved).predict().next_observation
        return (after + offset * second - record.next_observation[rows]) / scale

    def size_of(residual: np.ndarray) -> float:
        return float(np.log10(np.clip(np.abs(residual).max(axis=1), 1e-6, 1e3)).mean())

    offset, residual = np.zeros(size), remains(np.zeros(size))
    wrong = np.abs(residual).max(axis=1) > CLOSE
    if not np.isfinite(residual).all() or not wrong.any():
        return None
    for _ in range(8):
        slopes = np.stack([(remains(offset + step[j] * _unit(j, size)) - residual) / step[j] for j in range(size)], -1)
        weight = 1.0 / np.maximum(np.abs(residual).max(axis=1), 1e-4)
        weight = np.sqrt(weight)[:, None]
        left = (slopes * scale * weight[:, :, None]).reshape(-1, size)
        right = -(residual * weight).ravel()
        usable = np.isfinite(left).all(axis=1) & np.isfinite(right)
        change = scale * np.linalg.lstsq(left[usable], right[usable], rcond=1e-7)[0]
        for damping in (1.0, 0.5, 0.2, 0.05):
            trial = remains(offset + damping * change)
            if size_of(trial) < size_of(residual) - 1e-3:
                offset, residual = offset + damping * change, trial
                break
        else:
            break
    offset = np.where(np.abs(offset) > CLOSE * record.observation.std(axis=0), offset, 0.0)
    error = np.abs(remains(offset)).max(axis=1)
    # Offsets also absorb some of what other physics does; they count only where most of the wrong steps come out right.
    return offset if offset.any() and np.median(error[wrong]) <= CLOSE else None


def _unit(j: int, size: int) -> np.ndarray:
    return (np.arange(size) == j).astype(np.float64)


def _offset_text(simulator: Simulator, offset: np.ndarray) -> str:
    names = simulator.names()
    return ", ".join(
        f"entry {i}{f' ({names[i]})' if names[i] else ''} by {offset[i]:+.4g}" for i in np.flatnonzero(offset)
    )
