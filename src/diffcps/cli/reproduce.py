"""diffcps reproduce."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from diffcps.cli.console import Commands, complain, say
from diffcps.paper import ITEMS


def add(commands: Commands) -> None:
    """Adds the command."""
    reproduce = commands.add_parser(
        "reproduce", help="train and draw what a figure of the paper shows; check its theory", allow_abbrev=False
    )
    reproduce.add_argument("what", metavar="WHAT", choices=ITEMS, help=", ".join(ITEMS))
    reproduce.add_argument("--out", type=Path, metavar="DIR", help="pictures, numbers and runs [runs/figures]")
    reproduce.add_argument("--fast", action="store_true", help="a smoke run of a minute [into runs/figures-fast]")
    reproduce.add_argument("--methods", nargs="+", metavar="ALGORITHM", help="of a figure only these [all]")
    reproduce.add_argument("--seeds", nargs="+", type=int, metavar="N", help="of a figure [0 1 2 3]")
    reproduce.set_defaults(command=_reproduce, parser=reproduce)


def _reproduce(options: argparse.Namespace) -> None:
    from diffcps.paper.reproduce import reproduce
    from diffcps.training.loop import Interrupted

    out: Path = options.out or Path("runs") / ("figures-fast" if options.fast else "figures")
    try:
        paths = reproduce(options.what, out, options.fast, methods=options.methods, seeds=options.seeds, say=say)
    except Interrupted as stop:
        sys.exit(complain(f"{stop}, and saved; the same command goes on", 130))
    print("written: " + " ".join(map(str, paths)))
