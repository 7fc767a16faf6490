"""diffcps reproduce."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from diffcps.cli.compiled import add_flag
from diffcps.cli.console import Commands, complain, say
from diffcps.paper import COMPARISONS, ITEMS, TIMED
from diffcps.types import UserError

COMPARING = ("scale", "tasks", "data_dir", "workers", "ray")
"""Flags that belong to comparisons."""


def add(commands: Commands) -> None:
    """Adds the command."""
    reproduce = commands.add_parser(
        "reproduce",
        help="the paper's tables and figures: train and compare, draw; check its theory",
        allow_abbrev=False,
    )
    known = (*COMPARISONS, TIMED, *ITEMS)
    reproduce.add_argument("what", metavar="WHAT", choices=known, help=", ".join(known))
    reproduce.add_argument(
        "--out", type=Path, metavar="DIR", help="pictures, numbers and runs [runs/WHAT; toy figures: runs/figures]"
    )
    reproduce.add_argument("--methods", nargs="+", metavar="METHOD", help="only these [all]")
    reproduce.add_argument("--seeds", nargs="+", type=int, metavar="N", help="[the paper's; figures: 0 1 2 3]")
    reproduce.add_argument("--fast", action="store_true", help="a toy figure as a smoke run of a minute")
    reproduce.add_argument("--scale", type=float, metavar="X", help="share of a comparison's updates [1]")
    reproduce.add_argument("--tasks", nargs="+", metavar="TASK", help="only these of a comparison, or groups [all]")
    reproduce.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="files that stand for a comparison's tasks, NAME.hdf5 each"
    )
    where = reproduce.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, metavar="N", help="runs of a comparison at once [1]")
    where.add_argument("--ray", metavar="ADDRESS", help="a comparison on the Ray cluster at HOST:PORT, or auto")
    add_flag(reproduce)
    reproduce.set_defaults(command=_reproduce, parser=reproduce)


def _reproduce(options: argparse.Namespace) -> None:
    given = [name for name in COMPARING if getattr(options, name) is not None]
    if options.what in COMPARISONS:
        if options.fast:
            raise UserError("--fast belongs to the toy figures: --scale X takes a share of a comparison's updates")
        return _compare(options)
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"{flags}: {options.what} compares nothing on tasks; they belong to {', '.join(COMPARISONS)}")
    if options.what == TIMED:
        return _time(options)
    return _draw(options)


def _draw(options: argparse.Namespace) -> None:
    from diffcps.paper.reproduce import reproduce
    from diffcps.training.loop import Interrupted

    out: Path = options.out or Path("runs") / ("figures-fast" if options.fast else "figures")
    try:
        paths = reproduce(options.what, out, options.fast, methods=options.methods, seeds=options.seeds, say=say)
    except Interrupted as stop:
        sys.exit(complain(f"{stop}, and saved; the same command goes on", 130))
    print("written: " + " ".join(map(str, paths)))


def _compare(options: argparse.Namespace) -> None:
    from diffcps.cli.study import end_of_study
    from diffcps.paper.comparisons import Narrowing, reproduce_comparison
    from diffcps.study.table import LiveStudy
    from diffcps.training.loop import Interrupted

    out: Path = options.out or Path("runs") / options.what
    wanted = Narrowing(
        scale=1.0 if options.scale is None else options.scale,
        tasks=tuple(options.tasks or ()),
        methods=tuple(options.methods or ()),
        seeds=tuple(options.seeds or ()),
        data_dir=options.data_dir,
    )
    try:
        with LiveStudy(out) as live:
            workers = 1 if options.workers is None else options.workers
            work, paths = reproduce_comparison(options.what, wanted, out, workers, live, options.ray)
    except Interrupted:
        sys.exit(complain("stopped, and saved; the same command goes on", 130))
    print("written: " + " ".join(map(str, paths)))
    end_of_study(work, out, "the same command tries them again")


def _time(options: argparse.Namespace) -> None:
    from diffcps.paper.runtime import table5

    if options.fast or options.methods or options.seeds:
        raise UserError(f"{TIMED} times three methods with one seed: leave out --fast, --methods and --seeds")
    out: Path = options.out or Path("runs") / TIMED
    print("written: " + " ".join(map(str, table5(out, say))))
