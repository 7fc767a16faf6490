"""Does this data fit this simulator? Stored steps are taken again, and what differs is given a name.

`check_simulator` puts the simulator into stored states, applies the stored actions and compares. Where the answers
differ, `simulator_faults` looks for a fault that explains it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np

from diffcps.data.checks import check_rows
from diffcps.data.load import read_raw
from diffcps.data.rows import to_dataset
from diffcps.envs.ant_maze import SUCCESS_RADIUS, AntMaze
from diffcps.envs.make import environment_spec, make_environment
from diffcps.simulator.faults import (
    CLOSE,
    FEWEST,
    Case,
    Repaired,
    normalised,
    reward_faults,
    step_faults,
    terminal_faults,
    versions_beside,
)
from diffcps.simulator.simulator import (
    FITS,
    Prediction,
    Record,
    Simulator,
    agreement,
    full_states,
    probe,
    row_error,
    step_scale,
)
from diffcps.types import DatasetInfo, UserError

GOAL_ROWS, GOAL_STEPS = 50_000, 1000
"""A goal is sought with so many rows and corrections at most."""


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
        if isinstance(simulator.environment.unwrapped, AntMaze):
            everything = everything._replace(goal=goal_of(everything))
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
            "goal": None if everything.goal is None else everything.goal.tolist(),
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
            if words := normalised(everything):
                misfits = [words]
            else:
                misfits, repaired = step_faults(case, arrays, stack, environment_id, seed)
        if misfits:
            case = Case(repaired.simulator, repaired.record, case.rows)
            predicted = case.simulator.predict(case.record, case.rows, rng)
            at_ends = case.simulator.predict(case.record, ends, rng)
        agree, _ = agreement(predicted, case.record, case.rows)
        summary["agree_when_repaired"] = float(agree.mean())
        slack = 10.0 if misfits else 1.0  # an offset that was found has an error of its own
        misfits += reward_faults(case, predicted, agree, ends, at_ends, slack)
        limit = environment_spec(environment_id).max_steps
        summary["terminal"] = _terminals(case, predicted, ends, at_ends, lengths, limit)
        every = np.flatnonzero(everything.terminal)
        at_limit = int((_episode_lengths(everything, every) == limit).sum())
        summary["terminal"] |= {"in_file": len(every), "in_file_at_time_limit": at_limit}
        versions = versions_beside(Case(simulator, record, rows[: len(chosen)]), ends, environment_id, stack, seed)
    share, rewards = summary["step"]["agree"], summary["reward"]["agree"]
    summary |= {
        "fits": bool(share >= FITS and rewards >= FITS and not misfits),
        "faults": misfits + terminal_faults(summary["terminal"], agree.mean() >= 0.5) + remarks,
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
        widest = float(np.nanmax(np.abs(raw.action))) + 1.0  # NaN and infinity are for `check_rows` to refuse
        if np.isfinite(widest):
            raw = raw._replace(action_low=np.asarray(-widest), action_high=np.asarray(widest))
    raw = check_rows(raw, source)
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


def goal_of(record: Record) -> np.ndarray | None:
    """The goal (2,) of AntMaze data, one for the whole file: a reward says whether a step ends within its radius.

    Starts in the middle of the rewarded positions, and again and again puts the position right that contradicts most.
    None where no step, or every step, is rewarded.
    """
    known = np.flatnonzero(~np.isnan(record.next_observation).any(axis=1))
    known = known[:: -(-len(known) // GOAL_ROWS) or 1]
    xy, reward = record.next_observation[known, :2].astype(np.float64), record.reward[known]
    inside = reward > reward.min(initial=np.inf)
    if not inside.any():
        return None
    goal = xy[inside].mean(axis=0)
    for _ in range(GOAL_STEPS):
        way = xy - goal
        distance = np.linalg.norm(way, axis=1)
        off = np.where(inside, distance - SUCCESS_RADIUS, SUCCESS_RADIUS - distance)
        worst = off.argmax()
        if off[worst] <= 0.0:
            break
        outwards = way[worst] / max(distance[worst], 1e-9)
        goal = goal + 0.5 * off[worst] * (outwards if inside[worst] else -outwards)
    return goal


def _windows(record: Record, rows: np.ndarray) -> tuple[Record, np.ndarray]:
    """The two rows before and after each of `rows` and the row itself, as a record, and where the rows are in it."""
    around = np.clip(rows[:, None] + np.arange(-2, 3), 0, len(record.reward) - 1)
    end = record.end[around]
    end[:, -1] = True
    flat = around.ravel()
    arrays = [value[flat] for value in record[:5]]
    infos = {name: value[flat] for name, value in record.infos.items()}
    windows = Record(*arrays, end=end.ravel(), infos=infos, scale=record.scale, goal=record.goal)
    return windows, 5 * np.arange(len(rows)) + 2


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
            "close_in_contact": _mean(arrays["row_error"][arrays["contact"]] <= CLOSE),
            "close_without_contact": _mean(arrays["row_error"][~arrays["contact"]] <= CLOSE),
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
        contact, free = step["close_in_contact"], step["close_without_contact"]
        if contact is not None and free is not None and free >= FITS and contact < FITS:
            words.append(
                f"{rest}, but steps in which nothing touches come within a thousandth of a one-step change "
                f"({free:.1%}), and those with a contact do not ({contact:.1%}): other friction, or another version of "
                "MuJoCo, whose contacts differ."
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
