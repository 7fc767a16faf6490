import math

import numpy as np
import pytest

from diffcps.evaluation.scores import Score, Scores, four_scores, mean_and_std_over_members, scores_of_the_same
from diffcps.types import UserError


def test_four_scores_by_hand() -> None:
    assert four_scores((10, 20, 30, 40), (1.0, 7.0, 4.0, 6.0), (0.9, 0.5, 0.2, 0.3), k=3) == Scores(
        last=Score((40,), 6.0, None),
        best=Score((20,), 7.0, None),
        mean_of_last=Score((20, 30, 40), 17 / 3, None),
        offline_selected=Score((30,), 4.0, None),
    )


def test_normalised_by_hand() -> None:
    scores = four_scores((10, 20), (1.0, 7.0), (0.9, 0.5), reference=(-1.0, 9.0))
    assert scores is not None
    assert [score and score.normalised for score in scores] == [80.0, 80.0, 50.0, 80.0]


def test_mean_of_last_takes_what_there_is() -> None:
    scores = four_scores((10, 20), (1.0, 2.0), (0.9, 0.5))
    assert scores is not None
    assert scores.mean_of_last == Score((10, 20), 1.5, None)


def test_the_first_of_equal_scores_wins_and_the_last_of_equal_losses() -> None:
    scores = four_scores((10, 20, 30, 40), (1.0, 3.0, 3.0, 3.0), (0.9, 0.5, 0.5, 0.7))
    assert scores is not None
    assert scores.best == Score((20,), 3.0, None)
    assert scores.offline_selected == Score((30,), 3.0, None)


def test_a_loss_that_is_not_finite_is_never_selected() -> None:
    scores = four_scores((10, 20, 30, 40), (1.0, 2.0, 9.0, 5.0), (None, 0.5, None, 0.6))
    assert scores is not None and scores.offline_selected == Score((20,), 2.0, None)
    scores = four_scores((10,), (1.0,), (None,))
    assert scores is not None and scores.offline_selected is None


def test_no_evaluations_no_scores() -> None:
    assert four_scores((), (), ()) is None


def test_mean_of_none_is_refused() -> None:
    with pytest.raises(UserError, match="k >= 1"):
        four_scores((10,), (1.0,), (0.9,), k=0)


def test_mean_and_std_over_members() -> None:
    mean, std = mean_and_std_over_members([[1.0, 10.0], [3.0, 10.0], [5.0, 40.0]])
    np.testing.assert_allclose(mean, [3.0, 20.0])
    np.testing.assert_allclose(std, [math.sqrt(8 / 3), math.sqrt(200)])
    mean, std = mean_and_std_over_members([2.0, 4.0])
    assert (mean, std) == (3.0, 1.0)


def test_another_rule_is_scored_at_the_evaluations_of_the_runs_own() -> None:
    chosen = four_scores((10, 20, 30, 40), (1.0, 7.0, 4.0, 6.0), (0.9, 0.5, 0.2, None), k=2)
    assert chosen is not None
    # by another rule the best would be that of 10, which has no part in the choice
    assert scores_of_the_same(chosen, {10: 99.0, 20: 2.0, 30: 3.0, 40: 5.0}, reference=(0.0, 10.0)) == Scores(
        last=Score((40,), 5.0, 50.0),
        best=Score((20,), 2.0, 20.0),
        mean_of_last=Score((30, 40), 4.0, 40.0),
        offline_selected=Score((30,), 3.0, 30.0),
    )
    never = chosen._replace(offline_selected=None)
    assert scores_of_the_same(never, {20: 2.0, 30: 3.0, 40: 5.0}).offline_selected is None
