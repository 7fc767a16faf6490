"""What was asked of a collection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from diffcps.collect.files import has_attributes
from diffcps.data.writers import Attribute
from diffcps.types import UserError


@dataclass(frozen=True)
class CollectionRequest:
    """A dataset to make. Raises `UserError` for an `out` that is no HDF5 file, no transitions, a negative seed."""

    task: str
    """D4RL's name of the dataset, such as `hopper-medium-v2`."""
    out: Path
    """The file to write; a picture and what is unfinished lie beside it."""
    transitions: int
    seed: int
    """All random numbers follow from it."""
    fast: bool
    """Whether it is a smoke run, of few transitions."""
    resume: bool
    """Whether to go on with what is there."""
    say: Callable[[str], None]
    """Told about progress, a line at a time."""

    def __post_init__(self) -> None:
        if self.out.suffix not in (".hdf5", ".h5"):
            raise UserError(f"{self.out}: collected data are written as HDF5; name a file that ends in .hdf5")
        if self.transitions < 1 or self.seed < 0:
            raise UserError(
                f"{self.transitions} transitions with seed {self.seed}: take at least 1, and a seed from 0 on"
            )

    def limited(self, fast_transitions: int) -> CollectionRequest:
        """The request with at most `fast_transitions` transitions where it is a smoke run."""
        return replace(self, transitions=min(self.transitions, fast_transitions)) if self.fast else self

    def is_complete(self, attributes: Mapping[str, Attribute]) -> bool:
        """Whether `out` is there already, with these attributes, and may be. Raises `UserError` where it may not."""
        if not self.out.exists():
            return False
        if self.resume and has_attributes(self.out, attributes):
            self.say(f"{self.out} is complete")
            return True
        raise UserError(f"{self.out}: exists; remove it or name another file with --out")
