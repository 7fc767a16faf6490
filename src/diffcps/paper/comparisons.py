"""The tables and figures of the paper that compare methods on benchmark tasks: studies, shipped as plans (`plans/`)."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from diffcps.algorithms import ALGORITHMS
from diffcps.data.download import data_file
from diffcps.paper.curves import draw_curves
from diffcps.readers.source import read_source
from diffcps.records.fields import choices, unknown_name
from diffcps.storage import write_atomically
from diffcps.study.cluster import run_on_cluster
from diffcps.study.plan import read_study, study_of
from diffcps.study.report import check_packages, write_report
from diffcps.study.run import PLAN, Watcher, Work, run_study
from diffcps.tasks.catalogue import find_task
from diffcps.types import UserError

LEAST_EVAL_EVERY = 1_000
"""Updates between evaluations, of a plan that is scaled down."""
SUFFIXES = (".hdf5", ".npz")
"""Of files that may stand for a task."""

Content = dict[str, Any]
"""A plan, as `tomllib` reads it."""


@dataclass(frozen=True)
class Narrowing:
    """What a person wants of a shipped plan."""

    scale: float = 1.0
    """Share of its updates."""
    tasks: tuple[str, ...] = ()
    """Only these of its data or groups of data; all where there are none."""
    methods: tuple[str, ...] = ()
    """Only these of its methods; all where there are none."""
    seeds: tuple[int, ...] = ()
    """In the place of its own."""
    data_dir: Path | None = None
    """A folder with a file for each task, in the place of the benchmark's data."""


def plan_text(item: str, wanted: Narrowing) -> str:
    """The plan of an item (`plans/ITEM.toml`) as it is wanted.

    Raises `UserError` for unknown names and missing files, and without the packages of the extra `studies`.
    """
    check_packages()
    content: Content = tomllib.loads((files("diffcps.paper") / "plans" / f"{item}.toml").read_text("utf-8"))
    if wanted.tasks:
        _narrow_data(content, wanted.tasks)
    if wanted.methods:
        _narrow_methods(content, wanted.methods)
    if wanted.seeds:
        content["study"]["seeds"] = list(wanted.seeds)
    if wanted.data_dir is not None:
        _take_files(content, wanted.data_dir)
    _scale(content, wanted.scale)
    study_of(content, item)
    import tomli_w

    return tomli_w.dumps(content)


def reproduce_comparison(
    item: str,
    wanted: Narrowing,
    out: Path,
    workers: int = 1,
    watch: Watcher = lambda work: None,
    ray: str | None = None,
) -> tuple[list[Work], list[Path]]:
    """Runs the study of an item in the folder `out`, on from where it is; writes its report, and a figure's curves.

    `workers` runs at once on this machine, or as many as fit on the Ray cluster at `ray` (HOST:PORT, or auto).
    Returns what has become of the runs, and the paths of what is written. Raises `UserError`, and `Interrupted` after
    Ctrl-C: the same call goes on.
    """
    text, plan = plan_text(item, wanted).encode(), out / PLAN
    if wanted.data_dir is None:
        _check_data(text.decode())
    if plan.exists() and plan.read_bytes() != text:
        raise UserError(f"{out}: holds a study with other words ({plan}); give the same ones again, or another --out")
    if not plan.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(plan, text)
    work = run_study(plan, out, workers, watch) if ray is None else run_on_cluster(plan, out, ray, watch)
    paths = [write_report(out, _reference(plan))]
    if item.startswith("figure"):
        paths.append(draw_curves(out, out / f"{item}.png"))
    return work, paths


def _reference(plan: Path) -> str | None:
    """DiffCPS's first row, with which the others are compared; None, the plan's first, where it takes no part."""
    labels = [row.label for cell in read_study(plan).cells if cell.entry == "diffcps" for row in cell.rows]
    return labels[0] if labels else None


