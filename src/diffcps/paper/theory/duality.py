"""Theorem 3.7: the constrained policy search has no duality gap; without assumption 3.5 it has one.

    max_mu J(mu)  s.t.  H(pi_b, mu) <= kappa_0    against    min_{lambda >= 0} max_mu L(mu, lambda)

Reference: arXiv:2310.05333, eqs. 12, 14, 15, theorem 3.7 and appendix A.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from diffcps.paper.theory.tabular import (
    Problem,
    Vector,
    best_response,
    cross_entropy,
    expected_return,
    lagrangian,
    make_problem,
    optimize,
    random_mdp,
)


def solve_dual(problem: Problem, kappa: float) -> tuple[float, Vector]:
    """arg min_{lambda >= 0} max_mu L(mu, lambda) (eq. 15) and its mu: the root of d' = kappa_0 - H(pi_b, mu_lambda).

    It is positive: as lambda -> 0 the policy gives up actions of the data, and H grows without bound. The value
    L(mu, lambda) bounds P* from above whatever the error of the root (weak duality).
    """

    def slope(log_multiplier: float) -> float:
        return kappa - cross_entropy(problem, best_response(problem, math.exp(log_multiplier)))

    multiplier = math.exp(optimize().brentq(slope, math.log(1e-5), math.log(1e5), xtol=1e-12))
    return multiplier, best_response(problem, multiplier)


def solve_primal(problem: Problem, kappa: float) -> Vector:
    """Eq. 12 by sequential quadratic programming, which knows nothing of the dual.

    The solver may leave the domain of log between its steps: below 1e-7 the logarithm goes on as a parabola.
    """
    n, floor = problem.directions, 1e-7

    def policy(z: np.ndarray) -> Vector:
        return problem.behaviour + n @ z

    def log_and_slope(mu: Vector) -> tuple[Vector, Vector]:
        inside, below = np.maximum(mu, floor), np.minimum(mu / floor - 1, 0.0)
        return np.log(inside) + below - below**2 / 2, 1 / inside - below / floor

    def slack(z: np.ndarray) -> float:
        return kappa + float(problem.weight @ log_and_slope(policy(z))[0])

    bound = {"type": "ineq", "fun": slack, "jac": lambda z: n.T @ (problem.weight * log_and_slope(policy(z))[1])}
    constraints = [bound, {"type": "ineq", "fun": policy, "jac": lambda z: n}]
    start, loss, options = np.zeros(n.shape[1]), -(n.T @ problem.gain), {"ftol": 1e-15, "maxiter": 1000}
    found = optimize().minimize(
        lambda z: loss @ z, start, jac=lambda z: loss, constraints=constraints, method="SLSQP", options=options
    )
    return policy(found.x)


@dataclass(frozen=True)
class DualityRow:
    """Primal and dual value of one problem. Where excess <= 0, primal <= P* <= D* <= dual: the gap D* - P* is enclosed,
    however good the solvers are."""

    seed: int
    """Of the decision process."""
    budget: float
    """The epsilon of eq. 7: kappa_0 - H(pi_b, pi_b)."""
    multiplier: float
    primal: float
    dual: float
    gap: float
    """dual - primal."""
    excess: float
    """By how much the primal policy exceeds the constraint."""
    policy_difference: float
    """Largest difference of a probability between the primal and the dual policy."""


def check_duality(num_problems: int, num_bounds: int) -> list[DualityRow]:
    """Primal and dual values of random problems over a range of kappa_0."""
    rows: list[DualityRow] = []
    for seed in range(num_problems):
        problem = make_problem(*random_mdp(seed))
        for budget in np.geomspace(1e-3, 2.0, num_bounds).tolist():
            kappa = cross_entropy(problem, problem.behaviour) + budget
            mu, (multiplier, mu_dual) = solve_primal(problem, kappa), solve_dual(problem, kappa)
            primal, dual = expected_return(problem, mu), lagrangian(problem, mu_dual, multiplier, kappa)
            excess, difference = cross_entropy(problem, mu) - kappa, float(np.max(np.abs(mu - mu_dual)))
            rows.append(DualityRow(seed, budget, multiplier, primal, dual, dual - primal, excess, difference))
    return rows


@dataclass(frozen=True)
class GapRow:
    """Primal and dual value of the process of one state, for one bound."""

    stay: float
    """mu(1) of the primal policy."""
    budget: float
    primal: float
    dual: float
    gap: float
    """dual - primal."""


def check_without_assumption(num_bounds: int, behaviour: float = 0.1, discount: float = 0.99) -> list[GapRow]:
    """Eq. 12 without assumption 3.5 on the smallest process there is, where it has a gap.

    One state: action 1 earns 1 and stays, action 0 ends. With p = mu(1), J = p / (1 - gamma p), and eq. 7 bounds
    (1 - gamma) / (1 - gamma q) KL((1 - q, q) || (1 - p, p)), q = pi_b(1). Both rise with p >= q, so that the primal
    value is J where the bound is met. The inner maximum of the dual is over a grid: the gap is at least what is found.
    """
    p = 1 - np.geomspace(1 - behaviour, 1e-9, 20_001)
    values = p / (1 - discount * p)
    divergence = behaviour * np.log(behaviour / p) + (1 - behaviour) * np.log((1 - behaviour) / (1 - p))
    budgets = (1 - discount) / (1 - discount * behaviour) * divergence

    def dual(budget: float) -> float:
        def bound(log_multiplier: float) -> float:
            return float(np.max(values + math.exp(log_multiplier) * (budget - budgets)))

        found = optimize().minimize_scalar(bound, bounds=(-25, 15), method="bounded", options={"xatol": 1e-10})
        return float(found.fun)

    rows: list[GapRow] = []
    for index in np.searchsorted(budgets, np.geomspace(1e-3, 0.9 * budgets[-1], num_bounds)):
        stay, budget, primal = float(p[index]), float(budgets[index]), float(values[index])
        upper = dual(budget)
        rows.append(GapRow(stay, budget, primal, upper, upper - primal))
    return rows
