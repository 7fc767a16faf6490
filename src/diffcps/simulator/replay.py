"""A simulator that is put into the state of a stored row, asked for one step, and compared with what is stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from diffcps.envs.ant_maze import AntMaze
from diffcps.envs.quiet import mujoco_warnings
from diffcps.simulator.record import Record
from diffcps.simulator.state import contacts, coordinate_name, correct_state, get_state, more_state, set_state

if TYPE_CHECKING:
    import gymnasium

ULPS = 4.0
"""A step agrees when its error is at most this many times what rounding makes of it (see `Case.compare`)."""
TRIALS = 2
"""How often the state is moved by rounding to see what one step makes of it."""


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


class Step(NamedTuple):
    """What one step of the simulator gives."""

    next_observation: np.ndarray
    reward: float
    terminal: bool
    contact: bool


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


class Comparison(NamedTuple):
    """Stored steps beside those of the simulator; every array has one row per step."""

    error: np.ndarray
    """(n, obs): of the next observation, in one-step changes."""
    row_error: np.ndarray
    """(n,): the largest of them, infinite where one is not known."""
    tolerance: np.ndarray
    """(n,): the largest error that rounding explains."""
    agree: np.ndarray
    """(n,) bool: the next observation is the stored one within rounding."""
    reward: np.ndarray
    """(n,) float64, as stored."""
    simulated_reward: np.ndarray
    reward_tolerance: np.ndarray
    reward_agrees: np.ndarray
    terminal: np.ndarray
    """(n,) bool: the simulator ends the episode."""
    contact: np.ndarray
    """(n,) bool: anything touched during the step."""


def ulp(value: np.ndarray) -> np.ndarray:
    """The unit in the last place of float32 at each number, as float64."""
    return np.spacing(np.abs(value).astype(np.float32)).astype(np.float64)


@dataclass(frozen=True)
class Simulator:
    """An environment with what is known of its state. Make one with `diffcps.simulator.probe.probe`."""

    environment: gymnasium.Env
    layout: Layout
    run_in: bool = False
    """Whether a step starts with the step before: some rewards are made of quantities that lag behind the state."""
    reproduced: float = 1.0
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

    def clipped(self, observation: np.ndarray) -> np.ndarray:
        """Whether an observation "n obs" has an entry at its clip, so that the state is unknown: (n,) bool."""
        return np.asarray((np.abs(observation) >= _edge(self.layout.clip)).any(axis=1))

    def hidden_names(self) -> list[str]:
        """The coordinates that the observation leaves out."""
        return [coordinate_name(self.environment, int(i)) for i in self.layout.hidden]

    def names(self) -> list[str]:
        """What each entry of the observation is, empty where that is not known: (obs,)."""
        told = {int(entry): coordinate_name(self.environment, int(i)) for entry, i in self.layout.direct}
        for cosine, sine, i in self.layout.angles:
            name = coordinate_name(self.environment, int(i))
            told |= {int(cosine): f"cos {name}", int(sine): f"sin {name}"}
        return [told.get(i, "") for i in range(len(self.layout.clip))]

    def step(self, record: Record, row: int, observation: np.ndarray, full: FullStates) -> Step:
        """One step with the action of a row of `record`, from `observation` (obs,) and what `full` adds to it."""
        environment, now = self.environment, full.at(row)
        inside = self.run_in and row > 0 and not record.end[row - 1]
        if inside and not self.clipped(record.observation[row - 1 : row])[0]:
            before = self.state(record.observation[row - 1].astype(np.float64), full.at(row - 1))
            set_state(environment, before, full.more_at(row - 1))
            environment.step(_action(environment, record.action[row - 1]))
            state = get_state(environment) if now is None else now
            correct_state(environment, self.state(observation, state))
        else:
            set_state(environment, self.state(observation, now), full.more_at(row))
        with contacts() as touches:
            after, reward, terminated, _, _ = environment.step(_action(environment, record.action[row]))
        return Step(np.asarray(after, np.float64), float(reward), bool(terminated), any(touches))


class Case(NamedTuple):
    """A simulator, data, and the rows of them that it is asked for."""

    simulator: Simulator
    record: Record
    rows: np.ndarray

    def predict(self, rng: np.random.Generator | None = None, on_row: Callable[[], None] = lambda: None) -> Prediction:
        """What one step gives from each row. Sensitivities are measured with `rng`, and zero without.

        `on_row` is called after every row.
        """
        simulator, record, rows = self
        full, inner = full_states(simulator, record), simulator.environment.unwrapped
        if record.goal is not None and isinstance(inner, AntMaze):
            inner.goal = record.goal
        results = []
        with mujoco_warnings(lambda _: None):  # wrong data may well lead into an unstable state
            for row in rows.tolist():
                observation = record.observation[row].astype(np.float64)
                base = simulator.step(record, row, observation, full)
                moved, moved_reward = np.zeros_like(base.next_observation), 0.0
                signs = [] if rng is None else [rng.choice([-1.0, 1.0], len(observation)) for _ in range(TRIALS)]
                for sign in signs:
                    trial = simulator.step(record, row, observation + sign * ulp(observation), full)
                    moved = np.maximum(moved, np.abs(trial.next_observation - base.next_observation))
                    moved_reward = max(moved_reward, abs(trial.reward - base.reward))
                results.append((*base, moved, moved_reward))
                on_row()
        if not results:
            none, nothing = np.zeros(0), np.zeros((0, len(record.scale)))
            return Prediction(nothing, none, none > 0, none > 0, nothing, none)
        return Prediction(*(np.asarray(column) for column in zip(*results, strict=True)))

    def compare(self, rng: np.random.Generator | None = None, on_row: Callable[[], None] = lambda: None) -> Comparison:
        """The simulator's steps beside the stored ones; arguments as in `predict`.

        Both ends of a step are stored in float32. Rounding the first moves the result by what the sensitivity says,
        much at the moment of a contact, little elsewhere; rounding the last adds half a unit in its last place. The
        largest over the entries is taken, because two random directions say little about a single one. For rewards
        the sensitivity is at least what is usual, as two directions may miss it.
        """
        predicted, scale = self.predict(rng, on_row), self.record.scale
        stored, reward = self.record.next_observation[self.rows], self.record.reward[self.rows].astype(np.float64)
        error = np.abs(predicted.next_observation - stored) / scale
        row_error = np.nan_to_num(error, nan=np.inf).max(axis=1)
        moved = np.nan_to_num(predicted.sensitivity / scale, nan=np.inf).max(axis=1)
        tolerance = ULPS * (moved + (ulp(stored) / scale).max(axis=1))
        usual = np.median(predicted.reward_sensitivity) if len(self.rows) else 0.0
        reward_moved = np.maximum(predicted.reward_sensitivity, usual)
        reward_tolerance = ULPS * (reward_moved + ulp(np.maximum(np.abs(reward), 0.1)))
        return Comparison(
            error,
            row_error,
            tolerance,
            agree=row_error <= tolerance,
            reward=reward,
            simulated_reward=predicted.reward,
            reward_tolerance=reward_tolerance,
            reward_agrees=np.abs(predicted.reward - reward) <= reward_tolerance,
            terminal=predicted.terminal,
            contact=predicted.contact,
        )


class FullStates(NamedTuple):
    """What a file holds of the simulator's state itself."""

    state: np.ndarray | None
    """(n, state) in the order of the rows of the record, NaN where it is not known; None: nothing is stored."""
    more: list[dict[str, np.ndarray]] | None
    """Other things that the environment's `set_env_state` takes, by row."""
    shift: int
    """0: recorded before the step of its row, 1: after it."""

    def at(self, row: int) -> np.ndarray | None:
        """The state (state,) of a row, where it is known."""
        if self.state is None or np.isnan(self.state[row]).any():
            return None
        return self.state[row]

    def more_at(self, row: int) -> dict[str, np.ndarray]:
        """What `set_env_state` takes besides in a row; empty where nothing is stored."""
        return {} if self.more is None else self.more[row]


