"""`load_dataset`: all data come in through it, whatever their format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from diffcps.data import transforms
from diffcps.data.actions import Box, action_boxes, cut_off
from diffcps.data.checks import Rows, check_rows
from diffcps.data.download import data_file, where_from
from diffcps.data.ends import Ends, find_ends, side_by_side
from diffcps.data.scaling import Scaling
from diffcps.data.split import best_episodes
from diffcps.data.suspicions import find_warnings
from diffcps.readers.ogbench import read_ogbench
from diffcps.readers.rows import PIECE_ROWS, RawRows
from diffcps.readers.source import read_source, refuse_words
from diffcps.tasks.catalogue import Task, catalogue, find_task
from diffcps.types import (
    Account,
    Dataset,
    DatasetInfo,
    EnvAction,
    EnvironmentSpec,
    Reading,
    RewardTransform,
    UserError,
)

BoxOf = Callable[[EnvironmentSpec | None], tuple[str, Box] | None]
"""Name and action box of the environment that scores a run on data of this environment; None where there is none."""


def load_dataset(
    source: str | Path | Sequence[str | Path],
    *,
    top_episodes: float | int = 1.0,
    reward: RewardTransform = "none",
    reward_scale: float | int = 1.0,
    normalise_observation: bool = False,
    clip_actions: bool = False,
    continuous_actions: bool = False,
    action_low: float | int | Sequence[float | int] = (),
    action_high: float | int | Sequence[float | int] = (),
    environments: int | None = None,
    timeout_next: Literal["real", "none"] | None = None,
    columns: Sequence[str] = (),
    observation_keys: Sequence[str] = (),
    environment: EnvironmentSpec | str | None = None,
    task: str | None = None,
) -> Dataset:
    """Read, check and transform logged transitions into numpy arrays (float32, flags bool).

    `source` is a task of the catalogue whose data are here (`diffcps data list`), a D4RL-layout file (.hdf5, .h5,
    .npz), a table (.csv, .parquet), a robomimic or d3rlpy file, several of these files or a folder of them, a Minari
    dataset (local folder, or id, which is downloaded when absent), a TriFinger dataset (folder TASK.zarr), or the word
    `builtin`. Actions are scaled from their box to [-1, 1]; the box is `action_low` and
    `action_high`, else the one that the source names, else [-1, 1]. The other words are those of `Reading`.

    `task` names the task that the data are used for; by default it is `source`, where that is one. The environment id
    and the reference scores are then the task's, as far as it has any, and otherwise those that the file names;
    `environment`, an id or a specification, overrides it.

    `info.account` has the books: which rows became transitions, which were dropped and why, what was converted, what is
    suspicious. Raises `UserError`, one line, for whatever is wrong with the source or its contents.
    """
    reading = Reading(
        columns=tuple(columns),
        observation_keys=tuple(observation_keys),
        environments=environments,
        timeout_next=timeout_next,
        continuous_actions=continuous_actions,
        action_low=_numbers(action_low),
        action_high=_numbers(action_high),
        clip_actions=clip_actions,
        top_episodes=float(top_episodes),
        reward=reward,
        reward_scale=float(reward_scale),
        normalise_observation=normalise_observation,
    )
    several = not isinstance(source, str | Path)
    name = ",".join(map(str, source)) if several else str(source)
    named = EnvironmentSpec(environment) if isinstance(environment, str) else environment
    return load(name, reading, environment=named, task=task)


def _numbers(given: float | int | Sequence[float | int]) -> tuple[float, ...]:
    return (float(given),) if isinstance(given, float | int) else tuple(map(float, given))


def load(
    source: str,
    reading: Reading,
    *,
    environment: EnvironmentSpec | None = None,
    task: str | None = None,
    box_of: BoxOf = lambda _: None,
    known: transforms.MeanAndStd | None = None,
) -> Dataset:
    """As `load_dataset`. Where `box_of` knows the environment's action box, that of the data is compared with it.
    Observations that are to be normalised are so by `known`, the numbers of other data, else by their own."""
    raw, rows, ends, task = read(source, reading, task)
    environment = environment if environment is not None else raw.environment
    where, box = box_of(environment) or ("", None)
    boxes = action_boxes(raw, rows.action, reading, box, where, source)
    cut = cut_off(rows.action, boxes.data)
    notes = [*rows.notes, *ends.notes, boxes.note]
    if cut:
        notes.append(f"{cut} of {rows.action.size} entries of actions lay outside {boxes.data} and were cut off")
    unscaled = Scaling(np.zeros(1), np.ones(1), *boxes.data)
    rows = rows._replace(action=unscaled.scaled_action(EnvAction(rows.action)))
    info = DatasetInfo(
        source=source,
        sha256=raw.sha256,
        environment=environment,
        reference_min=raw.reference_min,
        reference_max=raw.reference_max,
        action_low=tuple(boxes.policy.low.tolist()),
        action_high=tuple(boxes.policy.high.tolist()),
        reading=reading,
        task=task,
    )
    dataset = transitions(rows, ends, info)
    warnings = (*ends.warnings, *find_warnings(dataset, rows.absent))
    account = Account(
        rows=rows.size,
        kept=dataset.size,
        dropped=ends.dropped,
        ends=ends.ends,
        read=tuple(raw.names.values()),
        ignored=raw.ignored,
        absent=rows.absent,
        notes=tuple(notes),
        warnings=warnings,
        ordered=ends.ordered,
    )
    dataset = replace(dataset, info=replace(info, account=account))
    if reading.top_episodes != 1:
        dataset = best_episodes(dataset, reading.top_episodes)
    if reading.normalise_observation:
        if known is None:
            dataset = transforms.normalise_observation(dataset, rows.shift, rows.scale)
        else:
            dataset = transforms.normalise_with(dataset, known, rows.shift, rows.scale)
    return transforms.transform_reward(dataset, reading.reward, reading.reward_scale)


def read(source: str, reading: Reading, task: str | None = None) -> tuple[RawRows, Rows, Ends, str | None]:
    """The rows of a source as it has them, checked, and which of them are transitions; and the task that they are used
    for. Actions are in the source's units. As in `load`."""
    if task is None and source in catalogue():
        task = source
    purpose = None if task is None else find_task(task)
    raw = read_raw(source, reading)
    rows = check_rows(raw, source, reading)
    if purpose is not None:
        raw = _for_task(raw, rows, purpose, source)
    if reading.environments is not None and reading.environments != 1:
        rows = side_by_side(rows, reading.environments, source)
    return raw, rows, find_ends(rows, reading, source), task


