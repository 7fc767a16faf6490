"""What a study compares: `study.toml`, read into typed records.

[study]                             # fields of Settings, for all runs; and a name
seeds = [0, 1, 2]
updates = 30_000

[final]                             # new episodes for the finished policies
episodes = 50

[ray]                               # what each run takes on a cluster
gpus = 1

[data.hopper-medium-replay]         # task, dataset, preset, group, score; fields of Settings and Reading
task = "hopper-medium-replay-v2"

[methods.diffcps]                   # method (by default the table's name), preset; fields of its Config
kappa = [0.02, 0.04]                # a real-valued field with several values is swept within the run
num_steps = [5, 15]                 # any other field with several values makes a run for each

only = ["hopper-medium-replay"]     # on these data or groups of data alone

[methods.diffcps.on.hopper-medium-replay]
max_grad_norm = 2.0                 # for these data only

[published]                         # numbers of others, to stand beside ours: `diffcps.study.published`
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar, cast

from diffcps.algorithms import ALGORITHMS
from diffcps.presets import NO_PRESET, presets_of
from diffcps.records import fields
from diffcps.records.settings import Settings
from diffcps.run.policy import Checkpoint
from diffcps.run.resolve import Given, Request, resolve
from diffcps.storage import plain_name
from diffcps.study.published import Published, published_of
from diffcps.training.members import expand
from diffcps.types import Configuration, Count, Reading, Real, UserError

Table = Mapping[str, object]
"""A table of a TOML file."""

Built = TypeVar("Built", bound=Configuration)

CHECKPOINTS: tuple[Checkpoint, ...] = ("last", "best", "selected")
AVERAGE = "average"
"""The group of data of which the plan says none, where published averages are named."""
RETURN, SUCCESS = "return", "success"
"""What new episodes are scored by."""


@dataclass(frozen=True)
class Final:
    """New episodes for the policies of every finished run."""

    episodes: int = 50
    """Episodes per member and acting rule."""
    seed: Count = 1000
    """Of the first episode."""
    checkpoint: str = "last"
    """Which of a run's checkpoints is played: last, best or selected."""
    also_act: tuple[str, ...] = ()
    """Further rules by which methods that have them act, beside their own: sample, softmax_q, argmax_q."""


@dataclass(frozen=True)
class Resources:
    """What each run takes of a Ray cluster; elsewhere it has no meaning."""

    cpus: int = 1
    """CPUs."""
    gpus: Count = 0
    """GPUs; with none a run is made on CPUs, whatever the node has."""


class DataSet(NamedTuple):
    """A table [data.NAME] of the plan: what it says of the tables of results."""

    name: str
    group: str = ""
    """Averages are made over the data of a group."""
    by_success: bool = False
    """New episodes are scored by the share that the environment calls a success at the last step."""


class CellRow(NamedTuple):
    """A row of the tables that a run has members of: one for each seed."""

    label: str
    values: Mapping[str, object]
    """The varied and swept fields."""
    members: frozenset[int]


class Cell(NamedTuple):
    """One run of a study: all its seeds and swept values are members of one program."""

    of_data: DataSet
    entry: str
    """Name of the method's table in the plan."""
    variant: Mapping[str, object]
    """The fields that make a run for each of their values, with this run's."""
    given: tuple[str, ...]
    """All fields of the method's config of which the plan says something."""
    request: Request

    @property
    def data(self) -> str:
        """Name of the data in the plan."""
        return self.of_data.name

    @property
    def name(self) -> str:
        """Name of the run folder, unlike any other's in the study."""
        parts = [self.entry, *(f"{name}-{_short(value)}" for name, value in self.variant.items())]
        return f"{plain_name(self.data)}/{plain_name('-'.join(parts))}"

    @property
    def members(self) -> int:
        """Seeds times swept values."""
        count = len(self.request.settings.seeds)
        for values in self.request.sweep.values():
            count *= len(values)
        return count

    @property
    def rows(self) -> list[CellRow]:
        """A row for each combination of swept values, in the order of the members."""
        found: dict[tuple[float, ...], set[int]] = {}
        for member in expand(self.request.settings.seeds, self.request.sweep):
            found.setdefault(tuple(member.swept.values()), set()).add(member.index)
        rows: list[CellRow] = []
        for swept, members in found.items():
            known = {**self.variant, **dict(zip(self.request.sweep, swept, strict=True))}
            values = {name: known[name] for name in dict.fromkeys([*self.given, *known]) if name in known}
            rows.append(CellRow(label_of(self.entry, values), values, frozenset(members)))
        return rows


