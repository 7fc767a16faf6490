"""A simulator that can be put into the state of a stored row and asked for one step.

Nothing is known beforehand about any robot. `probe` lets the simulator run, and compares what it returns with the state
inside: an entry of the observation that always equals a coordinate of the state tells that coordinate. Then
the simulator is put back into the observations of a roll-out of its own: only where that gives the same steps again can
the steps of a file be judged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diffcps.types import UserError

if TYPE_CHECKING:
    import gymnasium

RESETS, PROBES = 8, 25
"""The probe: so many episodes of so many steps with random actions."""
BOOST = 10.0
"""Standard deviation of the random factor on the velocities in half of the probes: it shows where they are clipped."""
FITS = 0.99
"""Data fit a simulator, and a simulator fits its own roll-out, where at least this share of steps agrees."""
ULPS = 4.0
"""A step agrees when its error is at most this many times what rounding makes of it (see `Prediction.tolerance`)."""
TRIALS = 2
"""How often the state is moved by rounding to see what one step makes of it."""
JOINT_PARTS = {
    ("position", 0): ("x", "y", "z", "qw", "qx", "qy", "qz"),
    ("velocity", 0): ("x", "y", "z", "turn x", "turn y", "turn z"),
    ("position", 1): ("qw", "qx", "qy", "qz"),
    ("velocity", 1): ("turn x", "turn y", "turn z"),
}
"""Names of the coordinates of MuJoCo's free (0) and ball (1) joints."""


class Record(NamedTuple):
    """Stored transitions, every array with one row per step, in the units of the environment."""

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_observation: np.ndarray
    terminal: np.ndarray
    end: np.ndarray
    """The row ends an episode (terminal or not): (n,) bool."""
    infos: Mapping[str, np.ndarray]
    """What the file holds of the simulator's state at the row, such as qpos and qvel: (n, size) each."""
    scale: np.ndarray
    """(obs,): standard deviation of the change in one step, the unit of errors; for an entry that never changes, 1."""
    goal: np.ndarray | None = None
    """Where the rewards have the goal (2,), for an environment that draws its own at a reset."""


class Layout(NamedTuple):
    """Which numbers of an observation are which coordinates of the simulator's state."""

    direct: np.ndarray
    """(k, 2) int: entry of the observation, coordinate of the state."""
    angles: np.ndarray
    """(m, 3) int: entries that hold cosine and sine, coordinate of the state."""
    clip: np.ndarray
    """(obs,): the size at which an entry is cut off; infinite where it is not."""
    hidden: np.ndarray
    """Coordinates that no entry tells."""
    fill: np.ndarray
    """(state,): what hidden coordinates are set to: the constant that they keep, otherwise 0 (a root's place)."""


