"""Does this data fit this simulator? Stored steps are taken again, and what differs is given a name.

`check_simulator` puts the simulator into stored states, applies the stored actions and compares. Where the answers
differ, `diffcps.simulator.faults` looks for a fault that explains it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from diffcps.envs.ant_maze import AntMaze
from diffcps.envs.make import environment_sizes, make_environment
from diffcps.simulator.faults import CLOSE, FEWEST, normalised, step_faults
from diffcps.simulator.probe import FITS, probe
from diffcps.simulator.record import Record, episode_lengths, goal_of, read_record, windows
from diffcps.simulator.replay import Case, Comparison, Simulator, full_states
from diffcps.simulator.report import EntryErrors, Findings, Report, RewardErrors, Sample, StepErrors
from diffcps.simulator.reward_faults import Terminals, reward_faults, terminal_faults
from diffcps.simulator.versions import compare_versions
from diffcps.types import UserError


def check_simulator(
    source: str | Path,
    environment_id: str,
    *,
    steps: int = 2000,
    seed: int = 0,
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Compares stored steps of the file `source` with those of an environment.

    `steps` rows are drawn from the whole file; `on_step(done, total)` tells how far it is.

    Raises `UserError` for a file that cannot be read, sizes that differ, and an environment without a state to set.
    """
    if steps < FEWEST:
        raise UserError(f"--steps {steps}: at least {FEWEST} steps are needed to judge anything")
    record, facts, remarks = read_record(str(source), environment_id)
    rng = np.random.default_rng(seed)
    with ExitStack() as stack:
        simulator = probe(stack.enter_context(closing(make_environment(environment_id))), seed)
        if isinstance(simulator.environment.unwrapped, AntMaze):
            record = record._replace(goal=goal_of(record))
        drawn = np.sort(rng.choice(len(record.reward), min(steps, len(record.reward)), replace=False))
        chosen, ends, skipped = judged_rows(simulator, record, drawn, steps)
        sample = Sample(
            environment=environment_id,
            seed=seed,
            drawn=len(drawn),
            judged=len(chosen),
            not_judged=skipped,
            state=_state_source(simulator, record),
            left_out=simulator.hidden_names(),
            own_steps_again=simulator.reproduced,
            goal=None if record.goal is None else record.goal.tolist(),
        )
        if len(chosen) < FEWEST:
            return Report(facts, sample, remarks, None)
        findings, faults = _judge(simulator, record, chosen, ends, sample, rng, stack, on_step)
    return Report(facts, sample, faults + remarks, findings)


