"""A foreign network's dense layers, seen from outside: what goes in, and a tap on what comes out.

The network marks each dense layer's inputs and outputs, and is traced. Its program is then run line
by line: at a mark the inputs are kept, or the tap is added. So a layer may lie under ``vmap``,
``jit`` or ``checkpoint``, where its inputs are no array of the whole batch, and keeping them would
leak a tracer. What ``checkpoint`` holds is run in place: it saves no memory.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Primitive, jaxpr_as_fun
from jax.interpreters import batching

RUN_IN_PLACE = ("jit", "pjit", "checkpoint", "remat", "remat2", "closed_call")
"""JAX's names for calls of a program that is run once, with its operands as inputs."""

_mark = Primitive("soaa_edu_mark")
_mark.def_abstract_eval(lambda value, **_: value)


def _mark_batch(values: Any, axes: Any, **place: Any) -> tuple[Any, int]:
    """Under ``vmap`` the new axis comes first."""
    return _mark.bind(jnp.moveaxis(values[0], axes[0], 0), **place), 0


batching.primitive_batchers[_mark] = _mark_batch


def marked(name: str, layer: Callable, inputs: Any) -> Any:
    """``layer(inputs)``, marked as the dense layer ``name``, to be traced by ``run_marked``."""
    seen = _mark.bind(jnp.asarray(inputs), layer=name, side="inputs")
    return _mark.bind(layer(seen), layer=name, side="outputs")


def run_marked(
    function: Callable, layers: Any, inputs: Any, taps: dict[str, Any], dense: Any
) -> tuple[Any, dict[str, Any]]:
    """``function(layers, inputs)`` with taps added, and what went into every dense layer.

    Args:
        function: calls each dense layer by ``marked``.
        layers: name -> arrays, as the function reads them.
        inputs: ``(B, ...)``.
        taps: name -> what is added to that layer's outputs; without one, nothing.
        dense: the names of the dense layers.

    Raises:
        ValueError: a dense layer is called twice, never, or inside a loop; its arrays are read
            outside of its call; or its inputs don't keep the examples on the first axis.
    """
    inputs = jnp.asarray(inputs)
    staged, shapes = jax.make_jaxpr(function, return_shape=True)(layers, inputs)
    owners = {
        name: jax.tree.map(lambda _, name=name: name if name in dense else "", layer)
        for name, layer in layers.items()
    }
    _check_use(staged, jax.tree.leaves((owners, "")), dense)
    layer_inputs = {}

    def visit(line: JaxprEqn, operands: list) -> list:
        if line.primitive is not _mark:
            return run_alone(staged.jaxpr, line, operands)
        name, value = line.params["layer"], operands[0]
        if line.params["side"] == "inputs":
            layer_inputs[name] = value
        elif name in taps:
            return [value + jnp.asarray(taps[name], value.dtype)]
        return [value]

    outputs = walk(staged, jax.tree.leaves((layers, inputs)), visit, _holds_marks)
    check_first_axis(layer_inputs, len(inputs))
    return jax.tree.unflatten(jax.tree.structure(shapes), outputs), layer_inputs


def check_first_axis(layer_inputs: dict[str, Any], examples: int) -> None:
    """Raise ``ValueError`` unless every dense layer's inputs have the examples in front."""
    for name, value in layer_inputs.items():
        if value.shape[:1] != (examples,):
            raise ValueError(
                f"the {examples} examples must lie on the first axis of every dense layer's "
                f"inputs, and {name} is given inputs of shape {value.shape}: keep the batch's axis "
                "apart and in front"
            )


def walk(staged: ClosedJaxpr, arguments: Any, visit: Callable, enters: Callable) -> list:
    """The program's outputs, run line by line.

    Args:
        staged: the program.
        arguments: its inputs, whatever ``visit`` can take.
        visit: ``(line, operands) ->`` that line's results.
        enters: ``(program, operands) ->`` whether the lines of a program that is called are run
            one by one too.
    """
    program, constants = staged.jaxpr, staged.consts
    values = dict(zip([*program.constvars, *program.invars], [*constants, *arguments], strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else values[atom]

    for line in program.eqns:
        operands = [read(atom) for atom in line.invars]
        inner = [part for part in _programs(line) if enters(part, operands)]
        if inner and line.primitive.name in RUN_IN_PLACE:
            results = walk(inner[0], operands, visit, enters)
        else:
            results = visit(line, operands)
        values |= zip(line.outvars, results, strict=True)
    return [read(atom) for atom in program.outvars]


def _holds_marks(program: ClosedJaxpr, operands: list) -> bool:
    return any(layers_marked_in(program))


def run_alone(program: Jaxpr, line: JaxprEqn, operands: list) -> list:
    """The results of one line, as a program of its own."""
    named = {atom: o for atom, o in zip(line.invars, operands) if not isinstance(atom, Literal)}
    about = program.debug_info._replace(arg_names=None, result_paths=None)
    alone = program.replace(
        constvars=[], invars=list(named), outvars=line.outvars, eqns=[line], debug_info=about
    )
    return jaxpr_as_fun(ClosedJaxpr(alone, ()))(*named.values())


def _programs(line: JaxprEqn) -> Iterator[ClosedJaxpr]:
    """The programs that a line calls."""
    for option in line.params.values():
        for part in option if isinstance(option, tuple | list) else (option,):
            if isinstance(part, Jaxpr):
                yield ClosedJaxpr(part, ())
            elif isinstance(part, ClosedJaxpr):
                yield part


def layers_marked_in(program: ClosedJaxpr) -> Iterator[str]:
    """The names of the layers that are marked in a program, at any depth."""
    for line in program.eqns:
        if line.primitive is _mark:
            yield line.params["layer"]
        for part in _programs(line):
            yield from layers_marked_in(part)


def _check_use(program: ClosedJaxpr, owners: list[str], dense: Any) -> None:
    """Raise unless every dense layer is called once and its arrays are read in that call alone.

    Args:
        program: as traced.
        owners: the dense layer to which each argument belongs, or an empty name.
        dense: the names of the dense layers.
    """
    called: list[str] = []
    within = ""

    def visit(line: JaxprEqn, operands: list) -> list:
        nonlocal within
        if line.primitive is _mark:
            name, entered = line.params["layer"], line.params["side"] == "inputs"
            if entered and name in called:
                raise ValueError(
                    f"the dense layer {name} is called twice in one forward pass: its weight is "
                    "tied, and its Fisher is no Kronecker product: give each call its own layer"
                )
            called.append(name)
            within = name if entered else ""
        looped = [name for part in _programs(line) for name in layers_marked_in(part)]
        if looped:
            raise ValueError(
                f"the dense layer {looped[0]} is called inside {line.primitive.name}, where its "
                "inputs can't be seen: call it outside, a Python loop in place of one of JAX"
            )
        for owner in operands:
            if isinstance(owner, str) and owner not in ("", within):
                raise ValueError(
                    f"the arrays of the dense layer {owner} are read outside of its call: its "
                    "weight is tied, computed or given to a loop, and its Fisher is no Kronecker "
                    "product: untie it, and take no weight normalisation and no loop of JAX"
                )
        return [""] * len(line.outvars)

    walk(program, owners, visit, _holds_marks)
    for name in dense:
        if name not in called:
            raise ValueError(
                f"the dense layer {name} is never called in the forward pass: remove it"
            )
