"""What a policy draws, as an input: `act(state, observation, key)` as a function of random numbers, not of a key.

A method draws where its paper does, deep inside `act`, and knows nothing of this. Here the program that JAX traces of
`act` is followed operation by operation. A key is no number: it is only passed on, split and folded, until a law of JAX
makes numbers of it. There the next numbers that were given take the place of the draw. Whatever else would make numbers
of a key is refused by name, so that no draw can escape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, Float

from diffcps.types import Key, Tree, UserError

LawName = Literal["noise", "gumbel"]
LAWS: Mapping[LawName, Callable[..., jax.Array]] = {"noise": jax.random.normal, "gumbel": jax.random.gumbel}
"""The laws whose draws can be given: the standard normal, and the standard Gumbel, by which a choice is drawn."""
PLAIN_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint")
"""Operations of JAX that do nothing but call a program."""


def as_it_is(operation: core.JaxprEqn, inputs: Sequence[Any]) -> None:
    """JAX computes everything."""


class Draw(NamedTuple):
    """One draw of a policy at one observation."""

    law: LawName
    shape: tuple[int, ...]


Given = Mapping[LawName, Float[Array, " _"]]
"""For each law that is drawn from, all numbers that one action needs, in the order of the draws."""
Instead = Callable[[core.JaxprEqn, Sequence[Any]], Sequence[Any] | None]
"""What an operation gives for its inputs, in the place of what JAX computes; None: JAX computes it."""
Take = Callable[[Draw, Any], Array]
"""Numbers for a draw, which would have been made of this key."""


class Traced(NamedTuple):
    """A method's `act` for one observation, as the program that JAX traced."""

    program: core.ClosedJaxpr
    state: Tree
    """The member's arrays."""
    draws: tuple[Draw, ...]
    """What it draws, in order."""

    def size(self, law: LawName) -> int:
        """How many numbers of this law one action needs."""
        return sum(math.prod(draw.shape) for draw in self.draws if draw.law == law)

    @property
    def laws(self) -> tuple[LawName, ...]:
        """The laws that it draws from: none where the policy is deterministic."""
        return tuple(law for law in LAWS if self.size(law))

    def act(self, observation: Float[Array, " obs"], given: Given, instead: Instead = as_it_is) -> Float[Array, " act"]:
        """The action in [-1, 1] at an observation as the networks see it, with these numbers for its draws."""
        return self._follow(observation, None, _from(given), instead)

    def numbers_of(self, key: Key) -> dict[LawName, Float[Array, " _"]]:
        """The numbers that `act` would draw with this key."""
        found: dict[LawName, list[Array]] = {law: [] for law in self.laws}

        def take(draw: Draw, key: Any) -> Array:
            numbers = LAWS[draw.law](key, draw.shape, jnp.float32)
            found[draw.law].append(numbers.ravel())
            return numbers

        self._follow(jnp.zeros(self.program.in_avals[-2].shape), key, take)
        return {law: jnp.concatenate(numbers) for law, numbers in found.items()}

    def _follow(self, observation: Array, key: Any, take: Take, instead: Instead = as_it_is) -> Array:
        def taken_or_instead(operation: core.JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any] | None:
            draw = _draw_of(operation)
            return instead(operation, inputs) if draw is None else [take(draw, inputs[0])]

        inputs = [*jax.tree.leaves(self.state), observation, key]
        (action,) = follow(self.program.jaxpr, self.program.consts, inputs, taken_or_instead)
        return action


def trace(act: Callable[[Tree, Any, Key], Any], state: Tree, observation_size: int) -> Traced:
    """Traces `act` for one observation and finds its draws. Raises `UserError` for one of another law, by its name."""
    observation = jax.ShapeDtypeStruct((observation_size,), jnp.float32)
    program = jax.make_jaxpr(act)(state, observation, jax.eval_shape(jax.random.key, 0))
    draws: list[Draw] = []

    def take(draw: Draw, key: Any) -> Array:
        draws.append(draw)
        return jnp.zeros(draw.shape)

    traced = Traced(program, state, ())
    jax.eval_shape(lambda observation: traced._follow(observation, None, take), observation)
    return traced._replace(draws=tuple(draws))


