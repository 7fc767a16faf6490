"""D4RL's layout (HDF5, or npz with the same names, singular or plural): one row per step,

    observations, actions, rewards, terminals, and optionally timeouts and next_observations.

`action_low`, `action_high`, `env_id` (or `env_spec` and `eval_env_spec`, as in Minari), `ref_min_score` and
`ref_max_score` may stand beside them, as HDF5 attributes or as npz entries. Nothing here unpickles.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from diffcps.readers.environment import SPECIFICATIONS, recorded_environment
from diffcps.readers.names import nearest
from diffcps.readers.rows import FIELDS, RawRows, Values
from diffcps.types import EnvironmentSpec, UserError

SPELLINGS = {field: (f"{field}s", field) for field in FIELDS} | {
    "terminal": ("terminals", "terminal", "terminations", "terminated"),
    "timeout": ("timeouts", "timeout", "truncations", "truncated"),
    "episode": ("episode_ids", "episode_id", "episode_index"),
}
"""The names that each field may have in a file where its meaning is certain: Gymnasium's for the ends of episodes."""
ATTRIBUTES = ("env_id", *SPECIFICATIONS, "ref_min_score", "ref_max_score", "action_low", "action_high")
ABSENT = "none"
"""What `--columns` says in the place of a name."""
LIKE_AN_END = re.compile(
    r"(^|[_./])(dones?|ends?|is_?last|last|is_?first|first|terminals?|terminations?|is_?terminal|terminate[ds]?"
    r"|truncations?|truncated?|time_?outs?|episode(_?(ends?|starts?|terminals?|lengths?))?|masks?|not_?dones?|discounts?)$",
    re.IGNORECASE,
)
"""Names of fields that may say where episodes end."""


def named_columns(columns: Sequence[str], source: str) -> dict[str, str]:
    """`--columns` as field -> name. Raises `UserError` for another form, and for an unknown field."""
    found: dict[str, str] = {}
    for column in columns:
        field, equals, name = column.partition("=")
        if not (equals and name) or field not in SPELLINGS:
            raise UserError(
                f"{source}: --columns takes FIELD=NAME, where FIELD is one of {', '.join(SPELLINGS)}; got {column!r}"
            )
        found[field] = name
    return found


def find_fields(found: Sequence[str], columns: Sequence[str], source: str) -> dict[str, str]:
    """Which of the names that a source has are which fields: as `columns` says, else by their spelling.

    Raises `UserError` where a field has two names, a name is not there, observations or actions are missing, and where
    a name may say how episodes end and nobody has said what it means.
    """
    given = named_columns(columns, source)
    names: dict[str, str] = {}
    for field, spellings in SPELLINGS.items():
        present = [name for name in spellings if name in found]
        if field in given:
            name = given[field]
            if name not in (*found, ABSENT):
                raise UserError(f"{source}: no field `{name}`; {nearest(name, found)}")
            names |= {} if name == ABSENT else {field: name}
        elif len(present) > 1:
            raise UserError(
                f"{source}: both `{present[0]}` and `{present[1]}` are there; keep one of them, or say which with "
                f"--columns {field}={present[0]}"
            )
        elif present:
            names[field] = present[0]
        elif field in ("observation", "action"):
            raise UserError(
                f"{source}: no field `{spellings[0]}` (or `{spellings[1]}`); the file has "
                f"{', '.join(found) or 'no field at all'}, and it needs observations and actions, with rewards, "
                f"terminals, timeouts and next_observations where known; name what it has with --columns {field}=NAME"
            )
    refuse_riddles([name for name in found if name not in names.values()], {*names, *given}, source)
    return names


def refuse_riddles(unread: Iterable[str], settled: Collection[str], source: str) -> None:
    """Raises `UserError` where an unread name may say how episodes end, and what is read does not settle that.

    `settled` are the fields that are read or were said to be absent.
    """
    riddle = next((name for name in unread if LIKE_AN_END.search(name)), None)
    if riddle is None or ("terminal" in settled and {"timeout", "episode"} & {*settled}):
        return
    nothing = " ".join(f"{field}={ABSENT}" for field in ("terminal", "timeout") if field not in settled)
    raise UserError(
        f"{source}: `{riddle}` may say how episodes end, and its name does not tell what it means: add --columns "
        f"terminal={riddle} if it marks true ends alone, timeout={riddle} if it marks the last row of each episode, or "
        f"{nothing} if it says neither"
    )


def raw_rows(
    arrays: Mapping[str, Values],
    names: Mapping[str, str],
    attributes: Mapping[str, object],
    found: Iterable[str],
    sha256: str,
    source: str,
) -> RawRows:
    """Arrays by their names in the file, as `find_fields` tells them apart, and attributes, as a record.

    `found` are all names in the file. Raises `UserError` for an attribute of another kind.
    """
    values = {field: arrays[name] for field, name in names.items()}
    return RawRows(
        observation=values["observation"],
        action=values["action"],
        reward=values.get("reward"),
        terminal=values.get("terminal"),
        timeout=values.get("timeout"),
        next_observation=values.get("next_observation"),
        names=dict(names),
        sha256=sha256,
        environment=_environment(attributes, source),
        reference_min=number(attributes, "ref_min_score", source),
        reference_max=number(attributes, "ref_max_score", source),
        action_low=_bound(attributes, "action_low", source),
        action_high=_bound(attributes, "action_high", source),
        episode=values.get("episode"),
        ignored=tuple(name for name in found if name not in names.values() and name not in ATTRIBUTES),
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
