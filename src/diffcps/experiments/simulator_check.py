"""Does this data fit this simulator? Stored steps are taken again, and what differs is given a name.

`check_simulator` puts the simulator into stored states, applies the stored actions and compares. Where the answers
differ, `REPAIRS` are tried: each undoes one fault that files are known to have, and the one that makes the steps agree
names the fault.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffcps.data.checks import check
from diffcps.data.formats import to_dataset
from diffcps.data.load import read_raw
from diffcps.envs.make import environment_spec, make_environment
from diffcps.experiments.simulator import (
    FITS,
    ULPS,
    Prediction,
    Record,
    Simulator,
    agreement,
    full_states,
    probe,
    row_error,
    step_scale,
    ulp,
)
from diffcps.types import DatasetInfo, UserError

CLOSE = 1e-3
"""While repairs are tried, a step counts as close below this error (in one-step changes of the worst entry)."""
TRIAL_ROWS = 48
"""Rows on which a repair is tried."""
ROUNDS = 3
"""Faults that may be found one after the other."""
FEWEST = 20
"""Below this number of steps nothing is judged."""


class Repaired(NamedTuple):
    """What a repair makes of a case, and the fault that it undoes, in words."""

    words: str
    simulator: Simulator
    record: Record


class Case(NamedTuple):
    """What a repair is given: the simulator, the data, and the rows on which it is tried."""

    simulator: Simulator
    record: Record
    rows: np.ndarray


def check_simulator(
    source: str | Path,
    environment_id: str,
    *,
    steps: int = 2000,
    seed: int = 0,
    on_step: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Compares stored steps of `source` with those of an environment.

    `steps` rows are drawn from the whole file; `on_step(done, total)` tells how far it is. Returns a summary that can
    be written as JSON (its `verdict` says everything in words, `fits` is None where nothing can be judged) and the
    arrays that the picture shows: `error` (n, obs) in one-step changes, `row_error`, `tolerance`, `agree`, `reward`,
    `predicted_reward`, `reward_agrees`, each (n,), as the file stands.

    Raises `UserError` for a file that cannot be read, sizes that differ, and an environment without a state to set.
    """
    if steps < FEWEST:
        raise UserError(f"--steps {steps}: at least {FEWEST} steps are needed to judge anything")
    everything, facts, remarks = read_record(str(source), environment_id)
    rng = np.random.default_rng(seed)
    with ExitStack() as stack:
        simulator = probe(stack.enter_context(closing(make_environment(environment_id))), seed)
        drawn = np.sort(rng.choice(len(everything.reward), min(steps, len(everything.reward)), replace=False))
        chosen, chosen_ends, skipped = judged_rows(simulator, everything, drawn, steps)
        summary: dict[str, Any] = {
            **facts,
            "environment": environment_id,
            "seed": seed,
            "drawn": len(drawn),
            "judged": len(chosen),
            "not_judged": skipped,
            "state": _state_words(simulator, everything),
            "left_out": simulator.hidden_names(),
            "own_steps_again": simulator.placed,
        }
        if len(chosen) < FEWEST:
            verdict = _cannot_judge(summary)
            return summary | {"fits": None, "faults": remarks, "verdict": verdict}, {}

        lengths = _episode_lengths(everything, chosen_ends)
        record, rows = _windows(everything, np.concatenate([chosen, chosen_ends]))
        case, ends = Case(simulator, record, rows[: len(chosen)]), rows[len(chosen) :]
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            if on_step is not None:
                on_step(done, len(rows))

        predicted = simulator.predict(record, case.rows, rng, tick)
        at_ends = simulator.predict(record, ends, rng, tick)
        arrays = _arrays(predicted, case)
        summary |= _numbers(arrays, case, chosen)

        misfits, repaired = [], Repaired("", simulator, record)
        if summary["step"]["agree"] < FITS:
            if words := _normalised(everything):
                misfits = [words]
            else:
                misfits, repaired = _step_faults(case, arrays, stack, environment_id, seed)
        if misfits:
            case = Case(repaired.simulator, repaired.record, case.rows)
            predicted = case.simulator.predict(case.record, case.rows, rng)
            at_ends = case.simulator.predict(case.record, ends, rng)
        agree, _ = agreement(predicted, case.record, case.rows)
        summary["agree_when_repaired"] = float(agree.mean())
        slack = 10.0 if misfits else 1.0  # an offset that was found has an error of its own
        misfits += _reward_faults(case, predicted, agree, ends, at_ends, slack)
        limit = environment_spec(environment_id).max_steps
        summary["terminal"] = _terminals(case, predicted, ends, at_ends, lengths, limit)
        every = np.flatnonzero(everything.terminal)
        at_limit = int((_episode_lengths(everything, every) == limit).sum())
        summary["terminal"] |= {"in_file": len(every), "in_file_at_time_limit": at_limit}
        versions = _versions(Case(simulator, record, rows[: len(chosen)]), ends, environment_id, stack, seed)
    share, rewards = summary["step"]["agree"], summary["reward"]["agree"]
    summary |= {
        "fits": bool(share >= FITS and rewards >= FITS and not misfits),
        "faults": misfits + _terminal_faults(summary["terminal"], agree.mean() >= 0.5) + remarks,
        "versions": versions,
    }
    return summary | {"verdict": _verdict(summary)}, arrays


