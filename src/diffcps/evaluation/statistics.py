"""Statistics of a comparison of methods: aggregates over runs and tasks, with intervals that speak of other seeds.

The scores of a method are one array for each task, a number for each run (`TaskScores`), because tasks may have
different numbers of runs; a matrix "runs tasks" is `list(matrix.T)`. Two methods that are compared have the same tasks
in the same order. Scores are normalised: 0 is the random policy and 100 the expert, so that tasks can be pooled.

Intervals come from the stratified bootstrap: the runs of each task are drawn anew with replacement from those of the
same task, as many as there were, and the interval lies between percentiles of what the resamples give. It speaks of
other seeds on the same tasks, not of other tasks. Two limits:

- One run does not say how much a task varies. Where any task has a single run there is no interval (None): leave the
  task out, or train more seeds.
- With n runs the resampled mean of a task has sqrt((n - 1) / n) of the deviation that it should have: intervals from
  few runs are too narrow. However many tasks there are, the 95 % interval of the mean of normal scores holds 92 % at
  best for n = 5 and 89 % for n = 3 (that is 2 Phi(1.96 sqrt((n - 1) / n)) - 1); of one task alone with n = 5 it holds
  84 % (`tests/evaluation/test_statistics.py`).

Reference: Agarwal et al., "Deep reinforcement learning at the edge of the statistical precipice" (arXiv:2108.13264),
section 4; `expected_best` has its own. Their program (rliable) takes the median of the tasks' means, this file that of
all runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from diffcps.types import UserError

TaskScores = Sequence[Float[np.ndarray, " _"]]
"""The scores of one method: for each task an array with a number for each run."""
Aggregate = Callable[[Float[np.ndarray, "*b runs"]], Float[np.ndarray, "*b"]]
"""What makes one number of many runs: of the last axis, so that all resamples are done at once."""
Statistic = Callable[[Sequence[np.ndarray]], np.ndarray]
"""From an array "*b runs" for each task to "*c *b"."""


class Interval(NamedTuple):
    """Between which numbers a statistic lies."""

    low: float
    high: float


class Estimate(NamedTuple):
    """A statistic of the runs that there are, with its interval; None where a task has a single run."""

    value: float
    interval: Interval | None


class Band(NamedTuple):
    """An interval for each threshold by itself, not for the curve as a whole."""

    low: Float[np.ndarray, " thresholds"]
    high: Float[np.ndarray, " thresholds"]


class Profile(NamedTuple):
    """The share of runs above each threshold, with its band; None where a task has a single run."""

    share: Float[np.ndarray, " thresholds"]
    band: Band | None


class PairedDifference(NamedTuple):
    """By how much the first method is better than the second, in units of the score."""

    tasks: Float[np.ndarray, " tasks"]
    """The mean difference of each task."""
    overall: Estimate
    """The mean difference of all pairs, which is the difference of the two means over all runs."""


def stats() -> ModuleType:
    """scipy.stats. Raises `UserError` where SciPy is missing."""
    try:
        import scipy.stats
    except ImportError:
        raise UserError("the statistics of a comparison need SciPy: pip install 'diffcps[studies]'") from None
    return scipy.stats


def all_runs(scores: TaskScores) -> Float[np.ndarray, " runs"]:
    """The runs of all tasks in one array, each with the same weight. Raises `UserError` as `estimate` does."""
    return np.concatenate(_checked(scores))


# --- Aggregates, in the units of the score ---


def mean(scores: Float[np.ndarray, "*b runs"]) -> Float[np.ndarray, "*b"]:
    """Mean over the last axis."""
    return np.asarray(np.mean(scores, axis=-1))


def deviation(scores: Float[np.ndarray, "*b runs"]) -> Float[np.ndarray, "*b"]:
    """Population deviation (division by n) over the last axis; over several tasks it holds their differences, too."""
    return np.asarray(np.std(scores, axis=-1))


def median(scores: Float[np.ndarray, "*b runs"]) -> Float[np.ndarray, "*b"]:
    """Median over the last axis."""
    return np.asarray(np.median(scores, axis=-1))


def interquartile_mean(scores: Float[np.ndarray, "*b runs"]) -> Float[np.ndarray, "*b"]:
    """Mean without the lowest and the highest quarter of the last axis; quarters are rounded down to whole runs.

    Reference: IQM (arXiv:2108.13264, section 4.3). Raises `UserError` where SciPy is missing.
    """
    return np.asarray(stats().trim_mean(scores, 0.25, axis=-1))


def optimality_gap(scores: Float[np.ndarray, "*b runs"], gamma: float = 100.0) -> Float[np.ndarray, "*b"]:
    """gamma - mean min(score, gamma) over the last axis: by how much runs miss gamma, what is above it not counted.

    `gamma` is in units of the score; the default is the expert's. Reference: arXiv:2108.13264, section 4.3.
    """
    return np.asarray(gamma - np.mean(np.minimum(scores, gamma), axis=-1))


# --- Estimates with intervals ---


def estimate(
    scores: TaskScores,
    aggregate: Aggregate,
    rng: np.random.Generator | int,
    resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """An aggregate over all runs of all tasks, such as `interquartile_mean`, with its stratified bootstrap interval.

    `rng` is a generator or a seed. A task with more runs weighs more. Reference: arXiv:2108.13264, section 4.1. Raises
    `UserError` for no tasks, a task without runs, scores that are not finite, and a level or number of resamples that
    makes no interval.
    """
    return _estimate(_checked(scores), lambda tasks: aggregate(np.concatenate(tasks, -1)), rng, resamples, level)


def probability_of_improvement(
    x: TaskScores,
    y: TaskScores,
    rng: np.random.Generator | int,
    resamples: int = 2000,
    level: float = 0.95,
) -> Estimate:
    """P(X > Y) + P(X = Y) / 2 for a run of each method on the same task, averaged over tasks, all of equal weight.

    The runs of both methods are resampled, each for itself: seeds need not match. Reference: arXiv:2108.13264, section
    4.3. Raises `UserError` as `estimate` does, and for methods that have not the same number of tasks.
    """
    _check_same_tasks(x, y)

    def improvement(tasks: Sequence[np.ndarray]) -> np.ndarray:
        pairs = zip(tasks[: len(x)], tasks[len(x) :], strict=True)
        return mean(np.stack([_share_of_wins(a, b) for a, b in pairs], axis=-1))

    return _estimate([*_checked(x), *_checked(y)], improvement, rng, resamples, level)


def performance_profile(
    scores: TaskScores,
    thresholds: Float[np.ndarray, " thresholds"],
    rng: np.random.Generator | int,
    resamples: int = 2000,
    level: float = 0.95,
) -> Profile:
    """The share of all runs with a score above each threshold, with pointwise stratified bootstrap bands.

    Reference: run-score distributions (arXiv:2108.13264, section 4.2). Raises `UserError` as `estimate` does.
    """

    def share(tasks: Sequence[np.ndarray]) -> np.ndarray:
        runs = np.concatenate(tasks, -1)
        return np.stack([np.mean(runs > threshold, axis=-1) for threshold in thresholds])

    tasks = _checked(scores)
    ends = _percentiles(tasks, share, rng, resamples, level)
    return Profile(share(tasks), None if ends is None else Band(*ends))


def difference_from(known: float, scores: Sequence[float], level: float = 0.95) -> Estimate:
    """The mean of one task's runs minus a number that others have published, which is taken as exact.

    The interval is Student's, of the mean of normal scores; None for a single run. Raises `UserError` where SciPy is
    missing, and for no scores.
    """
    if not scores:
        raise UserError("a difference needs one score or more")
    values = np.asarray(scores, float)
    value = float(values.mean()) - known
    if len(values) == 1:
        return Estimate(value, None)
    reach = stats().t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Estimate(value, Interval(value - float(reach), value + float(reach)))


def paired_difference(
    x: Sequence[Mapping[int, float]],
    y: Sequence[Mapping[int, float]],
    rng: np.random.Generator | int,
    resamples: int = 2000,
    level: float = 0.95,
) -> PairedDifference:
    """Differences x - y of runs with the same seed, where for each task the scores stand by seed.

    The interval resamples pairs within tasks: what a seed does to both methods cancels. Raises `UserError` where the
    methods have not the same tasks and seeds, and as `estimate` does.
    """
    _check_same_tasks(x, y)
    for number, (ours, theirs) in enumerate(zip(x, y, strict=True)):
        if ours.keys() != theirs.keys():
            raise UserError(
                f"task {number} (counted from 0) has seeds {sorted(ours)} of the first method and {sorted(theirs)} of "
                "the second: keep those that both have, or use the probability of improvement, which needs no pairs"
            )
    pairs = zip(x, y, strict=True)
    differences = [np.array([a[seed] - b[seed] for seed in sorted(a)], float) for a, b in pairs]
    overall = estimate(differences, mean, rng, resamples, level)
    return PairedDifference(np.array([np.mean(task) for task in differences]), overall)


def expected_best(scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Expected best score of k configurations drawn with replacement from the n that were tried, for k = 1..n.

    E[max] = sum_i v_(i) ((i / n)^k - ((i - 1) / n)^k), v_(1) <= ... <= v_(n): what a search of k trials is worth. At
    k = 1 it is the mean; at k = n it is still below the maximum, because a configuration may be drawn twice. For k new
    configurations it is biased low (arXiv:2004.13705). A score is taken as known once its configuration was tried.

    Reference: expected validation performance, Dodge et al. (arXiv:1909.03004). Raises `UserError` for no scores and
    scores that are not finite.
    """
    if not len(scores) or not np.isfinite(scores).all():
        raise UserError(
            "the expected best needs finite scores, one at least: leave out configurations without a result"
        )
    n, ordered = len(scores), np.sort(scores.astype(float))
    at_most = (np.arange(n + 1) / n) ** np.arange(1, n + 1)[:, None]  # P(max <= v_(i)), "k i", from i = 0
    return np.diff(at_most, axis=1) @ ordered


