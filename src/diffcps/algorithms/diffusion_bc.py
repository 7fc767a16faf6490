"""Diffusion BC: behaviour cloning with a diffusion policy, the denoising loss alone (arXiv:2208.06193).

    policy   L(theta) = E ||eps - eps_theta(sqrt(abar_i) a + sqrt(1 - abar_i) eps, s, i)||^2,   (s, a) ~ data

It is DiffCPS without a critic: what the constraint alone would give.

Where this differs from the authors' program: docs/algorithms/diffusion_bc.md, "Deviations".
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from jaxtyping import Array, Float

from diffcps.diffusion.sampler import draw_noise
from diffcps.diffusion.schedule import ScheduleName, make_schedule
from diffcps.networks.denoiser import Denoiser
from diffcps.optim import Trained, clipped_adam, minimise, start
from diffcps.policies.diffusion import BCDraws, bc_loss, draw_bc, sample_action
from diffcps.rl.replay import sample_transitions, transitions
from diffcps.types import Algorithm, Count, Dataset, Key, Metric, Metrics, Real, Spec, Stage, Transition, UpdateIndex

CITATION = """@inproceedings{wang2023diffusionql,
  title = {Diffusion Policies as an Expressive Policy Class for Offline Reinforcement Learning},
  author = {Wang, Zhendong and Hunt, Jonathan J. and Zhou, Mingyuan},
  booktitle = {International Conference on Learning Representations},
  year = {2023},
  eprint = {2208.06193},
  archivePrefix = {arXiv}
}"""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters; the defaults are those of the authors' program."""

    num_steps: int = 5
    """Diffusion steps T."""
    schedule: ScheduleName = "vp"
    """Noise schedule beta_i (authors' program: vp)."""
    learning_rate: Real = 3e-4
    """Adam's rate (per task in the authors' table)."""
    max_grad_norm: Real = float("inf")
    """Global norm to which the gradient is clipped; inf: no clipping (authors' program)."""
    decay_updates: Count = 0
    """Updates over which the rate falls to zero along a cosine; 0 keeps it constant."""
    batch_size: int = 256
    """Transitions per update."""
    width: int = 256
    """Units per hidden layer."""
    depth: int = 3
    """Hidden layers."""
    time_size: int = 16
    """Size of the time embedding (authors' program)."""


class State(NamedTuple):
    """What is carried from update to update."""

    actor: Trained[Denoiser]


def make(config: Config, spec: Spec) -> Algorithm[State]:
    """Diffusion BC for the given sizes. Real-valued fields of `config` may be traced arrays."""
    batch = partial(sample_transitions, batch_size=config.batch_size)
    schedule = make_schedule(config.schedule, config.num_steps)
    optimiser = clipped_adam(config.learning_rate, config.max_grad_norm, config.decay_updates)

    def init(key: Key) -> State:
        return State(start(optimiser, Denoiser(spec, config.width, config.depth, config.time_size, key)))

    def update(state: State, batch: Transition, draws: BCDraws, index: UpdateIndex) -> tuple[State, Metrics]:
        actor, loss, _, norm = minimise(optimiser, state.actor, bc_loss, schedule, batch, draws)
        return State(actor), {"actor/bc_loss": loss, "actor/grad_norm": norm}

    def act(state: State, observation: Float[Array, "*b obs"], key: Key) -> Float[Array, "*b act"]:
        noise = draw_noise(key, schedule, (*observation.shape[:-1], spec.action_size))
        return sample_action(state.actor.model, schedule, observation, noise)

    def diagnose(state: State, rows: Dataset, key: Key) -> Metrics:
        batch = transitions(rows)
        loss = bc_loss(state.actor.model, schedule, batch, draw_bc(schedule, batch, key))
        return {"actor/bc_loss": loss, "selection/loss": loss}

    return Algorithm(
        init, (Stage(1, batch, update, draw=partial(draw_bc, schedule)),), act, diagnose, needs=frozenset()
    )


METRICS = {
    "actor/bc_loss": Metric("Denoising loss $L_d$", "L_d", "log"),
    "actor/grad_norm": Metric("Norm of the policy's gradient", "gradient", "log"),
    "selection/loss": Metric("Denoising loss $L_d$", scale="log"),
}
