"""diffcps data: show, check, collect, ant-policy, list, get, convert."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from diffcps.cli.console import Commands, Parser, complain, say, show
from diffcps.cli.flags import add_flags, given_fields
from diffcps.records import fields
from diffcps.storage import check_ours, plain_name
from diffcps.types import EnvironmentSpec, Reading, UserError

if TYPE_CHECKING:
    from gymnasium.envs.registration import EnvSpec


def add(commands: Commands) -> None:
    """Adds the commands."""
    data = commands.add_parser("data", help="look at datasets").add_subparsers(
        required=True, metavar="COMMAND", parser_class=Parser
    )
    _add_show(data)
    _add_check(data)
    _add_collect(data)
    _add_ant_policy(data)
    _add_list(data)
    _add_get(data)
    _add_convert(data)


def _add_show(commands: Commands) -> None:
    command = commands.add_parser("show", help="what is in a dataset, as a table and a picture", allow_abbrev=False)
    command.add_argument("dataset", metavar="FILE|FOLDER|ID|builtin", nargs="+")
    command.add_argument("--out", type=Path, metavar="FILE.png", help="the picture [DATASET.png in the current folder]")
    add_flags(command.add_argument_group("how the data are read"), Reading)
    command.set_defaults(command=_show, parser=command)


def _show(options: argparse.Namespace) -> None:
    from diffcps.data.load import load
    from diffcps.data.picture import dataset_table, save_dataset_figure
    from diffcps.data.summary import describe, episode_returns

    source = ",".join(options.dataset)
    path = options.out or Path(plain_name(source) + ".png")
    check_ours(path)
    dataset = load(source, fields.build(Reading, given_fields(options, Reading)))
    show(dataset_table(describe(dataset)))
    save_dataset_figure(dataset, *episode_returns(dataset), path)
    print(f"picture: {path}")


def _add_check(commands: Commands) -> None:
    command = commands.add_parser(
        "check", help="take stored steps again in a simulator: does the data fit it?", allow_abbrev=False
    )
    command.add_argument("dataset", metavar="FILE|ID|builtin")
    command.add_argument(
        "--env", metavar="ID", required=True, help="the environment to compare with, such as Hopper-v5"
    )
    command.add_argument("--steps", type=int, default=2000, help="steps drawn from the whole file [2000]")
    command.add_argument("--seed", type=int, default=0, help="of the draw [0]")
    command.add_argument(
        "--out", type=Path, metavar="FILE.png", help="the picture [DATASET-ENV.png in the current folder]"
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="everything that was found, as JSON")
    command.set_defaults(command=_check, parser=command)


def _check(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from diffcps.simulator.check import check_simulator
    from diffcps.simulator.picture import check_table, save_check_figure
    from diffcps.storage import write_json

    path = options.out or Path(f"{plain_name(options.dataset)}-{plain_name(options.env)}.png")
    for output in (path, options.json):
        if output is not None:
            check_ours(output)  # before the steps are taken
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("steps")
        report = check_simulator(
            options.dataset,
            options.env,
            steps=options.steps,
            seed=options.seed,
            on_step=lambda done, total: progress.update(task, completed=done, total=total),
        )
    show(check_table(report))
    if options.json is not None:
        write_json(options.json, report.to_json())
        print(f"numbers: {options.json}")
    if report.findings is not None:  # otherwise there is nothing to draw
        save_check_figure(report, path)
        print(f"picture: {path}")


def _add_collect(commands: Commands) -> None:
    command = commands.add_parser(
        "collect", help="make a task's dataset by D4RL's recipe, in a simulator", allow_abbrev=False
    )
    command.add_argument("task", metavar="TASK", help="such as hopper-medium-v2, maze2d-umaze-v1 or antmaze-umaze-v2")
    command.add_argument("--out", type=Path, metavar="FILE.hdf5", help="file to write [runs/data/TASK.hdf5]")
    command.add_argument("--transitions", type=int, default=1_000_000, metavar="N", help="rows [1000000]")
    command.add_argument("--seed", type=int, default=0, help="of everything random [0]")
    command.add_argument("--env", metavar="ID", help="another version of the robot (locomotion) [v5; Ant: v2]")
    command.add_argument("--policy", type=Path, metavar="FILE", help="policy of the ant (AntMaze) [the package's]")
    command.add_argument("--fast", action="store_true", help="a smoke run: few rows of a policy that can do nothing")
    command.add_argument("--resume", action="store_true", help="go on with what is there")
    command.set_defaults(command=_collect, parser=command)


def _collect(options: argparse.Namespace) -> None:
    from diffcps.collect import collect

    path = collect(
        options.task,
        options.out or Path("runs") / "data" / f"{options.task}.hdf5",
        transitions=options.transitions,
        seed=options.seed,
        fast=options.fast,
        resume=options.resume,
        say=say,
        environment=options.env,
        policy=options.policy,
    )
    print(f"written: {path}   picture: {path.with_suffix('.png')}")


def _add_ant_policy(commands: Commands) -> None:
    command = commands.add_parser(
        "ant-policy", help="train the policy of the ant that collects AntMaze data", allow_abbrev=False
    )
    command.add_argument("--out", type=Path, metavar="FILE.safetensors", required=True, help="the policy")
    command.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        default=Path("runs/ant-direction"),
        help="its run, gone on with where there is one [runs/ant-direction]",
    )
    command.add_argument("--steps", type=int, default=400_000, metavar="N", help="in the environment [400000]")
    command.add_argument("--seed", type=int, default=0, help="of everything random [0]")
    command.set_defaults(command=_ant_policy, parser=command)


def _ant_policy(options: argparse.Namespace) -> None:
    from diffcps.collect.ant_policy import train_ant_policy

    path = train_ant_policy(options.out, options.folder, steps=options.steps, seed=options.seed, say=say)
    print(f"written: {path}")


def _add_list(commands: Commands) -> None:
    command = commands.add_parser("list", help="the catalogue of tasks", allow_abbrev=False)
    command.add_argument(
        "--family", metavar="NAME", help="only gym, antmaze, maze2d, adroit, kitchen, ogbench, trifinger"
    )
    command.set_defaults(command=_list, parser=command)


def _list(options: argparse.Namespace) -> None:
    from diffcps.data.download import data_folder, state_of
    from diffcps.tasks.catalogue import catalogue
    from diffcps.tasks.table import task_tables

    tasks = list(catalogue().values())
    families = list(dict.fromkeys(task.family for task in tasks))
    if options.family not in (None, *families):
        raise UserError(f"no family {options.family}; there are {', '.join(families)}")
    show(task_tables([task for task in tasks if options.family in (None, task.family)], state_of))
    print(f"data folder: {data_folder()}")


def _add_get(commands: Commands) -> None:
    command = commands.add_parser(
        "get", help="fetch a task's data into the data folder (DIFFCPS_DATA)", allow_abbrev=False
    )
    command.add_argument("task", metavar="TASK")
    source = command.add_mutually_exclusive_group()
    source.add_argument(
        "--from", dest="file", type=Path, metavar="FILE", help="verify and keep a file that is here already"
    )
    source.add_argument("--url", help="another address of the same file")
    source.add_argument("--minari", action="store_true", help="the nearest Minari dataset instead")
    command.set_defaults(command=_get, parser=command)


def _get(options: argparse.Namespace) -> None:
    from diffcps.data import download
    from diffcps.tasks.catalogue import find_task

    task = find_task(options.task)
    if options.minari:
        dataset_id = download.fetch_minari(task)
        print(f"here: Minari's {dataset_id}, to be used with --dataset {dataset_id}. {task.note}")
        return
    try:
        if options.file is not None:
            path = download.adopt(task, options.file)
        else:
            with download.download_bar(task.id) as progress:
                path = download.download(task, url=options.url, progress=progress)
    except KeyboardInterrupt:
        sys.exit(complain("interrupted; the same command goes on", 130))
    checked = "size and SHA-256 are the published ones" if task.sha256 else "no published SHA-256 to compare with"
    print(f"here: {path} ({checked}). diffcps train ALGORITHM --task {task.id} uses it")


def _add_convert(commands: Commands) -> None:
    command = commands.add_parser("convert", help="write a dataset in another format", allow_abbrev=False)
    command.add_argument("source", metavar="SOURCE", help="what train --dataset takes")
    command.add_argument("target", metavar="TARGET", help=".hdf5 or .npz file, or a Minari id such as name/of/set-v0")
    command.add_argument("--task", metavar="TASK", help="take environment and reference scores from this task")
    command.add_argument("--overwrite", action="store_true", help="replace what is there")
    add_flags(command.add_argument_group("how the data are read"), Reading)
    command.set_defaults(command=_convert, parser=command)


def _convert(options: argparse.Namespace) -> None:
    from diffcps.data.convert import convert

    reading = fields.build(Reading, given_fields(options, Reading))
    path = convert(
        options.source, options.target, reading, task=options.task, overwrite=options.overwrite, spec_of=_spec_of
    )
    print(f"written: {path}")


def _spec_of(environment: EnvironmentSpec) -> EnvSpec | None:
    """Gymnasium's specification of an environment, or None where it cannot be made here."""
    from contextlib import closing

    from diffcps.envs.make import make_environment

    try:
        with closing(make_environment(environment)) as made:
            return made.spec
    except UserError:
        return None
