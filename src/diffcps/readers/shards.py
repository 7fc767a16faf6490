"""Several files, or a folder of them, as one dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffcps.readers.names import natural_order
from diffcps.readers.rows import FIELDS, Joined, RawRows, Values, whole
from diffcps.types import UserError

SUFFIXES = (".npz", ".hdf5", ".h5", ".csv", ".parquet")
"""The files of a folder that are data."""


class Shards(NamedTuple):
    """The data files of a folder, in the order of their rows."""

    files: tuple[Path, ...]
    ignored: tuple[str, ...]
    """Names of what else is in the folder."""


def find_shards(folder: Path, source: str) -> Shards:
    """The data files that lie in a folder itself, in natural order of their names: part-2 before part-10.

    In a folder with LeRobot's layout, data/chunk-000/*.parquet, they are the files of its chunks. Raises `UserError`
    where there is none. Minari's folders are not for this function.
    """
    for place in (folder / "data", folder):
        if chunks := [chunk.name for chunk in place.glob("chunk-*") if chunk.is_dir()]:
            found = [
                place / chunk / name
                for chunk in natural_order(chunks)
                for name in natural_order(path.name for path in (place / chunk).glob("*.parquet"))
            ]
            inside = {place.name, *chunks}
            break
    else:
        names = natural_order(path.name for path in folder.iterdir() if not path.name.startswith("."))
        found = [folder / name for name in names if Path(name).suffix.lower() in SUFFIXES and (folder / name).is_file()]
        inside = {path.name for path in found}
    if not found:
        raise UserError(f"{source}: no data file ({', '.join(SUFFIXES)}) in this folder, and it is no Minari dataset")
    return Shards(tuple(found), tuple(natural_order(p.name for p in folder.iterdir() if p.name not in inside)))


def join(parts: Sequence[RawRows], sources: Sequence[str]) -> RawRows:
    """The rows of several files, one file after the other in the order given; `sources` are their names for messages.

    Nothing continues from one file into the next: the last row of each ends its episode (`file_rows`), and episodes
    that both number 0 are two. All files have the same fields, sizes, action bounds, environment and reference scores;
    the names of the fields are those of the first. The hash is that of the list of the files' hashes.

    Raises `UserError`, naming two files, where they differ.
    """
    if len(parts) == 1:
        return parts[0]
    first = parts[0]
    for part, source in zip(parts, sources, strict=True):
        _check_rows(part, source)
        _check_alike(first, part, sources[0], source)
    fields = {
        field: None if getattr(first, field) is None else Joined([getattr(part, field) for part in parts])
        for field in FIELDS
    }
    return first._replace(
        **fields,
        sha256=hashlib.sha256("\n".join(part.sha256 for part in parts).encode()).hexdigest(),
        episode=_numbered([part.episode for part in parts if part.episode is not None]),
        ignored=tuple(dict.fromkeys(name for part in parts for name in part.ignored)),
        notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)),
        file_rows=tuple(part.observation.shape[0] for part in parts),
    )


def _check_rows(part: RawRows, source: str) -> None:
    """Within a file: what one lacks must not be made up for by another."""
    rows = part.observation.shape[0]
    for field in (*FIELDS, "episode"):
        values = getattr(part, field)
        if values is not None and values.shape[0] != rows:
            raise UserError(
                f"{source}: `{part.names.get(field, field)}` has {values.shape[0]} rows and "
                f"`{part.names.get('observation', 'observation')}` has {rows}; every field needs one row per step"
            )


def _check_alike(first: RawRows, other: RawRows, first_source: str, other_source: str) -> None:
    for field in (*FIELDS, "episode"):
        here, there = getattr(first, field), getattr(other, field)
        if (here is None) != (there is None):
            has, lacks = (first_source, other_source) if there is None else (other_source, first_source)
            name = (first if there is None else other).names.get(field, field)
            raise UserError(f"{lacks}: no field `{name}`, which {has} has; files of one dataset need the same fields")
        if here is not None and field != "episode" and here.shape[1:] != there.shape[1:]:
            raise UserError(
                f"{other_source}: `{other.names.get(field, field)}` has rows of shape {there.shape[1:]}, in "
                f"{first_source} of {here.shape[1:]}; files of one dataset need the same sizes"
            )
    for field, what in (("action_low", "action bounds"), ("action_high", "action bounds")):
        here, there = getattr(first, field), getattr(other, field)
        if (here is None) != (there is None) or (here is not None and not np.array_equal(here, there)):
            raise UserError(
                f"{other_source}: other {what} (`{field}`) than {first_source}; files of one dataset need the same"
            )
    for field, what in (
        ("environment", "environment"),
        ("reference_min", "reference score"),
        ("reference_max", "reference score"),
    ):
        here, there = getattr(first, field), getattr(other, field)
        if here != there:
            raise UserError(
                f"{other_source}: another {what} ({there}) than {first_source} ({here}); files of one dataset need the "
                "same"
            )


def _numbered(episodes: Sequence[Values]) -> np.ndarray | None:
    """Numbers of episodes, other ones in each file."""
    if not episodes:
        return None
    found, start = [], 0
    for values in episodes:
        numbers, index = np.unique(whole(values), return_inverse=True)
        found.append((index + start).astype(np.int32))
        start += len(numbers)
    return np.concatenate(found)
