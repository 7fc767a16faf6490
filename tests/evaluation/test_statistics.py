"""Against arithmetic done by hand, enumeration, closed forms, scipy.stats and, where it is installed, rliable."""

import itertools
import math
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from scipy import stats

from diffcps.evaluation.statistics import (
    Estimate,
    Interval,
    all_runs,
    deviation,
    estimate,
    expected_best,
    interquartile_mean,
    mean,
    median,
    optimality_gap,
    paired_difference,
    performance_profile,
    probability_of_improvement,
)
from diffcps.types import UserError

UNEVEN = [np.array([10.0, 30.0]), np.array([0.0, 50.0, 70.0, 80.0]), np.array([120.0, 40.0, 90.0])]


def gaussian_tasks(rng: np.random.Generator, means: tuple[float, ...], runs: int) -> list[np.ndarray]:
    return [rng.normal(mean, 1.0, runs) for mean in means]


def interval_of(found: Estimate) -> Interval:
    assert found.interval is not None
    return found.interval


# --- Aggregates ---


def test_all_runs_of_all_tasks_weigh_the_same() -> None:
    np.testing.assert_array_equal(all_runs(UNEVEN), [10.0, 30.0, 0.0, 50.0, 70.0, 80.0, 120.0, 40.0, 90.0])
    assert mean(all_runs(UNEVEN)) == 490 / 9
    assert median(all_runs(UNEVEN)) == 50.0


def test_deviation_divides_by_n() -> None:
    assert deviation(np.array([2.0, 4.0, 9.0])) == math.sqrt((9 + 1 + 16) / 3)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (range(8), 3.5),  # of 2, 3, 4, 5
        ([-1e6, 0.0, 5.0, 1.0, 3.0, 1e6, 2.0, 9e6], 2.75),  # outliers: of 1, 2, 3, 5
        ([1.0, 2.0, 9.0], 4.0),  # a quarter of three runs is no run
        ([0.0, 1.0, 2.0, 6.0, 100.0], 3.0),  # a quarter of five is one
    ],
)
def test_interquartile_mean_by_hand(scores, expected: float) -> None:
    assert interquartile_mean(np.array(scores, float)) == expected


def test_optimality_gap_by_hand() -> None:
    scores = np.array([50.0, 120.0, 90.0, -20.0])
    assert optimality_gap(scores) == (50 + 0 + 10 + 120) / 4
    assert optimality_gap(scores, gamma=60.0) == (10 + 0 + 0 + 80) / 4


@pytest.mark.parametrize("aggregate", [mean, deviation, median, interquartile_mean, optimality_gap])
def test_aggregates_are_of_the_last_axis(aggregate) -> None:
    scores = np.random.default_rng(0).normal(80.0, 30.0, (2, 3, 9))
    each = [[aggregate(row) for row in rows] for rows in scores]
    np.testing.assert_allclose(aggregate(scores), each, rtol=1e-12)


# --- The bootstrap ---


def test_intervals_of_two_runs_by_hand() -> None:
    """Resampled means of 0 and 10 are 0, 5, 10 with probabilities 1/4, 1/2, 1/4."""
    scores = [np.array([0.0, 10.0])]
    assert estimate(scores, mean, 0) == Estimate(5.0, Interval(0.0, 10.0))
    assert estimate(scores, mean, 0, level=0.4) == Estimate(5.0, Interval(5.0, 5.0))


def test_resampled_means_deviate_as_the_closed_form_says() -> None:
    """The variance of the mean over N runs is sum_t n_t var_t / N^2; the half width of its interval 1.96 deviations."""
    rng = np.random.default_rng(1)
    task = rng.normal(0.0, 10.0, 40)  # twice: where both had the same draws, the interval would be wider by sqrt(2)
    scores = [task, rng.normal(100.0, 3.0, 60), task + 60.0]
    low, high = interval_of(estimate(scores, mean, 2, resamples=20_000))
    variance = sum(len(task) * task.var() for task in scores) / 140**2
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(variance), rel=0.02)
    assert (high + low) / 2 == pytest.approx(float(mean(all_runs(scores))), abs=0.05 * math.sqrt(variance))


def test_tasks_are_resampled_apart() -> None:
    """Between tasks the scores differ a hundred times as much as within: resampled in one heap the mean would move."""
    scores = gaussian_tasks(np.random.default_rng(3), (0.0, 50.0, 100.0), 20)
    low, high = interval_of(estimate(scores, mean, 0))
    heap_low, heap_high = interval_of(estimate([all_runs(scores)], mean, 0))
    assert high - low < 0.6 < 15.0 < heap_high - heap_low


