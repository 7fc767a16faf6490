"""What the collections of both mazes share: a chain of trajectories, stored in parts, and its picture.

Each trajectory follows from the seed, its number and (for Maze2D) the state in which the one before it ended. Whole
trajectories are stored as they come, so that a collection goes on where it was left, with the same bits. docs/mazes.md
lists what differs from D4RL's scripts.

Reference: https://github.com/Farama-Foundation/D4RL, scripts/generation/generate_{maze2d,ant_maze}_datasets.py.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import numpy as np

from diffcps.collect.files import (
    SIMULATOR_STATE,
    TRANSITION,
    Columns,
    first_rows,
    join,
    load_part,
    write_d4rl,
)
from diffcps.collect.maze_picture import maze_figure
from diffcps.collect.request import CollectionRequest
from diffcps.data.writers import Attribute, write_npz
from diffcps.envs.mazes import Maze
from diffcps.plots import save_figure
from diffcps.storage import claim, locked
from diffcps.types import UserError

NAMES = (*TRANSITION, "infos/goal", *SIMULATOR_STATE)
"""Of the columns of a maze's file; `infos/goal` is where the trajectory leads, not what the rewards are about."""
PART_ROWS = 20_000
"""Rows after which a part is stored."""
FAST_TRANSITIONS = 3_000

MakeTrajectory: TypeAlias = Callable[[int, np.ndarray], tuple[Columns, np.ndarray]]
"""`make(number, state) -> trajectory, state after it`: the numbers count from 0."""


def check_task(task: str, known: list[str]) -> None:
    """Raises `UserError` where a task is none of those known."""
    if task not in known:
        raise UserError(f"{task} cannot be collected here; known are {', '.join(known)}")


def collect_trajectories(
    request: CollectionRequest,
    attributes: Mapping[str, Attribute],
    make_trajectory: MakeTrajectory,
    state: np.ndarray,
    statistics: Callable[[Columns], Mapping[str, Attribute]],
) -> Columns | None:
    """Collects until there are enough rows and writes the file; None where it was complete before.

    `state` is that before the first trajectory. Parts lie beside the file until `remove_parts`.
    """
    folder, transitions = _parts_folder(request.out), request.transitions
    if not folder.exists() and request.is_complete({**attributes, "transitions": transitions}):
        return None
    if (folder / "config.json").exists() and not request.resume:
        raise UserError(f"{request.out}: an unfinished collection lies in {folder}; add --resume, or remove it")

    with locked(folder):
        claim(folder / "config.json", {name: np.asarray(value).tolist() for name, value in attributes.items()})
        parts: list[Columns] = []
        number = 0
        for path in sorted(folder.glob("*.npz")):
            part = load_part(path)
            number, state = int(part.pop("next_piece")), part.pop("next_state")
            parts.append(part)
        rows = before = sum(len(part["rewards"]) for part in parts)
        began = time.monotonic()
        while rows < transitions:
            new: list[Columns] = []
            while (count := sum(len(part["rewards"]) for part in new)) < min(PART_ROWS, transitions - rows):
                trajectory, state = make_trajectory(number, state)
                new.append(trajectory)
                number += 1
            part = join(new)
            resumption = {"next_piece": np.asarray(number), "next_state": state}
            write_npz(folder / f"{len(parts):06d}.npz", part, resumption)
            parts.append(part)
            rows += count
            speed = (rows - before) / max(time.monotonic() - began, 1e-9)
            request.say(f"{min(rows, transitions):,} of {transitions:,} transitions, {speed:,.0f} a second")
        columns = first_rows(join(parts), transitions)
        write_d4rl(request.out, columns, {**attributes, **statistics(columns)})
    return columns


def remove_parts(request: CollectionRequest) -> Path:
    """Removes what the file and its picture have made superfluous; returns the file."""
    shutil.rmtree(_parts_folder(request.out), ignore_errors=True)
    return request.out


def _parts_folder(out: Path) -> Path:
    return out.with_name(out.name + ".parts")


def draw_trajectories(
    request: CollectionRequest,
    maze: Maze,
    columns: Columns,
    ends: np.ndarray,
    arrived: np.ndarray,
    *,
    start: np.ndarray | None,
    goal: np.ndarray,
) -> None:
    """The picture beside the file. `ends` and `arrived` as in `maze_figure`; `start` and `goal` are places (2,)."""
    xy = maze.map_position(columns["infos/qpos"][:, :2])
    marks = [None if place is None else maze.map_position(place) for place in (start, goal)]
    title = f"{request.task}: {len(xy):,} transitions, collected by diffcps"
    figure = maze_figure(maze.walls, xy, ends, arrived, title, start=marks[0], goal=marks[1])
    save_figure(figure, request.out.with_suffix(".png"), dpi=110)
