"""Theorem 3.11: how many dual steps lead to a neighbourhood of the optimum.

    lambda <- max(c, lambda - eta (kappa_0 - H(pi_b, mu_lambda))),   K <= (lambda_0 - lambda*)^2 / (2 eta varepsilon)

Reference: arXiv:2310.05333, algorithm 1, theorem 3.11, eq. 20, and appendix A.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

from diffcps.paper.theory.duality import solve_dual, solve_primal
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

Floats = tuple[float, ...]


class DualStep(NamedTuple):
    """One iterate of algorithm 1: lambda_k, d(lambda_k), and the slope kappa_0 - H(pi_b, mu_k) that the step uses."""

    multiplier: float
    dual: float
    slope: float


def inexact_response(problem: Problem, mu: Vector, multiplier: float, error: float) -> Vector:
    """A policy from mu towards pi_b whose Lagrangian is `error` (delta of assumption A.4) lower; pi_b at the most."""

    def excess(share: float) -> float:
        mixed = mu + share * (problem.behaviour - mu)
        return lagrangian(problem, mu, multiplier, 0.0) - lagrangian(problem, mixed, multiplier, 0.0) - error

    share = 1.0 if excess(1.0) <= 0 else optimize().brentq(excess, 0.0, 1.0)
    return mu + share * (problem.behaviour - mu)


def dual_steps(
    problem: Problem, kappa: float, start: float, clip: float, step_size: float, error: float, close: float, limit: int
) -> list[DualStep]:
    """lambda_{k+1} = max(c, lambda_k - eta (kappa_0 - H(pi_b, mu_k))) from lambda_0 (algorithm 1, lines 14 and 15).

    mu_k maximises the Lagrangian up to `error`. Ends at the first d(lambda_k) <= `close`, or after `limit` steps.
    """
    steps: list[DualStep] = []
    multiplier = start
    while not steps or (steps[-1].dual > close and len(steps) <= limit):
        mu = best_response(problem, multiplier)
        taken = inexact_response(problem, mu, multiplier, error) if error > 0 else mu
        slope = kappa - cross_entropy(problem, taken)
        steps.append(DualStep(multiplier, lagrangian(problem, mu, multiplier, kappa), slope))
        multiplier = max(clip, multiplier - step_size * slope)
    return steps


def printed_constant(problem: Problem, kappa: float) -> float:
    """C = (kappa_0 - H(pi_b, pi_b))^2, as theorem 3.11 has it."""
    return (kappa - cross_entropy(problem, problem.behaviour)) ** 2


def proof_constant(problem: Problem, kappa: float, clip: float) -> float:
    """sup over lambda >= c of (kappa_0 - H(pi_b, mu_lambda))^2, which is what eq. 54 of the proof needs.

    H falls in lambda, so that the supremum is at an end: mu_c, or pi_b for lambda -> infinity.
    """
    return max(printed_constant(problem, kappa), (kappa - cross_entropy(problem, best_response(problem, clip))) ** 2)


Constant = Literal["proof", "printed"]
"""Which C: the one that the proof needs, or the one that theorem 3.11 has."""


@dataclass(frozen=True)
class IterationRow:
    """K of one run of algorithm 1 for one C and one tolerance, and its bound (eq. 20)."""

    budget: float
    """kappa_0 - H(pi_b, pi_b)."""
    start: float
    """lambda_0."""
    step_size: float
    """eta."""
    error: float
    """delta."""
    above_primal: float
    """The run's least d(lambda_k) - P*, for the lower end of eq. 21: 0, as a table represents every policy (epsilon =
    0)."""
    constant: Constant
    C: float
    tolerance: float
    """varepsilon."""
    steps: int
    """K; at least K where not `reached`."""
    bound: float
    reached: bool
    """Whether the run came into the neighbourhood before all its bounds were exceeded."""
    covered: bool
    """Whether (kappa_0 - H)^2 <= C at every step before the K-th."""

    @property
    def violation(self) -> bool:
        """Whether K exceeds its bound."""
        return self.steps > self.bound


def check_iteration(budgets: Floats, starts: Floats, step_sizes: Floats, tolerances: Floats) -> list[IterationRow]:
    """K, the dual steps until d(lambda_K) - D* <= eta C / 2 + delta + varepsilon (eq. 57), against eq. 20.

    Once with the C of the proof, once with C as printed. The c of algorithm 1 is 0.3, as for AntMaze in the paper's
    table 4; it lies below lambda*.
    """
    problem, clip = make_problem(*random_mdp(0)), 0.3
    rows: list[IterationRow] = []
    for budget in budgets:
        kappa = cross_entropy(problem, problem.behaviour) + budget
        primal, (optimum, mu) = expected_return(problem, solve_primal(problem, kappa)), solve_dual(problem, kappa)
        least = lagrangian(problem, mu, optimum, kappa)
        constants: dict[Constant, float] = {
            "proof": proof_constant(problem, kappa, clip),
            "printed": printed_constant(problem, kappa),
        }
        for start, step_size, error in itertools.product(starts, step_sizes, (0.0, 0.01)):
            bounds = {tolerance: (start - optimum) ** 2 / (2 * step_size * tolerance) for tolerance in tolerances}
            close = least + step_size * constants["printed"] / 2 + error + min(tolerances)
            limit = math.floor(max(bounds.values())) + 1
            steps = dual_steps(problem, kappa, start, clip, step_size, error, close, limit)
            above = min(step.dual for step in steps) - primal
            for (name, constant), tolerance in itertools.product(constants.items(), tolerances):
                radius = step_size * constant / 2 + error + tolerance
                inside = [k for k, step in enumerate(steps) if step.dual - least <= radius]
                count = inside[0] if inside else len(steps)
                covered = all(step.slope**2 <= constant * (1 + 1e-9) for step in steps[:count])
                case = IterationRow(
                    budget=budget,
                    start=start,
                    step_size=step_size,
                    error=error,
                    above_primal=above,
                    constant=name,
                    C=constant,
                    tolerance=tolerance,
                    steps=count,
                    bound=bounds[tolerance],
                    reached=bool(inside),
                    covered=covered,
                )
                rows.append(case)
    return rows