@pytest.mark.parametrize("aggregate", [mean, median, interquartile_mean, partial(optimality_gap, gamma=60.0)])
def test_intervals_are_those_of_scipy(aggregate) -> None:
    def statistic(*tasks: np.ndarray, axis: int) -> np.ndarray:
        return aggregate(np.concatenate(tasks, axis=axis))

    scores = [np.random.default_rng(4).normal(60.0, 30.0, runs) for runs in (8, 12, 20)]
    sampled = {"n_resamples": 20_000, "rng": np.random.default_rng(5), "method": "percentile"}
    expected = stats.bootstrap(scores, statistic, confidence_level=0.9, vectorized=True, **sampled)
    found = estimate(scores, aggregate, np.random.default_rng(6), resamples=20_000, level=0.9)
    assert found.value == aggregate(all_runs(scores))
    np.testing.assert_allclose(
        interval_of(found), expected.confidence_interval, atol=0.06 * float(expected.standard_error)
    )


@pytest.mark.parametrize(("level", "least", "most"), [(0.95, 0.9, 0.985), (0.5, 0.42, 0.58)])
def test_intervals_hold_the_mean_as_often_as_they_say(level: float, least: float, most: float) -> None:
    """Over 400 repetitions; the deviation of the share is 0.011 at 0.95 and 0.025 at 0.5."""
    rng = np.random.default_rng(7)
    held = []
    for _ in range(400):
        scores = gaussian_tasks(rng, (0.0, 5.0, 10.0), 25)
        low, high = interval_of(estimate(scores, mean, rng, resamples=400, level=level))
        held.append(low <= 5.0 <= high)
    assert least < np.mean(held) < most


@pytest.mark.parametrize(("tasks", "share", "tolerance"), [(20, 0.92, 0.027), (1, 0.84, 0.036)])
def test_few_runs_make_intervals_too_narrow(tasks: int, share: float, tolerance: float) -> None:
    """Many tasks: 2 Phi(1.96 sqrt(4 / 5)) - 1. The tolerance is three deviations of the share in 900 repetitions."""
    rng = np.random.default_rng(8)
    held = []
    for _ in range(900):
        low, high = interval_of(estimate(gaussian_tasks(rng, (0.0,) * tasks, 5), mean, rng, resamples=400))
        held.append(low <= 0.0 <= high)
    assert np.mean(held) == pytest.approx(share, abs=tolerance)


def test_a_seed_repeats_and_a_generator_goes_on() -> None:
    rng = np.random.default_rng(9)
    first, second = (estimate(UNEVEN, mean, rng) for _ in range(2))
    assert first != second
    assert first == estimate(UNEVEN, mean, 9) == estimate(UNEVEN, mean, 9)


# --- Probability of improvement ---


def test_probability_of_improvement_by_hand() -> None:
    x = [np.array([1.0, 5.0]), np.array([3.0, 3.0])]
    y = [np.array([0.0, 1.0, 9.0]), np.array([3.0, 4.0])]
    # Task 0: 1 beats 0, ties 1; 5 beats 0 and 1: 3.5 of 6. Task 1: two ties of 4.
    assert probability_of_improvement(x, y, 0).value == (3.5 / 6 + 1 / 4) / 2
    assert probability_of_improvement(y, x, 0).value == (2.5 / 6 + 3 / 4) / 2


def test_the_same_runs_improve_on_one_another_half_the_time() -> None:
    assert probability_of_improvement(UNEVEN, UNEVEN, 0).value == 0.5


def test_probability_of_improvement_resamples_both_methods() -> None:
    """x is 0 or 2, y is 1 or 1: the share of 2 among two draws. With y 1 or 3 it moves with y, too."""
    x, still, moving = [np.array([0.0, 2.0])], [np.array([1.0, 1.0])], [np.array([1.0, 3.0])]
    assert probability_of_improvement(x, still, 0) == Estimate(0.5, Interval(0.0, 1.0))
    assert probability_of_improvement(still, x, 0, level=0.4) == Estimate(0.5, Interval(0.5, 0.5))
    # 0 where x is (0, 0) or y is (3, 3), probability 7/16; 1 at most with 1/16; 1/4 and 1/2 between.
    found = probability_of_improvement(x, moving, 0, level=0.9, resamples=20_000)
    assert found == Estimate(0.25, Interval(0.0, 1.0))
    found = probability_of_improvement(x, moving, 0, level=0.6, resamples=20_000)
    assert found == Estimate(0.25, Interval(0.0, 0.5))


