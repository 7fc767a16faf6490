"""diffcps train."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from diffcps.algorithms import ALGORITHMS
from diffcps.cli.compiled import add_flag
from diffcps.cli.console import Commands, Parser, complain, say, show, this_command
from diffcps.cli.flags import add_flags, given_fields
from diffcps.readers.source import BUILTIN
from diffcps.records import fields
from diffcps.records.environment import environment_of
from diffcps.records.folder import RunFolder
from diffcps.records.settings import Settings
from diffcps.run.floor import bound_on_loss, check_share, fitting_floor, measure_command, read_floors
from diffcps.run.resolve import Given, Request, resolve
from diffcps.run.start import start_of
from diffcps.storage import plain_name
from diffcps.types import Dataset, Reading, Real, UserError


def add(commands: Commands) -> None:
    """Adds the command."""
    train = commands.add_parser("train", help="train an algorithm on logged transitions and score it")
    algorithms = train.add_subparsers(required=True, metavar="ALGORITHM", dest="algorithm", parser_class=Parser)
    for name, method in ALGORITHMS.items():
        summary = (method.__doc__ or "").split("\n")[0]
        algorithm = algorithms.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        run = algorithm.add_argument_group("the run")
        _add_data_flags(run)
        _add_run_flags(run)
        bound = bound_on_loss(name)
        if bound is not None:
            _add_floor_flags(run, bound)
        add_flags(run, Settings)
        add_flags(algorithm.add_argument_group("how the data are read"), Reading)
        add_flags(
            algorithm.add_argument_group("hyper-parameters (a real-valued one given several values is swept)"),
            method.Config,
        )
        add_flag(run)
        algorithm.set_defaults(command=_train, parser=algorithm)


def _add_data_flags(run: argparse._ArgumentGroup) -> None:
    run.add_argument(
        "--task",
        metavar="TASK",
        help="such as hopper-medium-v2 (diffcps data list): its dataset, environment, reference scores and preset",
    )
    run.add_argument(
        "--dataset",
        metavar="FILE|FOLDER|ID|builtin",
        nargs="+",
        help="HDF5, npz, CSV or Parquet files, a folder of them, Minari, or builtin [that of the task, else builtin]",
    )


def _add_run_flags(run: argparse._ArgumentGroup) -> None:
    run.add_argument(
        "--preset",
        metavar="TASK",
        help="hyper-parameters of the paper's task, such as hopper-medium; none: not even the task's own",
    )
    run.add_argument("--out", type=Path, metavar="DIR", help="run folder [runs/ALGORITHM-DATASET]")
    run.add_argument(
        "--init-from", metavar="RUN", help="begin with the last weights of this run of the algorithm, on other data"
    )
    run.add_argument("--resume", action="store_true", help="go on with the run in the folder")
    run.add_argument("--tensorboard", action="store_true", help="also write TensorBoard logs (extra: tensorboard)")
    run.add_argument("--wandb", metavar="PROJECT", help="also log to Weights & Biases (extra: wandb)")


def _add_floor_flags(run: argparse._ArgumentGroup, bound: str) -> None:
    run.add_argument(
        f"--{bound}-above-floor",
        dest="above_floor",
        type=float,
        metavar="X",
        help=f"{bound} = (1 + X) times the floor of the denoising loss, as `diffcps kappa` has measured it",
    )
    run.add_argument("--floor-from", type=Path, metavar="DIR|FILE", help="where it was written [runs/kappa-DATASET]")


def _train(options: argparse.Namespace) -> None:
    from diffcps.run.loggers import TensorBoard, Together, WandB
    from diffcps.run.progress import Display, Live
    from diffcps.run.table import run_table
    from diffcps.run.train import run

    source = None if options.dataset is None else ",".join(options.dataset)
    out: Path = options.out or default_folder(options.algorithm, options.task, source)
    stored = RunFolder(out).read_record() if options.resume and RunFolder(out).config.exists() else None
    try:
        start = start_of(options.init_from, stored)
        request = resolve(options.algorithm, _given(options), options.task, options.preset, stored, start)
    except UserError as error:
        raise UserError(f"{out}: {error}" if stored else str(error)) from None
    dataset = request.load()
    request = _above_floor(request, dataset, options, source)
    with ExitStack() as stack:
        displays: list[Display] = [stack.enter_context(Live())]
        if options.tensorboard:
            displays.append(stack.enter_context(TensorBoard(out / "tensorboard")))
        if options.wandb is not None:
            displays.append(stack.enter_context(WandB(options.wandb, out)))
        summary = run(request, dataset, out, resume=options.resume, display=Together(displays))
    show(run_table(summary))
    print(f"run: {out}   picture: {out / 'curves.png'}   scores: {out / 'summary.json'}")
    scored = any(row.scores is not None for row in summary.members)
    if scored:
        print(f"score it on new episodes: {this_command()} evaluate {out}")
    elif any(row.selected is not None for row in summary.members):
        print(f'the policy with the lowest selection/loss: diffcps.load_policy("{out}", "selected")')
    if summary.failed_evaluations:
        command = f"{this_command()} evaluate {out}{'' if scored else ' --checkpoint selected'}"
        failed = f"{summary.failed_evaluations} evaluation{'s' if summary.failed_evaluations > 1 else ''}"
        where = RunFolder(out).evaluations
        sys.exit(
            complain(
                f"trained and saved, but {failed} could not be played in {summary.environment} (failure in {where} "
                f"says why); when the environment works again: {command}",
                1,
            )
        )


def _above_floor(request: Request, dataset: Dataset, options: argparse.Namespace, source: str | None) -> Request:
    """With the bound that --kappa-above-floor means, which is said in a line. Raises `UserError`."""
    bound = bound_on_loss(request.method)
    if bound is None:
        return request
    flag, share = f"--{bound}-above-floor", options.above_floor
    if share is None:
        if options.floor_from is not None:
            raise UserError(f"--floor-from says where {flag} takes the floor from: add that one, or leave it out")
        return request
    if bound in vars(options):
        raise UserError(f"--{bound} and {flag} both say what {bound} is: leave one of them out")
    check_share(flag, share)
    command = measure_command(dataset.info, environment_of(request.settings, dataset.info), request.config)
    path = options.floor_from or default_folder("kappa", options.task, source)
    floors, file = read_floors(path, command)
    floor = fitting_floor(floors, file, dataset, request.config, command)
    value = floor.above(share)
    seeds = " ".join(str(clone.seed) for clone in floor.clones)
    say(
        f"{bound} {value:g}: {100 * share:g} % above the floor {floor.value:.4g} in {file} (held-out rows, T = "
        f"{floor.num_steps}, {floors.updates:,} updates, seeds {seeds})"
    )
    sweep = {name: values for name, values in request.sweep.items() if name != bound}
    return replace(request, config=replace(request.config, **{bound: value}), sweep=sweep)


def default_folder(algorithm: str, task: str | None, dataset: str | None) -> Path:
    """Where a run goes by default: named by all that was said of its data."""
    data = [plain_name(text) for text in (task, dataset) if text is not None]
    return Path("runs") / "-".join([algorithm, *(data or [BUILTIN])])


def _given(options: argparse.Namespace) -> Given:
    """What was given; a real-valued field of several values is swept."""
    kind = ALGORITHMS[options.algorithm].Config
    annotations = fields.field_types(kind)
    single: dict[str, object] = {}
    sweep: dict[str, tuple[float, ...]] = {}
    for name, value in given_fields(options, kind).items():
        if annotations[name] != Real or not isinstance(value, list):
            single[name] = value
        elif len(value) == 1:
            single[name] = value[0]
        else:
            sweep[name] = tuple(value)
    settings, reading = given_fields(options, Settings), given_fields(options, Reading)
    return Given(single, sweep, settings, None if options.dataset is None else ",".join(options.dataset), reading)
