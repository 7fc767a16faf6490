"""How long does a planner take for one action?

    python benchmarks/plan_latency.py --out benchmarks/plan_latency_cpu.md

One observation of Hopper's size, host array in, host array out, at the papers' network sizes: with all plans and
diffusion steps, with fewer, and with a warm start. Medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from pathlib import Path

import jax
import numpy as np
from machine import command_and_machine

from diffcps.algorithms import ALGORITHMS
from diffcps.types import Spec

SPEC = Spec(11, 3)
SETTINGS: list[tuple[str, dict[str, int]]] = [
    ("diffuser", {}),
    ("diffuser", {"plans": 16}),
    ("diffuser", {"plans": 4}),
    ("diffuser", {"plans": 4, "warm_start_steps": 4}),
    ("diffuser", {"plans": 1, "guide_steps": 0}),
    ("decision_diffuser", {}),
    ("decision_diffuser", {"warm_start_steps": 20}),
    ("decision_diffuser", {"width": 32, "num_steps": 20, "horizon": 32}),
]


def milliseconds(method: str, changes: dict[str, int], calls: int) -> float:
    """Median of the calls behind the first plan."""
    algorithm = ALGORITHMS[method].make(dataclasses.replace(ALGORITHMS[method].Config(), **changes), SPEC)
    state = jax.jit(algorithm.init)(jax.random.key(0))
    observation = np.zeros(SPEC.observation_size, np.float32)
    actor = algorithm.in_episode
    memory = () if actor is None else actor.begin(jax.numpy.asarray(observation))
    act, act_on = jax.jit(algorithm.act), None if actor is None else jax.jit(actor.act)
    times: list[float] = []
    for step in range(calls + 2):
        began = time.perf_counter()
        if act_on is None:
            action = act(state, observation, jax.random.key(step))
        else:
            action, memory = act_on(state, observation, memory, step, jax.random.key(step))
        np.asarray(action)
        times.append(1e3 * (time.perf_counter() - began))
    return statistics.median(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the table there as Markdown")
    options = parser.parse_args()
    lines = [
        "# Latency of a planned action",
        "",
        command_and_machine(),
        "One observation (11 numbers, 3 of an action), default sizes but for what is named;",
        f"medians of {options.calls} calls.",
        "",
        "| method | changed | ms/action |",
        "|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for method, changes in SETTINGS:
        named = ", ".join(f"`{name}` {value}" for name, value in changes.items())
        lines.append(f"| {method} | {named} | {milliseconds(method, changes, options.calls):.0f} |")
        print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
