"""The floor of a bound on the denoising loss: the least loss that a clone of the data reaches, stored and read back."""

from __future__ import annotations

import hashlib
import math
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from diffcps.algorithms import ALGORITHMS
from diffcps.evaluation.scores import mean_and_std_over_members
from diffcps.records import fields
from diffcps.run.resolve import given_by
from diffcps.storage import SOFTWARE, read_json, write_json
from diffcps.types import Configuration, Count, Dataset, DatasetInfo, EnvironmentSpec, Share, UserError

LOSS = "actor/bc_loss"
"""The denoising loss, as every method with a denoiser reports it: a mean over rows, action dimensions and steps."""
FLOOR_FILE = "kappa.json"
MARGIN = 0.1
"""How far above the floor a bound is suggested, as a share of it: a rule of thumb."""


@dataclass(frozen=True)
class Network:
    """The denoiser and its schedule: what the floor depends on, beside the data and the number of steps."""

    schedule: str = "vp"
    """Noise schedule beta_i: vp, linear, cosine or linear_rate."""
    width: int = 256
    """Units per hidden layer of the denoiser."""
    depth: int = 3
    """Its hidden layers."""
    time_size: int = 16
    """Size of its time embedding."""

    @classmethod
    def of(cls, config: Configuration) -> Network:
        """Those fields of a method's `Config`."""
        values = fields.values_of(config)
        return fields.build(cls, {name: values[name] for name in fields.field_types(cls)})


@dataclass(frozen=True)
class Least:
    """The least losses of one clone."""

    seed: Count
    training: float
    """Of the means of the log's intervals, on the batches of the training: what a method's multiplier sees."""
    held_out: float
    """Of the evaluations, on rows of episodes that are held out."""
    update: int
    """After how many updates that one was."""


@dataclass(frozen=True)
class Floor:
    """What clones with one number of diffusion steps reach."""

    num_steps: int
    clones: tuple[Least, ...]
    """One for each seed that was evaluated."""

    @property
    def value(self) -> float:
        """The floor: the mean over the seeds, on held-out rows."""
        return float(mean_and_std_over_members([clone.held_out for clone in self.clones])[0])

    def above(self, share: float) -> float:
        """A bound that is so far above the floor, as a share of it, in four digits."""
        return float(f"{(1 + share) * self.value:.4g}")


@dataclass(frozen=True)
class Floors:
    """What `diffcps kappa` has found: kappa.json."""

    source: str
    task: str | None
    rows_sha256: str
    """Of observations and actions as the networks see them (`rows_seen`)."""
    network: Network
    updates: int
    """Of each training."""
    seeds: tuple[int, ...]
    validation: Share
    floors: tuple[Floor, ...]

    def write(self, path: Path) -> None:
        """Replaces the file as a whole."""
        write_json(path, {"software": SOFTWARE, **fields.to_json(self)})


def read_floors(path: Path, command: str) -> tuple[Floors, Path]:
    """The file, or that of a folder, and its path. Raises `UserError`; `command` would measure what is missing."""
    file = path / FLOOR_FILE if path.is_dir() else path
    try:
        content = read_json(file)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{path}: there is no {FLOOR_FILE}, which has the floor; measure it: {command}") from None
    content.pop("software", None)
    try:
        return fields.from_json(Floors, content), file
    except (TypeError, UserError) as error:
        raise UserError(f"{file}: has no floors that can be read ({error}); measure them: {command}") from None


def rows_seen(dataset: Dataset) -> str:
    """SHA-256 of observations and actions as the networks see them: scaled, normalised, chosen, in their order."""
    digest = hashlib.sha256()
    for array in (dataset.observation, dataset.action):
        values: np.ndarray = np.ascontiguousarray(np.asarray(array))
        digest.update(str(values.shape).encode())
        digest.update(values.data)
    return digest.hexdigest()


def bound_on_loss(method: str) -> str | None:
    """The field by which a method bounds the denoising loss of a denoiser like `Network`; None where it does not."""
    metric, known = ALGORITHMS[method].METRICS.get(LOSS), fields.field_types(ALGORITHMS[method].Config)
    has_network = all(name in known for name in ("num_steps", *fields.field_types(Network)))
    return metric.bound if metric is not None and metric.bound and has_network else None


def fitting_floor(floors: Floors, file: Path, dataset: Dataset, config: Configuration, command: str) -> Floor:
    """The floor that holds for a run of `config` on these data.

    Raises `UserError` where it was measured on other rows, with another network, or not for that number of steps.
    """
    again = f"measure it for this run: {command}"
    if floors.rows_sha256 != rows_seen(dataset):
        raise UserError(
            f"{file}: is of other rows than {dataset.info.source} has as it is read here (it was measured on "
            f"{floors.source}); {again}"
        )
    network, values = fields.values_of(floors.network), fields.values_of(config)
    for name, value in network.items():
        if values[name] != value:
            raise UserError(f"{file}: is of {name} {value}, and this run has {values[name]}; {again}")
    for floor in floors.floors:
        if floor.num_steps == values["num_steps"]:
            return floor
    known = ", ".join(str(floor.num_steps) for floor in floors.floors)
    raise UserError(f"{file}: is of {known} diffusion steps, and this run has {values['num_steps']}; {again}")


def check_share(name: str, share: float) -> None:
    """Raises `UserError` for a share by which no bound can lie above a floor."""
    if not (share >= 0 and math.isfinite(share)):
        raise UserError(f"{name} is {share:g}: it must be 0 or more, as a share of the floor (0.1: 10 % above it)")


def measure_command(info: DatasetInfo, environment: EnvironmentSpec | None, config: Configuration) -> str:
    """The command that measures the floor for a run of `config` on these data, scored in this environment."""
    words = ["diffcps", "kappa", *info.source.split(",")]
    if info.task not in (None, info.source):
        words += ["--task", str(info.task)]
    if environment is not None and environment != info.environment and environment.function is None:
        words += ["--env", environment.id]
    words += ["--steps", str(fields.values_of(config)["num_steps"]), *_flags(Network.of(config))]
    return shlex.join([*words, *_flags(replace(info.reading, reward="none", reward_scale=1.0))])


def _flags(config: Configuration) -> list[str]:
    """The fields that differ from their defaults, as words of a command."""
    words: list[str] = []
    for name, value in given_by(config).items():
        words.append("--" + name.replace("_", "-"))
        if isinstance(value, tuple):
            words += map(str, value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
        elif value is not True:
            words.append(str(value))
    return words
