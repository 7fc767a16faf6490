"""The training loop: from one boundary to the next, and on from a checkpoint as if nothing had happened.

The loop yields at each boundary and knows no evaluator, no log and no display: whoever drives it asks, logs, saves.
"""

from __future__ import annotations

import signal
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from diffcps.training import checkpoint
from diffcps.training.members import Member, Program
from diffcps.types import Tree

Preparing = Callable[[int, int, int], None]
"""`preparing(stage, done, total)`: a stage computes what it begins with, and has it for `done` of `total` rows; of none
where it is one computation."""
POLL_SECONDS = 0.005
"""Between two looks at what the device computes: a part of what a block of updates takes on a fast one."""
LARGE = 100.0
"""Rewards and observations above it in size are named where a member diverges."""


@dataclass(frozen=True)
class Lengths:
    """How long, how often."""

    updates: int
    """Updates in all."""
    eval_every: int
    """Updates between two evaluations."""
    log_every: int
    """Updates in one call of the compiled program: the grain of the logs, of stopping and of the divergence check."""

    def boundary_after(self, update: int, starts: Sequence[int]) -> int:
        """The next update count at which the host takes over; it depends on nothing but `update`."""
        next_log = (update // self.log_every + 1) * self.log_every
        next_evaluation = (update // self.eval_every + 1) * self.eval_every
        return min(next_log, next_evaluation, self.updates, *(start for start in starts if start > update))

    def evaluates_at(self, update: int) -> bool:
        """Whether an evaluation is due after so many updates."""
        return update % self.eval_every == 0 or update == self.updates


class Interrupted(Exception):
    """Training was asked to stop and has saved itself."""

    def __init__(self, update: int):
        super().__init__(f"stopped after {update} updates")
        self.update = update


@dataclass
class Training:
    """All members of a run at one moment: what a checkpoint holds."""

    state: Tree
    alive: np.ndarray
    """(members,) bool: not diverged."""
    labels: Tree = ()
    """What the stage has computed for the rows."""
    update: int = 0
    stopped: dict[int, str] = field(default_factory=dict)
    """Member -> why it is not trained any more."""


class Boundary(NamedTuple):
    """What happened since the boundary before."""

    metrics: dict[str, np.ndarray]
    """Means over the updates that report them, (members,) each."""
    updates_per_second: float
    diverged: list[str]
    """A line for each member that was stopped here."""


def begin(program: Program) -> Training:
    """All members before their first update."""
    state = program.init()
    return Training(state, np.ones(len(program.members), bool))


def resume(program: Program, path: Path, updates: int) -> Training:
    """A run of `updates` updates as its checkpoint `path` left it. Raises `UserError` where that is no such file."""
    training = begin(program)
    starts = program.starts(updates)
    made = int(str(checkpoint.information(path)["update"]))
    begun = bisect_left(starts, made)  # stages begun so far
    state, labels = training.state, ()
    for stage in range(begun):
        found = _shapes_of_rows(program, state, labels, stage)
        _, labels = jax.eval_shape(partial(program.begin, stage=stage), state, found, training.alive)
    kept = labels if begun and program.keeps_labels(begun - 1) else ()
    saved, information = checkpoint.load(path, _whole(state, kept))
    labels, state = saved.pop("labels"), type(state)(**saved)
    stopped = information["stopped"]
    assert isinstance(stopped, dict)
    training.update, training.stopped = made, {int(member): str(why) for member, why in stopped.items()}
    training.alive = np.array([member.index not in training.stopped for member in program.members])
    training.state, training.labels = program.place(state), program.place_labels(labels)
    if begun and not program.keeps_labels(begun - 1):
        of_rows = prepared(program, training.state, (), begun - 1)
        _, training.labels = program.begin(training.state, of_rows, training.alive, begun - 1)
    return training


def save(program: Program, training: Training, path: Path, updates: int) -> None:
    """Writes the checkpoint from which `resume` goes on, in a run of `updates` updates."""
    stage = bisect_left(program.starts(updates), training.update) - 1
    kept = training.labels if stage >= 0 and program.keeps_labels(stage) else ()
    stopped = {str(member): why for member, why in training.stopped.items()}
    checkpoint.save(path, _whole(training.state, kept), {"update": training.update, "stopped": stopped})


def advance(
    program: Program,
    training: Training,
    lengths: Lengths,
    waiting: Callable[[int], None],
    preparing: Preparing = lambda stage, done, total: None,
    pieces: Path | None = None,
) -> Iterator[Boundary]:
    """Trains to `lengths.updates`, in place, and yields at each boundary.

    While the device works towards a boundary, `waiting(update)` is called with it, every few milliseconds: the host
    stays free to draw, and to hear Ctrl-C. So is `preparing` while a stage computes what it begins with: it may raise,
    and what was computed for the rows so far lies in the folder `pieces`, to go on from. Ends early when no member is
    left.
    """
    starts = program.starts(lengths.updates)
    while training.update < lengths.updates and training.alive.any():
        first, last = training.update, lengths.boundary_after(training.update, starts)
        started = time.perf_counter()
        stage = bisect_right(starts, first) - 1
        if first == starts[stage]:
            of_rows = prepared(program, training.state, training.labels, stage, preparing, pieces)
            begun = program.begin(training.state, of_rows, training.alive, stage)
            _wait(begun, partial(preparing, stage, 0, 0))
            training.state, training.labels = begun
        wait = partial(_wait, meanwhile=partial(waiting, last))
        training.state, alive, metrics = program.advance(
            training.state, training.alive, first, last, training.labels, stage, wait
        )
        wait(alive)
        measured = {name: np.asarray(value) for name, value in metrics.items()}
        seconds = time.perf_counter() - started
        gone = [member for member in program.members if training.alive[member.index] and not alive[member.index]]
        for member in gone:
            training.stopped[member.index] = _diagnosis(member, measured, first, last, program)
        training.update, training.alive = last, np.asarray(alive)
        diverged = [training.stopped[member.index] for member in gone]
        yield Boundary(measured, (last - first) / seconds, diverged)


def prepared(
    program: Program,
    state: Tree,
    labels: Tree,
    stage: int,
    preparing: Preparing = lambda stage, done, total: None,
    pieces: Path | None = None,
) -> Tree:
    """What a stage needs of all rows for its `begin`, a piece after the other; else `labels`, as they are.

    Pieces that lie in the folder `pieces` are read from it, new ones are written there.
    """
    starts = program.pieces(stage)
    if not starts:
        return labels
    found: list[Tree] = []
    for done, start in enumerate(starts):
        path = None if pieces is None else pieces / f"{stage}-{start}.safetensors"
        if path is not None and path.exists():
            piece, _ = checkpoint.load(path, jax.eval_shape(partial(program.prepare, stage=stage, start=start), state))
        else:
            piece = program.prepare(state, stage, start)
            preparing(stage, start, program.rows)
            _wait(piece, partial(preparing, stage, start, program.rows))
            piece = jax.tree.map(np.asarray, piece)
            if path is not None:
                path.parent.mkdir(exist_ok=True)
                checkpoint.save(path, piece, {})
        new = program.rows if done + 1 == len(starts) else starts[done + 1]
        found.append(jax.tree.map(lambda array, new=new - start: array[:, :new], piece))
    return program.place_labels(jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *found))


def _shapes_of_rows(program: Program, state: Tree, labels: Tree, stage: int) -> Tree:
    """The shapes of what `prepared` returns."""
    if not program.pieces(stage):
        return labels
    piece = jax.eval_shape(partial(program.prepare, stage=stage, start=0), state)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((leaf.shape[0], program.rows, *leaf.shape[2:]), leaf.dtype), piece
    )


