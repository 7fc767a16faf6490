"""The precision of matrix products, where a device has several."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, Literal

import jax

from diffcps.types import Algorithm, State

Precision = Literal["device", "float32"]
"""What the device does by default with products of float32 (TF32 on NVIDIA's GPUs, float32 on CPUs), or float32
everywhere."""


def in_precision(algorithm: Algorithm[State], precision: Precision) -> Algorithm[State]:
    """The algorithm with all of its products in this precision; nothing else changes."""
    if precision == "device":
        return algorithm

    @cache  # stages that share a function go on sharing it: they are compiled once
    def exact(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def in_float32(*arguments: Any) -> Any:
            with jax.default_matmul_precision("float32"):
                return function(*arguments)

        return in_float32

    stages = tuple(
        dataclasses.replace(
            stage,
            batch=exact(stage.batch),
            draw=exact(stage.draw),
            update=exact(stage.update),
            begin=exact(stage.begin),
            for_rows=None if stage.for_rows is None else exact(stage.for_rows),
        )
        for stage in algorithm.stages
    )
    actor = algorithm.in_episode
    if actor is not None:
        actor = dataclasses.replace(actor, begin=exact(actor.begin), act=exact(actor.act))
    return dataclasses.replace(
        algorithm,
        init=exact(algorithm.init),
        stages=stages,
        act=exact(algorithm.act),
        diagnose=exact(algorithm.diagnose),
        in_episode=actor,
    )
