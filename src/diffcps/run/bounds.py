"""Bounds that cannot be met: the bounded metric stands still above its bound while the multiplier only rises."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffcps.algorithms import ALGORITHMS
from diffcps.records.fields import values_of
from diffcps.records.record import Measurement, RunRecord, UnmetBound
from diffcps.run.floor import LOSS, bound_on_loss, measure_command

MULTIPLIER = "dual/multiplier"
"""The Lagrange multiplier of a method that keeps a bound."""
LEAST_ROWS = 8
"""Rows in the last half of a log, from which on something is said of it."""
STILL = 0.1
"""A metric stands still that falls by less than this share of what is left to the bound, from the third quarter of the
log to the last."""
ROUNDING = 1e-5
"""Relative; a multiplier at its end moves no more."""


def stands_above(values: Sequence[float], multipliers: Sequence[float], bound: float) -> bool:
    """Whether a metric stands still above its bound while the multiplier only rises, by the rows of a log.

    In the last half of the rows (`LEAST_ROWS` or more) the multiplier never falls, and has risen, there or since the
    first row (where it stands at its upper end); every value lies above the bound; and from the third quarter to the
    last the mean falls by less than `STILL` of what is then left to the bound. Two standard errors are added to the
    fall: where the noise could hide one, nothing is said.
    """
    half = len(values) // 2
    if half < LEAST_ROWS:
        return False
    late, weights = np.asarray(values[-half:], float), np.asarray(multipliers[-half:], float)
    only_rises = bool((np.diff(weights) >= -ROUNDING * np.abs(weights[:-1])).all())
    has_risen = weights[-1] > (1 + ROUNDING) * min(weights[0], multipliers[0])
    if not (only_rises and has_risen and (late > bound).all()):
        return False
    third, last = late[: half // 2], late[half // 2 :]
    error = float(np.sqrt(third.var(ddof=1) / len(third) + last.var(ddof=1) / len(last)))
    fall = float(third.mean() - last.mean()) + 2 * error
    return fall < STILL * (float(last.mean()) - bound)


def unmet_bounds(record: RunRecord, measurements: Sequence[Measurement]) -> list[UnmetBound]:
    """Every bounded metric of every member for which `stands_above` is true, by the log of a run.

    A method names the bound of a metric in its METRICS. A member that has diverged is not among them.
    """
    metrics = ALGORITHMS[record.algorithm].METRICS
    found: list[UnmetBound] = []
    ended = max((row.update for row in measurements), default=0)
    for name, metric in metrics.items():
        if not metric.bound or MULTIPLIER not in metrics:
            continue
        for member in record.members:
            own = [row for row in measurements if row.member.index == member.index]
            pairs = [
                (value, multiplier)
                for row in own
                if (value := row.metrics.get(name)) is not None
                and (multiplier := row.metrics.get(MULTIPLIER)) is not None
            ]
            bound = float(str(({**values_of(record.config), **member.swept})[metric.bound]))
            if not pairs or own[-1].update < ended:
                continue
            values, multipliers = zip(*pairs, strict=True)
            if stands_above(values, multipliers, bound):
                mean = float(np.mean(values[-(len(values) // 4) :]))
                found.append(UnmetBound(member, name, metric.bound, bound, mean, multipliers[-1]))
    return found


def unmet_line(record: RunRecord, unmet: Sequence[UnmetBound]) -> str:
    """One line for all members of a run: which metric, which bound, and what to do."""
    metrics = ALGORITHMS[record.algorithm].METRICS
    parts: list[str] = []
    for name, field, bound in dict.fromkeys((row.metric, row.field, row.bound) for row in unmet):
        own = [row for row in unmet if (row.metric, row.bound) == (name, bound)]
        value, multiplier = np.mean([row.value for row in own]), np.mean([row.multiplier for row in own])
        parts.append(
            f"{metrics[name].symbol or name} stands still at {value:.3g} above {field} {bound:g} (multiplier "
            f"{multiplier:.4g}, which only rose; {len(own)} of {_with_bound(record, field, bound)} members)"
        )
    return f"a bound is not met: {'; '.join(parts)}. {_hint(record, unmet[0])}"


def _with_bound(record: RunRecord, field: str, bound: float) -> int:
    """How many members of a run have this bound."""
    return sum(member.swept.get(field, bound) == bound for member in record.members)


def _hint(record: RunRecord, unmet: UnmetBound) -> str:
    if unmet.metric != LOSS or bound_on_loss(record.algorithm) is None:
        return f"Take a larger {unmet.field}, or train longer"
    return f"What these data allow: {measure_command(record.dataset, record.environment, record.config)}"
