"""What a run writes down, as typed records. The JSON form of each stands here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from diffcps.algorithms import ALGORITHMS
from diffcps.evaluation.scores import Score, Scores
from diffcps.records import fields
from diffcps.records.environment import Reference
from diffcps.records.settings import NO_ENVIRONMENT, Settings
from diffcps.storage import Json, JsonRow
from diffcps.training.members import Member, expand
from diffcps.types import Account, Configuration, DatasetInfo, EnvironmentSpec, Reading, Spec, UserError

FORMAT = 1
"""Version of the run folder's layout."""
SCORE_KINDS = Scores._fields
ENVIRONMENT_SETTINGS = ("env", "env_kwargs", "max_episode_steps")
"""Fields of `Settings` that say which environment is meant: what came of them is written down as one."""


ADDED_SETTINGS = ("validation", "also_act", "keep", "keep_every", "precision", "rows")
"""Fields of `Settings` that runs of earlier versions do not have."""


@dataclass(frozen=True)
class InitialWeights:
    """Whose weights a run began with."""

    run: str
    """The folder, as the user named it."""
    sha256: str
    """Of its checkpoint `last`."""


@dataclass(frozen=True)
class RunRecord:
    """Everything that determines a run, and where it was made: `config.json`."""

    algorithm: str
    config: Configuration
    """The method's `Config`; swept fields have the first of their values in it."""
    sweep: Mapping[str, tuple[float, ...]]
    settings: Settings
    environment: EnvironmentSpec | None
    """The environment that scores the run."""
    reference: Reference | None
    dataset: DatasetInfo
    transitions: int
    """Those that are trained on."""
    data_return: float | None
    """Mean return of the data's episodes; None where it is not known in the environment's units."""
    spec: Spec
    command: str
    versions: Mapping[str, str]
    device: str
    held_out: int = 0
    """Transitions of the episodes that are held out."""
    init_from: InitialWeights | None = None

    @property
    def members(self) -> list[Member]:
        """Every seed with every combination of swept values."""
        return expand(self.settings.seeds, self.sweep)

    @property
    def values(self) -> JsonRow:
        """The method's hyper-parameters; a list where they are swept."""
        return fields.to_json(self.config) | _sweep_json(self.sweep)

    def to_json(self) -> JsonRow:
        """The content of config.json. A swept field stands in `sweep` alone."""
        config = {name: value for name, value in fields.to_json(self.config).items() if name not in self.sweep}
        return {
            "format": FORMAT,
            "algorithm": self.algorithm,
            "config": config,
            "sweep": _sweep_json(self.sweep),
            **{
                name: value for name, value in fields.to_json(self.settings).items() if name not in ENVIRONMENT_SETTINGS
            },
            "env": _environment_json(self.environment),
            "reference": None if self.reference is None else list(self.reference),
            "dataset": fields.to_json(replace(self.dataset, environment=None))
            | {"environment": _environment_json(self.dataset.environment)},
            "transitions": self.transitions,
            "held_out": self.held_out,
            "init_from": None if self.init_from is None else fields.to_json(self.init_from),
            "data_return": self.data_return,
            "spec": dict(self.spec._asdict()),
            "command": self.command,
            "versions": dict(self.versions),
            "device": self.device,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Json]) -> RunRecord:
        """The inverse. Raises `UserError` where the algorithm is unknown, `KeyError` where something is missing."""
        name = str(content["algorithm"])
        if name not in ALGORITHMS:
            raise UserError(f"names no algorithm of this version of diffcps ({name})")
        sweep = {field: _numbers(values) for field, values in _object(content["sweep"]).items()}
        values = _of_today(_object(content["config"])) | {
            field: _number_json(values[0]) for field, values in sweep.items()
        }
        settings = {
            field: content[field]
            for field in fields.field_types(Settings)
            if field not in ENVIRONMENT_SETTINGS and (field in content or field not in ADDED_SETTINGS)
        }
        environment, dataset = _environment(content["env"]), _object(content["dataset"])
        reference, data_return = content["reference"], content.get("data_return")
        init_from = content.get("init_from")
        return cls(
            algorithm=name,
            config=fields.from_json(ALGORITHMS[name].Config, values),
            sweep=sweep,
            settings=replace(fields.from_json(Settings, settings), env=environment or NO_ENVIRONMENT),
            environment=environment,
            reference=None if reference is None else _pair(reference),
            dataset=replace(
                fields.from_json(DatasetInfo, _with_reading(dataset) | {"environment": None}),
                environment=_environment(dataset.get("environment")),
            ),
            transitions=_whole(content["transitions"]),
            data_return=None if data_return is None else _number(data_return),
            spec=Spec(**{axis: _whole(size) for axis, size in _object(content["spec"]).items()}),
            command=str(content["command"]),
            versions={package: str(version) for package, version in _object(content["versions"]).items()},
            device=str(content["device"]),
            held_out=_whole(content.get("held_out", 0)),
            init_from=None if init_from is None else fields.from_json(InitialWeights, _object(init_from)),
        )


