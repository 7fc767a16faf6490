"""HDF5 files in D4RL's layout."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diffcps.data.hashes import sha256_of_file
from diffcps.data.readers.layout import ATTRIBUTES, find_fields, first_line, raw_rows
from diffcps.data.rows import RawRows
from diffcps.types import UserError

if TYPE_CHECKING:
    import h5py


class Hdf5Column(NamedTuple):
    """An array in an HDF5 file."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    source: str
    """How messages call the file."""

    def pieces(self, rows: int) -> Iterator[np.ndarray]:
        """The array in pieces of at most `rows` rows. Raises `UserError` where the file is damaged."""
        with opened(self.path, self.source) as file:
            for start in range(0, self.shape[0], rows):
                yield np.asarray(file[self.name][start : start + rows])


def read_hdf5(path: Path, source: str, columns: Sequence[str] = ()) -> RawRows:
    """The rows of a D4RL-layout HDF5 file, which are left there. `source` is how messages call it.

    Raises `UserError` where the file is missing, is not HDF5, is truncated, or lacks a field.
    Reference: D4RL (arXiv:2004.07219), file layout.
    """
    sha256 = sha256_of_file(path, source)
    with opened(path, source) as file:
        found = sorted(file)
        names = find_fields(found, columns, source)
        arrays = {name: _column(file[name], path, source) for name in names.values()}
        attributes = {name: file.attrs[name] for name in ATTRIBUTES if name in file.attrs}
    return raw_rows(arrays, names, attributes, found, sha256, source)


@contextmanager
def opened(path: Path, source: str) -> Generator[h5py.File]:
    """An HDF5 file to read. Raises `UserError` where it is none, and for what goes wrong while it is open."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(
            f"{source}: not a complete HDF5 file ({first_line(error)}); it may be truncated or of another format, "
            "copy or download it again"
        ) from error


def _column(item: object, path: Path, source: str) -> Hdf5Column:
    import h5py

    if not isinstance(item, h5py.Dataset):
        name = str(getattr(item, "name", "")).lstrip("/")
        raise UserError(f"{source}: `{name}` is a group; it must be an array with one row per step")
    name = str(item.name).lstrip("/")
    if item.ndim == 0:
        raise UserError(f"{source}: `{name}` is a single number; it must be an array with one row per step")
    return Hdf5Column(path, name, item.shape, item.dtype, source)
