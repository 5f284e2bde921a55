"""A plain function and a table of its dense layers as a model.

The function is traced, and its program run line by line. The arrays of the table's layers carry
their names along: where a weight meets its inputs, these are kept and the tap is added, and where
it meets anything else, the layer is refused. So the function stays as it is.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn
from jax.tree_util import tree_flatten_with_path

from soaa_edu.models.layers import Model, Params
from soaa_edu.models.layouts import Layout, path_name
from soaa_edu.models.marks import check_first_axis, run_alone, walk


def from_function(
    apply: Callable[[Any, Any], Any],
    init: Callable[[jax.Array], Any],
    layers: Mapping[str, tuple[str, str | None]],
) -> Model:
    """A function as a model: ``from_function(apply, init, {"hidden": ("w1", "b1"), ...})``.

    A layer of the table computes ``inputs @ weight + bias``, anywhere in the function, also under
    ``jit``, ``vmap`` or ``checkpoint``. Its arrays become ``weight`` and ``bias`` of the layer of
    that name; any other array is ``array`` of a layer named by its path, for which K-FAC has a
    diagonal. ``model.export(params)`` has the function's own form, and ``model.adopt`` takes it.

    Args:
        apply: ``(parameters, inputs) -> outputs``, the parameters as ``init`` gives them and the
            inputs a tree of arrays with the examples on the first axis.
        init: key -> parameters, a tree of arrays.
        layers: a layer's name -> the paths of its weight ``(in, out)`` and of its bias ``(out,)``,
            or ``None``: keys and indices with slashes between, such as ``"blocks/0/w"``.

    Raises:
        ValueError: a table without layers, with a path or a shape that does not fit, or an array
            that it names twice; at the first call, a weight or a bias of another use than that.
    """
    layout = _layout(jax.eval_shape(init, jax.random.key(0)), layers)

    def start(key: jax.Array) -> Params:
        return layout.split(init(key))

    def forward(params: Params, inputs: Any, taps: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        tree = layout.join(params)
        staged, shapes = jax.make_jaxpr(apply, return_shape=True)(tree, inputs)
        carried = [
            _Carried(array, layer, kind) if layer in layers else array
            for (layer, kind), array in zip(layout.places, jax.tree.leaves(tree), strict=True)
        ]
        rows = jax.tree.leaves(inputs)
        outputs, layer_inputs = _run(staged, [*carried, *rows], taps, params, layers)
        check_first_axis(layer_inputs, len(rows[0]))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs), layer_inputs

    return Model(start, forward, tuple(layers), export=layout.join, adopt=layout.split)


class _Carried(NamedTuple):
    """An array on its way through the program: a layer's weight, its bias or their product."""

    array: Any
    layer: str
    kind: str


def _layout(tree: Any, layers: Mapping[str, tuple[str, str | None]]) -> Layout:
    leaves, structure = tree_flatten_with_path(tree)
    shapes = {path_name(path, "/"): leaf.shape for path, leaf in leaves}
    if not layers:
        raise ValueError(
            "from_function needs one dense layer at least in its table: name one, or take another "
            "method, whose Objective takes any function of parameters and inputs"
        )
    owners: dict[str, tuple[str, str]] = {}
    for layer, (weight, bias) in layers.items():
        for kind, path in (("weight", weight), ("bias", bias)):
            if path is None:
                continue
            if path not in shapes:
                raise ValueError(
                    f"there is no array {path!r} for the {kind} of the dense layer {layer!r}: take "
                    f"one of {', '.join(shapes)}"
                )
            if path in owners:
                raise ValueError(
                    f"the array {path!r} belongs to the dense layers {owners[path][0]!r} and "
                    f"{layer!r}: leave its layers out of the table, as tied weights have no "
                    "Kronecker product for a Fisher"
                )
            owners[path] = layer, kind
        if len(shapes[weight]) != 2:
            raise ValueError(
                f"the weight of the dense layer {layer!r} must be a matrix (in, out), got "
                f"{shapes[weight]}: leave the layer out of the table"
            )
        if bias is not None and shapes[bias] != shapes[weight][1:]:
            raise ValueError(
                f"the bias of the dense layer {layer!r} must have the shape {shapes[weight][1:]} "
                f"of its outputs, got {shapes[bias]}: give its path or None"
            )
    for path in shapes:
        if path in layers and path not in owners:
            raise ValueError(
                f"the name {path!r} of a dense layer is the path of an array besides: take another"
            )
    return Layout(structure, [owners.get(path, (path, "array")) for path in shapes])


