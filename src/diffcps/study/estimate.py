"""How long a study will take on this machine, by a short measurement of what its runs do, on made-up data."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from diffcps.algorithms import ALGORITHMS
from diffcps.envs.make import boxes, make_environment, time_limit
from diffcps.records.environment import chosen_environment
from diffcps.records.fields import field_types, values_of
from diffcps.run.evaluate import DIAGNOSE_ROWS
from diffcps.study.plan import Cell
from diffcps.tasks.catalogue import find_task
from diffcps.training.members import Program, a_device_per_core, expand
from diffcps.training.precision import in_precision
from diffcps.training.timing import ROWS, made_up_data, seconds_per_update, time_stages
from diffcps.types import EnvironmentSpec, NetObservation, Real, Spec, Tree, UserError

TYPICAL_ROWS = 1_000_000
"""Of a task whose catalogue entry does not say how many it has."""
STEPS = 10
"""Of an episode that are timed."""


class RunSizes(NamedTuple):
    """What the time of a run depends on beside its method."""

    spec: Spec
    rows: int
    environment: EnvironmentSpec | None


class Seconds(NamedTuple):
    """Of all members of a run together, alone on the machine."""

    per_update: float
    training: float
    """Compilation and what stages begin with included."""
    evaluations: float
    """At most, with episodes that last to their limit; the new ones at the end are not among them."""


class CellTime(NamedTuple):
    """A run and its time, or why it is not known."""

    cell: Cell
    seconds: Seconds | None
    why_not: str = ""


def times_of(cells: Sequence[Cell]) -> Iterator[CellTime]:
    """The time of each run, in turn; runs of equal programs and sizes are measured once."""
    a_device_per_core()
    known: dict[object, Seconds] = {}
    for cell in cells:
        try:
            sizes = sizes_of(cell)
            key = (_shape_of(cell), sizes, cell.request.settings.updates)
            if key not in known:
                known[key] = measure(cell, sizes)
            yield CellTime(cell, known[key])
        except UserError as error:
            yield CellTime(cell, None, str(error))


def sizes_of(cell: Cell) -> RunSizes:
    """By the catalogue where the data are a task's own, else by the data, which are loaded. Raises `UserError`."""
    request, settings = cell.request, cell.request.settings
    if request.task is not None and request.source == request.task:
        task = find_task(request.task)
        spec, rows = Spec(task.observation_size, task.action_size), task.transitions or TYPICAL_ROWS
        of_data = EnvironmentSpec(task.environment)
    else:
        dataset = request.load()
        spec, rows, of_data = dataset.spec, dataset.size, dataset.info.environment
    environment = chosen_environment(settings.env, settings.env_kwargs, settings.max_episode_steps, of_data)
    return RunSizes(spec, rows, environment)


def measure(cell: Cell, sizes: RunSizes) -> Seconds:
    """Compiles the run's program and times some updates of each stage, a diagnosis and some steps of episodes."""
    request, settings = cell.request, cell.request.settings
    method, precision = ALGORITHMS[request.method], settings.precision
    steps = method.make(request.config, sizes.spec).episode_steps
    program = Program(
        lambda swept: in_precision(method.make(replace(request.config, **swept), sizes.spec), precision),
        expand(settings.seeds, request.sweep),
        made_up_data(sizes.spec, episode_steps=steps),
        settings.rows,
    )
    program.starts(settings.updates)
    stages, state = time_stages(program)
    per_update = seconds_per_update(stages)
    begins = sum(stage.count * stage.begin_seconds for stage in stages) * max(1.0, sizes.rows / ROWS)
    compilation = sum(stage.compile_seconds for stage in stages)
    count = -(-settings.updates // settings.eval_every) * (1 + len(settings.also_act))  # a further rule costs as much
    evaluations = count * _evaluation(program, state, sizes, settings.episodes)
    return Seconds(per_update, settings.updates * per_update + begins + compilation, evaluations)


def _shape_of(cell: Cell) -> object:
    """What decides which program a run is: all but the real-valued fields."""
    request, settings = cell.request, cell.request.settings
    types = field_types(type(request.config))
    fixed = tuple((name, value) for name, value in values_of(request.config).items() if types[name] != Real)
    how = settings.eval_every, settings.episodes, settings.also_act, settings.precision, settings.rows
    return request.method, fixed, cell.members, how


def _evaluation(program: Program, state: Tree, sizes: RunSizes, episodes: int) -> float:
    """Seconds of one evaluation: the diagnosis, and episodes to their limit."""
    rows = made_up_data(sizes.spec, DIAGNOSE_ROWS, program.episode_steps)
    program.diagnose(state, rows)
    started = time.perf_counter()
    program.diagnose(state, rows)
    diagnosis = time.perf_counter() - started
    if sizes.environment is None:
        return diagnosis
    shape = (len(program.members), episodes, sizes.spec.observation_size)
    observation = NetObservation(np.zeros(shape, np.float32))
    memory = program.begin_episodes(observation)
    seconds: list[float] = []
    for step in range(STEPS):
        started = time.perf_counter()
        action, memory = program.act_in_episodes(state, observation, memory, 0, step)
        jax.block_until_ready((action, memory))
        seconds.append(time.perf_counter() - started)
    limit, of_environment = _environment_step(sizes.environment)
    each = float(np.mean(seconds[STEPS // 2 :]))  # the first steps compile
    return diagnosis + limit * (each + shape[0] * episodes * of_environment)


def _environment_step(environment: EnvironmentSpec) -> tuple[int, float]:
    """The time limit of an episode, and the seconds of one step. Raises `UserError`."""
    with closing(make_environment(environment)) as made:
        limit = time_limit(made)
        if limit is None:
            raise UserError(f"environment {environment} has no time limit: --max-episode-steps gives it one")
        made.reset(seed=0)
        action = np.zeros(boxes(made).action.shape, np.float32)
        started, steps = time.perf_counter(), 0
        while steps < 10 * STEPS:
            _, _, terminated, truncated, _ = made.step(action)
            steps += 1
            if terminated or truncated:
                made.reset()
        return limit, (time.perf_counter() - started) / steps
