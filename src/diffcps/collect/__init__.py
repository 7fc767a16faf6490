"""Making datasets without downloads: D4RL's recipes in today's simulators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from diffcps.collect.request import CollectionRequest
from diffcps.storage import check_ours
from diffcps.types import UserError


def collect(
    task: str,
    out: Path,
    *,
    transitions: int,
    seed: int,
    fast: bool,
    resume: bool,
    say: Callable[[str], None],
    environment: str | None = None,
    policy: Path | None = None,
) -> Path:
    """Makes the dataset of a task and returns its path, `out`. `environment` is for locomotion only, `policy`
    (a file of `train_ant_policy`) for AntMaze only; `CollectionRequest` explains the rest.

    Raises `UserError` for a task that no recipe makes, an `out` that is no HDF5 file, and what the recipes refuse.
    """
    from diffcps.collect.antmaze import collect_antmaze
    from diffcps.collect.locomotion import ENVIRONMENTS, collect_locomotion
    from diffcps.collect.maze2d import collect_maze2d

    family = task.split("-")[0]
    families = ["maze2d", "antmaze", *ENVIRONMENTS]
    if family not in families:
        raise UserError(f"no recipe for {task!r}: data are made for tasks of {', '.join(families)}")
    if environment is not None and family not in ENVIRONMENTS:
        raise UserError(f"{task}: its environment is part of the task; leave out --env")
    if policy is not None and family != "antmaze":
        raise UserError(f"{task}: only AntMaze needs the policy of an ant; leave out --policy")

    if not out.exists():  # otherwise the recipe decides what becomes of it
        check_ours(out.with_suffix(".png"))
    request = CollectionRequest(task, out, transitions, seed, fast, resume, say)
    match family:
        case "maze2d":
            return collect_maze2d(request)
        case "antmaze":
            return collect_antmaze(request, policy)
        case _:
            return collect_locomotion(request, environment)
