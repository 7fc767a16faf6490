"""The ant that collects AntMaze data: a policy that walks in any direction, learnt online, and its file.

SAC in the manner of OGBench's online-ant-xy: two hidden layers of 256, learning rate 1e-4, batch 256, discount 0.99,
target rate 0.005, target entropy -0.5 for each torque, 10,000 random steps first. As everywhere in
`diffcps.collect.sac`, 1000 steps are followed by 1000 updates, where OGBench alternates single ones.

Reference: https://github.com/seohongpark/ogbench, data_gen_scripts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

import numpy as np
import safetensors.numpy

from diffcps.collect import sac
from diffcps.collect.files import load_part
from diffcps.envs.make import make_environment
from diffcps.networks.squashed import LOG_STD_RANGE, SquashedGaussian
from diffcps.storage import Json
from diffcps.training import checkpoint
from diffcps.types import UserError

CONFIG = sac.Config(learning_rate=1e-4, target_entropy=-0.5, random_steps=10_000)
ENVIRONMENT = "diffcps/AntDirection-v0"
SHIPPED_POLICY = Path(__file__).with_name("ant_direction.safetensors")
"""The policy that comes with the package."""

AntPolicy: TypeAlias = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""`policy(observation (29,), noise (8,)) -> action (8,)`, float32: the observation ends with the direction to go in, a
unit vector; the noise is standard normal."""


def train_ant_policy(out: Path, folder: Path, *, steps: int, seed: int, say: Callable[[str], None]) -> Path:
    """Trains the policy for `steps` steps in the environment and writes it to `out`, safetensors; returns `out`.

    The run lies in `folder`: stop it at any moment, the same call goes on, with the same bits. With fewer `steps` than
    the folder has, the policy as it stands is written. The result follows from `seed` on one machine. `say` is told the
    metres along the direction and the falls of each iteration. Errors as in `sac.train_online`.
    """
    began = time.monotonic()

    def report(iteration: int, actor: SquashedGaussian) -> bool:
        part = load_part(sac.part_path(folder, iteration - 1))
        say(
            f"{iteration * CONFIG.iteration_steps:,} steps, {time.monotonic() - began:,.0f} s: "
            f"{part['rewards'].mean():.3f} m a step, {int(part['terminals'].sum())} falls"
        )
        return False

    with closing(make_environment(ENVIRONMENT)) as environment:
        actor = sac.train_online(environment, CONFIG, folder, steps=steps, seed=seed, on_iteration=report)
    metres, falls = evaluate_ant_policy(actor)
    evaluation: dict[str, Json] = {"metres_a_step": metres, "falls_an_episode": falls}
    # "lesson" is the name in the file that is shipped: the same run gives the same bytes.
    sac.save_actor(out, actor, {"environment": ENVIRONMENT, "steps": steps, "seed": seed, "lesson": evaluation})
    say(f"evaluation: {metres:.3f} m a step, {falls:g} falls an episode")
    return out


def evaluate_ant_policy(actor: SquashedGaussian, episodes: int = 5) -> tuple[float, float]:
    """Metres along the direction and step, and falls an episode, over `episodes` episodes with sampled actions."""
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
    return float(np.mean(rewards)), falls / episodes


def load_ant_policy(path: Path) -> AntPolicy:
    """What `train_ant_policy` wrote, in NumPy, where single actions are faster. Raises `UserError` for another file."""
    checkpoint.information(path)  # readable, and ours
    arrays = safetensors.numpy.load_file(path)
    layers = [
        (arrays[f"network.layers.{i}.weight"], arrays[f"network.layers.{i}.bias"])
        for i in range(len(arrays) // 2)
        if f"network.layers.{i}.bias" in arrays and f"network.layers.{i}.weight" in arrays
    ]
    if not layers or 2 * len(layers) != len(arrays) or (len(layers[0][0]), len(layers[-1][1])) != (29, 16):
        raise UserError(
            f"{path}: not the policy of an ant (29 numbers in, 16 out); make one with diffcps data ant-policy"
        )

    def policy(observation: np.ndarray, noise: np.ndarray) -> np.ndarray:
        x = observation
        for weight, bias in layers[:-1]:
            x = np.maximum(x @ weight + bias, 0.0)
        mean, log_std = np.split(x @ layers[-1][0] + layers[-1][1], 2)
        return np.tanh(mean + np.exp(np.clip(log_std, *LOG_STD_RANGE)) * noise)

    return policy