def full_states(simulator: Simulator, record: Record) -> FullStates:
    """The stored states, brought to the row whose step starts there.

    D4RL's locomotion files hold `infos/qpos` and `infos/qvel` before the step and its AntMaze files after it; which it
    is shows in the observations. States that agree with neither are not used.
    """
    none, told = FullStates(None, None, 0), simulator.layout.direct
    if not {"qpos", "qvel"} <= record.infos.keys() or not len(told):
        return none
    stored = np.concatenate([record.infos["qpos"], record.infos["qvel"]], axis=1).astype(np.float64)
    if stored.shape != (len(record.action), len(simulator.layout.fill)):
        return none
    sample = np.unique(np.linspace(0, len(stored) - 1, 200).astype(int))
    for shift, observation in ((0, record.observation), (1, record.next_observation)):
        seen, inside = observation[sample][:, told[:, 0]], stored[sample][:, told[:, 1]]
        bound = simulator.layout.clip[told[:, 0]]
        if (np.abs(np.clip(inside, -bound, bound) - seen) <= 1e-5 * (1 + np.abs(seen))).all(axis=1).mean() > 0.9:
            if shift == 0:
                return FullStates(stored, more_state(simulator.environment, record.infos), shift)
            starts = np.append(True, record.end[:-1])
            return FullStates(np.where(starts[:, None], np.nan, np.roll(stored, 1, axis=0)), None, shift)
    return none


def _edge(clip: np.ndarray) -> np.ndarray:
    return clip * (1 - 1e-6)


def _action(environment: gymnasium.Env, action: np.ndarray) -> np.ndarray:
    return action.astype(environment.action_space.dtype)
