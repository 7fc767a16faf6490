"""Everything that the checks of the theory compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from diffcps.paper.theory.duality import DualityRow, GapRow, check_duality, check_without_assumption
from diffcps.paper.theory.iteration import IterationRow, check_iteration
from diffcps.paper.theory.surrogate import LineRow, SurrogateRow, check_surrogate, surrogate_lines


class Tables(NamedTuple):
    """Everything that is computed, a file of rows each."""

    duality: Sequence[DualityRow]
    without_assumption: Sequence[GapRow]
    iteration: Sequence[IterationRow]
    surrogate: Sequence[SurrogateRow]
    lines: Sequence[LineRow]


def compute(fast: bool) -> Tables:
    """All tables; `fast` has fewer points."""
    bounds = 4 if fast else 13
    surrogate = check_surrogate(num_steps=(5, 100) if fast else (5, 15, 50, 100, 1000), num_policies=21)
    return Tables(
        duality=check_duality(num_problems=2 if fast else 10, num_bounds=bounds),
        without_assumption=check_without_assumption(num_bounds=bounds),
        iteration=check_iteration(
            budgets=(0.01, 0.1),
            starts=(0.3, 15.0) if fast else (0.3, 1.0, 5.0, 25.0),
            step_sizes=(3.0, 100.0) if fast else (0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
            tolerances=(0.1, 0.03) if fast else (0.3, 0.1, 0.03, 0.01, 0.003, 0.001),
        ),
        surrogate=surrogate,
        lines=surrogate_lines(surrogate),
    )
