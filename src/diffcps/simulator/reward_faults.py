"""Naming what is wrong with stored rewards and ends, where the simulator's steps can be trusted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diffcps.envs.make import boxes
from diffcps.simulator.faults import FEWEST
from diffcps.simulator.probe import FITS
from diffcps.simulator.replay import ULPS, Case, Comparison, ulp


def reward_faults(case: Case, found: Comparison, at_ends: Comparison, slack: float) -> list[str]:
    """What is wrong with the rewards; judged where the steps agree, unless hardly any do.

    `found` compares the rows of `case`, `at_ends` terminal rows; `slack` multiplies what rounding may explain.
    """
    known = found.agree.sum() >= FEWEST  # otherwise only a law that nearly all rewards obey is named
    judged = (found.agree if known else np.ones_like(found.agree)) & ~case.record.terminal[case.rows]
    if judged.sum() < FEWEST:
        return []
    rows, stored, simulated = case.rows[judged], found.reward[judged], found.simulated_reward[judged]
    tolerance = slack * found.reward_tolerance[judged]
    if (np.abs(simulated - stored) <= tolerance).mean() >= FITS:
        return _fault_at_ends(at_ends, slack) if known else []
    if (stored == stored[0]).all():
        return [f"rewards are all the same ({stored[0]:g}), those of the simulator are not"]
    inside = ~case.record.end[rows[:, None] + np.arange(-1, 2)].any(axis=1)
    for offset, side in ((1, "after"), (-1, "before")):
        other = case.record.reward[rows + offset]
        if (np.abs(simulated - other) <= tolerance)[inside].mean() > 0.9:
            return [f"rewards are off by one: the reward of a step is stored in the row {side} it"]
    if _count_cut_actions(Case(case.simulator, case.record, rows)):
        return ["rewards count actions as cut to the environment's box, though they are stored uncut"]
    if fault := _affine_fault(simulated, stored, tolerance):
        return [fault]
    if found.agree.mean() < FITS:  # what moves steps moves rewards
        return []
    off = np.abs(stored - simulated)
    return [
        f"rewards differ by {np.median(off):.3g} in the median ({off.max():.3g} at most); no simple law explains it"
    ]


def _fault_at_ends(at_ends: Comparison, slack: float) -> list[str]:
    off = at_ends.reward - at_ends.simulated_reward
    if not len(off) or (np.abs(off) <= slack * at_ends.reward_tolerance).mean() >= 0.9:
        return []
    return [
        f"rewards of terminal rows differ from the simulator's by {np.median(off):+.3g} (median), others agree: "
        "versions of an environment differ in what they pay at the end (Gymnasium's v4 of Hopper and Walker2d pays "
        "the healthy reward there, v5 does not)"
    ]


def _count_cut_actions(case: Case) -> bool:
    box = boxes(case.simulator.environment).action
    clipped = case.record._replace(action=np.clip(case.record.action, box.low, box.high))
    if (clipped.action == case.record.action).all():
        return False
    again = Case(case.simulator, clipped, case.rows).compare(np.random.default_rng(0))
    return bool(again.reward_agrees.mean() >= FITS)


def _affine_fault(simulated: np.ndarray, stored: np.ndarray, tolerance: np.ndarray) -> str | None:
    """That stored = a simulated + b, fitted to the steps that follow it best, where nearly all do."""
    kept = np.ones(len(simulated), bool)
    factor, constant, off = 1.0, 0.0, np.zeros(0)
    for _ in range(10):
        if np.ptp(simulated[kept]) > 0:
            left = np.stack([simulated[kept], np.ones(kept.sum())], axis=1)
            factor, constant = (float(x) for x in np.linalg.lstsq(left, stored[kept])[0])
        else:
            factor, constant = 1.0, float(np.median(stored - simulated))
        off = np.abs(stored - factor * simulated - constant)
        kept = off <= np.quantile(off, 0.8)
    if (off <= 2 * abs(factor) * tolerance + ULPS * ulp(stored)).mean() < 0.95:
        return None
    parts = [f"multiplied by {factor:.6g}"] * (abs(factor - 1) > 1e-4)
    parts += [f"shifted by {constant:+.6g}"] * (abs(constant) > 1e-4)
    return f"rewards are {' and '.join(parts)}, measured against the simulator's" if parts else None


@dataclass(frozen=True)
class Terminals:
    """Ends of episodes: counts of rows."""

    stored: int
    """Terminal rows that the simulator was asked about."""
    confirmed: int
    at_time_limit: int
    """Not confirmed, and at the time limit."""
    time_limit: int | None
    reward_agrees: float | None
    going_on: int
    """Rows asked about that are not terminal in the file."""
    ended_by_simulator: int
    """Of those."""
    in_file: int
    """All terminal rows of the file."""
    in_file_at_time_limit: int


def terminal_faults(ends: Terminals, trusted: bool) -> list[str]:
    """What is wrong with the ends. `trusted`: enough steps agree for the simulator to be asked about ends."""
    faults = []
    if not (ends.stored and trusted) and 0 < ends.in_file == ends.in_file_at_time_limit:
        faults.append(
            f"all {ends.in_file} terminals stand at the limit of {ends.time_limit} steps, and the "
            "simulator cannot be asked: they are probably timeouts"
        )
    if not trusted:
        return faults
    missing = ends.stored - ends.confirmed
    if ends.at_time_limit and ends.at_time_limit >= 0.8 * missing:
        faults.append(
            f"{ends.at_time_limit} of {ends.stored} terminals looked at stand at the time limit of "
            f"{ends.time_limit} steps, where the simulator goes on: they are timeouts, and as terminals they "
            "teach that the future is worth nothing"
        )
    elif missing > 0.02 * ends.stored:
        faults.append(f"{missing} of {ends.stored} terminals looked at are no ends for the simulator")
    if ends.ended_by_simulator > 0.01 * ends.going_on:
        faults.append(
            f"the simulator ends at {ends.ended_by_simulator} of {ends.going_on} steps that are not "
            "terminal in the file"
        )
    return faults
