"""The paper's Table 5: seconds for a thousand updates of the diffusion methods, on this machine."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import jax

from diffcps.algorithms import ALGORITHMS
from diffcps.paper.table import write_csv
from diffcps.presets import presets_of
from diffcps.records.fields import build
from diffcps.storage import write_atomically
from diffcps.tasks.catalogue import find_task
from diffcps.training.members import Program, expand
from diffcps.training.timing import made_up_data, seconds_per_update, time_stages
from diffcps.types import Spec

NUM_STEPS = 5
TASKS = {"Locomotion": "halfcheetah-medium-v2", "AntMaze": "antmaze-large-play-v0"}
"""The paper does not say which: these have the largest observations of the two groups."""
PAPER = {
    "diffcps": {"Locomotion": 7.68, "AntMaze": 9.96},
    "diffusion_ql": {"Locomotion": 5.1, "AntMaze": 10.5},
    "sfbc": {"Locomotion": 8.42, "AntMaze": 10.53},
}
"""Seconds per epoch of 1,000 updates on an RTX 3050 (arXiv:2310.05333, Table 5)."""


@dataclass(frozen=True)
class Runtime:
    """A line of the table."""

    method: str
    tasks: str
    seconds: float
    """For 1,000 updates of one seed, as shares of a whole training; medians."""
    paper_seconds: float


def runtimes(say: Callable[[str], None]) -> Iterator[Runtime]:
    """Each method on each group of tasks, with its preset and T = 5."""
    for name, of_paper in PAPER.items():
        for group, task_id in TASKS.items():
            say(f"{name}, {group}: compiling and timing")
            yield Runtime(name, group, 1_000 * _seconds(name, task_id), of_paper[group])


def _seconds(name: str, task_id: str) -> float:
    task, method = find_task(task_id), ALGORITHMS[name]
    preset = presets_of(name).get(task.preset or "")
    config = build(method.Config, {**({} if preset is None else preset.fields), "num_steps": NUM_STEPS})
    spec = Spec(task.observation_size, task.action_size)
    program = Program(lambda swept: method.make(config, spec), expand([0], {}), made_up_data(spec))
    return seconds_per_update(time_stages(program)[0])


def table5(out: Path, say: Callable[[str], None]) -> list[Path]:
    """Writes `table5.md` and `table5.csv` in the folder `out`, made where it is missing, and returns their paths."""
    out.mkdir(parents=True, exist_ok=True)  # before minutes are spent
    rows = list(runtimes(say))
    lines = [
        "# Seconds for 1,000 updates (DiffCPS, Table 5)",
        "",
        f"`{' '.join(['diffcps', *sys.argv[1:]])}`: one seed, T = {NUM_STEPS}, {jax.devices()[0].device_kind} x "
        f"{jax.device_count()} ({platform.machine()}), JAX {jax.__version__}; sizes of {' and '.join(TASKS.values())}; "
        "medians, compilation and what stages begin with not included. The paper's numbers are of an RTX 3050.",
        "",
        "| method | tasks | here | the paper |",
        "|---|---|---:|---:|",
        *(f"| {row.method} | {row.tasks} | {row.seconds:.2f} | {row.paper_seconds:.2f} |" for row in rows),
    ]
    paths = [out / "table5.md", out / "table5.csv"]
    write_atomically(paths[0], ("\n".join(lines) + "\n").encode())
    write_csv(paths[1], rows)
    return paths
