"""robomimic's HDF5 files (also robosuite's and MimicGen's, once observations are extracted): a group for each
demonstration,

    data/demo_0: actions, rewards, dones, obs/NAME, next_obs/NAME.

`dones` means one of three things, and the file does not say which: robomimic's `dataset_states_to_obs.py` sets it on
success (`--done_mode 0`, the machine-generated sets), at the end of a demonstration (1), or at both (2, the human
sets). `_read_terminals` says what is made of it.

Reference: https://robomimic.github.io/docs/datasets/overview.html, and robomimic/scripts/dataset_states_to_obs.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffcps.readers.hashes import sha256_of_file
from diffcps.readers.names import listed, natural_order
from diffcps.readers.parts import (
    Beside,
    array_at,
    beside,
    choose_keys,
    group_at,
    open_hdf5,
    read_flags,
    require_rows,
    vector_sizes,
)
from diffcps.readers.rows import RawRows, whole
from diffcps.types import UserError

if TYPE_CHECKING:
    import h5py

READ = {
    "observation": "obs",
    "action": "actions",
    "reward": "rewards",
    "terminal": "dones",
    "next_observation": "next_obs",
}
"""Our field -> its name in a demonstration."""


def is_robomimic(path: Path) -> bool:
    """Whether a file is HDF5 with a group `data` that holds groups with `actions`. False for what cannot be read."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            data = file.get("data")
            return isinstance(data, h5py.Group) and any(
                isinstance(item, h5py.Group) and "actions" in item for item in data.values()
            )
    except (OSError, RuntimeError, KeyError):
        return False


def read_robomimic(path: Path, source: str, observation_keys: tuple[str, ...]) -> RawRows:
    """All demonstrations of a file, in the order of their numbers; each is an episode.

    An observation is `observation_keys` of `obs` side by side in that order; without keys all of them, sorted by name,
    where all are vectors. `source` is how messages call the file. `mask` is not looked at: all demonstrations are read.

    Raises `UserError` where the file is damaged, a demonstration lacks what others have or differs in sizes, a key does
    not exist or is no vector, or keys are needed.
    """
    sha256 = sha256_of_file(path, source)
    with open_hdf5(path, source) as file:
        demos = _demonstrations(file, source)
        first = group_at(file, demos[0], source)
        parts = choose_keys(vector_sizes(group_at(first, "obs", source)), observation_keys, source, "obs")
        columns = _columns(file, demos, parts.keys, path, source)
        lengths = np.array([_rows(file, demo, source) for demo in demos])
        _check_lengths(file, demos, columns, source)
        data = group_at(file, "data", source)
        ignored = (
            *natural_order(name for name in list(file) if name != "data"),
            *(f"data/{name}" for name in natural_order(data) if f"data/{name}" not in demos),
            *natural_order(name for name in list(first) if name not in READ.values()),
            *(f"obs/{name}" for name in parts.ignored),
        )
        notes = [*parts.notes, *_notes(file, source)]
    terminal = None
    if "terminal" in columns:
        terminal, said = _read_terminals(columns["terminal"], columns.get("reward"), lengths)
        notes += said
    return RawRows(
        observation=columns["observation"],
        action=columns["action"],
        reward=columns.get("reward"),
        terminal=terminal,
        timeout=None,
        next_observation=columns.get("next_observation"),
        names={field: READ[field] for field in columns},
        sha256=sha256,
        episode=np.repeat(np.arange(len(demos), dtype=np.int32), lengths),
        ignored=ignored,
        notes=tuple(notes),
    )


def _demonstrations(file: h5py.File, source: str) -> list[str]:
    """Paths of the groups that have a step, in natural order. Raises `UserError` where there is none."""
    import h5py

    data = group_at(file, "data", source)
    demos = [
        f"data/{name}"
        for name in natural_order(data)
        if isinstance(data[name], h5py.Group) and f"{name}/actions" in data and _rows(data, name, source)
    ]
    if not demos:
        raise UserError(f"{source}: no demonstration in `data` has a row; it needs at least one")
    if not _in_all(file, demos, "obs", source):
        raise UserError(
            f"{source}: the demonstrations have no `obs`; extract the observations first, with robomimic's "
            "dataset_states_to_obs.py"
        )
    return demos


