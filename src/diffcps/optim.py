"""Optimiser steps and moving averages: the only place that speaks to Optax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Concatenate, Generic, ParamSpec, TypeVar, overload

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int

from diffcps.types import Real, Scalar, Tree

Model = TypeVar("Model")
Aux = TypeVar("Aux")
Arguments = ParamSpec("Arguments")


class Trained(eqx.Module, Generic[Model]):
    """What gradient steps move, with the optimiser's memory of it."""

    model: Model
    optimiser_state: optax.OptState


def without_memory(state: Tree) -> Tree:
    """A state without what its optimisers remember: enough to act and to be diagnosed, not to be trained."""
    return jax.tree.map(
        lambda part: Trained(part.model, ()) if isinstance(part, Trained) else part,
        state,
        is_leaf=lambda part: isinstance(part, Trained),
    )


def clipped_adam(learning_rate: Real, max_grad_norm: Real, decay_steps: int = 0) -> optax.GradientTransformation:
    """Adam (arXiv:1412.6980) on gradients clipped to a global norm; infinity does not clip.

    With `decay_steps` > 0 the rate falls to zero along half a cosine over that many of this optimiser's own steps.
    """
    schedule = optax.cosine_decay_schedule(learning_rate, decay_steps) if decay_steps else learning_rate
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.adam(schedule))  # pyright: ignore[reportArgumentType]


def adam_with_decay(learning_rate: Real, weight_decay: Real, decay_steps: int = 0) -> optax.GradientTransformation:
    """AdamW (arXiv:1711.05101): every step also moves every parameter by rate * `weight_decay` of itself towards zero.

    The rate is as in `clipped_adam`. Nothing is spared: biases and norms decay too.
    """
    schedule = optax.cosine_decay_schedule(learning_rate, decay_steps) if decay_steps else learning_rate
    return optax.adamw(schedule, weight_decay=weight_decay)  # pyright: ignore[reportArgumentType]


def as_one_vector(optimiser: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimiser on all parameters as one vector: the same steps by a few operations, not by a few for each array.

    It pays for networks of many small arrays, whose program is compiled sooner.
    """
    return optax.flatten(optimiser)


def each_alone(optimiser: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimiser for each network of an ensemble (first axis) by itself, which is clipped by its own norm."""
    return optax.GradientTransformation(jax.vmap(optimiser.init), jax.vmap(optimiser.update))


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


@overload
def minimise(
    optimiser: optax.GradientTransformation,
    trained: Trained[Model],
    loss: Callable[Concatenate[Model, Arguments], Scalar],
    *arguments: Arguments.args,
    **named: Arguments.kwargs,
) -> tuple[Trained[Model], Scalar, None, Scalar]: ...
@overload
def minimise(
    optimiser: optax.GradientTransformation,
    trained: Trained[Model],
    loss: Callable[Concatenate[Model, Arguments], tuple[Scalar, Aux]],
    *arguments: Arguments.args,
    **named: Arguments.kwargs,
) -> tuple[Trained[Model], Scalar, Aux, Scalar]: ...
def minimise(optimiser, trained, loss, *arguments, **named):
    """One gradient step on `loss(model, *arguments)`, which returns a scalar, or a scalar and whatever else it knows.

    Returns the model after the step, the loss before it, what else it knew (None where it returns a scalar alone), and
    the global norm of the gradient before clipping.
    """

    def with_aux(model):
        value = loss(model, *arguments, **named)
        return value if isinstance(value, tuple) else (value, None)

    (value, aux), gradient = jax.value_and_grad(with_aux, has_aux=True)(trained.model)
    trained, norm = descend(optimiser, trained, gradient)
    return trained, value, aux, norm


def moving_average(average: Model, new: Model, rate: Real) -> Model:
    """(1 - rate) average + rate new, leaf by leaf: Polyak averaging of target networks, and EMA."""
    return optax.incremental_update(new, average, rate)  # pyright: ignore[reportArgumentType, reportReturnType]


def moving_average_when(condition: Bool[Array, ""], average: Model, new: Model, rate: Real) -> Model:
    """`moving_average` where the condition holds, else `average` as it is: a step of rate 0, which needs no branch."""
    return moving_average(average, new, jnp.where(condition, rate, 0.0))


def copied_then_averaged(
    average: Model, new: Model, count: Int[Array, ""], every: int, copied_before: int, rate: Real
) -> Model:
    """At every `every`-th update a copy, before `copied_before`, and then a step of the moving average.

    Reference: the trainer of Diffuser's program (arXiv:2205.09991).
    """
    return moving_average_when(count % every == 0, average, new, jnp.where(count < copied_before, 1.0, rate))
