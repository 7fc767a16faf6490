"""How long does an update of each method take?

    python benchmarks/methods.py --out benchmarks/methods_cpu.md

Times the compiled program of a run (batches drawn, all networks updated) of every method with its default
configuration, the paper's size, on data of HalfCheetah's sizes. A staged method has a line for each of its stages that
differ, and one for the whole run, by the stages' shares. What a stage does before its first update (returns, support
actions) is not in the figures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from machine import SIZES, command_and_machine

from diffcps.algorithms import ALGORITHMS
from diffcps.training.members import Program, expand
from diffcps.training.timing import StageTiming, made_up_data, seconds_per_update, time_stages
from diffcps.types import Configuration


def timings(name: str, config: Configuration, members: int, calls: int, seconds_per_call: float) -> list[StageTiming]:
    """Each stage of a method that differs from the others."""
    spec, method = SIZES["halfcheetah 17/6"], ALGORITHMS[name]
    data = made_up_data(spec, episode_steps=method.make(config, spec).episode_steps)
    program = Program(lambda swept: method.make(config, spec), expand(range(members), {}), data)
    return time_stages(program, calls, seconds_per_call)[0]


def times_text(seconds: float, members: int) -> str:
    """Milliseconds, of all members and of one, as cells of the table."""
    return f"{1e3 * seconds:.2f} | " + ("" if members == 1 else f"{1e3 * seconds / members:.2f} | ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    parser.add_argument("--members", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long one timed call takes")
    parser.add_argument("--out", type=Path, help="write the table there as Markdown")
    options = parser.parse_args()
    columns = [
        f"ms/update, {members} seed{'s' if members > 1 else ''} | {'' if members == 1 else 'per seed | '}compile s"
        for members in options.members
    ]
    lines = [
        "# An update of each method",
        "",
        command_and_machine(),
        "Default configurations, 17 numbers an observation and 6 an action; medians of the calls, all seeds together.",
        "",
        f"| method | stage (share of the updates) | {' | '.join(columns)} |",
        f"|---|---|{'---|' * sum(column.count('|') + 1 for column in columns)}",
    ]
    print("\n".join(lines), flush=True)
    for name in options.methods:
        config = ALGORITHMS[name].Config()
        measured = [timings(name, config, members, options.calls, options.seconds) for members in options.members]
        rows = [[of_members[stage] for of_members in measured] for stage in range(len(measured[0]))]
        for number, row in enumerate(rows):
            cells = [
                f"{times_text(timing.seconds_per_update, members)}{timing.compile_seconds:.1f}"
                for members, timing in zip(options.members, row, strict=True)
            ]
            stage = "" if len(rows) == 1 else f"{number + 1} ({row[0].share:.0%})"
            lines.append(f"| {name} | {stage} | {' | '.join(cells)} |")
        if len(rows) > 1:
            cells = [
                times_text(seconds_per_update(stages), members)
                for members, stages in zip(options.members, measured, strict=True)
            ]
            lines.append(f"| {name} | whole run | {' | '.join(cells)} |")
        print("\n".join(lines[-len(rows) - (len(rows) > 1) :]), flush=True)
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
