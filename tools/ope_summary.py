"""How far does off-policy evaluation rank policies, set of data by set of data?

    python tools/ope_summary.py FOLDER ... --out ope.png

Each FOLDER is the `--out` of a `diffcps ope` whose policies were played, too. Prints a row of two Markdown tables for
each: ranks, and what a checkpoint chosen by the estimate returned. Draws the estimates against the played returns.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from diffcps.algorithms import ALGORITHMS
from diffcps.ope.choice import choices
from diffcps.ope.estimate import Estimated, Judgement
from diffcps.ope.report import COLOURS, ranking
from diffcps.plots import save_figure, tidy

PANELS_IN_A_ROW = 3


def by_method(found: Judgement) -> dict[str, list[Estimated]]:
    """The policies of each run, which is named as its method."""
    methods: dict[str, list[Estimated]] = {}
    for one in found.estimates:
        methods.setdefault(Path(one.policy.run).name, []).append(one)
    return methods


def ranks(name: str, found: Judgement) -> str:
    """A row: rank correlation of all and within each method, regret."""
    whole = ranking(found.estimates)
    assert whole is not None, f"{name}: fewer than three policies were played"
    within = ", ".join(
        f"{method} {own.correlation:.2f}"
        for method, of_method in by_method(found).items()
        if (own := ranking(of_method)) is not None
    )
    regret = ", ".join(f"{value:.2f}" for _, value in whole.regret)
    of_all = f"{whole.policies} on {found.transitions:,} | {whole.correlation:.2f} ({whole.p_value:.1g})"
    return f"| {name} | {of_all} | {within} | {regret} |"


def chosen(name: str, found: Judgement) -> str:
    """A row: played returns of the checkpoint by the estimate, by selection/loss, of the last, of the best."""
    of_members = choices(found.estimates)
    picks = [[getattr(one, how).policy.score for one in of_members] for how in ("by_value", "by_loss", "last", "best")]
    return f"| {name} | " + " | ".join(f"{np.mean(scores):.0f}" for scores in picks) + " |"


def draw(judged: dict[str, Judgement]) -> Figure:
    """A panel for each set, a colour for each method."""
    rows = -(-len(judged) // PANELS_IN_A_ROW)
    figure = Figure((11, 3.2 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, PANELS_IN_A_ROW, squeeze=False).ravel()
    methods = sorted({method for found in judged.values() for method in by_method(found)}, key=list(ALGORITHMS).index)
    colour = dict(zip(methods, COLOURS, strict=False))
    drawn = {}
    for ax, (name, found) in zip(axes, judged.items(), strict=False):
        for method, of_method in by_method(found).items():
            points = [(one.value, one.policy.score) for one in of_method if one.value is not None]
            drawn[method] = ax.plot(*zip(*points, strict=True), "o", color=colour[method], label=method, ms=4.5)[0]
        ax.set_title(name, loc="left", fontsize=10)
        tidy(ax)
    for ax in axes[len(judged) :]:
        ax.set_axis_off()
    figure.supxlabel("estimate J")
    figure.supylabel("played return")
    figure.legend([drawn[method] for method in methods], methods, loc="outside upper left", ncols=len(methods))
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="what a `diffcps ope` wrote")
    parser.add_argument("--out", type=Path, required=True, help="of the picture")
    options = parser.parse_args()
    judged = {folder.parent.name: Judgement.read(folder / "ope.json") for folder in options.folders}
    print("| data | policies, transitions | rank correlation of all (p) | within each method | regret at 1, 3, 5 |")
    print("|---|---|---|---|---|")
    print("\n".join(ranks(name, found) for name, found in judged.items()))
    print("\n| data | by the highest estimate | by the lowest selection/loss | the last | the best |")
    print("|---|---|---|---|---|")
    print("\n".join(chosen(name, found) for name, found in judged.items()))
    save_figure(draw(judged), options.out)


if __name__ == "__main__":
    main()
