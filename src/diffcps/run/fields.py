"""Config dataclasses as data: their documentation, their command-line flags, their JSON."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import difflib
import inspect
import math
import textwrap
import types
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, TypeVar

from diffcps.types import Real, UserError

Fields = TypeVar("Fields")
COUNTED_FROM_ZERO = ("ema_start", "decay_updates", "warm_up_updates", "eval_seed", "seeds")
"""Integer fields that may be zero; every other one counts something of which there must be at least one."""


@cache
def documentation(kind: type) -> dict[str, str]:
    """The string below each field of a dataclass."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for field, text in zip(definition.body[:-1], definition.body[1:], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(field.target, ast.Name):
            found[field.target.id] = " ".join(ast.literal_eval(text.value).split())
    return found


def field_types(kind: type) -> dict[str, Any]:
    """Field names and their resolved types, in order."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def add_flags(parser: argparse._ArgumentGroup, kind: type) -> None:
    """One flag for each field. What is not given stays out of the result, so that given and default can be told apart.

    A real-valued field takes several values: they are a sweep.
    """
    texts = documentation(kind)
    defaults = {field.name: field.default for field in dataclasses.fields(kind)}
    for name, annotation in field_types(kind).items():
        flag = "--" + name.replace("_", "-")
        default = defaults[name]
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        text = f"{texts[name]} [{shown}]".replace("%", "%%")
        arguments: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
        if annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **arguments)
        elif annotation == Real:
            parser.add_argument(flag, type=float, nargs="+", metavar="X", **arguments)
        elif annotation == tuple[int, ...]:
            parser.add_argument(flag, type=int, nargs="+", metavar="N", **arguments)
        elif typing.get_origin(annotation) is typing.Literal:
            parser.add_argument(flag, choices=typing.get_args(annotation), **arguments)
        else:
            if isinstance(annotation, types.UnionType):  # X | None: the flag gives an X
                annotation = typing.get_args(annotation)[0]
            parser.add_argument(flag, type=annotation, metavar="N" if annotation is int else "TEXT", **arguments)


def build(kind: type[Fields], values: Mapping[str, Any]) -> Fields:
    """The dataclass with the given fields; raises `UserError` for unknown names (suggests one) and bad values."""
    known = field_types(kind)
    for name, value in values.items():
        if name not in known:
            raise UserError(unknown_name(name, known))
        _check_value(name, value, known[name])
    return kind(**values)


def unknown_name(name: str, known: Iterable[str]) -> str:
    """ "unknown field kapa: did you mean kappa?" """
    nearest = difflib.get_close_matches(name, list(known), n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else "--help lists them all"
    return f"unknown field {name}: {hint}"


def _check_value(name: str, value: Any, annotation: Any) -> None:
    if typing.get_origin(annotation) is typing.Literal and value not in typing.get_args(annotation):
        raise UserError(f"{name} is {value!r}: it must be one of {', '.join(typing.get_args(annotation))}")
    if annotation is bool and not isinstance(value, bool):
        raise UserError(f"{name} is {value!r}: it must be true or false")
    if annotation is int or annotation == Real:
        _check_number(name, value, whole=annotation is int)
    if annotation == tuple[int, ...]:
        _check_whole_numbers(name, value)


def _check_number(name: str, value: Any, whole: bool) -> None:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise UserError(f"{name} is {value!r}: it must be {'a whole number' if whole else 'a number'}")
    least = 1 if whole and name not in COUNTED_FROM_ZERO else 0
    if not value >= least:  # NaN is not, either
        raise UserError(f"{name} is {value}: it must be {least} or more")


def _check_whole_numbers(name: str, value: Any) -> None:
    if not value or any(isinstance(x, bool) or not isinstance(x, int) or x < 0 for x in value):
        raise UserError(f"{name} is {value!r}: it must be one or more whole numbers, 0 or more")
    if len(set(value)) != len(value):
        raise UserError(f"{name} names {max(value, key=list(value).count)} twice")


def to_json(config: Any) -> dict[str, Any]:
    """A dataclass as JSON values; an infinite number becomes the text "inf", as JSON has none."""
    return {name: json_value(value) for name, value in dataclasses.asdict(config).items()}


def from_json(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `to_json`, as field values."""
    known = field_types(kind)
    return {name: _value(value, known.get(name)) for name, value in values.items()}


def json_value(value: Any) -> Any:
    """One field's value for JSON."""
    if isinstance(value, float) and math.isinf(value):
        return "inf"
    return list(value) if isinstance(value, tuple) else value


def _value(value: Any, annotation: Any) -> Any:
    if annotation in (float, Real):
        return float(value)
    return tuple(value) if isinstance(value, list) else value
