"""Networks of other libraries as models: Flax's Linen and NNX, and Equinox.

A layer is what holds arrays, and its name its path in the network, ``"."`` for the network itself.
Dense layers are Linen's ``Dense``, NNX's ``Linear`` and Equinox's ``Linear``, not what is derived
from them. Whatever else holds arrays keeps them under their own names; K-FAC has a diagonal for it.
A network that draws takes its keys with its inputs (see ``soaa_edu.with_dropout``).

A library is imported where it is needed: none has to be there.
"""

from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import tree_flatten_with_path, tree_map_with_path

from soaa_edu.models.draws import drawing_forward, without_key
from soaa_edu.models.layers import Model, Params
from soaa_edu.models.layouts import layout_by_path, path_name
from soaa_edu.models.marks import layers_marked_in, marked, run_marked


def from_linen(module: Any, example_inputs: Any, **options: Any) -> Model:
    """A Linen module as a model: ``from_linen(Net(), images[:1])``.

    Layers are named like ``Dense_0`` and ``block/Dense_1``; the dense ones are listed as called.
    ``model.export(params)`` is what Linen has under ``"params"``.

    Args:
        module: takes a batch.
        example_inputs: a batch of any size, for the shapes.
        **options: what a call of the module takes besides, such as ``train=False``.

    Raises:
        ImportError: Flax is not installed.
        ValueError: no dense layer, one of a use that K-FAC can't take (see ``run_marked``), or
            state such as that of a batch norm; at a call, dropout without keys.
    """
    nn = _library("flax", "flax.linen")
    errors = _library("flax", "flax.errors")
    example_inputs = jnp.asarray(example_inputs)

    def variables(key: jax.Array) -> Any:
        return nn.unbox(module.init(key, example_inputs, **options))

    abstract = jax.eval_shape(variables, jax.random.key(0))
    _check_state("from_linen", set(abstract) - {"params"})
    layout = layout_by_path(abstract.get("params", {}), "/")
    layers = layout.split(abstract.get("params", {}))
    plain = _plain(layers, "kernel")

    def intercept(call: Callable, args: Any, keywords: Any, context: Any) -> Any:
        name = "/".join(context.module.path) or "."
        if type(context.module) is nn.Dense and context.method_name == "__call__" and name in plain:
            return marked(name, call, *args, **keywords)
        return call(*args, **keywords)

    def apply(key: Any, layers: Params, inputs: Any) -> Any:
        try:
            with nn.intercept_methods(intercept):
                return module.apply({"params": layout.join(layers)}, inputs, rngs=key, **options)
        except errors.InvalidRngError as error:
            raise without_key("from_linen", "give it deterministic=True") from error

    program = jax.make_jaxpr(partial(apply, jax.random.key(0)))(layers, example_inputs)
    dense = tuple(dict.fromkeys(layers_marked_in(program)))
    _check_dense("from_linen", "flax.linen.Dense", dense)

    def adopt(tree: Any) -> Params:
        return _changed(layout.split(tree), dense, _kernel_as_weight)

    def export(params: Params) -> Any:
        return layout.join(_changed(params, dense, _weight_as_kernel))

    def init(key: jax.Array) -> Params:
        return adopt(variables(key)["params"])

    def forward(params: Params, inputs: Any, taps: dict[str, Any], key: Any) -> tuple[Any, Any]:
        layers = _changed(params, dense, _weight_as_kernel)
        return run_marked(partial(apply, key), layers, inputs, taps, dense)

    key = jax.random.key(0)
    jax.eval_shape(forward, jax.eval_shape(init, key), example_inputs, {}, key)
    return Model(init, drawing_forward(forward), dense, export=export, adopt=adopt)


