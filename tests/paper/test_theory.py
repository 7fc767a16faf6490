"""The checks of the paper's theory, against arithmetic by hand, brute force, the library's loss, and wrong variants."""

from __future__ import annotations

import csv
import itertools
import json
import math
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffcps import UserError
from diffcps.diffusion.loss import denoising_loss
from diffcps.diffusion.sampler import draw_noise, sample_ancestral
from diffcps.diffusion.schedule import make_schedule, vp_betas
from diffcps.paper.reproduce import reproduce
from diffcps.paper.theory import duality, iteration, surrogate, tabular

COIN = np.array([[0.5, 0.5]])


def bandit(reward: list[float], behaviour: np.ndarray = COIN) -> tabular.Problem:
    """One state, so that assumption 3.5 holds for every policy. J = mu . reward with discount 0."""
    mdp = tabular.MDP(np.array([reward]), np.ones((1, len(reward), 1)), np.ones(1), 0.0)
    return tabular.make_problem(mdp, behaviour)


@cache
def random_problem(seed: int = 0) -> tabular.Problem:
    return tabular.make_problem(*tabular.random_mdp(seed))


def kappa_of(problem: tabular.Problem, budget: float) -> float:
    return tabular.cross_entropy(problem, problem.behaviour) + budget


# --- Tabular pieces ---


def test_visitation_by_hand():
    # State 0 moves to state 1, which stays; discount 1/2: visits (1 - 1/2) (1, 1/2 + 1/4 + ...) = (1/2, 1/2).
    transition = np.array([[[0.0, 1.0]], [[0.0, 1.0]]])
    mdp = tabular.MDP(np.zeros((2, 1)), transition, np.array([1.0, 0.0]), 0.5)
    np.testing.assert_allclose(tabular.state_visitation(mdp, np.ones((2, 1))), [0.5, 0.5])


def test_policies_of_the_problem_satisfy_assumption_3_5_and_others_do_not():
    mdp, behaviour = tabular.random_mdp(0)
    problem, visitation = random_problem(), tabular.state_visitation(mdp, behaviour)
    mu = tabular.best_response(problem, 0.5)
    policy = mu.reshape(behaviour.shape)
    assert np.abs(policy - behaviour).max() > 0.1
    np.testing.assert_allclose(policy.sum(axis=1), 1.0)
    np.testing.assert_allclose(tabular.state_visitation(mdp, policy), visitation, atol=1e-12)
    other = np.roll(behaviour, 1, axis=1)
    assert np.abs(tabular.state_visitation(mdp, other) - visitation).max() > 0.01

    # The problem's J is the return by policy evaluation: v = r_mu + gamma P_mu v. Its H exceeds that of pi_b by the
    # expected divergence of eq. 7 (theorem 3.1).
    step = np.einsum("sa,sat->st", policy, mdp.transition)
    value = np.linalg.solve(np.eye(len(step)) - mdp.discount * step, np.sum(policy * mdp.reward, axis=1))
    assert tabular.expected_return(problem, mu) == pytest.approx(mdp.start @ value, rel=1e-12)
    divergence = visitation @ np.sum(behaviour * np.log(behaviour / policy), axis=1)
    assert tabular.cross_entropy(problem, mu) == pytest.approx(kappa_of(problem, float(divergence)), rel=1e-12)


# --- Theorem 3.7 ---


def test_best_response_by_hand():
    # max p + lambda (log p + log(1 - p)) / 2 with lambda = 3/2: p (1 - p) + 3/4 (1 - 2 p) = 0, 4 p^2 + 2 p - 3 = 0.
    # The last Newton decrement is below 1e-15, the curvature above 1: p is good to sqrt(1e-15) and better.
    assert tabular.best_response(bandit([0.0, 1.0]), 1.5)[1] == pytest.approx((math.sqrt(13) - 1) / 4, abs=1e-7)


