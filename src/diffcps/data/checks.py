"""What the rows of every source must pass before they are used: types, shapes, lengths, numbers, flags, actions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffcps.readers.rows import RawRows, Values, pieces, whole
from diffcps.types import Reading, UserError

ROUNDING = 1e-5
"""How far outside its box an action may lie, in units of half the box: float32 noise of a saturated policy."""
MERGED = 0.9
"""A column has lost something where the cast to float32 leaves fewer than this share of its distinct numbers."""


class Rows(NamedTuple):
    """Checked rows. Arrays are float32 and bool, one row per step, in the order of the source."""

    observation: np.ndarray
    """(n, obs), in units of `shift` and `scale`."""
    action: np.ndarray
    """(n, act), in the source's units."""
    reward: np.ndarray
    """(n,)"""
    terminal: np.ndarray
    """(n,)"""
    timeout: np.ndarray | None
    """(n,)"""
    next_observation: np.ndarray | None
    """(n, obs); NaN where it is not a number."""
    last: np.ndarray | None
    """(n,): the last row of its episode, where the source numbers its episodes."""
    absent: tuple[str, ...]
    """Of reward and terminal, those for which zeros stand in."""
    shift: np.ndarray
    """(obs,) float64: the observation of the source is shift + scale * observation."""
    scale: np.ndarray
    notes: tuple[str, ...]
    """What was converted."""

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.observation)


def check_rows(raw: RawRows, source: str, reading: Reading) -> Rows:
    """Reads all rows, piece by piece, and checks them; `source` is how messages call the file.

    Where observations are to be normalised and come in a wider type than float32, they are shifted and scaled before
    they are cast, so that nothing is lost that matters afterwards.

    Raises `UserError` at the first thing that is wrong: type, shape, length, no rows, NaN or infinity (next
    observations may have some), flags other than 0 and 1, actions that are whole numbers.
    """
    name = raw.names.get
    notes: list[str] = list(raw.notes)
    _check_lengths(raw, source)
    _check_action_type(raw, reading, source)
    size = _width(raw.observation, name("observation", "observations"), source)
    shift, scale = np.zeros(size), np.ones(size)
    if reading.normalise_observation and _wide(raw.observation):
        shift, scale = mean_and_deviation(raw.observation)
        scale = np.where(scale > 0, scale, 1.0)
    observation = _matrix(raw.observation, name("observation", ""), source, notes, shift, scale)
    _check_finite(observation, name("observation", ""), source)
    following = None
    if raw.next_observation is not None:
        following = _matrix(raw.next_observation, name("next_observation", ""), source, notes, shift, scale)
        if following.shape != observation.shape:
            raise UserError(
                f"{source}: `{name('next_observation')}` has shape {following.shape} and `{name('observation')}` has "
                f"{observation.shape}; they must be equal"
            )
        following[~np.isfinite(following).all(axis=1)] = np.nan
    action = _matrix(raw.action, name("action", ""), source, notes)
    _check_finite(action, name("action", ""), source)
    absent = tuple(field for field in ("reward", "terminal") if getattr(raw, field) is None)
    rows = len(observation)
    reward = np.zeros(rows, np.float32)
    if raw.reward is not None:
        reward = _vector(raw.reward, name("reward", ""), source, notes)
        _check_finite(reward, name("reward", ""), source)
    terminal = (
        np.zeros(rows, bool) if raw.terminal is None else _flags(raw.terminal, name("terminal", ""), source, notes)
    )
    timeout = None if raw.timeout is None else _flags(raw.timeout, name("timeout", ""), source, notes)
    last = (
        None
        if raw.episode is None
        else _last_of_each(raw.episode, name("episode", "the number of the episode"), source)
    )
    if raw.file_rows:
        last = _with_last_of_files(last, raw, following is None or timeout is not None)
        notes.append(f"{len(raw.file_rows)} files, one after the other; the last row of each ends its episode")
    said = tuple(dict.fromkeys(notes))
    return Rows(observation, action, reward, terminal, timeout, following, last, absent, shift, scale, said)


def _check_lengths(raw: RawRows, source: str) -> None:
    rows = raw.observation.shape[0]
    first = raw.names["observation"]
    if rows == 0:
        raise UserError(f"{source}: `{first}` has no rows; the file is empty")
    for field, name in raw.names.items():
        values: Values = getattr(raw, field)
        if values.shape[0] != rows:
            raise UserError(
                f"{source}: `{name}` has {values.shape[0]} rows and `{first}` has {rows}; every field needs one row "
                "per step"
            )


def _check_action_type(raw: RawRows, reading: Reading, source: str) -> None:
    """Whole numbers name actions, as a rule; these methods learn continuous ones."""
    if raw.action.dtype.kind in "biu" and not reading.continuous_actions:
        raise UserError(
            f"{source}: `{raw.names['action']}` has type {raw.action.dtype}, as if each number named an action; these "
            "methods learn continuous actions: add --continuous-actions if the numbers are amounts"
        )


def _width(values: Values, name: str, source: str) -> int:
    """How many numbers a row has. Raises `UserError` where it is no vector of numbers."""
    _check_numeric(values, name, source)
    if len(values.shape) not in (1, 2):
        raise UserError(f"{source}: `{name}` has shape {values.shape}; it must be (rows, size)")
    size = values.shape[1] if len(values.shape) == 2 else 1
    if size == 0:
        raise UserError(f"{source}: `{name}` has shape {values.shape}; each row needs at least one number")
    return size


