"""Arrays in parts: observations stored as named vectors, episodes stored one by one. HDF5 pieces are read as needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diffcps.readers.layout import first_line
from diffcps.readers.names import listed, natural_order, nearest
from diffcps.readers.rows import PIECE_ROWS
from diffcps.types import UserError

if TYPE_CHECKING:
    import h5py

CHUNK_CACHE = 2**24
"""Bytes of a file that HDF5 keeps unpacked: pieces may be smaller than the chunks in which it was packed."""


class Parts(NamedTuple):
    """Which of the named parts of an observation are read, in which order."""

    keys: tuple[str, ...]
    ignored: tuple[str, ...]
    """The other parts."""
    notes: tuple[str, ...]


class Beside(NamedTuple):
    """HDF5 arrays as one column: those of a tuple stand side by side in a row, the tuples follow one another."""

    path: Path
    source: str
    arrays: tuple[tuple[str, ...], ...]
    """Names in the file. The arrays of a tuple have equally many rows."""
    shape: tuple[int, ...]
    dtype: np.dtype

    def pieces(self, rows: int) -> Iterator[np.ndarray]:
        """As in `Column`. Raises `UserError` where the file is damaged."""
        with open_hdf5(self.path, self.source) as file:
            for names in self.arrays:
                arrays = [array_at(file, name, self.source) for name in names]
                for start in range(0, arrays[0].shape[0], rows):
                    blocks = [array[start : start + rows] for array in arrays]
                    if len(blocks) > 1:
                        blocks = [np.concatenate([block.reshape(len(block), -1) for block in blocks], axis=1)]
                    yield blocks[0].reshape(len(blocks[0]), *self.shape[1:])


@contextmanager
def open_hdf5(path: Path, source: str) -> Iterator[h5py.File]:
    """An HDF5 file to read. Raises `UserError` where it, or what is read of it, is damaged."""
    import h5py

    try:
        with h5py.File(path, "r", rdcc_nbytes=CHUNK_CACHE) as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(
            f"{source}: not a complete HDF5 file ({first_line(error)}); it may be truncated or of another format, "
            "copy or download it again"
        ) from error


def array_at(file: h5py.Group, name: str, source: str) -> h5py.Dataset:
    """An array with rows. Raises `UserError` for a group or a single value."""
    import h5py

    item = file[name]
    if not isinstance(item, h5py.Dataset) or item.ndim == 0:
        raise UserError(f"{source}: `{name.strip('/')}` must be an array with one row per step")
    return item


def group_at(file: h5py.Group, name: str, source: str) -> h5py.Group:
    """A group. Raises `UserError` for an array."""
    import h5py

    item = file[name]
    if not isinstance(item, h5py.Group):
        raise UserError(f"{source}: `{name.strip('/')}` must be a group of arrays")
    return item


def vector_sizes(group: h5py.Group) -> dict[str, int | None]:
    """The arrays in a group and its subgroups: numbers per row, or None for what is no vector of numbers per row."""
    import h5py

    sizes: dict[str, int | None] = {}

    def note(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            vector = item.dtype.kind in "biuf" and item.ndim in (1, 2)
            sizes[name] = (1 if item.ndim == 1 else item.shape[1]) if vector else None

    group.visititems(note)
    return sizes


def choose_keys(sizes: Mapping[str, int | None], keys: tuple[str, ...], source: str, where: str) -> Parts:
    """Which parts of an observation to read: `keys` in their order; without, all in natural order of their names.

    `sizes` are the numbers per row of each part, None for pictures, texts and whatever else is no vector. `where` is
    how messages call the observations. Raises `UserError` for a key that does not exist, stands twice or is no vector,
    and, where no keys are given, for a source that holds more than vectors: what to leave out is not guessed.
    """
    vectors = {name: sizes[name] for name in natural_order(sizes) if sizes[name] is not None}
    others = tuple(name for name in natural_order(sizes) if sizes[name] is None)
    if not vectors:
        raise UserError(
            f"{source}: `{where}` holds no vector of numbers per step ({listed(others)}); observations must be vectors"
        )
    described = ", ".join(f"{name} ({size})" for name, size in vectors.items())
    if not keys:
        if others:
            raise UserError(
                f"{source}: `{where}` holds more than vectors of numbers ({listed(others)}); name the parts to use, "
                f"for example --observation-keys {' '.join(vectors)}; numbers in each: {described}"
            )
        note = f"observations are {described} of `{where}`, side by side in this order"
        return Parts(tuple(vectors), (), (note,) if len(vectors) > 1 else ())
    for key in keys:
        if key not in sizes:
            raise UserError(f"{source}: `{where}` has no part `{key}`; {nearest(key, vectors)}")
        if key not in vectors:
            raise UserError(
                f"{source}: `{where}` has `{key}`, which is no vector of numbers per step; choose among {described}"
            )
    if len(set(keys)) < len(keys):
        raise UserError(f"{source}: `--observation-keys` names a part twice ({' '.join(keys)}); name it once")
    return Parts(keys, tuple(name for name in natural_order(sizes) if name not in keys), ())


def read_group(group: h5py.Group, path: Path, source: str, keys: tuple[str, ...]) -> tuple[Beside, Parts]:
    """Observations stored as a group of named arrays, one row per step in each, as one column (rows, numbers).

    For `next_observations` give the keys of the observations, `Parts.keys`. Raises `UserError` as `choose_keys` does,
    and where the arrays differ in rows.
    """
    parts = choose_keys(vector_sizes(group), keys, source, str(group.name).strip("/"))
    return beside(group.file, [tuple(f"{group.name}/{key}" for key in parts.keys)], path, source), parts


def beside(file: h5py.File, arrays: Sequence[tuple[str, ...]], path: Path, source: str) -> Beside:
    """`Beside` with its shape and type: (rows,) for one number a row, else (rows, numbers); one array alone keeps its
    shape. Raises `UserError` for a group, and where arrays that stand side by side differ in rows, or tuples in numbers
    a row."""
    shape, dtypes, rows = None, [], 0
    for names in arrays:
        found = [array_at(file, name, source) for name in names]
        shapes = [array.shape for array in found]
        dtypes += [array.dtype for array in found]
        for name, other in zip(names[1:], shapes[1:], strict=True):
            if other[0] != shapes[0][0]:
                raise UserError(
                    f"{source}: `{name.strip('/')}` has {other[0]} rows and `{names[0].strip('/')}` has "
                    f"{shapes[0][0]}; every part needs one row per step"
                )
        if len(names) == 1:
            row = shapes[0][1:]
        else:
            row = (sum(int(np.prod(other[1:], dtype=int)) for other in shapes),)
        if shape is not None and row != shape:
            raise UserError(
                f"{source}: `{names[0].strip('/')}` has rows of shape {row} and `{arrays[0][0].strip('/')}` of "
                f"{shape}; all episodes need the same"
            )
        shape, rows = row, rows + shapes[0][0]
    if rows == 0:
        raise UserError(f"{source}: `{arrays[0][0].strip('/')}` has no rows; the file is empty")
    return Beside(path, source, tuple(arrays), (rows, *(shape or ())), np.result_type(*set(dtypes)))


def read_flags(column: Beside, name: str) -> np.ndarray:
    """A column (n,) or (n, 1) of flags as bool (n,). Raises `UserError` for other values than 0 and 1."""
    found = np.empty(column.shape[0], bool)
    start = 0
    for piece in column.pieces(PIECE_ROWS):
        flags = piece.reshape(len(piece), -1)
        if flags.shape[1] != 1 or flags.dtype.kind not in "biuf":
            raise UserError(f"{column.source}: `{name}` has shape {column.shape}; it must be one flag per step")
        wrong = np.flatnonzero((flags[:, 0] != 0) & (flags[:, 0] != 1))
        if wrong.size:
            raise UserError(
                f"{column.source}: `{name}` at row {start + wrong[0]} is {flags[wrong[0], 0]}; it must be 0 or 1"
            )
        found[start : start + len(piece)] = flags[:, 0] != 0
        start += len(piece)
    return found


def require_rows(name: str, rows: int, other: str, expected: int, source: str) -> None:
    """Raises `UserError` unless both arrays have as many rows."""
    if rows != expected:
        raise UserError(
            f"{source}: `{name}` has {rows} rows and `{other}` has {expected}; every field needs one row per step"
        )