# --- The data ---


def read_record(source: str, environment_id: str) -> tuple[Record, dict[str, Any], list[str]]:
    """The transitions of a file in the environment's units, facts about the file, and remarks on its faults.

    Unlike `load_dataset` it takes actions outside their box, and remarks on them.
    """
    raw, spec = read_raw(source), environment_spec(environment_id)
    given = raw.action_low is not None or raw.action_high is not None
    if np.ndim(raw.action) == 2 and np.size(raw.action) and np.asarray(raw.action).dtype.kind in "iuf":
        widest = float(np.nanmax(np.abs(raw.action))) + 1.0  # NaN and infinity are for `check` to refuse
        if np.isfinite(widest):
            raw = raw._replace(action_low=np.asarray(-widest), action_high=np.asarray(widest))
    raw = check(raw, source)
    info = DatasetInfo(source=source, sha256=raw.sha256)
    data = to_dataset(raw, info)
    numbered = to_dataset(raw._replace(reward=np.arange(len(raw.reward), dtype=np.float64)), info)
    kept = np.asarray(numbered.reward, int)  # rows of the file that became transitions
    for name, ours, theirs in (
        ("observations", data.spec.observation_size, spec.observation_size),
        ("actions", data.spec.action_size, spec.action_size),
    ):
        if ours != theirs:
            raise UserError(
                f"{source}: {name} have {ours} numbers, but {theirs} in environment {environment_id}: "
                f"name the environment (and its version) that the data were recorded in"
                + (f"; the file names {raw.environment}" if raw.environment else "")
            )
    infos = {name: value[kept] for name, value in _read_infos(source, len(raw.reward)).items()}
    terminal, timeout = np.asarray(data.terminal), np.asarray(data.timeout)
    record = Record(
        *(np.asarray(x) for x in (data.observation, data.action, data.reward, data.next_observation)),
        terminal=terminal,
        end=terminal | timeout,
        infos=infos,
        scale=step_scale(np.asarray(data.observation), np.asarray(data.next_observation)),
    )
    low, high = np.asarray(spec.action_low, np.float32), np.asarray(spec.action_high, np.float32)
    outside = (record.action < low - 1e-5 * (high - low)) | (record.action > high + 1e-5 * (high - low))
    remarks = []
    if outside.any():
        remarks.append(
            f"actions lie outside the environment's box in {outside.mean():.1%} of their entries (largest "
            f"{np.abs(record.action).max():.3g}); the simulator cuts its controls, but a reward may count them in full"
        )
    if raw.next_observation is None:
        # Rows before a dropped one end by the file's own rule; a terminal row has no next observation at all.
        record = record._replace(next_observation=np.where(terminal[:, None], np.nan, record.next_observation))
    facts = {
        "source": source,
        "sha256": raw.sha256,
        "environment_of_file": raw.environment,
        "rows": len(record.reward),
        "has_next_observations": raw.next_observation is not None,
        "names_action_box": given,
    }
    return record, facts, remarks


