"""From files to a `Dataset`: D4RL HDF5, npz and Minari are read, checked, and brought to one form."""

from diffcps.data.load import load_dataset

__all__ = ["load_dataset"]
