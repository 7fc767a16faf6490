"""What one call of `reproduce` is asked for: an item, how much is trained for it, where its files go."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from diffcps.paper.methods import METHODS
from diffcps.records.settings import Settings
from diffcps.types import UserError

DPI = 110
"""Of all pictures."""


@dataclass(frozen=True)
class Plan:
    """How much is trained and drawn, the same for all methods of all figures."""

    updates: int = 20_000
    """Updates per method (appendix D)."""
    num_steps: tuple[int, ...] = (2, 5, 10, 15)
    """Diffusion steps T (figures 1, 5, 6 and 8)."""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Seeds, trained together; pictures show the first, figure 5 and the tables all of them."""
    num_actions: int = 5_000
    """Actions drawn from each trained policy: as many as there are data."""
    episodes: int = 10
    """Episodes of the stitching problem per seed, and of either problem in each evaluation of a training."""
    width: int = 64
    """Units of every hidden layer. Appendix C has 256; a network of one constant observation and two action dimensions
    needs less, and 256 would make hours out of an hour."""

    def settings(self) -> Settings:
        """How a run of this length is made: four evaluations."""
        every = -(-self.updates // 4)
        return Settings(
            updates=self.updates,
            eval_every=every,
            log_every=min(every, 500),
            episodes=self.episodes,
            seeds=self.seeds,
        )


FAST = Plan(updates=200, num_steps=(2, 5), seeds=(0, 1), num_actions=500, episodes=3, width=16)
"""A smoke run: nothing is learnt."""


@dataclass(frozen=True)
class Job:
    """An item of `reproduce` and what was asked for with it."""

    item: str
    out: Path
    fast: bool = False
    """A smoke run."""
    methods: tuple[str, ...] | None = None
    """Only these of the item's methods."""
    seeds: tuple[int, ...] | None = None
    """In place of the plan's."""
    say: Callable[[str], None] = lambda text: None
    """Told what is being done."""

    @property
    def plan(self) -> Plan:
        """How much is trained and drawn."""
        plan = FAST if self.fast else Plan()
        return plan if self.seeds is None else dataclasses.replace(plan, seeds=self.seeds)

    def chosen(self) -> list[str]:
        """Those of the item's methods that are wanted. Raises `UserError` where another is."""
        shown = [name for name, method in METHODS.items() if self.item in method.figures]
        others = set(self.methods or ()) - set(shown)
        if others:
            raise UserError(f"{', '.join(sorted(others))} is not in this figure: it shows {', '.join(shown)}")
        return [name for name in shown if self.methods is None or name in self.methods]

    def path(self, suffix: str) -> Path:
        """A file of the item."""
        return self.out / f"{self.item}{suffix}"
