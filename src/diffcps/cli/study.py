"""diffcps study: comparisons of methods."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffcps.cli.compiled import add_flag
from diffcps.cli.console import Commands, Parser, complain, show, this_command

if TYPE_CHECKING:
    from diffcps.study.run import Work

MAX_TOLD = 2
"""Failed runs whose line is told at the end."""


def add(commands: Commands) -> None:
    """Adds the commands."""
    study = commands.add_parser("study", help="compare methods: a plan in a file, its runs, what becomes of them")
    kinds = study.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    plan = kinds.add_parser("plan", help="the runs that a plan is made of", allow_abbrev=False)
    plan.add_argument("plan", type=Path, metavar="FILE", help="study.toml")
    plan.add_argument("--no-estimate", action="store_true", help="do not measure how long they will take")
    plan.set_defaults(command=_plan, parser=plan)
    run = kinds.add_parser("run", help="make them; the same command goes on after any stop", allow_abbrev=False)
    run.add_argument("plan", type=Path, metavar="FILE", help="study.toml")
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="a folder for all runs")
    where = run.add_mutually_exclusive_group()
    where.add_argument("--workers", type=int, metavar="N", help="runs at once; they share the cores out [1]")
    where.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="on the Ray cluster at HOST:PORT, or auto: the one that this machine belongs to",
    )
    add_flag(run)
    run.set_defaults(command=_run, parser=run)
    status = kinds.add_parser("status", help="how far a study is", allow_abbrev=False)
    status.add_argument("out", type=Path, metavar="DIR", help="the folder of its runs")
    status.set_defaults(command=_status, parser=status)
    report = kinds.add_parser("report", help="its tables, curves and intervals as a page", allow_abbrev=False)
    report.add_argument("out", type=Path, metavar="DIR", help="the folder of its runs")
    report.add_argument(
        "--reference", metavar="ROW", help="the row of the tables that others are compared with [the first]"
    )
    report.set_defaults(command=_report, parser=report)


def _plan(options: argparse.Namespace) -> None:
    from diffcps.study.estimate import times_of
    from diffcps.study.plan import read_study
    from diffcps.study.table import plan_table, time_table

    study = read_study(options.plan)
    show(plan_table(study))
    if not options.no_estimate:
        show(time_table(times_of(study.cells), len(study.cells)))


def _run(options: argparse.Namespace) -> None:
    from diffcps.study.cluster import run_on_cluster
    from diffcps.study.run import run_study
    from diffcps.study.table import LiveStudy
    from diffcps.training.loop import Interrupted

    try:
        with LiveStudy(options.out) as live:
            if options.ray is not None:
                work = run_on_cluster(options.plan, options.out, options.ray, live)
            else:
                work = run_study(options.plan, options.out, 1 if options.workers is None else options.workers, live)
    except Interrupted:
        sys.exit(complain("stopped, and saved; the same command goes on", 130))
    except KeyboardInterrupt:
        sys.exit(complain("stopped at once; the same command goes on from what was saved", 130))
    where = "" if options.ray is None else f" --ray {options.ray}"
    end_of_study(
        work,
        options.out,
        f"to try them again: {this_command()} study run {options.plan} --out {options.out}{where}",
    )


def end_of_study(work: Sequence[Work], out: Path, again: str) -> None:
    """Says how many runs are done; ends with exit status 1 where some have failed."""
    failed = [one for one in work if one.state == "failed"]
    print(f"study: {out} ({len(work) - len(failed)} of {len(work)} runs done)")
    if failed:
        lines = "; ".join(f"{one.cell.name}: {one.line}" for one in failed[:MAX_TOLD])
        if len(failed) > MAX_TOLD:
            lines += f"; and {len(failed) - MAX_TOLD} more, which `{this_command()} study status {out}` shows"
        sys.exit(complain(f"{len(failed)} failed ({lines}); {again}", 1))


def _status(options: argparse.Namespace) -> None:
    from diffcps.study.run import standing_of
    from diffcps.study.table import study_table

    show(study_table(standing_of(options.out), options.out))


def _report(options: argparse.Namespace) -> None:
    from diffcps.study.report import write_report

    print(f"report: {write_report(options.out, options.reference)}")
