"""How long does a policy take to act?

    python benchmarks/action_latency.py --out benchmarks/action_latency_cpu.md

One observation, as on a robot: host array in, host array out, for each way of choosing the action (50 candidates) and
for 5 and 15 diffusion steps, at the paper's network size. Median, 95th percentile and fastest of many calls.
"""

from __future__ import annotations

import argparse
import platform
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from diffcps.algorithms import diffcps
from diffcps.types import Spec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--out", type=Path, help="write the table there as Markdown")
    options = parser.parse_args()

    spec = Spec(17, 6)
    observation = np.random.default_rng(0).normal(size=spec.observation_size).astype(np.float32)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    lines = [
        "# Latency of one action",
        "",
        f"`python {' '.join(sys.argv)}` at commit {commit}, {jax.devices()[0].device_kind} ({platform.machine()}), "
        f"JAX {jax.__version__}, {options.calls} calls each.",
        "",
        "| action choice | candidates | T | median ms | 95 % ms | fastest ms |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for choice in ("sample", "softmax_q", "argmax_q"):
        for num_steps in (5, 15):
            algorithm = diffcps.make(diffcps.Config(action_choice=choice, num_steps=num_steps), spec)
            state = jax.jit(algorithm.init)(jax.random.key(0))
            act = jax.jit(algorithm.act)
            times = []
            for call in range(options.calls + 20):
                key = jax.random.key(call)
                started = time.perf_counter()
                np.asarray(act(state, observation, key))
                times.append(1e3 * (time.perf_counter() - started))
            median, slow = np.percentile(times[20:], [50, 95])
            candidates = 1 if choice == "sample" else 50
            lines.append(
                f"| {choice} | {candidates} | {num_steps} | {median:.2f} | {slow:.2f} | {min(times[20:]):.2f} |"
            )
            print(lines[-1], flush=True)
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
