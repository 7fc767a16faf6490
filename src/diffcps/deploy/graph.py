"""A policy as an ONNX graph."""

# jax2onnx and onnx are an extra, and leave their types open.
# pyright: reportMissingImports=false

from __future__ import annotations

import logging
import math
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from diffcps.deploy.draws import PLAIN_CALLS, compute, follow
from diffcps.deploy.program import Exported
from diffcps.networks.mlp import MISH_CLAMP, mish
from diffcps.types import UserError

if TYPE_CHECKING:
    import onnx

BATCH = "batch"
"""Name of the free number of rows."""
MANTISSA_BITS, EXPONENT_BIAS = 23, 127
"""Of a float32."""
MOST_OPERATIONS = 20_000
"""Above this a conversion takes many minutes."""
KNOWN_SIZE = 4096
"""Numbers that a known array may have, if it was made of fewer."""


def check_extra() -> None:
    """Raises `UserError` where what makes an ONNX graph, or runs it, is not installed."""
    try:
        import jax2onnx  # noqa: F401
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"an ONNX graph needs {error.name}, which is not installed: pip install 'diffcps[export]', or --no-onnx"
        ) from None


def onnx_graph(policy: Exported) -> onnx.ModelProto:
    """The policy as a graph: `observation` (batch, obs) float64, and the numbers of its laws (batch, n) float32, to
    `action` (batch, act) float32, in the environment's units.

    Raises `UserError` where it is too long, written out, and where ONNX has no words for what the method does.
    """
    import onnx
    from jax2onnx import to_onnx

    length = operations_of(policy.traced.program.jaxpr)
    if length > MOST_OPERATIONS:
        raise UserError(
            f"{policy.record.algorithm} cannot become an ONNX graph: an action of this policy takes {length:,} "
            f"operations, and a graph, written out, may have {MOST_OPERATIONS:,}; --no-onnx exports the rest"
        )

    def act(seen: jax.Array, *numbers: jax.Array) -> jax.Array:
        return policy.act(seen, *numbers, instead=portable)

    sizes = [policy.spec.observation_size, *map(policy.traced.size, policy.laws)]
    # Once before jax2onnx puts its own functions in the place of JAX's: programs are recognised as JAX makes them.
    jax.eval_shape(act, *(jax.ShapeDtypeStruct((2, size), jnp.float32) for size in sizes))
    with _silenced("onnx_ir", "jax2onnx"):
        try:
            model = to_onnx(
                act,
                [(BATCH, size) for size in sizes],
                model_name="policy",
                input_names=["seen", *policy.laws],
                output_names=["action"],
            )
        except Exception as error:  # a converter is foreign code and raises what it likes
            reason = f"{type(error).__name__} ({' '.join(str(error).split())[:200]})"
            raise UserError(
                f"{policy.record.algorithm} cannot become an ONNX graph: jax2onnx raises {reason}; "
                "--no-onnx exports the rest"
            ) from error
    _normalise_in_float64(model, policy)
    onnx.checker.check_model(model)
    return model


def operations_of(jaxpr: core.Jaxpr) -> int:
    """How many operations a program takes, loops written out."""
    total = 0
    for operation in jaxpr.eqns:
        inside = [getattr(value, "jaxpr", value) for value in operation.params.values()]
        inner = sum(operations_of(value) for value in inside if isinstance(value, core.Jaxpr))
        total += operation.params["length"] * inner if operation.primitive.name == "scan" else max(inner, 1)
    return total