@pytest.mark.parametrize("divergence", [0.01, 0.1, 0.5])
def test_bandit_by_hand_and_by_brute_force(divergence: float):
    problem, kappa = bandit([0.0, 1.0]), math.log(2) + divergence
    p = (1 + math.sqrt(1 - math.exp(-2 * divergence))) / 2  # -log(4 p (1 - p)) / 2 = divergence
    grid = np.linspace(1e-6, 1 - 1e-6, 1_000_001)
    assert grid[-(np.log(grid) + np.log(1 - grid)) / 2 <= kappa].max() == pytest.approx(p, abs=2e-6)  # grid's width
    # Both solvers stop below 1e-12 in value, and J = p. 1 = lambda dH/dp, dH/dp = (1 / (1 - p) - 1 / p) / 2.
    assert duality.solve_primal(problem, kappa)[1] == pytest.approx(p, abs=1e-9)
    multiplier, mu = duality.solve_dual(problem, kappa)
    assert tabular.lagrangian(problem, mu, multiplier, kappa) == pytest.approx(p, abs=1e-9)
    assert multiplier == pytest.approx(2 / (1 / (1 - p) - 1 / p), rel=1e-6)


def test_no_gap_and_one_policy_on_random_processes():
    rows = duality.check_duality(num_problems=3, num_bounds=4)
    assert len(rows) == 12
    # 1e-7 is loose for what is seen (1e-13; SLSQP may stop early, at 1e-8) and far below the least return to be
    # gained (0.07). A policy is as good as the square root of its value.
    assert max(abs(row.gap) for row in rows) < 1e-7
    assert max(row.excess for row in rows) < 1e-10
    assert max(row.policy_difference for row in rows) < 1e-3
    assert min(row.multiplier for row in rows) > 0
    # The perturbation function is concave in the bound (eq. 27), and rises.
    primal, budget = np.array([row.primal for row in rows[:4]]), np.array([row.budget for row in rows[:4]])
    slopes = np.diff(primal) / np.diff(budget)
    assert np.all(slopes > 0) and np.all(np.diff(slopes) < 0)


def test_a_wrong_multiplier_or_policy_leaves_a_gap():
    problem = random_problem()
    kappa = kappa_of(problem, 0.1)
    multiplier, mu = duality.solve_dual(problem, kappa)
    value = tabular.lagrangian(problem, mu, multiplier, kappa)
    for wrong in (0.5 * multiplier, 2 * multiplier):
        assert tabular.lagrangian(problem, tabular.best_response(problem, wrong), wrong, kappa) > value + 1e-3
    feasible = 0.9 * mu + 0.1 * problem.behaviour
    assert tabular.cross_entropy(problem, feasible) < kappa
    assert tabular.expected_return(problem, feasible) < value - 1e-3
    gives_up = problem.behaviour * (np.arange(problem.behaviour.size) > 0)
    assert tabular.cross_entropy(problem, gives_up) == math.inf


def test_without_assumption_3_5_there_is_a_gap():
    rows = duality.check_without_assumption(num_bounds=13)
    assert min(row.gap for row in rows) > -1e-9  # weak duality
    worst = max(rows, key=lambda row: row.gap)
    assert worst.gap > 10  # of returns from 0.11 to 100
    # By hand, at p = pi_b(1) = 1/10: J = p / (1 - 0.99 p); and the gap of a mixture: half of each of two policies
    # satisfies the bound on average and beats every single policy that does.
    p, q = np.array([0.2, 0.998]), 0.1
    budgets = (0.01 / (1 - 0.99 * q)) * (q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p)))
    grid = np.linspace(q, 1, 100_001)[:-1]
    divergence = q * np.log(q / grid) + (1 - q) * np.log((1 - q) / (1 - grid))
    middle = grid[0.01 / (1 - 0.99 * q) * divergence <= budgets.mean()].max()
    assert middle / (1 - 0.99 * middle) < np.mean(p / (1 - 0.99 * p)) - 10
    # Negative control: without a future every policy visits the start state alone, so that assumption 3.5 holds. The
    # grid of p and the search for lambda leave 1e-5 of values up to 1.
    assert max(abs(row.gap) for row in duality.check_without_assumption(13, discount=0.0)) < 1e-4


# --- Theorem 3.11 ---


def recursion_excess(steps: list[iteration.DualStep], optimum: float, least: float, eta: float, c: float) -> float:
    """By how much eq. 55 is violated at most, for delta = 0."""
    return max(
        (after.multiplier - optimum) ** 2
        - (before.multiplier - optimum) ** 2
        - 2 * eta * (least - before.dual)
        - eta**2 * c
        for before, after in itertools.pairwise(steps)
    )


