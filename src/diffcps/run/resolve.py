"""From what a person gave to the run that is meant: task, preset, stored run and flags become one request."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from diffcps.algorithms import ALGORITHMS
from diffcps.data import load_dataset
from diffcps.data.load import BUILTIN
from diffcps.data.transforms import RewardTransform
from diffcps.presets import NO_PRESET, presets_of
from diffcps.run import fields
from diffcps.run.record import RunRecord
from diffcps.run.settings import Settings
from diffcps.run.start import Start
from diffcps.tasks.catalogue import Task, find_task
from diffcps.types import Configuration, Dataset, Real, UserError


@dataclass(frozen=True)
class DataRequest:
    """Which data, and what is done to them on the way in; None is what nobody has said."""

    source: str | None = None
    """What `load_dataset` takes."""
    reward: RewardTransform | None = None
    normalise_observation: bool | None = None

    def or_else(self, other: DataRequest) -> DataRequest:
        """What `other` says where this says nothing."""
        return DataRequest(
            other.source if self.source is None else self.source,
            other.reward if self.reward is None else self.reward,
            other.normalise_observation if self.normalise_observation is None else self.normalise_observation,
        )


@dataclass(frozen=True)
class Given:
    """What a person gave for a run, and nothing else: a default must contradict neither a preset nor a stored run."""

    fields: Mapping[str, object] = field(default_factory=dict[str, object])
    """Fields of the method's `Config`."""
    sweep: Mapping[str, tuple[float, ...]] = field(default_factory=dict[str, tuple[float, ...]])
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    """Fields of `Settings`."""
    data: DataRequest = DataRequest()


@dataclass(frozen=True)
class Request:
    """A run that is fully said."""

    method: str
    config: Configuration
    sweep: Mapping[str, tuple[float, ...]]
    settings: Settings
    source: str
    reward: RewardTransform
    normalise_observation: bool
    task: str | None
    preset: str | None
    """Name of the preset that was taken."""
    start: Start | None = None
    """The run whose weights it begins with."""

    def load(self) -> Dataset:
        """The data of the run; with a `start` their observations stay as they are: it says how they are scaled.

        Raises `UserError`.
        """
        normalise = self.normalise_observation and self.start is None
        return load_dataset(self.source, reward=self.reward, normalise_observation=normalise, task=self.task)


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
        base, sweep, settings = {}, {}, {}
        data = DataRequest(source=None if purpose is None else purpose.id)
    else:
        purpose = _stored_task(method, task, stored)
        base = {name: value for name, value in fields.values_of(stored.config).items() if name not in stored.sweep}
        sweep, settings = dict(stored.sweep), fields.values_of(stored.settings)
        data = _stored_data(stored)
    chosen = _preset_name(method, preset, purpose if stored is None else None)
    if chosen is not None:
        base |= presets_of(method)[chosen].fields
        data = DataRequest(reward=reward_of_preset(method, chosen)).or_else(data)
    if start is not None:
        data = dataclasses.replace(data, normalise_observation=_as_the_start_did(start, given.data))
    data = given.data.or_else(data).or_else(DataRequest(BUILTIN, "none", False))
    assert data.source is not None and data.reward is not None and data.normalise_observation is not None
    sweep = {name: values for name, values in sweep.items() if name not in given.fields} | dict(given.sweep)
    check_sweep(kind, sweep)
    values = {**base, **given.fields} | {name: swept[0] for name, swept in sweep.items()}
    return Request(
        method=method,
        config=fields.build(kind, values),
        sweep=sweep,
        settings=fields.build(Settings, settings | dict(given.settings)),
        source=data.source,
        reward=data.reward,
        normalise_observation=data.normalise_observation,
        task=None if purpose is None else purpose.id,
        preset=chosen,
        start=start,
    )


def _as_the_start_did(start: Start, given: DataRequest) -> bool:
    """Whether the start's observations were normalised. Raises `UserError` where something else was given."""
    normalised = start.data.observation_mean is not None
    if given.normalise_observation not in (None, normalised):
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


def _stored_task(method: str, task: str | None, stored: RunRecord) -> Task | None:
    if stored.algorithm != method:
        raise UserError(f"the folder holds a run of {stored.algorithm}, not of {method}")
    found = stored.dataset.task
    if task is not None and task != found:
        find_task(task)
        raise UserError(f"the folder holds a run on {found or 'no task'}, not on {task}")
    return None if found is None else find_task(found)


def _stored_data(stored: RunRecord) -> DataRequest:
    info = stored.dataset
    return DataRequest(info.source, cast(RewardTransform, info.reward_transform), info.observation_mean is not None)


def _preset_name(method: str, name: str | None, task: Task | None) -> str | None:
    presets = presets_of(method)
    if name == NO_PRESET:
        return None
    if name is None:
        return task.preset if task is not None and task.preset in presets else None
    if name not in presets:
        raise UserError(fields.unknown_name(name, presets, "preset"))
    return name


def reward_of_preset(method: str, preset: str) -> RewardTransform:
    """The transform of the rewards that a preset asks for."""
    return cast(RewardTransform, presets_of(method)[preset].reward)
