"""The command line: the only module that parses arguments."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from diffcps.types import UserError

REPRODUCED = ("figure1", "figure5", "figure6", "figure7", "figure8", "figure9", "theory")
"""What `diffcps reproduce` knows."""


class _Parser(argparse.ArgumentParser):
    """One line for bad arguments, like for every other bad input."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} ({self.prog} --help explains)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 0 when done, 2 for bad input, 130 when interrupted."""
    from diffcps.training.loop import Interrupted

    try:
        options, unknown = _parser().parse_known_args(arguments)
        if unknown:
            _refuse_unknown(options, unknown)
        with _warnings_in_one_line():
            options.command(options)
        return 0
    except UserError as error:
        return _say(f"error: {error}", 2)
    except Interrupted as stop:
        return _say(f"{stop}, and saved; go on with the same command and --resume", 130)
    except KeyboardInterrupt:
        return _say("interrupted; the last checkpoint stands, go on with --resume", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"error: {where}{error.strerror or error}; nothing that was saved before is lost", 2)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Without the place in the code: they are about what was given to the command."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"diffcps: warning: {' '.join(str(message).split())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _say(text: str, code: int) -> int:
    print(f"diffcps: {' '.join(text.split())}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    from diffcps.algorithms import ALGORITHMS
    from diffcps.run.fields import add_flags
    from diffcps.run.train import Settings

    parser = _Parser(prog="diffcps", description="Offline reinforcement learning with diffusion policies.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)

    train = commands.add_parser("train", help="train an algorithm on logged transitions and score it")
    algorithms = train.add_subparsers(required=True, metavar="ALGORITHM", dest="algorithm", parser_class=_Parser)
    for name, module in ALGORITHMS.items():
        summary = (module.__doc__ or "").split("\n")[0]
        algorithm = algorithms.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        run = algorithm.add_argument_group("the run")
        run.add_argument(
            "--task",
            metavar="TASK",
            help="such as hopper-medium-v2 (diffcps data list): its dataset, environment, reference scores and preset",
        )
        run.add_argument(
            "--dataset",
            default=argparse.SUPPRESS,
            metavar="FILE|ID|builtin",
            help="HDF5, npz, Minari, or builtin [that of the task, else builtin]",
        )
        run.add_argument(
            "--reward", choices=_reward_transforms(), default=argparse.SUPPRESS, help="transform of the rewards [none]"
        )
        run.add_argument(
            "--normalise-observation",
            action=argparse.BooleanOptionalAction,
            default=argparse.SUPPRESS,
            help="shift and scale observations by the data's mean and deviation; it travels with the policy [False]",
        )
        run.add_argument("--preset", metavar="TASK", help="hyper-parameters of the paper's task, such as hopper-medium")
        run.add_argument("--out", type=Path, metavar="DIR", help="run folder [runs/ALGORITHM-DATASET]")
        run.add_argument("--resume", action="store_true", help="go on with the run in the folder")
        run.add_argument("--tensorboard", action="store_true", help="also write TensorBoard logs (extra: tensorboard)")
        run.add_argument("--wandb", metavar="PROJECT", help="also log to Weights & Biases (extra: wandb)")
        add_flags(run, Settings)
        add_flags(
            algorithm.add_argument_group("hyper-parameters (a real-valued one given several values is swept)"),
            module.Config,
        )
        algorithm.set_defaults(command=_train)

    evaluate = commands.add_parser("evaluate", help="score the policies of a run", allow_abbrev=False)
    evaluate.add_argument("run", type=Path, help="run folder")
    evaluate.add_argument("--episodes", type=int, default=20, help="episodes per member [20]")
    evaluate.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which checkpoint [best]")
    evaluate.add_argument(
        "--action-choice", choices=("sample", "softmax_q", "argmax_q"), help="how to act [as in the run]"
    )
    evaluate.add_argument(
        "--seed", type=int, default=1000, help="episode e starts from seed SEED + e [1000: not those of training]"
    )
    evaluate.add_argument("--env", metavar="ID", help="another environment of the same sizes")
    evaluate.add_argument(
        "--video", type=Path, metavar="FILE.mp4", help="film one episode of the best member (extra: video)"
    )
    evaluate.set_defaults(command=_evaluate)

    data = commands.add_parser("data", help="look at datasets").add_subparsers(
        required=True, metavar="COMMAND", parser_class=_Parser
    )
    show = data.add_parser("show", help="what is in a dataset, as a table and a picture", allow_abbrev=False)
    show.add_argument("dataset", metavar="FILE|ID|builtin")
    show.add_argument("--out", type=Path, metavar="FILE.png", help="the picture [NAME.png in the current folder]")
    show.set_defaults(command=_data_show)
    gather = data.add_parser(
        "collect", help="make a task's dataset by D4RL's recipe, in a simulator", allow_abbrev=False
    )
    gather.add_argument("task", metavar="TASK", help="such as hopper-medium-v2, maze2d-umaze-v1 or antmaze-umaze-v2")
    gather.add_argument("--out", type=Path, metavar="FILE.hdf5", help="file to write [runs/data/TASK.hdf5]")
    gather.add_argument("--transitions", type=int, default=1_000_000, metavar="N", help="rows [1000000]")
    gather.add_argument("--seed", type=int, default=0, help="of everything random [0]")
    gather.add_argument("--env", metavar="ID", help="another version of the robot (locomotion) [v5; Ant: v2]")
    gather.add_argument("--policy", type=Path, metavar="FILE", help="the ant that walks (AntMaze) [the package's]")
    gather.add_argument("--fast", action="store_true", help="a smoke run: few rows of a policy that can do nothing")
    gather.add_argument("--resume", action="store_true", help="go on with what is there")
    gather.set_defaults(command=_data_collect)
    fits = data.add_parser(
        "check", help="take stored steps again in a simulator: does the data fit it?", allow_abbrev=False
    )
    fits.add_argument("dataset", metavar="FILE|ID|builtin")
    fits.add_argument("--env", metavar="ID", required=True, help="the environment to compare with, such as Hopper-v5")
    fits.add_argument("--steps", type=int, default=2000, help="steps drawn from the whole file [2000]")
    fits.add_argument("--seed", type=int, default=0, help="of the draw [0]")
    fits.add_argument("--out", type=Path, metavar="FILE.png", help="the picture [NAME-ENV.png in the current folder]")
    fits.add_argument("--json", type=Path, metavar="FILE", help="everything that was found, as JSON")
    fits.set_defaults(command=_data_check)
    tasks = data.add_parser("list", help="the catalogue of tasks", allow_abbrev=False)
    tasks.add_argument(
        "--family", metavar="NAME", help="only gym, antmaze, maze2d, adroit, kitchen, ogbench, trifinger"
    )
    tasks.set_defaults(command=_data_list)
    get = data.add_parser("get", help="fetch a task's data into the data folder (DIFFCPS_DATA)", allow_abbrev=False)
    get.add_argument("task", metavar="TASK")
    way = get.add_mutually_exclusive_group()
    way.add_argument(
        "--from", dest="file", type=Path, metavar="FILE", help="verify and keep a file that is here already"
    )
    way.add_argument("--url", help="another address of the same file")
    way.add_argument("--minari", action="store_true", help="the nearest Minari dataset instead")
    get.set_defaults(command=_data_get)
    change = data.add_parser("convert", help="write a dataset in another format", allow_abbrev=False)
    change.add_argument("source", metavar="SOURCE", help="what train --dataset takes")
    change.add_argument("target", metavar="TARGET", help=".hdf5 or .npz file, or a Minari id such as name/of/set-v0")
    change.add_argument("--task", metavar="TASK", help="take environment and reference scores from this task")
    change.add_argument("--overwrite", action="store_true", help="replace what is there")
    change.set_defaults(command=_data_convert)

    reproduce = commands.add_parser(
        "reproduce", help="train and draw what a figure of the paper shows; check its theory", allow_abbrev=False
    )
    reproduce.add_argument("what", metavar="WHAT", choices=REPRODUCED, help=", ".join(REPRODUCED))
    reproduce.add_argument("--out", type=Path, metavar="DIR", help="pictures, numbers and runs [runs/figures]")
    reproduce.add_argument("--fast", action="store_true", help="a smoke run of a minute [into runs/figures-fast]")
    reproduce.add_argument("--methods", nargs="+", metavar="ALGORITHM", help="of a figure only these [all]")
    reproduce.add_argument("--seeds", nargs="+", type=int, metavar="N", help="of a figure [0 1 2 3]")
    reproduce.set_defaults(command=_reproduce)

    commands.add_parser("list", help="algorithms and presets").set_defaults(command=_list)
    cite = commands.add_parser("cite", help="BibTeX of an algorithm")
    cite.add_argument("algorithm", choices=ALGORITHMS)
    cite.set_defaults(command=_cite)
    parser.set_defaults(algorithm=None)
    return parser


def _reward_transforms() -> tuple[str, ...]:
    from typing import get_args

    from diffcps.data.transforms import RewardTransform

    return get_args(RewardTransform)


def _refuse_unknown(options: argparse.Namespace, unknown: Sequence[str]) -> NoReturn:
    from diffcps.algorithms import ALGORITHMS
    from diffcps.run import fields
    from diffcps.run.train import Settings

    flag = next((word for word in unknown if word.startswith("--")), None)
    if flag is None or options.command is not _train:
        raise UserError(f"unrecognised argument {' '.join(unknown)}: --help lists what there is")
    known = [*fields.field_types(ALGORITHMS[options.algorithm].Config), *fields.field_types(Settings)]
    known += ["task", "dataset", "reward", "normalise_observation", "preset", "out", "resume", "tensorboard", "wandb"]
    raise UserError(
        fields.unknown_name(flag.split("=")[0].removeprefix("--").replace("-", "_"), known).replace("_", "-")
    )


def _train(options: argparse.Namespace) -> None:
    from diffcps.algorithms import ALGORITHMS
    from diffcps.data import load_dataset
    from diffcps.presets import PRESETS
    from diffcps.run import fields
    from diffcps.run.folder import RunFolder
    from diffcps.run.loggers import TensorBoard, Together, WandB
    from diffcps.run.progress import Live
    from diffcps.run.table import run_table
    from diffcps.run.train import Settings, environment_of, reference_of, train
    from diffcps.tasks.catalogue import find_task
    from diffcps.training.members import expand
    from diffcps.types import Real

    name, kind = options.algorithm, ALGORITHMS[options.algorithm].Config
    given = vars(options)
    task = None if options.task is None else find_task(options.task)
    out = options.out or Path("runs") / f"{name}-{Path(options.task or given.get('dataset', 'builtin')).stem}"
    stored = RunFolder(out).read_config() if options.resume and RunFolder(out).config.exists() else None

    # The run as it stands (when resuming) or its task, then the preset, then what was given: later ones win.
    values: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    data: dict[str, Any] = {"dataset": "builtin", "reward": "none", "normalise_observation": False}
    sweep: dict[str, Any] = {}
    if stored is not None:
        if stored["algorithm"] != name:
            raise UserError(f"{out}: holds a run of {stored['algorithm']}, not of {name}")
        values |= fields.from_json(kind, stored["config"])
        settings |= fields.from_json(Settings, {key: stored[key] for key in fields.field_types(Settings)})
        settings["env"] = settings["env"] or "none"
        data = {
            "dataset": stored["dataset"]["source"],
            "reward": stored["dataset"]["reward_transform"],
            "normalise_observation": stored["dataset"]["observation_mean"] is not None,
        }
        stored_task = stored["dataset"].get("task")
        if task is not None and stored_task != task.id:
            raise UserError(f"{out}: holds a run on {stored_task or 'no task'}, not on {task.id}")
        task = find_task(stored_task) if stored_task else None
        sweep |= {key: tuple(map(float, swept)) for key, swept in stored["sweep"].items()}
    presets, preset = PRESETS.get(name, {}), options.preset
    if task is not None and stored is None:
        data["dataset"] = task.id
        preset = preset or (task.preset if task.preset in presets else None)
    if preset is not None:
        if preset not in presets:
            raise UserError(fields.unknown_name(preset, presets).replace("field", "preset"))
        values |= presets[preset].fields
        data["reward"] = presets[preset].reward
    settings |= {key: given[key] for key in fields.field_types(Settings) if key in given}
    if "seeds" in settings:
        settings["seeds"] = tuple(settings["seeds"])
    data |= {key: given[key] for key in data if key in given}
    for key, annotation in fields.field_types(kind).items():
        if key not in given:
            continue
        value = given[key]
        if annotation != Real:
            values[key] = value
        elif len(value) == 1:
            values[key], _ = value[0], sweep.pop(key, None)
        else:
            sweep[key] = tuple(value)

    config = fields.build(kind, values)
    resolved = fields.build(Settings, settings)
    dataset = load_dataset(
        data["dataset"],
        reward=data["reward"],
        normalise_observation=data["normalise_observation"],
        task=None if task is None else task.id,
    )
    labels = [member.label for member in expand(resolved.seeds, sweep)]
    kappa = getattr(config, "kappa", None)
    reference = reference_of(dataset.info, environment_of(resolved, dataset.info))
    with Live(resolved.updates, labels, kappa=kappa, reference=reference) as live:
        displays: list[Any] = [live]
        if options.tensorboard:
            displays.append(TensorBoard(out / "tensorboard", labels))
        if options.wandb is not None:
            displays.append(WandB(options.wandb, out, labels))
        display = Together(displays)
        summary = train(config, dataset, resolved, out=out, sweep=sweep, resume=options.resume, display=display)
    _print(run_table(summary))
    print(f"run: {out}   picture: {out / 'curves.png'}   scores: {out / 'summary.json'}")


def _evaluate(options: argparse.Namespace) -> None:
    from diffcps.run.policy import evaluate, film
    from diffcps.run.table import evaluation_table

    result = evaluate(
        options.run,
        options.checkpoint,
        episodes=options.episodes,
        seed=options.seed,
        environment=options.env,
        action_choice=options.action_choice,
        on_step=_step_counter(),
    )
    _print(evaluation_table(result))
    print(f"all returns: {options.run / f'evaluation-{options.checkpoint}.json'}")
    if options.video is not None:
        best = max(result["members"], key=lambda row: row["score"])
        total = film(
            options.run,
            options.video,
            options.checkpoint,
            member=best["member"],
            seed=options.seed,
            environment=result["env"],
            action_choice=options.action_choice,
        )
        print(f"video: {options.video} (member {best['member']}, return {total:.0f})")


def _step_counter() -> Any:
    """On a terminal, a line that says how far the episodes are."""
    if not sys.stderr.isatty():
        return None

    def show(step: int, alive: int) -> None:
        if step % 20 == 0:
            print(f"\rstep {step}, {alive} episodes running ", end="", file=sys.stderr, flush=True)
        if alive == 0:
            print(file=sys.stderr)

    return show


def _data_show(options: argparse.Namespace) -> None:
    from diffcps.data import load_dataset
    from diffcps.data.picture import dataset_table, save_dataset_figure
    from diffcps.data.summary import describe, episode_returns

    dataset = load_dataset(options.dataset)
    _print(dataset_table(describe(dataset)))
    path = options.out or Path(Path(options.dataset).stem + ".png")
    save_dataset_figure(dataset, *episode_returns(dataset), path)
    print(f"picture: {path}")


def _data_collect(options: argparse.Namespace) -> None:
    from diffcps.collect import collect

    path = collect(
        options.task,
        options.out or Path("runs") / "data" / f"{options.task}.hdf5",
        transitions=options.transitions,
        seed=options.seed,
        fast=options.fast,
        resume=options.resume,
        say=lambda text: print(text, flush=True),
        environment=options.env,
        policy=options.policy,
    )
    print(f"written: {path}   picture: {path.with_suffix('.png')}")


def _data_check(options: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from diffcps.simulator.check import check_simulator
    from diffcps.simulator.picture import check_table, save_check_figure
    from diffcps.storage import write_json

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("steps")
        report = check_simulator(
            options.dataset,
            options.env,
            steps=options.steps,
            seed=options.seed,
            on_step=lambda done, total: progress.update(task, completed=done, total=total),
        )
    _print(check_table(report))
    if options.json is not None:
        write_json(options.json, report.to_json())
        print(f"numbers: {options.json}")
    if report.findings is not None:  # otherwise there is nothing to draw
        path = options.out or Path(
            f"{Path(options.dataset).stem}-{options.env.rpartition('/')[2].rpartition(':')[2]}.png"
        )
        save_check_figure(report, path)
        print(f"picture: {path}")


def _data_list(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from diffcps.tasks.catalogue import catalogue, data_folder, state_of
    from diffcps.tasks.table import task_tables

    tasks = [asdict(task) | {"here": state_of(task)} for task in catalogue().values()]
    families = list(dict.fromkeys(task["family"] for task in tasks))
    if options.family not in (None, *families):
        raise UserError(f"no family {options.family}; there are {', '.join(families)}")
    _print(task_tables([task for task in tasks if options.family in (None, task["family"])]))
    print(f"data folder: {data_folder()}")


def _data_get(options: argparse.Namespace) -> None:
    from diffcps.data import download
    from diffcps.tasks.catalogue import find_task
    from diffcps.tasks.table import download_bar

    task = find_task(options.task)
    if options.minari:
        dataset_id = download.fetch_minari(task)
        print(f"here: Minari's {dataset_id}, to be used with --dataset {dataset_id}. {task.note}")
        return
    try:
        if options.file is not None:
            path = download.adopt(task, options.file)
        else:
            with download_bar(task.id) as progress:
                path = download.download(task, url=options.url, progress=progress)
    except KeyboardInterrupt:
        sys.exit(_say("interrupted; the same command goes on", 130))
    checked = "size and SHA-256 are the published ones" if task.sha256 else "no published SHA-256 to compare with"
    print(f"here: {path} ({checked}). diffcps train ALGORITHM --task {task.id} uses it")


def _data_convert(options: argparse.Namespace) -> None:
    from diffcps.data.convert import convert

    path = convert(options.source, options.target, task=options.task, overwrite=options.overwrite, spec_of=_spec_of)
    print(f"written: {path}")


def _spec_of(environment_id: str) -> Any:
    """Gymnasium's specification of an environment, or None where it cannot be made here."""
    from contextlib import closing

    from diffcps.envs.make import make_environment

    try:
        with closing(make_environment(environment_id)) as environment:
            return environment.spec
    except UserError:
        return None


def _reproduce(options: argparse.Namespace) -> None:
    from diffcps.paper.figures import reproduce
    from diffcps.paper.theory import theory
    from diffcps.training.loop import Interrupted

    out = options.out or Path("runs") / ("figures-fast" if options.fast else "figures")

    def say(text: str) -> None:
        print(text, flush=True)

    try:
        if options.what == "theory":
            if options.methods or options.seeds:
                raise UserError("theory trains nothing: leave out --methods and --seeds")
            paths = theory(out, options.fast, say)
        else:
            paths = reproduce(options.what, out, options.fast, methods=options.methods, seeds=options.seeds, say=say)
    except Interrupted as stop:
        sys.exit(_say(f"{stop}, and saved; the same command goes on", 130))
    print("written: " + " ".join(map(str, paths)))


def _list(options: argparse.Namespace) -> None:
    from diffcps.algorithms import ALGORITHMS
    from diffcps.presets import PRESETS

    for name, module in ALGORITHMS.items():
        print((module.__doc__ or name).split("\n")[0])
        print(f"  diffcps train {name}   presets: {', '.join(PRESETS.get(name, {})) or 'none'}\n")


def _cite(options: argparse.Namespace) -> None:
    from diffcps.algorithms import ALGORITHMS

    print(ALGORITHMS[options.algorithm].CITATION)


def _print(table: Any) -> None:
    from rich.console import Console

    Console().print(table)


if __name__ == "__main__":
    sys.exit(main())
