"""diffcps ope."""

from __future__ import annotations

import argparse
import sys
import time
from datetime import timedelta
from pathlib import Path
from types import TracebackType

from diffcps.cli.compiled import add_flag
from diffcps.cli.console import Commands, complain, say, show
from diffcps.cli.flags import add_flags, given_fields
from diffcps.records import fields


def add(commands: Commands) -> None:
    """Adds the command."""
    from diffcps.ope import fqe
    from diffcps.ope.estimate import Terms

    summary = "what policies are worth, from logged data alone: fitted Q evaluation of the checkpoints of runs"
    command = commands.add_parser("ope", help=summary, description=summary, allow_abbrev=False)
    command.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="run folders, on data of one task")
    command.add_argument("--dataset", metavar="FILE|FOLDER|ID|TASK", help="the data to judge on [those of the runs]")
    command.add_argument(
        "--out", type=Path, metavar="DIR", help="what is found, and goes on [RUN/ope; of several: runs/ope]"
    )
    add_flags(command.add_argument_group("what is judged, and on how much"), Terms)
    add_flags(command.add_argument_group("how a value is fitted"), fqe.Config)
    add_flag(command)
    command.set_defaults(command=_ope, parser=command)


def _ope(options: argparse.Namespace) -> None:
    from diffcps.ope import fqe
    from diffcps.ope.choice import choices, save_choices
    from diffcps.ope.estimate import RESULT_FILE, Terms, judge
    from diffcps.ope.report import lines, markdown, ope_table, save_ope_figure
    from diffcps.storage import check_ours, write_atomically
    from diffcps.training.loop import Interrupted

    runs: list[Path] = options.runs
    out: Path = options.out or (runs[0] / "ope" if len(runs) == 1 else Path("runs/ope"))
    check_ours(out / RESULT_FILE)
    settings = fields.build(Terms, given_fields(options, Terms))
    config = fields.build(fqe.Config, given_fields(options, fqe.Config))
    try:
        with Bar() as bar:
            found = judge(runs, out, options.dataset, settings, config, progress=bar)
    except Interrupted:
        sys.exit(complain("stopped, and saved; the same command goes on", 130))
    show(ope_table(found))
    for line in lines(found):
        say(line)
    write_atomically(out / "ope.md", markdown(found).encode())
    save_ope_figure(found, out / "ope.png")
    for run in save_choices(choices(found.estimates)):
        say(f"{run}: each member at its highest estimate is the checkpoint fqe (--checkpoint fqe)")
    say(f"all of it: {out / RESULT_FILE} {out / 'ope.md'} {out / 'ope.png'}")


SPEED_SECONDS = 300
"""The rate by which the time left is estimated is that of the last so many: a run's actions come a chunk at a time."""


class Bar:
    """A bar with the time left on a terminal, elsewhere a line at the start of each part and one a minute."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from diffcps.run.progress import LINE_SECONDS

        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._console = Console(stderr=True)
        quiet = not self._console.is_terminal
        self._bar = Progress(*columns, console=self._console, disable=quiet, speed_estimate_period=SPEED_SECONDS)
        self._task = None
        self._told, self._pause = time.monotonic(), LINE_SECONDS

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._bar.stop()

    def begin(self, words: str, total: int) -> None:
        self._task = self._bar.add_task(words, total=total)
        self._tell()

    def advance(self, count: int) -> None:
        if self._task is not None:
            self._bar.advance(self._task, count)
            if time.monotonic() - self._told >= self._pause:
                self._tell()

    def _tell(self) -> None:
        """How far the part is, where there is no bar."""
        self._told = time.monotonic()
        if not self._console.is_terminal:
            part = self._bar.tasks[-1]
            left = "" if part.time_remaining is None else f", {timedelta(seconds=round(part.time_remaining))} left"
            self.note(f"{part.description}: {part.completed:,.0f} of {part.total:,.0f}{left}")

    def note(self, words: str) -> None:
        self._console.print(words, highlight=False, soft_wrap=True)
