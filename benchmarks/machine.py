"""What the benchmarks share: data of a D4RL file's size, and a line that names the machine."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from diffcps.types import Dataset, DatasetInfo, Spec

SIZES = {"hopper 11/3": Spec(11, 3), "halfcheetah 17/6": Spec(17, 6)}
ROWS = 200_000


def made_up_data(spec: Spec, rows: int = ROWS) -> Dataset:
    """Random numbers of a D4RL file's size: the speed does not depend on their values."""
    rng = np.random.default_rng(0)
    terminal = rng.random(rows) < 0.01
    return Dataset(
        observation=rng.normal(size=(rows, spec.observation_size)).astype(np.float32),
        action=rng.uniform(-1, 1, size=(rows, spec.action_size)).astype(np.float32),
        reward=rng.normal(size=rows).astype(np.float32),
        next_observation=rng.normal(size=(rows, spec.observation_size)).astype(np.float32),
        terminal=terminal,
        timeout=(np.arange(rows) == rows - 1) & ~terminal,
        info=DatasetInfo("made up", "0"),
    )


def command_and_machine() -> str:
    """The command, the commit, the device and the version of JAX, as a sentence of Markdown."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    device = f"{jax.devices()[0].device_kind}, {platform.machine()}"
    if jax.default_backend() == "cpu":
        cpu = Path("/proc/cpuinfo")
        names = [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")]
        device = f"{len(names)} x {names[0]}" if names else platform.processor()
    return f"`python {' '.join(sys.argv)}` at commit {commit}, {device}, JAX {jax.__version__}."
