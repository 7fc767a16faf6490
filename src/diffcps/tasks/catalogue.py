"""The catalogue of tasks: what each is called, where its data come from, what they must be, how it is scored.

The facts stand in `catalogue.json`, each at the level to which it belongs: family, environment or task.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from diffcps.types import UserError

COLLECTED = ("gym", "antmaze", "maze2d")
"""Families for which `diffcps data collect` makes data of the kind."""
FLAT_ON_MINARI = ("gym", "adroit")
"""Families whose Minari datasets have the benchmark's own flat observations. Those of the others are dictionaries, and
what is flattened from them is not what the task's environment here gives."""


@dataclass(frozen=True)
class Task:
    """One task: a dataset and the environment that scores policies on it. None is what nobody has established."""

    id: str
    """The benchmark's own name, such as hopper-medium-v2."""
    family: str
    source: str
    """The benchmark."""
    licence: str | None
    """SPDX identifier of the data's licence; where `note` says so, of the package's."""
    environment: str
    """Id for `diffcps.envs.make.make_environment`."""
    observation_size: int
    action_size: int
    max_steps: int
    """Time limit of an episode."""
    url: str
    """Where the benchmark's own program fetches the data."""
    bytes: int | None = None
    sha256: str | None = None
    reference_min: float | None = None
    """Return of normalised score 0."""
    reference_max: float | None = None
    """Return of normalised score 100."""
    transitions: int | None = None
    """Rows of the published file (OGBench: rows that have a next observation)."""
    minari: str | None = None
    """Id of the nearest dataset that Minari hosts; `note` says how it differs."""
    preset: str | None = None
    """Name of its hyper-parameters in `diffcps.presets`, for the algorithms that have some."""
    note: str = ""


@cache
def catalogue() -> Mapping[str, Task]:
    """All tasks by their id, in the order of the catalogue."""
    known = {field.name for field in fields(Task)}
    found = {}
    for family, shared in json.loads((files("diffcps.tasks") / "catalogue.json").read_text("utf-8")).items():
        for environment, of_environment in shared["environments"].items():
            for task_id, own in of_environment["tasks"].items():
                facts = {key: value for key, value in (shared | of_environment | own).items() if key in known}
                facts["url"] += own["file"]
                facts["note"] = " ".join(level["note"] for level in (shared, of_environment, own) if "note" in level)
                found[task_id] = Task(id=task_id, family=family, environment=environment, **facts)
    return MappingProxyType(found)


def find_task(task_id: str) -> Task:
    """The task of this id. Raises `UserError`, with the nearest id, where there is none."""
    tasks = catalogue()
    if task_id not in tasks:
        nearest = difflib.get_close_matches(task_id, tasks, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else "`diffcps data list` shows all"
        raise UserError(f"unknown task {task_id!r}: {hint}")
    return tasks[task_id]