def differences(before: RunRecord, now: RunRecord) -> Iterator[tuple[str, Json, Json]]:
    """What differs between a run and its continuation that must not: name, value before, value now.

    The number of updates, the place of the data and of their rows, their mean return, command, versions and device may
    differ.
    """
    if before.environment != now.environment:
        yield "env", _text(before.environment), _text(now.environment)
    pairs = [
        (before.values, now.values),
        (_identity(before), _identity(now)),
        (_data_json(before.dataset), _data_json(now.dataset)),
    ]
    for old, new in pairs:
        yield from ((name, old.get(name), value) for name, value in new.items() if old.get(name) != value)


def _of_today(config: JsonRow) -> JsonRow:
    """Hyper-parameters under today's names: CRR's `action_choice` was `acting`."""
    return {"action_choice" if name == "acting" else name: value for name, value in config.items()}


def _with_reading(dataset: JsonRow) -> JsonRow:
    """A dataset as runs of earlier versions describe it, in today's form."""
    if "reward_transform" not in dataset:
        return dataset
    reading: JsonRow = {
        "reward": dataset["reward_transform"],
        "normalise_observation": dataset["observation_mean"] is not None,
    }
    return {name: value for name, value in dataset.items() if name != "reward_transform"} | {"reading": reading}


def _data_json(info: DatasetInfo) -> JsonRow:
    """What must stay of a dataset, and of how it is read."""
    facts = fields.to_json(replace(info, source="", environment=None, account=Account(), reading=Reading()))
    return facts | fields.to_json(info.reading) | {"environment": _text(info.environment)}


def _identity(record: RunRecord) -> JsonRow:
    of_data = ("dataset", "rows", "data_return")
    free = ("format", "config", "sweep", "env", "updates", *of_data, "command", "versions", "device")
    return {name: value for name, value in record.to_json().items() if name not in free}


@dataclass(frozen=True)
class Measurement:
    """A member's metrics between two boundaries, means over the updates that report them: a row of `metrics.jsonl`."""

    update: int
    member: Member
    metrics: Mapping[str, float | None]
    """None where no update reported it."""
    updates_per_second: float

    def to_json(self) -> JsonRow:
        """A row of the log."""
        rate = {"updates_per_second": self.updates_per_second}
        return {"update": self.update, **_columns(self.member), **self.metrics, **rate}

    @classmethod
    def from_json(cls, row: Mapping[str, Json], members: Sequence[Member]) -> Measurement:
        """The inverse, in a run of these members."""
        member = members[_whole(row["member"])]
        others = {"update", "updates_per_second", *_columns(member)}
        metrics = {name: _optional_number(value) for name, value in row.items() if name not in others}
        return cls(_whole(row["update"]), member, metrics, _number(row["updates_per_second"]))