class Prediction(NamedTuple):
    """One step of the simulator from each of n stored rows."""

    next_observation: np.ndarray
    reward: np.ndarray
    terminal: np.ndarray
    contact: np.ndarray
    """Whether anything touched during the step (False without MuJoCo)."""
    sensitivity: np.ndarray
    """(n, obs): how far the next observation moves when the state moves by one unit in the last place of float32."""
    reward_sensitivity: np.ndarray

    def tolerance(self, stored: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """(n,): the largest error, over entries and in units of `scale` (obs,), that float32 can explain.

        Both ends of a step are stored in float32. Rounding the first moves the result by what `sensitivity` has
        measured, much at the moment of a contact, little elsewhere; rounding the last adds half a unit in its last
        place. The largest over the entries is taken, because two random directions say little about a single one.
        """
        moved = np.nan_to_num(self.sensitivity / scale, nan=np.inf).max(axis=1)
        return ULPS * (moved + (ulp(stored) / scale).max(axis=1))

    def reward_tolerance(self, stored: np.ndarray) -> np.ndarray:
        """(n,): the same for rewards, in their own units; at least what is usual, as two directions may miss it."""
        usual = np.median(self.reward_sensitivity) if len(self.reward_sensitivity) else 0.0
        return ULPS * (np.maximum(self.reward_sensitivity, usual) + ulp(np.maximum(np.abs(stored), 0.1)))


def ulp(value: np.ndarray) -> np.ndarray:
    """The unit in the last place of float32 at each number, as float64."""
    return np.spacing(np.abs(value).astype(np.float32)).astype(np.float64)


@dataclass(frozen=True)
class Simulator:
    """An environment with what is known of its state. Make one with `probe`."""

    environment: gymnasium.Env
    layout: Layout
    run_in: bool = False
    """Whether a step starts with the step before: some rewards are made of quantities that lag behind the state."""
    placed: float = 1.0
    """Share of the steps of its own roll-out that it gives again from the observations alone."""

    def state(self, observation: np.ndarray, hidden: np.ndarray | None = None) -> np.ndarray:
        """The state (state,) float64 behind an observation (obs,); `hidden` gives what the observation leaves out."""
        layout = self.layout
        state = (layout.fill if hidden is None else hidden).copy()
        told = layout.direct
        if hidden is not None:  # a stored velocity is better than one cut off
            told = told[np.abs(observation[told[:, 0]]) < _edge(layout.clip[told[:, 0]])]
        state[told[:, 1]] = observation[told[:, 0]]
        for cosine, sine, coordinate in layout.angles:
            state[coordinate] = np.arctan2(observation[sine], observation[cosine])
        return state

    def cut(self, observation: np.ndarray) -> np.ndarray:
        """Whether an observation "n obs" has an entry at its clip, so that the state is unknown: (n,) bool."""
        return np.asarray((np.abs(observation) >= _edge(self.layout.clip)).any(axis=1))

    def hidden_names(self) -> list[str]:
        """The coordinates that the observation leaves out, in words."""
        return [coordinate_name(self.environment, int(i)) for i in self.layout.hidden]

    def names(self) -> list[str]:
        """What each entry of the observation is, in words where that is known: (obs,)."""
        told = {int(entry): coordinate_name(self.environment, int(i)) for entry, i in self.layout.direct}
        for cosine, sine, i in self.layout.angles:
            name = coordinate_name(self.environment, int(i))
            told |= {int(cosine): f"cos {name}", int(sine): f"sin {name}"}
        return [told.get(i, "") for i in range(len(self.layout.clip))]

    def predict(
        self,
        record: Record,
        rows: np.ndarray,
        rng: np.random.Generator | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> Prediction:
        """What one step gives from each of `rows`. Sensitivities are measured with `rng`, and zero without.

        `tick` is called after every row.
        """
        full = full_states(self, record)
        if record.goal is not None:
            inner: Any = self.environment.unwrapped
            inner.goal = record.goal
        results = []
        with quiet():
            for row in rows.tolist():
                observation = record.observation[row].astype(np.float64)
                base = self._step(record, row, observation, full)
                moved, moved_reward = np.zeros_like(base[0]), 0.0
                for _ in range(0 if rng is None else TRIALS):
                    signs = rng.choice([-1.0, 1.0], len(observation))  # pyright: ignore[reportOptionalMemberAccess]
                    trial = self._step(record, row, observation + signs * ulp(observation), full)
                    moved = np.maximum(moved, np.abs(trial[0] - base[0]))
                    moved_reward = max(moved_reward, abs(trial[1] - base[1]))
                results.append((*base, moved, moved_reward))
                tick()
        if not results:
            none = np.zeros(0)
            nothing = np.zeros((0, len(record.scale)))
            return Prediction(nothing, none, none > 0, none > 0, nothing, none)
        return Prediction(*(np.asarray(column) for column in zip(*results, strict=True)))

    def _step(
        self, record: Record, row: int, observation: np.ndarray, full: FullStates
    ) -> tuple[np.ndarray, float, bool, bool]:
        environment, now = self.environment, full.at(row)
        if self.run_in and row > 0 and not record.end[row - 1] and not self.cut(record.observation[row - 1 : row])[0]:
            before = self.state(record.observation[row - 1].astype(np.float64), full.at(row - 1))
            _set_state(environment, before, full.extra_at(row - 1))
            environment.step(_action(environment, record.action[row - 1]))
            state = get_state(environment) if now is None else now
            _set_coordinates(environment, self.state(observation, state))
        else:
            _set_state(environment, self.state(observation, now), full.extra_at(row))
        with contacts() as touches:
            after, reward, terminated, _, _ = environment.step(_action(environment, record.action[row]))
        return np.asarray(after, np.float64), float(reward), bool(terminated), any(touches)


class FullStates(NamedTuple):
    """What a file holds of the simulator's state itself."""

    state: np.ndarray | None
    """(n, state) in the order of the rows of the record, NaN where it is not known; None: nothing is stored."""
    extra: list[dict[str, np.ndarray]] | None
    """Other things that the environment's `set_env_state` takes, by row."""
    shift: int
    """0: recorded before the step of its row, 1: after it."""

    def at(self, row: int) -> np.ndarray | None:
        if self.state is None or np.isnan(self.state[row]).any():
            return None
        return self.state[row]

    def extra_at(self, row: int) -> dict[str, np.ndarray]:
        return {} if self.extra is None else self.extra[row]


def full_states(simulator: Simulator, record: Record) -> FullStates:
    """The stored states, brought to the row whose step starts there.

    D4RL's locomotion files hold `infos/qpos` and `infos/qvel` before the step and its AntMaze files after it; which it
    is shows in the observations. States that agree with neither are not used.
    """
    none = FullStates(None, None, 0)
    if not {"qpos", "qvel"} <= record.infos.keys():
        return none
    stored = np.concatenate([record.infos["qpos"], record.infos["qvel"]], axis=1).astype(np.float64)
    if stored.shape != (len(record.action), len(simulator.layout.fill)):
        return none
    told = simulator.layout.direct
    if not len(told):
        return none
    sample = np.unique(np.linspace(0, len(stored) - 1, 200).astype(int))
    for shift, observation in ((0, record.observation), (1, record.next_observation)):
        seen, inside = observation[sample][:, told[:, 0]], stored[sample][:, told[:, 1]]
        bound = simulator.layout.clip[told[:, 0]]
        if (np.abs(np.clip(inside, -bound, bound) - seen) <= 1e-5 * (1 + np.abs(seen))).all(axis=1).mean() > 0.9:
            if shift == 0:
                return FullStates(stored, _extra(simulator.environment, record), shift)
            starts = np.append(True, record.end[:-1])
            return FullStates(np.where(starts[:, None], np.nan, np.roll(stored, 1, axis=0)), None, shift)
    return none


def probe(environment: gymnasium.Env, seed: int = 0) -> Simulator:
    """Finds out how observations tell the state of `environment`, and whether that is enough.

    Raises `UserError` where the environment has no state that can be set.
    """
    environment.reset(seed=seed)
    if get_state(environment) is None:
        raise UserError(
            f"environment {_id(environment)} has no state that could be set (neither MuJoCo's qpos and qvel nor "
            "`state`), so that its steps cannot be compared with stored ones"
        )
    layout = _layout(*_probes(environment, np.random.default_rng(seed), seed))
    record = _own_record(environment, seed)
    inner = np.flatnonzero(~np.append(True, record.end[:-1]))
    best = Simulator(environment, layout, placed=-1.0)
    for run_in in (False, True):
        candidate = replace(best, run_in=run_in)
        rows = inner[~candidate.cut(record.observation[inner])]
        if not len(rows):
            return replace(best, placed=0.0)
        agree, rewards = agreement(candidate.predict(record, rows, np.random.default_rng(seed)), record, rows)
        if min(agree.mean(), rewards.mean()) >= FITS:
            return replace(candidate, placed=float(agree.mean()))
        if agree.mean() > best.placed:
            best = replace(candidate, placed=float(agree.mean()))
    return best


def agreement(predicted: Prediction, record: Record, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether the next observation and the reward of each of `rows` agree within rounding: (n,) bool each."""
    stored, reward = record.next_observation[rows], record.reward[rows]
    agree = row_error(predicted, record, rows) <= predicted.tolerance(stored, record.scale)
    return agree, np.abs(predicted.reward - reward) <= predicted.reward_tolerance(reward)


def row_error(predicted: Prediction, record: Record, rows: np.ndarray) -> np.ndarray:
    """The largest error of each row, over the entries of the observation and in one-step changes: (n,)."""
    error = np.abs(predicted.next_observation - record.next_observation[rows]) / record.scale
    return np.nan_to_num(error, nan=np.inf).max(axis=1)


def step_scale(observation: np.ndarray, next_observation: np.ndarray) -> np.ndarray:
    """`Record.scale` of some transitions; rows without a next observation (NaN) are left out."""
    scale = np.nanstd(next_observation.astype(np.float64) - observation, axis=0)
    return np.where(scale > 1e-7 * (1.0 + np.abs(observation).max(axis=0)), scale, 1.0)


def get_state(environment: gymnasium.Env) -> np.ndarray | None:
    """qpos and qvel of a MuJoCo environment, `state` of a classic one, one after the other; None without either."""
    inner: Any = environment.unwrapped
    if hasattr(inner, "data") and hasattr(inner, "set_state"):
        return np.concatenate([inner.data.qpos.ravel(), inner.data.qvel.ravel()]).astype(np.float64)
    state = getattr(inner, "state", None)
    return None if state is None else np.asarray(state, np.float64).ravel().copy()


def coordinate_name(environment: gymnasium.Env, coordinate: int) -> str:
    """`velocity rootx`: the joint that a coordinate of the state belongs to."""
    inner: Any = environment.unwrapped
    if not hasattr(inner, "model"):
        return f"state {coordinate}"
    model, positions = inner.model, inner.model.nq
    kind, address, index = ("position", model.jnt_qposadr, coordinate)
    if coordinate >= positions:
        kind, address, index = "velocity", model.jnt_dofadr, coordinate - positions
    joint = int(np.searchsorted(address, index, side="right")) - 1
    name = model.joint(joint).name or f"joint {joint}"
    parts = JOINT_PARTS.get((kind, int(model.jnt_type[joint])))
    return f"{kind} {name}" + (f" {parts[index - int(address[joint])]}" if parts else "")


@contextmanager
def quiet() -> Iterator[None]:
    """MuJoCo's warnings about unstable states are dropped: wrong data may well lead into one."""
    try:
        import mujoco
    except ImportError:
        yield
        return
    previous = mujoco.get_mju_user_warning()  # pyright: ignore[reportAttributeAccessIssue]
    mujoco.set_mju_user_warning(lambda _: None)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        mujoco.set_mju_user_warning(previous)  # pyright: ignore[reportAttributeAccessIssue]


@contextmanager
def contacts() -> Iterator[list[bool]]:
    """A list that gets, at each stage of each of MuJoCo's steps, whether anything touches."""
    try:
        import mujoco
    except ImportError:
        yield []
        return
    touches: list[bool] = []
    previous = mujoco.get_mjcb_control()  # pyright: ignore[reportAttributeAccessIssue]
    mujoco.set_mjcb_control(lambda _, data: touches.append(data.ncon > 0))  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield touches
    finally:
        mujoco.set_mjcb_control(previous)  # pyright: ignore[reportAttributeAccessIssue]


def _edge(clip: np.ndarray) -> np.ndarray:
    return clip * (1 - 1e-6)


def _id(environment: gymnasium.Env) -> str:
    return environment.spec.id if environment.spec is not None else type(environment.unwrapped).__name__


def _action(environment: gymnasium.Env, action: np.ndarray) -> np.ndarray:
    return action.astype(environment.action_space.dtype)


def _set_state(environment: gymnasium.Env, state: np.ndarray, extra: Mapping[str, np.ndarray]) -> None:
    """Puts the simulator there, with no memory of where it was; `extra` is what else `set_env_state` takes."""
    inner: Any = environment.unwrapped
    if not hasattr(inner, "data"):
        inner.state = state.copy()
        return
    inner.data.qacc_warmstart[:] = 0.0
    qpos, qvel = state[: inner.model.nq], state[inner.model.nq :]
    if extra:
        inner.set_env_state({"qpos": qpos, "qvel": qvel, **extra})
    else:
        inner.set_state(qpos, qvel)


def _set_coordinates(environment: gymnasium.Env, state: np.ndarray) -> None:
    """Corrects the state in the middle of a roll-out: what the last step has left in the simulator stays."""
    inner: Any = environment.unwrapped
    if not hasattr(inner, "data"):
        inner.state = state.copy()
        return
    inner.data.qpos[:], inner.data.qvel[:] = state[: inner.model.nq], state[inner.model.nq :]


def _extra(environment: gymnasium.Env, record: Record) -> list[dict[str, np.ndarray]] | None:
    """What `set_env_state` wants besides qpos and qvel (a door's place), where the file holds all of it."""
    inner: Any = environment.unwrapped
    if not hasattr(inner, "get_env_state"):
        return None
    keys = [key for key in inner.get_env_state() if key not in ("qpos", "qvel")]
    if not keys or not all(key in record.infos for key in keys):
        return None
    columns = [record.infos[key].astype(np.float64) for key in keys]
    return [dict(zip(keys, values, strict=True)) for values in zip(*columns, strict=True)]


def _probes(
    environment: gymnasium.Env, rng: np.random.Generator, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States (p, state), the observations (p, obs) made of them, and which probes are as nature made them (p,) bool."""
    environment.action_space.seed(seed)
    states, observations, natural = [], [], []
    with quiet():
        for episode in range(RESETS):
            boosted = episode % 2 == 1
            environment.reset(seed=seed + episode)
            for _ in range(PROBES):
                if boosted:
                    state, inner = get_state(environment), environment.unwrapped
                    velocities = getattr(getattr(inner, "model", None), "nv", 0)
                    assert state is not None
                    if velocities:
                        state[-velocities:] *= BOOST * rng.standard_normal(velocities)
                        state[-velocities:] = np.clip(state[-velocities:], -50.0, 50.0)
                        _set_coordinates(environment, state)
                observation, *_ = environment.step(environment.action_space.sample())
                states.append(get_state(environment))
                observations.append(np.asarray(observation, np.float64))
                natural.append(not boosted)
    return np.asarray(states), np.asarray(observations), np.asarray(natural)


def _layout(states: np.ndarray, observations: np.ndarray, natural: np.ndarray) -> Layout:
    finite = np.isfinite(states).all(axis=1) & np.isfinite(observations).all(axis=1)
    states, observations, natural = states[finite], observations[finite], natural[finite]
    largest = np.abs(observations).max(axis=0)
    clip = np.full(len(largest), np.inf)
    direct, angles = [], []
    moves = observations.std(axis=0) > 0

    def entries(feature: np.ndarray) -> np.ndarray:
        """Entries of the observation that equal a number of each probe (p,), cut off at the largest that is seen."""
        told = np.clip(feature[:, None], -largest, largest)
        return np.flatnonzero(moves & (np.abs(told - observations) <= 5e-7 * np.abs(told)).all(axis=0))

    for coordinate in range(states.shape[1]):
        value = states[:, coordinate]
        if value.std() == 0:
            continue
        if len(found := entries(value)):
            direct.append((found[0], coordinate))
            if np.abs(value).max() > largest[found[0]] * (1 + 1e-6):
                clip[found[0]] = largest[found[0]]
        elif len(cosine := entries(np.cos(value))) and len(sine := entries(np.sin(value))):
            angles.append((cosine[0], sine[0], coordinate))
    known = {coordinate for *_, coordinate in direct + angles}
    hidden = np.asarray([i for i in range(states.shape[1]) if i not in known], int)
    constant = states[natural].std(axis=0) == 0
    return Layout(
        np.asarray(direct, int).reshape(-1, 2),
        np.asarray(angles, int).reshape(-1, 3),
        clip,
        hidden,
        np.where(constant, states[natural][0], 0.0),
    )


def _own_record(environment: gymnasium.Env, seed: int) -> Record:
    """A short roll-out with random actions, as a file would hold it."""
    rows, ends = [], []
    environment.action_space.seed(seed + 1)
    for episode in range(RESETS):
        observation, _ = environment.reset(seed=seed + RESETS + episode)
        for step in range(PROBES):
            action = environment.action_space.sample()
            after, reward, terminated, truncated, _ = environment.step(action)
            rows.append((observation, action, reward, after, terminated))
            ends.append(bool(terminated or truncated or step == PROBES - 1))
            observation = after
            if ends[-1]:
                break
    columns = [np.asarray(column, np.float32) for column in zip(*rows, strict=True)]
    scale = step_scale(columns[0], columns[3])
    return Record(*columns[:4], terminal=columns[4] == 1, end=np.asarray(ends), infos={}, scale=scale)
