"""Running a study on this machine: its cells as processes, each with cores of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from diffcps.records.folder import RunFolder
from diffcps.storage import locked, write_atomically
from diffcps.study.cell import is_done
from diffcps.study.plan import Cell, Study, read_study
from diffcps.training.loop import Interrupted
from diffcps.types import UserError

POLL_SECONDS = 0.5
PLAN = "study.toml"
"""The plan's name in the folder of its study."""

State = Literal["waiting", "begun", "running", "done", "failed"]
"""`begun`: there is something of it, and this process does not know whether another is at work on it."""


class Work(NamedTuple):
    """What becomes of a cell."""

    cell: Cell
    state: State
    line: str = ""
    """The last line of one that failed, or by what one was lost that waits to be tried again."""


Watcher = Callable[[Sequence[Work]], None]
"""Is told of all cells, twice a second."""


class _Running(NamedTuple):
    number: int
    process: subprocess.Popen[bytes]
    cores: list[int]


def run_study(plan: str | Path, out: str | Path, workers: int = 1, watch: Watcher = lambda work: None) -> list[Work]:
    """Makes every cell that is not done, `workers` at once, each with its share of this process's cores.

    A cell that fails is recorded with its line, and the others go on; the same call tries it again and goes on with
    what was interrupted. Ctrl-C and SIGTERM stop the cells, which save, and raise `Interrupted`. Raises `UserError`
    where the folder is that of another plan, or taken.
    """
    plan, out = Path(plan), Path(out)
    study = read_study(plan)
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= workers <= len(cores):
        raise UserError(f"{workers} workers: take one or more, and no more than this process has cores ({len(cores)})")
    shares = [cores[worker::workers] for worker in range(workers)]
    with held(study, plan, out) as work:
        return _run(out, plan.parent, work, shares, watch)


@contextmanager
def held(study: Study, plan: Path, out: Path) -> Generator[list[Work], None, None]:
    """What is done and what is to do in a study's folder, which belongs to this process until the end.

    Raises `UserError` where the folder is that of another plan, or taken.
    """
    with locked(out):
        _claim(plan, out / PLAN)
        yield [Work(cell, "done" if _done(study, cell, out) else "waiting") for cell in study.cells]


def standing_of(out: str | Path) -> list[Work]:
    """What has become of the cells of a study, by its folder. Raises `UserError` where there is none."""
    out = Path(out)
    if not (out / PLAN).exists():
        raise UserError(f"{out}: is no folder of a study (it has no {PLAN})")
    study = read_study(out / PLAN)
    return [_standing(study, cell, out) for cell in study.cells]


def _standing(study: Study, cell: Cell, out: Path) -> Work:
    if _done(study, cell, out):
        return Work(cell, "done")
    if failure_of(cell, out).exists():
        return Work(cell, "failed", failure_of(cell, out).read_text("utf-8"))
    return Work(cell, "begun" if RunFolder(out / cell.name).config.exists() else "waiting")


def _done(study: Study, cell: Cell, out: Path) -> bool:
    return is_done(cell, study.final, out / cell.name)


def _claim(plan: Path, copy: Path) -> None:
    """The folder belongs to this plan. Raises `UserError` where it holds another one's runs."""
    content = plan.read_bytes()
    if copy.exists() and copy.read_bytes() != content:
        raise UserError(
            f"{copy.parent}: holds the study of another plan ({copy} differs from {plan}); choose another --out"
        )
    write_atomically(copy, content)


def _run(out: Path, folder: Path, work: list[Work], shares: list[list[int]], watch: Watcher) -> list[Work]:
    running: list[_Running] = []
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        for one in running:  # a second time: at once
            one.process.send_signal(signal.SIGINT)
        stopping = True

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while True:
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                shares.append(one.cores)
                work[one.number] = ended(work[one.number].cell, one.process.returncode, out)
            waiting = [number for number, one in enumerate(work) if one.state == "waiting"]
            while waiting and shares and not stopping:
                number, cores = waiting.pop(0), shares.pop(0)
                running.append(_Running(number, start_worker(out, folder, work[number].cell.name, cores), cores))
                work[number] = Work(work[number].cell, "running")
            watch(work)
            if not running:
                break
            time.sleep(POLL_SECONDS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for one in running:  # an error here: nobody would wait for them
            one.process.kill()
    if stopping and any(one.state == "waiting" for one in work):
        raise Interrupted(sum(one.state == "done" for one in work))
    return work


def log_of(cell: Cell, out: Path) -> Path:
    """What the process of a cell said."""
    return _log(cell.name, out)


def failure_of(cell: Cell, out: Path) -> Path:
    """Where the line of a cell that failed stands, until it is tried again."""
    return _failure(cell.name, out)


def _log(name: str, out: Path) -> Path:
    return out / f"{name}.log"


def _failure(name: str, out: Path) -> Path:
    return out / f"{name}.failed"


def start_worker(
    out: Path,
    folder: Path,
    name: str,
    cores: Sequence[int],
    environment: Mapping[str, str] | None = None,
    here: Path | None = None,
) -> subprocess.Popen[bytes]:
    """The process of the cell of this name; signals of the terminal reach it through this one alone.

    Data are looked for from `folder` on. Without `cores` it has those of this process; `environment` has its variables
    and `here` is its current folder, by default those of this process.
    """
    log = _log(name, out)
    log.parent.mkdir(parents=True, exist_ok=True)
    _failure(name, out).unlink(missing_ok=True)
    words = [str(out), str(folder), name, str(os.getpid()), *map(str, cores)]
    with open(log, "wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "diffcps.study.worker", *words],
            stdout=file,
            stderr=file,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            env=environment,
            cwd=here,
        )


def ended(cell: Cell, code: int, out: Path) -> Work:
    """What has become of a cell whose process ended with this exit status."""
    if code == 0:
        return Work(cell, "done")
    if code in (130, -signal.SIGINT):  # the second before it listens
        return Work(cell, "waiting")
    lines = log_of(cell, out).read_text("utf-8", "replace").strip().splitlines()
    return failed(cell, lines[-1] if lines else f"ended with exit status {code} and without a word", out)


def failed(cell: Cell, line: str, out: Path) -> Work:
    """Writes down that a cell has failed, and by what."""
    path = failure_of(cell, out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, line.encode())
    return Work(cell, "failed", line)
