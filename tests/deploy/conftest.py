"""Runs of every method, small and not trained, made once for each worker."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import diffcps
from diffcps.records.folder import RunFolder
from diffcps.records.record import RunRecord
from diffcps.run.policy import program_of
from diffcps.training import checkpoint
from diffcps.types import Dataset
from tests.contract.test_contract import config_of
from tests.problems import random_dataset

LOW, HIGH = (-2.0, 0.5), (1.0, 3.0)
"""An action box that is not the networks' own."""


def dataset_of(offset: float = 0.0, normalise: bool = True) -> Dataset:
    """Random numbers at an offset, with actions in the box above."""
    rows = random_dataset()
    observation = rows.observation.astype(np.float64)
    mean, std = observation.mean(0), observation.std(0)
    seen = ((observation - mean) / std).astype(np.float32)
    known = {"observation_mean": tuple((mean + offset).tolist()), "observation_std": tuple(std.tolist())}
    info = dataclasses.replace(rows.info, action_low=LOW, action_high=HIGH, **(known if normalise else {}))
    return dataclasses.replace(rows, observation=seen if normalise else rows.observation, info=info)


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A run folder of a method with the weights that it begins with: training would cost most of the time."""

    @cache
    def make(name: str, offset: float = 0.0, normalise: bool = True, **changes) -> Path:
        data = dataset_of(offset, normalise)
        changes = ({"difference_floor": 0.0} if name == "cql" else {}) | changes  # a run has no negative numbers
        record = RunRecord(
            algorithm=name,
            config=config_of(name, **changes),
            sweep={},
            settings=diffcps.Settings(env="none", updates=2, eval_every=2, log_every=2, seeds=(0, 1)),
            environment=None,
            reference=None,
            dataset=data.info,
            transitions=data.size,
            data_return=None,
            spec=data.spec,
            command="",
            versions={},
            device="",
        )
        folder = RunFolder(tmp_path_factory.mktemp("runs") / name)
        with folder.locked():
            folder.write_record(record)
            checkpoint.save(folder.last, program_of(record, record.members, None).init(), {"update": 2})
        return folder.path

    return make