def _narrow_data(content: Content, tasks: Sequence[str]) -> None:
    data: dict[str, Content] = content["data"]
    groups = {table["group"] for table in data.values() if "group" in table}
    for name in tasks:
        if name not in data and name not in groups:
            raise UserError(f"--tasks: {unknown_name(name, [*data, *groups], 'task')}")
    kept = {name: table for name, table in data.items() if name in tasks or table.get("group") in tasks}
    whole = {group for group in groups if all(name in kept for name in data if data[name].get("group") == group)}
    content["data"] = kept
    present = {table.get("group") for table in kept.values()}
    for entry, table in list(content["methods"].items()):
        if "only" in table and not present & set(table["only"]):
            del content["methods"][entry]
        elif "only" in table:
            table["only"] = [group for group in table["only"] if group in present]
    _keep_published(content, set(kept), whole)


def _narrow_methods(content: Content, methods: Sequence[str]) -> None:
    known: dict[str, Content] = content["methods"]
    for name in methods:
        if name not in known:
            raise UserError(f"--methods: {unknown_name(name, known, 'method of this item')}")
    content["methods"] = {name: table for name, table in known.items() if name in methods}
    _keep_published(content, set(content["data"]), None)
    rules = {rule for name in content["methods"] for rule in choices(ALGORITHMS[name].Config, "action_choice")}
    if "also_act" in content.get("final", {}):
        content["final"]["also_act"] = [rule for rule in content["final"]["also_act"] if rule in rules]


def _keep_published(content: Content, data: set[str], groups: set[str] | None) -> None:
    """Numbers of rows, data and whole groups that are still there."""
    published = content.get("published", {})
    for kind, kept in (("scores", data), ("averages", groups)):
        if kind in published:
            published[kind] = {
                row: {name: value for name, value in table.items() if kept is None or name in kept}
                for row, table in published[kind].items()
                if row.split()[0] in content["methods"]
            }


def _check_data(text: str) -> None:
    """Raises `UserError` where the data of a plan's tasks are not here: every run on them would fail."""
    tasks = [find_task(table["task"]) for table in tomllib.loads(text)["data"].values()]
    missing = [task.id for task in tasks if not data_file(task).exists()]
    if missing:
        raise UserError(
            f"the data of {', '.join(missing)} are not here: `diffcps data get {missing[0]}` fetches them, one task "
            "after the other; --tasks takes fewer, and --data-dir files of your own"
        )


def _take_files(content: Content, folder: Path) -> None:
    """Files for the tasks' data, each in the environment that it names."""
    found = {name: _files_for(name, folder) for name in content["data"]}
    missing = [name for name, paths in found.items() if not paths]
    if missing:
        there = [name for name, paths in found.items() if paths]
        hint = f"--tasks {' '.join(there)} takes those that are there" if there else "it has none of them"
        raise UserError(
            f"{folder}: has no file for {', '.join(missing)} (NAME.hdf5 or NAME.npz; for medium-expert also the "
            f"files of medium and expert, which are joined); {hint}"
        )
    for name, paths in found.items():
        table = content["data"][name]
        table["dataset"] = [str(path.resolve()) for path in paths]
        environments = {read_source(str(path)).environment for path in paths} - {None}
        if len(environments) == 1 and (environment := environments.pop()) is not None and environment.is_default:
            table["env"] = environment.id


def _files_for(name: str, folder: Path) -> list[Path]:
    """The file of this name; of a medium-expert task the two that make it up. Empty where they are not there."""
    whole = _file(name, folder)
    if whole is not None:
        return [whole]
    if name.endswith("-medium-expert"):
        parts = [_file(name.removesuffix("-medium-expert") + part, folder) for part in ("-medium", "-expert")]
        return [part for part in parts if part is not None] if None not in parts else []
    return []


def _file(name: str, folder: Path) -> Path | None:
    return next((path for suffix in SUFFIXES if (path := folder / f"{name}{suffix}").exists()), None)


def _scale(content: Content, scale: float) -> None:
    """A share of the updates; evaluations come as often as then is sensible."""
    if not 0 < scale <= 1:
        raise UserError(f"--scale is {scale:g}; it must be above 0, and 1 for the paper's size")
    if scale == 1:
        return
    study: Content = content["study"]
    for table in (study, *content["data"].values()):
        if "updates" in table:
            table["updates"] = max(1, round(scale * table["updates"]))
    least = min(table["updates"] for table in (study, *content["data"].values()) if "updates" in table)
    study["eval_every"] = min(least, max(LEAST_EVAL_EVERY, round(scale * study["eval_every"])))
    study["name"] = f"{study['name']}, with {scale:g} of the paper's updates"
