"""Numbers that others have published, to stand beside those of a study.

[published]
source = "arXiv:2310.05333, Table 1"
protocol = "mean of five seeds"                 # how the numbers came about
unit = "normalised"                             # or "success": shares of the episodes

[published.scores."diffcps num_steps=5"]        # a row of the study's tables
hopper-medium-v2 = [100.1, 3.5]                 # mean and deviation over seeds, or the mean alone

[published.averages."diffcps num_steps=5"]
Locomotion = 92.0                               # over a group of data; `average` where the plan has no groups
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast

from diffcps.records import fields
from diffcps.types import UserError

Table = Mapping[str, object]

Unit = Literal["normalised", "return", "success"]
"""Normalised: 0 is the random policy, 100 the expert. Success: share of the episodes."""
PUBLISHED_UNITS: tuple[Unit, ...] = ("normalised", "success")


class Number(NamedTuple):
    """A published mean over seeds."""

    mean: float
    deviation: float | None = None


@dataclass(frozen=True)
class Published:
    """Numbers of one source, made by one protocol."""

    source: str
    protocol: str
    unit: Unit
    scores: Mapping[str, Mapping[str, Number]]
    """By row and data."""
    averages: Mapping[str, Mapping[str, Number]]
    """By row and group of data."""


def published_of(table: Table, rows: Sequence[str], data: Sequence[str], groups: Sequence[str]) -> Published:
    """The table [published] of a plan that has these rows, data and groups. Raises `UserError` with the place."""
    texts = ("source", "protocol", "unit")
    for name in table:
        if name not in (*texts, "scores", "averages"):
            raise UserError(f"published: {fields.unknown_name(name, (*texts, 'scores', 'averages'))}")
    values = {"unit": "normalised", **{name: table[name] for name in texts if name in table}}
    for name in texts:
        if not isinstance(values.get(name), str):
            raise UserError(f"published.{name}: must be text: say where the numbers stand and how they came about")
    if values["unit"] not in PUBLISHED_UNITS:
        raise UserError(f"published.unit: {fields.unknown_name(str(values['unit']), PUBLISHED_UNITS, 'unit')}")
    return Published(
        source=str(values["source"]),
        protocol=str(values["protocol"]),
        unit=cast(Unit, values["unit"]),
        scores=_numbers(table.get("scores", {}), "published.scores", rows, data, "data"),
        averages=_numbers(table.get("averages", {}), "published.averages", rows, groups, "group"),
    )


def _numbers(
    tables: object, where: str, rows: Sequence[str], columns: Sequence[str], what: str
) -> dict[str, dict[str, Number]]:
    if not isinstance(tables, dict):
        raise UserError(f"{where}: must have a table for each row")
    found: dict[str, dict[str, Number]] = {}
    for row, table in cast(Table, tables).items():
        if row not in rows:
            raise UserError(f"{where}: {fields.unknown_name(row, rows, 'row')}")
        if not isinstance(table, dict):
            raise UserError(f"{where}.{row}: is {table!r}, and must be a table")
        found[row] = {}
        for column, value in cast(Table, table).items():
            if column not in columns:
                raise UserError(f"{where}.{row}: {fields.unknown_name(column, columns, what)}")
            found[row][column] = _number(value, f"{where}.{row}.{column}")
    return found


def _number(value: object, where: str) -> Number:
    values = cast(list[object], value) if isinstance(value, list) else [value]
    if len(values) not in (1, 2) or any(isinstance(x, bool) or not isinstance(x, int | float) for x in values):
        raise UserError(f"{where}: is {value!r}, and must be a mean or [mean, deviation]")
    return Number(*(float(cast(float, x)) for x in values))
