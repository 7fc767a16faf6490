"""The catalogue of tasks in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from diffcps.tasks.catalogue import Task

COLUMNS = ("task", "here", "rows", "MB", "SHA", "preset", "Minari")
EXPLANATION = (
    "here: in the data folder. rows: of the published file. SHA: its SHA-256 is known and checked.\n"
    "preset: of one method or more. Minari: the nearest dataset there. -: not established, or none."
)


def task_tables(tasks: Sequence[Task], state_of: Callable[[Task], str]) -> Group:
    """A block for each family, in it a table for each environment, with a row for each task.

    `state_of` says whether a task's data are here. 100 columns wide; in a narrower terminal the last column is cut.
    """
    parts: list[RenderableType] = []
    for name, members in groupby(tasks, key=lambda task: task.family):
        family = list(members)
        note = family[0].note
        parts.append(Text(f"{name}: {family[0].source}, licence {_known(family[0].licence)}. {note}", style="bold"))
        cells = [_cells(task, state_of(task)) for task in family]
        widths = [max(len(row[i]) for row in [*cells, COLUMNS]) for i in range(len(COLUMNS))]
        for heading, pairs in groupby(zip(family, cells, strict=True), key=lambda pair: _environment_text(pair[0])):
            environment, rows = zip(*pairs, strict=True)
            own = environment[0].note.removeprefix(note)
            parts.append(Text(f"\n{heading}{'.' + own if own else ''}", style="cyan"))
            parts.append(_table(rows, widths, header=rows[0] is cells[0]))
        parts.append(Text())
    return Group(*parts, Text(EXPLANATION, style="dim"))


def _environment_text(task: Task) -> str:
    name = task.environment if task.environment != task.id else "environments of the same names"
    text = f"{name}: observation {task.observation_size}, action {task.action_size}, {task.max_steps} steps"
    if task.reference_max is not None:
        text += f", score 0 at {task.reference_min:.5g}, 100 at {task.reference_max:.5g}"
    return text


def _cells(task: Task, state: str) -> list[str]:
    rows = None if task.transitions is None else f"{task.transitions:,}"
    size = None if task.bytes is None else f"{task.bytes / 1e6:,.0f}"
    marks = ["yes" if known else "-" for known in (task.sha256, task.preset)]
    return [task.id, state, _known(rows), _known(size), *marks, _known(task.minari)]


def _table(rows: Sequence[Sequence[str]], widths: Sequence[int], header: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=header, header_style="dim")
    for name, width in zip(COLUMNS, widths, strict=True):
        table.add_column(name, justify="right" if name in ("rows", "MB") else "left", no_wrap=True, min_width=width)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _known(value: str | None) -> str:
    return "-" if value is None else value
