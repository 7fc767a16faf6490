"""What every dataset must pass, and what its owner should know.

`check_rows` refuses what would make training meaningless; `find_warnings` lists what is legal and suspicious.
"""

from __future__ import annotations

import numpy as np

from diffcps.data.rows import RawRows, chains
from diffcps.types import Dataset, UserError

ROUNDING = 1e-5
"""How far outside its box an action may lie, in units of half the box: float32 noise of a saturated policy."""
SHORTEST_TIME_LIMIT = 200
"""Terminal episodes that all have one length are taken for cut by a time limit from here on."""


def check_rows(raw: RawRows, source: str) -> RawRows:
    """The same record as float32 and bool, its action box filled in; `source` is how messages call the file.

    observation, next_observation (n, obs); action (n, act); reward, terminal, timeout (n,); action_low, action_high
    (act,). Raises `UserError` at the first thing that is wrong: type, shape, length, no rows, NaN or infinity, flags
    other than 0 and 1, a bad action box, an action outside it.
    """
    real = {}
    for field, dimensions in (("observation", 2), ("action", 2), ("reward", 1), ("next_observation", 2)):
        if (value := getattr(raw, field)) is not None:
            real[field] = _numbers(value, dimensions, raw.names[field], source)
    flags = {}
    for field in ("terminal", "timeout"):
        if (value := getattr(raw, field)) is not None:
            flags[field] = _flags(value, raw.names[field], source)

    rows = len(real["observation"])
    if rows == 0:
        raise UserError(f"{source}: `{raw.names['observation']}` has no rows; the file is empty")
    for field, value in (real | flags).items():
        if len(value) != rows:
            raise UserError(
                f"{source}: `{raw.names[field]}` has {len(value)} rows and `{raw.names['observation']}` has {rows}; "
                "every field needs one row per step"
            )
    if "next_observation" in real and real["next_observation"].shape != real["observation"].shape:
        raise UserError(
            f"{source}: `{raw.names['next_observation']}` has shape {real['next_observation'].shape} and "
            f"`{raw.names['observation']}` has {real['observation'].shape}; they must be equal"
        )
    for field, value in real.items():
        _check_finite(value, raw.names[field], source)

    size = real["action"].shape[1]
    low = _box_side(raw.action_low, -1.0, size, "action_low", source)
    high = _box_side(raw.action_high, 1.0, size, "action_high", source)
    _check_box(real["action"], low, high, raw.names["action"], source)
    return raw._replace(**real, **flags, action_low=low, action_high=high)


def find_warnings(dataset: Dataset) -> list[str]:
    """What is suspicious in a loaded dataset, one line each; nothing here stops training."""
    observation, next_observation = np.asarray(dataset.observation), np.asarray(dataset.next_observation)
    reward, terminal, timeout = (np.asarray(x) for x in (dataset.reward, dataset.terminal, dataset.timeout))
    end = terminal | timeout
    found = []

    if (reward == reward[0]).all():
        kind = "zero" if reward[0] == 0 else f"the same ({reward[0]:g})"
        found.append(f"every reward is {kind}: there is nothing to maximise")

    broken = int((~chains(observation, next_observation) & ~end).sum())
    if broken:
        found.append(
            f"next_observation is not the following row's observation at {broken} rows inside episodes: "
            "unmarked episode ends, or rows out of order"
        )

    both = int((terminal & timeout).sum())
    if both:
        found.append(f"{both} rows are both terminal and timeout: terminal wins, and stops the bootstrap there")

    lengths = np.diff(np.flatnonzero(end), prepend=-1)
    terminal_lengths = lengths[terminal[end]]
    if len(terminal_lengths) > 1 and np.ptp(terminal_lengths) == 0 and terminal_lengths[0] >= SHORTEST_TIME_LIMIT:
        found.append(
            f"all {len(terminal_lengths)} terminal episodes have exactly {terminal_lengths[0]} steps: terminal seems "
            "to mark the time limit, which should be timeout (as terminal it teaches that the future is worth nothing)"
        )

    if not end[:-1].any() and not terminal[-1]:
        found.append(f"no episode end is marked: all {len(end)} rows count as one episode")

    repeated = _count_repeated(np.concatenate([observation, np.asarray(dataset.action)], axis=1))
    if repeated:
        found.append(f"{repeated} rows repeat the observation and action of another row")
    return found


def _numbers(value: np.ndarray, dimensions: int, name: str, source: str) -> np.ndarray:
    if value.dtype.kind not in "biuf":
        raise UserError(f"{source}: `{name}` has type {value.dtype}; it must be a numeric array")
    if value.ndim != dimensions:
        form = "(rows, size)" if dimensions == 2 else "(rows,)"
        raise UserError(f"{source}: `{name}` has shape {value.shape}; it must be {form}")
    if dimensions == 2 and value.shape[1] == 0:
        raise UserError(f"{source}: `{name}` has shape {value.shape}; each row needs at least one number")
    with np.errstate(over="ignore"):  # what does not fit into float32 becomes infinite, and is reported as such
        return value.astype(np.float32)


def _flags(value: np.ndarray, name: str, source: str) -> np.ndarray:
    value_real = _numbers(value, 1, name, source)
    wrong = np.flatnonzero((value_real != 0) & (value_real != 1))
    if wrong.size:
        raise UserError(f"{source}: `{name}` at row {wrong[0]} is {value[wrong[0]]}; it must be False/True or 0/1")
    return value_real == 1


def _check_finite(value: np.ndarray, name: str, source: str) -> None:
    bad = ~np.isfinite(value).reshape(len(value), -1).all(axis=1)
    if bad.any():
        raise UserError(
            f"{source}: `{name}` is NaN or infinite (in float32) at row {bad.argmax()}, and at {bad.sum()} of "
            f"{len(value)} rows in all; repair or remove them"
        )


def _box_side(given: np.ndarray | None, default: float, size: int, name: str, source: str) -> np.ndarray:
    side = np.asarray(default if given is None else given, dtype=np.float32)
    if side.ndim == 0:
        side = np.full(size, side)
    if side.shape != (size,):
        raise UserError(f"{source}: `{name}` has {side.size} numbers for {size} action dimensions")
    if not np.isfinite(side).all():
        raise UserError(
            f"{source}: `{name}` of dimension {int((~np.isfinite(side)).argmax())} is not finite; "
            "actions are scaled to [-1, 1], which needs a bounded box"
        )
    return side


def _check_box(action: np.ndarray, low: np.ndarray, high: np.ndarray, name: str, source: str) -> None:
    if not (low < high).all():
        dimension = int((low >= high).argmax())
        raise UserError(
            f"{source}: `action_low` is not below `action_high` in dimension {dimension} "
            f"({low[dimension]:g}, {high[dimension]:g})"
        )
    slack = ROUNDING * (high - low) / 2
    outside = (action < low - slack) | (action > high + slack)
    if outside.any():
        row, dimension = (int(i[0]) for i in np.nonzero(outside))
        raise UserError(
            f"{source}: `{name}` at row {row}, dimension {dimension} is {action[row, dimension]:.6g}, outside "
            f"[{low[dimension]:g}, {high[dimension]:g}], as in {outside.any(axis=1).sum()} of {len(action)} rows; clip "
            "the actions, or store the true box as `action_low` and `action_high`"
        )


def _count_repeated(rows: np.ndarray) -> int:
    rows = np.ascontiguousarray(rows)
    return len(rows) - len(set(rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel().tolist()))