def _normalise_in_float64(model: onnx.ModelProto, policy: Exported) -> None:
    """Puts (observation - mean) / std in float64 before a graph of float32, so that a large offset costs nothing."""
    from onnx import TensorProto, helper, numpy_helper

    scaling, graph = policy.scaling, model.graph
    shape = (policy.spec.observation_size,)
    names = "observation", "observation_centred", "observation_scaled"
    constants = {"observation_mean": scaling.mean, "observation_std": scaling.std}
    for name, constant in constants.items():
        array = np.ascontiguousarray(np.broadcast_to(np.asarray(constant, np.float64), shape))
        graph.initializer.append(numpy_helper.from_array(array, name))
    before = [
        helper.make_node("Sub", [names[0], "observation_mean"], [names[1]]),
        helper.make_node("Div", [names[1], "observation_std"], [names[2]]),
        helper.make_node("Cast", [names[2]], ["seen"], to=TensorProto.FLOAT),
    ]
    nodes, others = [*before, *graph.node], list(graph.input)[1:]
    given = helper.make_tensor_value_info("observation", TensorProto.DOUBLE, [BATCH, *shape])
    del graph.node[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.extend([given, *others])


@contextmanager
def _silenced(*names: str) -> Generator[None, None, None]:
    """Without the warnings of these packages, which are about their own insides."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


# --- What is said otherwise ---


class Exponent(NamedTuple):
    """Whole numbers, moved to where a float32 has its exponent."""

    biased: jax.Array


def portable(operation: core.JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any] | None:
    """What ONNX cannot say as this library does, or jax2onnx takes no notice of, said otherwise."""
    name = operation.primitive.name
    if name not in (*PLAIN_CALLS, "scan") and _is_known(operation, inputs):
        with jax.ensure_compile_time_eval():
            return compute(operation, inputs)
    if name == "pad":
        return [_padded(inputs[0], inputs[1], operation.params["padding_config"])]
    if name == "gather" and not isinstance(inputs[1], jax.core.Tracer):
        return [_gathered(operation, *inputs)]
    if name == "dynamic_slice" and not any(isinstance(each, jax.core.Tracer) for each in inputs[1:]):
        sizes, shape = operation.params["slice_sizes"], inputs[0].shape
        first = [min(max(int(at), 0), n - size) for at, n, size in zip(inputs[1:], shape, sizes, strict=True)]
        return [jax.lax.slice(inputs[0], first, [at + size for at, size in zip(first, sizes, strict=True)])]
    if name == "lt_to":  # of numbers: NaN and the sign of zero, in which it differs, decide nothing here
        return [jnp.less(*inputs)]
    if name == "custom_jvp_call" and str(operation.params["call_jaxpr"]) == _text_of_mish(inputs[0].shape):
        if not _is_known(operation, inputs):
            return [_mish(inputs[0])]
        with jax.ensure_compile_time_eval():
            return [mish(inputs[0])]
    if name == "shift_left" and isinstance(by := operation.invars[1], core.Literal) and by.val == MANTISSA_BITS:
        return [Exponent(inputs[0])]
    if name == "bitcast_convert_type" and isinstance(inputs[0], Exponent):
        return [jnp.exp2((inputs[0].biased - EXPONENT_BIAS).astype(jnp.float32))]
    if name == "scan":
        return _written_out(operation, inputs)
    return None


def _row(array: Any, row: int) -> Any:
    """A row of an array, which is known where the array is."""
    if isinstance(array, jax.core.Tracer):
        return jax.lax.index_in_dim(array, row, keepdims=False)
    with jax.ensure_compile_time_eval():
        return jnp.asarray(array)[row]


def _is_known(operation: core.JaxprEqn, inputs: Sequence[Any]) -> bool:
    """Whether the outputs follow from the weights alone, and are not much larger than what they are made of."""
    if any(each is None or isinstance(each, jax.core.Tracer | Exponent) for each in inputs):  # None: a key
        return False
    sizes = [math.prod(of.aval.shape) for of in operation.outvars]  # pyright: ignore[reportAttributeAccessIssue]
    return sum(sizes) <= max([KNOWN_SIZE, *map(np.size, inputs)])


def _padded(array: Any, fill: Any, config: Sequence[tuple[int, int, int]]) -> Any:
    """`jax.lax.pad` by concatenations: `fill` before, after and between the rows of each axis; a negative pad cuts."""
    for axis, (low, high, between) in enumerate(config):
        shape = array.shape

        def filled(rows: int, shape: tuple[int, ...] = shape, axis: int = axis) -> Any:
            return jnp.full((*shape[:axis], rows, *shape[axis + 1 :]), fill)

        if between and shape[axis] > 1:
            gaps = jnp.full((*shape[: axis + 1], between, *shape[axis + 1 :]), fill)
            apart = jnp.concatenate([jnp.expand_dims(array, axis + 1), gaps], axis + 1)
            rows = shape[axis] * (1 + between)
            array = apart.reshape(*shape[:axis], rows, *shape[axis + 1 :])
            array = jax.lax.slice_in_dim(array, 0, rows - between, axis=axis)
        parts = [*([filled(low)] if low > 0 else []), array, *([filled(high)] if high > 0 else [])]
        array = jnp.concatenate(parts, axis) if len(parts) > 1 else array
        if low < 0 or high < 0:
            array = jax.lax.slice_in_dim(array, max(-low, 0), array.shape[axis] - max(-high, 0), axis=axis)
    return array


def _gathered(operation: core.JaxprEqn, array: Any, index: Any) -> Any:
    """A gather at known places: a slice where they follow one another."""
    with jax.ensure_compile_time_eval():
        places = np.arange(math.prod(array.shape), dtype=np.int32).reshape(array.shape)
        filled = operation.params["fill_value"]
        dimensions, sizes = operation.params["dimension_numbers"], operation.params["slice_sizes"]
        mode = operation.params["mode"]
        found = np.asarray(
            jax.lax.gather(jnp.asarray(places), jnp.asarray(index), dimensions, sizes, mode=mode, fill_value=-1)
        )
    if (found < 0).any() and filled is None:
        raise UserError("the policy reads beyond the end of an array, which an ONNX graph cannot")
    first, flat = int(found.flat[0]), array.reshape(-1)
    if (found.ravel() == first + np.arange(found.size)).all():
        return jax.lax.slice_in_dim(flat, first, first + found.size).reshape(found.shape)
    return jnp.take(flat, found.ravel(), axis=0, mode="clip").reshape(found.shape)


def _mish(x: jax.Array) -> jax.Array:
    """Mish by the runtime's exponential. ONNX's own operation takes several times as long in onnxruntime."""
    e = jnp.exp(jnp.minimum(x, MISH_CLAMP))
    n = e * (e + 2.0)
    return x * (n / (n + 2.0))


def _written_out(operation: core.JaxprEqn, inputs: Sequence[Any]) -> Sequence[Any]:
    """A `jax.lax.scan`, step after step: a loop of ONNX would hide its steps from the optimiser, and fix the batch."""
    of = operation.params
    constants, carries, rows = of["num_consts"], of["num_carry"], of["length"]
    each_step, carried, over = inputs[:constants], inputs[constants:][:carries], inputs[constants + carries :]
    made: list[Sequence[Any]] = [()] * rows
    for row in reversed(range(rows)) if of["reverse"] else range(rows):
        now = [_row(array, row) for array in over]
        found = follow(of["jaxpr"].jaxpr, of["jaxpr"].consts, [*each_step, *carried, *now], portable)
        carried, made[row] = found[:carries], found[carries:]
    return [*carried, *(jnp.stack(arrays) for arrays in zip(*made, strict=True))]


@cache
def _text_of_mish(shape: tuple[int, ...]) -> str:
    """The program of Mish on an array of this shape, as JAX prints it."""
    (call,) = jax.make_jaxpr(mish)(jax.ShapeDtypeStruct(shape, jnp.float32)).jaxpr.eqns
    return str(call.params["call_jaxpr"])