def _for_task(raw: RawRows, rows: Rows, task: Task, source: str) -> RawRows:
    """With the environment and the references of the task. Raises `UserError` where its sizes are others."""
    sizes, expected = (rows.observation.shape[1], rows.action.shape[1]), (task.observation_size, task.action_size)
    if sizes != expected:
        raise UserError(
            f"{source}: observations have {sizes[0]} and actions {sizes[1]} numbers, those of task {task.id} "
            f"{expected[0]} and {expected[1]}; name the task that the data belong to"
        )
    raw = raw._replace(environment=EnvironmentSpec(task.environment))
    if task.reference_max is not None:
        raw = raw._replace(reference_min=task.reference_min, reference_max=task.reference_max)
    return raw


def transitions(rows: Rows, ends: Ends, info: DatasetInfo) -> Dataset:
    """The transitions among checked rows, whose arrays it takes over: large ones are moved, not copied."""
    observation, following = rows.observation, rows.next_observation
    if following is None:
        following = np.empty((len(ends.kept), observation.shape[1]), np.float32)
        for start in range(0, len(following), PIECE_ROWS):
            following[start : start + PIECE_ROWS] = observation[ends.follower[start : start + PIECE_ROWS]]
    else:
        following = _moved(following, ends.kept)
    observation = _moved(observation, ends.kept)
    unknown = ~np.isfinite(following).all(axis=1)
    following[unknown] = observation[unknown]  # of terminal rows: nothing reads it
    return Dataset(
        observation=observation,
        action=_moved(rows.action, ends.kept),
        reward=rows.reward[ends.kept],
        next_observation=following,
        terminal=rows.terminal[ends.kept],
        timeout=ends.timeout,
        info=info,
    )


def _moved(array: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Rows `kept` (increasing) of an array, moved to its front."""
    if len(kept) == len(array):
        return array
    for start in range(0, len(kept), PIECE_ROWS):
        stop = min(start + PIECE_ROWS, len(kept))
        array[start:stop] = array[kept[start:stop]]
    return array[: len(kept)]


def read_raw(source: str, reading: Reading = Reading()) -> RawRows:  # noqa: B008 (it is immutable)
    """What a source holds, row by row and unchecked: fields are found and named, nothing else. Errors as above."""
    if source not in catalogue():
        return read_source(source, reading)
    refuse_words(reading, source, "a task's data")
    return _read_task(find_task(source))


def _read_task(task: Task) -> RawRows:
    path = data_file(task)
    if not path.exists():
        raise UserError(
            f"{task.id}: the data are not here; fetch them with `diffcps data get {task.id}`, or {where_from(task)}"
        )
    raw = read_ogbench(path, task) if task.family == "ogbench" else read_source(str(path))
    if task.sha256 is not None and raw.sha256 != task.sha256:
        raise UserError(f"{path}: not the published file of {task.id} (another SHA-256); remove it and get it again")
    return raw
