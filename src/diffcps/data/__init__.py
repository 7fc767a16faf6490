"""From rows to a `Dataset`: checked, ends found, brought to one form."""

from diffcps.data.load import load_dataset

__all__ = ["load_dataset"]