def test_eq_55_holds_with_the_constant_of_the_proof_only():
    problem, clip, eta = random_problem(), 0.3, 100.0
    kappa = kappa_of(problem, 0.01)
    optimum, mu = duality.solve_dual(problem, kappa)
    least = tabular.lagrangian(problem, mu, optimum, kappa)
    steps = iteration.dual_steps(problem, kappa, clip, clip, eta, error=0.0, close=-math.inf, limit=30)
    assert len(steps) == 31
    printed, proof = iteration.printed_constant(problem, kappa), iteration.proof_constant(problem, kappa, clip)
    assert printed == pytest.approx(0.01**2)
    # Squares of multipliers up to 50 in double precision: 1e-9 is rounding. The first slope is -0.51, so that its
    # square exceeds the printed C by 0.26, times eta^2.
    assert recursion_excess(steps, optimum, least, eta, proof) < 1e-9
    assert recursion_excess(steps, optimum, least, eta, printed) > 1
    assert max(abs(step.slope) for step in steps) == pytest.approx(math.sqrt(proof), rel=1e-9)


def test_counts_stay_below_the_bound_for_the_constant_of_the_proof_only():
    rows = iteration.check_iteration((0.01, 0.1), starts=(0.3, 15.0), step_sizes=(3.0, 100.0), tolerances=(0.1, 0.03))
    proof = [row for row in rows if row.constant == "proof"]
    assert len(proof) == 32 and sum(row.steps > 20 for row in proof) == 4  # many others start in the neighbourhood
    assert all(row.steps <= row.bound and row.reached and row.covered for row in proof)
    broken = [row for row in rows if row.steps > row.bound]
    assert {(row.constant, row.start, row.step_size, row.covered) for row in broken} == {("printed", 0.3, 100.0, False)}
    # By hand: lambda* = 9.22 (rounded), (0.3 - 9.22)^2 / (2 * 100 * 0.1).
    bound = next(row.bound for row in broken if row.tolerance == 0.1)
    assert bound == pytest.approx((0.3 - 9.22) ** 2 / 20, rel=1e-3)
    assert min(row.above_primal for row in rows) > -1e-9  # lower end of eq. 21


def test_the_wrong_sign_never_arrives():
    problem = random_problem()
    kappa = kappa_of(problem, 0.1)
    optimum, mu = duality.solve_dual(problem, kappa)
    close = tabular.lagrangian(problem, mu, optimum, kappa) + 0.05
    right, wrong = (iteration.dual_steps(problem, kappa, 4.0, 0.3, eta, 0.0, close, limit=100) for eta in (1.0, -1.0))
    assert right[-1].dual <= close and len(right) < 100
    assert wrong[-1].dual > close and len(wrong) == 101


def test_dual_steps_by_hand():
    # lambda_1 = lambda_0 - eta (kappa_0 - H) for the best response 4 p^2 + 2 p - 3 = 0 of the bandit at 3/2; then clip.
    problem, kappa = bandit([0.0, 1.0]), math.log(2) + 0.1
    p = (math.sqrt(13) - 1) / 4
    slope = kappa + (math.log(p) + math.log(1 - p)) / 2
    first, second = iteration.dual_steps(problem, kappa, 1.5, 0.5, 2.0, 0.0, -math.inf, limit=1)
    assert first.slope == pytest.approx(slope, abs=1e-9)
    assert first.dual == pytest.approx(p + 1.5 * slope, abs=1e-9)
    assert second.multiplier == pytest.approx(1.5 - 2 * slope, abs=1e-9)
    assert iteration.dual_steps(problem, kappa, 1.5, 1.4, 100.0, 0.0, -math.inf, limit=1)[1].multiplier == 1.4


def test_the_inexact_response_has_the_error_asked_for():
    problem = random_problem()
    mu = tabular.best_response(problem, 1.0)
    value = tabular.lagrangian(problem, mu, 1.0, 0.0)
    inexact = iteration.inexact_response(problem, mu, 1.0, 0.01)
    # brentq finds the share to 2e-12, and the Lagrangian's slope along it is below 10.
    assert value - tabular.lagrangian(problem, inexact, 1.0, 0.0) == pytest.approx(0.01, abs=1e-10)
    np.testing.assert_allclose(iteration.inexact_response(problem, mu, 1.0, 100.0), problem.behaviour, rtol=1e-14)


# --- Proposition 3.8 ---


