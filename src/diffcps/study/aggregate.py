"""A study in a few numbers for each method: aggregates over all data, with intervals, or why there are none."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from diffcps.evaluation.statistics import (
    Estimate,
    Profile,
    all_runs,
    estimate,
    interquartile_mean,
    mean,
    performance_profile,
    probability_of_improvement,
)
from diffcps.study.compare import Protocol, Row, ScoreTable, span_text
from diffcps.types import UserError

MIN_SEEDS = 3
"""On each set of data: with two, the resampled mean of a task has three values."""
RESAMPLES = 2000
LEVEL = 0.95
SEED = 0
"""Of the bootstrap."""
NUM_THRESHOLDS = 101
HIGHEST_THRESHOLD = 200.0
"""Of performance profiles: twice the expert's score."""


class Aggregate(NamedTuple):
    """A method over all data."""

    label: str
    mean: Estimate
    interquartile_mean: Estimate
    improvement: Estimate | None
    """Probability of improvement over the reference method; None for the reference itself."""
    profile: Profile


class Aggregates(NamedTuple):
    """All methods that have enough seeds on all data."""

    protocol: Protocol
    data: tuple[str, ...]
    rows: tuple[Aggregate, ...]
    reference: str | None
    """The method that the others are compared with; None where it is not among the rows."""
    fewest_seeds: int
    """That a row has on a set of data."""
    seeds: str
    """On each set of data: "5", or "3 to 5"."""
    thresholds: Float[np.ndarray, " thresholds"]
    remarks: tuple[str, ...]
    """Who is missing, and why, in parts of a sentence."""


def aggregates_of(table: ScoreTable, reference: str | None = None) -> Aggregates:
    """Over the normalised scores of a table; without rows where there are none, or too few seeds.

    `reference` is the label of a row, by default that of the first one. Raises `UserError` for another.
    """
    compared = [row for row in table.rows if row.is_compared]
    labels = [row.label for row in compared]
    if reference is not None and reference not in labels:
        raise UserError(f"the study has no row {reference} to compare with; its rows are {', '.join(labels)}")
    columns = [number for number, column in enumerate(table.columns) if column.unit == "normalised"]
    thresholds = np.linspace(0.0, 100.0, NUM_THRESHOLDS)
    found = Aggregates(table.protocol, tuple(table.columns[i].data for i in columns), (), None, 0, "", thresholds, ())
    if not columns:
        return found._replace(remarks=("no data have normalised scores, without which tasks cannot be pooled",))
    why = {row.label: _why_not(row, table, columns) for row in compared}
    rows = [row for row in compared if why[row.label] is None]
    reasons = [reason for reason in dict.fromkeys(why.values()) if reason is not None]
    remarks = [f"{', '.join(label for label in labels if why[label] == reason)} ({reason})" for reason in reasons]
    if not rows:
        return found._replace(remarks=tuple(remarks))
    name = labels[0] if reference is None else reference
    scores = {row.label: [_runs(row, number) for number in columns] for row in rows}
    counts = [len(runs) for own in scores.values() for runs in own]
    thresholds = _thresholds(np.concatenate([all_runs(own) for own in scores.values()]))
    return found._replace(
        rows=tuple(
            Aggregate(
                label,
                estimate(own, mean, SEED, RESAMPLES, LEVEL),
                estimate(own, interquartile_mean, SEED, RESAMPLES, LEVEL),
                None
                if label == name or name not in scores
                else probability_of_improvement(own, scores[name], SEED, RESAMPLES, LEVEL),
                performance_profile(own, thresholds, SEED, RESAMPLES, LEVEL),
            )
            for label, own in scores.items()
        ),
        reference=name if name in scores else None,
        fewest_seeds=min(counts),
        seeds=span_text(counts),
        thresholds=thresholds,
        remarks=tuple(remarks),
    )


def held_at_best(seeds: int, level: float = LEVEL) -> float:
    """The share of intervals of a mean of normal scores that hold it, at best, with so many seeds on each task.

    See `diffcps.evaluation.statistics`.
    """
    quantile = NormalDist().inv_cdf((1 + level) / 2)
    return math.erf(quantile * math.sqrt((seeds - 1) / seeds) / math.sqrt(2))


def _why_not(row: Row, table: ScoreTable, columns: Sequence[int]) -> str | None:
    """Why a row cannot be pooled; None where it can."""
    without = [table.columns[number].data for number in columns if row.entries[number].mean is None]
    if without:
        return f"without a score on {', '.join(without)}"
    few = [number for number in columns if len(row.entries[number].scores) < MIN_SEEDS]
    if few:
        counts = span_text(len(row.entries[number].scores) for number in few)
        where = ", ".join(table.columns[number].data for number in few)
        return f"with {counts} seeds on {where}, where intervals need {MIN_SEEDS}"
    return None


def _runs(row: Row, column: int) -> np.ndarray:
    return np.array(list(row.entries[column].scores.values()), float)


def _thresholds(scores: np.ndarray) -> np.ndarray:
    highest = min(max(10.0, 10 * math.ceil(scores.max() / 10)), HIGHEST_THRESHOLD)
    return np.linspace(0.0, highest, NUM_THRESHOLDS)
