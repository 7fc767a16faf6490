"""Tabular decision processes, and the constrained policy search on them (DiffCPS, section 3).

All in float64 NumPy. A policy pi is "s a"; H(pi_b, mu) = -E_{s ~ rho_b, a ~ pi_b}[log mu(a | s)], with rho_b the
normalised discounted state visitation of the behaviour policy.

Reference: arXiv:2310.05333, sections 2.1 and 3.
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from diffcps.types import UserError

Policy = Float[np.ndarray, "s a"]
Vector = Float[np.ndarray, " n"]


def optimize() -> ModuleType:
    """scipy.optimize. Raises `UserError` where SciPy is missing."""
    try:
        import scipy.optimize
    except ImportError:
        raise UserError("the checks of the theory need SciPy: pip install 'diffcps[theory]'") from None
    return scipy.optimize


class MDP(NamedTuple):
    """A finite decision process."""

    reward: Float[np.ndarray, "s a"]
    transition: Float[np.ndarray, "s a s"]
    start: Float[np.ndarray, " s"]
    discount: float


def random_mdp(seed: int, num_states: int = 6, num_actions: int = 3) -> tuple[MDP, Policy]:
    """A random decision process with rewards in [0, 1] and discount 0.9, and a behaviour policy of full support."""
    random = np.random.default_rng(seed)
    transition = random.dirichlet(np.full(num_states, 0.5), (num_states, num_actions))
    mdp = MDP(random.random((num_states, num_actions)), transition, random.dirichlet(np.ones(num_states)), 0.9)
    return mdp, random.dirichlet(np.full(num_actions, 2.0), num_states)


def state_visitation(mdp: MDP, policy: Policy) -> Float[np.ndarray, " s"]:
    """rho(s) = (1 - gamma) sum_t gamma^t p(s_t = s), which sums to one (section 2.1)."""
    step = np.einsum("sa,sat->st", policy, mdp.transition)
    return (1 - mdp.discount) * np.linalg.solve(np.eye(len(step)) - mdp.discount * step.T, mdp.start)


class Problem(NamedTuple):
    """Eq. 12 over the policies for which assumption 3.5 holds; a policy mu is flattened, n = s a.

    Eq. 13 says that every policy has the behaviour's state visitation: rho(s, a) = rho_b(s) mu(a | s). J is then linear
    in mu, H convex, and the policies form a polytope: mu >= 0 and mu - pi_b in the span of `directions`.
    """

    gain: Vector
    """rho_b(s) r(s, a) / (1 - gamma), so that J = gain . mu (eq. 30)."""
    weight: Vector
    """rho_b(s) pi_b(a | s), so that H = -weight . log mu (theorem 3.1)."""
    behaviour: Vector
    directions: Float[np.ndarray, "n k"]
    """Orthonormal changes of a policy that keep its sums over actions and the state visitation."""


def make_problem(mdp: MDP, behaviour: Policy) -> Problem:
    """The constrained policy search of a decision process. `behaviour` must have full support."""
    num_states, num_actions = behaviour.shape
    visitation = state_visitation(mdp, behaviour)
    sums = np.kron(np.eye(num_states), np.ones(num_actions))
    flow = (visitation[:, None, None] * mdp.transition).reshape(-1, num_states).T
    _, singular, rows = np.linalg.svd(np.concatenate([sums, flow]))
    return Problem(
        gain=(visitation[:, None] * mdp.reward).ravel() / (1 - mdp.discount),
        weight=(visitation[:, None] * behaviour).ravel(),
        behaviour=behaviour.ravel(),
        directions=rows[np.sum(singular > 1e-10) :].T,
    )


def expected_return(problem: Problem, mu: Vector) -> float:
    """J(mu) (eqs. 12 and 30)."""
    return float(problem.gain @ mu)


def cross_entropy(problem: Problem, mu: Vector) -> float:
    """H(pi_b, mu) (theorem 3.1); infinite for a policy that gives up an action of the data."""
    return -float(problem.weight @ np.log(mu)) if np.min(mu) > 0 else math.inf


def lagrangian(problem: Problem, mu: Vector, multiplier: float, kappa: float) -> float:
    """L(mu, lambda) = J + lambda (kappa_0 - H) (eq. 14)."""
    return expected_return(problem, mu) + multiplier * (kappa - cross_entropy(problem, mu))


def best_response(problem: Problem, multiplier: float) -> Vector:
    """arg max_mu L(mu, lambda), lambda > 0 (eq. 14), by Newton's method: lambda H is its own barrier at mu = 0.

    The maximum is missed by half the last Newton decrement, below 1e-15.
    """
    n, weight, mu = problem.directions, multiplier * problem.weight, problem.behaviour

    def value(mu: Vector) -> float:
        return float(problem.gain @ mu + weight @ np.log(mu))

    for _ in range(200):
        slope = n.T @ (problem.gain + weight / mu)
        step = np.linalg.solve(n.T @ ((weight / mu**2)[:, None] * n), slope)
        decrement, direction = float(slope @ step), n @ step
        if decrement < 1e-15:
            return mu
        size = min(1.0, 0.9 / max(np.max(-direction / mu), 1e-12))  # at most nine tenths of the way to the boundary
        while value(mu + size * direction) < value(mu) + 0.1 * size * decrement and size > 1e-10:
            size /= 2
        mu = mu + size * direction
    raise RuntimeError(f"no maximum of the Lagrangian after 200 Newton steps at lambda = {multiplier:g}")
