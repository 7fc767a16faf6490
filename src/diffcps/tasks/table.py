"""The catalogue of tasks in the terminal, and how far a download is.

`task_tables` takes the tasks as plain records (`dataclasses.asdict` of the catalogue's, with `here` added).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

COLUMNS = ("task", "here", "rows", "MB", "SHA", "preset", "Minari")
EXPLANATION = (
    "here: in the data folder. rows: of the published file. SHA: its SHA-256 is known and checked.\n"
    "preset: for DiffCPS and its peers. Minari: the nearest dataset there. -: not established, or none."
)


def task_tables(tasks: Sequence[Mapping[str, Any]]) -> Group:
    """A block for each family, in it a table for each environment, with a row for each task.

    100 columns wide; in a narrower terminal the last column is cut.
    """
    parts: list[Any] = []
    for name, members in groupby(tasks, key=lambda task: task["family"]):
        family = list(members)
        note = family[0]["note"]
        licence = _known(family[0]["licence"])
        parts.append(Text(f"{name}: {family[0]['source']}, licence {licence}. {note}", style="bold"))
        cells = [_cells(task) for task in family]
        widths = [max(len(row[i]) for row in [*cells, COLUMNS]) for i in range(len(COLUMNS))]
        for _, pairs in groupby(zip(family, cells, strict=True), key=lambda pair: _environment_words(pair[0])):
            environment, rows = zip(*pairs, strict=True)
            own = environment[0]["note"].removeprefix(note)
            parts.append(Text(f"\n{_environment_words(environment[0])}{'.' + own if own else ''}", style="cyan"))
            parts.append(_rows(rows, widths, header=rows[0] is cells[0]))
        parts.append(Text())
    return Group(*parts, Text(EXPLANATION, style="dim"))


def _environment_words(task: Mapping[str, Any]) -> str:
    name = task["environment"] if task["environment"] != task["id"] else "environments of the same names"
    words = f"{name}: observation {task['observation_size']}, action {task['action_size']}, "
    words += f"{task['max_steps']} steps"
    if task["reference_max"] is not None:
        words += f", score 0 at {task['reference_min']:.5g}, 100 at {task['reference_max']:.5g}"
    return words


def _cells(task: Mapping[str, Any]) -> list[str]:
    rows = None if task["transitions"] is None else f"{task['transitions']:,}"
    size = None if task["bytes"] is None else f"{task['bytes'] / 1e6:,.0f}"
    marks = ["yes" if task[name] else "-" for name in ("sha256", "preset")]
    return [task["id"], task["here"], _known(rows), _known(size), *marks, _known(task["minari"])]


def _rows(rows: Sequence[Sequence[str]], widths: Sequence[int], header: bool) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), show_header=header, header_style="dim")
    for name, width in zip(COLUMNS, widths, strict=True):
        table.add_column(name, justify="right" if name in ("rows", "MB") else "left", no_wrap=True, min_width=width)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _known(value: Any) -> str:
    return "-" if value is None else str(value)


@contextmanager
def download_bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar with rate and remaining time, on a terminal; what it yields is called with the bytes here and in all."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=None)

        def show(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield show
