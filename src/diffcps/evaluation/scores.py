"""Scores: what a table reports of one run, and which checkpoint each number stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from diffcps.tasks.references import normalised_score
from diffcps.types import UserError


class Score(NamedTuple):
    """A mean return, and the evaluations (by their number of updates) that it was taken from."""

    updates: tuple[int, ...]
    score: float
    normalised: float | None
    """Of `score`; None without reference returns."""


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

    Evaluation i came after `updates[i]` updates, has the mean return `scores[i]`, and the selection loss `losses[i]`,
    None where it was not finite. On ties the first evaluation wins, but the last one of equal losses: a loss that
    stands still says nothing against what was learnt since. `reference` holds the returns of normalised score 0 and
    100. Raises `UserError` for k < 1 and for reference returns that are no interval.
    """
    if not updates:
        return None
    if k < 1:
        raise UserError(f"the mean of the last k evaluations needs k >= 1, got {k}")

    def score(*indices: int) -> Score:
        mean = float(np.mean([scores[i] for i in indices]))
        normalised = None if reference is None else float(normalised_score(mean, reference))
        return Score(tuple(updates[i] for i in indices), mean, normalised)

    indices = range(len(updates))
    known = [(loss, -i) for i, loss in zip(indices, losses, strict=True) if loss is not None]
    return Scores(
        last=score(indices[-1]),
        best=score(max(indices, key=lambda i: scores[i])),
        mean_of_last=score(*indices[-k:]),
        offline_selected=score(-min(known)[1]) if known else None,
    )


def mean_and_std_over_members(values: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the first axis, [members, ...] -> [...]. Division by n, as papers' tables do."""
    values = np.asarray(values, float)
    return np.asarray(values.mean(0)), np.asarray(values.std(0))
