"""diffcps kappa."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from diffcps.cli.compiled import add_flag
from diffcps.cli.console import Commands, complain, say, show
from diffcps.cli.flags import add_flags, given_fields
from diffcps.cli.train import default_folder
from diffcps.records import fields
from diffcps.run.floor import FLOOR_FILE, Floor, Floors, Network, rows_seen
from diffcps.storage import check_ours
from diffcps.types import Reading


def add(commands: Commands) -> None:
    """Adds the command."""
    summary = "the least denoising loss that data allow, and the kappa of DiffCPS that it suggests"
    command = commands.add_parser("kappa", help=summary, description=summary, allow_abbrev=False)
    command.add_argument("dataset", metavar="FILE|FOLDER|ID|TASK|builtin", nargs="+", help="the data, as in train")
    command.add_argument("--task", metavar="TASK", help="the task that the data are used for, as in train")
    command.add_argument(
        "--env", metavar="ID", help="as in train: data that name no box of their actions have the environment's"
    )
    command.add_argument(
        "--steps", type=int, nargs="+", default=[5, 10, 15, 20], metavar="T", help="diffusion steps [5 10 15 20]"
    )
    command.add_argument("--updates", type=int, default=30_000, metavar="N", help="of each clone [30000]")
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="[0 1 2]")
    command.add_argument(
        "--validation", type=float, default=0.1, metavar="X", help="share of the episodes that are held out [0.1]"
    )
    command.add_argument("--out", type=Path, metavar="DIR", help=f"runs and {FLOOR_FILE} [runs/kappa-DATASET]")
    add_flags(command.add_argument_group("the denoiser, as in the run to come"), Network)
    add_flags(command.add_argument_group("how the data are read, as in the run to come"), Reading)
    add_flag(command)
    command.set_defaults(command=_kappa, parser=command)


def _kappa(options: argparse.Namespace) -> None:
    from diffcps.run.kappa import check_steps, data_as_read, floors_table, lines, measure, settings_of
    from diffcps.run.progress import Live
    from diffcps.training.loop import Interrupted

    settings = settings_of(options.updates, options.seeds, options.validation)
    check_steps(options.steps)
    network = fields.build(Network, given_fields(options, Network))
    source = ",".join(options.dataset)
    out: Path = options.out or default_folder("kappa", options.task, source)
    check_ours(out / FLOOR_FILE)  # before anything is trained
    dataset = data_as_read(source, options.task, options.env, given_fields(options, Reading))
    found: list[Floor] = []
    try:
        for num_steps in options.steps:
            say(f"T = {num_steps}: a clone of {source}, {settings.updates:,} updates, into {out / f'T{num_steps}'}")
            with Live() as live:
                found.append(measure(dataset, network, num_steps, settings, out / f"T{num_steps}", live))
    except Interrupted as stop:
        sys.exit(complain(f"{stop}, and saved; the same command goes on", 130))
    floors = Floors(
        source=source,
        task=dataset.info.task,
        rows_sha256=rows_seen(dataset),
        network=network,
        updates=settings.updates,
        seeds=settings.seeds,
        validation=settings.validation,
        floors=tuple(found),
    )
    floors.write(out / FLOOR_FILE)
    show(floors_table(floors))
    for line in lines(floors):
        say(line)
    say(f"floors: {out / FLOOR_FILE}   in a run on these data: --kappa-above-floor 0.1 --floor-from {out}")
