"""From any readable dataset to a file in D4RL's layout, an npz file, or a Minari dataset.

Loading the result gives the same transitions bit for bit (float32) with the same ends, except that in a Minari dataset
an episode also ends where the next observation is not exactly the following row's: Minari stores each state once.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffcps.data.formats import to_dataset
from diffcps.data.load import MINARI_ID, read
from diffcps.types import Dataset, DatasetInfo, UserError

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec


def convert(
    source: str,
    target: str,
    *,
    task: str | None = None,
    spec_of: Callable[[str], EnvSpec | None] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes the transitions of `source` (what `load_dataset` takes) to `target`, and returns the file or folder.

    `target` is a file (.hdf5, .h5 or .npz, with next observations, timeouts, action box, environment id, reference
    scores and where it all came from) or a Minari id such as name/of/set-v0, which goes to Minari's local datasets,
    with the specification that `spec_of` gives for the environment id. Only transitions are carried over, nothing else
    that the source holds. What is there already is replaced with `overwrite` only, and not before the new one is
    complete.

    Raises `UserError` for a source that cannot be read and a target that cannot be written.
    """
    path, write = _target(target)
    if path.exists() and not overwrite:
        raise UserError(f"{target}: is there already ({path}); choose another name, or replace it with --overwrite")
    raw, task = read(source, task)
    info = DatasetInfo(source, raw.sha256, raw.environment, raw.reference_min, raw.reference_max, task=task)
    dataset = to_dataset(raw, info)
    facts: dict[str, Any] = {
        "action_low": raw.action_low,
        "action_high": raw.action_high,
        "env_id": info.environment,
        "ref_min_score": info.reference_min,
        "ref_max_score": info.reference_max,
        "source": info.source,
        "source_sha256": info.sha256,
        "task": task,
        "converted_by": f"diffcps {version('diffcps')}",
    }
    facts = {name: value for name, value in facts.items() if value is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    if write is None:
        spec = spec_of(info.environment) if spec_of is not None and info.environment is not None else None
        _write_minari(target, path, dataset, facts, spec)
        return path
    temporary = path.with_name(f".{path.name}.tmp{path.suffix}")
    try:
        write(temporary, dataset, facts)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _target(target: str) -> tuple[Path, Any]:
    """Where the target lies, and what writes it; None for a Minari dataset."""
    path = Path(target)
    match path.suffix.lower():
        case ".hdf5" | ".h5":
            return path, _write_hdf5
        case ".npz":
            return path, _write_npz
    if not MINARI_ID.fullmatch(target):
        raise UserError(f"{target}: name a .hdf5, .h5 or .npz file, or a Minari id such as name/of/set-v0")
    from minari.storage import get_dataset_path

    return get_dataset_path(target), None


def _fields(dataset: Dataset) -> dict[str, np.ndarray]:
    return {
        "observations": np.asarray(dataset.observation),
        "actions": np.asarray(dataset.action),
        "rewards": np.asarray(dataset.reward),
        "next_observations": np.asarray(dataset.next_observation),
        "terminals": np.asarray(dataset.terminal),
        "timeouts": np.asarray(dataset.timeout),
    }


def _write_hdf5(path: Path, dataset: Dataset, facts: dict[str, Any]) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for name, value in _fields(dataset).items():
            file[name] = value
        file.attrs.update(facts)


def _write_npz(path: Path, dataset: Dataset, facts: dict[str, Any]) -> None:
    np.savez(path, **_fields(dataset), **facts)


def _write_minari(
    dataset_id: str, path: Path, dataset: Dataset, facts: dict[str, Any], environment_spec: EnvSpec | None
) -> None:
    import minari
    from gymnasium.spaces import Box
    from minari.dataset.minari_dataset import parse_dataset_id
    from minari.dataset.minari_storage import MinariStorage
    from minari.namespace import create_namespace, list_local_namespaces

    from minari.storage import get_dataset_path  # isort: skip

    size = dataset.spec.observation_size
    metadata = {
        "dataset_id": dataset_id,
        "minari_version": minari.__version__,
        "description": "; ".join(f"{name}: {facts[name]}" for name in ("converted_by", "source", "source_sha256")),
        **{name: facts[name] for name in ("ref_min_score", "ref_max_score") if name in facts},
    }
    with tempfile.TemporaryDirectory(prefix=".diffcps-", dir=get_dataset_path()) as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        storage = MinariStorage.new(
            new / "data",
            observation_space=Box(-np.inf, np.inf, (size,), np.float32),
            action_space=Box(facts["action_low"], facts["action_high"], dtype=np.float32),
            env_spec=environment_spec,
        )
        storage.update_metadata(metadata)
        storage.update_episodes(_episodes(dataset))
        namespace = parse_dataset_id(dataset_id)[0]
        if namespace is not None and namespace not in list_local_namespaces():
            create_namespace(namespace)
        old = Path(temporary) / "old"
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(new, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise


def _episodes(dataset: Dataset) -> Iterator[Any]:
    """Minari's episodes: one observation more than actions."""
    from minari.data_collector import EpisodeBuffer

    rows = _fields(dataset)
    observation, following = rows["observations"], rows["next_observations"]
    # As bits: 0.0 equals -0.0 and is not the same number.
    joined = np.append((following[:-1].view(np.int32) == observation[1:].view(np.int32)).all(axis=1), False)
    ends = np.flatnonzero(rows["terminals"] | rows["timeouts"] | ~joined) + 1
    for start, stop in zip(np.append(0, ends[:-1]), ends, strict=True):
        episode: dict[str, Any] = {  # arrays, where Minari's annotations say lists: several times faster
            "observations": np.concatenate([observation[start:stop], following[stop - 1 : stop]]),
            "actions": rows["actions"][start:stop],
            "rewards": rows["rewards"][start:stop],
            "terminations": rows["terminals"][start:stop],
            "truncations": rows["timeouts"][start:stop],
        }
        yield EpisodeBuffer(**episode)
