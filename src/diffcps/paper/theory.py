"""The paper's theory, checked with numbers (DiffCPS, arXiv:2310.05333, section 3 and appendix A).

    duality     max_mu J(mu)  s.t.  H(pi_b, mu) <= kappa_0    against    min_{lambda >= 0} max_mu L(mu, lambda)
                                                                               (eqs. 12, 14, 15, theorem 3.7)
    iteration   lambda <- max(c, lambda - eta (kappa_0 - H(pi_b, mu_lambda))),
                K <= (lambda_0 - lambda*)^2 / (2 eta varepsilon)               (algorithm 1, theorem 3.11, eq. 20)
    surrogate   H(pi_b, mu) ~ c + L_c(pi_b, mu), for Gaussians in closed form  (proposition 3.8, eqs. 16 and 36)

with H(pi_b, mu) = -E_{s ~ rho_b, a ~ pi_b}[log mu(a | s)] and rho_b the normalised discounted state visitation of the
behaviour policy. All in float64 NumPy; what is shown, and what is not: docs/theory.md.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from diffcps.diffusion.schedule import vp_betas
from diffcps.paper.theory_picture import theory_figure, theory_summary
from diffcps.paper.toy_picture import save_figure
from diffcps.storage import write_atomically
from diffcps.types import UserError

Policy = Float[np.ndarray, "s a"]
Vector = Float[np.ndarray, " n"]
Floats = tuple[float, ...]
Row = dict[str, Any]
Normal = tuple[float, float]
"""Mean and standard deviation of a normal law."""


def theory(out: Path, fast: bool, say: Callable[[str], None]) -> list[Path]:
    """Runs all checks, writes `out`/theory.png, .pdf, .json and a .csv for each table; returns the paths.

    `fast` has fewer points. `say` is told the outcomes. Raises `UserError` where SciPy is missing.
    """
    bounds = 4 if fast else 13
    tables = {
        "duality": check_duality(num_problems=2 if fast else 10, num_bounds=bounds),
        "without_assumption": check_without_assumption(num_bounds=bounds),
        "iteration": check_iteration(
            budgets=(0.01, 0.1),
            starts=(0.3, 15.0) if fast else (0.3, 1.0, 5.0, 25.0),
            step_sizes=(3.0, 100.0) if fast else (0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
            tolerances=(0.1, 0.03) if fast else (0.3, 0.1, 0.03, 0.01, 0.003, 0.001),
        ),
        "surrogate": check_surrogate(num_steps=(5, 100) if fast else (5, 15, 50, 100, 1000), num_policies=21),
    }
    tables["lines"] = surrogate_lines(tables["surrogate"])
    summary = theory_summary(tables)
    for name, numbers in summary.items():
        for key, value in numbers.items():
            say(f"{name}: {key} {value:.4g}")

    out.mkdir(parents=True, exist_ok=True)
    save_figure(theory_figure(tables), out / "theory")
    write_atomically(out / "theory.json", (json.dumps({"fast": fast, **summary}, indent=1) + "\n").encode())
    for name, rows in tables.items():
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([list(rows[0]), *(row.values() for row in rows)])
        write_atomically(out / f"theory_{name}.csv", text.getvalue().encode())
    return [out / f"theory{end}" for end in (".png", ".pdf", ".json", *(f"_{name}.csv" for name in tables))]


def _optimize() -> Any:
    try:
        import scipy.optimize
    except ImportError:
        raise UserError("the checks of the theory need SciPy: pip install 'diffcps[theory]'") from None
    return scipy.optimize


# --- Tabular decision processes ---


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


# --- Theorem 3.7: no duality gap ---


def solve_dual(problem: Problem, kappa: float) -> tuple[float, Vector]:
    """arg min_{lambda >= 0} max_mu L(mu, lambda) (eq. 15) and its mu: the root of d' = kappa_0 - H(pi_b, mu_lambda).

    It is positive: as lambda -> 0 the policy gives up actions of the data, and H grows without bound. The value
    L(mu, lambda) bounds P* from above whatever the error of the root (weak duality).
    """

    def slope(log_multiplier: float) -> float:
        return kappa - cross_entropy(problem, best_response(problem, math.exp(log_multiplier)))

    multiplier = math.exp(_optimize().brentq(slope, math.log(1e-5), math.log(1e5), xtol=1e-12))
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
    found = _optimize().minimize(
        lambda z: loss @ z, start, jac=lambda z: loss, constraints=constraints, method="SLSQP", options=options
    )
    return policy(found.x)


def check_duality(num_problems: int, num_bounds: int) -> list[Row]:
    """Primal and dual values of random problems over a range of kappa_0.

    `budget` is the epsilon of eq. 7, kappa_0 - H(pi_b, pi_b); the primal policy exceeds the constraint by `excess`.
    Where excess <= 0, primal <= P* <= D* <= dual: the gap D* - P* is enclosed, however good the solvers are.
    """
    rows = []
    for seed in range(num_problems):
        problem = make_problem(*random_mdp(seed))
        for budget in np.geomspace(1e-3, 2.0, num_bounds).tolist():
            kappa = cross_entropy(problem, problem.behaviour) + budget
            mu, (multiplier, mu_dual) = solve_primal(problem, kappa), solve_dual(problem, kappa)
            primal, dual = expected_return(problem, mu), lagrangian(problem, mu_dual, multiplier, kappa)
            excess, difference = cross_entropy(problem, mu) - kappa, float(np.max(np.abs(mu - mu_dual)))
            case = {"seed": seed, "budget": budget, "multiplier": multiplier, "primal": primal, "dual": dual}
            rows.append({**case, "gap": dual - primal, "excess": excess, "policy_difference": difference})
    return rows


def check_without_assumption(num_bounds: int, behaviour: float = 0.1, discount: float = 0.99) -> list[Row]:
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

        found = _optimize().minimize_scalar(bound, bounds=(-25, 15), method="bounded", options={"xatol": 1e-10})
        return float(found.fun)

    rows = []
    for index in np.searchsorted(budgets, np.geomspace(1e-3, 0.9 * budgets[-1], num_bounds)):
        stay, budget, primal = float(p[index]), float(budgets[index]), float(values[index])
        upper = dual(budget)
        rows.append({"stay": stay, "budget": budget, "primal": primal, "dual": upper, "gap": upper - primal})
    return rows


# --- Theorem 3.11: the number of dual steps ---


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

    share = 1.0 if excess(1.0) <= 0 else _optimize().brentq(excess, 0.0, 1.0)
    return mu + share * (problem.behaviour - mu)


def dual_steps(
    problem: Problem, kappa: float, start: float, clip: float, step_size: float, error: float, close: float, limit: int
) -> list[DualStep]:
    """lambda_{k+1} = max(c, lambda_k - eta (kappa_0 - H(pi_b, mu_k))) from lambda_0 (algorithm 1, lines 14 and 15).

    mu_k maximises the Lagrangian up to `error`. Ends at the first d(lambda_k) <= `close`, or after `limit` steps.
    """
    steps, multiplier = [], start
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


def check_iteration(budgets: Floats, starts: Floats, step_sizes: Floats, tolerances: Floats) -> list[Row]:
    """K, the dual steps until d(lambda_K) - D* <= eta C / 2 + delta + varepsilon (eq. 57), against eq. 20.

    Once with the C of the proof, once with C as printed; `covered` says whether (kappa_0 - H)^2 <= C at every step
    before the K-th. A run stops at last when all its bounds are exceeded: where not `reached`, K is `steps` or more.
    `above_primal` is the least d(lambda_k) - P* of a run, for the lower end of eq. 21: 0, as a table represents every
    policy (epsilon = 0). The c of algorithm 1 is 0.3, as for AntMaze in the paper's table 4; it lies below lambda*.
    """
    problem, clip, rows = make_problem(*random_mdp(0)), 0.3, []
    for budget in budgets:
        kappa = cross_entropy(problem, problem.behaviour) + budget
        primal, (optimum, mu) = expected_return(problem, solve_primal(problem, kappa)), solve_dual(problem, kappa)
        least = lagrangian(problem, mu, optimum, kappa)
        constants = {"proof": proof_constant(problem, kappa, clip), "printed": printed_constant(problem, kappa)}
        for start, step_size, error in itertools.product(starts, step_sizes, (0.0, 0.01)):
            bounds = {tolerance: (start - optimum) ** 2 / (2 * step_size * tolerance) for tolerance in tolerances}
            close = least + step_size * constants["printed"] / 2 + error + min(tolerances)
            limit = math.floor(max(bounds.values())) + 1
            steps = dual_steps(problem, kappa, start, clip, step_size, error, close, limit)
            above = min(step.dual for step in steps) - primal
            run = {"budget": budget, "start": start, "step_size": step_size, "error": error, "above_primal": above}
            for (name, constant), tolerance in itertools.product(constants.items(), tolerances):
                radius = step_size * constant / 2 + error + tolerance
                inside = [k for k, step in enumerate(steps) if step.dual - least <= radius]
                count = inside[0] if inside else len(steps)
                covered = all(step.slope**2 <= constant * (1 + 1e-9) for step in steps[:count])
                ends = {"steps": count, "bound": bounds[tolerance], "reached": bool(inside), "covered": covered}
                rows.append({**run, "constant": name, "C": constant, "tolerance": tolerance, **ends})
    return rows


# --- Proposition 3.8: the denoising loss and the cross-entropy ---

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


def check_surrogate(num_steps: tuple[int, ...], num_policies: int) -> list[Row]:
    """H, K and the losses for three families of policies: shifted, narrower and wider than the data.

    K bounds the H of eq. 11, not that of the other variance.
    """
    (mean, std), spread = DATA, np.linspace(0, 1, num_policies).tolist()
    families = {
        "shifted": [(mean + 2 * x * std, std) for x in spread],
        "narrower": [(mean, std * 0.5**x) for x in spread],
        "wider": [(mean, std * 2.0**x) for x in spread],
    }
    rows = []
    for steps, variance, family in itertools.product(num_steps, get_args(Variance), families):
        betas = vp_betas(steps)
        for model in families[family]:
            losses, law = denoising_losses(betas, DATA, model), policy_law(betas, model, variance)
            case = {"num_steps": steps, "variance": variance, "family": family, "mean": model[0], "std": model[1]}
            weighted, bound = float(elbo_weights(betas) @ losses), variational_bound(betas, DATA, losses)
            values = {"H": gaussian_cross_entropy(DATA, law), "L_c": float(losses.mean()), "weighted": weighted}
            rows.append({**case, "policy_mean": law[0], "policy_std": law[1], **values, "K": bound})
    return rows


def surrogate_lines(rows: list[Row]) -> list[Row]:
    """The least-squares line of H over a loss, for each family of policies and for all of them together.

    `deviation` is the largest distance of H from the line, as a share of H's range. `predicted` is the slope that
    theory gives for many steps: `shift_slope` for L_c and shifted means (none for other policies), 1 for w . losses.
    """
    lines, cases = [], dict.fromkeys((row["num_steps"], row["variance"]) for row in rows)
    for (steps, variance), family in itertools.product(cases, ("shifted", "narrower", "wider", "all")):
        case = {"num_steps": steps, "variance": variance}
        chosen = [row for row in rows if case.items() <= row.items() and family in ("all", row["family"])]
        shift = shift_slope(vp_betas(steps), DATA[1]) if family == "shifted" else None
        for loss, predicted in (("L_c", shift), ("weighted", 1.0)):
            x, y = (np.array([row[key] for row in chosen]) for key in (loss, "H"))
            slope, intercept = np.polyfit(x, y, 1).tolist()
            deviation = float(np.max(np.abs(y - slope * x - intercept)) / np.ptp(y))
            line = {"slope": slope, "predicted": predicted, "deviation": deviation}
            lines.append({**case, "family": family, "loss": loss, **line})
    return lines