def judged_rows(
    simulator: Simulator, record: Record, rows: np.ndarray, steps: int
) -> tuple[np.ndarray, np.ndarray, dict[str, int]]:
    """Of `rows` those that can be judged, terminal rows besides (at most a quarter of `steps`), and why others cannot.

    A row cannot be judged where its state is not known: a velocity at its clip, or state that the observation leaves
    out and the file does not hold.
    """
    full = full_states(simulator, record)
    stored = np.zeros(len(record.reward), bool)
    if full.state is not None:
        stored |= ~np.isnan(full.state).any(axis=1)
    clipped = simulator.clipped(record.observation) & ~stored
    unknown = np.full(len(stored), simulator.reproduced < FITS) & ~stored
    final = np.isnan(record.next_observation).any(axis=1)
    fine = ~(clipped | unknown | final)
    skipped = {
        "velocity at its clip": int((clipped & ~unknown)[rows].sum()),
        "state that is neither observed nor stored": int(unknown[rows].sum()),
        "next observation not stored (terminal row)": int((final & ~clipped & ~unknown)[rows].sum()),
    }
    ends = np.flatnonzero(record.terminal & ~clipped & ~unknown)
    if len(ends) > steps // 4:
        ends = ends[np.linspace(0, len(ends) - 1, steps // 4).astype(int)]
    return rows[fine[rows]], ends, {reason: count for reason, count in skipped.items() if count}


def _state_source(simulator: Simulator, record: Record) -> str:
    full = full_states(simulator, record)
    if full.state is None:
        return "from the observation"
    when = "after the step of its row" if full.shift else "before the step of its row"
    return f"from the observation, and what it leaves out from infos/qpos and infos/qvel (recorded {when})"


def _judge(
    simulator: Simulator,
    everything: Record,
    chosen: np.ndarray,
    chosen_ends: np.ndarray,
    sample: Sample,
    rng: np.random.Generator,
    stack: ExitStack,
    on_step: Callable[[int, int], None],
) -> tuple[Findings, list[str]]:
    """What the rows `chosen` and the terminal rows `chosen_ends` show, and faults."""
    record, rows = windows(everything, np.concatenate([chosen, chosen_ends]))
    case, ends = Case(simulator, record, rows[: len(chosen)]), rows[len(chosen) :]
    done = 0

    def on_row() -> None:
        nonlocal done
        done += 1
        on_step(done, len(rows))

    as_stored = found = case.compare(rng, on_row)
    at_ends = case._replace(rows=ends).compare(rng, on_row)
    misfits, repaired = _step_faults(everything, case, found, sample, stack)
    if misfits:
        found, at_ends = repaired.compare(rng), repaired._replace(rows=ends).compare(rng)
    # An offset that was found has an error of its own.
    misfits += reward_faults(repaired, found, at_ends, slack=10.0 if misfits else 1.0)
    terminal = _terminals(everything, chosen_ends, repaired, found, at_ends, sample.environment)
    findings = Findings(
        observation=_entry_errors(as_stored, record, simulator),
        step=_step_errors(as_stored, chosen),
        reward=_reward_errors(as_stored),
        agree_when_repaired=float(found.agree.mean()),
        terminal=terminal,
        fits=bool(as_stored.agree.mean() >= FITS and as_stored.reward_agrees.mean() >= FITS and not misfits),
        versions=compare_versions(case, ends, sample.environment, stack, sample.seed),
        comparison=as_stored,
    )
    return findings, misfits + terminal_faults(terminal, bool(found.agree.mean() >= 0.5))


def _step_faults(
    everything: Record, case: Case, found: Comparison, sample: Sample, stack: ExitStack
) -> tuple[list[str], Case]:
    if found.agree.mean() >= FITS:
        return [], case
    if fault := normalised(everything):
        return [fault], case
    return step_faults(case, found.row_error, stack, sample.environment, sample.seed)


def _terminals(
    everything: Record,
    chosen_ends: np.ndarray,
    case: Case,
    found: Comparison,
    at_ends: Comparison,
    environment_id: str,
) -> Terminals:
    """Stored terminal rows that the simulator confirms, and others that it would end."""
    going, limit = ~case.record.terminal[case.rows], environment_sizes(environment_id).max_steps
    every = np.flatnonzero(everything.terminal)
    return Terminals(
        stored=len(chosen_ends),
        confirmed=int(at_ends.terminal.sum()),
        at_time_limit=int((~at_ends.terminal & (episode_lengths(everything, chosen_ends) == limit)).sum()),
        time_limit=limit,
        reward_agrees=float(at_ends.reward_agrees.mean()) if len(chosen_ends) else None,
        going_on=int(going.sum()),
        ended_by_simulator=int(found.terminal[going].sum()),
        in_file=len(every),
        in_file_at_time_limit=int((episode_lengths(everything, every) == limit).sum()),
    )


def _entry_errors(found: Comparison, record: Record, simulator: Simulator) -> list[EntryErrors]:
    within, names = found.error <= found.tolerance[:, None], simulator.names()
    return [
        EntryErrors(
            entry=i,
            name=names[i],
            one_step_change=float(record.scale[i]),
            median=float(np.median(found.error[:, i])),
            p99=float(np.quantile(found.error[:, i], 0.99)),
            agree=float(within[:, i].mean()),
        )
        for i in range(found.error.shape[1])
    ]


def _step_errors(found: Comparison, rows_in_file: np.ndarray) -> StepErrors:
    close = found.row_error <= CLOSE
    return StepErrors(
        agree=float(found.agree.mean()),
        median=float(np.median(found.row_error)),
        p99=float(np.quantile(found.row_error, 0.99)),
        close_in_contact=_mean(close[found.contact]),
        close_without_contact=_mean(close[~found.contact]),
        worst_rows=rows_in_file[np.argsort(-found.row_error)[:5]].tolist(),
    )


def _reward_errors(found: Comparison) -> RewardErrors:
    error = np.abs(found.simulated_reward - found.reward)
    return RewardErrors(
        agree=float(found.reward_agrees.mean()), median=float(np.median(error)), p99=float(np.quantile(error, 0.99))
    )


def _mean(value: np.ndarray) -> float | None:
    return float(value.mean()) if len(value) else None
