"""Making datasets without downloads: D4RL's recipes in today's simulators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffcps.types import UserError

FAMILIES = {
    "maze2d": ("mazes", "collect_maze2d"),
    "antmaze": ("mazes", "collect_antmaze"),
    "hopper": ("locomotion", "collect_locomotion"),
    "halfcheetah": ("locomotion", "collect_locomotion"),
    "walker2d": ("locomotion", "collect_locomotion"),
    "ant": ("locomotion", "collect_locomotion"),
}
"""The first word of a task -> the module of this package that collects it, and the function in it."""


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
    (the file of a walking ant) for AntMaze only.

    Raises `UserError` for a task that no recipe makes, an `out` that is no HDF5 file, and what the recipes refuse.
    """
    from importlib import import_module

    family = task.split("-")[0]
    if family not in FAMILIES:
        raise UserError(f"no recipe for {task!r}: data are made for tasks of {', '.join(FAMILIES)}")
    if out.suffix not in (".hdf5", ".h5"):
        raise UserError(f"{out}: collected data are written as HDF5; name a file that ends in .hdf5")
    if transitions < 1 or seed < 0:
        raise UserError(f"{transitions} transitions with seed {seed}: take at least 1, and a seed from 0 on")
    module, function = FAMILIES[family]
    options: dict[str, Any] = {} if environment is None else {"environment": environment}
    if options and module != "locomotion":
        raise UserError(f"{task}: its environment is part of the task; leave out --env")
    if policy is not None:
        if family != "antmaze":
            raise UserError(f"{task}: nobody walks there; leave out --policy")
        options = {"policy": policy}
    make = getattr(import_module(f"{__name__}.{module}"), function)
    return make(task, out, transitions=transitions, seed=seed, fast=fast, resume=resume, say=say, **options)