def _run(
    staged: ClosedJaxpr, arguments: list, taps: dict[str, Any], params: Params, layers: Any
) -> tuple[list, dict[str, Any]]:
    """The program's outputs with the taps added, and what went into every dense layer."""
    layer_inputs: dict[str, Any] = {}
    finished = set()

    def visit(line: JaxprEqn, operands: list) -> list:
        arrays = [o.array if isinstance(o, _Carried) else o for o in operands]
        carried = {o.kind: o for o in operands if isinstance(o, _Carried)}
        results = run_alone(staged.jaxpr, line, arrays)
        if not carried:
            return results
        owner = next(iter(carried.values()))
        name = owner.layer
        if len(operands) == 1 and _keeps_columns(line, owner.kind):
            return [owner._replace(array=results[0])]
        if _multiplies(line, operands) and name not in layer_inputs:
            layer_inputs[name] = arrays[0]
            outputs = results[0]
            if name in taps:
                outputs += jnp.asarray(taps[name], outputs.dtype)
            if "bias" in params[name]:
                return [_Carried(outputs, name, "product")]
            finished.add(name)
            return [outputs]
        together = line.primitive.name == "add" and set(carried) == {"product", "bias"}
        if together and carried["product"].layer == carried["bias"].layer:
            finished.add(name)
            return results
        raise _other_use(name, f"its {owner.kind} meets {line.primitive.name}")

    def enters(program: ClosedJaxpr, operands: list) -> bool:
        return any(isinstance(operand, _Carried) for operand in operands)

    outputs = walk(staged, arguments, visit, enters)
    for output in outputs:
        if isinstance(output, _Carried):
            raise _other_use(output.layer, f"its {output.kind} is among the outputs")
    for name in layers:
        if name not in finished:
            missing = "bias is never added" if name in layer_inputs else "weight is never used"
            raise _other_use(name, f"its {missing}")
    return outputs, layer_inputs


def _other_use(name: str, use: str) -> ValueError:
    return ValueError(
        f"the dense layer {name!r} must be inputs @ weight + bias, once and outside of loops, and "
        f"{use}: write it so, or leave it out of the table, which gives it a diagonal"
    )


def _multiplies(line: JaxprEqn, operands: list) -> bool:
    """Whether a line is ``inputs @ weight``."""
    if line.primitive.name != "dot_general" or isinstance(operands[0], _Carried):
        return False
    last = operands[0].ndim - 1
    (of_inputs, of_weight), of_batch = line.params["dimension_numbers"]
    contracted = tuple(of_inputs) == (last,) and tuple(of_weight) == (0,)
    return operands[1].kind == "weight" and contracted and not any(of_batch)


def _keeps_columns(line: JaxprEqn, kind: str) -> bool:
    """Whether a line leaves the columns of an array what they are, and of a weight the rows."""
    ends: Any = line.invars[0].aval, line.outvars[0].aval
    before, after = (end.shape for end in ends)
    match line.primitive.name:
        case "convert_element_type":
            return True
        case "reshape":
            kept = True
        case "broadcast_in_dim":
            kept = line.params["broadcast_dimensions"][-1] == len(after) - 1
        case "transpose":
            kept = line.params["permutation"][-1] == len(before) - 1
        case _:
            kept = False
    return kept and kind != "weight" and before[-1] == after[-1]
