"""Proposition 3.8: the denoising loss in place of the cross-entropy, for Gaussians in closed form.

    H(pi_b, mu) ~ c + L_c(pi_b, mu)                                                              (eqs. 16 and 36)

Reference: arXiv:2310.05333, proposition 3.8 and appendix A.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from diffcps.diffusion.schedule import vp_betas
from diffcps.paper.theory.tabular import Vector

Normal = tuple[float, float]
"""Mean and standard deviation of a normal law."""
DATA: Normal = (0.0, 0.3)
"""The behaviour policy of the Gaussian case."""
Variance = Literal["beta", "posterior"]
"""Of the reverse steps. beta: beta_i, as eq. 11. posterior: DDPM's other choice, none at i = 1, as our sampler."""


def policy_law(betas: Vector, model: Normal, variance: Variance) -> Normal:
    """The law of the action (eqs. 9 to 11, no clipping) whose denoiser is the exact one of data N(model).

    Reverse steps are affine: eps_theta = sqrt(1 - ab) (a^i - sqrt(ab) m) / (ab s^2 + 1 - ab) with ab = alpha_bar_i.
    """
    (m, s), ab = model, np.cumprod(1 - betas)
    total = ab * s**2 + 1 - ab
    factor = (1 - betas / total) / np.sqrt(1 - betas)
    shift = betas * np.sqrt(ab) * m / (total * np.sqrt(1 - betas))
    noise = betas if variance == "beta" else betas * (1 - np.append(1.0, ab[:-1])) / (1 - ab)
    mean, square = 0.0, 1.0
    for i in reversed(range(len(betas))):
        mean, square = factor[i] * mean + shift[i], factor[i] ** 2 * square + noise[i]
    return float(mean), math.sqrt(square)


def gaussian_cross_entropy(data: Normal, policy: Normal) -> float:
    """H = log(2 pi s^2) / 2 + (s_b^2 + (m_b - m)^2) / (2 s^2) of two normal laws."""
    (m_b, s_b), (m, s) = data, policy
    return 0.5 * math.log(2 * math.pi * s**2) + (s_b**2 + (m_b - m) ** 2) / (2 * s**2)


def denoising_losses(betas: Vector, data: Normal, model: Normal) -> Vector:
    """E (eps - eps_theta)^2 at each step i, for actions of N(data); its mean over i is L_c (eq. 36)."""
    (m_b, s_b), (m, s), ab = data, model, np.cumprod(1 - betas)
    return (ab**2 * s**4 + ab * (1 - ab) * (s_b**2 + (m_b - m) ** 2)) / (ab * s**2 + 1 - ab) ** 2


def elbo_weights(betas: Vector) -> Vector:
    """w_i = beta_i / (2 alpha_i (1 - alpha_bar_i)): what the bound K weighs step i's loss with (eqs. 11 and 35).

    Reference: DDPM (arXiv:2006.11239), eq. 12, at variance beta_i.
    """
    return betas / (2 * (1 - betas) * (1 - np.cumprod(1 - betas)))


def variational_bound(betas: Vector, data: Normal, losses: Vector) -> float:
    """K = L_T + sum_{i >= 2} L_{i-1} + L_0 >= H for the chain of eq. 11 (eqs. 34 and 35), a constant + w . losses."""
    (m_b, s_b), ab = data, np.cumprod(1 - betas)
    prior = 0.5 * (ab[-1] * (s_b**2 + m_b**2) - ab[-1] - math.log(1 - ab[-1]))
    ratio = (1 - ab[:-1]) / (1 - ab[1:])
    constants = 0.5 * np.sum(ratio - 1 - np.log(ratio)) + 0.5 * math.log(2 * math.pi * betas[0])
    return float(prior + constants + elbo_weights(betas) @ losses)