def _checked(scores: TaskScores) -> list[np.ndarray]:
    """The scores in float64."""
    if not scores:
        raise UserError("there are no tasks to make statistics of: give the scores of at least one")
    for number, task in enumerate(scores):
        if not len(task):
            raise UserError(f"task {number} (counted from 0) has no runs: leave it out of the comparison")
        if not np.isfinite(task).all():
            raise UserError(
                f"task {number} (counted from 0) has a score that is not finite: leave the run out, or give it the "
                "score that a failed run counts with"
            )
    return [np.asarray(task, float) for task in scores]


def _check_same_tasks(x: Sequence[object], y: Sequence[object]) -> None:
    if len(x) != len(y):
        raise UserError(
            f"the first method has {len(x)} tasks and the second {len(y)}: compare them on the tasks that both have"
        )


def _share_of_wins(x: Float[np.ndarray, "*b n"], y: Float[np.ndarray, "*b m"]) -> Float[np.ndarray, "*b"]:
    """Of x against y over all n m pairs, half for a tie: the Mann-Whitney statistic over n m."""
    return np.asarray(0.5 + np.mean(np.sign(x[..., :, None] - y[..., None, :]), axis=(-2, -1)) / 2)


def _estimate(
    tasks: Sequence[np.ndarray],
    statistic: Statistic,
    rng: np.random.Generator | int,
    resamples: int,
    level: float,
) -> Estimate:
    ends = _percentiles(tasks, statistic, rng, resamples, level)
    return Estimate(float(statistic(tasks)), None if ends is None else Interval(*map(float, ends)))


def _percentiles(
    tasks: Sequence[np.ndarray],
    statistic: Statistic,
    rng: np.random.Generator | int,
    resamples: int,
    level: float,
) -> np.ndarray | None:
    """Both ends of the stratified bootstrap interval, [2, *c]; None where a task has a single run.

    Not `scipy.stats.bootstrap`: SciPy 1.14 and 1.15 have different names for its generator, and it is three lines.
    """
    if not 0 < level < 1 or resamples < 1:
        raise UserError(
            f"an interval needs a level between 0 and 1 and at least one resample, got {level} and {resamples}: "
            "take 0.95 and 2000, for example"
        )
    if min(map(len, tasks)) < 2:
        return None
    rng = np.random.default_rng(rng)
    drawn = [task[rng.integers(len(task), size=(resamples, len(task)))] for task in tasks]
    return np.quantile(statistic(drawn), [(1 - level) / 2, (1 + level) / 2], axis=-1)
