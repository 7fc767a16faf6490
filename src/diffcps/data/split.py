"""Episodes that are held out of a training, to measure on."""

from __future__ import annotations

import jax
import numpy as np

from diffcps.types import Dataset, UserError

SEED = 0
"""Which episodes are held out depends on the data and the share alone."""


def hold_out(dataset: Dataset, share: float) -> tuple[Dataset, Dataset]:
    """The dataset without a share of its episodes, and those: at least one, drawn with a fixed seed, in their order.

    Raises `UserError` where none would be left to train on.
    """
    end = np.asarray(dataset.terminal) | np.asarray(dataset.timeout)
    episode = np.cumsum(end) - end  # number of each row's episode
    count = int(episode[-1]) + 1
    drawn = max(1, round(share * count))
    if drawn >= count:
        raise UserError(
            f"{dataset.info.source}: has {count} episode{'s' if count > 1 else ''}, of which a validation share of "
            f"{share:g} holds out {drawn}, and none is left to train on: take a smaller share, or 0"
        )
    held_out = np.isin(episode, np.random.default_rng(SEED).permutation(count)[:drawn])
    return _rows(dataset, ~held_out), _rows(dataset, held_out)


def _rows(dataset: Dataset, mask: np.ndarray) -> Dataset:
    return jax.tree.map(lambda array: np.asarray(array)[mask], dataset)
