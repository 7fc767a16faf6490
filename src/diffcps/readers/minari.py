"""Minari datasets: local folders, or ids, which are downloaded when absent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np

from diffcps.readers.environment import recorded_environment
from diffcps.readers.hashes import sha256_of_arrays
from diffcps.readers.layout import first_line, number
from diffcps.readers.rows import FIELDS, RawRows
from diffcps.types import UserError

if TYPE_CHECKING:
    from gymnasium.spaces import Box, Space

NAMES = ("observations", "actions", "rewards", "terminations", "truncations", "observations")
"""What Minari calls each of `FIELDS`."""


class _Episode(NamedTuple):
    id: int
    observations: np.ndarray
    """(steps + 1, obs)"""
    actions: np.ndarray
    """(steps, act)"""
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray


def read_minari(source: str) -> RawRows:
    """All episodes of a Minari dataset: `source` is a local dataset folder, or an id, local first, else downloaded.

    Every episode stores one observation more than actions, so nothing has to be dropped. Actions are a flat Box,
    observations too, or a Dict or Tuple of boxes, which are joined as `gymnasium.wrappers.FlattenObservation` joins
    them: a Dict in the order of its sorted keys. The environment is that of `eval_env_spec`, else of `env_spec`.
    Raises `UserError` where the dataset is unknown, cannot be fetched, or has other spaces.
    Reference: https://minari.farama.org/content/dataset_standards/
    """
    import minari

    try:
        stored = minari.MinariDataset(minari_folder(source))
        space = stored.observation_space
        parts = _parts(space, source)
        action_box = _flat_box(stored.action_space, "action", source)
        episodes = [
            _Episode(
                each.id,
                _flattened(space, each.observations),
                each.actions,
                each.rewards,
                each.terminations,
                each.truncations,
            )
            for each in stored.iterate_episodes()
        ]
        metadata = stored.storage.metadata
    except UserError:
        raise
    except Exception as error:  # whatever Minari, JSON, HDF5 or Arrow make of a damaged folder
        raise UserError(
            f"{source}: not a readable Minari dataset ({first_line(error)}); download or write it again"
        ) from error
    arrays = _joined(episodes, source)
    return RawRows(
        *arrays,
        names=dict(zip(FIELDS, NAMES, strict=True)),
        sha256=sha256_of_arrays(arrays),
        environment=recorded_environment(metadata, source),
        reference_min=number(metadata, "ref_min_score", source),
        reference_max=number(metadata, "ref_max_score", source),
        action_low=action_box.low,
        action_high=action_box.high,
        notes=(f"observations are flattened, in this order: {', '.join(parts)}",) if parts else (),
    )


def _joined(episodes: Sequence[_Episode], source: str) -> tuple[np.ndarray, ...]:
    """The episodes one after another, as `FIELDS`. Raises `UserError` where there is none or one is incomplete."""
    if not episodes:
        raise UserError(f"{source}: no episode in this Minari dataset; it needs at least one")
    for episode in episodes:
        if len(episode.observations) != len(episode.actions) + 1:
            raise UserError(
                f"{source}: episode {episode.id} has {len(episode.observations)} observations and "
                f"{len(episode.actions)} actions; Minari stores one observation more than actions, write the dataset "
                "again"
            )
    _, observations, actions, rewards, terminations, truncations = zip(*episodes, strict=True)
    terminal, timeout = np.concatenate(terminations), np.concatenate(truncations)
    last = np.cumsum([len(action) for action in actions]) - 1
    timeout[last] |= ~terminal[last]  # an episode that was cut without a mark
    return (
        np.concatenate([observation[:-1] for observation in observations]),
        np.concatenate(actions),
        np.concatenate(rewards),
        terminal,
        timeout,
        np.concatenate([observation[1:] for observation in observations]),
    )


def is_minari(path: Path) -> bool:
    """Whether this is the folder of a Minari dataset."""
    return any((folder / "metadata.json").is_file() for folder in (path / "data", path))


def minari_folder(source: str) -> Path:
    """The folder that holds metadata.json: a path, else the local copy of an id, else a fresh download of it."""
    import minari
    from minari.storage import get_dataset_path

    for folder in (Path(source) / "data", Path(source), get_dataset_path(source) / "data"):
        if (folder / "metadata.json").is_file():
            return folder
    try:
        minari.download_dataset(source)
    except Exception as error:  # the network, the host, a missing package, an unknown id: each raises its own type
        raise UserError(
            f"{source}: neither a file nor a local Minari dataset, and downloading it failed ({first_line(error)}); "
            "check the id and the network, or run `minari download` elsewhere and copy the folder"
        ) from error
    return get_dataset_path(source) / "data"


def _parts(space: Space, source: str) -> list[str]:
    """Name and size of each box in a Dict or Tuple of observations; empty for a flat Box. `UserError` for the rest."""
    from gymnasium.spaces import Dict, Tuple

    if not isinstance(space, Dict | Tuple):
        _flat_box(space, "observation", source)
        return []
    return [f"{name} ({size})" for name, size in _boxes(space, "", source)]


def _boxes(space: Space, name: str, source: str) -> Iterator[tuple[str, int]]:
    from gymnasium.spaces import Box, Dict, Tuple

    match space:
        case Box():
            yield name, int(np.prod(space.shape))
        case Dict() | Tuple():
            members = space.spaces.items() if isinstance(space, Dict) else enumerate(space.spaces)
            for key, member in members:
                yield from _boxes(member, f"{name}.{key}".lstrip("."), source)
        case _:
            raise UserError(
                f"{source}: observation `{name}` is a {type(space).__name__}; only boxes can be flattened, write a "
                "dataset of boxes (gymnasium.wrappers.FlattenObservation before the collector)"
            )


def _flattened(space: Space, observations: object) -> np.ndarray:
    """A Dict or Tuple of arrays (steps + 1, ...) as one array (steps + 1, size); an array stays as it is."""
    from gymnasium.spaces import Dict, Tuple

    if not isinstance(space, Dict | Tuple):
        return np.asarray(observations)
    return np.concatenate(list(_columns(space, observations)), axis=1)


def _columns(space: Space, stored: object) -> Iterator[np.ndarray]:
    """Each box of a space as an array (steps + 1, size)."""
    from gymnasium.spaces import Dict, Tuple

    if isinstance(space, Dict):
        of_key = cast(Mapping[str, object], stored)
        for key, member in space.spaces.items():
            yield from _columns(member, of_key[key])
    elif isinstance(space, Tuple):
        for member, part in zip(space.spaces, cast(Sequence[object], stored), strict=True):
            yield from _columns(member, part)
    else:
        array = np.asarray(stored)
        yield array.reshape(len(array), -1)


def _flat_box(space: Space, what: str, source: str) -> Box:
    """The space, which must be a box of vectors. Raises `UserError` for any other."""
    from gymnasium.spaces import Box

    if isinstance(space, Box) and len(space.shape) == 1:
        return space
    shape = f" of shape {space.shape}" if space.shape else ""
    raise UserError(
        f"{source}: the {what} space is a {type(space).__name__}{shape}; only a flat Box is supported"
        + (", or a Dict or Tuple of boxes" if what == "observation" else "")
        + ", flatten it into a new dataset first (gymnasium.wrappers.FlattenObservation for observations)"
    )