def _wait(arrays: Tree, meanwhile: Callable[[], None]) -> None:
    """Comes back when the device has computed them all; until then `meanwhile()` is called every few milliseconds."""
    while not _are_ready(arrays):
        time.sleep(POLL_SECONDS)
        meanwhile()


def _are_ready(arrays: Tree) -> bool:
    return all(array.is_ready() for array in jax.tree.leaves(arrays))


def _whole(state: Tree, labels: Tree) -> dict[str, Tree]:
    """What a run needs to go on: the arrays of the state under their own names, so that a policy is read from them."""
    return {**state._asdict(), "labels": labels}


def _diagnosis(member: Member, metrics: dict[str, np.ndarray], first: int, last: int, program: Program) -> str:
    worst = max(metrics, key=lambda name: np.nan_to_num(abs(metrics[name][member.index]), nan=-1.0, posinf=np.inf))
    reward, observation = program.largest_reward, program.largest_observation
    return (
        f"member {member.index} ({member.label}) diverged between updates {first} and {last} "
        f"({worst} = {metrics[worst][member.index]:.3g}); its state at update {first} is kept"
        + (f"; rewards reach {reward:g} a step: try --reward standardise" if reward > LARGE else "")
        + (f"; observations reach {observation:g}: try --normalise-observation" if observation > LARGE else "")
    )


@contextmanager
def stop_requests() -> Generator[Callable[[], bool], None, None]:
    """Turns the first Ctrl-C or SIGTERM into a request; the second Ctrl-C interrupts at once."""
    requests = []

    def request(number, frame):
        if requests and number == signal.SIGINT:
            raise KeyboardInterrupt
        requests.append(number)

    try:
        before = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: whoever owns the signals decides
        before = {}
    try:
        yield lambda: bool(requests)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
