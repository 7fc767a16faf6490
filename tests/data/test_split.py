"""Held-out episodes: whole ones, at least one, always the same, and something is left."""

import dataclasses

import numpy as np
import pytest

from diffcps.data.split import hold_out
from diffcps.types import UserError
from tests.problems import random_dataset


def numbered():
    """Eight episodes of eight rows, whose rewards are their numbers."""
    return dataclasses.replace(random_dataset(), reward=np.repeat(np.arange(8.0, dtype=np.float32), 8))


@pytest.mark.parametrize(("share", "episodes"), [(0.01, 1), (0.25, 2), (0.8, 6)])
def test_whole_episodes_are_held_out(share, episodes):
    dataset = numbered()
    training, held_out = hold_out(dataset, share)
    assert training.size + held_out.size == dataset.size and held_out.size == 8 * episodes
    kept, out = (np.unique(np.asarray(part.reward), return_counts=True) for part in (training, held_out))
    assert set(kept[0]) | set(out[0]) == set(range(8)) and set(out[1]) == {8}
    assert np.asarray(training.reward).tolist() == sorted(np.asarray(training.reward).tolist())  # in their order
    assert training.info == dataset.info
    again = hold_out(dataset, share)[1]
    np.testing.assert_array_equal(again.observation, held_out.observation)


def test_something_must_be_left_to_train_on():
    with pytest.raises(UserError, match=r"has 8 episodes, of which a validation share of 0\.97 holds out 8"):
        hold_out(numbered(), 0.97)
    with pytest.raises(UserError, match=r"has 1 episode, .*: take a smaller share, or 0"):
        hold_out(random_dataset(rows=8), 0.1)
