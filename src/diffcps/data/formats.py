"""Readers: each turns one file format into a `Raw` record, and `to_dataset` turns a checked record into a `Dataset`.

The D4RL layout (HDF5, or npz with the same names, singular or plural) has one row per step:

    observations, actions, rewards, terminals, and optionally timeouts and next_observations.

`action_low`, `action_high`, `env_id`, `ref_min_score` and `ref_max_score` may stand beside them, as HDF5 attributes or
as npz entries. Nothing here unpickles.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from diffcps.types import Dataset, DatasetInfo, UserError

FIELDS = {
    "observation": ("observations", "observation"),
    "action": ("actions", "action"),
    "reward": ("rewards", "reward"),
    "terminal": ("terminals", "terminal"),
    "timeout": ("timeouts", "timeout"),
    "next_observation": ("next_observations", "next_observation"),
}
"""Our name of each field -> the names it may have in a file."""
OPTIONAL = ("timeout", "next_observation")
ATTRIBUTES = ("env_id", "ref_min_score", "ref_max_score", "action_low", "action_high")


class Raw(NamedTuple):
    """What a file holds, row by row, before the rules about its last rows are applied."""

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminal: np.ndarray
    timeout: np.ndarray | None
    next_observation: np.ndarray | None
    names: dict[str, str]
    """Our name of each field -> its name in this file, for messages."""
    sha256: str
    environment: str | None = None
    reference_min: float | None = None
    reference_max: float | None = None
    action_low: np.ndarray | None = None
    """None: the file does not say, [-1, 1] is assumed."""
    action_high: np.ndarray | None = None


def read_hdf5(path: Path, source: str) -> Raw:
    """The rows of a D4RL-layout HDF5 file. `source` is how messages call it.

    Raises `UserError` where the file is missing, is not HDF5, is truncated, or lacks a field.
    Reference: D4RL (arXiv:2004.07219), file layout.
    """
    import h5py

    sha256 = sha256_of_file(path, source)
    wanted = {spelling for spellings in FIELDS.values() for spelling in spellings}
    try:
        with h5py.File(path, "r") as file:
            found = sorted(file)
            values: dict[str, Any] = {}
            for name in wanted.intersection(found):
                item = file[name]
                if not isinstance(item, h5py.Dataset):
                    raise UserError(f"{source}: `{name}` is a group; it must be an array with one row per step")
                values[name] = item[()]
            attributes = {name: file.attrs[name] for name in ATTRIBUTES if name in file.attrs}
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(
            f"{source}: not a complete HDF5 file ({_one_line(error)}); it may be truncated or of another format, "
            "copy or download it again"
        ) from error
    return _record(values, attributes, found, sha256, source)


def read_npz(path: Path, source: str) -> Raw:
    """The rows of an npz file with D4RL's field names, singular or plural. `source` is how messages call it.

    Raises `UserError` where the file is missing, is no npz archive, is truncated, needs pickle, or lacks a field.
    """
    sha256 = sha256_of_file(path, source)
    wanted = {spelling for spellings in FIELDS.values() for spelling in spellings}
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{source}: not a complete npz archive; it may be truncated or of another format, write it with numpy.savez"
        )
    entry = ""
    try:
        with np.load(path, allow_pickle=False) as file:
            found = sorted(file.files)
            values: dict[str, Any] = {}
            for entry in found:
                if entry in wanted or entry in ATTRIBUTES:
                    values[entry] = file[entry]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        if "allow_pickle" in str(error):
            raise UserError(
                f"{source}: `{entry}` can only be read with pickle, which may run any code; store it as a plain array"
            ) from error
        raise UserError(f"{source}: damaged npz archive at `{entry}` ({_one_line(error)}); write it again") from error
    attributes = {name: values.pop(name) for name in ATTRIBUTES if name in values}
    return _record(values, attributes, found, sha256, source)


def read_minari(source: str) -> Raw:
    """All episodes of a Minari dataset: `source` is a local dataset folder, or an id, local first, else downloaded.

    Every episode stores one observation more than actions, so nothing has to be dropped. Flat Box observations and
    actions only. Raises `UserError` where the dataset is unknown, cannot be fetched, or has other spaces.
    Reference: https://minari.farama.org/content/dataset_standards/
    """
    import minari
    from gymnasium.spaces import Box

    folder = minari_folder(source)
    try:
        stored = minari.MinariDataset(folder)
        metadata = stored.storage.metadata
        for what, space in (("observation", stored.observation_space), ("action", stored.action_space)):
            if not isinstance(space, Box) or len(space.shape) != 1:
                raise UserError(
                    f"{source}: the {what} space is {_space_words(space)}; only a flat Box is supported, "
                    "flatten it into a new dataset first (gymnasium.wrappers.FlattenObservation for observations)"
                )
        episodes = [
            (episode.id, episode.observations, episode.actions, episode.rewards, episode.terminations,
             episode.truncations)
            for episode in stored.iterate_episodes()
        ]  # fmt: skip
    except UserError:
        raise
    except Exception as error:  # whatever Minari, JSON, HDF5 or Arrow make of a damaged folder
        raise UserError(
            f"{source}: not a readable Minari dataset ({_one_line(error)}); download or write it again"
        ) from error
    if not episodes:
        raise UserError(f"{source}: no episode in this Minari dataset; it needs at least one")
    for episode_id, observation, action, *_ in episodes:
        if len(observation) != len(action) + 1:
            raise UserError(
                f"{source}: episode {episode_id} has {len(observation)} observations and {len(action)} actions; "
                "Minari stores one observation more than actions, write the dataset again"
            )

    _, observations, actions, rewards, terminations, truncations = zip(*episodes, strict=True)
    terminal, timeout = np.concatenate(terminations), np.concatenate(truncations)
    last = np.cumsum([len(action) for action in actions]) - 1
    timeout[last] |= ~terminal[last]  # an episode that was cut without a mark
    arrays = (
        np.concatenate([observation[:-1] for observation in observations]),
        np.concatenate(actions),
        np.concatenate(rewards),
        terminal,
        timeout,
        np.concatenate([observation[1:] for observation in observations]),
    )
    attributes = {name: metadata[name] for name in ("ref_min_score", "ref_max_score") if name in metadata}
    names = ("observations", "actions", "rewards", "terminations", "truncations", "observations")
    return Raw(
        *arrays,
        names=dict(zip(FIELDS, names, strict=True)),
        sha256=sha256_of_arrays(arrays),
        environment=_environment_of(metadata.get("env_spec")),
        reference_min=_number(attributes, "ref_min_score", source),
        reference_max=_number(attributes, "ref_max_score", source),
        action_low=stored.action_space.low,  # pyright: ignore[reportAttributeAccessIssue]
        action_high=stored.action_space.high,  # pyright: ignore[reportAttributeAccessIssue]
    )


def to_dataset(raw: Raw, info: DatasetInfo) -> Dataset:
    """Apply the rules about episode ends to a checked record; actions are taken as they are.

    With next observations, every row is a transition. Without, the rule is that of D4RL's `qlearning_dataset`: the next
    row is the next observation, so that rows flagged as timeout and the last row of the file have none and are dropped,
    and the row before a dropped one becomes the last stored step of its episode. The next observation of a terminal row
    is then the start of another episode; nothing may read it, since a terminal row is not bootstrapped.

    Without timeouts, ends are found where next_observation does not chain to the following row. Where there are no next
    observations either, ends are unknown (D4RL would count to the time limit of the environment): the record is
    accepted if its last row is terminal, so that every episode can end by a terminal, and refused otherwise.

    Raises `UserError` in that case and where no row is left.
    Reference: https://github.com/Farama-Foundation/D4RL, `d4rl/__init__.py`, `qlearning_dataset`.
    """
    if raw.next_observation is not None:
        timeout = ~raw.terminal & ~chains(raw.observation, raw.next_observation) if raw.timeout is None else raw.timeout
        timeout = timeout.copy()
        timeout[-1] |= ~raw.terminal[-1]
        return _dataset(raw.observation, raw.action, raw.reward, raw.next_observation, raw.terminal, timeout, info)

    if raw.timeout is None and not raw.terminal[-1]:
        raise UserError(
            f"{info.source}: the ends of the episodes are unknown, for there is neither `timeouts` nor "
            "`next_observations` and the last row is not terminal; add a boolean field `timeouts` that marks the last "
            "row of each episode cut by a time limit (all False if it is one unbroken trajectory)"
        )
    dropped = np.zeros_like(raw.terminal) if raw.timeout is None else raw.timeout.copy()
    dropped[-1] = True
    if dropped.all():
        raise UserError(
            f"{info.source}: no transition is left, for without `next_observations` the last row and every row flagged "
            "as timeout are dropped; store `next_observations`"
        )
    kept = np.flatnonzero(~dropped)
    timeout = dropped[kept + 1] & ~raw.terminal[kept]
    return _dataset(
        raw.observation[kept], raw.action[kept], raw.reward[kept], raw.observation[kept + 1], raw.terminal[kept],
        timeout, info,
    )  # fmt: skip


def chains(observation: np.ndarray, next_observation: np.ndarray) -> np.ndarray:
    """Whether next_observation[i] is observation[i + 1], up to rounding: (n, obs), (n, obs) -> (n,) bool.

    The last row has no follower and counts as chained.
    """
    follower = observation[1:]
    close = np.abs(next_observation[:-1] - follower) <= 1e-5 * (1.0 + np.abs(follower))
    return np.append(close.all(axis=1), True)


def sha256_of_file(path: Path, source: str) -> str:
    """SHA-256 of a file, read in pieces of 1 MiB. Raises `UserError` where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except FileNotFoundError as error:
        raise UserError(f"{source}: no such file; check the path") from error
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror}); check its permissions") from error
    return digest.hexdigest()


