"""The checkpoints that are chosen among all evaluations: by the score, and by the loss where nothing can be played."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from diffcps.records.record import Evaluation
from diffcps.training import checkpoint
from diffcps.types import Tree


class Rule(NamedTuple):
    """Which evaluation of a member is its best one."""

    worth: Callable[[Evaluation], float | None]
    """The higher the better; None where the evaluation cannot be chosen."""
    last_of_equals: bool


def _score(row: Evaluation) -> float | None:
    return row.score


def _low_loss(row: Evaluation) -> float | None:
    return None if row.selection_loss is None else -row.selection_loss


BY_SCORE = Rule(_score, last_of_equals=False)
"""The highest mean return, as the score `best` has it."""
BY_LOSS = Rule(_low_loss, last_of_equals=True)
"""The lowest `selection/loss`, as the score `offline_selected` has it."""


@dataclass
class Chosen:
    """Each member's state at the evaluation that a rule likes best so far, and its checkpoint."""

    path: Path
    rule: Rule
    worths: list[float | None]
    """None for members of which none was chosen yet."""
    updates: list[int]
    state: Tree
    """On the host."""

    @classmethod
    def of(cls, path: Path, rule: Rule, num_members: int, evaluations: Sequence[Evaluation], state: Tree) -> Chosen:
        """As the checkpoint `path` and the evaluations before it have it; without that file nothing is chosen yet.

        `state` stands for members of which none was chosen.
        """
        chosen = cls(path, rule, [None] * num_members, [0] * num_members, jax.tree.map(np.array, state))
        if path.exists():
            chosen._take(evaluations)
            chosen.state, _ = checkpoint.load(path, state)
        return chosen

    @property
    def known(self) -> dict[int, float]:
        """The best worths so far, by member."""
        return {index: worth for index, worth in enumerate(self.worths) if worth is not None}

    def update(self, evaluations: Sequence[Evaluation], state: Tree) -> None:
        """Saves the members that their new evaluations make better; told twice, it does the same."""
        better = self._take(evaluations)
        if better.any():
            self.state = choose(better, state, self.state)
            checkpoint.save(self.path, self.state, {"update": list(self.updates), "stopped": {}})

    def _take(self, evaluations: Sequence[Evaluation]) -> np.ndarray:
        """Goes through the evaluations in their order; (members,) bool: which members have a new best one."""
        better = np.zeros(len(self.worths), bool)
        for row in evaluations:
            member, worth = row.member.index, self.rule.worth(row)
            before = self.worths[member]
            if worth is None:
                continue
            if before is None or worth > before or (worth == before and self.rule.last_of_equals):
                self.worths[member], self.updates[member], better[member] = worth, row.update, True
        return better


def choose(mask: np.ndarray, new: Tree, old: Tree) -> Tree:
    """`new` for the members in `mask`, `old` for the others, on the host."""

    def choose(new: jax.Array | np.ndarray, old: np.ndarray) -> np.ndarray:
        return np.where(mask.reshape(-1, *[1] * (new.ndim - 1)), np.asarray(new), np.asarray(old))

    return jax.tree.map(choose, new, old)
