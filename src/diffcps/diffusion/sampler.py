"""The reverse process. Its noise is an argument, so that a caller decides (and a test knows) what is drawn."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffcps.diffusion.process import predict_x0
from diffcps.diffusion.schedule import Schedule
from diffcps.types import Denoise, Key

UNROLL = 16
"""Reverse steps written out one after the other in the compiled program; longer chains loop over such blocks."""


def draw_noise(key: Key, schedule: Schedule, shape: tuple[int, ...]) -> Float[Array, "steps *b d"]:
    """All noise of one reverse chain, in the order of use: x_T first, then one draw for each step but the last."""
    return jax.random.normal(key, (schedule.num_steps, *shape))


def backwards(*constants: np.ndarray) -> tuple[Float[Array, "steps *k"] | Int[Array, " steps"], ...]:
    """Constants of the steps t = 0, 1, ... in the order of a reverse chain.

    Those of a step should be one row of one array: XLA (jaxlib 0.10.2) fails to compile some chains of many steps that
    read several arrays, "Incorrect number of arguments passed to called function" (tests/contract/test_as_released.py).
    """
    return tuple(jnp.asarray(constant[::-1].copy()) for constant in constants)


def step_noise(noise: Float[Array, "steps *b d"]) -> Float[Array, "steps *b d"]:
    """What each step of a chain from noise[0] adds: noise[1], noise[2], ..., and nothing at the last one."""
    return jnp.concatenate([noise[1:], jnp.zeros_like(noise[:1])])


def sample_ancestral(
    schedule: Schedule, denoise: Denoise, noise: Float[Array, "steps *b d"], clip: float = 1.0
) -> Float[Array, "*b d"]:
    """DDPM's reverse chain from x_T = noise[0], with x_0 clipped to [-clip, clip] at every step and at the end.

    x_{t-1} = posterior mean(clip(x0(x_t, eps_theta)), x_t) + posterior std * noise[T - t], without noise at t = 0. The
    variance is the posterior's, where DiffCPS's eq. 11 writes beta_t.
    Reference: DDPM (arXiv:2006.11239), algorithm 2; DiffCPS (arXiv:2310.05333), eq. 10.
    """

    def step(xt, constants):
        t, (x0_weight, xt_weight, std), z = constants
        x0 = jnp.clip(predict_x0(schedule, xt, t, denoise(xt, t)), -clip, clip)
        return x0_weight * x0 + xt_weight * xt + std * z, None

    std = np.where(np.arange(schedule.num_steps) == 0, 0.0, schedule.posterior_std).astype(np.float32)
    weights = np.stack([schedule.posterior_x0_weight, schedule.posterior_xt_weight, std], axis=1)
    steps = (*backwards(np.arange(schedule.num_steps), weights), step_noise(noise))
    x, _ = jax.lax.scan(step, noise[0], steps, unroll=min(schedule.num_steps, UNROLL))
    return jnp.clip(x, -clip, clip)


def sample_clipped(
    schedule: Schedule, denoise: Denoise, noise: Float[Array, "steps *b d"], clip: float = 1.0
) -> Float[Array, "*b d"]:
    """DDPM's reverse chain from x_T = noise[0], with x_t itself clipped to [-clip, clip] after every step.

    x_{t-1} = (x_t - beta_t / sqrt(1 - alpha_bar_t) eps_theta) / sqrt(1 - beta_t) + sqrt(beta_t) noise[T - t], without
    noise at t = 0. Neither x_T nor an estimate of x_0 is clipped, and the variance is beta_t: in all three it is not
    `sample_ancestral`.
    Reference: DDPM (arXiv:2006.11239), algorithm 2 with the first variance of section 3.2; clipped as in the program of
    IDQL (arXiv:2304.10573).
    """

    def step(xt, constants):
        t, (eps_weight, xt_weight, std), z = constants
        x = xt_weight * (xt - eps_weight * denoise(xt, t)) + std * z
        return jnp.clip(x, -clip, clip), None

    beta, alpha_bar = schedule.beta.astype(np.float64), schedule.alpha_bar.astype(np.float64)
    std = np.where(np.arange(schedule.num_steps) == 0, 0.0, np.sqrt(beta))
    weights = np.stack([beta / np.sqrt(1.0 - alpha_bar), 1.0 / np.sqrt(1.0 - beta), std], axis=1).astype(np.float32)
    steps = (*backwards(np.arange(schedule.num_steps), weights), step_noise(noise))
    x, _ = jax.lax.scan(step, noise[0], steps, unroll=min(schedule.num_steps, UNROLL))
    return x
