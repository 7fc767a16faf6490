"""Names of files, columns and keys: their natural order, and those that are near a wrong one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


def natural_order(names: Iterable[str]) -> list[str]:
    """Sorted with numbers as numbers: demo_2 stands before demo_10."""
    return sorted(names, key=lambda name: ([_part(part) for part in re.split(r"(\d+)", name)], name))


def nearest(name: str, names: Iterable[str]) -> str:
    """Words for a message about a name that does not exist: the names most like it, or the first ones that do exist."""
    present = list(names)
    near = difflib.get_close_matches(name, present, n=3)
    return f"did you mean {listed(near, ' or ')}?" if near else f"there is {listed(present)}"


def listed(names: Iterable[str], last: str = " and ", most: int = 12) -> str:
    """Names in backquotes for a message, at most `most` of them."""
    quoted = [f"`{name}`" for name in names]
    if len(quoted) > most:
        return f"{', '.join(quoted[:most])} and {len(quoted) - most} more"
    return last.join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted) or "nothing"


def _part(part: str) -> tuple[int, str]:
    return (int(part), "") if part.isdecimal() and part.isascii() else (-1, part)
