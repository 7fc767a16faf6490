"""Episodes that are set apart: those of the highest returns, and those held out of a training to measure on."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np

from diffcps.data.summary import episode_returns
from diffcps.types import Dataset, UserError

SEED = 0
"""Which episodes are held out depends on the data and the share alone."""


def hold_out(dataset: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """The dataset without a share of its episodes, and those: at least one, drawn with a fixed seed, in their order.

    Raises `UserError` where none would be left to train on.
    """
    episode = _episode_of_row(dataset)
    count = int(episode[-1]) + 1
    drawn = max(1, round(share * count))
    if drawn >= count:
        raise UserError(
            f"{dataset.info.source}: has {count} episode{'s' if count > 1 else ''}, of which a validation share of "
            f"{share:g} holds out {drawn}, and none is left to train on: take a smaller share, or 0"
        )
    held_out = np.isin(episode, np.random.default_rng(SEED).permutation(count)[:drawn])
    return rows_of(dataset, ~held_out), rows_of(dataset, held_out)


def best_episodes(dataset: Dataset, share: float) -> Dataset:
    """A share of the episodes, those of the highest undiscounted returns: at least one, in their order.

    Among equal returns the earlier episode is taken. With bc it is the baseline "10 % BC" of Decision Transformer
    (arXiv:2106.01345), which counts steps where this counts episodes. Raises `UserError` for a share outside (0, 1],
    without rewards, and where the rows are not in the order of the episodes.
    """
    info = dataset.info
    if not 0 < share <= 1:
        raise UserError(f"{info.source}: --top-episodes is {share:g}; it must be above 0, and 1 for all")
    if "reward" in info.account.absent:
        raise UserError(f"{info.source}: has no rewards, by which --top-episodes would choose; leave it out")
    if not info.account.ordered:
        raise UserError(
            f"{info.source}: its rows are not in the order of its episodes, whose returns --top-episodes compares: put "
            "them in order"
        )
    returns, _ = episode_returns(dataset)
    best = np.argsort(-returns, kind="stable")[: max(1, round(share * len(returns)))]
    chosen = rows_of(dataset, np.isin(_episode_of_row(dataset), best))
    ends = (("terminal", int(chosen.terminal.sum())), ("timeout or last row", int(chosen.timeout.sum())))
    why = f"not among the {len(best):,} of {len(returns):,} episodes with the highest returns"
    account = replace(
        info.account,
        kept=chosen.size,
        dropped=(*info.account.dropped, (why, dataset.size - chosen.size)),
        ends=tuple((kind, count) for kind, count in ends if count),
        notes=(*info.account.notes, f"returns of the chosen episodes: {returns[best].min():.6g} or more"),
    )
    return replace(chosen, info=replace(info, account=account))


def some_episodes(dataset: Dataset, rows: int, least_steps: int) -> Dataset:
    """Whole episodes of at least `least_steps` steps, drawn with a fixed seed, in their order, until there are `rows`
    rows or no more. There must be one."""
    episode = _episode_of_row(dataset)
    steps = np.bincount(episode)
    order = np.random.default_rng(SEED).permutation(len(steps))
    order = order[steps[order] >= least_steps]
    enough = int(np.searchsorted(np.cumsum(steps[order]), rows)) + 1
    return rows_of(dataset, np.isin(episode, order[:enough]))


def _episode_of_row(dataset: Dataset) -> np.ndarray:
    """(n,) int: the number of each row's episode."""
    end = np.asarray(dataset.terminal) | np.asarray(dataset.timeout)
    return np.cumsum(end) - end


def rows_of(dataset: Dataset, which: np.ndarray) -> Dataset:
    """Some of the rows, on the host: those of a mask (n,) bool, or these places (k,) int, in their order."""
    return jax.tree.map(lambda array: np.asarray(array)[which], dataset)
