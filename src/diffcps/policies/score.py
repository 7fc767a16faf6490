"""Policies out of a score network in continuous time: its loss, and chains of a fast solver."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from diffcps.diffusion.dpm_solver import Prediction, Solver, dpm_solver, sample_dpm, solver_orders
from diffcps.diffusion.vp_sde import log_alpha, perturbed
from diffcps.networks.residual import fixed_features
from diffcps.networks.score import ScoreUNet
from diffcps.types import Denoise, Scalar, Transition

LAST_TIME = 1e-3
"""Where a chain ends; it begins at 1 (programs of SfBC and QGPO)."""


def behaviour_loss(
    behaviour: ScoreUNet,
    frequency: Float[Array, " half"],
    batch: Transition,
    t: Float[Array, " b"],
    z: Float[Array, "b act"],
) -> Scalar:
    """E[|h(alpha_t a + sigma_t z, s, t) + z|^2], the square summed over the dimensions of an action.

    Reference: denoising score matching with the weight sigma_t^2, the score being h / sigma_t (arXiv:2011.13456).
    """
    h = behaviour(perturbed(batch.action, t, z), batch.observation, fixed_features(t, frequency))
    return jnp.mean(jnp.sum(jnp.square(h + z), axis=-1))


class Chain(NamedTuple):
    """A solver with the times of its calls, from noise to data, and what the process is there."""

    solver: Solver
    predicts: Prediction
    """What the solver is made for: a network's noise, or the data that follow from it."""
    t: Float[np.ndarray, " calls"]
    alpha: Float[np.ndarray, " calls"]
    std: Float[np.ndarray, " calls"]


def even_chain(calls: int, order: int, predicts: Prediction) -> Chain:
    """So many calls, evenly in time. Reference: the programs of SfBC (arXiv:2209.14548) and QGPO (arXiv:2304.12824)."""
    return chain_through(np.linspace(1.0, LAST_TIME, calls + 1), solver_orders(calls, order), predicts)


def chain_through(t: Float[np.ndarray, " nodes"], orders: tuple[int, ...], predicts: Prediction) -> Chain:
    """Steps of these orders through these times, with a call at each of them but the last."""
    of_nodes = log_alpha(np.asarray(t, np.float64))
    of_calls = of_nodes[:-1]
    constants = (t[:-1], np.exp(of_calls), np.sqrt(-np.expm1(2.0 * of_calls)))
    return Chain(dpm_solver(of_nodes, orders, predicts), predicts, *(array.astype(np.float32) for array in constants))


def features_of(chain: Chain, frequency: Float[Array, " half"]) -> Float[Array, "calls features"]:
    """The time features of each call."""
    return fixed_features(jnp.asarray(chain.t), frequency)


def denoise_by(
    behaviour: ScoreUNet, frequency: Float[Array, " half"], chain: Chain, observation: Float[Array, "*b obs"]
) -> Denoise:
    """eps = -h for a chain. Axes of x_t that the observation lacks must be of size one in it."""
    h = behaviour.given(observation, features_of(chain, frequency))
    return lambda xt, call: -h(xt, call)


def sample_chain(chain: Chain, denoise: Denoise, noise: Float[Array, "*b act"]) -> Float[Array, "*b act"]:
    """The end of the chain from x = noise, with eps = denoise(x, call). Nothing is clipped."""
    alpha, std = jnp.asarray(chain.alpha), jnp.asarray(chain.std)

    def predict(x: Float[Array, "*b act"], call: Int[Array, ""]) -> Float[Array, "*b act"]:
        eps = denoise(x, call)
        return eps if chain.predicts == "noise" else (x - std[call] * eps) / alpha[call]

    return sample_dpm(chain.solver, predict, noise)


def sample_actions(
    behaviour: ScoreUNet,
    frequency: Float[Array, " half"],
    chain: Chain,
    observation: Float[Array, "*b obs"],
    noise: Float[Array, "*b k act"],
) -> Float[Array, "*b k act"]:
    """k actions a_j ~ mu_theta(. | s) for each observation, not clipped, one for each of its rows of noise."""
    return sample_chain(chain, denoise_by(behaviour, frequency, chain, observation[..., None, :]), noise)