class Played(NamedTuple):
    """The episodes of an evaluation by a further rule."""

    score: float
    """Mean return."""
    returns: tuple[float, ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Evaluation:
    """A member after so many updates: its episodes and its diagnosis. A row of `evaluations.jsonl`."""

    update: int
    member: Member
    score: float | None
    """Mean return; None without an environment, and where the episodes could not be played."""
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    diagnosis: Mapping[str, float | None]
    failure: str | None = None
    """The error that ended the episodes; None where they were played, or were not to be."""
    also: Mapping[str, Played] = field(default_factory=dict[str, Played])
    """The same start seeds by each further rule; empty where there are no scores."""

    @property
    def selection_loss(self) -> float | None:
        """The number by which a checkpoint is chosen without an environment; None where it is not finite."""
        return self.diagnosis["selection/loss"]

    def to_json(self) -> JsonRow:
        """A row of the log; it has a failure where there was one, and further rules where there are some."""
        also: JsonRow = {
            rule: {"score": played.score, "returns": list(played.returns), "lengths": list(played.lengths)}
            for rule, played in self.also.items()
        }
        return {
            "update": self.update,
            **_columns(self.member),
            "score": self.score,
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "diagnose": dict(self.diagnosis),
            **({} if self.failure is None else {"failure": self.failure}),
            **({"also": also} if also else {}),
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Json], members: Sequence[Member]) -> Evaluation:
        """The inverse, in a run of these members."""
        return cls(
            update=_whole(row["update"]),
            member=members[_whole(row["member"])],
            score=_optional_number(row["score"]),
            returns=_numbers(row["returns"]),
            lengths=tuple(map(_whole, _list(row["lengths"]))),
            diagnosis={name: _optional_number(value) for name, value in _object(row["diagnose"]).items()},
            failure=_optional_text(row.get("failure")),
            also={rule: _played(_object(played)) for rule, played in _object(row.get("also", {})).items()},
        )


class Selected(NamedTuple):
    """The evaluation with the lowest `selection/loss`, the last of equal ones: the checkpoint `selected`."""

    update: int
    loss: float


@dataclass(frozen=True)
class UnmetBound:
    """A bound that a member's metric stands still above, while the multiplier only rises (`run/bounds.py`)."""

    member: Member
    metric: str
    field: str
    """The config field that is the bound."""
    bound: float
    value: float
    """Of the metric, the mean over the last quarter of the log."""
    multiplier: float
    """In the last row of the log."""


@dataclass(frozen=True)
class MemberScores:
    """What is reported of a member."""

    member: Member
    scores: Scores | None
    """None where it was never scored."""
    selected: Selected | None = None
    """Known without an environment, too; None where no loss was finite."""
    also: Mapping[str, Scores] = field(default_factory=dict[str, Scores])
    """The same evaluations by each further rule."""


class PeakMemory(NamedTuple):
    """The most that the process which ended a run has held at once, in bytes."""

    host: int
    device: int | None
    """Of the device with the most; None where it does not say, as a CPU, whose memory is the host's."""


@dataclass(frozen=True)
class Summary:
    """What is reported of a run: `summary.json`."""

    algorithm: str
    environment: str | None
    """Text of its specification."""
    updates: int
    data_return: float | None
    reference: Reference | None
    members: tuple[MemberScores, ...]
    failed_evaluations: int = 0
    """How many evaluations have no score because the episodes could not be played."""
    unmet_bounds: tuple[UnmetBound, ...] = ()
    """Bounds that show no sign of being met."""
    peak_memory: PeakMemory | None = field(default=None, compare=False)
    """None for runs of earlier versions."""

    def to_json(self) -> JsonRow:
        """The content of summary.json."""
        return {
            "algorithm": self.algorithm,
            "env": self.environment,
            "updates": self.updates,
            "data_return": self.data_return,
            "reference": None if self.reference is None else list(self.reference),
            "failed_evaluations": self.failed_evaluations,
            "peak_memory": None if self.peak_memory is None else dict(self.peak_memory._asdict()),
            "unmet_bounds": [
                {
                    **_columns(row.member),
                    "metric": row.metric,
                    "field": row.field,
                    "bound": row.bound,
                    "value": row.value,
                    "multiplier": row.multiplier,
                }
                for row in self.unmet_bounds
            ],
            "members": [
                {
                    **_columns(row.member),
                    **_scores_json(row.scores),
                    "selected": _selected_json(row.selected),
                    **({"also": {rule: _scores_json(scores) for rule, scores in row.also.items()}} if row.also else {}),
                }
                for row in self.members
            ],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Json], members: Sequence[Member]) -> Summary:
        """The inverse, in a run of these members."""
        reference = content["reference"]
        rows = [_object(row) for row in _list(content["members"])]
        peak = content.get("peak_memory")
        return cls(
            algorithm=str(content["algorithm"]),
            environment=_optional_text(content["env"]),
            updates=_whole(content["updates"]),
            data_return=_optional_number(content["data_return"]),
            reference=None if reference is None else _pair(reference),
            members=tuple(
                MemberScores(members[_whole(row["member"])], _scores(row), _selected(row.get("selected")), _also(row))
                for row in rows
            ),
            failed_evaluations=_whole(content.get("failed_evaluations", 0)),
            unmet_bounds=tuple(_unmet_bound(_object(row), members) for row in _list(content.get("unmet_bounds", []))),
            peak_memory=None if peak is None else _peak(_object(peak)),
        )


