"""How long does an update of d3rlpy's methods take? Runs in the environment that `peers.py` makes.

    python benchmarks/d3rlpy_update.py iql --seconds 2 --calls 5

Batches are drawn and all networks updated, with the batch and the hidden layers of this library's defaults. Prints the
median milliseconds per update. `--compiled` asks for d3rlpy's compiled graphs, which it has on a GPU alone.
"""

from __future__ import annotations

import argparse
import statistics
import time

import d3rlpy  # pyright: ignore[reportMissingImports]
import numpy as np
import torch  # pyright: ignore[reportMissingImports]

ROWS = 20_000
OBSERVATION_SIZE, ACTION_SIZE = 17, 6


def config_of(method: str, compiled: bool):
    """d3rlpy's configuration with this library's sizes: batch, hidden layers, numbers of actions."""
    algos = d3rlpy.algos
    hidden = d3rlpy.models.VectorEncoderFactory
    two, three, bcq = hidden([256, 256]), hidden([256, 256, 256]), hidden([400, 300])
    vae = hidden([750, 750])
    match method:
        case "iql":
            encoders = dict.fromkeys(("actor_encoder_factory", "critic_encoder_factory", "value_encoder_factory"), two)
            return algos.IQLConfig(batch_size=256, compile_graph=compiled, **encoders)
        case "td3_bc":
            encoders = dict.fromkeys(("actor_encoder_factory", "critic_encoder_factory"), two)
            return algos.TD3PlusBCConfig(batch_size=256, compile_graph=compiled, **encoders)
        case "awac":
            encoders = dict.fromkeys(("actor_encoder_factory", "critic_encoder_factory"), three)
            return algos.AWACConfig(batch_size=256, compile_graph=compiled, **encoders)
        case "crr":
            encoders = dict.fromkeys(("actor_encoder_factory", "critic_encoder_factory"), two)
            return algos.CRRConfig(
                batch_size=256, weight_type="binary", n_critics=2, compile_graph=compiled, **encoders
            )
        case "cql":
            encoders = dict.fromkeys(("actor_encoder_factory", "critic_encoder_factory"), three)
            return algos.CQLConfig(
                batch_size=256, n_action_samples=10, alpha_learning_rate=0.0, compile_graph=compiled, **encoders
            )
        case "bcq":
            encoders = dict.fromkeys(("actor_encoder_factory", "critic_encoder_factory"), bcq)
            return algos.BCQConfig(
                batch_size=100, imitator_encoder_factory=vae, n_action_samples=10, compile_graph=compiled, **encoders
            )
        case "bear":
            encoders = dict.fromkeys(("actor_encoder_factory", "critic_encoder_factory"), two)
            return algos.BEARConfig(
                batch_size=256, imitator_encoder_factory=vae, warmup_steps=0, compile_graph=compiled, **encoders
            )
    raise SystemExit(f"unknown method {method}")


def made_up_data():
    """Random episodes of 100 steps: the speed does not depend on their values."""
    rng = np.random.default_rng(0)
    end = np.arange(ROWS) % 100 == 99
    return d3rlpy.dataset.MDPDataset(
        rng.normal(size=(ROWS, OBSERVATION_SIZE)).astype(np.float32),
        rng.uniform(-1, 1, size=(ROWS, ACTION_SIZE)).astype(np.float32),
        rng.normal(size=ROWS).astype(np.float32),
        end.astype(np.float32),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method")
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="about how long one timed call takes")
    parser.add_argument("--compiled", action="store_true")
    options = parser.parse_args()
    config = config_of(options.method, options.compiled)
    device = "cuda:0" if torch.cuda.is_available() else "cpu:0"
    algo = config.create(device=device)
    if options.compiled and not algo.compiled:
        raise SystemExit("d3rlpy compiles on a GPU alone")
    data = made_up_data()
    algo.build_with_dataset(data)

    def advance(updates: int) -> float:
        started = time.perf_counter()
        for _ in range(updates):
            algo.update(data.sample_transition_batch(config.batch_size))
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    advance(20)
    updates = max(2, 2 * round(options.seconds / (advance(20) / 20) / 2))
    print(f"{1e3 * statistics.median(advance(updates) / updates for _ in range(options.calls)):.3f}")


if __name__ == "__main__":
    main()
