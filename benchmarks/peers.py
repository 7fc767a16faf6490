"""How fast is an update here, and in d3rlpy, on the same cores?

    python benchmarks/peers.py --out benchmarks/peers_cpu.md

Installs d3rlpy and PyTorch into an environment of their own (`benchmarks/.peers`; about 1 GB), and times the methods
that both have, by turns, `--pairs` times: batches drawn and all networks updated, with this library's default sizes on
both sides, one seed. d3rlpy compiles its graphs on a GPU alone; there, `--compiled` times these. Without a GPU the
build of PyTorch for CPUs is smaller: `--torch torch==2.13.0+cpu`, where pip finds it.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import venv
from pathlib import Path

from machine import command_and_machine
from methods import timings

from diffcps.algorithms import ALGORITHMS
from diffcps.training.timing import seconds_per_update
from diffcps.types import Configuration

HERE = Path(__file__).parent
D3RLPY = "d3rlpy==2.8.1"
METHODS = ("td3_bc", "iql", "awac", "crr", "cql", "bcq", "bear")


def peer_python(torch: str) -> Path:
    """The interpreter of the peer's environment, which is made where it is missing."""
    folder = HERE / ".peers"
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not (folder / "installed").exists():
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", D3RLPY, torch], check=True)
        (folder / "installed").touch()
    return python


def config_of(method: str) -> Configuration:
    """The defaults, but for the one number that would leave d3rlpy's share of the work out."""
    config = ALGORITHMS[method].Config
    return config(warm_up_updates=0) if method == "bear" else config()


def peer_milliseconds(python: Path, method: str, seconds: float, calls: int, compiled: bool) -> float:
    command = [str(python), str(HERE / "d3rlpy_update.py"), method, "--seconds", str(seconds), "--calls", str(calls)]
    done = subprocess.run([*command, *["--compiled"] * compiled], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"d3rlpy's {method}: {done.stderr.strip().splitlines()[-1]}")
    printed = re.findall(r"^\d+\.\d+$", done.stdout, re.MULTILINE)
    return float(printed[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--pairs", type=int, default=3, help="measurements of each side, by turns")
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long one timed call takes")
    parser.add_argument("--torch", default="torch==2.13.0", help="what pip installs beside d3rlpy, the first time")
    parser.add_argument("--compiled", action="store_true", help="d3rlpy's compiled graphs (GPU)")
    parser.add_argument("--out", type=Path, help="write the table there as Markdown")
    options = parser.parse_args()
    python = peer_python(options.torch)
    lines = [
        "# Beside d3rlpy",
        "",
        command_and_machine() + f" Peer: {D3RLPY}, {options.torch}, {'compiled' if options.compiled else 'eager'}.",
        f"Milliseconds per update, medians of {options.pairs} measurements of each side by turns; one seed; ratio: the",
        "median of the pairs' ratios, with the smallest and the largest.",
        "",
        "| method | d3rlpy | here | ratio |",
        "|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for method in options.methods:
        theirs, ours = [], []
        for _ in range(options.pairs):
            theirs.append(peer_milliseconds(python, method, options.seconds, options.calls, options.compiled))
            stages = timings(method, config_of(method), 1, options.calls, options.seconds)
            ours.append(1e3 * seconds_per_update(stages))
        ratios = [their / our for their, our in zip(theirs, ours, strict=True)]
        lines.append(
            f"| {method} | {statistics.median(theirs):.2f} | {statistics.median(ours):.2f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )
        print(lines[-1], flush=True)
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