def _columns(file: h5py.File, demos: list[str], keys: tuple[str, ...], path: Path, source: str) -> dict[str, Beside]:
    """Field -> its arrays in the demonstrations, one below the other, for the fields that all of them have."""
    arrays = {
        field: tuple(f"{name}/{key}" for key in keys) if name in ("obs", "next_obs") else (name,)
        for field, name in READ.items()
    }
    return {
        field: beside(file, [tuple(f"{demo}/{array}" for array in of_field) for demo in demos], path, source)
        for field, of_field in arrays.items()
        if _in_all(file, demos, READ[field], source) and all(_in_all(file, demos, array, source) for array in of_field)
    }


def _rows(file: h5py.Group, demo: str, source: str) -> int:
    return array_at(file, f"{demo}/actions", source).shape[0]


def _in_all(file: h5py.File, demos: list[str], name: str, source: str) -> bool:
    """Whether every demonstration has an array or group; False where none has. `UserError` where only some have."""
    without = [demo for demo in demos if f"{demo}/{name}" not in file]
    if without and len(without) < len(demos):
        raise UserError(
            f"{source}: `{without[0]}` has no `{name}`, which other demonstrations have; extract or copy it again"
        )
    if without and "/" in name:  # a part of `next_obs` that all lack
        raise UserError(f"{source}: `{demos[0]}` has no `{name}`; next observations need the parts of the observations")
    return not without


def _check_lengths(file: h5py.File, demos: list[str], columns: dict[str, Beside], source: str) -> None:
    """Raises `UserError` where a field of a demonstration has another number of rows than its actions."""
    for place, demo in enumerate(demos):
        rows = _rows(file, demo, source)
        for column in columns.values():
            name = column.arrays[place][0]
            require_rows(name, array_at(file, name, source).shape[0], f"{demo}/actions", rows, source)


def _read_terminals(dones: Beside, rewards: Beside | None, lengths: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Which rows are terminal (n,), and what was decided, in words.

    Where some demonstration ends without it, `dones` marks success, and is terminal. Where all end with it, it may say
    there only that the recording stopped: their last rows are terminal where success is known from elsewhere, which is
    where the row before is done too, or where rewards are sparse (0, and one positive value on success) and the row has
    one. The other ends count as cut. `dones` before the last row is success in any case.
    """
    terminal = read_flags(dones, "dones")
    last = np.cumsum(lengths) - 1
    notes = []
    if terminal[last].all():
        known = (lengths > 1) & terminal[last - 1]
        reward = None if rewards is None else whole(rewards).ravel()
        if reward is not None and len(values := np.unique(reward)) == 2 and values[0] == 0:
            known |= reward[last] > 0
        terminal[last] = known
        notes.append(
            f"`dones` is set at the end of every demonstration, successful or not: {known.sum()} of {len(last)} end as "
            "terminal (a sparse reward or the row before shows success there), the others as cut"
        )
    elif terminal.any():
        notes.append("`dones` is not set at the end of every demonstration: it marks success, and is read as terminal")
    starts = last - lengths + 1
    count = np.cumsum(terminal)
    before = count - terminal - np.repeat(count[starts] - terminal[starts], lengths)
    if after := int((before > 0).sum()):
        notes.append(f"{after} rows come after a terminal row of the same demonstration; every terminal row is an end")
    return terminal, notes


def _notes(file: h5py.File, source: str) -> list[str]:
    """What is said about the environment and the masks, which are not used."""
    notes = []
    try:
        name = json.loads(group_at(file, "data", source).attrs.get("env_args", "{}")).get("env_name")
    except (ValueError, TypeError, AttributeError):
        name = None
    if name is not None:
        notes.append(f"recorded in robomimic's {name!s:.80}, which is taken for no Gymnasium id: `--env` names one")
    if "mask" in file:
        masks = natural_order(group_at(file, "mask", source))
        notes.append(f"`mask` ({listed(masks)}) is not used: all demonstrations are read, whatever their set")
    return notes
