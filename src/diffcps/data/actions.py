"""Which box a source's actions lie in, and which box the policy's actions shall have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from diffcps.data.checks import ROUNDING
from diffcps.readers.rows import RawRows
from diffcps.types import Reading, UserError


class Box(NamedTuple):
    """Bounds of actions, (act,) each, float32."""

    low: np.ndarray
    high: np.ndarray

    @classmethod
    def of(cls, low: Sequence[float], high: Sequence[float]) -> Box:
        """The box with these bounds."""
        return cls(np.asarray(low, np.float32), np.asarray(high, np.float32))

    def same(self, other: Box) -> bool:
        """Whether both are the same box, up to rounding."""
        slack = ROUNDING * np.maximum(self.high - self.low, other.high - other.low)
        return bool((abs(self.low - other.low) <= slack).all() and (abs(self.high - other.high) <= slack).all())

    def outside(self, action: np.ndarray) -> np.ndarray:
        """Which entries of actions (n, act) lie outside by more than rounding."""
        slack = ROUNDING * np.where(self.high > self.low, (self.high - self.low) / 2, 1.0)
        return (action < self.low - slack) | (action > self.high + slack)

    def __str__(self) -> str:
        if (self.low == self.low[0]).all() and (self.high == self.high[0]).all():
            return f"[{self.low[0]:g}, {self.high[0]:g}]"
        return " x ".join(f"[{low:g}, {high:g}]" for low, high in zip(self.low, self.high, strict=True))


class ActionUnits(NamedTuple):
    """What is known of the units of actions."""

    data: Box
    """The box that the source's actions lie in: it becomes [-1, 1] for the networks."""
    policy: Box
    """The box of the policy's actions: the environment's, where there is one."""
    note: str


def action_boxes(
    raw: RawRows, action: np.ndarray, reading: Reading, environment: Box | None, where: str, source: str
) -> ActionUnits:
    """Which box is which, from what the source says, what a person says, and the environment's box, where it is known.

    `action` (n, act) are in the source's units; `where` is how messages call the environment. Without a word about the
    units, boxes of source and environment must be equal. A source that names no box lies in the environment's where it
    leaves [-1, 1]; where it does not, and the environment's box is another, nobody can tell.

    Raises `UserError` for a box of another size or without bounds, where units cannot be told, and for actions outside
    their box that nobody has asked to cut off.
    """
    size = action.shape[1]
    named = _named_box(raw, reading, size, source)
    unit = Box(np.full(size, -1, np.float32), np.full(size, 1, np.float32))
    if environment is None and reading.action_units is not None:
        raise UserError(f"{source}: --action-units compares with an environment's box, and there is none: leave it out")
    if environment is not None and len(environment.low) != size:
        environment = None  # sizes are compared, and refused, with the observations'
    if environment is None:
        data = named or unit
        note = f"actions in {data}" + ("" if named else ", as no box is named")
        boxes = ActionUnits(data, data, note)
    else:
        boxes = _with_environment(action, named, unit, environment, reading, where, source)
    _check_inside(action, boxes.data, named is not None, reading, raw.names["action"], source)
    return boxes


def _with_environment(
    action: np.ndarray, named: Box | None, unit: Box, environment: Box, reading: Reading, where: str, source: str
) -> ActionUnits:
    choice = (
        f"add --action-units environment if they are what {where} was given, or --action-units scaled if they shall be "
        "stretched to its box"
    )
    match reading.action_units:
        case "environment":
            return ActionUnits(environment, environment, f"actions in the units of {where}, {environment}, as said")
        case "scaled":
            data = named or unit
            return ActionUnits(data, environment, f"actions in {data}, stretched to {environment} of {where}, as said")
        case None if named is not None:
            if not named.same(environment):
                raise UserError(f"{source}: its actions lie in {named} and {where} takes {environment}; {choice}")
            return ActionUnits(named, named, f"actions in {named}, the box of {where}")
        case None if environment.same(unit):
            return ActionUnits(unit, unit, f"actions in {unit}, the box of {where}")
        case None if unit.outside(action).any():
            return ActionUnits(
                environment, environment, f"no box is named: actions in {environment}, the box of {where}"
            )
        case None:
            raise UserError(
                f"{source}: names no box for its actions, which all lie in [-1, 1], and {where} takes {environment}; "
                f"{choice}"
            )


def cut_off(action: np.ndarray, box: Box) -> int:
    """Cuts actions (n, act) off at the sides of their box, in place; how many entries lay outside, but for rounding."""
    count = int(box.outside(action).sum())
    np.clip(action, box.low, box.high, out=action)
    return count


def _named_box(raw: RawRows, reading: Reading, size: int, source: str) -> Box | None:
    """The box that a person or else the source names. Raises `UserError` where it is none."""
    low, high = raw.action_low, raw.action_high
    by = "action_low", "action_high"
    if reading.action_low or reading.action_high:
        low = np.asarray(reading.action_low) if reading.action_low else None
        high = np.asarray(reading.action_high) if reading.action_high else None
        by = "--action-low", "--action-high"
    if low is None and high is None:
        return None
    if low is None or high is None:
        raise UserError(f"{source}: names `{by[low is None]}` and no `{by[high is None]}`; a box needs both")
    box = Box(_side(low, size, by[0], source), _side(high, size, by[1], source))
    if (box.low > box.high).any():
        dimension = int((box.low > box.high).argmax())
        raise UserError(
            f"{source}: `{by[0]}` is above `{by[1]}` in dimension {dimension} "
            f"({box.low[dimension]:g}, {box.high[dimension]:g})"
        )
    return box


def _side(given: np.ndarray, size: int, name: str, source: str) -> np.ndarray:
    side = np.asarray(given, dtype=np.float32).ravel()
    if side.size == 1:
        side = np.full(size, side[0])
    if side.shape != (size,):
        raise UserError(f"{source}: `{name}` has {side.size} numbers for {size} action dimensions")
    if not np.isfinite(side).all():
        raise UserError(
            f"{source}: `{name}` of dimension {int((~np.isfinite(side)).argmax())} is not finite; actions are scaled "
            "to [-1, 1], which needs a bounded box: name one with --action-low X and --action-high X, one number or "
            "one for each dimension"
        )
    return side


def _check_inside(action: np.ndarray, box: Box, named: bool, reading: Reading, name: str, source: str) -> None:
    outside = box.outside(action)
    if not outside.any() or reading.clip_actions:
        return
    row, dimension = (int(i[0]) for i in np.nonzero(outside))
    widest = math.ceil(1000 * float(np.abs(action).max())) / 1000
    raise UserError(
        f"{source}: `{name}` at row {row}, dimension {dimension} is {action[row, dimension]:.6g}, outside "
        f"[{box.low[dimension]:g}, {box.high[dimension]:g}], as in {outside.any(axis=1).sum()} of {len(action)} rows; "
        f"cut them off with --clip-actions, or name the true box, such as --action-low {-widest:g} --action-high "
        f"{widest:g}" + ("" if named else " (no box is named: [-1, 1] was assumed)")
    )
