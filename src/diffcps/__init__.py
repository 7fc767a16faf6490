"""Offline reinforcement learning with diffusion policies, in JAX.

import diffcps
from diffcps.algorithms.diffcps import Config

diffcps.train(Config(kappa=0.03), "builtin", diffcps.Settings(updates=30_000), out="runs/first")
policy = diffcps.load_policy("runs/first")
action = policy(observation)
"""

from diffcps.data import load_dataset
from diffcps.deploy.export import export
from diffcps.records.settings import Settings
from diffcps.run.evaluate import evaluate
from diffcps.run.policy import Policy, load_policy
from diffcps.run.train import train
from diffcps.types import Dataset, EnvironmentSpec, UserError

__all__ = [
    "Dataset",
    "EnvironmentSpec",
    "Policy",
    "Settings",
    "UserError",
    "evaluate",
    "export",
    "load_dataset",
    "load_policy",
    "train",
]