def denoiser(mean: float, std: float, num_steps: int):
    """E[eps | x_t] for data N(mean, std^2)."""
    alpha_bar = jnp.asarray(np.cumprod(1 - vp_betas(num_steps)), jnp.float32)

    def denoise(xt, t):
        ab = alpha_bar[t][..., None]
        return jnp.sqrt(1 - ab) * (xt - jnp.sqrt(ab) * mean) / (ab * std**2 + 1 - ab)

    return denoise


@pytest.mark.parametrize("model", [(0.0, 0.3), (0.4, 0.3), (0.0, 0.6)])
def test_the_closed_form_is_the_library_loss(model: surrogate.Normal):
    n, steps = 200_000, 5
    key_data, key_eps = jax.random.split(jax.random.key(0))
    x0 = surrogate.DATA[0] + surrogate.DATA[1] * jax.random.normal(key_data, (n, 1))
    eps = jax.random.normal(key_eps, (n, 1))
    sampled = float(denoising_loss(make_schedule("vp", steps), denoiser(*model, steps), x0, jnp.arange(n) % steps, eps))
    exact = float(surrogate.denoising_losses(vp_betas(steps), surrogate.DATA, model).mean())
    # The residual r is normal at each step: E[r^4] = 3 E[r^2]^2, and E[r^2] <= steps * exact there, so that over all of
    # them E[r^4] <= 3 steps exact^2. One error is at most sqrt(15 / n) exact = 0.0087 exact; three of them.
    assert sampled == pytest.approx(exact, rel=3 * math.sqrt(3 * steps / n))
    other = float(surrogate.denoising_losses(vp_betas(steps), surrogate.DATA, (0.2, 0.45)).mean())
    assert abs(sampled - other) > 6 * exact * math.sqrt(3 * steps / n)  # negative control: another policy's loss


def test_the_law_is_that_of_the_chain_and_of_the_library_sampler():
    n, steps, model, betas = 200_000, 5, (0.4, 0.3), vp_betas(5)
    schedule = make_schedule("vp", steps)
    posterior = sample_ancestral(
        schedule, denoiser(*model, steps), draw_noise(jax.random.key(1), schedule, (n, 1)), 1e6
    )
    a, random, ab = np.random.default_rng(0).standard_normal(n), np.random.default_rng(1), np.cumprod(1 - betas)
    for i in reversed(range(steps)):  # eq. 11 as it stands
        eps = np.sqrt(1 - ab[i]) * (a - np.sqrt(ab[i]) * model[0]) / (ab[i] * model[1] ** 2 + 1 - ab[i])
        mean = a / np.sqrt(1 - betas[i]) - betas[i] / np.sqrt((1 - betas[i]) * (1 - ab[i])) * eps
        a = mean + np.sqrt(betas[i]) * random.standard_normal(n)
    laws: list[tuple[surrogate.Variance, np.ndarray]] = [("posterior", np.asarray(posterior)), ("beta", a)]
    for variance, actions in laws:
        mean, std = surrogate.policy_law(betas, model, variance)
        # Standard errors of the mean and of the std of a normal sample; five of each.
        assert abs(actions.mean() - mean) < 5 * std / math.sqrt(n)
        assert abs(actions.std() - std) < 5 * std / math.sqrt(2 * n)
        wrong = surrogate.policy_law(betas, model, "beta" if variance == "posterior" else "posterior")[1]
        assert abs(actions.std() - wrong) > 50 * std / math.sqrt(2 * n)  # negative control


def test_cross_entropy_by_quadrature():
    a = np.linspace(-6, 6, 200_001)
    data, policy = (0.1, 0.5), (0.4, 0.8)

    def density(law: surrogate.Normal) -> np.ndarray:
        return np.exp(-((a - law[0]) ** 2) / (2 * law[1] ** 2)) / (law[1] * math.sqrt(2 * math.pi))

    by_sum = -np.sum(density(data) * np.log(density(policy))) * (a[1] - a[0])
    assert surrogate.gaussian_cross_entropy(data, policy) == pytest.approx(by_sum, abs=1e-9)


def test_the_bound_of_one_step_by_hand():
    # One step, beta = 1/2, data N(0, 1), exact denoiser: x_1 ~ N(0, 1) and L_T = E KL(N(a / sqrt 2, 1/2) || N(0, 1))
    # = (1/2 + 1/2 - 1 + log 2) / 2. a_0 | a_1 has mean a_1 / sqrt 2 and variance 1/2 = beta: L_0 is its entropy.
    betas, data = np.array([0.5]), (0.0, 1.0)
    bound = surrogate.variational_bound(betas, data, surrogate.denoising_losses(betas, data, data))
    assert bound == pytest.approx(math.log(2) / 2 + 0.5 * math.log(2 * math.pi * math.e * 0.5), rel=1e-12)


