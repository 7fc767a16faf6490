"""The training loop: advance, log, evaluate, save; stop in good order; go on as if nothing had happened."""

from __future__ import annotations

import math
import signal
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from diffcps.run.folder import RunFolder
from diffcps.training import checkpoint
from diffcps.training.members import Member, Program
from diffcps.types import Display, UserError

DIAGNOSE_ROWS = 4096
"""Rows of the dataset, the same at every evaluation, on which the diagnostics are measured."""


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
        return update % self.eval_every == 0 or update == self.updates


Act = Callable[[np.ndarray, int], np.ndarray]
"""(observation "members episodes obs", step) -> action "members episodes act", both in the units of the dataset."""
Evaluate = Callable[[Act], tuple[np.ndarray, np.ndarray]]
"""Returns and lengths of the episodes, each "members episodes"."""


class Interrupted(Exception):
    """Training was asked to stop and has saved itself."""

    def __init__(self, update: int):
        super().__init__(f"stopped after {update} updates")
        self.update = update


def fit(
    program: Program,
    members: Sequence[Member],
    num_rows: int,
    lengths: Lengths,
    folder: RunFolder,
    evaluate: Evaluate | None,
    display: Display,
    resume: bool,
) -> None:
    """Trains to `lengths.updates` inside a locked `folder`, from the start or from its last checkpoint.

    Raises `Interrupted` after Ctrl-C or SIGTERM, when everything is saved.
    """
    state, labels = program.init(), ()
    starts = program.starts(lengths.updates)
    alive = np.ones(len(members), bool)
    stopped: dict[str, str] = {}
    update = 0
    rows = np.random.default_rng(0).integers(num_rows, size=DIAGNOSE_ROWS)
    if resume and folder.last.exists():
        stage = bisect_left(starts, checkpoint.information(folder.last)["update"])  # begun so far
        for begun in range(stage):
            _, labels = jax.eval_shape(partial(program.begin, stage=begun), state, labels, alive)
        saved, information = checkpoint.load(folder.last, _whole(state, labels))
        labels, state = saved.pop("labels"), type(state)(**saved)
        update, stopped = information["update"], information["stopped"]
        alive = np.array([str(member.index) not in stopped for member in members])
        state, labels = program.place(state), program.place(labels)
    folder.forget_after(update)
    best_score, best_state = _best_so_far(folder, members, state)
    display.start(update, {index: score for index, score in enumerate(best_score) if score > -math.inf})

    told = False
    with _stop_requests() as stop_requested:
        while update < lengths.updates and alive.any():
            boundary = lengths.boundary_after(update, starts)
            started = time.perf_counter()
            stage = bisect_right(starts, update) - 1
            if update == starts[stage]:
                state, labels = program.begin(state, labels, alive, stage)
            state, now_alive, metrics = program.advance(state, alive, update, boundary, labels, stage)
            while not now_alive.is_ready():  # pyright: ignore[reportAttributeAccessIssue]
                # The host stays free to draw, and to hear Ctrl-C.
                time.sleep(0.02)
                display.waiting()
                if stop_requested() and not told:
                    told = True
                    display.note(f"stopping after update {boundary}, to save; Ctrl-C once more stops at once")
            metrics = {name: np.asarray(value) for name, value in metrics.items()}
            seconds = time.perf_counter() - started
            now_alive = np.asarray(now_alive)
            for member in members:
                if alive[member.index] and not now_alive[member.index]:
                    stopped[str(member.index)] = _diagnosis(member, metrics, update, boundary)
                    display.note(stopped[str(member.index)])
            rate = {"updates_per_second": (boundary - update) / seconds}
            update, alive = boundary, now_alive
            log = [_row(update, member, metrics) | rate for member in members if alive[member.index]]
            folder.append(folder.metrics, log)
            display.logged(update, log)

            if lengths.evaluates_at(update) and alive.any():
                evaluations = _evaluate(program, members, state, alive, update, rows, evaluate)
                folder.append(folder.evaluations, evaluations)
                improved = np.zeros(len(members), bool)
                for row in evaluations:
                    if row["score"] is not None and row["score"] > best_score[row["member"]]:
                        best_score[row["member"]] = row["score"]
                        improved[row["member"]] = True
                if improved.any():
                    best_state = _choose(improved, state, best_state)
                    best_update = _best_updates(folder, members)
                    checkpoint.save(folder.best, best_state, {"update": best_update, "stopped": {}})
                display.evaluated(update, evaluations)
            if lengths.evaluates_at(update) or stop_requested():
                checkpoint.save(folder.last, _whole(state, labels), {"update": update, "stopped": stopped})
            if stop_requested() and update < lengths.updates:
                raise Interrupted(update)
    if not alive.any():
        checkpoint.save(folder.last, _whole(state, labels), {"update": update, "stopped": stopped})
        raise UserError("; ".join(stopped.values()) + ": no member is left to train")


