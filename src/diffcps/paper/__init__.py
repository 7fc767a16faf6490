"""What the paper shows: its comparisons, its toy problems and its theory."""

from diffcps.paper.reproduce import ITEMS

COMPARISONS = ("table1", "table2", "table6", "figure2", "figure3", "figure4")
"""Studies on benchmark tasks, each with its plan in `plans/`."""
TIMED = "table5"
"""The table of run times."""

__all__ = ["COMPARISONS", "ITEMS", "TIMED"]
