"""d3rlpy's files: a replay buffer of version 2 (`ReplayBuffer.dump`), or an MDPDataset of version 1 (`dump`). Both are
HDF5.

Version 2 numbers its episodes: observations_0, actions_0, rewards_0, terminated_0, observations_1, ..., with `columns`,
`num_episodes` and `version`. Version 1 is flat: observations, actions, rewards, terminals, and episode_terminals, which
marks the last step of every episode, terminal or not.

An episode of n steps has n observations. d3rlpy makes n transitions of a terminated one and n - 1 of one that was cut,
whose last step has no next observation. This is the rule here, too, for sources without next observations: the last
step of such an episode is a timeout.

Reference: d3rlpy/dataset/io.py (dump, load, load_v1), and transition_count in d3rlpy/dataset/components.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diffcps.readers.hashes import sha256_of_file
from diffcps.readers.names import listed, natural_order
from diffcps.readers.parts import Beside, array_at, beside, open_hdf5, read_flags, require_rows
from diffcps.readers.rows import RawRows
from diffcps.types import UserError

if TYPE_CHECKING:
    import h5py

FLAT = ("observations", "actions", "rewards", "terminals")


def is_d3rlpy(path: Path) -> bool:
    """Whether a file is HDF5 with the fields that only d3rlpy writes. False for what cannot be read."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return {"columns", "num_episodes"} <= set(file) or {"discrete_action", "observations"} <= set(file)
    except (OSError, RuntimeError):
        return False


def read_d3rlpy(path: Path, source: str) -> RawRows:
    """The rows of a dump of either version; observations in parts stand side by side. `source` is how messages call it.

    Raises `UserError` where the file is damaged, lacks a field, or has discrete actions by its own account.
    """
    sha256 = sha256_of_file(path, source)
    with open_hdf5(path, source) as file:
        return (
            _read_episodes(file, path, source, sha256) if "columns" in file else _read_flat(file, path, source, sha256)
        )


def _read_episodes(file: h5py.File, path: Path, source: str, sha256: str) -> RawRows:
    """Version 2."""
    columns = [_text(name) for name in _values(file, "columns", source)]
    if "version" in file and _text(_values(file, "version", source)[0]) == "2.0":
        raise UserError(f"{source}: a dump of d3rlpy 2.0, which d3rlpy itself reads no more; write it with a later one")
    needed = ("observations", "actions", "rewards", "terminated")
    if missing := [name for name in needed if name not in columns]:
        raise UserError(f"{source}: no column {listed(missing)} in this dump of d3rlpy; write it again")
    count = _values(file, "num_episodes", source)
    if count.size != 1 or count.dtype.kind not in "iu" or count[0] < 1:
        raise UserError(f"{source}: `num_episodes` is {count.tolist()}; a dump of d3rlpy needs one episode at least")
    arrays = {name: [_arrays(file, name, episode, source) for episode in range(count[0])] for name in needed}
    fields = {name: beside(file, arrays[name], path, source) for name in needed[:3]}
    lengths = np.array([array_at(file, names[0], source).shape[0] for names in arrays["actions"]])
    if not lengths.all():
        raise UserError(f"{source}: episode {int((lengths == 0).argmax())} has no steps; write the dump without it")
    for name in ("observations", "rewards"):
        for episode, names in enumerate(arrays[name]):
            rows = array_at(file, names[0], source).shape[0]
            require_rows(names[0], rows, f"actions_{episode}", int(lengths[episode]), source)
    terminated = np.array([bool(_values(file, name, source).all()) for (name, *_) in arrays["terminated"]])
    last = np.cumsum(lengths) - 1
    terminal, timeout = np.zeros((2, lengths.sum()), bool)
    terminal[last], timeout[last] = terminated, ~terminated
    return RawRows(
        observation=fields["observations"],
        action=fields["actions"],
        reward=_flat_rewards(fields["rewards"]),
        terminal=terminal,
        timeout=timeout,
        next_observation=None,
        names={
            "observation": "observations",
            "action": "actions",
            "reward": "rewards",
            "terminal": "terminated",
            "timeout": "terminated",
        },
        sha256=sha256,
        episode=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        ignored=tuple(name for name in columns if name not in needed),
        notes=_cut(int((~terminated).sum())),
    )


def _values(file: h5py.File, name: str, source: str) -> np.ndarray:
    """A small array of the file as it is, flat. Raises `UserError` for a group."""
    import h5py

    item = file[name]
    if not isinstance(item, h5py.Dataset) or not item.size:
        raise UserError(
            f"{source}: `{name}` must be an array with a value; the dump of d3rlpy is damaged, write it again"
        )
    return np.ravel(item[()])


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _arrays(file: h5py.File, name: str, episode: int, source: str) -> tuple[str, ...]:
    """The arrays of a column of one episode: one, or observations_3_0, observations_3_1, ... for those in parts."""
    if f"{name}_{episode}" in file:
        return (f"{name}_{episode}",)
    found = []
    while f"{name}_{episode}_{len(found)}" in file:
        found.append(f"{name}_{episode}_{len(found)}")
    if not found:
        raise UserError(f"{source}: no `{name}_{episode}`; the dump of d3rlpy is incomplete, write it again")
    return tuple(found)


def _read_flat(file: h5py.File, path: Path, source: str, sha256: str) -> RawRows:
    """Version 1."""
    if missing := [name for name in FLAT if name not in file]:
        raise UserError(f"{source}: no field {listed(missing)} in this MDPDataset of d3rlpy; write it again")
    if _values(file, "discrete_action", source).any():
        raise UserError(
            f"{source}: `discrete_action` says that actions are choices; the methods here need real numbers"
        )
    fields = {name: beside(file, [(name,)], path, source) for name in FLAT}
    terminal, timeout, notes = read_flags(fields["terminals"], "terminals"), None, ()
    names = {field: f"{field}s" for field in ("observation", "action", "reward", "terminal")}
    if "episode_terminals" in file:
        ends = read_flags(beside(file, [("episode_terminals",)], path, source), "episode_terminals")
        require_rows("episode_terminals", len(ends), "terminals", len(terminal), source)
        timeout = ends & ~terminal
        names["timeout"] = "episode_terminals"
        notes = _cut(int(timeout.sum()))
    read = {*FLAT, "episode_terminals", "discrete_action", "version"}
    return RawRows(
        observation=fields["observations"],
        action=fields["actions"],
        reward=_flat_rewards(fields["rewards"]),
        terminal=terminal,
        timeout=timeout,
        next_observation=None,
        names=names,
        sha256=sha256,
        ignored=tuple(natural_order(name for name in list(file) if name not in read)),
        notes=notes,
    )


def _flat_rewards(rewards: Beside) -> Beside:
    """d3rlpy stores (n, 1)."""
    return rewards._replace(shape=rewards.shape[:1]) if rewards.shape[1:] == (1,) else rewards


def _cut(episodes: int) -> tuple[str, ...]:
    if not episodes:
        return ()
    return (
        f"{episodes} episodes were cut: as in d3rlpy, their last step has no next observation and is no transition",
    )