def _from(given: Given) -> Take:
    """Takes the numbers one after the other."""
    used = dict.fromkeys(given, 0)

    def take(draw: Draw, key: Any) -> Array:
        start = used[draw.law]
        used[draw.law] = end = start + math.prod(draw.shape)
        return given[draw.law][start:end].reshape(draw.shape)

    return take


# --- Following a program ---


def follow(jaxpr: core.Jaxpr, constants: Sequence[Any], inputs: Sequence[Any], instead: Instead) -> list[Any]:
    """The outputs of a program, operation by operation, those of the programs that it calls too.

    A key may be None: then it is followed as a name only, and whatever makes numbers of it is refused (`UserError`).
    """
    values: dict[core.Var, Any] = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *inputs], strict=True))

    def value(of: core.Var | core.Literal) -> Any:
        return of.val if isinstance(of, core.Literal) else values[of]

    for operation in _needed(jaxpr):
        given = [value(of) for of in operation.invars]
        found = instead(operation, given)
        found = _step(operation, given, instead) if found is None else found
        values.update(zip(operation.outvars, found, strict=True))
    return [value(of) for of in jaxpr.outvars]


def _step(operation: core.JaxprEqn, inputs: Sequence[Any], instead: Instead) -> Sequence[Any]:
    """The outputs of one operation, as JAX computes them."""
    name = operation.primitive.name
    if name in PLAIN_CALLS:
        called: Any = operation.params.get("call_jaxpr", operation.params.get("jaxpr"))
        closed = called if isinstance(called, core.ClosedJaxpr) else core.ClosedJaxpr(called, ())
        return follow(closed.jaxpr, closed.consts, inputs, instead)
    keys = [each for each, of in zip(inputs, operation.invars, strict=True) if _is_key(of)]
    if keys and not all(map(_is_key, operation.outvars)):
        laws = " and ".join(f"jax.random.{law.__name__}" for law in LAWS.values())
        raise UserError(
            f"the policy draws by `{name}`, which cannot be made an input: only draws of {laws} outside of loops can"
        )
    if any(key is None for key in keys):
        return [None] * len(operation.outvars)
    return compute(operation, inputs)


def compute(operation: core.JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    """What JAX computes in one operation, which calls no program."""
    found: Any = operation.primitive.bind(*inputs, **operation.params)
    return found if operation.primitive.multiple_results else [found]


def _needed(jaxpr: core.Jaxpr) -> list[core.JaxprEqn]:
    """The operations on which the outputs depend, in order: what is computed for nothing is left out."""
    wanted = {of for of in jaxpr.outvars if isinstance(of, core.Var)}
    kept: list[core.JaxprEqn] = []
    for operation in reversed(jaxpr.eqns):
        if wanted & set(operation.outvars):
            kept.append(operation)
            wanted |= {of for of in operation.invars if isinstance(of, core.Var)}
    return kept[::-1]


def _is_key(of: core.Var | core.Literal) -> bool:
    return jnp.issubdtype(getattr(of.aval, "dtype", jnp.float32), jax.dtypes.prng_key)


def _draw_of(operation: core.JaxprEqn) -> Draw | None:
    """The draw that an operation is: a call of the very program that JAX traces of a law for this shape."""
    if not (len(operation.invars) == len(operation.outvars) == 1 and _is_key(operation.invars[0])):
        return None
    if "jaxpr" not in operation.params:
        return None
    (out,) = operation.outvars
    text = str(operation.params["jaxpr"])
    shape = tuple(getattr(out.aval, "shape", ()))
    return next((Draw(law, shape) for law in LAWS if text == _program_text(law, shape)), None)


@cache
def _program_text(law: LawName, shape: tuple[int, ...]) -> str | None:
    """The program of a law, as JAX prints it; None where JAX does not make it one call."""
    operations = jax.make_jaxpr(lambda key: LAWS[law](key, shape, jnp.float32))(
        jax.eval_shape(jax.random.key, 0)
    ).jaxpr.eqns
    return str(operations[0].params.get("jaxpr")) if len(operations) == 1 else None
