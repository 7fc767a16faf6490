"""What the paper shows: its toy problems and its theory."""

from diffcps.paper.reproduce import ITEMS

__all__ = ["ITEMS"]