def from_nnx(make: Callable[[jax.Array], Any]) -> Model:
    """An NNX module as a model: ``from_nnx(lambda key: Net(nnx.Rngs(key)))``.

    Layers are named like ``head`` and ``layers.0``; the dense ones are listed by their names.
    ``model.export(params)`` is a plain dict, for ``nnx.update(module, ...)``.

    Args:
        make: key -> a module that takes a batch.

    Raises:
        ImportError: Flax is not installed.
        ValueError: no dense layer, or state such as that of a batch norm; at a call, a dense layer
            of a use that K-FAC can't take (see ``run_marked``), or dropout without keys.
    """
    nnx = _library("flax", "flax.nnx")

    def arrays(module: Any) -> Any:
        return nnx.to_pure_dict(nnx.state(module, nnx.Param))

    module = make(jax.random.key(0))
    layout = layout_by_path(arrays(module), ".")
    dense = _mark_nnx(module, _plain(layout.split(arrays(module)), "kernel"))
    _check_dense("from_nnx", "flax.nnx.Linear", dense)
    graph, _, random, state = nnx.split(module, nnx.Param, nnx.RngState, ...)
    _check_state("from_nnx", {type(variable).__name__ for _, variable in nnx.to_flat_state(state)})
    random = nnx.to_pure_dict(random)
    silent = nnx.graphdef(_silenced(module))

    def apply(key: Any, layers: Params, inputs: Any) -> Any:
        if key is None:
            return nnx.merge(silent, layout.join(layers), random)(inputs)
        return nnx.merge(graph, layout.join(layers), _reseeded(random, key))(inputs)

    def adopt(tree: Any) -> Params:
        return _changed(layout.split(tree), dense, _kernel_as_weight)

    def export(params: Params) -> Any:
        return layout.join(_changed(params, dense, _weight_as_kernel))

    def init(key: jax.Array) -> Params:
        return adopt(arrays(make(key)))

    def forward(params: Params, inputs: Any, taps: dict[str, Any], key: Any) -> tuple[Any, Any]:
        layers = _changed(params, dense, _weight_as_kernel)
        return run_marked(partial(apply, key), layers, inputs, taps, dense)

    return Model(init, drawing_forward(forward), dense, export=export, adopt=adopt)


def from_equinox(make: Callable[[jax.Array], Any]) -> Model:
    """An Equinox module as a model: ``from_equinox(lambda key: eqx.nn.MLP(4, 3, 8, 1, key=key))``.

    Layers are named like ``head`` and ``layers.0``; the dense ones are listed as they are defined.
    Equinox has a weight ``(out, in)``, the model its transpose. A ``Linear`` of scalars is no dense
    layer. ``model.export(params)`` is the module.

    Args:
        make: key -> a module that takes one example, and for dropout ``key=`` as Equinox's own do.
            The model maps it over the batch.

    Raises:
        ImportError: Equinox is not installed.
        ValueError: no dense layer, or state such as that of a batch norm; at a call, a dense layer
            of a use that K-FAC can't take (see ``run_marked``), or dropout without keys.
    """
    eqx = _library("equinox", "equinox")

    def is_dense(node: Any) -> bool:
        return (
            type(node) is eqx.nn.Linear
            and "scalar" not in (node.in_features, node.out_features)
            and all(eqx.is_inexact_array(a) or a is None for a in (node.weight, node.bias))
            and jnp.ndim(node.weight) == 2
        )

    def arrays(module: Any) -> Any:
        return eqx.filter(module, eqx.is_inexact_array)

    module = make(jax.random.key(0))
    draws = _draws(module)
    layout = layout_by_path(arrays(module), ".")
    nodes, _ = tree_flatten_with_path(module, is_leaf=is_dense)
    dense = tuple(path_name(path, ".") for path, node in nodes if is_dense(node))
    _check_dense("from_equinox", "equinox.nn.Linear", dense)
    rest = eqx.filter(module, eqx.is_inexact_array, inverse=True)

    def apply(key: Any, layers: Params, inputs: Any) -> Any:
        if draws and key is None:
            remedy = "have make return equinox.nn.inference_mode(module)"
            raise without_key("from_equinox", remedy)
        module = eqx.combine(layout.join(layers), rest)
        keyed = {} if key is None else {"key": key}

        def example(row: Any, zero: Any) -> Any:
            def mark(path: Any, node: Any) -> Any:
                return (
                    _marked_equinox()(node, zero, path_name(path, ".")) if is_dense(node) else node
                )

            return tree_map_with_path(mark, module, is_leaf=is_dense)(row, **keyed)

        return jax.vmap(example)(inputs, jnp.zeros(len(inputs)))

    def adopt(module: Any) -> Params:
        return _changed(layout.split(arrays(module)), dense, _transposed)

    def export(params: Params) -> Any:
        return eqx.combine(layout.join(_changed(params, dense, _transposed)), rest)

    def init(key: jax.Array) -> Params:
        return adopt(make(key))

    def forward(params: Params, inputs: Any, taps: dict[str, Any], key: Any) -> tuple[Any, Any]:
        layers = _changed(params, dense, _transposed)
        return run_marked(partial(apply, key), layers, inputs, taps, dense)

    return Model(init, drawing_forward(forward), dense, export=export, adopt=adopt)


def _plain(layers: Params, weight: str) -> set[str]:
    """The names of the layers that hold a matrix called ``weight``, and nothing but a bias more."""
    return {
        name
        for name, layer in layers.items()
        if set(layer) | {"bias"} == {weight, "bias"} and layer[weight].ndim == 2
    }


