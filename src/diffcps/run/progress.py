"""What the person who watches a training sees: a live table in a terminal, plain lines in a log."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import rich.live
from rich import box
from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from diffcps.run.table import number_words, score_words
from diffcps.tasks.references import normalised_score

DRAW_SECONDS = 0.5
"""Least time between two drawings of the live area."""
LINE_SECONDS = 60.0
"""Longest silence of a log, in seconds."""
MAX_ROWS = 12
"""Members in the table; the others are counted."""
METRICS = {"dual/multiplier": "λ", "critic/q": "Q", "critic/loss": "critic\nloss"}


class Silent:
    """A display that shows nothing."""

    def start(self, update: int, best: Mapping[int, float]) -> None:
        pass

    def waiting(self) -> None:
        pass

    def logged(self, update: int, rows: Sequence[dict[str, Any]]) -> None:
        pass

    def evaluating(self, step: int, alive: int) -> None:
        pass

    def evaluated(self, update: int, rows: Sequence[dict[str, Any]]) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class Live:
    """Progress of a training: a bar and a table of members on a terminal, elsewhere a line per evaluation (and minute).

    Use it as a context manager, so that the terminal is left clean however the training ends:

        with Live(30_000, ["seed 0", "seed 1"]) as display:
            train(config, "builtin", Settings(seeds=(0, 1)), out="runs/example", display=display)
    """

    def __init__(
        self,
        total_updates: int,
        labels: Sequence[str],
        *,
        kappa: float | None = None,
        reference: tuple[float, float] | None = None,
        console: Console | None = None,
    ):
        """`labels` name the members in order; `kappa` is the bound on L_c of members that do not sweep it.

        `reference` is (min, max) in raw returns: with it scores are shown normalised, too.
        """
        self._total = total_updates
        self._labels = labels
        self._kappa = kappa
        self._reference = reference
        self._console = console or Console()
        self._live: rich.live.Live | None = None
        self._metrics: dict[int, dict[str, Any]] = {}
        self._evaluations: dict[int, dict[str, Any]] = {}
        self._best: dict[int, float] = {}
        self._alive = set(range(len(labels)))
        self._doing = "starting"
        self._update = 0
        self._episodes = 0
        self._rate = math.nan
        self._clock: tuple[int, float] | None = None
        self._shown = time.monotonic()

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._doing = "done" if exception[0] is None else "stopped"
            self._live.update(self._render())
            self._live.stop()
            self._live = None

    def start(self, update: int, best: Mapping[int, float]) -> None:
        """Training begins after `update` updates, with the best scores so far by member (both from before a resume)."""
        self._update, self._best = update, dict(best)
        self._doing = "compiling"
        if self._console.is_interactive:
            self._live = rich.live.Live(self._render(), console=self._console, auto_refresh=False)
            self._live.start(refresh=True)

    def waiting(self) -> None:
        """The device is busy: time to draw."""
        self._show()

    def logged(self, update: int, rows: Sequence[dict[str, Any]]) -> None:
        """New metrics, a row per living member."""
        self._update, self._doing = update, "training"
        self._metrics |= {row["member"]: row for row in rows}
        self._alive = {row["member"] for row in rows}
        if rows:
            self._rate = rows[0]["updates_per_second"]
        if self._clock is None:
            self._clock = update, time.monotonic()
        self._show()

    def evaluating(self, step: int, alive: int) -> None:
        """An evaluation is at `step` with `alive` episodes still running."""
        self._episodes = max(alive, self._episodes if step else 0)
        self._doing = f"evaluating, step {step:,}, {alive} of {self._episodes} episodes running"
        self._show()

    def evaluated(self, update: int, rows: Sequence[dict[str, Any]]) -> None:
        """New scores, a row per living member."""
        self._update, self._doing = update, "training"
        self._evaluations |= {row["member"]: row for row in rows}
        for row in rows:
            if row["score"] is not None:
                self._best[row["member"]] = max(row["score"], self._best.get(row["member"], -math.inf))
        self._show(rows)

    def note(self, text: str) -> None:
        """A line that stays."""
        self._console.print(Text(text), soft_wrap=True)

    def _show(self, scores: Sequence[dict[str, Any]] = ()) -> None:
        """Draws or prints, if there are new scores or it is time to."""
        pause = LINE_SECONDS if self._live is None else DRAW_SECONDS
        if not scores and time.monotonic() - self._shown < pause:
            return
        self._shown = time.monotonic()
        if self._live is not None:
            self._live.update(self._render(), refresh=True)
        else:
            self.note("; ".join([self._words(), *(self._score_words(scores) or [self._doing])]))

    def _words(self) -> str:
        words = f"{self._update:,} of {self._total:,} updates"
        if math.isfinite(self._rate):
            words += f", {number_words(self._rate)} updates/s"
            if self._update < self._total:
                words += f", {timedelta(seconds=round(self._seconds_left()))} left"
        return words

    def _seconds_left(self) -> float:
        """By the clock since the first metrics (that is, with evaluations and without compilation)."""
        left = self._total - self._update
        if self._clock is None or self._clock[0] == self._update:
            return left / self._rate
        update, then = self._clock
        return left * (time.monotonic() - then) / (self._update - update)

    def _score_words(self, rows: Sequence[dict[str, Any]]) -> list[str]:
        words = []
        for row in rows[:MAX_ROWS]:
            loss = f"selection/loss {_value(row['diagnose']['selection/loss'])}"
            score = loss if row["score"] is None else self._score(row["score"])
            words.append(f"{self._labels[row['member']]}: {score}")
        return words + _and_more(len(rows))

    def _score(self, score: float) -> str:
        return score_words(score, None if self._reference is None else float(normalised_score(score, self._reference)))

    def _render(self) -> Group:
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        bar.add_row(ProgressBar(total=self._total, completed=self._update), Text(self._words()))
        return Group(bar, Text(self._doing, style="dim"), *([self._table()] if self._metrics else []))

    def _table(self) -> Table:
        members = [self._cells(index) for index in range(min(len(self._labels), MAX_ROWS))]
        names = list(dict.fromkeys(name for cells in members for name in cells))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        table.add_column("member")
        for name in names:
            table.add_column(Text(name), justify="right")
        for index, cells in enumerate(members):
            alive = index in self._alive
            label = self._labels[index] if alive else f"{self._labels[index]} (stopped)"
            table.add_row(Text(label), *(cells.get(name, "") for name in names), style="" if alive else "dim")
        for words in _and_more(len(self._labels)):
            table.add_row(words)
        return table

    def _cells(self, index: int) -> dict[str, str]:
        """What is known of a member, by the heading of its column."""
        cells = {}
        evaluation, metrics = self._evaluations.get(index), self._metrics.get(index, {})
        if evaluation is not None and evaluation["score"] is None:
            cells["selection/loss"] = _value(evaluation["diagnose"]["selection/loss"])
        elif evaluation is not None:
            cells["score"] = self._score(evaluation["score"])
            cells["best"] = self._score(self._best[index])
        if "actor/bc_loss" in metrics:
            loss = _value(metrics["actor/bc_loss"])
            if "kappa" in metrics:
                cells["L_c / κ"] = f"{loss} / {metrics['kappa']:g}"
            else:
                cells["L_c" if self._kappa is None else f"L_c\n(κ {self._kappa:g})"] = loss
        for name, heading in METRICS.items():
            if name in metrics:
                cells[heading] = _value(metrics[name])
        return cells


def _value(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _and_more(count: int) -> list[str]:
    return [f"... and {count - MAX_ROWS} more"] if count > MAX_ROWS else []
