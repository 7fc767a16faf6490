"""Naming what is wrong with stored steps that a simulator does not confirm.

`REPAIRS` undo one fault each that files are known to have: the one that makes the steps agree names the fault. Rewards
are compared by a line through stored and simulated ones, ends by asking the simulator.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from diffcps.envs.make import environment_spec, make_environment
from diffcps.simulator.simulator import FITS, ULPS, Prediction, Record, Simulator, agreement, probe, row_error, ulp
from diffcps.types import UserError

CLOSE = 1e-3
"""A step counts as close up to this error (in one-step changes of the worst entry)."""
TRIAL_ROWS = 48
"""Rows on which a repair is tried."""
ROUNDS = 3
"""Faults that may be found one after the other."""
FEWEST = 20
"""Below this number of steps nothing is judged."""


class Repaired(NamedTuple):
    """What a repair makes of a case, and the fault that it undoes, in words."""

    words: str
    simulator: Simulator
    record: Record


class Case(NamedTuple):
    """What a repair is given: the simulator, the data, and the rows on which it is tried."""

    simulator: Simulator
    record: Record
    rows: np.ndarray


# --- Faults of the steps ---


def _badness(simulator: Simulator, record: Record, rows: np.ndarray) -> tuple[float, float]:
    """Mean logarithm (base 10) of the rows' errors, and the share of rows that are not close."""
    rows = rows[np.isfinite(record.next_observation[rows]).all(axis=1)]
    if len(rows) < FEWEST // 2:
        return np.inf, 1.0
    error = row_error(simulator.predict(record, rows), record, rows)
    return float(np.log10(np.clip(error, 1e-6, 1e3)).mean()), float((error > CLOSE).mean())


def _better(new: tuple[float, float], old: tuple[float, float]) -> bool:
    """Ten times nearer on the (geometric) mean, or five times fewer steps that are not close."""
    return new[0] <= old[0] - 1.0 or (old[1] > 0.02 and new[1] <= old[1] / 5)


def step_faults(
    case: Case, arrays: dict[str, np.ndarray], stack: ExitStack, environment_id: str, seed: int
) -> tuple[list[str], Repaired]:
    """Faults of the steps in words, and the case with all of them undone."""
    repaired = Repaired("", case.simulator, case.record)
    faults: list[str] = []
    rows = _trial_rows(case, arrays["row_error"])
    others = [*_other_environments(environment_id, case.simulator, stack, seed)]
    for _ in range(ROUNDS):
        now = _badness(repaired.simulator, repaired.record, rows)
        if now[1] < 0.01:
            break
        here = Case(repaired.simulator, repaired.record, rows)
        candidates = [repair for make in REPAIRS for repair in make(here)]
        candidates += [Repaired(words, simulator, repaired.record) for words, simulator in others]
        scored = [(_badness(candidate.simulator, candidate.record, rows), candidate) for candidate in candidates]
        scored = [(score, candidate) for score, candidate in scored if _better(score, now)]
        if not scored:
            break
        least = min(score[0] for score, _ in scored)
        best = next(candidate for score, candidate in scored if score[0] <= least + 0.3)  # of equals the first
        faults.append(best.words)
        repaired = best
    return faults, repaired


