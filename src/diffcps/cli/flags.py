"""Command-line flags from the fields of a dataclass, and what was given of them."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Iterable

from diffcps.records import fields
from diffcps.run.policy import Checkpoint
from diffcps.types import Configuration, Count, Real, Share


def add_action_choice(parser: argparse.ArgumentParser) -> None:
    """Adds --action-choice; which rules there are is the method's to say."""
    rules = "sample, softmax_q, argmax_q, or another of the method's"
    parser.add_argument("--action-choice", metavar="RULE", help=f"how to act: {rules} [as in the run]")


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """--checkpoint of a run."""
    parser.add_argument(
        "--checkpoint",
        type=_checkpoint,
        metavar="|".join([*typing.get_args(Checkpoint), "N"]),
        default="best",
        help="by the score, by selection/loss, as the run ended, or kept after N updates [best]",
    )


def _checkpoint(text: str) -> Checkpoint | int:
    if text.isdecimal():
        return int(text)
    if text in (names := typing.get_args(Checkpoint)):
        return typing.cast(Checkpoint, text)
    raise argparse.ArgumentTypeError(f"{text} is neither {', '.join(names)} nor the number of updates of a kept one")


def add_flags(parser: argparse._ArgumentGroup, kind: type[Configuration]) -> None:
    """One flag for each field. What is not given stays out of the result, so that given and default can be told apart.

    A real-valued field takes several values: they are a sweep.
    """
    texts = fields.documentation(kind)
    annotations = fields.field_types(kind)
    for field in dataclasses.fields(kind):
        shown = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        text = f"{texts[field.name]} [{shown}]".replace("%", "%%")
        _add_flag(parser, "--" + field.name.replace("_", "-"), field.name, annotations[field.name], text)


def _add_flag(parser: argparse._ArgumentGroup, flag: str, dest: str, annotation: object, text: str) -> None:
    missing = argparse.SUPPRESS
    kinds: list[object] = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
    if typing.get_origin(annotation) in (types.UnionType, typing.Union) and annotation != Real and len(kinds) == 1:
        annotation = kinds[0]  # X | None: the flag gives an X
    if annotation is bool:
        parser.add_argument(flag, dest=dest, default=missing, help=text, action=argparse.BooleanOptionalAction)
    elif annotation == Real:
        parser.add_argument(flag, dest=dest, default=missing, help=text, type=float, nargs="+", metavar="X")
    elif annotation == tuple[int, ...]:
        parser.add_argument(flag, dest=dest, default=missing, help=text, type=int, nargs="+", metavar="N")
    elif annotation == tuple[float, ...]:
        parser.add_argument(flag, dest=dest, default=missing, help=text, type=float, nargs="+", metavar="X")
    elif annotation == tuple[str, ...]:
        parser.add_argument(flag, dest=dest, default=missing, help=text, type=str, nargs="+", metavar="TEXT")
    elif annotation is float:
        parser.add_argument(flag, dest=dest, default=missing, help=text, type=float, metavar="X")
    elif typing.get_origin(annotation) is typing.Literal:
        parser.add_argument(flag, dest=dest, default=missing, help=text, choices=typing.get_args(annotation))
    elif annotation in (int, Count):
        parser.add_argument(flag, dest=dest, default=missing, help=text, type=int, metavar="N")
    elif annotation == Share:
        parser.add_argument(flag, dest=dest, default=missing, help=text, type=float, metavar="X")
    else:
        assert annotation is str or str in kinds, annotation
        parser.add_argument(flag, dest=dest, default=missing, help=text, type=str, metavar="TEXT")


def given_fields(options: argparse.Namespace, kind: type[Configuration]) -> dict[str, object]:
    """The fields of a dataclass that were given; a real-valued one as a list of numbers."""
    given = vars(options)
    return {
        name: tuple(given[name]) if typing.get_origin(annotation) is tuple else given[name]
        for name, annotation in fields.field_types(kind).items()
        if name in given
    }


def known_flags(parser: argparse.ArgumentParser) -> Iterable[str]:
    """Every flag that a command takes."""
    return [flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")]