def _check_numeric(values: Values, name: str, source: str) -> None:
    if values.dtype.kind not in "biuf":
        raise UserError(f"{source}: `{name}` has type {values.dtype}; it must be a numeric array")


def _wide(values: Values) -> bool:
    """Whether float32 may not hold every number of the type."""
    return values.dtype.kind in "iuf" and values.dtype.itemsize > (4 if values.dtype.kind == "f" else 2)


def mean_and_deviation(values: Values) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column in float64, read piece by piece: (n, size) -> (size,), (size,).

    Columns of one number have a deviation of exactly 0; where a sum is not finite, mean and deviation are 0.
    """
    size = values.shape[1] if len(values.shape) == 2 else 1
    first = next(pieces(values)).reshape(-1, size)[0].astype(np.float64)  # takes the offset out of the sums
    total, squares, rows = np.zeros(size), np.zeros(size), values.shape[0]
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused by its row, later
        for piece in pieces(values):
            moved = piece.reshape(-1, size).astype(np.float64) - first
            total += moved.sum(axis=0)
            squares += (moved**2).sum(axis=0)
        mean = total / rows
        deviation = np.sqrt(np.maximum(squares / rows - mean**2, 0.0))
    finite = np.isfinite(deviation) & np.isfinite(mean)
    return np.where(finite, first + mean, 0.0), np.where(finite, deviation, 0.0)


def _matrix(
    values: Values,
    name: str,
    source: str,
    notes: list[str],
    shift: np.ndarray | None = None,
    scale: np.ndarray | None = None,
) -> np.ndarray:
    """(values - shift) / scale as float32, (n, size), read piece by piece."""
    size = _width(values, name, source)
    found = np.empty((values.shape[0], size), np.float32)
    start = 0
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit into float32 becomes infinite
        for piece in pieces(values):
            piece = piece.reshape(-1, size)
            if shift is not None and scale is not None and (shift.any() or (scale != 1).any()):
                piece = (piece.astype(np.float64) - shift) / scale
            found[start : start + len(piece)] = piece
            if start == 0 and shift is not None and _wide(values):
                _say_what_merged(piece, found[: len(piece)], name, notes)
            start += len(piece)
    if len(values.shape) == 1:
        notes.append(f"`{name}` has one number in a row: taken as vectors of size 1")
    return found


def _say_what_merged(piece: np.ndarray, cast: np.ndarray, name: str, notes: list[str]) -> None:
    for column in range(piece.shape[1]):
        before, after = len(np.unique(piece[:, column])), len(np.unique(cast[:, column]))
        if after < MERGED * before:
            notes.append(
                f"`{name}`, column {column}: {before} different numbers of its first {len(piece)} rows are only "
                f"{after} in float32; --normalise-observation keeps them apart, or store differences"
            )


def _vector(values: Values, name: str, source: str, notes: list[str]) -> np.ndarray:
    """A number for each row as float32, (n,)."""
    _check_numeric(values, name, source)
    if values.shape != values.shape[:1] and values.shape[1:] != (1,):
        raise UserError(f"{source}: `{name}` has shape {values.shape}; it must be (rows,)")
    if len(values.shape) == 2:
        notes.append(f"`{name}` has shape {values.shape}: taken as {values.shape[:1]}")
    with np.errstate(over="ignore"):
        return np.concatenate([piece.reshape(-1).astype(np.float32) for piece in pieces(values)])


def _flags(values: Values, name: str, source: str, notes: list[str]) -> np.ndarray:
    found = _vector(values, name, source, notes)
    wrong = np.flatnonzero((found != 0) & (found != 1))
    if wrong.size:
        raise UserError(f"{source}: `{name}` at row {wrong[0]} is {found[wrong[0]]:g}; it must be False/True or 0/1")
    return found == 1


def _last_of_each(values: Values, name: str, source: str) -> np.ndarray:
    """Where the number of the episode changes after the row, (n,) bool; so at the last row."""
    if values.dtype.kind not in "iuSU" or len([size for size in values.shape if size != 1]) > 1:
        raise UserError(
            f"{source}: `{name}` has type {values.dtype} and shape {values.shape}; it must be a whole number "
            "for each row"
        )
    number = whole(values).reshape(-1)
    return np.append(number[1:] != number[:-1], True)


def _with_last_of_files(last: np.ndarray | None, raw: RawRows, marked: bool) -> np.ndarray | None:
    """Also the last row of each file; where ends are found by the next observations, these show it."""
    if last is None and not marked:
        return None
    last = np.zeros(raw.observation.shape[0], bool) if last is None else last
    last[np.cumsum(raw.file_rows) - 1] = True
    return last


def _check_finite(value: np.ndarray, name: str, source: str) -> None:
    bad = ~np.isfinite(value).reshape(len(value), -1).all(axis=1)
    if bad.any():
        raise UserError(
            f"{source}: `{name}` is NaN or infinite (in float32) at row {bad.argmax()}, and at {bad.sum()} of "
            f"{len(value)} rows in all; repair or remove them"
        )