def label_of(entry: str, values: Mapping[str, object]) -> str:
    """The name of a row: `diffcps kappa=0.02 num_steps=5`."""
    return " ".join([entry, *(f"{name}={value_text(value)}" for name, value in values.items())])


def value_text(value: object) -> str:
    """The value of a field, as short as it can be told from others."""
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    if isinstance(value, tuple | list):
        return "x".join(map(value_text, cast(Sequence[object], value)))
    return str(value)


@dataclass(frozen=True)
class Study:
    """A plan that is fully said."""

    name: str
    final: Final | None
    """None: no new episodes."""
    ray: Resources
    cells: tuple[Cell, ...]
    published: Published | None = None

    def cell(self, name: str) -> Cell:
        """The cell of this name. Raises `UserError`."""
        for cell in self.cells:
            if cell.name == name:
                return cell
        raise UserError(fields.unknown_name(name, [cell.name for cell in self.cells], "cell"))


class _Data(NamedTuple):
    facts: DataSet
    task: str | None
    source: str | None
    preset: str | None
    settings: Mapping[str, object]
    reading: Mapping[str, object]


def read_study(path: str | Path, folder: str | Path | None = None) -> Study:
    """The plan in a file; data are looked for from `folder` on, by default the plan's own.

    Raises `UserError`, which names file, key and the nearest right word.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is no TOML: {error}") from None
    try:
        return study_of(content, path.stem, path.parent if folder is None else Path(folder))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def study_of(content: Table, name: str, folder: Path = Path()) -> Study:
    """The plan in these tables; files are looked for from `folder` on. Raises `UserError`."""
    _check_keys(content, ("study", "final", "ray", "data", "methods", "published"), "")
    shared = dict(_table(content, "study", ""))
    name = str(shared.pop("name", name))
    settings = _settings(shared, "study")
    data = {
        key: _data(_table(_table(content, "data", ""), key, "data."), key, folder)
        for key in _table(content, "data", "")
    }
    methods = _table(content, "methods", "")
    for what, found in (("data", data), ("methods", methods)):
        if not found:
            raise UserError(f"has no table [{what}.NAME]: a study needs one or more")
    known = [of_data.facts for of_data in data.values()]
    cells = [
        cell
        for of_data in data.values()
        for entry in methods
        for cell in _cells(of_data, entry, _table(methods, entry, "methods."), settings, known)
    ]
    final = _final(content)
    _check_names(cells)
    _check_rules(cells, "final", () if final is None else final.also_act)
    for where, table in [("study", settings), *((f"data.{key}", each.settings) for key, each in data.items())]:
        _check_rules(cells, where, cast(tuple[str, ...], table.get("also_act", ())))
    published = None
    if "published" in content:
        rows = [row.label for cell in cells for row in cell.rows]
        groups = {of_data.facts.group or AVERAGE: None for of_data in data.values()}
        published = published_of(_table(content, "published", ""), rows, tuple(data), tuple(groups))
    return Study(name, final, _built(Resources, _table(content, "ray", ""), "ray"), tuple(cells), published)


def _cells(data: _Data, entry: str, table: Table, settings: Table, known: Sequence[DataSet]) -> list[Cell]:
    """The runs of one method on one set of data."""
    where, key = f"methods.{entry}", data.facts.name
    own, on = dict(table), dict(_table(table, "on", f"{where}."))
    own.pop("on", None)
    for name in on:
        if name not in (names := [each.name for each in known]):
            raise UserError(f"{where}.on.{name}: {fields.unknown_name(name, names, 'data')}")
    if not _is_wanted(own.pop("only", None), data.facts, known, f"{where}.only"):
        return []
    method = _text(own.pop("method", entry), f"{where}.method")
    if method not in ALGORITHMS:
        raise UserError(f"{where}: {fields.unknown_name(method, ALGORITHMS, 'method')}")
    special = dict(_table(on, key, f"{where}.on."))
    preset = special.pop("preset", own.pop("preset", None))
    own.pop("preset", None)
    if preset is None and data.preset is not None:
        preset = data.preset if data.preset in presets_of(method) else NO_PRESET
    given = own | special
    kind = ALGORITHMS[method].Config
    single, sweep, variants = _sorted(
        given, kind, dict.fromkeys(given, where) | dict.fromkeys(special, f"{where}.on.{key}")
    )
    found = []
    for values in itertools.product(*variants.values()):
        variant = dict(zip(variants, values, strict=True))
        shared = {**settings, **data.settings}
        further = cast(tuple[str, ...], shared.pop("also_act", ()))
        request = _resolved(
            f"{where}.on.{key}" if special else where,
            method,
            Given(single | variant, sweep, shared, data.source, data.reading),
            data.task,
            None if preset is None else _text(preset, f"{where}.preset"),
        )
        found.append(Cell(data.facts, entry, variant, tuple(given), _also_acting(request, further)))
    return found


def _is_wanted(only: object, data: DataSet, known: Sequence[DataSet], where: str) -> bool:
    """Whether a method is trained on these data: on all, where the plan does not say."""
    if only is None:
        return True
    names = [*(each.name for each in known), *(each.group for each in known if each.group)]
    wanted = cast(list[object], only) if isinstance(only, list) else [only]
    for name in wanted:
        if name not in names:
            raise UserError(f"{where}: {fields.unknown_name(str(name), names, 'data')}")
    return data.name in wanted or data.group in wanted


def _also_acting(request: Request, rules: tuple[str, ...]) -> Request:
    """With those further rules that the method has beside its own."""
    known, own = fields.choices(type(request.config), "action_choice"), getattr(request.config, "action_choice", None)
    own_rules = tuple(dict.fromkeys(rule for rule in rules if rule in known and rule != own))
    return replace(request, settings=replace(request.settings, also_act=own_rules))


def _resolved(where: str, method: str, given: Given, task: str | None, preset: str | None) -> Request:
    try:
        return resolve(method, given, task, preset)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _sorted(
    given: Table, kind: type[Configuration], places: Mapping[str, str]
) -> tuple[dict[str, object], dict[str, tuple[float, ...]], dict[str, list[object]]]:
    """Fields with one value, swept ones, and those that make a run for each of their values."""
    known = fields.field_types(kind)
    single: dict[str, object] = {}
    sweep: dict[str, tuple[float, ...]] = {}
    variants: dict[str, list[object]] = {}
    for name, value in given.items():
        if name not in known:
            raise UserError(f"{places[name]}: {fields.unknown_name(name, [*known, 'method', 'preset', 'on', 'only'])}")
        if not isinstance(value, list):
            single[name] = value
            continue
        values = cast(list[object], value)
        if known[name] == Real:
            sweep[name] = tuple(cast(list[float], values))
        elif known[name] == tuple[int, ...] and not any(isinstance(each, list) for each in values):
            single[name] = tuple(values)
        else:
            variants[name] = [tuple(cast(list[object], x)) if isinstance(x, list) else x for x in values]
            if len(values) < 2 or len({str(x) for x in values}) != len(values):
                raise UserError(f"{places[name]}.{name}: a list of values has two or more, each once")
    return single, sweep, variants


def _data(table: Table, name: str, folder: Path) -> _Data:
    own, where = dict(table), f"data.{name}"
    group = _text(own.pop("group", ""), f"{where}.group")
    score = _text(own.pop("score", RETURN), f"{where}.score")
    if score not in (RETURN, SUCCESS):
        raise UserError(f"{where}.score: {fields.unknown_name(score, (RETURN, SUCCESS), 'score')}")
    task = None if "task" not in own else _text(own.pop("task"), f"{where}.task")
    preset = None if "preset" not in own else _text(own.pop("preset"), f"{where}.preset")
    source = own.pop("dataset", None)
    names = cast(list[object], source) if isinstance(source, list) else [] if source is None else [source]
    files = [_found(_text(each, f"{where}.dataset"), folder) for each in names]
    if task is None and not files:
        raise UserError(f"{where}: says neither task nor dataset")
    of_settings, of_reading = fields.field_types(Settings), fields.field_types(Reading)
    settings: dict[str, object] = {}
    reading: dict[str, object] = {}
    for key, value in own.items():
        if key in of_settings:
            settings[key] = _as_given(value)
        elif key in of_reading:
            reading[key] = _as_given(value)
        else:
            known = ["task", "dataset", "preset", "group", "score", *of_settings, *of_reading]
            raise UserError(f"{where}: {fields.unknown_name(key, known)}")
    _built(Settings, settings, where)
    _built(Reading, reading, where)
    facts = DataSet(name, group, score == SUCCESS)
    return _Data(facts, task, ",".join(files) or None, preset, settings, reading)


def _built(kind: type[Built], values: Table, where: str) -> Built:
    """The dataclass of these fields. Raises `UserError` with the place."""
    try:
        return fields.build(kind, values)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _found(name: str, folder: Path) -> str:
    """A file beside the plan by its path from here; any other name as it is."""
    beside = folder / name
    return str(beside) if beside.exists() else name


def _settings(table: Table, where: str) -> dict[str, object]:
    known = fields.field_types(Settings)
    for name in table:
        if name not in known:
            raise UserError(f"{where}: {fields.unknown_name(name, ['name', *known])}")
    given = {name: _as_given(value) for name, value in table.items()}
    _built(Settings, given, where)
    return given


def _final(content: Table) -> Final | None:
    if "final" not in content:
        return None
    table = {name: _as_given(value) for name, value in _table(content, "final", "").items()}
    final = _built(Final, table, "final")
    if final.checkpoint not in CHECKPOINTS:
        raise UserError(f"final: {fields.unknown_name(final.checkpoint, CHECKPOINTS, 'checkpoint')}")
    return final


def _check_names(cells: list[Cell]) -> None:
    names = [cell.name for cell in cells]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two of its runs would have the folder {name}: give the tables other names")


def _check_rules(cells: list[Cell], where: str, rules: tuple[str, ...]) -> None:
    """Every further rule must be one that some method of the plan has."""
    choices = [fields.choices(type(cell.request.config), "action_choice") for cell in cells]
    known = list(dict.fromkeys(choice for found in choices for choice in found))
    for rule in rules:
        if rule not in known:
            raise UserError(f"{where}.also_act: {fields.unknown_name(rule, known, 'way to act of these methods')}")


def _check_keys(table: Table, known: tuple[str, ...], where: str) -> None:
    for name in table:
        if name not in known:
            raise UserError(f"{where}{fields.unknown_name(name, known, 'table')}")


def _table(table: Table, name: str, where: str) -> Table:
    """A table inside of another one; empty where there is none."""
    found = table.get(name, {})
    if not isinstance(found, dict):
        raise UserError(f"{where}{name}: is {found!r}, and must be a table [{where}{name}]")
    return cast(Table, found)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: is {value!r}, and must be text")
    return value


def _as_given(value: object) -> object:
    """Lists as tuples, as fields have them."""
    return tuple(cast(list[object], value)) if isinstance(value, list) else value


def _short(value: object) -> str:
    """A value in the name of a folder."""
    return "x".join(map(str, cast(tuple[object, ...], value))) if isinstance(value, tuple) else str(value)
