"""How the runs of a study went: scores, bounded metrics and multipliers over the updates, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from diffcps.algorithms import ALGORITHMS
from diffcps.evaluation.scores import mean_and_std_over_members
from diffcps.records.fields import values_of
from diffcps.records.folder import RunFolder
from diffcps.records.record import Measurement
from diffcps.run.bounds import MULTIPLIER
from diffcps.study.compare import Trial, in_unit
from diffcps.study.published import Unit
from diffcps.training.members import expand
from diffcps.types import Metric

MAX_POINTS = 150
"""Of a curve of metrics: more are averaged in blocks, each of which stands at its last update."""


class Curve(NamedTuple):
    """Mean and deviation over the seeds of a row, as long as all of them are there."""

    label: str
    updates: tuple[int, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...] | None
    """Division by n; None for one seed."""
    seeds: int
    ended: int | None
    """The last update at which all seeds were there, where some went on after it."""


class Bound(NamedTuple):
    """A value that a metric must not exceed, of one row or of all (None)."""

    label: str | None
    value: float


class MetricCurves(NamedTuple):
    """One metric of one method on one set of data."""

    data: str
    method: str
    name: str
    metric: Metric
    curves: tuple[Curve, ...]
    bounds: tuple[Bound, ...]

    @property
    def is_logarithmic(self) -> bool:
        """Whether the metric asks for it and every number allows it."""
        values = [value for curve in self.curves for value in curve.mean]
        return self.metric.scale == "log" and min([*values, *(bound.value for bound in self.bounds)]) > 0


class Cost(NamedTuple):
    """What the training of a run took, without evaluations and without what an interruption made again."""

    updates_per_second: float
    """Median over the rows of the log, each update for all members."""
    hours: float


def score_curves(trials: Sequence[Trial], data: str, unit: Unit) -> list[Curve]:
    """The evaluations in the course of the runs on one set of data, a curve for each row that has some."""
    found: list[Curve] = []
    for trial in trials:
        if trial.data == data:
            by_seed: dict[int, dict[int, float]] = {seed: {} for seed in trial.seeds}
            for row in trial.training:
                if (score := in_unit(row, unit)) is not None:
                    by_seed[row.seed][row.update] = score
            found.append(_curve(trial.label, list(by_seed.values())))
    return [curve for curve in found if curve.updates]


def metric_curves(trials: Sequence[Trial], measurements: Mapping[str, Sequence[Measurement]]) -> list[MetricCurves]:
    """For the methods that keep a bound: the bounded metric with its bound, and the multiplier, for each set of data.

    `measurements` are the logs of the runs, by the name of the cell.
    """
    found: list[MetricCurves] = []
    groups = dict.fromkeys((trial.data, trial.cell.request.method) for trial in trials)
    for data, method in sorted(groups, key=lambda group: [trial.data for trial in trials].index(group[0])):
        metrics = ALGORITHMS[method].METRICS
        bounded = [name for name, metric in metrics.items() if metric.bound]
        if not bounded:
            continue
        own = [trial for trial in trials if (trial.data, trial.cell.request.method) == (data, method)]
        for name in [*bounded, *([MULTIPLIER] if MULTIPLIER in metrics else [])]:
            curves = [_metric_curve(trial, name, measurements.get(trial.cell.name, ())) for trial in own]
            curves = [curve for curve in curves if curve.updates]
            if curves:
                bounds = tuple(_bounds(own, metrics[name].bound)) if metrics[name].bound else ()
                found.append(MetricCurves(data, method, name, metrics[name], tuple(curves), bounds))
    return found


def read_measurements(folder: Path) -> list[Measurement]:
    """The log of a run; none where it has not begun."""
    run = RunFolder(folder)
    return run.read_measurements(run.read_record().members) if run.config.exists() else []


def cost_of(measurements: Sequence[Measurement]) -> Cost | None:
    """What a run took so far, by its log; None where it has none."""
    rates = {row.update: row.updates_per_second for row in measurements}
    if not rates:
        return None
    updates = sorted(rates)
    seconds = sum((now - before) / rates[now] for before, now in zip([0, *updates[:-1]], updates, strict=True))
    return Cost(float(np.median(list(rates.values()))), seconds / 3600)


def _curve(label: str, by_seed: Sequence[Mapping[int, float]], max_points: int | None = None) -> Curve:
    updates = sorted({update for own in by_seed for update in own})
    common = [update for update in updates if all(update in own for own in by_seed)]
    if not common:
        return Curve(label, (), (), None, len(by_seed), None)
    values = np.array([[own[update] for update in common] for own in by_seed])
    size = 1 if max_points is None else math.ceil(len(common) / max_points)
    starts = np.arange(0, len(common), size)
    values = np.add.reduceat(values, starts, axis=1) / np.diff(starts, append=len(common))
    mean, deviation = mean_and_std_over_members(values.tolist())
    return Curve(
        label,
        updates=tuple(common[min(start + size, len(common)) - 1] for start in starts),
        mean=tuple(mean.tolist()),
        deviation=tuple(deviation.tolist()) if len(by_seed) > 1 else None,
        seeds=len(by_seed),
        ended=common[-1] if common[-1] < updates[-1] else None,
    )


def _metric_curve(trial: Trial, name: str, measurements: Sequence[Measurement]) -> Curve:
    settings = trial.cell.request.settings
    members = {member.index: member for member in expand(settings.seeds, trial.cell.request.sweep)}
    by_seed: dict[int, dict[int, float]] = {seed: {} for seed in settings.seeds}
    for row in measurements:
        member, value = members[row.member.index], row.metrics.get(name)
        if value is not None and all(trial.values[field] == own for field, own in member.swept.items()):
            by_seed[member.seed][row.update] = value
    return _curve(trial.label, list(by_seed.values()), MAX_POINTS)


def _bounds(trials: Sequence[Trial], field: str) -> list[Bound]:
    """A bound for each row, or a single one where all have the same."""
    bounds = {trial.label: _value(trial, field) for trial in trials}
    finite = {label: bound for label, bound in bounds.items() if 0 < bound < math.inf}
    if len(set(bounds.values())) == 1:
        return [Bound(None, bound) for bound in list(finite.values())[:1]]
    return [Bound(label, bound) for label, bound in finite.items()]


def _value(trial: Trial, field: str) -> float:
    values = {**values_of(trial.cell.request.config), **trial.values}
    return float(cast(float, values[field]))
