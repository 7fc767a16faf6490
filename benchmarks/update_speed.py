"""How fast is one DiffCPS update, and what bounds it?

    python benchmarks/update_speed.py --out benchmarks/update_speed_cpu.md

Times the compiled program of a run (batches drawn, all networks updated) at the paper's size: batch 256, width 256,
three layers, policy interval 2. For each case: seconds to compile, median milliseconds per update over several calls
(all members together, and per member), and the share of the machine's measured matrix-product rate that the update's
floating-point operations reach. The rate is measured just before each case, because shared machines change speed.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from pathlib import Path

import jax
from machine import ROWS, SIZES, command_and_machine

from diffcps.algorithms import diffcps
from diffcps.training.members import Program, expand
from diffcps.training.timing import made_up_data, time_updates
from diffcps.types import Spec


def flops_of_one_update(config: diffcps.Config, spec: Spec) -> float:
    """Multiplications and additions of the matrix products, by hand: 2 m n k each, a backward pass twice a forward one.

    Critic update: the target policy's chain and the target critics forward, both critics forward and backward (no
    gradient for their inputs). Policy update, every d-th time: the denoising loss forward and backward, the chain
    forward and backward, both critics forward and one of them backward to its input.
    """
    hidden = (config.depth - 1) * config.width**2
    first_x, first_rest = spec.action_size * config.width, (spec.observation_size + config.time_size) * config.width
    last = config.width * spec.action_size
    critic_first = (spec.observation_size + spec.action_size) * config.width
    critic = critic_first + hidden + config.width
    chain = config.num_steps * (first_x + hidden + last) + first_rest  # what does not depend on x_t once a chain
    single = first_x + hidden + last + first_rest
    critic_update = chain + 2 * critic + 2 * (3 * critic - critic_first)
    policy_update = 3 * single + 3 * chain + 2 * critic + critic
    return 2.0 * config.batch_size * (critic_update + policy_update / config.policy_interval)


def matrix_product_rate() -> float:
    """FLOP/s of large float32 products on this machine, now."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    product = jax.jit(lambda a, b: a @ b)
    a, b = jax.random.normal(jax.random.key(0), (2, size, size))
    product(a, b).block_until_ready()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        product(a, b).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2.0 * size**3 / statistics.median(seconds)


def measure(spec: Spec, num_steps: int, num_members: int, calls: int, seconds_per_call: float) -> dict[str, float]:
    config = diffcps.Config(num_steps=num_steps)
    program = Program(
        lambda swept: diffcps.make(config, spec), expand(range(num_members), {}), made_up_data(spec, ROWS)
    )
    rate = matrix_product_rate()
    _, compiled, times = time_updates(program, 0, program.init(), (), calls, seconds_per_call)
    seconds = statistics.median(times)
    return {
        "compile s": compiled,
        "ms": 1e3 * seconds,
        "ms per member": 1e3 * seconds / num_members,
        "fastest ms": 1e3 * min(times),
        "GFLOP/s": flops_of_one_update(config, spec) * num_members / seconds / 1e9,
        "share": flops_of_one_update(config, spec) * num_members / seconds / rate,
        "product GFLOP/s": rate / 1e9,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 15], help="diffusion steps T")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long one timed call takes")
    parser.add_argument("--out", type=Path, help="write the table there as Markdown")
    options = parser.parse_args()

    lines = [
        "# Speed of one DiffCPS update",
        "",
        command_and_machine(),
        "Batch 256, width 256, 3 layers, policy interval 2; median of the calls; share: of the rate of large float32",
        "matrix products measured just before (last column). Peak memory is that of the whole process so far.",
        "",
        "| size | T | members | compile s | ms/update | fastest | ms/update per member | GFLOP/s | share | peak MiB "
        "| products GFLOP/s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for name in options.sizes:
        for num_steps in options.steps:
            for members in options.members:
                row = measure(SIZES[name], num_steps, members, options.calls, options.seconds)
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                lines.append(
                    f"| {name} | {num_steps} | {members} | {row['compile s']:.1f} | {row['ms']:.1f} "
                    f"| {row['fastest ms']:.1f} | {row['ms per member']:.2f} | {row['GFLOP/s']:.0f} "
                    f"| {row['share']:.0%} | {peak:.0f} | {row['product GFLOP/s']:.0f} |"
                )
                print(lines[-1], flush=True)
    if options.out is not None:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