def _whole(state: Any, labels: Any) -> dict[str, Any]:
    """What a run needs to go on: the arrays of the state under their own names, so that a policy is read from them."""
    return {**state._asdict(), "labels": labels}


def _row(update: int, member: Member, metrics: dict[str, np.ndarray]) -> dict[str, Any]:
    values = {name: _json_number(value[member.index]) for name, value in metrics.items()}
    return {"update": update, **member.columns, **values}


def _json_number(value: np.floating) -> float | None:
    """JSON has no NaN: a metric that no update of the interval reported is null."""
    return float(value) if math.isfinite(value) else None


def _evaluate(program, members, state, alive, update, rows, evaluate: Evaluate | None) -> list[dict[str, Any]]:
    diagnosis = program.diagnose(state, rows)
    returns = lengths = None
    if evaluate is not None:
        returns, lengths = evaluate(lambda observation, step: program.act(state, observation, update, step))
    evaluations = []
    for member in members:
        if not alive[member.index]:
            continue
        row: dict[str, Any] = {"update": update, **member.columns, "score": None, "returns": [], "lengths": []}
        if returns is not None and lengths is not None:
            row["returns"] = [float(x) for x in returns[member.index]]
            row["lengths"] = [int(x) for x in lengths[member.index]]
            row["score"] = float(np.mean(returns[member.index]))
        row["diagnose"] = {name: _json_number(value[member.index]) for name, value in diagnosis.items()}
        evaluations.append(row)
    return evaluations


def _best_so_far(folder: RunFolder, members: Sequence[Member], state: Any) -> tuple[list[float], Any]:
    scores = [-math.inf] * len(members)
    for row in folder.rows(folder.evaluations):
        if row["score"] is not None:
            scores[row["member"]] = max(scores[row["member"]], row["score"])
    if max(scores) == -math.inf:
        return scores, jax.tree.map(np.array, state)
    return scores, checkpoint.load(folder.best, state)[0]


def _best_updates(folder: RunFolder, members: Sequence[Member]) -> list[int]:
    """The update of each member's best evaluation (the first on ties); 0 before any."""
    best = [(-math.inf, 0)] * len(members)
    for row in folder.rows(folder.evaluations):
        if row["score"] is not None and row["score"] > best[row["member"]][0]:
            best[row["member"]] = (row["score"], row["update"])
    return [update for _, update in best]


def _choose(mask: np.ndarray, new: Any, old: Any) -> Any:
    """`new` for the members in `mask`, `old` for the others; on the host, so that the live state may be consumed."""

    def choose(new, old):
        return np.where(mask.reshape(-1, *[1] * (new.ndim - 1)), np.asarray(new), np.asarray(old))

    return jax.tree.map(choose, new, old)


def _diagnosis(member: Member, metrics: dict[str, np.ndarray], first: int, last: int) -> str:
    worst = max(metrics, key=lambda name: np.nan_to_num(abs(metrics[name][member.index]), nan=-1.0, posinf=np.inf))
    return (
        f"member {member.index} ({member.label}) diverged between updates {first} and {last} "
        f"({worst} = {metrics[worst][member.index]:.3g}); its state at update {first} is kept"
    )


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
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
