"""Scores: what a table reports of one run, and which checkpoint each number stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from diffcps.tasks.references import normalised_score
from diffcps.types import UserError


class Score(NamedTuple):
    """A score and the evaluations (by their number of updates) that it was taken from."""

    updates: tuple[int, ...]
    score: float
    normalised: float | None
    """Where the reference returns are known."""


class Scores(NamedTuple):
    """Four honest answers to "how good is this run?"."""

    last: Score
    """The final evaluation."""
    best: Score
    """The evaluation with the highest mean return: the checkpoint is chosen by asking the environment."""
    mean_of_last: Score
    """Mean of the last k evaluations; `len(mean_of_last.updates)` says how many there were."""
    offline_selected: Score | None
    """The evaluation with the lowest `selection/loss`: chosen without the environment. None where no loss is finite."""


def four_scores(
    updates: Sequence[int],
    scores: Sequence[float],
    losses: Sequence[float | None],
    reference: tuple[float, float] | None = None,
    k: int = 5,
) -> Scores | None:
    """The four scores of one member, from its evaluations in order of update; None where there are none.

    An evaluation is a number of updates, a mean return, and a `selection/loss` (None where it is not finite);
    `reference` has the returns of normalised score 0 and 100. On ties the first evaluation wins, but the last one of
    equal losses: a loss that stands still says nothing against what was learnt since. Raises `UserError` for k < 1.
    """
    if not scores:
        return None
    if k < 1:
        raise UserError(f"the mean of the last k evaluations needs k >= 1, got {k}")

    def score(rows: Sequence[int]) -> Score:
        mean = float(np.mean([scores[row] for row in rows]))
        normalised = None if reference is None else float(normalised_score(mean, reference))
        return Score(tuple(updates[row] for row in rows), mean, normalised)

    rows = range(len(scores))
    selectable = [(loss, -row) for row in rows if (loss := losses[row]) is not None]
    return Scores(
        last=score(rows[-1:]),
        best=score([max(rows, key=lambda row: scores[row])]),
        mean_of_last=score(rows[-k:]),
        offline_selected=score([-min(selectable)[1]]) if selectable else None,
    )


def scores_of_the_same(
    chosen: Scores, returns: Mapping[int, float], reference: tuple[float, float] | None = None
) -> Scores:
    """The scores of the evaluations that `chosen` was taken from, with other mean returns of theirs, by update: those
    of the same policies under another rule by which they act."""

    def score(of: Score) -> Score:
        mean = float(np.mean([returns[update] for update in of.updates]))
        return Score(of.updates, mean, None if reference is None else float(normalised_score(mean, reference)))

    selected = chosen.offline_selected
    return Scores(
        last=score(chosen.last),
        best=score(chosen.best),
        mean_of_last=score(chosen.mean_of_last),
        offline_selected=None if selected is None else score(selected),
    )


def mean_and_std_over_members(values: Sequence[float] | Sequence[Sequence[float]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the first axis, [members, ...] -> [...]. Division by n, as papers' tables do."""
    array = np.asarray(values, float)
    return np.asarray(array.mean(0)), np.asarray(array.std(0))
