"""Where episodes end, and which rows are transitions: the rules of docs/data.md, each with its line in the account."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffcps.data.checks import Rows, mean_and_deviation
from diffcps.data.order import Steps, environments_side_by_side, stride_of_smooth_rows
from diffcps.types import Reading, UserError

UNUSUAL = 0.99
"""A change of the observation above this quantile of the changes inside episodes is no step of the environment."""


class Ends(NamedTuple):
    """Which rows are transitions, and how their episodes end."""

    kept: np.ndarray
    """(k,) int: rows that become transitions."""
    follower: np.ndarray
    """(k,) int: the row whose observation comes next, where the source has no next observations."""
    timeout: np.ndarray
    """(k,) bool"""
    dropped: tuple[tuple[str, int], ...]
    ends: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    ordered: bool
    foreign: np.ndarray
    """(n,) bool: terminal rows of the source whose next observation is the next episode's first."""


def side_by_side(rows: Rows, environments: int, source: str) -> Rows:
    """Rows of several environments, step 0 of all, step 1 of all, ..., put one environment after the other.

    Raises `UserError` where the rows are not so many steps of each.
    """
    if environments < 1 or rows.size % environments:
        raise UserError(
            f"{source}: {rows.size} rows are not the same number of steps of {environments} environments; "
            "--environments takes how many there are, all of them recorded at every step"
        )
    order = np.arange(rows.size).reshape(-1, environments).T.ravel()
    last = _at(rows.last, order)
    if not (rows.next_observation is not None and rows.timeout is None and last is None):  # else they are found
        steps = rows.size // environments
        last = (np.arange(rows.size) % steps == steps - 1) | (False if last is None else last)
    return rows._replace(
        observation=rows.observation[order],
        action=rows.action[order],
        reward=rows.reward[order],
        terminal=rows.terminal[order],
        timeout=_at(rows.timeout, order),
        next_observation=_at(rows.next_observation, order),
        last=last,
        notes=(*rows.notes, f"rows of {environments} environments side by side were put one after the other"),
    )  # fmt: skip


def find_ends(rows: Rows, reading: Reading, source: str) -> Ends:
    """The transitions among checked rows.

    A terminal row is a transition, whatever else is flagged and wherever it stands: nothing reads its next observation.
    Raises `UserError` where the ends cannot be known, where the order of the rows is not that of time and next
    observations rest on it, and where no row is left.
    """
    if reading.timeout_next is not None and (rows.next_observation is None or _marked(rows) is None):
        what = "has no next observations" if rows.next_observation is None else "marks no ends of episodes"
        raise UserError(f"{source}: {what}: leave --timeout-next {reading.timeout_next} out")
    steps = Steps(mean_and_deviation(rows.observation)[1])
    if rows.next_observation is None:
        return _without_next(rows, steps, reading, source)
    return _with_next(rows, rows.next_observation, steps, reading, source)


def _with_next(rows: Rows, following: np.ndarray, steps: Steps, reading: Reading, source: str) -> Ends:
    """Every row is a transition but for rows that only reset, and time-outs whose next observation is not theirs."""
    chained = steps.chained(rows.observation, following)
    marked = _marked(rows)
    notes = _both_flags(rows, marked)
    warnings: list[str] = []
    foreign = np.zeros(rows.size, bool)
    inside = ~rows.terminal if marked is None else ~(rows.terminal | marked)
    broken = inside & ~chained
    ordered = broken.sum() <= inside.sum() / 2 or rows.size < 10
    if not ordered:
        number = environments_side_by_side(rows.observation, following)
        warnings.append(_out_of_order(int(broken.sum()), rows.size, number))
    elif marked is not None and broken.any():
        warnings.append(
            f"next_observation is not the following row's observation at {broken.sum()} rows inside episodes: unmarked "
            "episode ends, or rows out of order; mark the ends, if returns matter"
        )
    if marked is None:
        timeout, reset, bad = broken.copy(), np.zeros_like(broken), np.zeros_like(broken)
    else:
        timeout = marked & ~rows.terminal
        length = steps.length(rows.observation, following)
        reset = _reset_rows(rows, length, chained, marked) if ordered else np.zeros_like(marked)
        bad = _not_theirs(rows, following, length, chained, timeout, reset, reading, source) & ~reset
        foreign = _foreign_at_ends(rows, length, chained, reset, inside) if ordered else foreign
        if foreign.any():
            notes.append(
                f"{foreign.sum()} terminal rows hold the next episode's start as next observation: nothing reads it"
            )
    unknown = ~np.isfinite(following[:, 0]) & ~rows.terminal & ~reset
    if (unknown & ~timeout).any():
        row = int((unknown & ~timeout).argmax())
        raise UserError(
            f"{source}: the next observation of row {row} is NaN or infinite, and of {(unknown & ~timeout).sum()} rows "
            "in all that end no episode; repair or remove them"
        )
    timeout[-1] |= not rows.terminal[-1]
    kept = ~(reset | bad)
    if not kept.any():
        raise UserError(f"{source}: no transition is left: no row has a next observation; store them")
    index, shortened = _shorten(rows.terminal, reset, bad)
    timeout = (timeout[index] | shortened) & ~rows.terminal[index]
    dropped = [
        ("only lead from the end of an episode to the next start (autoreset at the next step)", int(reset.sum())),
        ("time-outs whose next observation is not their own (a reset or a filler)", int(bad.sum())),
    ]
    found = int(broken.sum()) if marked is None else 0
    ends = _ends(rows.terminal[index], timeout, found, rows, marked)
    return Ends(
        index, index, timeout, tuple(line for line in dropped if line[1]), ends, tuple(notes), tuple(warnings),
        bool(ordered), foreign,
    )  # fmt: skip


