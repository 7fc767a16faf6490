"""The catalogue of tasks: what each is called, where its data come from, what they must be, how it is scored.

The facts stand in `catalogue.json`, each at the level to which it belongs: family, environment or task.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType

from diffcps.types import UserError

COLLECTED = ("gym", "antmaze", "maze2d")
"""Families for which `diffcps data collect` makes data of the kind."""
FLAT_ON_MINARI = ("gym", "adroit")
"""Families whose Minari datasets have flat observations, so that they can be read."""


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


def data_folder() -> Path:
    """Where downloaded data are kept: `DIFFCPS_DATA`, else `diffcps` in the user's cache (`XDG_CACHE_HOME`)."""
    if given := os.environ.get("DIFFCPS_DATA"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffcps"


def data_file(task: Task) -> Path:
    """Where the task's data are kept once they are here.

    TriFinger's data are a folder, which may also lie where their package puts it.
    """
    if task.family == "trifinger":
        of_package = Path.home() / ".trifinger_rl_datasets" / f"{task.id}.zarr"
        return of_package if of_package.exists() else data_folder() / of_package.name
    return data_folder() / (task.id + Path(task.url).suffix)


def state_of(task: Task) -> str:
    """Whether the data are here: "yes", "no", "part" of a download, or "wrong size"."""
    path = data_file(task)
    if path.exists():
        wrong = task.bytes is not None and path.stat().st_size != task.bytes
        return "wrong size" if wrong else "yes"
    return "part" if part_file(path).exists() else "no"


def part_file(path: Path) -> Path:
    """Where a download of `path` is gathered until it is complete."""
    return path.with_name(path.name + ".part")


def where_from(task: Task) -> str:
    """What a person without the data can do, as the end of a sentence."""
    ways = [f"give a copy with `diffcps data get {task.id} --from FILE`, or another address with --url"]
    if task.minari is not None and task.family in FLAT_ON_MINARI:
        ways.append(f"take Minari's {task.minari} with --minari")
    if task.family in COLLECTED:
        ways.append(f"make data of the kind with `diffcps data collect {task.id}`")
    return ", or ".join(ways)