def test_the_interval_of_an_improvement_is_that_of_scipy() -> None:
    def statistic(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, axis: int) -> np.ndarray:
        first = stats.mannwhitneyu(a, c, axis=axis).statistic / (12 * 9)
        return (first + stats.mannwhitneyu(b, d, axis=axis).statistic / (15 * 10)) / 2

    rng = np.random.default_rng(10)
    x = [rng.normal(1.0, 1.0, 12), rng.normal(0.0, 1.0, 15)]
    y = [rng.normal(0.0, 1.0, 9), rng.normal(0.0, 3.0, 10)]
    expected = stats.bootstrap([*x, *y], statistic, n_resamples=5_000, method="percentile", vectorized=True, rng=rng)
    found = probability_of_improvement(x, y, rng, resamples=5_000)
    assert found.value == pytest.approx(statistic(*x, *y, axis=-1))
    np.testing.assert_allclose(
        interval_of(found), expected.confidence_interval, atol=0.15 * float(expected.standard_error)
    )


# --- Profiles ---


def test_profile_by_hand() -> None:
    profile = performance_profile(UNEVEN, np.array([-1.0, 0.0, 50.0, 85.0, 120.0]), 0)
    np.testing.assert_array_equal(profile.share, np.array([9, 8, 4, 2, 0]) / 9)
    assert profile.band is not None
    # Nothing of the first task is above 85, one or two of three of the last; all are above -1 and none above 120.
    np.testing.assert_array_equal(profile.band.low[[0, 4]], [1.0, 0.0])
    np.testing.assert_array_equal(profile.band.high[[0, 3, 4]], [1.0, 3 / 9, 0.0])


def test_bands_are_the_intervals_of_single_thresholds() -> None:
    thresholds = np.array([20.0, 60.0, 100.0])
    profile = performance_profile(UNEVEN, thresholds, 11, level=0.8)
    assert profile.band is not None
    for number, threshold in enumerate(thresholds):
        above = [(task > threshold).astype(float) for task in UNEVEN]
        low, high = interval_of(estimate(above, mean, 11, level=0.8))
        assert (profile.band.low[number], profile.band.high[number]) == pytest.approx((low, high))


def test_bands_hold_tasks_apart() -> None:
    """One task is always above, the other never: other seeds change nothing."""
    profile = performance_profile([np.full(5, 90.0), np.full(5, 10.0)], np.array([50.0]), 0)
    assert profile.band is not None
    assert (profile.share, profile.band.low, profile.band.high) == (0.5, 0.5, 0.5)


# --- Pairs ---


def test_paired_difference_by_hand() -> None:
    x = [{0: 10.0, 1: 20.0, 2: 60.0}, {5: 1.0, 3: 4.0}]
    y = [{2: 50.0, 0: 5.0, 1: 30.0}, {3: 4.0, 5: 2.0}]  # in another order; differences 5, -10, 10 and 0, -1
    found = paired_difference(x, y, 0)
    np.testing.assert_allclose(found.tasks, [5 / 3, -0.5])
    assert found.overall.value == pytest.approx((5 - 10 + 10 + 0 - 1) / 5)
    assert found.overall == estimate([np.array([5.0, -10.0, 10.0]), np.array([0.0, -1.0])], mean, 0)


def test_what_a_seed_does_to_both_methods_cancels() -> None:
    rng = np.random.default_rng(12)
    luck = rng.normal(0.0, 20.0, (3, 10))
    gain = rng.normal(5.0, 1.0, (3, 10))
    x = [dict(enumerate(task)) for task in luck + gain]
    y = [dict(enumerate(task)) for task in luck]
    low, high = interval_of(paired_difference(x, y, 0).overall)
    assert 4.0 < low < 5.0 < high < 6.0
    shuffled = [dict(enumerate(rng.permutation(task))) for task in luck]  # the control: pairs of different luck
    low, high = interval_of(paired_difference(x, shuffled, 0).overall)
    assert high - low > 5.0


@pytest.mark.parametrize("other", [{0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0, 3: 3.0}, {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}])
def test_seeds_that_do_not_match_are_refused(other: dict[int, float]) -> None:
    task = {0: 1.0, 1: 2.0, 2: 3.0}
    message = r"task 1 \(counted from 0\) has seeds \[0, 1, 2\] of the first method and .* keep those that both have"
    with pytest.raises(UserError, match=message):
        paired_difference([task, task], [task, other], 0)


# --- The expected best ---


@pytest.mark.parametrize("scores", [[3.0], [5.0, 1.0], [2.0, 9.0, 4.0, 4.0], [-1.0, 7.0, 0.0, 30.0, 8.0]])
def test_expected_best_is_the_mean_over_all_draws(scores: list[float]) -> None:
    every = [list(itertools.product(scores, repeat=k)) for k in range(1, len(scores) + 1)]
    expected = [np.mean([max(draw) for draw in draws]) for draws in every]
    np.testing.assert_allclose(expected_best(np.array(scores)), expected, rtol=1e-12)


def test_expected_best_of_many_grows_from_the_mean() -> None:
    scores = np.random.default_rng(13).normal(50.0, 20.0, 500)
    best = expected_best(scores)
    assert best[0] == pytest.approx(scores.mean())
    assert np.all(np.diff(best) > 0) and best[-1] < scores.max()


