"""Plans as text: what `tomllib` reads is written here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import cast

Table = Mapping[str, object]


def toml_text(content: Table) -> str:
    """Tables of text, numbers, truth values and lists of them, as TOML. Raises `TypeError` for anything else."""
    return "\n".join(_lines(content, ())).strip("\n") + "\n"


def _lines(table: Table, path: Sequence[str]) -> Iterator[str]:
    values = {name: value for name, value in table.items() if not isinstance(value, Mapping)}
    tables = {name: cast(Table, value) for name, value in table.items() if isinstance(value, Mapping)}
    if path and (values or not tables):
        yield from ("", f"[{'.'.join(map(_key, path))}]")
    for name, value in values.items():
        yield f"{_key(name)} = {_value(value)}"
    for name, inner in tables.items():
        yield from _lines(inner, [*path, name])


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def _value(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_value, cast(Sequence[object], value)))}]"
    if isinstance(value, bool | str):
        return json.dumps(value)
    if isinstance(value, int | float):
        return repr(value)
    raise TypeError(f"{value!r} cannot be written as TOML")
