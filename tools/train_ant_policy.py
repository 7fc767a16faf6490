"""Teach an ant to walk in any direction, for collecting AntMaze data: SAC in the manner of OGBench's online-ant-xy.

    python tools/train_ant_policy.py --folder runs/ant-direction --out src/diffcps/envs/ant_direction.safetensors

The folder holds the run: stop it at any moment, the same command goes on, with the same bits. With fewer `--steps` than
the folder has, the policy as it stands is written. The result follows from `--seed` on one machine.

Two hidden layers of 256, learning rate 1e-4, batch 256, discount 0.99, target rate 0.005, target entropy -0.5 for each
torque, 10,000 random steps first. As everywhere in `diffcps.collect.sac`, 1000 steps are followed by 1000
updates, where OGBench alternates single ones.

Reference: https://github.com/seohongpark/ogbench, data_gen_scripts.
"""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from diffcps.collect import sac
from diffcps.collect.files import load_rows
from diffcps.envs.make import make_environment

CONFIG = sac.Config(learning_rate=1e-4, target_entropy=-0.5, random_steps=10_000)
ENVIRONMENT = "diffcps/AntDirection-v0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/ant-direction"), help="the run [%(default)s]")
    parser.add_argument("--out", type=Path, required=True, help="the policy, a safetensors file")
    parser.add_argument("--steps", type=int, default=400_000, help="steps in the environment [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    options = parser.parse_args()

    began = time.monotonic()

    def tell(iteration: int, actor: sac.SquashedGaussian) -> bool:
        rows = load_rows(options.folder / "transitions" / f"{iteration - 1:06d}.npz")
        print(
            f"{iteration * CONFIG.iteration_steps:,} steps, {time.monotonic() - began:,.0f} s: "
            f"{rows['rewards'].mean():.3f} m a step, {int(rows['terminals'].sum())} falls",
            flush=True,
        )
        return False

    with closing(make_environment(ENVIRONMENT)) as environment:
        actor = sac.train(
            environment, CONFIG, options.folder, steps=options.steps, seed=options.seed, on_iteration=tell
        )
    information = {"environment": ENVIRONMENT, "steps": options.steps, "seed": options.seed, "lesson": evaluate(actor)}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sac.save_actor(options.out, actor, information)
    print(options.out, information)


def evaluate(actor: sac.SquashedGaussian, episodes: int = 5) -> dict[str, float]:
    """Mean over the steps of `episodes` episodes with sampled actions: metres along the direction, and falls."""
    generator = np.random.default_rng(0)
    rewards, falls = [], 0
    with closing(make_environment(ENVIRONMENT)) as environment:
        for episode in range(episodes):
            observation, _ = environment.reset(seed=1000 + episode)
            done = False
            while not done:
                noise = generator.standard_normal(8, np.float32)
                action = np.asarray(sac.sample(actor, np.asarray(observation, np.float32), noise))
                observation, reward, terminated, truncated, _ = environment.step(action)
                rewards.append(float(reward))
                falls += terminated
                done = terminated or truncated
    return {"metres_a_step": float(np.mean(rewards)), "falls_an_episode": falls / episodes}


if __name__ == "__main__":
    main()