def sha256_of_arrays(arrays: Iterable[np.ndarray]) -> str:
    """SHA-256 of the types, shapes and bytes of arrays, for data that lies in several files."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype.str} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _record(
    values: Mapping[str, Any], attributes: Mapping[str, Any], found: list[str], sha256: str, source: str
) -> Raw:
    """Fields under their own names, whatever they are called in the file."""
    names: dict[str, str] = {}
    for field, spellings in FIELDS.items():
        present = [name for name in spellings if name in values]
        if len(present) > 1:
            raise UserError(f"{source}: both `{present[0]}` and `{present[1]}` are there; keep one of them")
        if present:
            names[field] = present[0]
        elif field not in OPTIONAL:
            raise UserError(
                f"{source}: no field `{spellings[0]}` (or `{spellings[1]}`); the file has "
                f"{', '.join(found) or 'no field at all'}, and it needs observations, actions, rewards and terminals, "
                "with timeouts and next_observations where known"
            )
    fields = {field: np.asarray(values[names[field]]) if field in names else None for field in FIELDS}
    return Raw(
        **cast(dict[str, Any], fields),
        names=names,
        sha256=sha256,
        environment=_text(attributes, "env_id", source),
        reference_min=_number(attributes, "ref_min_score", source),
        reference_max=_number(attributes, "ref_max_score", source),
        action_low=_bound(attributes, "action_low", source),
        action_high=_bound(attributes, "action_high", source),
    )


def _text(attributes: Mapping[str, Any], name: str, source: str) -> str | None:
    value = np.asarray(attributes.get(name, "")).ravel()
    if value.size != 1 or value.dtype.kind not in "OSU":
        raise UserError(f"{source}: attribute `{name}` is {attributes[name]!r:.80}; it must be one text")
    text = value[0].decode("utf-8", "replace") if isinstance(value[0], bytes) else str(value[0])
    return text or None


def _number(attributes: Mapping[str, Any], name: str, source: str) -> float | None:
    if name not in attributes:
        return None
    try:
        number = float(np.asarray(attributes[name]).item())
    except (TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number):
        raise UserError(f"{source}: attribute `{name}` is {attributes[name]!r:.80}; it must be one finite number")
    return number


def _bound(attributes: Mapping[str, Any], name: str, source: str) -> np.ndarray | None:
    if name not in attributes:
        return None
    value = np.asarray(attributes[name])
    if value.dtype.kind not in "iuf" or value.ndim > 1:
        raise UserError(f"{source}: `{name}` must be numbers, one for each action dimension")
    return value


def minari_folder(source: str) -> Path:
    """The folder that holds metadata.json: a path, else the local copy of an id, else a fresh download of it."""
    import minari
    from minari.storage import get_dataset_path

    for folder in (Path(source) / "data", Path(source), get_dataset_path(source) / "data"):
        if (folder / "metadata.json").is_file():
            return folder
    if Path(source).is_dir():
        raise UserError(f"{source}: a folder without data/metadata.json; name a Minari dataset folder, or a file")
    try:
        minari.download_dataset(source)
    except Exception as error:  # the network, the host, a missing package, an unknown id: each raises its own type
        raise UserError(
            f"{source}: neither a file nor a local Minari dataset, and downloading it failed ({_one_line(error)}); "
            "check the id and the network, or run `minari download` elsewhere and copy the folder"
        ) from error
    return get_dataset_path(source) / "data"


def _environment_of(env_spec: Any) -> str | None:
    """The id in Minari's environment specification, which is JSON."""
    return json.loads(env_spec).get("id") if isinstance(env_spec, str) else None


def _space_words(space: Any) -> str:
    shape = getattr(space, "shape", None)
    return f"a {type(space).__name__}" + (f" of shape {shape}" if shape else "")


def _one_line(error: BaseException) -> str:
    """The first line of somebody else's message, without its full stop."""
    return ((str(error).strip().splitlines() or [type(error).__name__])[0])[:160].rstrip(".")


def _dataset(
    observation: Any, action: Any, reward: Any, next_observation: Any, terminal: Any, timeout: Any, info: DatasetInfo
) -> Dataset:
    """`Dataset` of numpy arrays (its annotations speak of the JAX arrays that training makes of them)."""
    return Dataset(observation, action, reward, next_observation, terminal, timeout, info)
