"""Config dataclasses as data: their documentation, what values they take, their JSON."""

from __future__ import annotations

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
from typing import TypeVar, cast

from diffcps.storage import Json, JsonRow
from diffcps.types import Configuration, Count, Real, Share, UserError

Fields = TypeVar("Fields", bound=Configuration)


@cache
def documentation(kind: type[Configuration]) -> dict[str, str]:
    """The string below each field of a dataclass."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for field, text in zip(definition.body[:-1], definition.body[1:], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(field.target, ast.Name):
            found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


@cache
def field_types(kind: type[Configuration]) -> Mapping[str, object]:
    """Field names and their resolved types, in order."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return types.MappingProxyType({field.name: hints[field.name] for field in dataclasses.fields(kind)})


def choices(kind: type[Configuration], name: str) -> tuple[str, ...]:
    """The words that a field takes; none where there is no such field, or it takes something else."""
    annotation = field_types(kind).get(name)
    return typing.get_args(annotation) if typing.get_origin(annotation) is typing.Literal else ()


def values_of(config: Configuration) -> dict[str, object]:
    """Field names and values of a dataclass, in order."""
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def build(kind: type[Fields], values: Mapping[str, object]) -> Fields:
    """The dataclass with the given fields; raises `UserError` for unknown names (suggests one) and bad values."""
    known = field_types(kind)
    for name, value in values.items():
        if name not in known:
            raise UserError(unknown_name(name, known))
        _check_value(name, value, known[name])
    return kind(**values)


MAX_NAMED = 12
"""Names that an error lists."""


def unknown_name(name: str, known: Iterable[str], what: str = "field") -> str:
    """ "unknown field kapa: did you mean kappa?", or what there is, where it is little."""
    names = list(dict.fromkeys(known))
    nearest = difflib.get_close_matches(name, names, n=1)
    if nearest:
        hint = f"did you mean {nearest[0]}?"
    else:
        hint = f"choose from {', '.join(names)}" if 0 < len(names) <= MAX_NAMED else "--help lists them all"
    return f"unknown {what} {name}: {hint}"


def _check_value(name: str, value: object, annotation: object) -> None:
    if typing.get_origin(annotation) is typing.Literal and value not in typing.get_args(annotation):
        raise UserError(f"{name} is {value!r}: it must be one of {', '.join(typing.get_args(annotation))}")
    if annotation is bool and not isinstance(value, bool):
        raise UserError(f"{name} is {value!r}: it must be true or false")
    if annotation == int | None and value is not None:
        _check_number(name, value, whole=True, least=1)
    if annotation in (int, Count, Real):
        _check_number(name, value, whole=annotation != Real, least=1 if annotation is int else 0)
    if annotation == Share:
        _check_number(name, value, whole=False, least=0)
        if cast(float, value) >= 1:
            raise UserError(f"{name} is {value}: it must be below 1")
    if annotation == tuple[int, ...]:
        _check_whole_numbers(name, value)
    if annotation == tuple[str, ...] and not isinstance(value, tuple | list):
        raise UserError(f"{name} is {value!r}: it must be a list of words")


def _check_number(name: str, value: object, whole: bool, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise UserError(f"{name} is {value!r}: it must be {'a whole number' if whole else 'a number'}")
    if not value >= least:  # NaN is not, either
        raise UserError(f"{name} is {value}: it must be {least} or more")


def _check_whole_numbers(name: str, value: object) -> None:
    numbers = list(cast(Iterable[object], value)) if isinstance(value, tuple | list) else []
    if not numbers or any(isinstance(x, bool) or not isinstance(x, int) or x < 0 for x in numbers):
        raise UserError(f"{name} is {value!r}: it must be one or more whole numbers, 0 or more")


def to_json(config: Configuration) -> JsonRow:
    """A dataclass as JSON values; an infinite number becomes the text "inf", as JSON has none."""
    return {name: json_value(value) for name, value in values_of(config).items()}


def json_value(value: object) -> Json:
    """One field's value for JSON; a dataclass becomes an object."""
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    if isinstance(value, tuple):
        return [json_value(each) for each in cast(tuple[object, ...], value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_json(value)
    return cast(Json, value)


def from_json(kind: type[Fields], values: Mapping[str, Json]) -> Fields:
    """The inverse of `to_json`. Raises `UserError` for what is no such dataclass."""
    known = field_types(kind)
    return build(kind, {name: _value(value, known.get(name)) for name, value in values.items()})


def _value(value: Json, annotation: object) -> object:
    if annotation in (float, Real, Share) and isinstance(value, int | float | str):
        return float(value)
    parts: list[object] = [part for part in typing.get_args(annotation) if part is not type(None)]
    if isinstance(annotation, types.UnionType) and value is not None and len(parts) == 1:
        return _value(value, parts[0])
    if isinstance(value, list):  # tuple[X, ...], or tuple[X, Y]
        kinds = parts[:1] * len(value) if Ellipsis in parts else parts or [None] * len(value)
        return tuple(_value(each, kind) for each, kind in zip(value, kinds, strict=True))
    if isinstance(value, dict) and isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return from_json(annotation, value)
    return value
