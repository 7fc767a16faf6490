"""The evaluations of a run as a Markdown table: mean and standard deviation over its members.

    python tools/results_table.py runs/hopper-medium

One row per evaluation: return and normalised score (mean over members, with the deviation between members), and the
diagnostics on 4,096 fixed rows of the dataset. Below it the four scores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

COLUMNS = {
    "actor/target_bc_loss": "L_c (target policy)",
    "critic/q": "Q on data",
    "critic/td_error": "TD error",
    "dual/multiplier": "lambda",
}


def spread(values: list[float], digits: int) -> str:
    return f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    record = json.loads((run / "config.json").read_text())
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    low, high = record["reference"]

    def normalised(returns: list[float]) -> list[float]:
        return [100 * (x - low) / (high - low) for x in returns]

    print(f"| updates | seeds | return | normalised | {' | '.join(COLUMNS.values())} |")
    print("|" + "---|" * (4 + len(COLUMNS)))
    for update in sorted({row["update"] for row in rows}):
        now = [row for row in rows if row["update"] == update]
        scores = [row["score"] for row in now]
        diagnostics = [spread([row["diagnose"][name] for row in now], 3 if "loss" in name else 2) for name in COLUMNS]
        cells = [f"{update:,}", str(len(now)), spread(scores, 0), spread(normalised(scores), 1), *diagnostics]
        print("| " + " | ".join(cells) + " |")

    members = json.loads((run / "summary.json").read_text())["members"]
    print()
    for kind in ("last", "best", "mean_of_last", "offline_selected"):
        scores = [member[kind]["score"] for member in members if member.get(kind)]
        print(f"- {kind}: {spread(scores, 0)} (normalised {spread(normalised(scores), 1)}), {len(scores)} seeds")


if __name__ == "__main__":
    main()
