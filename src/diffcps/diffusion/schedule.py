"""Noise schedules: the constants of the forward and reverse process, computed once in float64."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from diffcps.types import UserError

ScheduleName = Literal["vp", "linear", "cosine", "linear_rate"]


class Schedule(NamedTuple):
    """Constants of a diffusion of T steps. Index t = 0 is the step nearest the data (the papers' i = t + 1).

    `posterior_*` describe q(x_{t-1} | x_t, x_0): mean = x0_weight * x0 + xt_weight * xt. The log-variance is clipped at
    log(1e-20), because the variance at t = 0 is zero.
    """

    beta: np.ndarray
    alpha_bar: np.ndarray
    posterior_x0_weight: np.ndarray
    posterior_xt_weight: np.ndarray
    posterior_std: np.ndarray

    @property
    def num_steps(self) -> int:
        return self.beta.shape[0]


def vp_betas(num_steps: int, beta_min: float = 0.1, beta_max: float = 10.0) -> np.ndarray:
    """beta_i = 1 - exp(-beta_min / T - (beta_max - beta_min) (2i - 1) / (2 T^2)), i = 1..T.

    Reference: DiffCPS (arXiv:2310.05333), section 3.2, from the variance-preserving SDE (arXiv:2011.13456).
    """
    i = np.arange(1, num_steps + 1, dtype=np.float64)
    return 1.0 - np.exp(-beta_min / num_steps - (beta_max - beta_min) * (2 * i - 1) / (2 * num_steps**2))


def linear_betas(num_steps: int, beta_first: float = 1e-4, beta_last: float = 2e-2) -> np.ndarray:
    """Evenly spaced betas, both ends included. Reference: DDPM (arXiv:2006.11239), section 4."""
    return np.linspace(beta_first, beta_last, num_steps, dtype=np.float64)


def linear_rate_betas(num_steps: int, rate_first: float = 0.1, rate_last: float = 20.0) -> np.ndarray:
    """Evenly spaced betas from rate_first / T to rate_last / T: of T = 1000 steps they are `linear_betas`.

    Their sum does not depend on T, where that of `linear_betas` grows with it. Raises `UserError` where T is so small
    that the last beta would reach 1.
    Reference: the VP-SDE's rate of noise (arXiv:2011.13456) in steps of 1/T, as in the program of EDP
    (arXiv:2305.20081).
    """
    if num_steps <= rate_last:
        raise UserError(
            f"num_steps is {num_steps}: schedule linear_rate needs more than {rate_last:g}, as its last beta is "
            f"{rate_last:g} / num_steps; take schedule vp for fewer"
        )
    return np.linspace(rate_first / num_steps, rate_last / num_steps, num_steps, dtype=np.float64)


def cosine_betas(num_steps: int, offset: float = 0.008, beta_max: float = 0.999) -> np.ndarray:
    """alpha_bar(i) proportional to cos^2(pi/2 (i/T + s) / (1 + s)), each beta at most `beta_max`.

    Reference: Improved DDPM (arXiv:2102.09672), eq. 17.
    """
    i = np.arange(num_steps + 1, dtype=np.float64)
    alpha_bar = np.cos((i / num_steps + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.clip(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.0, beta_max)


def schedule_from_betas(betas: np.ndarray) -> Schedule:
    """All constants from the betas. Reference: DDPM (arXiv:2006.11239), eqs. 4, 6 and 7."""
    alpha_bar = np.cumprod(1.0 - betas)
    alpha_bar_before = np.append(1.0, alpha_bar[:-1])
    variance = betas * (1.0 - alpha_bar_before) / (1.0 - alpha_bar)
    constants = (
        betas,
        alpha_bar,
        betas * np.sqrt(alpha_bar_before) / (1.0 - alpha_bar),
        (1.0 - alpha_bar_before) * np.sqrt(1.0 - betas) / (1.0 - alpha_bar),
        np.exp(0.5 * np.log(np.maximum(variance, 1e-20))),
    )
    return Schedule(*(constant.astype(np.float32) for constant in constants))


def make_schedule(name: ScheduleName, num_steps: int) -> Schedule:
    """The schedule of T = `num_steps` steps with the betas of the given name."""
    betas = {"vp": vp_betas, "linear": linear_betas, "cosine": cosine_betas, "linear_rate": linear_rate_betas}[name]
    return schedule_from_betas(betas(num_steps))


def log_alpha_between(schedule: Schedule, index: Float[np.ndarray, " nodes"]) -> Float[np.ndarray, " nodes"]:
    """log alpha = log(alpha_bar) / 2 at indices that need not be whole: linear between those that are, in float64.

    Reference: how DPM-Solver (arXiv:2206.00927) takes a model of discrete time for one of continuous time.
    """
    log_alpha = 0.5 * np.log(schedule.alpha_bar.astype(np.float64))
    return np.interp(index, np.arange(schedule.num_steps), log_alpha)
