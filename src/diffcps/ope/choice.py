"""Which checkpoint to take: by the estimate, beside the other rules; and the checkpoint `fqe`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffcps.ope.estimate import Estimated
from diffcps.ope.policies import Source
from diffcps.optim import without_memory
from diffcps.records.folder import RunFolder
from diffcps.run.chosen import choose
from diffcps.training import checkpoint


@dataclass(frozen=True)
class Choice:
    """What the checkpoints of one member of a run are worth that the rules choose."""

    run: str
    member: int
    label: str
    by_value: Estimated
    """The highest estimate."""
    by_loss: Estimated | None
    """The lowest `selection/loss`, the last of equals."""
    last: Estimated
    best: Estimated | None
    """The highest return: asks the environment."""


def choices(estimates: Sequence[Estimated]) -> list[Choice]:
    """For each member of each run of which several checkpoints were judged."""
    found: list[Choice] = []
    members: dict[tuple[str, int], list[Estimated]] = {}
    for one in estimates:
        if one.value is not None:
            members.setdefault((one.policy.run, one.policy.member), []).append(one)
    for (run, member), own in members.items():
        if len(own) < 2:
            continue
        in_order = sorted(own, key=lambda one: one.policy.updates)
        measured = [one for one in in_order if one.policy.selection_loss is not None]
        played = [one for one in in_order if one.policy.score is not None]
        found.append(
            Choice(
                run=run,
                member=member,
                label=own[0].policy.label,
                by_value=max(in_order, key=lambda one: one.worth),
                by_loss=min(reversed(measured), key=lambda one: one.policy.selection_loss or 0.0) if measured else None,
                last=in_order[-1],
                best=max(played, key=lambda one: one.policy.score or 0.0) if played else None,
            )
        )
    return found


def save_choices(found: Sequence[Choice]) -> list[Path]:
    """Writes the checkpoint `fqe` of each run: each member's weights at its highest estimate.

    A member of which fewer than two checkpoints were judged stays as the run ended. Returns the runs.
    """
    runs = list(dict.fromkeys(choice.run for choice in found))
    for run in runs:
        loaded = Source(Path(run), "last").load(None)
        state, updates = without_memory(loaded.state), list(loaded.updates)
        own = {choice.member: choice.by_value.policy for choice in found if choice.run == run}
        for name in {policy.checkpoint for policy in own.values()}:
            members = [member for member, policy in own.items() if policy.checkpoint == name]
            kept = Source(Path(run), name).load(None)
            mask = np.isin(np.arange(len(updates)), members)
            state = choose(mask, without_memory(kept.state), state)
            for member in members:
                updates[member] = kept.updates[member]
        checkpoint.save(RunFolder(run).fqe, state, {"update": list(updates), "stopped": {}})
    return [Path(run) for run in runs]