def _without_next(rows: Rows, steps: Steps, reading: Reading, source: str) -> Ends:
    """D4RL's rule: the next row is the next observation; a time-out and the source's last row have none."""
    marked = _marked(rows)
    notes = _both_flags(rows, marked)
    if marked is None and not rows.terminal[-1]:
        if "terminal" not in rows.absent:
            raise UserError(
                f"{source}: the ends of the episodes are unknown, for there is neither `timeouts` nor "
                "`next_observations` and the last row is not terminal; add a boolean field `timeouts` that marks the "
                "last row of each episode cut by a time limit (all False if it is one unbroken trajectory)"
            )
        last = np.arange(rows.size) == rows.size - 1  # nothing that may be trained on such rows reads what comes next
        index = np.arange(rows.size)
        note = "where episodes end is not known, nor what comes next: observations and actions alone can be used"
        nothing = np.zeros(rows.size, bool)
        return Ends(index, index, last, (), (("last row of the source", 1),), (note,), (), False, nothing)
    _refuse_disorder(rows, marked, steps, reading, source)
    marked = np.zeros(rows.size, bool) if marked is None else marked
    reset = _reset_rows_without_next(rows, steps, rows.terminal | marked)
    cut = marked & ~rows.terminal & ~reset
    final = np.zeros(rows.size, bool)
    final[-1] = not (rows.terminal[-1] or cut[-1] or reset[-1])
    index, shortened = _shorten(rows.terminal, reset, cut | final)
    if not len(index):
        raise UserError(
            f"{source}: no transition is left, for without `next_observations` the last row and every row flagged as "
            "timeout are dropped; store `next_observations`"
        )
    timeout = shortened & ~rows.terminal[index]
    alive = np.flatnonzero(~reset)
    follower = alive[np.minimum(np.searchsorted(alive, index) + 1, len(alive) - 1)]
    dropped = [
        ("only lead from the end of an episode to the next start (autoreset at the next step)", int(reset.sum())),
        ("time-outs: without next observations nothing says what came after them", int(cut.sum())),
        ("the last row of the source, for the same reason", int(final.sum())),
    ]
    ends = (
        ("terminal", int(rows.terminal[index].sum())),
        ("timeout, at the row before a dropped one", int(timeout.sum())),
    )
    return Ends(
        index, follower, timeout, tuple(line for line in dropped if line[1]),
        tuple(line for line in ends if line[1]), tuple(notes), (), True, np.zeros_like(final),
    )  # fmt: skip


def _marked(rows: Rows) -> np.ndarray | None:
    """Rows flagged or numbered as the last of their episode; None where the source says nothing of the kind."""
    if rows.timeout is None:
        return None if rows.last is None else rows.last.copy()
    return rows.timeout | rows.last if rows.last is not None else rows.timeout.copy()


def _both_flags(rows: Rows, marked: np.ndarray | None) -> list[str]:
    both = 0 if marked is None else int((rows.terminal & marked).sum())
    if not both:
        return []
    return [f"{both} rows are flagged both terminal and as the last of their episode: taken as terminal"]