@dataclass(frozen=True)
class MemberEpisodes:
    """Whole episodes of one member of a trained run."""

    member: Member
    updates: int
    """Updates that its checkpoint had made."""
    score: float
    """Mean return."""
    std: float
    """Standard deviation over the episodes."""
    normalised: float | None
    success_at_last_step: float | None
    """Share of the episodes that the environment calls a success at their last step; None where it does not say."""
    success_at_any_step: float | None
    """Share of the episodes that it calls a success at some step."""
    returns: tuple[float, ...]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class RunEvaluation:
    """New episodes with the policies of a run: `evaluations/ENVIRONMENT-CHECKPOINT-seedSEED[-ACTION_CHOICE].json`."""

    algorithm: str
    checkpoint: str
    environment: EnvironmentSpec
    episodes: int
    seed: int
    action_choice: str | None
    members: tuple[MemberEpisodes, ...]

    @property
    def best(self) -> MemberEpisodes:
        """The member with the highest mean return."""
        return max(self.members, key=lambda row: row.score)

    def to_json(self) -> JsonRow:
        """The content of the file."""
        rows: list[Json] = [
            {
                **_columns(row.member),
                "updates": row.updates,
                "score": row.score,
                "std": row.std,
                "normalised": row.normalised,
                "success_at_last_step": row.success_at_last_step,
                "success_at_any_step": row.success_at_any_step,
                "returns": list(row.returns),
                "lengths": list(row.lengths),
            }
            for row in self.members
        ]
        return {
            "algorithm": self.algorithm,
            "checkpoint": self.checkpoint,
            "env": _environment_json(self.environment),
            "episodes": self.episodes,
            "seed": self.seed,
            "action_choice": self.action_choice,
            "members": rows,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Json], members: Sequence[Member]) -> RunEvaluation:
        """The inverse, of a run of these members."""
        rows = [_object(row) for row in _list(content["members"])]
        environment = _environment(content["env"])
        assert environment is not None
        return cls(
            algorithm=str(content["algorithm"]),
            checkpoint=str(content["checkpoint"]),
            environment=environment,
            episodes=_whole(content["episodes"]),
            seed=_whole(content["seed"]),
            action_choice=_optional_text(content["action_choice"]),
            members=tuple(
                MemberEpisodes(
                    member=members[_whole(row["member"])],
                    updates=_whole(row["updates"]),
                    score=_number(row["score"]),
                    std=_number(row["std"]),
                    normalised=_optional_number(row["normalised"]),
                    success_at_last_step=_optional_number(row["success_at_last_step"]),
                    success_at_any_step=_optional_number(row["success_at_any_step"]),
                    returns=_numbers(row["returns"]),
                    lengths=tuple(map(_whole, _list(row["lengths"]))),
                )
                for row in rows
            ),
        )


def _columns(member: Member) -> JsonRow:
    """What names a member in a row."""
    return {"member": member.index, "seed": member.seed} | {
        name: _number_json(value) for name, value in member.swept.items()
    }


