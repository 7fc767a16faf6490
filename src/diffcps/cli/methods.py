"""diffcps list, and diffcps cite."""

from __future__ import annotations

import argparse

from diffcps.algorithms import ALGORITHMS
from diffcps.cli.console import Commands
from diffcps.presets import presets_of


def add(commands: Commands) -> None:
    """Adds the commands."""
    everything = commands.add_parser("list", help="algorithms and presets")
    everything.set_defaults(command=_list, parser=everything)
    cite = commands.add_parser("cite", help="BibTeX of an algorithm")
    cite.add_argument("algorithm", choices=ALGORITHMS)
    cite.set_defaults(command=_cite, parser=cite)


def _list(options: argparse.Namespace) -> None:
    for name, method in ALGORITHMS.items():
        print((method.__doc__ or name).split("\n")[0])
        print(f"  diffcps train {name}   presets: {', '.join(presets_of(name)) or 'none'}\n")


def _cite(options: argparse.Namespace) -> None:
    print(ALGORITHMS[options.algorithm].CITATION)
