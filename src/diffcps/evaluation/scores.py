"""Scores: what a table reports of one run, and which checkpoint each number stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffcps.types import UserError


class Score(NamedTuple):
    """A score and the evaluations (by their number of updates) that it was taken from."""

    updates: tuple[int, ...]
    score: float


class FourScores(NamedTuple):
    """Four honest answers to "how good is this run?"."""

    last: Score
    """The final evaluation."""
    best: Score
    """The evaluation with the highest mean return: the checkpoint is chosen by asking the environment."""
    mean_of_last: Score
    """Mean of the last k evaluations; `len(mean_of_last.updates)` says how many there were."""
    offline_selected: Score | None
    """The evaluation with the lowest `selection/loss`: chosen without the environment. None where no loss is finite."""


def four_scores(evaluations: Sequence[Mapping[str, Any]], k: int = 5) -> FourScores | None:
    """The four scores of one member, from its evaluations in order of update; None where there are none.

    An evaluation is a row `{"update": int, "returns": [...], "score": float, "diagnose": {"selection/loss": ...}}`,
    where `score` is the mean return. Scores come back in the unit of `score`. On ties the first evaluation
    wins, but the last one of equal losses: a loss that stands still says nothing against what was learnt since.
    """
    if not evaluations:
        return None
    if k < 1:
        raise UserError(f"the mean of the last k evaluations needs k >= 1, got {k}")

    tail = evaluations[-k:]
    best = max(evaluations, key=lambda row: row["score"])
    selectable = [row for row in evaluations if row["diagnose"]["selection/loss"] is not None]  # null: not finite
    selected = min(reversed(selectable), key=lambda row: row["diagnose"]["selection/loss"], default=None)
    return FourScores(
        last=_score([evaluations[-1]]),
        best=_score([best]),
        mean_of_last=_score(tail),
        offline_selected=None if selected is None else _score([selected]),
    )


def mean_and_std_over_members(values: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the first axis, [members, ...] -> [...]. Division by n, as papers' tables do."""
    values = np.asarray(values, float)
    return np.asarray(values.mean(0)), np.asarray(values.std(0))


def _score(rows: Sequence[Mapping[str, Any]]) -> Score:
    return Score(tuple(row["update"] for row in rows), float(np.mean([row["score"] for row in rows])))
