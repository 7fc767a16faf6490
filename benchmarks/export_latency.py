"""How long does an exported policy take for one action, beside JAX?

    taskset -c 0 python benchmarks/export_latency.py --out benchmarks/export_latency_cpu.md

One observation, host array in, host array out, on one core: DiffCPS at the paper's network size with 50 candidates, by
onnxruntime and by JAX, with the same random numbers. Median, 95th percentile and fastest of many calls, and what the
export cost: seconds of conversion, nodes, bytes. Needs the extra `export`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import jax
import numpy as np
import onnxruntime  # pyright: ignore[reportMissingImports]
from machine import SIZES, command_and_machine

from diffcps.algorithms import diffcps
from diffcps.deploy.graph import onnx_graph
from diffcps.deploy.program import Exported, exported
from diffcps.records.folder import RunFolder
from diffcps.records.record import RunRecord
from diffcps.records.settings import Settings
from diffcps.rl.improvement import ActionChoice
from diffcps.run.policy import program_of
from diffcps.training import checkpoint
from diffcps.types import DatasetInfo, EnvObservation, Spec

WARM_UP = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--out", type=Path, help="write the table there as Markdown")
    options = parser.parse_args()

    lines = ["# Latency of an exported policy", "", f"{command_and_machine()} {options.calls} calls each, one thread."]
    lines += ["", "| size | action choice | T | by | median ms | 95 % ms | fastest ms | conversion s | nodes | kB |"]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    for name, spec in SIZES.items():
        for choice in get_args(ActionChoice):
            for num_steps in (5, 15):
                with tempfile.TemporaryDirectory() as folder:
                    policy = untrained(spec, num_steps, choice, Path(folder) / "run")
                started = time.perf_counter()
                graph = onnx_graph(policy)
                cost = f"{time.perf_counter() - started:.1f} | {len(graph.graph.node)} | {graph.ByteSize() / 1e3:.0f}"
                for by, act in (("onnxruntime", by_onnx(policy, graph)), ("JAX", by_jax(policy))):
                    times = 1e3 * np.array(seconds(policy, act, options.calls))
                    median, slow = np.percentile(times, [50, 95])
                    lines.append(
                        f"| {name} | {choice} | {num_steps} | {by} | {median:.2f} | {slow:.2f} | {times.min():.2f} | "
                        f"{cost if by == 'onnxruntime' else ' | | '} |"
                    )
                    print(lines[-1], flush=True)
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n")


def untrained(spec: Spec, num_steps: int, choice: ActionChoice, folder: Path) -> Exported:
    """A policy with the weights that it begins with, in a run folder."""
    box = (1.0,) * spec.action_size
    record = RunRecord(
        algorithm="diffcps",
        config=diffcps.Config(num_steps=num_steps, action_choice=choice),
        sweep={},
        settings=Settings(env="none"),
        environment=None,
        reference=None,
        dataset=DatasetInfo("none", "0", action_low=tuple(-x for x in box), action_high=box),
        transitions=0,
        data_return=None,
        spec=spec,
        command="",
        versions={},
        device="",
    )
    run = RunFolder(folder)
    with run.locked():
        run.write_record(record)
        checkpoint.save(run.last, program_of(record, record.members, None).init(), {"update": 0})
    return exported(folder, "last")


Act = Callable[[np.ndarray, list[np.ndarray]], np.ndarray]


def by_onnx(policy: Exported, graph) -> Act:
    """By onnxruntime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def act(observation: np.ndarray, numbers: list[np.ndarray]) -> np.ndarray:
        given = {"observation": observation, **dict(zip(policy.laws, numbers, strict=True))}
        return np.asarray(session.run(["action"], given)[0])

    return act


def by_jax(policy: Exported) -> Act:
    """By JAX, the same function."""
    compiled = jax.jit(policy.act)

    def act(observation: np.ndarray, numbers: list[np.ndarray]) -> np.ndarray:
        return np.asarray(compiled(policy.scaling.observation(EnvObservation(observation)), *numbers))

    return act


def seconds(policy: Exported, act: Act, calls: int) -> list[float]:
    """Of each call; the random numbers are drawn before."""
    rng, times = np.random.default_rng(0), []
    for call in range(WARM_UP + calls):
        observation = rng.normal(size=(1, policy.spec.observation_size))
        sizes = [policy.traced.size(law) for law in policy.laws]
        numbers = [rng.normal(size=(1, size)).astype(np.float32) for size in sizes]
        started = time.perf_counter()
        act(observation, numbers)
        if call >= WARM_UP:
            times.append(time.perf_counter() - started)
    return times


if __name__ == "__main__":
    main()
