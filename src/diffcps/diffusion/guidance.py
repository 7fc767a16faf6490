"""Guided sampling: reverse chains that are pulled towards a value, hold a condition, or keep what is known.

Samples may be trajectories "time channel" or vectors; `event` below stands for either. Noise is an argument.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffcps.diffusion.sampler import backwards, step_noise
from diffcps.diffusion.schedule import Schedule
from diffcps.types import Real

Sample = Float[Array, "*b_and_event"]
Estimate = Callable[[Sample, Int[Array, ""]], Sample]
"""x_0 of (x_t, t), as a network predicts it or as it follows from predicted noise."""
Known = Callable[[Sample], Sample]
"""Puts what is known in its place (in-painting)."""
Guide = Callable[[Sample, Int[Array, ""]], tuple[Float[Array, "*b"], Sample]]
"""The value of (x_t, t) for each sample, and its gradient."""


def with_gradient(value: Callable[[Sample, Int[Array, ""]], Float[Array, "*b"]]) -> Guide:
    """A guide from a function that values each sample by itself."""

    def guide(xt, t):
        def summed(xt):
            values = value(xt, t)
            return jnp.sum(values), values

        (_, values), gradient = jax.value_and_grad(summed, has_aux=True)(xt)
        return values, gradient

    return guide


def classifier_free(conditional: Sample, unconditional: Sample, weight: Real) -> Sample:
    """eps_none + w (eps_y - eps_none): w = 1 is the conditional model, w = 0 the one without condition.

    Reference: arXiv:2207.12598, whose weight counts from the conditional model (w - 1); here as Decision Diffuser
    (arXiv:2211.15657), eq. 8.
    """
    return unconditional + weight * (conditional - unconditional)


def pulled(
    schedule: Schedule, guide: Guide, known: Known, scale: Real, steps: int, stop_below: int
) -> Callable[[Sample, Int[Array, ""]], tuple[Sample, Float[Array, "*b"]]]:
    """x_t <- known(x_t + scale sigma_t^2 grad J(x_t, t)), `steps` times over, and J at the last one's input.

    sigma_t^2 is the posterior's variance. Below t = `stop_below` the value is asked and nothing is moved.
    Reference: Diffuser (arXiv:2205.09991), algorithm 1, in the order of its program: x_t is moved before its mean is
    taken.
    """
    variance = np.square(schedule.posterior_std)

    def pull(xt, t):
        rate = jnp.where(t < stop_below, 0.0, scale * jnp.asarray(variance)[t])

        def once(xt, _):
            values, gradient = guide(xt, t)
            return known(xt + rate * gradient), values

        xt, values = jax.lax.scan(once, xt, None, length=steps)
        return xt, values[-1]

    return pull


def sample_known(
    schedule: Schedule,
    estimate: Estimate,
    known: Known,
    noise: Float[Array, "steps *b_and_event"],
    clip: float = float("inf"),
    pull: Callable[[Sample, Int[Array, ""]], tuple[Sample, Float[Array, "*b"]]] | None = None,
) -> tuple[Sample, Float[Array, "*b"] | None]:
    """DDPM's reverse chain from x_T = noise[0] (the first of its steps), with what is known put back at each step.

    x_{t-1} = known(x0_weight clip(x_0) + xt_weight x_t + posterior std noise[T - t]), without noise at t = 0. Where
    `pull` moves x_t first, the values that it saw at t = 0 are returned, too. With fewer steps of noise than the
    schedule has, the chain is its last part, and noise[0] a sample x_t of that time.
    """
    steps = noise.shape[0]
    std = np.where(np.arange(steps) == 0, 0.0, schedule.posterior_std[:steps]).astype(np.float32)
    constants = (np.arange(steps), schedule.posterior_x0_weight[:steps], schedule.posterior_xt_weight[:steps], std)

    def step(carry, constants):
        xt, _ = carry
        t, x0_weight, xt_weight, std, z = constants
        values = None
        if pull is not None:
            xt, values = pull(xt, t)
        x0 = jnp.clip(estimate(xt, t), -clip, clip)
        return (known(x0_weight * x0 + xt_weight * xt + std * z), values), None

    start = known(noise[0])
    values = None if pull is None else jax.eval_shape(pull, start, jnp.asarray(0))[1]
    values = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), values)
    (x, values), _ = jax.lax.scan(step, (start, values), (*backwards(*constants), step_noise(noise)))
    return x, values
