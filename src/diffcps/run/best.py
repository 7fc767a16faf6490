"""Each member's best checkpoint."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np

from diffcps.run.folder import RunFolder
from diffcps.run.record import Evaluation
from diffcps.training import checkpoint
from diffcps.training.members import Member
from diffcps.types import Tree


@dataclass
class Best:
    """Each member's state at its best evaluation so far; the first one where several are equal."""

    folder: RunFolder
    scores: list[float]
    updates: list[int]
    state: Tree
    """On the host, so that the live state may be consumed."""

    @classmethod
    def of(cls, folder: RunFolder, members: Sequence[Member], state: Tree) -> Best:
        """As the folder's log of evaluations has it; `state` stands for members that were never scored."""
        best = cls(folder, [-math.inf] * len(members), [0] * len(members), jax.tree.map(np.array, state))
        for row in folder.read_evaluations(members):
            best._take(row)
        if best.known:
            best.state, _ = checkpoint.load(folder.best, state)
        return best

    @property
    def known(self) -> dict[int, float]:
        """The best scores, by member."""
        return {index: score for index, score in enumerate(self.scores) if score > -math.inf}

    def update(self, evaluations: Sequence[Evaluation], state: Tree) -> None:
        """Saves the members that have beaten their best score."""
        improved = np.zeros(len(self.scores), bool)
        for row in evaluations:
            improved[row.member.index] = self._improved(row)
            self._take(row)
        if improved.any():
            self.state = _choose(improved, state, self.state)
            checkpoint.save(self.folder.best, self.state, {"update": list(self.updates), "stopped": {}})

    def _improved(self, row: Evaluation) -> bool:
        return row.score is not None and row.score > self.scores[row.member.index]

    def _take(self, row: Evaluation) -> None:
        if row.score is not None and self._improved(row):
            self.scores[row.member.index], self.updates[row.member.index] = row.score, row.update


def _choose(mask: np.ndarray, new: Tree, old: Tree) -> Tree:
    """`new` for the members in `mask`, `old` for the others, on the host."""

    def choose(new: jax.Array | np.ndarray, old: np.ndarray) -> np.ndarray:
        return np.where(mask.reshape(-1, *[1] * (new.ndim - 1)), np.asarray(new), np.asarray(old))

    return jax.tree.map(choose, new, old)
