"""The command line: the only room that parses arguments."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from diffcps.cli.compiled import keep_compiled
from diffcps.cli.console import Parser, complain, warnings_in_one_line
from diffcps.types import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 0 when done, 1 when done without some of the scores, 2 for bad input, 130 when interrupted."""
    from diffcps.training.loop import Interrupted

    if "JPY_PARENT_PID" in os.environ:
        # In a notebook nothing can be drawn over: every frame of a live display would stand below the one before.
        os.environ["TTY_COMPATIBLE"] = "0"  # to Rich: no terminal
    try:
        options, unknown = _parser().parse_known_args(arguments)
        if unknown:
            _refuse_unknown(options, unknown)
        with warnings_in_one_line():
            if hasattr(options, "compile_cache"):
                keep_compiled(options.compile_cache)
            options.command(options)
        return 0
    except UserError as error:
        return complain(f"error: {error}", 2)
    except Interrupted as stop:
        return complain(f"{stop}, and saved; go on with the same command and --resume", 130)
    except KeyboardInterrupt:
        return complain("interrupted; the last checkpoint stands, go on with --resume", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return complain(f"error: {where}{error.strerror or error}; nothing that was saved before is lost", 2)


def _parser() -> argparse.ArgumentParser:
    from diffcps.cli import data, evaluate, export, kappa, methods, ope, reproduce, study, train

    parser = Parser(prog="diffcps", description="Offline reinforcement learning with diffusion policies.")
    parser.add_argument("--version", action="version", version=f"diffcps {version('diffcps')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    for module in (train, evaluate, ope, export, data, kappa, study, reproduce, methods):
        module.add(commands)
    return parser


def _refuse_unknown(options: argparse.Namespace, unknown: Sequence[str]) -> NoReturn:
    from diffcps.cli.flags import known_flags
    from diffcps.records.fields import unknown_name

    flag = next((word for word in unknown if word.startswith("--")), None)
    if flag is None:
        raise UserError(f"unrecognised argument {' '.join(unknown)}: --help lists what there is")
    raise UserError(unknown_name(flag.split("=")[0], known_flags(options.parser), "flag"))


if __name__ == "__main__":
    sys.exit(main())