def _trial_rows(case: Case, error: np.ndarray) -> np.ndarray:
    """Rows in the midst of episodes and far from every clip; half of them among those that do not agree."""
    record, clip = case.record, case.simulator.layout.clip
    inside = ~record.end[case.rows[:, None] + np.arange(-2, 2)].any(axis=1)
    fine = inside & (np.abs(record.observation[case.rows]) < 0.8 * clip).all(axis=1)
    rows, error = (case.rows[fine], error[fine]) if fine.sum() >= TRIAL_ROWS else (case.rows, error)
    wrong, right = rows[error > CLOSE], rows[error <= CLOSE]
    half = max(TRIAL_ROWS // 2, TRIAL_ROWS - len(right))
    return np.sort(np.concatenate([_spread(wrong, half), _spread(right, TRIAL_ROWS - min(half, len(wrong)))]))


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    return rows if len(rows) <= count else rows[np.linspace(0, len(rows) - 1, count).astype(int)]


def normalised(record: Record) -> str | None:
    """The fault that observations are normalised, in words; None where they are not."""
    mean, std = record.observation.mean(axis=0), record.observation.std(axis=0)
    if (np.abs(mean) < 0.02).all() and (np.abs(std - 1) < 0.05).all():
        return "observations are normalised (mean 0, deviation 1 in every entry): store them in the environment's units"
    return None


def other_rows_after(case: Case) -> Iterator[Repaired]:
    """The next observation belongs to another row."""
    after = case.record.next_observation
    for stored, words in (
        (np.roll(after, 1, axis=0), "each row holds that of the row after it"),
        (np.roll(after, -1, axis=0), "each row holds that of the row before it, which is its own observation"),
    ):
        yield Repaired(
            f"next observations are off by one: {words}", case.simulator, case.record._replace(next_observation=stored)
        )


def other_rows_actions(case: Case) -> Iterator[Repaired]:
    """The action belongs to another row."""
    for shift, words in ((1, "after"), (-1, "before")):
        action = np.roll(case.record.action, -shift, axis=0)
        yield Repaired(
            f"actions are off by one: the action of a row is stored in the row {words} it",
            case.simulator,
            case.record._replace(action=action),
        )


def changed_actions(case: Case) -> Iterator[Repaired]:
    """Actions negated, swapped in two dimensions, or scaled from the environment's box."""
    record, size = case.record, case.record.action.shape[1]

    def changed(words: str, action: np.ndarray) -> Repaired:
        return Repaired(f"actions are {words}", case.simulator, record._replace(action=action.astype(np.float32)))

    for i, j in combinations(range(size), 2):
        order = np.arange(size)
        order[[i, j]] = j, i
        yield changed(f"swapped: dimensions {i} and {j}", record.action[:, order])
    for i in range(size):
        yield changed(f"negated in dimension {i}", record.action * np.where(np.arange(size) == i, -1, 1))
    if size > 1:
        yield changed("negated in every dimension", -record.action)
    box: Any = case.simulator.environment.action_space
    half, middle = (box.high - box.low) / 2, (box.high + box.low) / 2
    if not np.allclose(half, 1) or not np.allclose(middle, 0):
        yield changed("scaled from the environment's box to [-1, 1]", middle + half * record.action)


def shifted_observations(case: Case) -> Iterator[Repaired]:
    """A constant is added to entries of both observations, of the first, or of the next one.

    The constant is found by Gauss-Newton on the errors of a few rows, in which large errors count little: what is left
    of a step after a shift of both is f(s - c, a) + c - s', which vanishes at the right c.
    """
    record, simulator = case.record, case.simulator
    for which, first, second in (("both observations", True, True), ("observations", True, False)):
        offset = _fit_offset(case, first, second)
        if offset is not None:
            yield Repaired(
                f"{which} are shifted: {_offset_words(simulator, offset)}",
                simulator,
                record._replace(
                    observation=(record.observation - offset).astype(np.float32) if first else record.observation,
                    next_observation=record.next_observation - offset * second,
                ),
            )
    predicted = simulator.predict(record, case.rows)
    offset = np.median(record.next_observation[case.rows] - predicted.next_observation, axis=0)
    offset = np.where(np.abs(offset) > CLOSE * record.scale, offset, 0.0)
    if offset.any():
        yield Repaired(
            f"next observations are shifted: {_offset_words(simulator, offset)}",
            simulator,
            record._replace(next_observation=record.next_observation - offset),
        )


def following_observation(case: Case) -> Iterator[Repaired]:
    """The next observation is of no use, but the following row's observation is."""
    after = np.roll(case.record.observation, -1, axis=0)
    words = "next observations are wrong: the following row's observation is the right one"
    yield Repaired(words, case.simulator, case.record._replace(next_observation=after))


REPAIRS: tuple[Callable[[Case], Iterator[Repaired]], ...] = (
    other_rows_after,
    other_rows_actions,
    changed_actions,
    shifted_observations,
    following_observation,
)


def _fit_offset(case: Case, first: bool, second: bool) -> np.ndarray | None:
    """The constant c (obs,) that makes the steps agree when taken off; None where none makes them nearer."""
    record, simulator, scale = case.record, case.simulator, case.record.scale
    size = len(scale)
    rows = case.rows
    step = 1e-4 * np.maximum(scale, 1e-3)

    def remains(offset: np.ndarray) -> np.ndarray:
        moved = record._replace(observation=record.observation.astype(np.float64) - offset)
        after = simulator.predict(moved, rows).next_observation
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


def _offset_words(simulator: Simulator, offset: np.ndarray) -> str:
    names = simulator.names()
    return ", ".join(
        f"entry {i}{f' ({names[i]})' if names[i] else ''} by {offset[i]:+.4g}" for i in np.flatnonzero(offset)
    )


# --- Other environments ---


def _other_environments(
    environment_id: str, simulator: Simulator, stack: ExitStack, seed: int
) -> Iterator[tuple[str, Simulator]]:
    """Other versions of the same robot with the same sizes, and other frame skips of this one."""
    for other in other_versions(environment_id):
        made = stack.enter_context(closing(_make_quietly(other)))
        yield f"the data are from another version of the environment, {other}", probe(made, seed)
    own = getattr(simulator.environment.unwrapped, "frame_skip", None)
    for skip in (1, 2, 3, 4, 5, 8, 10):
        if own is not None and skip != own:
            made: Any = stack.enter_context(closing(_make_quietly(environment_id)))
            made.reset(seed=seed)
            made.unwrapped.frame_skip = skip
            words = f"the data were recorded with a frame skip of {skip}, and the environment has {own}"
            yield words, replace(simulator, environment=made)


def other_versions(environment_id: str) -> list[str]:
    """Ids of the same name with another version number that can be made and have the same sizes."""
    import gymnasium

    spec = environment_spec(environment_id)
    name = re.sub(r"-v\d+$", "", environment_id)
    fitting = []
    for other in gymnasium.registry:
        if other == environment_id or re.sub(r"-v\d+$", "", other) != name:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sizes = environment_spec(other)
        except UserError:  # it ran on mujoco-py
            continue
        if sizes[:2] == spec[:2]:
            fitting.append(other)
    return fitting


def _make_quietly(environment_id: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_environment(environment_id)


def versions_beside(
    case: Case, ends: np.ndarray, environment_id: str, stack: ExitStack, seed: int
) -> list[dict[str, Any]]:
    """How the other versions of the environment do on some of the rows and on terminal ones."""
    found = []
    for other in other_versions(environment_id):
        simulator = probe(stack.enter_context(closing(_make_quietly(other))), seed)
        rng = np.random.default_rng(seed)
        numbers: dict[str, Any] = {"environment": other, "reward_at_terminals": None}
        for names, rows in (
            (("agree", "reward"), _spread(case.rows, 300)),
            (("", "reward_at_terminals"), _spread(ends, 100)),
        ):
            if len(rows):
                shares = (
                    float(x.mean()) for x in agreement(simulator.predict(case.record, rows, rng), case.record, rows)
                )
                numbers |= dict(zip(names, shares, strict=True))
        numbers.pop("", None)
        found.append(numbers)
    return found


# --- Faults of rewards and ends ---


def reward_faults(
    case: Case, predicted: Prediction, agree: np.ndarray, ends: np.ndarray, at_ends: Prediction, slack: float
) -> list[str]:
    """What is wrong with the rewards, in words; judged where the steps agree, unless hardly any do.

    `slack` multiplies what rounding may explain.
    """
    known = agree.sum() >= FEWEST  # otherwise only a law that nearly all rewards obey is named
    judged = (agree if known else np.ones_like(agree)) & ~case.record.terminal[case.rows]
    if judged.sum() < FEWEST:
        return []
    rows, reward = case.rows[judged], predicted.reward[judged]
    tolerance = slack * predicted.reward_tolerance(case.record.reward[case.rows])[judged]
    stored = case.record.reward[rows].astype(np.float64)

    def agrees(with_what: np.ndarray) -> float:
        return float((np.abs(reward - with_what) <= tolerance).mean())

    if agrees(stored) >= FITS:
        if not known:
            return []
        off = case.record.reward[ends] - at_ends.reward
        within = np.abs(off) <= slack * at_ends.reward_tolerance(case.record.reward[ends])
        if not len(ends) or within.mean() >= 0.9:
            return []
        return [
            f"rewards of terminal rows differ from the simulator's by {np.median(off):+.3g} (median), others agree: "
            "versions of an environment differ in what they pay at the end (Gymnasium's v4 of Hopper and Walker2d pays "
            "the healthy reward there, v5 does not)"
        ]
    if (stored == stored[0]).all():
        return [f"rewards are all the same ({stored[0]:g}), those of the simulator are not"]
    inside = ~case.record.end[rows[:, None] + np.arange(-1, 2)].any(axis=1)
    for offset, words in ((1, "after"), (-1, "before")):
        other = case.record.reward[rows + offset]
        if (np.abs(reward - other) <= tolerance)[inside].mean() > 0.9:
            return [f"rewards are off by one: the reward of a step is stored in the row {words} it"]
    box: Any = case.simulator.environment.action_space
    clipped = case.record._replace(action=np.clip(case.record.action, box.low, box.high))
    if (clipped.action != case.record.action).any():
        shares = agreement(case.simulator.predict(clipped, rows, np.random.default_rng(0)), clipped, rows)[1]
        if shares.mean() >= FITS:
            return ["rewards count actions as cut to the environment's box, though they are stored uncut"]
    factor, constant, share = _affine(reward, stored, tolerance)
    if share >= 0.95:
        parts = [f"multiplied by {factor:.6g}"] * (abs(factor - 1) > 1e-4)
        parts += [f"shifted by {constant:+.6g}"] * (abs(constant) > 1e-4)
        if parts:
            return [f"rewards are {' and '.join(parts)}, measured against the simulator's"]
    if agree.mean() < FITS:  # what moves steps moves rewards
        return []
    off = np.abs(stored - reward)
    return [
        f"rewards differ by {np.median(off):.3g} in the median ({off.max():.3g} at most); no simple law explains it"
    ]


def _affine(reward: np.ndarray, stored: np.ndarray, tolerance: np.ndarray) -> tuple[float, float, float]:
    """a and b of stored = a reward + b, fitted to the steps that follow it best, and the share that does."""
    kept = np.ones(len(reward), bool)
    factor, constant = 1.0, 0.0
    for _ in range(10):
        if np.ptp(reward[kept]) > 0:
            left = np.stack([reward[kept], np.ones(kept.sum())], axis=1)
            factor, constant = (float(x) for x in np.linalg.lstsq(left, stored[kept])[0])
        else:
            factor, constant = 1.0, float(np.median(stored - reward))
        off = np.abs(stored - factor * reward - constant)
        kept = off <= np.quantile(off, 0.8)
    rounding = ULPS * ulp(stored)
    return factor, constant, float((off <= 2 * abs(factor) * tolerance + rounding).mean())


def terminal_faults(numbers: dict[str, Any], trusted: Any) -> list[str]:
    """`trusted`: enough steps agree for the simulator to be asked about ends."""
    faults = []
    if not (numbers["stored"] and trusted) and 0 < numbers["in_file"] == numbers["in_file_at_time_limit"]:
        faults.append(
            f"all {numbers['in_file']} terminals stand at the limit of {numbers['time_limit']} steps, and the "
            "simulator cannot be asked: they are probably timeouts"
        )
    if not trusted:
        return faults
    missing = numbers["stored"] - numbers["confirmed"]
    if numbers["at_time_limit"] and numbers["at_time_limit"] >= 0.8 * missing:
        faults.append(
            f"{numbers['at_time_limit']} of {numbers['stored']} terminals looked at stand at the time limit of "
            f"{numbers['time_limit']} steps, where the simulator goes on: they are timeouts, and as terminals they "
            "teach that the future is worth nothing"
        )
    elif missing > 0.02 * numbers["stored"]:
        faults.append(f"{missing} of {numbers['stored']} terminals looked at are no ends for the simulator")
    if numbers["ended_by_simulator"] > 0.01 * numbers["going_on"]:
        faults.append(
            f"the simulator ends at {numbers['ended_by_simulator']} of {numbers['going_on']} steps that are not "
            "terminal in the file"
        )
    return faults