def test_the_bound_lies_above_the_cross_entropy_of_eq_11_alone():
    rows = surrogate.check_surrogate(num_steps=(5, 100), num_policies=5)
    slack = {v: [row.K - row.H for row in rows if row.variance == v] for v in ("beta", "posterior")}
    assert min(slack["beta"]) > 0
    assert min(slack["posterior"]) < -0.5  # negative control: K is not the bound of the other chain


def test_weights_of_the_bound_give_slope_one_and_equal_weights_do_not():
    rows = surrogate.check_surrogate(num_steps=(5, 100, 1000), num_policies=11)
    lines = {(row.num_steps, row.family, row.loss): row for row in surrogate.surrogate_lines(rows) if beta(row)}
    for family in ("shifted", "narrower", "wider", "all"):
        # The error of T steps falls as 1 / T, but for the part that is L_T's (below 1e-3): ten times the steps leave a
        # quarter of the error at most.
        coarse, fine = (abs(lines[steps, family, "weighted"].slope - 1) for steps in (100, 1000))
        assert fine < 0.01 and (fine < coarse / 4 or fine < 1e-3)
        assert lines[1000, family, "weighted"].deviation < 0.005
    assert abs(lines[5, "narrower", "weighted"].slope - 1) > 1  # five steps are not many

    # Equal weights: shifted means lie on a line whose slope tends to the closed form (0.6 percent off at T = 1000, five
    # at 100), far from the 1 of eq. 16; other policies lie on none, and all together on no common one.
    shifted = lines[1000, "shifted", "L_c"]
    assert shifted.slope == pytest.approx(shifted.predicted, rel=0.01)
    assert lines[100, "shifted", "L_c"].slope == pytest.approx(lines[100, "shifted", "L_c"].predicted, rel=0.06)
    assert shifted.predicted == pytest.approx(7.27, abs=0.01) and shifted.deviation < 1e-9
    assert lines[1000, "narrower", "L_c"].deviation > 0.03
    assert lines[1000, "all", "L_c"].deviation > 0.1


def beta(row: surrogate.LineRow) -> bool:
    return row.variance == "beta"


def test_the_predicted_slope_by_hand():
    # One step, beta = 1/2, s = 1: ab = 1/2, total variance 1, so that L_c gains (m - m_b)^2 / 4 and H gains 1/2 of it.
    assert surrogate.shift_slope(np.array([0.5]), 1.0) == pytest.approx(2.0)


# --- All of it ---


def test_files_and_summary(tmp_path: Path):
    said: list[str] = []
    paths = reproduce("theory", tmp_path / "new", True, say=said.append)
    tables = ("duality", "without_assumption", "iteration", "surrogate", "lines")
    names = ["theory.png", "theory.pdf", "theory.json", *(f"theory_{name}.csv" for name in tables)]
    assert [path.name for path in paths] == names
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(names)
    assert paths[0].read_bytes().startswith(b"\x89PNG") and paths[1].read_bytes().startswith(b"%PDF")
    summary = json.loads(paths[2].read_text())
    assert summary["fast"] is True
    assert summary["theorem 3.7"]["largest gap"] < 1e-7 < 1 < summary["without assumption 3.5"]["gap"]
    counts = summary["theorem 3.11"]
    assert counts["C of the proof: violations"] == 0 < counts["C as printed: violations"]
    assert any(line.startswith("theorem 3.7: largest gap") for line in said)
    with paths[5].open() as file:
        rows = list(csv.DictReader(file))
    assert sum(float(row["steps"]) > float(row["bound"]) for row in rows) == counts["C as printed: violations"]


def test_without_scipy_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(UserError, match=r"pip install 'diffcps\[theory\]'"):
        reproduce("theory", tmp_path, True)
    assert not list(tmp_path.iterdir())


def test_methods_and_seeds_are_refused(tmp_path: Path):
    refused = "theory trains nothing: leave out --methods and --seeds"
    with pytest.raises(UserError, match=refused):
        reproduce("theory", tmp_path, True, methods=["diffcps"])
    with pytest.raises(UserError, match=refused):
        reproduce("theory", tmp_path, True, seeds=[0])
    assert not list(tmp_path.iterdir())
