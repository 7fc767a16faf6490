"""Optimiser steps and moving averages: the only place that speaks to Optax."""

from __future__ import annotations

from typing import Generic, TypeVar

import equinox as eqx
import optax

from diffcps.types import Real, Scalar

Model = TypeVar("Model")


class Trained(eqx.Module, Generic[Model]):
    """What gradient steps move, with the optimiser's memory of it."""

    model: Model
    optimiser_state: optax.OptState


def clipped_adam(learning_rate: Real, max_grad_norm: Real, decay_steps: int = 0) -> optax.GradientTransformation:
    """Adam (arXiv:1412.6980) on gradients clipped to a global norm; infinity does not clip.

    With `decay_steps` > 0 the rate falls to zero along half a cosine over that many of this optimiser's own steps.
    """
    schedule = optax.cosine_decay_schedule(learning_rate, decay_steps) if decay_steps else learning_rate
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.adam(schedule))  # pyright: ignore[reportArgumentType]


def momentum_sgd(learning_rate: Real, momentum: Real) -> optax.GradientTransformation:
    """Gradient descent with (heavy-ball) momentum: v <- momentum v + g, theta <- theta - rate v."""
    return optax.sgd(learning_rate, momentum)  # pyright: ignore[reportArgumentType]


def start(optimiser: optax.GradientTransformation, model: Model) -> Trained[Model]:
    """A model before its first step."""
    return Trained(model, optimiser.init(model))  # pyright: ignore[reportArgumentType]


def descend(
    optimiser: optax.GradientTransformation, trained: Trained[Model], gradient: Model
) -> tuple[Trained[Model], Scalar]:
    """One step against `gradient` (a pytree like the model). Also returns its global norm before clipping."""
    updates, optimiser_state = optimiser.update(gradient, trained.optimiser_state, trained.model)  # pyright: ignore[reportArgumentType]
    model: Model = optax.apply_updates(trained.model, updates)  # pyright: ignore[reportArgumentType, reportAssignmentType]
    return Trained(model, optimiser_state), optax.tree.norm(gradient)


def moving_average(average: Model, new: Model, rate: Real) -> Model:
    """(1 - rate) average + rate new, leaf by leaf: Polyak averaging of target networks, and EMA."""
    return optax.incremental_update(new, average, rate)  # pyright: ignore[reportArgumentType, reportReturnType]
