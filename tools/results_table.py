"""The evaluations of a run as a Markdown table, or several runs as one row each.

    python tools/results_table.py runs/hopper-medium
    python tools/results_table.py runs/bc runs/awr runs/td3_bc

For one run a row per evaluation: return and normalised score (mean over members, with the deviation between members),
and the diagnostics on 4,096 fixed rows of the dataset; below it the four scores. For several the four scores of each:
return and, in brackets, normalised.
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
KINDS = ("last", "best", "mean_of_last", "offline_selected")


def spread(values: list[float], digits: int) -> str:
    return f"{np.mean(values):.{digits}f}" + (f" ± {np.std(values):.{digits}f}" if len(values) > 1 else "")


def normalised(returns: list[float], reference: tuple[float, float]) -> list[float]:
    low, high = reference
    return [100 * (x - low) / (high - low) for x in returns]


def scores_of(run: Path, kind: str) -> list[float]:
    members = json.loads((run / "summary.json").read_text())["members"]
    return [member[kind]["score"] for member in members if member.get(kind)]


def print_evaluations(run: Path, reference: tuple[float, float]) -> None:
    rows = [json.loads(line) for line in (run / "evaluations.jsonl").read_text().splitlines()]
    columns = {name: words for name, words in COLUMNS.items() if name in rows[0]["diagnose"]}
    print(f"| updates | seeds | return | normalised | {' | '.join(columns.values())} |")
    print("|" + "---|" * (4 + len(columns)))
    for update in sorted({row["update"] for row in rows}):
        now = [row for row in rows if row["update"] == update]
        scores = [row["score"] for row in now]
        diagnostics = [spread([row["diagnose"][name] for row in now], 3 if "loss" in name else 2) for name in columns]
        shown = [spread(scores, 0), spread(normalised(scores, reference), 1)]
        print(f"| {' | '.join([f'{update:,}', str(len(now)), *shown, *diagnostics])} |")
    print()
    for kind in KINDS:
        scores = scores_of(run, kind)
        score = spread(normalised(scores, reference), 1)
        print(f"- {kind}: {spread(scores, 0)} (normalised {score}), {len(scores)} seeds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    runs = parser.parse_args().runs
    records = [json.loads((run / "config.json").read_text()) for run in runs]
    if len(runs) == 1:
        print_evaluations(runs[0], records[0]["reference"])
        return
    print(f"| method | updates | {' | '.join(KINDS)} |")
    print("|" + "---|" * (2 + len(KINDS)))
    for run, record in zip(runs, records, strict=True):
        cells = []
        for kind in KINDS:
            scores = scores_of(run, kind)
            cells.append(f"{spread(scores, 0)} ({spread(normalised(scores, record['reference']), 1)})")
        print(f"| {record['algorithm']} | {record['updates']:,} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
