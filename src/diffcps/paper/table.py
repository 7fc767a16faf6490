"""The tables of what is reproduced: rows are frozen dataclasses, files CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffcps.records.fields import values_of
from diffcps.storage import write_atomically
from diffcps.types import Configuration

KEYS = ("method", "num_steps")
"""Columns that name a line of a Markdown table."""
UNAVERAGED = ("seed", "episodes")
"""Columns that have no place in it."""


def write_csv(path: Path, rows: Sequence[Configuration]) -> None:
    """A line for every row, a column for every field."""
    table = [values_of(row) for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    write_atomically(path, text.getvalue().encode())


def write_markdown(path: Path, rows: Sequence[Configuration]) -> None:
    """Mean and standard deviation over the seeds, a line for every method and T."""
    table = [values_of(row) for row in rows]
    keys = [name for name in table[0] if name in KEYS]
    scores = [name for name in table[0] if name not in (*KEYS, *UNAVERAGED)]
    groups: dict[tuple[str, ...], list[dict[str, object]]] = {}
    for row in table:
        groups.setdefault(tuple("" if row[key] is None else str(row[key]) for key in keys), []).append(row)
    lines = [_line([name.replace("_", " ") for name in (*keys, *scores)]), "|---" * len([*keys, *scores]) + "|"]
    lines += [_line([*group, *(_mean([row[name] for row in own]) for name in scores)]) for group, own in groups.items()]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _mean(values: Sequence[object]) -> str:
    x = np.asarray(values, float)
    return f"{x.mean():.3f}" + (f" ± {x.std():.3f}" if len(x) > 1 else "")
