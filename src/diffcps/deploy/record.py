"""What an export says of itself: the content of its `config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffcps.deploy.check import Parity
from diffcps.deploy.draws import LawName
from diffcps.deploy.program import Exported
from diffcps.records import fields
from diffcps.storage import SOFTWARE, JsonRow
from diffcps.types import Configuration

FORMAT = 1
"""Version of the layout of an export."""


@dataclass(frozen=True)
class Input:
    """One input of the policy."""

    name: str
    shape: tuple[str | int, ...]
    """`batch` is free."""
    dtype: str
    law: str
    """What it holds: observations, or independent draws of a law."""


@dataclass(frozen=True)
class ExportRecord:
    """Everything that names an exported policy: `config.json`."""

    algorithm: str
    config: Configuration
    """The member's, swept values and the rule to act included."""
    run: str
    """Name of the run folder."""
    checkpoint: str
    updates: int
    """That the member had made by then."""
    member: int
    seed: int
    observation_size: int
    action_size: int
    observation_mean: tuple[float, ...]
    """Subtracted from observations, in float64."""
    observation_std: tuple[float, ...]
    """What they are then divided by; infinite where a column was constant."""
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    dataset: str
    """Name of the source."""
    dataset_sha256: str
    environment: str | None
    plans_anew: bool
    """Whether the run follows plans in the course of an episode, where the exported policy makes one at every step."""
    inputs: tuple[Input, ...]
    parity: Mapping[str, Parity]
    """For each file that acts, how far it is from the run."""
    versions: Mapping[str, str]
    """Of the run and, where a name begins with `export`, of the export."""

    def to_json(self) -> JsonRow:
        """The content of config.json."""
        content = {name: fields.json_value(value) for name, value in fields.values_of(self).items()}
        content["parity"] = {name: fields.to_json(parity) for name, parity in self.parity.items()}
        content["versions"] = dict(self.versions)
        return {"software": SOFTWARE, "export": FORMAT, **content}


def record_of(policy: Exported, parity: Mapping[str, Parity], versions: Mapping[str, str]) -> ExportRecord:
    """The record of a policy that was compared with its run."""
    run, scaling = policy.record, policy.scaling
    size, action_size = policy.spec

    def column(values: object) -> tuple[float, ...]:
        return tuple(np.broadcast_to(np.asarray(values, np.float64), (size,)).tolist())

    observation = Input("observation", ("batch", size), "float64", "observations, in the environment's units")
    numbers = [Input(law, ("batch", policy.traced.size(law)), "float32", LAW_TEXTS[law]) for law in policy.laws]
    return ExportRecord(
        algorithm=run.algorithm,
        config=fields.build(type(run.config), fields.values_of(run.config) | policy.member.swept),
        run=policy.run.resolve().name,
        checkpoint=str(policy.checkpoint),
        updates=policy.updates,
        member=policy.member.index,
        seed=policy.member.seed,
        observation_size=size,
        action_size=action_size,
        observation_mean=column(scaling.mean),
        observation_std=column(scaling.std),
        action_low=tuple(scaling.low.tolist()),
        action_high=tuple(scaling.high.tolist()),
        dataset=source_name(run.dataset.source),
        dataset_sha256=run.dataset.sha256,
        environment=None if run.environment is None else str(run.environment),
        plans_anew=policy.algorithm.in_episode is not None,
        inputs=(observation, *numbers),
        parity=parity,
        versions={**run.versions, **{f"export {name}": version for name, version in versions.items()}},
    )


LAW_TEXTS: Mapping[LawName, str] = {
    "noise": "independent draws of the standard normal law",
    "gumbel": "independent draws of the standard Gumbel law",
}


def source_name(source: str) -> str:
    """A source without the folders that it lies in, which are nobody else's business; ids stay as they are."""
    return Path(source).name if Path(source).is_absolute() or Path(source).suffix else source
