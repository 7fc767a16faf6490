"""What a person sees of a study: the runs that it is made of, and how far they are."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path

import rich.live
from rich import box
from rich.console import Console, Group
from rich.progress import track
from rich.table import Table
from rich.text import Text

from diffcps.run.table import number_text
from diffcps.study.cell import standing
from diffcps.study.estimate import CellTime
from diffcps.study.plan import Study
from diffcps.study.run import State, Work

MAX_FAILED = 10
"""Failed and lost cells that are shown; the others are counted."""
NUMBERS = {"members", "updates", "update", "of", "updates/s", "training"}
"""Columns of numbers."""
DRAW_SECONDS = 5.0
"""Least time between two drawings, each of which reads the logs of what runs."""
LINE_SECONDS = 60.0
"""Longest silence of a log."""


def plan_table(study: Study) -> Table:
    """A row for each cell."""
    total = sum(cell.request.settings.updates * cell.members for cell in study.cells)
    title = f"{study.name}: {len(study.cells)} runs, {total:,} updates of single members"
    table = _table(title, ("run", "method", "preset", "swept", "seeds", "members", "updates"))
    for cell in study.cells:
        request = cell.request
        swept = ", ".join(f"{name} {' '.join(f'{x:g}' for x in values)}" for name, values in request.sweep.items())
        table.add_row(
            *(Text(text) for text in (cell.name, request.method, request.preset or "–")),
            *(Text(text) for text in (swept or "–", " ".join(map(str, request.settings.seeds)), str(cell.members))),
            f"{request.settings.updates:,}",
        )
    return table


def time_table(times: Iterable[CellTime], count: int) -> Group:
    """How long the runs will take; they are measured as the table is made, with a bar for `count` of them."""
    table = _table("", ("run", "updates/s", "training", "evaluations, at most"))
    training, evaluations, unknown = 0.0, 0.0, 0
    for time_of in track(times, "measuring", total=count, console=Console(stderr=True), transient=True):
        seconds, name = time_of.seconds, Text(time_of.cell.name)
        if seconds is None:
            unknown += 1
            table.add_row(name, "–", "–", Text(time_of.why_not))
            continue
        training, evaluations = training + seconds.training, evaluations + seconds.evaluations
        table.add_row(name, number_text(1 / seconds.per_update), _hours(seconds.training), _hours(seconds.evaluations))
    total = f"training {_hours(training)}, evaluations at most {_hours(evaluations)}"
    left_out = f"; {unknown} runs not known" if unknown else ""
    return Group(
        Text(f"One run after the other on this machine as it is now: {total}{left_out}. New episodes come on top."),
        table,
    )


def _hours(seconds: float) -> str:
    """Hours and minutes."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes else f"{seconds:.0f} s"


def study_table(work: Sequence[Work], out: Path) -> Group:
    """How many cells are done, the running ones with their progress, the failed and the lost ones with their line."""
    counts = Counter(one.state for one in work)
    states: tuple[State, ...] = ("done", "running", "begun", "waiting", "failed")
    line = Text(", ".join(f"{counts[state]} {state}" for state in states if counts[state]))
    table = _table("", ("run", "update", "of", "updates/s", "last score", "left"))
    for one in work:
        if one.state not in ("running", "begun"):
            continue
        updates, at = one.cell.request.settings.updates, standing(out / one.cell.name)
        if at is None:
            table.add_row(Text(one.cell.name), "starting", f"{updates:,}", "", "", "")
            continue
        rate = at.updates_per_second
        left = "" if not rate else str(timedelta(seconds=round((updates - at.update) / rate)))
        table.add_row(
            Text(one.cell.name),
            f"{at.update:,}",
            f"{updates:,}",
            "" if rate is None else number_text(rate),
            "" if at.score is None else number_text(at.score),
            left,
        )
    said = sorted((one for one in work if one.line), key=lambda one: one.state)
    lines = [
        Text(f"{one.cell.name}: {one.line}", style="red" if one.state == "failed" else "yellow")
        for one in said[:MAX_FAILED]
    ]
    if len(said) > MAX_FAILED:
        lines.append(Text(f"and {len(said) - MAX_FAILED} more"))
    return Group(line, *([table] if table.row_count else []), *lines)


class LiveStudy:
    """A live view on a terminal; elsewhere a line where something has changed, and one a minute."""

    def __init__(self, out: Path, console: Console | None = None):
        self._out = out
        self._console = console or Console()
        self._live = rich.live.Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._states: dict[int, State] = {}
        self._said = time.monotonic()
        self._drawn = -math.inf

    def __enter__(self) -> LiveStudy:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, work: Sequence[Work]) -> None:
        """Shows all cells as they are now."""
        if self._live is not None:
            if time.monotonic() - self._drawn > DRAW_SECONDS or not any(one.state == "running" for one in work):
                self._live.update(study_table(work, self._out), refresh=True)
                self._drawn = time.monotonic()
            return
        for number, one in enumerate(work):
            if one.state != self._states.get(number, "waiting") and (one.state != "waiting" or one.line):
                self._console.print(Text(f"{one.state}: {one.cell.name} {one.line}".rstrip()))
            self._states[number] = one.state
        if time.monotonic() - self._said > LINE_SECONDS:
            self._console.print(study_table(work, self._out))
            self._said = time.monotonic()


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for name in columns:
        table.add_column(name, justify="right" if name in NUMBERS else "left", overflow="fold")
    return table
