"""The environment that a file or a dataset names: an id, or Gymnasium's specification as Minari stores it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import cast

from diffcps.types import EnvironmentSpec, UserError

SPECIFICATIONS = ("eval_env_spec", "env_spec")
"""Where Minari says which environment scores policies, and where the data were recorded; the first one counts."""


def recorded_environment(attributes: Mapping[str, object], source: str) -> EnvironmentSpec | None:
    """The environment of `eval_env_spec`, else of `env_spec`; None where there is neither.

    A specification that says no more than its registered id becomes that id. Raises `UserError` for a text that is no
    specification.
    """
    for name in SPECIFICATIONS:
        text = attributes.get(name)
        if isinstance(text, bytes):
            text = text.decode("utf-8", "replace")
        if isinstance(text, str):
            return _environment(text, name, source)
    return None


def _environment(text: str, name: str, source: str) -> EnvironmentSpec:
    try:
        recorded: object = json.loads(text)
    except ValueError:
        recorded = None
    facts = cast(dict[str, object], recorded) if isinstance(recorded, dict) else {}
    environment_id = facts.get("id")
    if not isinstance(environment_id, str):
        raise UserError(
            f"{source}: `{name}` is {text!r:.80}; it must be the text that Gymnasium's environment.spec.to_json() gives"
        )
    if _is_registered_so(environment_id, facts):
        return EnvironmentSpec(environment_id)
    return EnvironmentSpec(environment_id, recorded=json.dumps(facts, sort_keys=True))


def _is_registered_so(environment_id: str, facts: Mapping[str, object]) -> bool:
    """Whether the id alone makes the same environment here."""
    import gymnasium

    if environment_id not in gymnasium.registry:
        return False
    registered = gymnasium.registry[environment_id]
    arguments = dict(cast(Mapping[str, object], facts.get("kwargs") or {}))
    arguments.pop("render_mode", None)
    return (
        registered.entry_point == facts.get("entry_point")
        and registered.max_episode_steps == facts.get("max_episode_steps")
        and registered.kwargs == arguments
        and not facts.get("additional_wrappers")
    )
