"""Per-task hyper-parameters of the papers: METHOD.toml has a row per task, as in the paper's table."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType

NO_PRESET = "none"
"""What a person says in the place of a preset who wants a method's defaults on a task that has one."""


@dataclass(frozen=True)
class Preset:
    """What differs from a method's defaults on one task."""

    reward: str
    """Transform of the rewards (`diffcps.data.transforms`)."""
    fields: Mapping[str, object]
    """Fields of the method's `Config`."""


@cache
def presets_of(method: str) -> Mapping[str, Preset]:
    """Task -> preset, in the order of the method's file; empty where the method has none."""
    path = files(__name__) / f"{method}.toml"
    rows: dict[str, dict[str, object]] = tomllib.loads(path.read_text("utf-8")) if path.is_file() else {}
    return MappingProxyType({task: _preset(row) for task, row in rows.items()})


def _preset(row: Mapping[str, object]) -> Preset:
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in row.items()}
    return Preset(str(fields.pop("reward")), fields)
