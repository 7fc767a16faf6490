"""How a run is made, whatever the method."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from diffcps.training.loop import Lengths
from diffcps.training.members import Rows
from diffcps.training.precision import Precision
from diffcps.types import Count, EnvironmentSpec, Share, UserError

NO_ENVIRONMENT = "none"
"""What a person says in the place of an environment who wants no scores."""


@dataclass(frozen=True)
class Settings:
    """How a run is made, whatever the algorithm."""

    env: str | EnvironmentSpec | None = None
    """Environment for the scores: a Gymnasium id, module:Id-v0 (the module may lie in the current folder), or
    module:function; by default the one that the dataset names; the word none: no scores."""
    env_kwargs: str | None = None
    """Arguments of the environment, as a JSON object such as {"healthy_reward": 0.5}; they are added to those that the
    dataset names."""
    max_episode_steps: int | None = None
    """Time limit of an episode in steps, in the place of the environment's own."""
    updates: int = 30_000
    """Updates in all."""
    eval_every: int = 5_000
    """Updates between two evaluations, each of which is a checkpoint."""
    log_every: int = 500
    """Updates between two rows of metrics."""
    episodes: int = 10
    """Episodes per member in each evaluation."""
    eval_seed: Count = 100
    """Episode e of an evaluation starts from seed `eval_seed` + e."""
    seeds: tuple[int, ...] = (0,)
    """Seeds, trained together; with swept fields every combination is trained with every seed."""
    validation: Share = 0.0
    """Share of the episodes that are held out of the training, for `selection/loss` and the other diagnostics."""
    also_act: tuple[str, ...] = ()
    """Further rules by which each evaluation plays the same start seeds, beside the method's own `action_choice`, such
    as sample and argmax_q; chosen checkpoints stay by its own."""

    keep: Count = 0
    """The last evaluations whose weights are kept, so that `--checkpoint N` finds them by their update."""
    keep_every: Count = 0
    """Updates between evaluations whose weights are kept for good, a multiple of `eval_every`; 0: none."""
    precision: Precision = "device"
    """Of matrix products: what the device does by default (TF32 on NVIDIA's GPUs, float32 on CPUs), or float32
    everywhere."""
    rows: Rows = "device"
    """Where the data's rows lie while it trains: with the device, or in the memory of the machine, from which batches
    are sent to it, for data that are larger than a GPU's memory. The numbers are the same."""

    def __post_init__(self) -> None:
        for seed in self.seeds if isinstance(self.seeds, Sequence) else ():  # another value is refused where it is read
            if self.seeds.count(seed) > 1:
                raise UserError(f"seeds names {seed} twice")

    def kept(self, evaluated: Sequence[int]) -> list[int]:
        """The evaluations whose weights are kept, of those so far (by their updates, in order)."""
        last = list(evaluated[-self.keep :]) if self.keep else []
        return [made for made in evaluated if made in last or (self.keep_every and made % self.keep_every == 0)]

    @property
    def lengths(self) -> Lengths:
        """What the loop needs to know."""
        return Lengths(self.updates, self.eval_every, self.log_every)