def _shorten(terminal: np.ndarray, reset: np.ndarray, dropped: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are left (k,), and which of them stand before a dropped end of their episode (k,) bool."""
    alive = np.flatnonzero(~reset)
    gone = dropped[alive]
    before = np.append(gone[1:], False)
    return alive[~gone], before[~gone]


def _reset_rows(rows: Rows, length: np.ndarray, chained: np.ndarray, marked: np.ndarray) -> np.ndarray:
    """Rows that Gymnasium's vector environments make after each end: their action is ignored, their reward is 0."""
    end = rows.terminal | marked
    after = np.append(False, end[:-1] & chained[:-1]) & (rows.reward == 0) & ~end & chained
    ends = end[:-1].sum()
    if not ends or after.sum() < 0.9 * ends:
        return np.zeros_like(end)
    inside = ~end & chained & ~after
    return after if inside.any() and _unusual(length, after, inside).mean() >= 0.5 else np.zeros_like(end)


def _reset_rows_without_next(rows: Rows, steps: Steps, end: np.ndarray) -> np.ndarray:
    """The same, where the following row is the next observation."""
    after = np.append(False, end[:-1]) & (rows.reward == 0) & ~end
    after[-1:] = False  # nothing is known of its change
    ends = end[:-2].sum()
    if not ends or after.sum() < 0.9 * ends:
        return np.zeros_like(end)
    length = np.append(steps.length(rows.observation[:-1], rows.observation[1:]), 0.0)
    inside = ~end & ~after
    inside[-1:] = False
    arriving = np.append(after[1:], False)  # the step to the end itself, which is the row after the end
    if not inside.any():
        return np.zeros_like(end)
    telling = after.sum() > 2 and (rows.reward[inside] == 0).mean() < 0.01  # no other row pays exactly nothing
    jumps = _unusual(length, after, inside).mean() >= 0.5 and _unusual(length, arriving, inside).mean() <= 0.1
    return after if telling or jumps else np.zeros_like(end)


def _unusual(length: np.ndarray, which: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """For the rows `which`, whether their change is none of the environment's steps."""
    return length[which] > np.quantile(length[inside], UNUSUAL)


def _not_theirs(
    rows: Rows,
    following: np.ndarray,
    length: np.ndarray,
    chained: np.ndarray,
    timeout: np.ndarray,
    reset: np.ndarray,
    reading: Reading,
    source: str,
) -> np.ndarray:
    """Time-outs whose next observation is the next episode's first, the row itself, one constant, or no number."""
    unknown = timeout & ~np.isfinite(following[:, 0])
    if reading.timeout_next == "none":
        return timeout
    if reading.timeout_next == "real" or not timeout.any():
        return unknown
    found = unknown | (timeout & (following == 0).all(axis=1) & (rows.observation != 0).any(axis=1))
    inside = ~(rows.terminal | timeout | reset) & chained
    still = (following == rows.observation).all(axis=1)
    if inside.any() and still[inside].mean() < 0.01:
        found |= timeout & still
    if timeout.sum() > 2 and (following[timeout] == following[timeout][0]).all():
        found |= timeout
    glued = timeout & chained
    glued[-1] = False
    glued[:-1] &= ~reset[1:]  # there the following row is the end itself
    if not glued.any() or not inside.any():
        return found
    unusual = int(_unusual(length, glued, inside).sum())
    count = int(glued.sum())
    if 2 * unusual >= count:  # resets: the last row of the source has one, too, though nothing follows to show it
        rule = count + 1 >= 0.9 * timeout.sum()
        return found | (timeout if rule else glued)
    if unusual > 1 + 0.05 * count:
        raise UserError(
            f"{source}: at {count} time-outs the next observation is the following row's, which is a start at some and "
            "a step at others: add --timeout-next none if the environment was reset there (these rows are then "
            "dropped), or --timeout-next real if it went on"
        )
    return found


def _foreign_at_ends(
    rows: Rows, length: np.ndarray, chained: np.ndarray, reset: np.ndarray, inside: np.ndarray
) -> np.ndarray:
    """Terminal rows whose next observation is the next episode's first. Methods do not read it, `data check` does."""
    glued = rows.terminal & chained
    glued[-1] = False
    glued[:-1] &= ~reset[1:]
    inside = inside & chained & ~reset
    if not glued.any() or not inside.any():
        return np.zeros_like(glued)
    return glued if _unusual(length, glued, inside).mean() >= 0.5 else np.zeros_like(glued)


def _refuse_disorder(rows: Rows, marked: np.ndarray | None, steps: Steps, reading: Reading, source: str) -> None:
    """Raises `UserError` where the following row is not what comes next."""
    end = rows.terminal if marked is None else rows.terminal | marked
    if reading.environments is not None or end.all():
        return
    stride, follows = stride_of_smooth_rows(rows.observation, steps)
    if stride is not None:
        raise UserError(
            f"{source}: rows resemble the one {stride} rows further down more than the following one, as if {stride} "
            f"environments lay side by side: add --environments {stride} to put them one after the other, or "
            "--environments 1 if the rows are in order as they are"
        )
    if not follows:
        raise UserError(
            f"{source}: each row is as far from the following one as from any other, as if the rows were shuffled, and "
            "there are no `next_observations`: store these, or add --environments 1 if the rows are in order"
        )


def _out_of_order(broken: int, rows: int, environments: int | None) -> str:
    text = f"next_observation is not the following row's observation at {broken} of {rows} rows: "
    if environments is not None:
        return text + (
            f"rows of {environments} environments lie side by side; add --environments {environments} to put them one "
            "after the other, without which returns, lengths and ends of episodes mean nothing"
        )
    return text + "the rows seem shuffled, and returns, lengths and ends of episodes mean nothing"


def _ends(
    terminal: np.ndarray, timeout: np.ndarray, found: int, rows: Rows, marked: np.ndarray | None
) -> tuple[tuple[str, int], ...]:
    """How the ends of the episodes are known."""
    by_file = int(timeout.sum()) - found
    last = int(bool(timeout[-1]) and (marked is None or not marked[-1]) and not rows.terminal[-1])
    lines = [
        ("terminal", int(terminal.sum())),
        ("timeout, marked", by_file - last),
        ("timeout, found where the next observation is not the following row's", found),
        ("last row of the source", last),
    ]
    return tuple(line for line in lines if line[1])


def _at(values: np.ndarray | None, order: np.ndarray) -> np.ndarray | None:
    return None if values is None else values[order]