def _read_infos(source: str, rows: int) -> dict[str, np.ndarray]:
    """Two-dimensional numbers under `infos/`, or qpos and qvel beside the fields, with one row per step."""
    path = Path(source)
    found: dict[str, np.ndarray] = {}
    if path.suffix.lower() in (".hdf5", ".h5"):
        import h5py

        with h5py.File(path, "r") as file:
            for prefix in ("infos", "/"):
                group = file.get(prefix)
                if isinstance(group, h5py.Group):
                    for name, item in group.items():
                        if isinstance(item, h5py.Dataset) and item.ndim == 2 and (prefix == "infos" or name[0] == "q"):
                            found.setdefault(name, item[()])
    elif path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as file:
            for name in file.files:
                if name.startswith("infos/") or name in ("qpos", "qvel"):
                    found[name.removeprefix("infos/")] = file[name]
    return {
        name: value
        for name, value in found.items()
        if value.ndim == 2 and len(value) == rows and value.dtype.kind in "iuf"
    }


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
    cut = simulator.cut(record.observation) & ~stored
    unknown = np.full(len(stored), simulator.placed < FITS) & ~stored
    final = np.isnan(record.next_observation).any(axis=1)
    fine = ~(cut | unknown | final)
    skipped = {
        "velocity at its clip": int((cut & ~unknown)[rows].sum()),
        "state that is neither observed nor stored": int(unknown[rows].sum()),
        "next observation not stored (terminal row)": int((final & ~cut & ~unknown)[rows].sum()),
    }
    ends = np.flatnonzero(record.terminal & ~cut & ~unknown)
    if len(ends) > steps // 4:
        ends = ends[np.linspace(0, len(ends) - 1, steps // 4).astype(int)]
    return rows[fine[rows]], ends, {reason: count for reason, count in skipped.items() if count}


def _windows(record: Record, rows: np.ndarray) -> tuple[Record, np.ndarray]:
    """The two rows before and after each of `rows` and the row itself, as a record, and where the rows are in it."""
    around = np.clip(rows[:, None] + np.arange(-2, 3), 0, len(record.reward) - 1)
    end = record.end[around]
    end[:, -1] = True
    flat = around.ravel()
    arrays = [value[flat] for value in record[:5]]
    infos = {name: value[flat] for name, value in record.infos.items()}
    return Record(*arrays, end=end.ravel(), infos=infos, scale=record.scale), 5 * np.arange(len(rows)) + 2


def _episode_lengths(record: Record, ends: np.ndarray) -> np.ndarray:
    """Stored steps of the episodes that end at the rows `ends`."""
    last = np.flatnonzero(record.end)
    return np.diff(last, prepend=-1)[np.searchsorted(last, ends)]


# --- The numbers ---


def _arrays(predicted: Prediction, case: Case) -> dict[str, np.ndarray]:
    _, record, rows = case
    stored = record.next_observation[rows]
    agree, reward_agrees = agreement(predicted, record, rows)
    return {
        "error": np.abs(predicted.next_observation - stored) / record.scale,
        "row_error": row_error(predicted, record, rows),
        "tolerance": predicted.tolerance(stored, record.scale),
        "agree": agree,
        "contact": predicted.contact,
        "reward": record.reward[rows].astype(np.float64),
        "predicted_reward": predicted.reward,
        "reward_agrees": reward_agrees,
    }


def _numbers(arrays: dict[str, np.ndarray], case: Case, rows_in_file: np.ndarray) -> dict[str, Any]:
    error, names = arrays["error"], case.simulator.names()
    within = error <= arrays["tolerance"][:, None]
    reward_error = np.abs(arrays["predicted_reward"] - arrays["reward"])
    return {
        "observation": [
            {
                "entry": i,
                "name": names[i],
                "one_step_change": float(case.record.scale[i]),
                "median": float(np.median(error[:, i])),
                "p99": float(np.quantile(error[:, i], 0.99)),
                "agree": float(within[:, i].mean()),
            }
            for i in range(error.shape[1])
        ],
        "step": {
            "agree": float(arrays["agree"].mean()),
            "median": float(np.median(arrays["row_error"])),
            "p99": float(np.quantile(arrays["row_error"], 0.99)),
            "agree_in_contact": _mean(arrays["agree"][arrays["contact"]]),
            "agree_without_contact": _mean(arrays["agree"][~arrays["contact"]]),
            "worst_rows": rows_in_file[np.argsort(-arrays["row_error"])[:5]].tolist(),
        },
        "reward": {
            "agree": float(arrays["reward_agrees"].mean()),
            "median": float(np.median(reward_error)),
            "p99": float(np.quantile(reward_error, 0.99)),
        },
    }


def _mean(value: np.ndarray) -> float | None:
    return float(value.mean()) if len(value) else None


def _terminals(
    case: Case, predicted: Prediction, ends: np.ndarray, at_ends: Prediction, lengths: np.ndarray, limit: int | None
) -> dict[str, Any]:
    """Stored terminal rows that the simulator confirms, and others that it would end."""
    going = ~case.record.terminal[case.rows]
    reward = case.record.reward[ends]
    agrees = np.abs(reward - at_ends.reward) <= at_ends.reward_tolerance(reward)
    return {
        "stored": len(ends),
        "confirmed": int(at_ends.terminal.sum()),
        "at_time_limit": int((~at_ends.terminal & (lengths == limit)).sum()),
        "time_limit": limit,
        "reward_agrees": float(agrees.mean()) if len(ends) else None,
        "going_on": int(going.sum()),
        "ended_by_simulator": int(predicted.terminal[going].sum()),
    }


# --- Faults of the steps ---


def _badness(simulator: Simulator, record: Record, rows: np.ndarray) -> tuple[float, float]:
    """Mean logarithm (base 10) of the rows' errors, and the share of rows that are not close."""
    rows = rows[np.isfinite(record.next_observation[rows]).all(axis=1)]
    if len(rows) < FEWEST // 2:
        return np.inf, 1.0
    error = row_error(simulator.predict(record, rows), record, rows)
    return float(np.log10(np.clip(error, 1e-6, 1e3)).mean()), float((error > CLOSE).mean())


def _better(new: tuple[float, float], old: tuple[float, float]) -> bool:
    """Ten times nearer on the (geometric) mean, or five times fewer steps that are not close."""
    return new[0] <= old[0] - 1.0 or (old[1] > 0.02 and new[1] <= old[1] / 5)


def _step_faults(
    case: Case, arrays: dict[str, np.ndarray], stack: ExitStack, environment_id: str, seed: int
) -> tuple[list[str], Repaired]:
    """Faults of the steps in words, and the case with all of them undone."""
    repaired = Repaired("", case.simulator, case.record)
    faults: list[str] = []
    rows = _trial_rows(case, arrays["row_error"])
    others = [*_other_environments(environment_id, case.simulator, stack, seed)]
    for _ in range(ROUNDS):
        now = _badness(repaired.simulator, repaired.record, rows)
        if now[1] < 0.01:
            break
        here = Case(repaired.simulator, repaired.record, rows)
        candidates = [repair for make in REPAIRS for repair in make(here)]
        candidates += [Repaired(words, simulator, repaired.record) for words, simulator in others]
        scored = [(_badness(candidate.simulator, candidate.record, rows), candidate) for candidate in candidates]
        scored = [(score, candidate) for score, candidate in scored if _better(score, now)]
        if not scored:
            break
        least = min(score[0] for score, _ in scored)
        best = next(candidate for score, candidate in scored if score[0] <= least + 0.3)  # of equals the first
        faults.append(best.words)
        repaired = best
    return faults, repaired


def _trial_rows(case: Case, error: np.ndarray) -> np.ndarray:
    """Rows in the midst of episodes and far from every clip; half of them among those that do not agree."""
    record, clip = case.record, case.simulator.layout.clip
    inside = ~record.end[case.rows[:, None] + np.arange(-2, 2)].any(axis=1)
    fine = inside & (np.abs(record.observation[case.rows]) < 0.8 * clip).all(axis=1)
    rows, error = (case.rows[fine], error[fine]) if fine.sum() >= TRIAL_ROWS else (case.rows, error)
    wrong, right = rows[error > CLOSE], rows[error <= CLOSE]
    half = max(TRIAL_ROWS // 2, TRIAL_ROWS - len(right))
    return np.sort(np.concatenate([_spread(wrong, half), _spread(right, TRIAL_ROWS - min(half, len(wrong)))]))


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    return rows if len(rows) <= count else rows[np.linspace(0, len(rows) - 1, count).astype(int)]


def _normalised(record: Record) -> str | None:
    mean, std = record.observation.mean(axis=0), record.observation.std(axis=0)
    if (np.abs(mean) < 0.02).all() and (np.abs(std - 1) < 0.05).all():
        return "observations are normalised (mean 0, deviation 1 in every entry): store them in the environment's units"
    return None


def other_rows_after(case: Case) -> Iterator[Repaired]:
    """The next observation belongs to another row."""
    after = case.record.next_observation
    for stored, words in (
        (np.roll(after, 1, axis=0), "each row holds that of the row after it"),
        (np.roll(after, -1, axis=0), "each row holds that of the row before it, which is its own observation"),
    ):
        yield Repaired(
            f"next observations are off by one: {words}", case.simulator, case.record._replace(next_observation=stored)
        )


def other_rows_actions(case: Case) -> Iterator[Repaired]:
    """The action belongs to another row."""
    for shift, words in ((1, "after"), (-1, "before")):
        action = np.roll(case.record.action, -shift, axis=0)
        yield Repaired(
            f"actions are off by one: the action of a row is stored in the row {words} it",
            case.simulator,
            case.record._replace(action=action),
        )


def changed_actions(case: Case) -> Iterator[Repaired]:
    """Actions negated, swapped in two dimensions, or scaled from the environment's box."""
    record, size = case.record, case.record.action.shape[1]

    def changed(words: str, action: np.ndarray) -> Repaired:
        return Repaired(f"actions are {words}", case.simulator, record._replace(action=action.astype(np.float32)))

    for i, j in combinations(range(size), 2):
        order = np.arange(size)
        order[[i, j]] = j, i
        yield changed(f"swapped: dimensions {i} and {j}", record.action[:, order])
    for i in range(size):
        yield changed(f"negated in dimension {i}", record.action * np.where(np.arange(size) == i, -1, 1))
    if size > 1:
        yield changed("negated in every dimension", -record.action)
    box: Any = case.simulator.environment.action_space
    half, middle = (box.high - box.low) / 2, (box.high + box.low) / 2
    if not np.allclose(half, 1) or not np.allclose(middle, 0):
        yield changed("scaled from the environment's box to [-1, 1]", middle + half * record.action)


def shifted_observations(case: Case) -> Iterator[Repaired]:
    """A constant is added to entries of both observations, of the first, or of the next one.

    The constant is found by Gauss-Newton on the errors of a few rows, in which large errors count little: what is left
    of a step after a shift of both is f(s - c, a) + c - s', which vanishes at the right c.
    """
    record, simulator = case.record, case.simulator
    for which, first, second in (("both observations", True, True), ("observations", True, False)):
        offset = _fit_offset(case, first, second)
        if offset is not None:
            yield Repaired(
                f"{which} are shifted: {_offset_words(simulator, offset)}",
                simulator,
                record._replace(
                    observation=(record.observation - offset).astype(np.float32) if first else record.observation,
                    next_observation=record.next_observation - offset * second,
                ),
            )
    predicted = simulator.predict(record, case.rows)
    offset = np.median(record.next_observation[case.rows] - predicted.next_observation, axis=0)
    offset = np.where(np.abs(offset) > CLOSE * record.scale, offset, 0.0)
    if offset.any():
        yield Repaired(
            f"next observations are shifted: {_offset_words(simulator, offset)}",
            simulator,
            record._replace(next_observation=record.next_observation - offset),
        )


def following_observation(case: Case) -> Iterator[Repaired]:
    """The next observation is of no use, but the following row's observation is."""
    after = np.roll(case.record.observation, -1, axis=0)
    words = "next observations are wrong: the following row's observation is the right one"
    yield Repaired(words, case.simulator, case.record._replace(next_observation=after))


REPAIRS: tuple[Callable[[Case], Iterator[Repaired]], ...] = (
    other_rows_after,
    other_rows_actions,
    changed_actions,
    shifted_observations,
    following_observation,
)


def _fit_offset(case: Case, first: bool, second: bool) -> np.ndarray | None:
    """The constant c (obs,) that makes the steps agree when taken off; None where none makes them nearer."""
    record, simulator, scale = case.record, case.simulator, case.record.scale
    size = len(scale)
    rows = case.rows
    step = 1e-4 * np.maximum(scale, 1e-3)

    def remains(offset: np.ndarray) -> np.ndarray:
        moved = record._replace(observation=record.observation.astype(np.float64) - offset)
        after = simulator.predict(moved, rows).next_observation
        return (after + offset * second - record.next_observation[rows]) / scale

    def size_of(residual: np.ndarray) -> float:
        return float(np.log10(np.clip(np.abs(residual).max(axis=1), 1e-6, 1e3)).mean())

    offset, residual = np.zeros(size), remains(np.zeros(size))
    wrong = np.abs(residual).max(axis=1) > CLOSE
    if not np.isfinite(residual).all() or not wrong.any():
        return None
    for _ in range(8):
        slopes = np.stack([(remains(offset + step[j] * _unit(j, size)) - residual) / step[j] for j in range(size)], -1)
        weight = 1.0 / np.maximum(np.abs(residual).max(axis=1), 1e-4)
        weight = np.sqrt(weight)[:, None]
        left = (slopes * scale * weight[:, :, None]).reshape(-1, size)
        right = -(residual * weight).ravel()
        usable = np.isfinite(left).all(axis=1) & np.isfinite(right)
        change = scale * np.linalg.lstsq(left[usable], right[usable], rcond=1e-7)[0]
        for damping in (1.0, 0.5, 0.2, 0.05):
            trial = remains(offset + damping * change)
            if size_of(trial) < size_of(residual) - 1e-3:
                offset, residual = offset + damping * change, trial
                break
        else:
            break
    offset = np.where(np.abs(offset) > CLOSE * record.observation.std(axis=0), offset, 0.0)
    error = np.abs(remains(offset)).max(axis=1)
    # Offsets also absorb some of what other physics does; they count only where most of the wrong steps come out right.
    return offset if offset.any() and np.median(error[wrong]) <= CLOSE else None


def _unit(j: int, size: int) -> np.ndarray:
    return (np.arange(size) == j).astype(np.float64)


def _offset_words(simulator: Simulator, offset: np.ndarray) -> str:
    names = simulator.names()
    return ", ".join(
        f"entry {i}{f' ({names[i]})' if names[i] else ''} by {offset[i]:+.4g}" for i in np.flatnonzero(offset)
    )


# --- Other environments ---


def _other_environments(
    environment_id: str, simulator: Simulator, stack: ExitStack, seed: int
) -> Iterator[tuple[str, Simulator]]:
    """Other versions of the same robot with the same sizes, and other frame skips of this one."""
    for other in other_versions(environment_id):
        made = stack.enter_context(closing(_make_quietly(other)))
        yield f"the data are from another version of the environment, {other}", probe(made, seed)
    own = getattr(simulator.environment.unwrapped, "frame_skip", None)
    for skip in (1, 2, 3, 4, 5, 8, 10):
        if own is not None and skip != own:
            made: Any = stack.enter_context(closing(_make_quietly(environment_id)))
            made.reset(seed=seed)
            made.unwrapped.frame_skip = skip
            words = f"the data were recorded with a frame skip of {skip}, and the environment has {own}"
            yield words, replace(simulator, environment=made)


def other_versions(environment_id: str) -> list[str]:
    """Ids of the same name with another version number that can be made and have the same sizes."""
    import gymnasium

    spec = environment_spec(environment_id)
    name = re.sub(r"-v\d+$", "", environment_id)
    fitting = []
    for other in gymnasium.registry:
        if other == environment_id or re.sub(r"-v\d+$", "", other) != name:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                sizes = environment_spec(other)
        except UserError:  # it ran on mujoco-py
            continue
        if sizes[:2] == spec[:2]:
            fitting.append(other)
    return fitting


def _make_quietly(environment_id: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_environment(environment_id)


def _versions(case: Case, ends: np.ndarray, environment_id: str, stack: ExitStack, seed: int) -> list[dict[str, Any]]:
    """How the other versions of the environment do on some of the rows and on terminal ones."""
    found = []
    for other in other_versions(environment_id):
        simulator = probe(stack.enter_context(closing(_make_quietly(other))), seed)
        rng = np.random.default_rng(seed)
        numbers: dict[str, Any] = {"environment": other, "reward_at_terminals": None}
        for names, rows in (
            (("agree", "reward"), _spread(case.rows, 300)),
            (("", "reward_at_terminals"), _spread(ends, 100)),
        ):
            if len(rows):
                shares = (
                    float(x.mean()) for x in agreement(simulator.predict(case.record, rows, rng), case.record, rows)
                )
                numbers |= dict(zip(names, shares, strict=True))
        numbers.pop("", None)
        found.append(numbers)
    return found


# --- Faults of rewards and ends ---


def _reward_faults(
    case: Case, predicted: Prediction, agree: np.ndarray, ends: np.ndarray, at_ends: Prediction, slack: float
) -> list[str]:
    """What is wrong with the rewards, in words; judged where the steps agree, unless hardly any do.

    `slack` multiplies what rounding may explain.
    """
    known = agree.sum() >= FEWEST  # otherwise only a law that nearly all rewards obey is named
    judged = (agree if known else np.ones_like(agree)) & ~case.record.terminal[case.rows]
    if judged.sum() < FEWEST:
        return []
    rows, reward = case.rows[judged], predicted.reward[judged]
    tolerance = slack * predicted.reward_tolerance(case.record.reward[case.rows])[judged]
    stored = case.record.reward[rows].astype(np.float64)

    def agrees(with_what: np.ndarray) -> float:
        return float((np.abs(reward - with_what) <= tolerance).mean())

    if agrees(stored) >= FITS:
        if not known:
            return []
        off = case.record.reward[ends] - at_ends.reward
        within = np.abs(off) <= slack * at_ends.reward_tolerance(case.record.reward[ends])
        if not len(ends) or within.mean() >= 0.9:
            return []
        return [
            f"rewards of terminal rows differ from the simulator's by {np.median(off):+.3g} (median), others agree: "
            "versions of an environment differ in what they pay at the end (Gymnasium's v4 of Hopper and Walker2d pays "
            "the healthy reward there, v5 does not)"
        ]
    if (stored == stored[0]).all():
        return [f"rewards are all the same ({stored[0]:g}), those of the simulator are not"]
    inside = ~case.record.end[rows[:, None] + np.arange(-1, 2)].any(axis=1)
    for offset, words in ((1, "after"), (-1, "before")):
        other = case.record.reward[rows + offset]
        if (np.abs(reward - other) <= tolerance)[inside].mean() > 0.9:
            return [f"rewards are off by one: the reward of a step is stored in the row {words} it"]
    box: Any = case.simulator.environment.action_space
    clipped = case.record._replace(action=np.clip(case.record.action, box.low, box.high))
    if (clipped.action != case.record.action).any():
        shares = agreement(case.simulator.predict(clipped, rows, np.random.default_rng(0)), clipped, rows)[1]
        if shares.mean() >= FITS:
            return ["rewards count actions as cut to the environment's box, though they are stored uncut"]
    factor, constant, share = _affine(reward, stored, tolerance)
    if share >= 0.95:
        parts = [f"multiplied by {factor:.6g}"] * (abs(factor - 1) > 1e-4)
        parts += [f"shifted by {constant:+.6g}"] * (abs(constant) > 1e-4)
        if parts:
            return [f"rewards are {' and '.join(parts)}, measured against the simulator's"]
    if agree.mean() < FITS:  # what moves steps moves rewards
        return []
    off = np.abs(stored - reward)
    return [
        f"rewards differ by {np.median(off):.3g} in the median ({off.max():.3g} at most); no simple law explains it"
    ]


def _affine(reward: np.ndarray, stored: np.ndarray, tolerance: np.ndarray) -> tuple[float, float, float]:
    """a and b of stored = a reward + b, fitted to the steps that follow it best, and the share that does."""
    kept = np.ones(len(reward), bool)
    factor, constant = 1.0, 0.0
    for _ in range(10):
        if np.ptp(reward[kept]) > 0:
            left = np.stack([reward[kept], np.ones(kept.sum())], axis=1)
            factor, constant = (float(x) for x in np.linalg.lstsq(left, stored[kept])[0])
        else:
            factor, constant = 1.0, float(np.median(stored - reward))
        off = np.abs(stored - factor * reward - constant)
        kept = off <= np.quantile(off, 0.8)
    rounding = ULPS * ulp(stored)
    return factor, constant, float((off <= 2 * abs(factor) * tolerance + rounding).mean())


def _terminal_faults(numbers: dict[str, Any], trusted: Any) -> list[str]:
    """`trusted`: enough steps agree for the simulator to be asked about ends."""
    faults = []
    if not (numbers["stored"] and trusted) and 0 < numbers["in_file"] == numbers["in_file_at_time_limit"]:
        faults.append(
            f"all {numbers['in_file']} terminals stand at the limit of {numbers['time_limit']} steps, and the "
            "simulator cannot be asked: they are probably timeouts"
        )
    if not trusted:
        return faults
    missing = numbers["stored"] - numbers["confirmed"]
    if numbers["at_time_limit"] and numbers["at_time_limit"] >= 0.8 * missing:
        faults.append(
            f"{numbers['at_time_limit']} of {numbers['stored']} terminals looked at stand at the time limit of "
            f"{numbers['time_limit']} steps, where the simulator goes on: they are timeouts, and as terminals they "
            "teach that the future is worth nothing"
        )
    elif missing > 0.02 * numbers["stored"]:
        faults.append(f"{missing} of {numbers['stored']} terminals looked at are no ends for the simulator")
    if numbers["ended_by_simulator"] > 0.01 * numbers["going_on"]:
        faults.append(
            f"the simulator ends at {numbers['ended_by_simulator']} of {numbers['going_on']} steps that are not "
            "terminal in the file"
        )
    return faults


# --- Words ---


def _state_words(simulator: Simulator, record: Record) -> str:
    full = full_states(simulator, record)
    if full.state is None:
        return "from the observation"
    when = "after the step of its row" if full.shift else "before the step of its row"
    return f"from the observation, and what it leaves out from infos/qpos and infos/qvel (recorded {when})"


def _list(words: list[str], most: int = 4) -> str:
    return ", ".join(words[:most]) + (f" and {len(words) - most} more" if len(words) > most else "")


def _cannot_judge(summary: dict[str, Any]) -> str:
    name = summary["environment"]
    if summary["own_steps_again"] >= FITS:
        return f"Cannot be judged: only {summary['judged']} of {summary['drawn']} drawn steps have a known state."
    again = max(summary["own_steps_again"], 0.0)
    return (
        f"Cannot be judged: the observation of {name} does not tell its state ({again:.0%} of the simulator's own "
        f"steps come out again). It leaves out {_list(summary['left_out']) or 'something beyond qpos and qvel'}, "
        "and the file does not hold it in infos/qpos and infos/qvel."
    )


def _verdict(summary: dict[str, Any]) -> str:
    name, step, reward, terminal = (summary[key] for key in ("environment", "step", "reward", "terminal"))
    shares = f"{step['agree']:.1%} of {summary['judged']:,} judged steps and {reward['agree']:.1%} of their rewards"
    if summary["fits"]:
        words = [f"The data fit {name}: {shares} agree within the rounding of float32."]
    else:
        words = [
            f"The data do not fit {name}: {shares} agree within the rounding of float32 (median error of a step "
            f"{step['median']:.2g} one-step changes)."
        ]
    if terminal["stored"]:
        words.append(f"{terminal['confirmed']} of {terminal['stored']} terminals looked at are confirmed.")
    for fault in summary["faults"]:
        words.append(f"Found: {fault}.")
    undone = summary["agree_when_repaired"] > step["agree"] + 0.01
    if undone:
        words.append(f"With that undone {summary['agree_when_repaired']:.1%} of the steps agree.")
    if summary["agree_when_repaired"] < FITS:
        rest = "No fault that is known here explains the rest" if undone else "No fault that is known here explains it"
        contact, free = step["agree_in_contact"], step["agree_without_contact"]
        if contact is not None and free is not None and free >= FITS and contact < FITS:
            words.append(
                f"{rest}, but steps without contact agree ({free:.1%}) and those in contact do not ({contact:.1%}): "
                "other friction, or another version of MuJoCo, whose contacts differ."
            )
        else:
            words.append(f"{rest}: other physics, another build of the simulator, noise, or several faults at once.")
    same = [version["environment"] for version in summary["versions"] if _as_good(version, summary)]
    if same:
        told = "On these steps {} cannot be told from it." if summary["fits"] else "All of it fits {}."
        words.append(told.format(_list(same)))
    return " ".join(words)


def _as_good(version: dict[str, Any], summary: dict[str, Any]) -> bool:
    at_terminals = version["reward_at_terminals"]
    return version["agree"] >= FITS and version["reward"] >= FITS and (at_terminals is None or at_terminals >= 0.9)
