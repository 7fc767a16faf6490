"""NumPy archives with D4RL's names."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.lib import format as npy

from diffcps.readers.hashes import sha256_of_file
from diffcps.readers.layout import ATTRIBUTES, find_fields, first_line, raw_rows
from diffcps.readers.rows import RawRows
from diffcps.types import Reading, UserError


class NpzColumn(NamedTuple):
    """An array in an npz archive."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    source: str
    """How messages call the file."""

    def pieces(self, rows: int) -> Iterator[np.ndarray]:
        """The array in pieces of at most `rows` rows. Raises `UserError` where the file is damaged."""
        with _member(self.path, self.name, self.source) as file:
            *_, by_columns, _ = _header(file)
            if by_columns:  # such an array lies in the file the other way round
                array = np.frombuffer(file.read(), self.dtype).reshape(self.shape, order="F")
                for start in range(0, self.shape[0], rows):
                    yield array[start : start + rows]
                return
            size = math.prod(self.shape[1:])
            for start in range(0, self.shape[0], rows):
                count = min(rows, self.shape[0] - start)
                data = file.read(count * size * self.dtype.itemsize)
                yield np.frombuffer(data, self.dtype, count * size).reshape(count, *self.shape[1:])


def read_npz(path: Path, source: str, reading: Reading = Reading()) -> RawRows:  # noqa: B008 (it is immutable)
    """The rows of an npz file with D4RL's field names, singular or plural, which are left there.

    `source` is how messages call it. Raises `UserError` where the file is missing, is no npz archive, is truncated,
    needs pickle, or lacks a field.
    """
    sha256 = sha256_of_file(path, source)
    if not zipfile.is_zipfile(path):
        raise UserError(
            f"{source}: not a complete npz archive; it may be truncated or of another format, write it with numpy.savez"
        )
    with zipfile.ZipFile(path) as archive:
        found = sorted(name.removesuffix(".npy") for name in archive.namelist())
    names = find_fields([name for name in found if name not in ATTRIBUTES], reading.columns, source)
    arrays = {name: _column(path, name, source) for name in names.values()}
    attributes = {name: _small(path, name, source) for name in ATTRIBUTES if name in found}
    return raw_rows(arrays, names, attributes, found, sha256, source)


@contextmanager
def _member(path: Path, name: str, source: str) -> Generator[zipfile.ZipExtFile]:
    """An entry of the archive to read. Raises `UserError` for whatever is wrong with it while it is open."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            assert isinstance(file, zipfile.ZipExtFile)
            yield file
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{source}: damaged npz archive at `{name}` ({first_line(error)}); write it again") from error


def _header(file: zipfile.ZipExtFile) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it lies there by columns, and type of an entry. Raises `ValueError` for what is no array."""
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return read(file)


def _column(path: Path, name: str, source: str) -> NpzColumn | np.ndarray:
    with _member(path, name, source) as file:
        shape, _, dtype = _header(file)
    if dtype.hasobject:
        raise UserError(
            f"{source}: `{name}` can only be read with pickle, which may run any code; store it as a plain array"
        )
    if not shape:
        raise UserError(f"{source}: `{name}` is a single number; it must be an array with one row per step")
    return NpzColumn(path, name, shape, dtype, source)


def _small(path: Path, name: str, source: str) -> np.ndarray:
    with _member(path, name, source) as file:
        return np.asarray(npy.read_array(file, allow_pickle=False))