def _changed(layers: Params, dense: tuple[str, ...], change: Callable) -> Params:
    return {name: change(layer) if name in dense else layer for name, layer in layers.items()}


def _kernel_as_weight(layer: dict[str, Any]) -> dict[str, Any]:
    return {"weight" if name == "kernel" else name: array for name, array in layer.items()}


def _weight_as_kernel(layer: dict[str, Any]) -> dict[str, Any]:
    return {"kernel" if name == "weight" else name: array for name, array in layer.items()}


def _transposed(layer: dict[str, Any]) -> dict[str, Any]:
    return {name: jnp.transpose(array) for name, array in layer.items()}


def _library(name: str, module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} can't be imported: pip install {name}") from error


def _check_dense(caller: str, kind: str, dense: tuple[str, ...]) -> None:
    if not dense:
        raise ValueError(
            f"{caller} found no dense layer, and K-FAC needs one {kind} at least: add one, or take "
            "another method, whose Objective takes any function of parameters and inputs"
        )


def _check_state(caller: str, kinds: set[str]) -> None:
    if kinds:
        raise ValueError(
            f"{caller} carries no state, and this module keeps {', '.join(sorted(kinds))}, in "
            "inference mode too: take a layer without, such as LayerNorm for BatchNorm, or "
            "from_function, with statistics that stay as they are inside the function"
        )


def _mark_nnx(module: Any, plain: set[str]) -> tuple[str, ...]:
    """Make the module mark its dense layers; the names of these layers."""
    nnx = _library("flax", "flax.nnx")
    dense = []
    for path, node in list(nnx.iter_graph(module)):
        name = ".".join(map(str, path)) or "."
        if type(node) is nnx.Linear and name in plain:
            node.__class__, node.layer_name = _marked_nnx(), name
            dense.append(name)
    return tuple(dense)


def _silenced(module: Any) -> Any:
    """The module, made to draw nothing."""
    nnx = _library("flax", "flax.nnx")
    for _, node in list(nnx.iter_graph(module)):
        if type(node) is nnx.RngStream:
            node.__class__ = _silent_nnx()
    return module


def _reseeded(random: Any, key: jax.Array) -> Any:
    """The state of a module's streams, each with a key of its own made from this one."""
    leaves, structure = jax.tree.flatten(random)

    def reseeded(leaf: jax.Array, new: jax.Array) -> jax.Array:
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return jax.random.split(new, leaf.shape) if is_key else leaf

    return jax.tree.unflatten(structure, map(reseeded, leaves, jax.random.split(key, len(leaves))))


@cache
def _marked_nnx() -> Any:
    base: Any = _library("flax", "flax.nnx").Linear

    class MarkedLinear(base):
        def __call__(self, inputs: Any, *options: Any, **named: Any) -> Any:
            call = super().__call__
            return marked(self.layer_name, lambda seen: call(seen, *options, **named), inputs)

    return MarkedLinear


@cache
def _silent_nnx() -> Any:
    base: Any = _library("flax", "flax.nnx").RngStream

    class SilentStream(base):
        def __call__(self) -> Any:
            raise without_key("from_nnx", "have make call module.eval()")

    return SilentStream


def _draws(module: Any) -> bool:
    """Whether the module has dropout that is switched on; raises where it keeps state."""
    eqx = _library("equinox", "equinox")
    kinds = eqx.nn.StateIndex | eqx.nn.Dropout
    nodes = jax.tree.leaves(module, is_leaf=lambda node: isinstance(node, kinds))
    state = any(isinstance(node, eqx.nn.StateIndex) for node in nodes)
    _check_state("from_equinox", {"StateIndex"} if state else set())
    return any(
        isinstance(node, eqx.nn.Dropout) and not node.inference and node.p > 0 for node in nodes
    )


@cache
def _marked_equinox() -> Any:
    eqx = _library("equinox", "equinox")

    base: Any = eqx.Module

    class MarkedLinear(base):
        """A layer that marks itself, its inputs one for each example by a zero of its own."""

        layer: Any
        zero: Any
        layer_name: str = eqx.field(static=True)

        def __call__(self, inputs: Any, *, key: Any = None) -> Any:
            own = inputs + self.zero.astype(inputs.dtype)
            return marked(self.layer_name, self.layer, own)

        def __getattr__(self, name: str) -> Any:
            if name == "layer":
                raise AttributeError(name)
            return getattr(self.layer, name)

    return MarkedLinear