def _environment_json(environment: EnvironmentSpec | None) -> Json:
    """The id where it is nothing but an id, as in folders of older versions; otherwise an object."""
    if environment is None or environment.is_default:
        return None if environment is None else environment.id
    return {
        "id": environment.id,
        "kwargs": environment.kwargs,
        "max_episode_steps": environment.max_episode_steps,
        "recorded": environment.recorded,
    }


def _environment(value: Json) -> EnvironmentSpec | None:
    """The inverse."""
    if value is None or isinstance(value, str):
        return None if value is None else EnvironmentSpec(value)
    return fields.from_json(EnvironmentSpec, _object(value))


def _text(value: object) -> Json:
    return None if value is None else str(value)


def _sweep_json(sweep: Mapping[str, Sequence[float]]) -> JsonRow:
    return {name: [_number_json(value) for value in values] for name, values in sweep.items()}


def _scores_json(scores: Scores | None) -> JsonRow:
    if scores is None:
        return {}
    kinds: Iterator[tuple[str, Score | None]] = zip(SCORE_KINDS, scores, strict=True)
    return {
        kind: score and {"updates": list[Json](score.updates), "score": score.score, "normalised": score.normalised}
        for kind, score in kinds
    }


def _also(row: Mapping[str, Json]) -> dict[str, Scores]:
    found = {rule: _scores(_object(scores)) for rule, scores in _object(row.get("also", {})).items()}
    return {rule: scores for rule, scores in found.items() if scores is not None}


def _played(row: Mapping[str, Json]) -> Played:
    return Played(_number(row["score"]), _numbers(row["returns"]), tuple(map(_whole, _list(row["lengths"]))))


def _scores(row: Mapping[str, Json]) -> Scores | None:
    if "last" not in row:
        return None

    def score(kind: str) -> Score:
        found = _object(row[kind])
        updates = tuple(map(_whole, _list(found["updates"])))
        return Score(updates, _number(found["score"]), _optional_number(found["normalised"]))

    selected = None if row["offline_selected"] is None else score("offline_selected")
    return Scores(score("last"), score("best"), score("mean_of_last"), selected)


def _unmet_bound(row: Mapping[str, Json], members: Sequence[Member]) -> UnmetBound:
    numbers = {name: _number(row[name]) for name in ("bound", "value", "multiplier")}
    return UnmetBound(members[_whole(row["member"])], str(row["metric"]), str(row["field"]), **numbers)


def _selected_json(selected: Selected | None) -> Json:
    return None if selected is None else {"update": selected.update, "selection/loss": selected.loss}


def _selected(value: Json) -> Selected | None:
    if value is None:
        return None
    found = _object(value)
    return Selected(_whole(found["update"]), _number(found["selection/loss"]))


def _peak(found: JsonRow) -> PeakMemory:
    device = found["device"]
    return PeakMemory(_whole(found["host"]), None if device is None else _whole(device))


# --- JSON values of a known kind; a file that holds another was not written by this library ---


def _number_json(value: float) -> Json:
    return fields.json_value(value)


def _whole(value: Json) -> int:
    if isinstance(value, int):
        return value
    raise UserError(f"{value!r} stands where a whole number is expected: the file was changed by something else")


def _number(value: Json) -> float:
    if isinstance(value, int | float | str):
        return float(value)
    raise UserError(f"{value!r} stands where a number is expected: the file was changed by something else")


def _optional_number(value: Json) -> float | None:
    return None if value is None else _number(value)


def _optional_text(value: Json) -> str | None:
    return None if value is None else str(value)


def _list(value: Json) -> list[Json]:
    if isinstance(value, list):
        return value
    raise UserError(f"{value!r} stands where a list is expected: the file was changed by something else")


def _object(value: Json) -> JsonRow:
    if isinstance(value, dict):
        return value
    raise UserError(f"{value!r} stands where an object is expected: the file was changed by something else")


def _numbers(value: Json) -> tuple[float, ...]:
    return tuple(map(_number, _list(value)))


def _pair(value: Json) -> Reference:
    low, high = _numbers(value)
    return low, high
