"""Running a study on a Ray cluster: its cells as tasks, each with the CPUs and GPUs that the plan names.

A task starts the process that makes a cell on one machine, too (`diffcps.study.worker`), and waits for it. All that
nodes share is the study's folder: a cell whose node was lost goes on elsewhere from its last checkpoint.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias, cast

from diffcps.storage import locked, write_atomically
from diffcps.study.plan import Cell, Resources, read_study
from diffcps.study.run import POLL_SECONDS, Watcher, Work, ended, failed, held, log_of, start_worker
from diffcps.training.loop import Interrupted, stop_requests
from diffcps.types import UserError

MAX_LOSSES = 10
"""How often a cell may lose its process or its node; after that it has failed."""
WAIT_SECONDS = 600.0
"""How long a cell waits for a process of before that still holds its run. One that nobody waits for ends when its
current block of updates is done; that of a lost node is known to be gone when the file system says so."""
CONNECT_SECONDS = 10.0
AUTO = "auto"
"""Names the cluster of which this machine is a node."""
WORD = ".cluster"
"""A file in the folder of a study, by which a node knows that it sees the same folder."""

Place: TypeAlias = tuple[str, str, str, str]
"""What every node must have: the study's folder, the word in it, the folder where the command was given (names of data
and environments may be meant from there), the versions."""
Node: TypeAlias = Mapping[str, Any]
"""What Ray tells of a node."""


def run_on_cluster(plan: str | Path, out: str | Path, address: str, watch: Watcher = lambda work: None) -> list[Work]:
    """Makes every cell that is not done on the Ray cluster at `address` (HOST:PORT, or auto), as many at once as fit.

    As `run_study`: a cell that fails is recorded with its line, and the others go on; the same call tries it again and
    goes on with what was interrupted. A cell whose process or node is lost is tried again within the call. Ctrl-C and
    SIGTERM stop the cells, which save, and raise `Interrupted`. Raises `UserError` where there is no such cluster or no
    node for the cells, where a node does not see the folder or has other versions, and as `run_study`.
    """
    plan, out = Path(plan), Path(out)
    if address != AUTO and not re.fullmatch(r"[^\s/]+:\d+", address):
        raise UserError(f"--ray {address}: is neither auto nor the address HOST:PORT of a cluster")
    ray = _ray()
    study = read_study(plan)
    with _connected(ray, address):
        nodes = _able(ray, study.ray)  # before the folder belongs to this plan
        with held(study, plan, out) as work, _word(out) as word:
            place = (str(out.absolute()), word, str(Path.cwd()), _versions())
            _ask(ray, nodes, place)
            return _run(ray, study.ray, place, plan.parent.absolute(), work, watch)


def _ray() -> ModuleType:
    """Ray, which otherwise tries for ten minutes to reach a cluster that is gone."""
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.exceptions  # pyright: ignore[reportMissingImports]
        import ray.util.scheduling_strategies  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("--ray needs Ray: pip install 'diffcps[distributed]'") from None
    return cast(ModuleType, ray)


@contextmanager
def _connected(ray: ModuleType, address: str) -> Generator[None, None, None]:
    """Raises `UserError` where there is no cluster, or one of another version of Ray."""
    try:
        if address != AUTO:
            host, port = address.rsplit(":", 1)
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
        ray.init(address=address, logging_level=logging.CRITICAL, log_to_driver=False)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise UserError(
            f"--ray {address}: no cluster can be reached ({_line(error)}); start one with `ray start --head`, or use "
            "--workers for this machine alone"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _word(out: Path) -> Generator[str, None, None]:
    """A new word in the folder of the study, for as long as this lasts."""
    word = secrets.token_hex(16)
    write_atomically(out / WORD, word.encode())
    try:
        yield word
    finally:
        (out / WORD).unlink(missing_ok=True)


def _versions() -> str:
    """What must be the same on all nodes: with another JAX, numbers are others."""
    return f"diffcps {version('diffcps')} with JAX {version('jax')}"


def _line(error: BaseException) -> str:
    """The first sentence of what an error of Ray's says."""
    return " ".join(f"{type(error).__name__}: {error}".split()).split(". ")[0].rstrip(".: ")


# --- Nodes ---


def _able(ray: ModuleType, wanted: Resources) -> list[Node]:
    """The nodes that are large enough for a cell. Raises `UserError` where there is none."""
    nodes: list[Node] = [node for node in ray.nodes() if node["Alive"]]
    able = [node for node in nodes if _count(node, "CPU") >= wanted.cpus and _count(node, "GPU") >= wanted.gpus]
    if not able:
        known = ", ".join(f"{_name(node)} has {_count(node, 'CPU'):g} and {_count(node, 'GPU'):g}" for node in nodes)
        raise UserError(
            f"[ray] of the plan: a run wants {wanted.cpus} CPUs and {wanted.gpus} GPUs, and no node of the cluster has "
            f"so many ({known})"
        )
    return able


def _ask(ray: ModuleType, nodes: list[Node], place: Place) -> None:
    """Raises `UserError` with what the first node says that cannot make a cell."""
    ask, on = ray.remote(_fault), ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    answers = [
        ask.options(num_cpus=0, max_retries=0, scheduling_strategy=on(node["NodeID"], soft=False)).remote(*place)
        for node in nodes
    ]
    for node, answer in zip(nodes, answers, strict=True):
        try:
            fault = ray.get(answer)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            fault = f"cannot make a run ({_line(cause)}); it needs {place[-1]}"
        if fault:
            raise UserError(f"node {_name(node)}: {fault}")


def _count(node: Node, what: str) -> float:
    return float(node["Resources"].get(what, 0))