# --- What is refused, and what is not said ---


def test_one_run_of_a_task_says_nothing_about_its_spread() -> None:
    single = [*UNEVEN, np.array([40.0])]
    assert estimate(single, mean, 0) == Estimate(53.0, None)
    assert probability_of_improvement(UNEVEN, [np.array([20.0])] * 3, 0).interval is None
    assert performance_profile(single, np.array([50.0]), 0).band is None
    assert paired_difference([{0: 3.0}], [{0: 1.0}], 0).overall == Estimate(2.0, None)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([], "no tasks"),
        ([np.ones(3), np.ones(0)], r"task 1 \(counted from 0\) has no runs: leave it out"),
        ([np.ones(3), np.array([1.0, np.nan])], r"task 1 .* not finite: leave the run out"),
        ([np.array([np.inf, 1.0])], r"task 0 .* not finite"),
    ],
)
def test_scores_that_make_no_statistics_are_refused(scores: list[np.ndarray], message: str) -> None:
    with pytest.raises(UserError, match=message):
        all_runs(scores)
    with pytest.raises(UserError, match=message):
        estimate(scores, mean, 0)
    with pytest.raises(UserError, match=message):
        performance_profile(scores, np.zeros(1), 0)
    with pytest.raises(UserError, match=message):
        probability_of_improvement([np.ones(2)] * len(scores), scores, 0)
    with pytest.raises(UserError, match=message):
        by_seed = [dict(enumerate(task.tolist())) for task in scores]
        paired_difference(by_seed, by_seed, 0)


@pytest.mark.parametrize("scores", [[], [1.0, math.nan], [math.inf]])
def test_an_expected_best_of_no_scores_is_refused(scores: list[float]) -> None:
    with pytest.raises(UserError, match="needs finite scores, one at least: leave out configurations without a result"):
        expected_best(np.array(scores, float))


def test_methods_with_other_tasks_are_refused() -> None:
    message = "the first method has 3 tasks and the second 2: compare them on the tasks that both have"
    with pytest.raises(UserError, match=message):
        probability_of_improvement(UNEVEN, UNEVEN[:2], 0)
    with pytest.raises(UserError, match=message):
        paired_difference([{0: 1.0}] * 3, [{0: 1.0}] * 2, 0)


@pytest.mark.parametrize(("level", "resamples"), [(95.0, 2000), (0.0, 2000), (1.0, 2000), (0.95, 0)])
def test_intervals_that_cannot_be_are_refused(level: float, resamples: int) -> None:
    with pytest.raises(UserError, match="level between 0 and 1 and at least one resample"):
        estimate(UNEVEN, mean, 0, resamples=resamples, level=level)


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(UserError, match=r"pip install 'diffcps\[studies\]'"):
        estimate(UNEVEN, interquartile_mean, 0)
    assert estimate(UNEVEN, mean, 0).interval is not None


# --- The program of the authors ---


@pytest.mark.slow
def test_numbers_are_those_of_rliable() -> None:
    """Where it is installed: rliable 1.2 names an argument that arch has no more from version 6 on."""
    library = pytest.importorskip("rliable.library")
    metrics = pytest.importorskip("rliable.metrics")
    rng = np.random.default_rng(14)
    np.random.seed(15)  # noqa: NPY002, what rliable draws from
    matrix, other = rng.normal(70.0, 30.0, (10, 6)).round(-1), rng.normal(60.0, 30.0, (8, 6)).round(-1)  # with ties
    scores, baseline = list(matrix.T), list(other.T)

    def compare(found: Estimate, data: np.ndarray | tuple[np.ndarray, ...], theirs: Callable[..., float]) -> None:
        points, ends = library.get_interval_estimates({"": data}, lambda *x: np.array([theirs(*x)]), reps=2000)
        assert found.value == pytest.approx(points[""][0])
        low, high = interval_of(found)
        np.testing.assert_allclose([low, high], ends[""][:, 0], atol=0.06 * (high - low))

    gap = partial(metrics.aggregate_optimality_gap, gamma=100.0)
    for ours, theirs in [
        (mean, metrics.aggregate_mean),
        (interquartile_mean, metrics.aggregate_iqm),
        (optimality_gap, gap),
    ]:
        compare(estimate(scores, ours, rng), matrix, theirs)
    compare(probability_of_improvement(scores, baseline, rng), (matrix, other), metrics.probability_of_improvement)

    thresholds = np.linspace(0.0, 120.0, 13)
    profile = performance_profile(scores, thresholds, rng)
    points, ends = library.create_performance_profile({"": matrix}, thresholds)
    np.testing.assert_allclose(profile.share, points[""])
    assert profile.band is not None
    np.testing.assert_allclose(profile.band, ends[""], atol=1.01 / 60)  # one run of sixty
