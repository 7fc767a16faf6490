"""D4RL's layout (HDF5, or npz with the same names, singular or plural): one row per step,

    observations, actions, rewards, terminals, and optionally timeouts and next_observations.

`action_low`, `action_high`, `env_id` (or `env_spec` and `eval_env_spec`, as in Minari), `ref_min_score` and
`ref_max_score` may stand beside them, as HDF5 attributes or as npz entries. Nothing here unpickles.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from diffcps.data.environment import SPECIFICATIONS, recorded_environment
from diffcps.data.rows import FIELDS, RawRows
from diffcps.types import EnvironmentSpec, UserError

SPELLINGS = {field: (f"{field}s", field) for field in FIELDS}
"""The names that each field may have in a file."""
ARRAYS = {name for names in SPELLINGS.values() for name in names}
ATTRIBUTES = ("env_id", *SPECIFICATIONS, "ref_min_score", "ref_max_score", "action_low", "action_high")


def raw_rows(
    arrays: Mapping[str, np.ndarray], attributes: Mapping[str, object], found: list[str], sha256: str, source: str
) -> RawRows:
    """Arrays and attributes of a file, by their names there, as a record. `found` are all names in the file.

    Raises `UserError` where a field is missing or stored under both spellings, and for an attribute of another kind.
    """
    names: dict[str, str] = {}
    for field, spellings in SPELLINGS.items():
        present = [name for name in spellings if name in arrays]
        if len(present) > 1:
            raise UserError(f"{source}: both `{present[0]}` and `{present[1]}` are there; keep one of them")
        if present:
            names[field] = present[0]
        elif field not in ("timeout", "next_observation"):
            raise UserError(
                f"{source}: no field `{spellings[0]}` (or `{spellings[1]}`); the file has "
                f"{', '.join(found) or 'no field at all'}, and it needs observations, actions, rewards and terminals, "
                "with timeouts and next_observations where known"
            )
    values = {field: np.asarray(arrays[name]) for field, name in names.items()}
    return RawRows(
        observation=values["observation"],
        action=values["action"],
        reward=values["reward"],
        terminal=values["terminal"],
        timeout=values.get("timeout"),
        next_observation=values.get("next_observation"),
        names=names,
        sha256=sha256,
        environment=_environment(attributes, source),
        reference_min=number(attributes, "ref_min_score", source),
        reference_max=number(attributes, "ref_max_score", source),
        action_low=_bound(attributes, "action_low", source),
        action_high=_bound(attributes, "action_high", source),
    )


def number(attributes: Mapping[str, object], name: str, source: str) -> float | None:
    """A numeric attribute, None where it is absent. Raises `UserError` unless it is one finite number."""
    if name not in attributes:
        return None
    try:
        value = float(np.asarray(attributes[name]).item())
    except (TypeError, ValueError):
        value = np.nan
    if not np.isfinite(value):
        raise UserError(f"{source}: attribute `{name}` is {attributes[name]!r:.80}; it must be one finite number")
    return value


def first_line(error: BaseException) -> str:
    """The first line of somebody else's message, without its full stop."""
    return ((str(error).strip().splitlines() or [type(error).__name__])[0])[:160].rstrip(".")


def _environment(attributes: Mapping[str, object], source: str) -> EnvironmentSpec | None:
    environment_id = _text(attributes, "env_id", source)
    specifications = {name: _text(attributes, name, source) for name in SPECIFICATIONS}
    recorded = recorded_environment(specifications, source)
    return recorded or (None if environment_id is None else EnvironmentSpec(environment_id))


def _text(attributes: Mapping[str, object], name: str, source: str) -> str | None:
    value = np.asarray(attributes.get(name, "")).ravel()
    if value.size != 1 or value.dtype.kind not in "OSU":
        raise UserError(f"{source}: attribute `{name}` is {attributes[name]!r:.80}; it must be one text")
    text = value[0].decode("utf-8", "replace") if isinstance(value[0], bytes) else str(value[0])
    return text or None


def _bound(attributes: Mapping[str, object], name: str, source: str) -> np.ndarray | None:
    if name not in attributes:
        return None
    value = np.asarray(attributes[name])
    if value.dtype.kind not in "iuf" or value.ndim > 1:
        raise UserError(f"{source}: `{name}` must be numbers, one for each action dimension")
    return value