def shift_slope(betas: Vector, std: float) -> float:
    """dH / dL_c when only the mean of N(m, s^2) moves and the policy has exactly the denoiser's law (many steps).

    H gains (m - m_b)^2 / (2 s^2), L_c gains (m - m_b)^2 times the mean over i of ab (1 - ab) / (ab s^2 + 1 - ab)^2.
    """
    ab = np.cumprod(1 - betas)
    return float(1 / (2 * std**2 * np.mean(ab * (1 - ab) / (ab * std**2 + 1 - ab) ** 2)))


Family = Literal["shifted", "narrower", "wider"]
"""How a policy's denoiser differs from that of the data: by its mean, or by its standard deviation."""


@dataclass(frozen=True)
class SurrogateRow:
    """One policy: what its denoiser was made for, the law of its actions, H, the losses, and the bound on H."""

    num_steps: int
    variance: Variance
    family: Family
    mean: float
    std: float
    """The denoiser is the exact one of N(mean, std^2)."""
    policy_mean: float
    policy_std: float
    H: float
    L_c: float
    weighted: float
    """w . losses: the loss with the weights of the ELBO."""
    K: float


def check_surrogate(num_steps: tuple[int, ...], num_policies: int) -> list[SurrogateRow]:
    """H, K and the losses for three families of policies: shifted, narrower and wider than the data.

    K bounds the H of eq. 11, not that of the other variance.
    """
    (mean, std), spread = DATA, np.linspace(0, 1, num_policies).tolist()
    families: dict[Family, list[Normal]] = {
        "shifted": [(mean + 2 * x * std, std) for x in spread],
        "narrower": [(mean, std * 0.5**x) for x in spread],
        "wider": [(mean, std * 2.0**x) for x in spread],
    }
    rows: list[SurrogateRow] = []
    for steps, variance, family in itertools.product(num_steps, get_args(Variance), families):
        betas = vp_betas(steps)
        for model in families[family]:
            losses, law = denoising_losses(betas, DATA, model), policy_law(betas, model, variance)
            case = SurrogateRow(
                num_steps=steps,
                variance=variance,
                family=family,
                mean=model[0],
                std=model[1],
                policy_mean=law[0],
                policy_std=law[1],
                H=gaussian_cross_entropy(DATA, law),
                L_c=float(losses.mean()),
                weighted=float(elbo_weights(betas) @ losses),
                K=variational_bound(betas, DATA, losses),
            )
            rows.append(case)
    return rows


Loss = Literal["L_c", "weighted"]
LOSSES: Mapping[Loss, Callable[[SurrogateRow], float]] = {
    "L_c": lambda row: row.L_c,
    "weighted": lambda row: row.weighted,
}


@dataclass(frozen=True)
class LineRow:
    """The least-squares line of H over a loss, for one family of policies or for all of them together."""

    num_steps: int
    variance: Variance
    family: Family | Literal["all"]
    loss: Loss
    slope: float
    predicted: float | None
    """The slope that theory gives for many steps: `shift_slope` for L_c and shifted means (none for other policies), 1
    for w . losses."""
    deviation: float
    """The largest distance of H from the line, as a share of H's range."""


def surrogate_lines(rows: Sequence[SurrogateRow]) -> list[LineRow]:
    """The lines of H over both losses, for each number of steps and each variance."""
    lines: list[LineRow] = []
    cases: dict[tuple[int, Variance], None] = dict.fromkeys((row.num_steps, row.variance) for row in rows)
    for (steps, variance), family in itertools.product(cases, (*get_args(Family), "all")):
        of_case = [row for row in rows if (row.num_steps, row.variance) == (steps, variance)]
        chosen = [row for row in of_case if family in ("all", row.family)]
        shift = shift_slope(vp_betas(steps), DATA[1]) if family == "shifted" else None
        y = np.array([row.H for row in chosen])
        predictions: dict[Loss, float | None] = {"L_c": shift, "weighted": 1.0}
        for loss, predicted in predictions.items():
            x = np.array([LOSSES[loss](row) for row in chosen])
            slope, intercept = np.polyfit(x, y, 1).tolist()
            deviation = float(np.max(np.abs(y - slope * x - intercept)) / np.ptp(y))
            lines.append(LineRow(steps, variance, family, loss, slope, predicted, deviation))
    return lines
