"""What the benchmarks share: sizes of D4RL's files, and a line that names the machine."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import jax

from diffcps.types import Spec

SIZES = {"hopper 11/3": Spec(11, 3), "halfcheetah 17/6": Spec(17, 6)}
ROWS = 200_000
"""Of a D4RL file."""


def command_and_machine() -> str:
    """The command, the commit, the device and the version of JAX, as a sentence of Markdown."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    device = f"{jax.devices()[0].device_kind}, {platform.machine()}"
    if jax.default_backend() == "cpu":
        cpu = Path("/proc/cpuinfo")
        names = [line.split(":")[1].strip() for line in cpu.read_text().splitlines() if line.startswith("model name")]
        device = f"{len(names)} x {names[0]}" if names else platform.processor()
    return f"`python {' '.join(sys.argv)}` at commit {commit}, {device}, JAX {jax.__version__}."
