"""DiffCPS on the noisy circle over several bounds kappa: what its actions become, as a Markdown table.

    python tools/circle_kappa.py --kappa 0.05 0.1 --seeds 0 1

Trains all of them in one program at the size of figure 5 (20,000 updates, width 64), and scores them as figure 5 does;
a second call only reads them. Last checkpoint, mean and standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from diffcps.data.scaling import Scaling
from diffcps.envs import toy
from diffcps.paper.figures import ACTING_SEED, CIRCLE, Plan, config_of
from diffcps.paper.ring import ring_scores
from diffcps.run.policy import load_policy, load_run
from diffcps.run.progress import Live
from diffcps.run.train import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kappa", type=float, nargs="+", required=True)
    parser.add_argument("--num-steps", type=int, default=15, help="diffusion steps T [%(default)s]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="[0 1]")
    parser.add_argument("--updates", type=int, default=Plan.updates, help="[%(default)s]")
    parser.add_argument("--out", type=Path, default=Path("runs/circle-kappa"), help="the run [%(default)s]")
    options = parser.parse_args()

    plan = Plan(updates=options.updates, seeds=tuple(options.seeds))
    circle = toy.noisy_circle()
    data = Scaling.of(circle.info).action(circle.action)
    config = config_of("diffcps", CIRCLE, plan.width, options.num_steps)
    names = [f"{kappa:g}, seed {seed}" for kappa in options.kappa for seed in options.seeds]
    with Live(plan.updates, names) as live:
        train(
            config,
            circle,
            plan.settings(),
            out=options.out,
            sweep={"kappa": options.kappa},
            resume=True,
            display=live,
        )

    members = load_run(options.out, "last").members
    last = [json.loads(line) for line in (options.out / "evaluations.jsonl").read_text().splitlines()][-len(members) :]
    observation = np.zeros((plan.num_actions, 1), np.float32)
    rows: dict[float, list[dict[str, float]]] = {}
    for i, (member, evaluation) in enumerate(zip(members, last, strict=True)):
        policy = load_policy(options.out, "last", member=i, seed=ACTING_SEED + member.seed)
        trained = {name: evaluation["diagnose"][name] for name in ("actor/bc_loss", "dual/multiplier")}
        rows.setdefault(member.swept["kappa"], []).append(ring_scores(policy(observation), data)._asdict() | trained)
    columns = list(next(iter(rows.values()))[0])
    print(f"| kappa | {' | '.join(columns)} |")
    print("|" + "---|" * (1 + len(columns)))
    for kappa, of_kappa in rows.items():
        values = [np.array([row[name] for row in of_kappa]) for name in columns]
        print(f"| {kappa:g} | {' | '.join(f'{x.mean():.3f} ± {x.std():.3f}' for x in values)} |")


if __name__ == "__main__":
    main()
