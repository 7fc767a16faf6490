"""What a training costs on a GPU, and what each choice of the program is worth.

    python benchmarks/gpu.py --out benchmarks/gpu_h100.md

DiffCPS at the paper's size (17 and 6 numbers, batch 256, width 256, three layers, T = 5, policy interval 2). Variants
take turns within a number of seeds; then more seeds on the one card. For each: seconds to compile, operations that the
device is asked to start for one update (counted in the compiled program, without the drawing of batches, which is done
for 120 updates at once), median milliseconds per update, the minutes of a million updates, and the share of the card's
rate of large products. It needs JAX, Equinox, Optax and this package's sources alone, and stops beginning cases when
`--seconds` are over. It runs on a CPU, too, where its figures say little.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from machine import ROWS, SIZES, command_and_machine
from update_speed import flops_of_one_update

from diffcps.algorithms import diffcps
from diffcps.optim import as_one_vector, clipped_adam
from diffcps.training import members
from diffcps.training.members import Program, expand
from diffcps.training.timing import made_up_data
from diffcps.types import Tree

FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id")
"""Operations for which nothing is started."""


@dataclass(frozen=True)
class Variant:
    """One way to make the program."""

    name: str
    writes_out: bool = True
    """The updates of a period one after the other, or one that asks for its conditions."""
    precision: str | None = None
    """Of products, in JAX's words; None: the device's default (TF32 on NVIDIA's cards)."""
    one_vector: bool = False
    """Adam and clipping on the parameters of each network as one vector."""
    rows: members.Rows = "device"


VARIANTS = (
    Variant("as it is"),
    Variant("a condition asked in every update", writes_out=False),
    Variant("products in float32", precision="float32"),
    Variant("Adam on one vector", one_vector=True),
    Variant("rows in the machine's memory", rows="host"),
)


@dataclass
class Case:
    """A program that is ready to be timed."""

    variant: Variant
    program: Program
    state: Tree
    compile_seconds: float
    operations: float
    """Started for one update."""
    made: int = 0

    def time(self, updates: int) -> float:
        """Seconds per update."""
        with jax.default_matmul_precision(self.variant.precision):
            started = time.perf_counter()
            alive = jnp.ones(len(self.program.members), bool)
            self.state, alive, _ = self.program.advance(self.state, alive, self.made, self.made + updates)
            alive.block_until_ready()
        self.made += updates
        return (time.perf_counter() - started) / updates


# --- Counting ---


def operations_of_an_update(text: str, period: int) -> float:
    """Of a compiled program, those in the body of its outermost loop; of two branches the longer one."""
    computations: dict[str, list[str]] = {}
    body: list[str] = []
    for line in text.splitlines():
        if (head := re.match(r"(?:ENTRY )?%?([\w.-]+) .*\{$", line)) is not None:
            body = computations.setdefault(head[1], [])
        elif " = " in line:
            body.append(line)

    def called(line: str, *keys: str) -> list[str]:
        found = re.findall(rf"(?:{'|'.join(keys)})=\{{?((?:%?[\w.-]+(?:, )?)+)\}}?", line)
        return [name.strip().lstrip("%") for names in found for name in names.split(",")]

    def count(name: str) -> int:
        total = 0
        for line in computations.get(name, ()):
            operation = re.search(r"[\])}] ([a-z][\w-]*)\(", line)
            if operation is None or operation[1] in FREE:
                continue
            if operation[1] == "call":
                total += sum(count(each) for each in called(line, "to_apply", "calls"))
            elif operation[1] == "conditional":
                branches = called(line, "branch_computations", "true_computation", "false_computation")
                total += 1 + max(map(count, branches))
            elif operation[1] == "while":
                total += sum(count(each) for each in called(line, "body", "condition"))
            else:
                total += 1
        return total

    bodies = [name for lines in computations.values() for line in lines for name in called(line, "body")]
    return max(map(count, bodies)) / period


# --- Timing ---


def product_rate(size: int, batch: int, precision: str | None) -> float:
    """FLOP/s of float32 products of size x size matrices."""
    a, b = jax.random.normal(jax.random.key(0), (2, batch, size, size))
    with jax.default_matmul_precision(precision):
        product = jax.jit(lambda a, b: a @ b)
        product(a, b).block_until_ready()
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            product(a, b).block_until_ready()
            seconds.append(time.perf_counter() - started)
    return 2.0 * batch * size**3 / statistics.median(seconds)


def ready(variant: Variant, seeds: int, config: diffcps.Config, dump: Path) -> Case:
    """Compiled; its first updates are made. XLA writes its programs into the folder `dump`."""
    spec, period = SIZES["halfcheetah 17/6"], config.policy_interval if variant.writes_out else 1
    members.written_out = lambda stage, platform: period
    diffcps.clipped_adam = clipped_adam_on_one_vector if variant.one_vector else clipped_adam
    data = made_up_data(spec, ROWS)
    program = Program(lambda swept: diffcps.make(config, spec), expand(range(seeds), {}), data, variant.rows)
    case = Case(variant, program, program.init(), 0.0, 0.0)
    before = set(dump.iterdir())
    case.compile_seconds = 2 * case.time(2)
    texts = [path for path in set(dump.iterdir()) - before if path.name.endswith("after_optimizations.txt")]
    case.operations = operations_of_an_update(max(texts, key=lambda path: path.stat().st_size).read_text(), period)
    return case


def clipped_adam_on_one_vector(*arguments: float) -> optax.GradientTransformation:
    """`clipped_adam`, as the variant has it."""
    return as_one_vector(clipped_adam(*arguments))  # pyright: ignore[reportArgumentType]


def measured(cases: list[Case], calls: int, seconds: float) -> list[list[float]]:
    """Seconds per update of each case, a call of each by turns."""
    updates = [max(2, 2 * round(seconds / case.time(20) / 2)) for case in cases]
    rounds = [[case.time(number) for case, number in zip(cases, updates, strict=True)] for _ in range(calls)]
    return [list(times) for times in zip(*rounds, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 5], help="for all variants")
    more = [32, 128, 16, 64, 8, 2]
    parser.add_argument("--more-seeds", type=int, nargs="*", default=more, help="for the first variant")
    parser.add_argument("--width", type=int, default=256, help="smaller, to try the script on a CPU")
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--call-seconds", type=float, default=1.0, help="about how long one timed call takes")
    parser.add_argument("--seconds", type=float, default=400.0, help="after which no case is begun")
    parser.add_argument("--out", type=Path, help="write the table there as Markdown, row by row")
    options = parser.parse_args()
    begun, dump = time.perf_counter(), Path(tempfile.mkdtemp())
    flags = f"--xla_dump_to={dump} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*_advance.*"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"  # read when JAX begins to work

    config = diffcps.Config(width=options.width)
    flops = flops_of_one_update(config, SIZES["halfcheetah 17/6"])
    large = 8192 if jax.default_backend() != "cpu" else 1024
    rates = {precision: product_rate(large, 1, precision) for precision in (None, "float32")}
    small = product_rate(256, 32, None)
    lines = [
        "# A training on a GPU",
        "",
        command_and_machine(),
        f"DiffCPS, 17/6, batch 256, width {options.width}, T = 5, policy interval 2; medians of {options.calls} calls",
        f"by turns (smallest to largest). Products of {large:,}: {rates[None] / 1e12:.2f} TFLOP/s, in float32 "
        f"{rates['float32'] / 1e12:.2f}; of 32 times 256: {small / 1e12:.2f}.",
        "",
        "| seeds | variant | compile s | operations started for an update | ms/update | a million updates, min "
        "| share of the rate | peak GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]

    def write() -> None:
        if options.out is not None:
            options.out.write_text("\n".join(lines) + "\n")

    print("\n".join(lines), flush=True)
    plan = [(seeds, VARIANTS) for seeds in options.seeds] + [(seeds, VARIANTS[:1]) for seeds in options.more_seeds]
    for seeds, variants in plan:
        if time.perf_counter() - begun > options.seconds:
            lines.append(f"| {seeds} | not begun: {options.seconds:g} s were over | | | | | | |")
            print(lines[-1], flush=True)
            continue
        cases = [ready(variant, seeds, config, dump) for variant in variants]
        for case, times in zip(cases, measured(cases, options.calls, options.call_seconds), strict=True):
            median, rate = statistics.median(times), rates["float32" if case.variant.precision else None]
            peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 2**30
            lines.append(
                f"| {seeds} | {case.variant.name} | {case.compile_seconds:.1f} | {case.operations:.0f} "
                f"| {1e3 * median:.3f} ({1e3 * min(times):.3f} to {1e3 * max(times):.3f}) | {1e6 * median / 60:.1f} "
                f"| {flops * seeds / median / rate:.1%} | {peak:.2f} |"
            )
            print(lines[-1], flush=True)
        write()
    write()


if __name__ == "__main__":
    main()
