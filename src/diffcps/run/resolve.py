"""From what a person gave to the run that is meant: task, preset, stored run and flags become one request."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from diffcps.algorithms import ALGORITHMS
from diffcps.data.actions import Box
from diffcps.data.load import load
from diffcps.data.transforms import mean_and_std
from diffcps.envs.make import environment_sizes
from diffcps.presets import NO_PRESET, presets_of
from diffcps.readers.source import BUILTIN
from diffcps.records import fields
from diffcps.records.environment import chosen_environment
from diffcps.records.record import RunRecord
from diffcps.records.settings import Settings
from diffcps.run.start import Start
from diffcps.tasks.catalogue import Task, find_task
from diffcps.types import Configuration, Dataset, EnvironmentSpec, Reading, Real, UserError


@dataclass(frozen=True)
class Given:
    """What a person gave for a run, and nothing else: a default must contradict neither a preset nor a stored run."""

    fields: Mapping[str, object] = field(default_factory=dict[str, object])
    """Fields of the method's `Config`."""
    sweep: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    """Fields of `Settings`."""
    source: str | None = None
    """Which data: what `load_dataset` takes."""
    reading: Mapping[str, object] = field(default_factory=dict[str, object])
    """Fields of `Reading`."""


@dataclass(frozen=True)
class Request:
    """A run that is fully said."""

    method: str
    config: Configuration
    sweep: Mapping[str, tuple[float, ...]]
    settings: Settings
    source: str
    reading: Reading
    task: str | None
    preset: str | None
    """Name of the preset that was taken."""
    start: Start | None = None
    """The run whose weights it begins with."""

    def load(self) -> Dataset:
        """The data of the run; where `start` had its observations normalised, they are so by its numbers.

        Raises `UserError`.
        """
        known = None if self.start is None else mean_and_std(self.start.data)
        return load(self.source, self.reading, task=self.task, box_of=self._box_of, known=known)

    def _box_of(self, of_data: EnvironmentSpec | None) -> tuple[str, Box] | None:
        """Name and action box of the environment that scores the run; None where it has no bounds, or there is none."""
        settings = self.settings
        environment = chosen_environment(settings.env, settings.env_kwargs, settings.max_episode_steps, of_data)
        if environment is None:
            return None
        sizes = environment_sizes(environment)
        box = Box.of(sizes.action_low, sizes.action_high)
        return (str(environment), box) if np.isfinite(box).all() else None


def resolve(
    method: str,
    given: Given,
    task: str | None = None,
    preset: str | None = None,
    stored: RunRecord | None = None,
    start: Start | None = None,
) -> Request:
    """The run that is meant: the stored run (when resuming), else the task's data; then the preset, by default the
    task's own; then what was given. Later ones win. `preset` "none" leaves the task's out. Observations are normalised
    where those of `start` were.

    Pure but for the catalogue and the presets' files. Raises `UserError` for unknown names and bad values, and where
    the stored run is another method's or on another task.
    """
    kind = ALGORITHMS[method].Config
    if stored is None:
        purpose = None if task is None else find_task(task)
        base, sweep, settings, reading = {}, {}, {}, {}
        source = BUILTIN if purpose is None else purpose.id
    else:
        purpose = _stored_task(method, task, stored)
        base = {name: value for name, value in fields.values_of(stored.config).items() if name not in stored.sweep}
        sweep, settings = dict(stored.sweep), fields.values_of(stored.settings)
        source, reading = stored.dataset.source, fields.values_of(stored.dataset.reading)
    chosen = _preset_name(method, preset, purpose if stored is None else None)
    if chosen is not None:
        base |= presets_of(method)[chosen].fields
        reading["reward"] = presets_of(method)[chosen].reward
    if start is not None:
        reading["normalise_observation"] = _as_the_start_did(start, given.reading.get("normalise_observation"))
    sweep = {name: values for name, values in sweep.items() if name not in given.fields} | dict(given.sweep)
    check_sweep(kind, sweep)
    values = {**base, **given.fields} | {name: swept[0] for name, swept in sweep.items()}
    config, made = fields.build(kind, values), fields.build(Settings, settings | dict(given.settings))
    _check_rules(method, config, made.also_act)
    return Request(
        method=method,
        config=config,
        sweep=sweep,
        settings=made,
        source=source if given.source is None else given.source,
        reading=fields.build(Reading, reading | dict(given.reading)),
        task=None if purpose is None else purpose.id,
        preset=chosen,
        start=start,
    )


def _as_the_start_did(start: Start, given: object) -> bool:
    """Whether the start's observations were normalised. Raises `UserError` where something else was given."""
    normalised = start.data.observation_mean is not None
    if given not in (None, normalised):
        how = "normalised" if normalised else "taken as they are"
        raise UserError(
            f"{start.weights.run}: its observations were {how}, and its weights know them so: say nothing about the "
            "normalisation of the new data"
        )
    return normalised


def method_of(config: Configuration) -> str:
    """Name of the method whose `Config` this is. Raises `UserError`."""
    for name, method in ALGORITHMS.items():
        if isinstance(config, method.Config):
            return name
    raise UserError(f"{type(config).__name__} is no algorithm's Config: pass, say, diffcps.algorithms.diffcps.Config()")


def given_by(config: Configuration) -> dict[str, object]:
    """The fields of a dataclass that have another value than their default."""
    defaults = {found.name: found.default for found in dataclasses.fields(config)}
    return {name: value for name, value in fields.values_of(config).items() if value != defaults[name]}


def check_sweep(kind: type[Configuration], sweep: Mapping[str, tuple[float, ...]]) -> None:
    """Raises `UserError` unless every swept field is a real-valued one with values of its own."""
    known = fields.field_types(kind)
    for name, values in sweep.items():
        if name not in known:
            raise UserError(fields.unknown_name(name, known))
        if known[name] != Real:
            raise UserError(f"{name} cannot be swept: it shapes the program; only real-valued fields can be a list")
        if len(values) != len(set(values)) or not values:
            raise UserError(f"{name} is swept over {list(values)}: give each value once")
        for value in values:
            fields.build(kind, {name: value})


def _check_rules(method: str, config: Configuration, rules: tuple[str, ...]) -> None:
    """Raises `UserError` unless the further rules are other ones than its own that the method has."""
    known, own = fields.choices(type(config), "action_choice"), fields.values_of(config).get("action_choice")
    for rule in rules:
        if not known:
            raise UserError(f"{method} has one way to act: leave out also_act")
        if rule not in known:
            raise UserError(f"also_act names {rule}: {method} acts by {', '.join(known)}")
        if rule == own:
            raise UserError(f"also_act names {rule}, by which this run acts in any case: leave it out")
        if rules.count(rule) > 1:
            raise UserError(f"also_act names {rule} twice")


def _stored_task(method: str, task: str | None, stored: RunRecord) -> Task | None:
    if stored.algorithm != method:
        raise UserError(f"the folder holds a run of {stored.algorithm}, not of {method}")
    found = stored.dataset.task
    if task is not None and task != found:
        find_task(task)
        raise UserError(f"the folder holds a run on {found or 'no task'}, not on {task}")
    return None if found is None else find_task(found)


def _preset_name(method: str, name: str | None, task: Task | None) -> str | None:
    presets = presets_of(method)
    if name == NO_PRESET:
        return None
    if name is None:
        return task.preset if task is not None and task.preset in presets else None
    if name not in presets:
        raise UserError(fields.unknown_name(name, presets, "preset"))
    return name
