"""What does an evaluation cost, and what do threads save?

    python benchmarks/evaluation.py --out benchmarks/evaluation_cpu.md

All episodes of all members step together, as in a run: seconds to make the environments, milliseconds a step for the
environments by one thread and by one a core (by turns, random actions), and for the policy's call (DiffCPS at the
paper's size, its own rule). Of a whole evaluation: the longest that it can take, and beside it the time of the updates
between two.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
from machine import ROWS, command_and_machine

from diffcps.algorithms import diffcps
from diffcps.envs.make import environment_sizes, make_environment
from diffcps.evaluation import rollout
from diffcps.training.members import Program, a_device_per_core, expand
from diffcps.training.timing import made_up_data, time_updates
from diffcps.types import EnvAction, EnvironmentSpec, EnvObservation, NetObservation, Spec


def seconds_to_make(environment: str, count: int) -> float:
    """For so many of them."""
    make_environment(environment).close()  # what is imported once
    with ExitStack() as stack:
        started = time.perf_counter()
        for _ in range(count):
            stack.enter_context(closing(make_environment(environment)))
        return time.perf_counter() - started


def seconds_a_step(environment: str, members: int, episodes: int, steps: int, episodes_a_thread: int) -> float:
    """Of all environments, as `roll_out` steps them: the median over the steps, from action to next observation."""
    sizes, random = environment_sizes(environment), np.random.default_rng(0)
    asked: list[float] = []
    answered: list[float] = []

    def act(observation: EnvObservation, step: int) -> EnvAction:
        asked.append(time.perf_counter())
        action = EnvAction(random.uniform(-1, 1, (members, episodes, sizes.action_size)))
        answered.append(time.perf_counter())
        return action

    rollout.A_THREAD = episodes_a_thread
    rollout.roll_out(act, EnvironmentSpec(environment, max_episode_steps=steps), members, episodes)
    return statistics.median(after - before for before, after in zip(answered, asked[1:], strict=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", nargs="+", default=["HalfCheetah-v5", "diffcps/AntMaze-umaze-v2"])
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--steps", type=int, default=100, help="steps that are timed")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--updates", type=int, default=10_000, help="between two evaluations")
    parser.add_argument("--out", type=Path, help="write the table there as Markdown")
    options = parser.parse_args()

    a_device_per_core()
    members, episodes, cores = options.members, options.episodes, len(os.sched_getaffinity(0))
    lines = [
        "# What an evaluation costs",
        "",
        command_and_machine(),
        f"{members} members x {episodes} episodes, medians of {options.pairs}; ratio: the median of pairs by turns.",
        f"Whole: as many steps as an episode may have. Updates: {options.updates:,} of all members, from their median.",
        "",
        f"| environment | make s | step ms, 1 thread | {cores} threads | ratio | policy's call ms | whole s, 1 thread "
        f"| {cores} threads | updates s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for environment in options.environments:
        sizes = environment_sizes(environment)
        spec = Spec(sizes.observation_size, sizes.action_size)
        config = diffcps.Config()
        program = Program(
            lambda swept, spec=spec, config=config: diffcps.make(config, spec),
            expand(range(members), {}),
            made_up_data(spec, ROWS),
        )
        state, _, times = time_updates(program, 0, program.init(), (), options.pairs, 1.0)
        observation = NetObservation(np.zeros((members, episodes, spec.observation_size), np.float32))
        calls = []
        for call in range(23):
            started = time.perf_counter()
            program.act(state, observation, 0, call)
            calls.append(time.perf_counter() - started)
        made = statistics.median(seconds_to_make(environment, members * episodes) for _ in range(options.pairs))
        how = environment, members, episodes, options.steps
        pairs = [(seconds_a_step(*how, members * episodes + 1), seconds_a_step(*how, 1)) for _ in range(options.pairs)]
        one, many = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratio = statistics.median(one / many for one, many in pairs)
        policy, steps = statistics.median(calls[3:]), sizes.max_steps or 1000
        whole = [made + steps * (step + policy) for step in (one, many)]
        lines.append(
            f"| {environment} | {made:.2f} | {1e3 * one:.2f} | {1e3 * many:.2f} | {ratio:.2f} | {1e3 * policy:.2f} "
            f"| {whole[0]:.1f} | {whole[1]:.1f} | {options.updates * statistics.median(times):.0f} |"
        )
        print(lines[-1], flush=True)
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