def _name(node: Node) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"


def _fault(out: str, word: str, here: str, versions: str) -> str:
    """Why no cell can be made on the node where this is called; empty where nothing is wrong."""
    if _versions() != versions:
        return f"has {_versions()}, where this command has {versions}: install the same on all nodes"
    seen = None
    with suppress(OSError):
        seen = (Path(out) / WORD).read_text()
    if seen != word:
        return f"does not see the folder {out}: take a folder for --out that all nodes share, under one path"
    if not Path(here).is_dir():
        return f"does not see the folder {here}, where the command was given: give it in one that all nodes have"
    return ""


# --- Cells, on the machine of the command ---


def _run(
    ray: ModuleType, wanted: Resources, place: Place, folder: Path, work: list[Work], watch: Watcher
) -> list[Work]:
    """Has all cells made that are waiting. Ray has no word for a task that runs: its log, which is new then, tells."""
    out = Path(place[0])
    make = ray.remote(_make).options(num_cpus=wanted.cpus, num_gpus=wanted.gpus, max_retries=0)
    tasks: dict[Any, int] = {}
    before: dict[int, int | None] = {}
    losses = Counter[int]()

    def submit(number: int) -> None:
        before[number] = _changed(log_of(work[number].cell, out))
        task = make.remote(work[number].cell.name, str(folder), wanted.cpus, wanted.gpus, place)
        tasks[task] = number

    with stop_requests() as stop_requested:
        stopping = False
        for number, one in enumerate(work):
            if one.state == "waiting":
                submit(number)
        while tasks:
            for number in tasks.values():
                if _changed(log_of(work[number].cell, out)) != before[number]:
                    work[number] = Work(work[number].cell, "running")
            watch(work)
            over, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=POLL_SECONDS)
            if stop_requested() and not stopping:
                stopping = True
                for task in tasks:
                    ray.cancel(task)
            for task in over:
                number = tasks.pop(task)
                work[number] = _outcome(ray, task, work[number].cell, out, stopping)
                if work[number].state == "waiting" and not stopping:
                    losses[number] += 1
                    if losses[number] > MAX_LOSSES:
                        line = f"lost {losses[number]} times, at last: {work[number].line}"
                        work[number] = failed(work[number].cell, line, out)
                    else:
                        submit(number)
        watch(work)
        if stop_requested() and any(one.state == "waiting" for one in work):
            raise Interrupted(sum(one.state == "done" for one in work))
    return work


def _changed(path: Path) -> int | None:
    """When a file was changed, in whatever clock; None where there is none."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _outcome(ray: ModuleType, task: object, cell: Cell, out: Path, stopping: bool) -> Work:
    """What has become of a cell whose task is over: `waiting` where it was lost, with a line unless all are to stop."""
    try:
        code, fault = ray.get(task)
    except ray.exceptions.RayTaskError as error:  # raised by `_make`
        return failed(cell, _line(error.cause), out)
    except ray.exceptions.RayError as error:  # the process of Ray's that waited, or the node
        return Work(cell, "waiting", "" if stopping else _line(error))
    if fault:
        return failed(cell, fault, out)
    if code in (130, -signal.SIGKILL, -signal.SIGTERM):  # nobody here wanted it: a node that is shut down, say
        return Work(cell, "waiting", "" if stopping else f"its process ended with exit status {code}")
    return ended(cell, code, out)


# --- One cell, on a node ---


def _make(name: str, folder: str, cpus: int, gpus: int, place: Place) -> tuple[int, str]:
    """The exit status of the cell's process, or why there was none. What was cancelled is asked to save."""
    fault = _fault(*place)
    if fault:
        return 2, f"node {socket.gethostname()}: {fault}"
    out, here = Path(place[0]), Path(place[2])
    environment = os.environ | {"JAX_PLATFORMS": "cuda,cpu" if gpus else "cpu"}
    with stop_requests() as stop_requested, _own_cores(cpus) as cores:  # Ray cancels as Ctrl-C does
        _wait_until_free(out / name, stop_requested)
        if stop_requested():
            return 130, ""
        process = start_worker(out, Path(folder), name, cores, environment, here)
        stopping = False
        try:
            while process.poll() is None:
                if stop_requested() and not stopping:
                    stopping = True
                    process.terminate()  # Ray's processes have SIGINT blocked, and so has what they start
                time.sleep(POLL_SECONDS)
        finally:
            process.kill()  # nothing, where it has ended
        return process.returncode, ""


@contextmanager
def _own_cores(count: int) -> Generator[list[int], None, None]:
    """Cores of this node that no other cell has.

    None, which is no limit, where Ray counts other CPUs than this process has cores, as in containers with a quota.
    """
    ray = _ray()
    me = ray.get_runtime_context().get_node_id()
    (counted,) = (_count(node, "CPU") for node in ray.nodes() if node["NodeID"] == me)
    known = sorted(os.sched_getaffinity(0))
    folder = Path(tempfile.gettempdir()) / f"diffcps-cores-{os.getuid()}"
    cores: list[int] = []
    with ExitStack() as mine:
        for core in known if counted == len(known) else []:
            if len(cores) < count:
                with suppress(UserError):
                    mine.enter_context(locked(folder / str(core)))
                    cores.append(core)
        yield cores if len(cores) == count else []


def _wait_until_free(run: Path, stop_requested: Callable[[], bool]) -> None:
    """Until no process holds the run any more; one that does so for longer is for the cell to complain of."""
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end and not stop_requested():
        with suppress(UserError), locked(run):
            return
        time.sleep(POLL_SECONDS)
