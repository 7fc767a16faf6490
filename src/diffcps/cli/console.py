"""What commands say, and to whom: tables and results to standard output, everything else to standard error."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from diffcps.types import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType


class Parser(argparse.ArgumentParser):
    """One line for bad arguments, like for every other bad input."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help explains)")


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
"""Where a module of this room adds its commands."""


def complain(text: str, code: int) -> int:
    """One line on standard error; returns the exit code."""
    print(f"diffcps: {' '.join(text.split())}", file=sys.stderr)
    return code


def say(text: str) -> None:
    """A line of a long command's progress."""
    print(text, flush=True)


def show(renderable: RenderableType) -> None:
    """A table."""
    from rich.console import Console

    Console().print(renderable)


def this_command() -> str:
    """How to call this program from here: its name where it is on the PATH, else its path."""
    return "diffcps" if shutil.which("diffcps") else os.path.relpath(sys.argv[0])


@contextmanager
def warnings_in_one_line() -> Generator[None, None, None]:
    """Warnings without the place in the code: they are about what was given to the command."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"diffcps: warning: {' '.join(str(message).split())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def step_counter() -> Callable[[int, int], None] | None:
    """On a terminal, a line that says how far the episodes are."""
    if not sys.stderr.isatty():
        return None

    def count(step: int, alive: int) -> None:
        if step % 20 == 0:
            print(f"\rstep {step}, {alive} episodes running ", end="", file=sys.stderr, flush=True)
        if alive == 0:
            print(file=sys.stderr)

    return count
