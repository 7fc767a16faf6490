"""What the person who watches a training sees: a live table in a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Protocol, runtime_checkable

import rich.live
from rich import box
from rich.console import Console, Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from diffcps.algorithms import ALGORITHMS
from diffcps.data.account import account_lines
from diffcps.records.record import Evaluation, Measurement, RunRecord
from diffcps.run.table import number_text, score_text
from diffcps.tasks.references import normalised_score
from diffcps.training.members import Member
from diffcps.types import Metric

DRAW_SECONDS = 0.5
"""Least time between two drawings of the live area."""
LINE_SECONDS = 60.0
"""Longest silence of a log, in seconds."""
MAX_ROWS = 12
"""Members in the table; the others are counted."""


@runtime_checkable
class Display(Protocol):
    """What a run tells the person who watches."""

    def start(self, record: RunRecord, update: int, best: Mapping[int, float]) -> None:
        """Training begins after `update` updates, with the best scores so far by member (both of before a resume)."""
        ...

    def preparing(self, stage: int, stages: int, done: int, total: int) -> None:
        """A stage, counted from 1, computes before its first update what it needs, and has it for `done` of `total`
        rows; `total` is 0 where it is one computation: time to draw."""
        ...

    def waiting(self) -> None:
        """The device is busy: time to draw."""
        ...

    def logged(self, update: int, rows: Sequence[Measurement]) -> None:
        """New metrics, a row per living member."""
        ...

    def evaluating(self, step: int, alive: int) -> None:
        """An evaluation is at `step` with `alive` episodes still running."""
        ...

    def evaluated(self, update: int, rows: Sequence[Evaluation]) -> None:
        """New scores, a row per living member."""
        ...

    def note(self, text: str) -> None:
        """A line that stays."""
        ...


class Silent:
    """A display that shows nothing but what must not go unsaid, as warnings of the logger `diffcps`."""

    def start(self, record: RunRecord, update: int, best: Mapping[int, float]) -> None:
        for warning in record.dataset.account.warnings:
            self.note(f"{record.dataset.source}: {warning}")

    def preparing(self, stage: int, stages: int, done: int, total: int) -> None:
        pass

    def waiting(self) -> None:
        pass

    def logged(self, update: int, rows: Sequence[Measurement]) -> None:
        pass

    def evaluating(self, step: int, alive: int) -> None:
        pass

    def evaluated(self, update: int, rows: Sequence[Evaluation]) -> None:
        pass

    def note(self, text: str) -> None:
        logging.getLogger("diffcps").warning(text)


class Live:
    """Progress of a training: a bar and a table of members on a terminal, elsewhere a line per evaluation (and minute).

    Use it as a context manager, so that the terminal is left clean however the training ends:

        with Live() as display:
            train(config, "builtin", Settings(seeds=(0, 1)), out="runs/example", display=display)
    """

    def __init__(self, console: Console | None = None):
        self._console = console or Console()
        self._record: RunRecord | None = None
        self._members: Sequence[Member] = ()
        self._live: rich.live.Live | None = None
        self._measurements: dict[int, Measurement] = {}
        self._evaluations: dict[int, Evaluation] = {}
        self._best: dict[int, float] = {}
        self._alive: set[int] = set()
        self._doing = "starting"
        self._update = 0
        self._episodes = 0
        self._rate = math.nan
        self._clock: tuple[int, float] | None = None
        self._rows_clock: tuple[int, int, float] | None = None
        self._shown = time.monotonic()

    def __enter__(self) -> Live:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._doing = "done" if exception[0] is None else "stopped"
            self._live.update(self._render())
            self._live.stop()
            self._live = None

    def start(self, record: RunRecord, update: int, best: Mapping[int, float]) -> None:
        self._record, self._members = record, record.members
        self._alive = {member.index for member in self._members}
        self._update, self._best = update, dict(best)
        self._doing = "compiling"
        for line in account_lines(record.dataset.account):
            self.note(f"data: {line}")
        for line in record.dataset.account.warnings:
            self.note(f"warning: {line}")
        if self._console.is_interactive:
            self._live = rich.live.Live(self._render(), console=self._console, auto_refresh=False)
            self._live.start(refresh=True)

    def preparing(self, stage: int, stages: int, done: int, total: int) -> None:
        self._doing = f"before stage {stage} of {stages}, what it needs is computed for "
        self._doing += f"{total:,} rows, {done:,} done{self._rows_left(stage, done, total)}" if total else "all rows"
        self._show()

    def _rows_left(self, stage: int, done: int, total: int) -> str:
        """How long the other rows will take, by the clock since the first that were done here."""
        if self._rows_clock is None or self._rows_clock[0] != stage:
            self._rows_clock = stage, done, time.monotonic()
        _, first, then = self._rows_clock
        if done == first:
            return ""
        left = (total - done) * (time.monotonic() - then) / (done - first)
        return f", {timedelta(seconds=round(left))} left"

    def waiting(self) -> None:
        self._doing = "training" if self._measurements else "compiling"
        self._show()

    def logged(self, update: int, rows: Sequence[Measurement]) -> None:
        self._update, self._doing = update, "training"
        self._measurements |= {row.member.index: row for row in rows}
        self._alive = {row.member.index for row in rows}
        if rows:
            self._rate = rows[0].updates_per_second
        if self._clock is None:
            self._clock = update, time.monotonic()
        self._show()

    def evaluating(self, step: int, alive: int) -> None:
        self._episodes = max(alive, self._episodes if step else 0)
        self._doing = f"evaluating, step {step:,}, {alive} of {self._episodes} episodes running"
        self._show()

    def evaluated(self, update: int, rows: Sequence[Evaluation]) -> None:
        self._update, self._doing = update, "training"
        self._evaluations |= {row.member.index: row for row in rows}
        for row in rows:
            if row.score is not None:
                self._best[row.member.index] = max(row.score, self._best.get(row.member.index, -math.inf))
        self._show(rows)

    def note(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def _show(self, scores: Sequence[Evaluation] = ()) -> None:
        """Draws or prints, if there are new scores or it is time to."""
        pause = LINE_SECONDS if self._live is None else DRAW_SECONDS
        if not scores and time.monotonic() - self._shown < pause:
            return
        self._shown = time.monotonic()
        if self._live is not None:
            self._live.update(self._render(), refresh=True)
        else:
            self.note("; ".join([self._words(), *(self._score_words(scores) or [self._doing])]))

    @property
    def _total_updates(self) -> int:
        return 0 if self._record is None else self._record.settings.updates

    def _words(self) -> str:
        words = f"{self._update:,} of {self._total_updates:,} updates"
        if math.isfinite(self._rate):
            words += f", {number_text(self._rate)} updates/s"
            if self._update < self._total_updates:
                words += f", {timedelta(seconds=round(self._seconds_left()))} left"
        return words

    def _seconds_left(self) -> float:
        """By the clock since the first metrics (that is, with evaluations and without compilation)."""
        left = self._total_updates - self._update
        if self._clock is None or self._clock[0] == self._update:
            return left / self._rate
        update, then = self._clock
        return left * (time.monotonic() - then) / (self._update - update)

    def _score_words(self, rows: Sequence[Evaluation]) -> list[str]:
        words: list[str] = []
        for row in rows[:MAX_ROWS]:
            loss = f"{'no score, ' if row.failure else ''}selection/loss {_value(row.selection_loss)}"
            score = loss if row.score is None else self._score(row.score)
            further = [f", by {rule} {self._score(played.score)}" for rule, played in row.also.items()]
            words.append(f"{row.member.label}: {score}{''.join(further)}")
        return words + _and_more(len(rows))

    def _score(self, score: float) -> str:
        reference = None if self._record is None else self._record.reference
        return score_text(score, None if reference is None else float(normalised_score(score, reference)))

    def _render(self) -> Group:
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True)
        bar.add_row(ProgressBar(total=self._total_updates, completed=self._update), Text(self._words()))
        return Group(bar, Text(self._doing, style="dim"), *([self._table()] if self._measurements else []))

    def _table(self) -> Table:
        shown = self._members[:MAX_ROWS]
        cells = [self._cells(member) for member in shown]
        names = list(dict.fromkeys(name for of_member in cells for name in of_member))
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        table.add_column("member")
        for name in names:
            table.add_column(Text(name), justify="right")
        for member, own in zip(shown, cells, strict=True):
            alive = member.index in self._alive
            label = member.label if alive else f"{member.label} (stopped)"
            table.add_row(Text(label), *(own.get(name, "") for name in names), style="" if alive else "dim")
        for words in _and_more(len(self._members)):
            table.add_row(words)
        return table

    def _cells(self, member: Member) -> dict[str, str]:
        """What is known of a member, by the heading of its column."""
        cells: dict[str, str] = {}
        evaluation = self._evaluations.get(member.index)
        if evaluation is not None and evaluation.score is None:
            cells["selection/loss"] = _value(evaluation.selection_loss)
        elif evaluation is not None and evaluation.score is not None:
            cells["score"] = self._score(evaluation.score)
            cells["best"] = self._score(self._best[member.index])
            cells |= {f"by {rule}": self._score(played.score) for rule, played in evaluation.also.items()}
        measurement = self._measurements.get(member.index)
        if measurement is not None and self._record is not None:
            for name, metric in ALGORITHMS[self._record.algorithm].METRICS.items():
                if metric.symbol and name in measurement.metrics:
                    heading, text = _with_bound(metric, self._record, member)
                    cells[heading] = _value(measurement.metrics[name]) + text
        return cells


def _with_bound(metric: Metric, record: RunRecord, member: Member) -> tuple[str, str]:
    """The heading of a metric, with its bound; where the bound is swept, it stands behind each value instead."""
    if not metric.bound:
        return metric.symbol, ""
    if metric.bound in member.swept:
        return f"{metric.symbol} / {metric.bound}", f" / {member.swept[metric.bound]:g}"
    return f"{metric.symbol}\n(≤ {getattr(record.config, metric.bound):g})", ""


def _value(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _and_more(count: int) -> list[str]:
    return [f"... and {count - MAX_ROWS} more"] if count > MAX_ROWS else []
