"""Episodes that are set apart, held out or the best: whole ones, at least one, always the same."""

import dataclasses

import numpy as np
import pytest

from diffcps.data.load import load_dataset
from diffcps.data.split import best_episodes, hold_out, some_episodes
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


def with_returns(*returns):
    """Episodes of eight rows, each row with an eighth of its episode's return."""
    reward = np.repeat(np.array(returns, np.float32), 8) / 8
    return dataclasses.replace(random_dataset(rows=8 * len(returns)), reward=reward)


@pytest.mark.parametrize(
    ("share", "kept"),
    [(1.0, [0, 1, 2, 3, 4]), (0.4, [1, 4]), (0.6, [1, 2, 4]), (0.55, [1, 2, 4]), (0.01, [4]), (0.8, [0, 1, 2, 4])],
)
def test_the_best_episodes_are_kept_in_their_order(share, kept):
    """Of episodes 0 and 3, which are equal, the earlier."""
    dataset = with_returns(1.0, 5.0, 3.0, 1.0, 9.0)
    best = best_episodes(dataset, share)
    rows = np.concatenate([np.arange(8 * episode, 8 * episode + 8) for episode in kept])
    np.testing.assert_array_equal(best.observation, np.asarray(dataset.observation)[rows])
    np.testing.assert_array_equal(best.reward, np.asarray(dataset.reward)[rows])
    account = best.info.account
    assert account.kept == best.size == len(rows)
    assert dict(account.dropped)[f"not among the {len(kept)} of 5 episodes with the highest returns"] == 40 - len(rows)
    assert sum(count for _, count in account.ends) == len(kept)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_of_the_best_lies_between_none_and_all(share):
    with pytest.raises(UserError, match=r"--top-episodes is .*; it must be above 0, and 1 for all"):
        best_episodes(with_returns(1.0, 2.0), share)


def test_the_best_are_chosen_by_rewards_of_episodes_in_order():
    dataset = with_returns(1.0, 2.0)
    for change, message in (({"absent": ("reward",)}, "has no rewards"), ({"ordered": False}, "not in the order")):
        account = dataclasses.replace(dataset.info.account, **change)
        info = dataclasses.replace(dataset.info, account=account)
        with pytest.raises(UserError, match=message):
            best_episodes(dataclasses.replace(dataset, info=info), 0.5)


def test_the_best_are_chosen_before_rewards_are_transformed_and_observations_normalised(tmp_path):
    """standardise(r) has mean 0 over the rows that are used, and so have observations."""
    dataset = with_returns(1.0, 5.0, 3.0, 1.0, 9.0)
    np.savez(
        tmp_path / "logs.npz",
        observations=dataset.observation,
        actions=dataset.action,
        rewards=dataset.reward + np.tile(np.arange(8, dtype=np.float32), 5),
        next_observations=np.roll(dataset.observation, -1, axis=0),
        terminals=np.zeros(40, bool),
        timeouts=np.arange(40) % 8 == 7,
    )
    loaded = load_dataset(
        tmp_path / "logs.npz", top_episodes=0.4, reward="standardise", normalise_observation=True, timeout_next="real"
    )
    assert loaded.size == 16 and loaded.info.reading.top_episodes == 0.4
    np.testing.assert_allclose([np.mean(loaded.reward), np.std(loaded.reward)], [0.0, 1.0], atol=1e-5)
    np.testing.assert_allclose(np.mean(loaded.observation, axis=0), 0.0, atol=1e-5)


def test_some_episodes_are_whole_and_long_enough():
    """Of episodes of 3, 5, 3 and 5 rows those of 5, as many as it takes; always the same."""
    lengths = (3, 5, 3, 5)
    last = np.isin(np.arange(sum(lengths)), np.cumsum(lengths) - 1)
    row = np.arange(len(last), dtype=np.float32)
    whole = dataclasses.replace(random_dataset(len(last)), reward=row, terminal=np.zeros_like(last), timeout=last)
    long = [*range(3, 8), *range(11, 16)]
    assert some_episodes(whole, 6, 4).reward.tolist() == long
    one = some_episodes(whole, 5, 4).reward.tolist()
    assert one in (long[:5], long[5:]) and one == some_episodes(whole, 1, 4).reward.tolist()
    assert some_episodes(whole, 100, 1).size == 16
