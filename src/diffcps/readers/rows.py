"""The rows that a reader finds in a source, before anything is checked or decided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np

from diffcps.types import EnvironmentSpec

FIELDS = ("observation", "action", "reward", "terminal", "timeout", "next_observation")
"""What a source may hold for each step."""
PIECE_ROWS = 2**12
"""Rows that are read and converted at a time."""


@runtime_checkable
class Column(Protocol):
    """An array with one row per step that stays in its file until it is read, a piece after the other."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def pieces(self, rows: int) -> Iterator[np.ndarray]:
        """The whole array from its first row, in pieces of at most `rows` rows."""
        ...


Values: TypeAlias = np.ndarray | Column


class RawRows(NamedTuple):
    """What a source holds, row by row, unchecked: fields are found and named, nothing else."""

    observation: Values
    action: Values
    reward: Values | None
    terminal: Values | None
    timeout: Values | None
    next_observation: Values | None
    names: dict[str, str]
    """Each of `FIELDS` that the source has -> its name there, for messages."""
    sha256: str
    environment: EnvironmentSpec | None = None
    reference_min: float | None = None
    reference_max: float | None = None
    action_low: np.ndarray | None = None
    """None: the source does not say."""
    action_high: np.ndarray | None = None
    episode: Values | None = None
    """A number for each row, another one for each episode, where the source counts them."""
    ignored: tuple[str, ...] = ()
    """Names of what else is there."""
    notes: tuple[str, ...] = ()
    """What the reader had to decide, in words."""
    file_rows: tuple[int, ...] = ()
    """Rows of each of several joined files, in order: the last row of each ends its episode. Empty for one file."""


def pieces(values: Values, rows: int = PIECE_ROWS) -> Iterator[np.ndarray]:
    """An array in pieces of at most `rows` rows, wherever it is."""
    if isinstance(values, np.ndarray):
        for start in range(0, len(values), rows):
            yield values[start : start + rows]
    else:
        yield from values.pieces(rows)


def whole(values: Values) -> np.ndarray:
    """An array as a whole, in its own type."""
    return values if isinstance(values, np.ndarray) else np.concatenate(list(values.pieces(PIECE_ROWS)))


class Joined(NamedTuple):
    """Arrays of several sources, one after the other. They have one type and one shape but for the rows."""

    parts: Sequence[Values]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    @property
    def dtype(self) -> np.dtype:
        return np.result_type(*(part.dtype for part in self.parts))

    def pieces(self, rows: int) -> Iterator[np.ndarray]:
        for part in self.parts:
            yield from pieces(part, rows)
