"""How long does an update of each method take?

    python benchmarks/methods.py --out benchmarks/methods_cpu.md

Times the compiled program of a run (batches drawn, all networks updated) of every method with its default
configuration, the paper's size, on data of HalfCheetah's sizes. A staged method has a line for each of its stages that
differ, and one for the whole run, by the stages' shares. What a stage does before its first update (returns, support
actions) is not in the figures.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from machine import SIZES, command_and_machine, made_up_data

from diffcps.algorithms import ALGORITHMS
from diffcps.training.members import Program, expand
from diffcps.types import Configuration, Tree

ROWS = 2_000
"""Fewer than in a file of D4RL, because stages begin with computations for every row."""


class Timing(NamedTuple):
    """Of one stage, with all members together."""

    share: float
    compile_seconds: float
    milliseconds: float
    """Median over the calls, per update."""


def timings(name: str, config: Configuration, members: int, calls: int, seconds_per_call: float) -> Iterator[Timing]:
    """Each stage of a method that differs from the others."""
    spec = SIZES["halfcheetah 17/6"]
    method = ALGORITHMS[name]
    program = Program(lambda swept: method.make(config, spec), expand(range(members), {}), made_up_data(spec, ROWS))
    stages = method.make(config, spec).stages
    state, labels, alive = program.init(), (), jnp.ones(members, bool)
    for number, stage in enumerate(stages):
        state, labels = program.begin(state, labels, alive, number)
        if stage not in stages[:number]:
            share = sum(other.share for other in stages if other == stage)
            state, timing = timed(program, number, share, state, labels, calls, seconds_per_call)
            yield timing


def timed(
    program: Program, number: int, share: float, state: Tree, labels: Tree, calls: int, seconds_per_call: float
) -> tuple[Tree, Timing]:
    """The state after the updates, and how long they took."""
    alive = jnp.ones(len(program.members), bool)
    jax.block_until_ready((state, labels))

    def advance(first: int, last: int) -> float:
        nonlocal state, alive
        started = time.perf_counter()
        state, alive, _ = program.advance(state, alive, first, last, labels, number)
        alive.block_until_ready()
        return time.perf_counter() - started

    compiled = advance(0, 2)
    probe = advance(2, 12) / 10
    updates = max(2, 2 * round(seconds_per_call / probe / 2))  # even: of policies that move every second update
    of_calls = [advance(12 + i * updates, 12 + (i + 1) * updates) / updates for i in range(calls)]
    return state, Timing(share, compiled, 1e3 * statistics.median(of_calls))


def of_a_run(stages: list[Timing]) -> float:
    """Milliseconds per update of a whole run."""
    return sum(stage.share * stage.milliseconds for stage in stages) / sum(stage.share for stage in stages)


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
        measured = [
            list(timings(name, ALGORITHMS[name].Config(), members, options.calls, options.seconds))
            for members in options.members
        ]
        whole = sum(stage.share for stage in measured[0])
        rows = [[of_members[stage] for of_members in measured] for stage in range(len(measured[0]))]
        for number, row in enumerate(rows):
            cells = [
                f"{timing.milliseconds:.2f} | {'' if members == 1 else f'{timing.milliseconds / members:.2f} | '}"
                f"{timing.compile_seconds:.1f}"
                for members, timing in zip(options.members, row, strict=True)
            ]
            stage = "" if len(rows) == 1 else f"{number + 1} ({row[0].share / whole:.0%})"
            lines.append(f"| {name} | {stage} | {' | '.join(cells)} |")
        if len(rows) > 1:
            cells = [
                f"{of_a_run(stages):.2f} | {'' if members == 1 else f'{of_a_run(stages) / members:.2f} | '}"
                for members, stages in zip(options.members, measured, strict=True)
            ]
            lines.append(f"| {name} | whole run | {' | '.join(cells)} |")
        print("\n".join(lines[-len(rows) - (len(rows) > 1) :]), flush=True)
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
