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

COLUMNS = ("rows", "MB", "SHA", "preset", "nearest on Minari", "here")


def task_tables(tasks: Sequence[Mapping[str, Any]]) -> Group:
    """A block for each family, a table for each environment, a row for each task; 100 columns wide."""
    parts: list[Any] = []
    width = max(len(task["id"]) for task in tasks)
    for _, members in groupby(tasks, key=lambda task: task["family"]):
        family = list(members)
        first = family[0]
        licence = f"licence {_known(first['licence'])}"
        parts.append(Text(f"{first['family']}   {first['source']}, {licence}", style="bold underline"))
        parts += [Text(note, style="dim") for note in dict.fromkeys(task["note"] for task in family) if note]
        for _, rows in groupby(family, key=lambda task: task["environment"]):
            parts.append(_environment_table(list(rows), width))
        parts.append(Text())
    parts.append(
        Text(
            "rows: of the published file; SHA: its SHA-256 is known and checked; preset: of DiffCPS and its peers; "
            "here: in the data folder; -: not established, or none",
            style="dim",
        )
    )
    return Group(*parts)


def _environment_table(tasks: Sequence[Mapping[str, Any]], width: int) -> Table:
    one = tasks[0]
    words = f"{one['environment']}   observation {one['observation_size']}, action {one['action_size']}, "
    words += f"episodes of {one['max_steps']} steps"
    if one["reference_max"] is not None:
        words += f", score 0: {one['reference_min']:.6g}, 100: {one['reference_max']:.6g}"
    table = Table(title=Text(words, style="cyan"), title_justify="left", box=None, pad_edge=False, header_style="dim")
    table.add_column("task", no_wrap=True, min_width=width)
    for name in COLUMNS:
        table.add_column(name, justify="right" if name in ("rows", "MB") else "left", no_wrap=True)
    table.columns[1].min_width, table.columns[2].min_width, table.columns[5].min_width = 9, 5, 20
    for task in tasks:
        size = None if task["bytes"] is None else f"{task['bytes'] / 1e6:,.0f}"
        rows = None if task["transitions"] is None else f"{task['transitions']:,}"
        marks = ["yes" if task[name] else "-" for name in ("sha256", "preset")]
        cells = [task["id"], _known(rows), _known(size), *marks, _known(task["minari"]), task["here"]]
        table.add_row(*map(Text, cells))
    return table


def _known(value: Any) -> str:
    return "-" if value is None else str(value)


@contextmanager
def download_bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar with rate and remaining time; what it yields is called with the bytes that are here and those in all."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn()) as bar:
        task = bar.add_task(name, total=None)

        def show(done: int, total: int | None) -> None:
            bar.update(task, completed=done, total=total)

        yield show
