"""The rows of a reproduced figure as a Markdown table: mean and standard deviation over its seeds.

python tools/figure_table.py runs/figures/figure5.csv
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

KEYS = ("method", "num_steps")
SKIPPED = ("seed", "episodes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    with parser.parse_args().table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    keys = [key for key in KEYS if key in rows[0]]
    scores = [name for name in rows[0] if name not in (*KEYS, *SKIPPED)]
    print(f"| {' | '.join((*keys, *scores))} |")
    print("|" + "---|" * (len(keys) + len(scores)))
    for group in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        of_group = [row for row in rows if tuple(row[key] for key in keys) == group]
        values = {name: np.array([float(row[name]) for row in of_group]) for name in scores}
        cells = [f"{x.mean():.3f}" + (f" ± {x.std():.3f}" if len(x) > 1 else "") for x in values.values()]
        print(f"| {' | '.join((*group, *cells))} |")


if __name__ == "__main__":
    main()
