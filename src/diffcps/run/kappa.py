"""Measuring the floor of DiffCPS's bound: clones of the data with its denoiser, and what their losses say of kappa."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from diffcps.algorithms import diffcps, diffusion_bc
from diffcps.evaluation.scores import mean_and_std_over_members
from diffcps.presets import NO_PRESET, presets_of
from diffcps.records import fields
from diffcps.records.folder import RunFolder
from diffcps.records.settings import NO_ENVIRONMENT, Settings
from diffcps.run.floor import LOSS, MARGIN, Floor, Floors, Least, Network
from diffcps.run.progress import Display
from diffcps.run.resolve import Given, given_by, resolve
from diffcps.run.train import run
from diffcps.tasks.catalogue import find_task
from diffcps.types import Dataset, UserError

EVALUATIONS = 10
"""Of each clone: so often the loss on held-out rows is measured."""
BOUNDED = "diffcps"
"""The method whose bound it is."""
CLONE = "diffusion_bc"
"""The same policy and loss, without the rest."""


def settings_of(updates: int, seeds: Sequence[int], validation: float) -> Settings:
    """How a clone is trained. Raises `UserError` for what no run takes, and where no episode would be held out."""
    if not validation > 0:
        raise UserError(f"validation is {validation:g}: the floor is the loss on held-out rows; take a share above 0")
    values = {"env": NO_ENVIRONMENT, "updates": updates, "seeds": tuple(seeds), "validation": validation}
    fields.build(Settings, values)
    every = -(-updates // EVALUATIONS)
    return fields.build(Settings, values | {"eval_every": every, "log_every": min(every, 500)})


def check_steps(steps: Sequence[int]) -> None:
    """Raises `UserError` unless these are numbers of diffusion steps, each once."""
    for num_steps in steps:
        fields.build(diffusion_bc.Config, {"num_steps": num_steps})
        if steps.count(num_steps) > 1:
            raise UserError(f"steps names {num_steps} twice")


def data_as_read(source: str, task: str | None, environment: str | None, reading: Mapping[str, object]) -> Dataset:
    """The data as a run reads them that was given the same words. Raises `UserError`."""
    settings = {} if environment is None else {"env": environment}
    return resolve(CLONE, Given({}, {}, settings, source, reading), task, NO_PRESET).load()


def measure(
    dataset: Dataset, network: Network, num_steps: int, settings: Settings, out: Path, display: Display | None = None
) -> Floor:
    """Trains diffusion BC to its end in the run folder `out`, on from where it stopped, and reads its least losses.

    Raises `UserError` as a training does, also where the folder holds another run, and `Interrupted`.
    """
    values = fields.values_of(network) | {"num_steps": num_steps}
    info = dataset.info
    given = Given(values, {}, given_by(settings), info.source, given_by(info.reading))
    run(resolve(CLONE, given, info.task, NO_PRESET), dataset, out, resume=True, display=display)
    return floor_of(RunFolder(out))


def floor_of(folder: RunFolder) -> Floor:
    """The least losses of the clones of a run. One that diverged before its first evaluation has none."""
    record = folder.read_record()
    measured, evaluated = folder.read_measurements(record.members), folder.read_evaluations(record.members)
    clones: list[Least] = []
    for member in record.members:
        training = [row.metrics[LOSS] for row in measured if row.member == member]
        held_out = [(row.diagnosis[LOSS], row.update) for row in evaluated if row.member == member]
        training = [loss for loss in training if loss is not None]
        held_out = [(loss, update) for loss, update in held_out if loss is not None]
        if training and held_out:
            clones.append(Least(member.seed, min(training), *min(held_out)))
    return Floor(int(str(fields.values_of(record.config)["num_steps"])), tuple(clones))


# --- What a person sees ---


def floors_table(floors: Floors) -> Table:
    """A row for each number of diffusion steps: the least losses, and the bound that they suggest."""
    seeds = f"{len(floors.seeds)} seed{'s' if len(floors.seeds) > 1 else ''}"
    title = f"Least denoising loss L_c of a clone of {floors.source}: {floors.updates:,} updates, {seeds}"
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE, pad_edge=False, min_width=70)
    for name in ("T", "on training rows", "on held-out rows", "at", f"kappa: {MARGIN:.0%} above"):
        table.add_column(name, justify="right")
    for floor in floors.floors:
        updates = [clone.update for clone in floor.clones]
        at = sorted({min(updates), max(updates)})
        table.add_row(
            str(floor.num_steps),
            _spread([clone.training for clone in floor.clones]),
            _spread([clone.held_out for clone in floor.clones]),
            " to ".join(f"{update:,}" for update in at),
            f"{floor.above(MARGIN):g}",
        )
    return table


def lines(floors: Floors) -> list[str]:
    """What the numbers mean, a line each."""
    found = [
        "The floor is the loss on held-out rows: L_c as the constraint has it, a mean over rows, action dimensions and "
        "steps, of a policy that does nothing but imitate. A kappa below it asks for more than imitation can give.",
        f"{MARGIN:.0%} above it is a rule of thumb, a place to start from: it leaves Q some room and still binds. Try "
        "more and less.",
    ]
    unfinished = [
        str(floor.num_steps) for floor in floors.floors if all(clone.update == floors.updates for clone in floor.clones)
    ]
    if unfinished:
        found.append(
            f"At T = {', '.join(unfinished)} the least loss is that of the last evaluation: more --updates may find a "
            "lower one."
        )
    return [*found, *_of_the_paper(floors)]


def _of_the_paper(floors: Floors) -> list[str]:
    """The paper's bound for the task, where it has one."""
    preset = None if floors.task is None else find_task(floors.task).preset
    if preset is None or preset not in presets_of(BOUNDED):
        return []
    config = fields.build(diffcps.Config, presets_of(BOUNDED)[preset].fields)
    words = f"The paper's kappa for {preset} is {config.kappa:g} at T = {config.num_steps}"
    for floor in floors.floors:
        if floor.num_steps == config.num_steps:
            reached = float(config.kappa) > floor.value
            return [f"{words}: {'above' if reached else 'not above'} the floor of {floor.value:.3g} here."]
    return [f"{words}, which was not measured here."]


def _spread(values: Sequence[float]) -> str:
    mean, deviation = mean_and_std_over_members(values)
    return f"{mean:.4g} ± {deviation:.2g}" if len(values) > 1 else f"{mean:.4g}"
