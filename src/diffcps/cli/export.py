"""diffcps export."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffcps.cli.compiled import add_flag
from diffcps.cli.console import Commands
from diffcps.cli.flags import add_action_choice, add_checkpoint


def add(commands: Commands) -> None:
    """Adds the command."""
    export = commands.add_parser(
        "export", help="a policy as files that need neither diffcps nor JAX (extra: export)", allow_abbrev=False
    )
    export.add_argument("run", type=Path, help="run folder")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder, or an earlier export")
    add_checkpoint(export)
    export.add_argument("--member", type=int, default=0, metavar="M", help="number of the member [0]")
    add_action_choice(export)
    export.add_argument(
        "--no-onnx", dest="onnx", action="store_false", help="StableHLO, weights and card alone, without the extra"
    )
    add_flag(export)
    export.set_defaults(command=_export, parser=export)


def _export(options: argparse.Namespace) -> None:
    from diffcps.deploy.export import export

    record = export(
        options.run,
        options.out,
        options.checkpoint,
        member=options.member,
        action_choice=options.action_choice,
        onnx=options.onnx,
    )
    for name, parity in record.parity.items():
        line = f"{name}: largest difference {parity.largest_difference:.1g} of the width of the action box"
        line += f", {parity.rows} observations"
        if parity.other_choices:
            line += f"; in {parity.other_choices} of them another of two candidates that are equal but for rounding"
        print(line)
    print(f"export: {options.out}")
