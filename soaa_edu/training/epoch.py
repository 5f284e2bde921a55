"""An epoch as one function of arrays, and what is measured after it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from soaa_edu import checks
from soaa_edu.data import Dataset, count_rows
from soaa_edu.objective import Objective, counts, weights_of

MEASURED_AT_ONCE = 10_000


@partial(jax.jit, static_argnums=(1, 2))
def draw_order(key: jax.Array, examples: int, batch_size: int) -> tuple[jax.Array, jax.Array]:
    """The examples of every step of an epoch, ``(steps, batch_size)``, and a key for each step.

    Every example comes once, less the last partial batch. This is a program of its own, since
    compiling random numbers takes long and all methods can share it.
    """
    order_key, step_key = jax.random.split(key)
    steps = examples // batch_size
    order = jax.random.permutation(order_key, examples)[: steps * batch_size]
    return order.reshape(steps, batch_size), jax.random.split(step_key, steps)


def run_epoch(
    step: Callable,
    params: Any,
    state: Any,
    train_set: Any,
    order: jax.Array,
    keys: jax.Array,
    *,
    mesh: Mesh | None = None,
) -> tuple[Any, Any, dict]:
    """The steps of an epoch.

    Args:
        step: of an ``Optimizer``.
        params: at the start.
        state: at the start.
        train_set: inputs and targets.
        order: which of them each step takes, ``(steps, batch_size)``.
        keys: one for each step.
        mesh: of devices over which each batch is split.

    Returns:
        The parameters, the state, and the ``Info`` of every step, name -> ``(steps,)``.
    """

    def take(carry: tuple, chosen: tuple) -> tuple[tuple, dict]:
        (params, state), (rows, key) = carry, chosen
        batch = split_over(mesh, jax.tree.map(lambda array: array[rows], train_set))
        params, state, info = step(params, state, batch, key)
        return (params, state), info

    (params, state), info = jax.lax.scan(take, (params, state), (order, keys))
    return params, state, info


def measure(objective: Callable, params: Any, batch: Any) -> tuple[Any, Any]:
    """Loss and share of right answers; ``nan`` for the second where targets are not labels.

    More than ``MEASURED_AT_ONCE`` rows are taken in parts, to bound the memory.
    """
    rows = count_rows(batch)
    if rows <= MEASURED_AT_ONCE:
        return _measure_at_once(objective, params, batch)

    def sums(part: Any) -> jax.Array:
        examples = jnp.sum(weights_of(getattr(objective, "loss", None), part[1]))
        return jnp.array([examples * mean for mean in _measure_at_once(objective, params, part)])

    whole = rows - rows % MEASURED_AT_ONCE
    parts = jax.tree.map(lambda x: x[:whole].reshape(-1, MEASURED_AT_ONCE, *x.shape[1:]), batch)
    total = jnp.sum(jax.lax.map(sums, parts), axis=0)
    if whole < rows:
        total += sums(jax.tree.map(lambda x: x[whole:], batch))
    examples = jnp.sum(weights_of(getattr(objective, "loss", None), batch[1]))
    loss, accuracy = total / jnp.maximum(examples, 1)
    return loss, accuracy


def _measure_at_once(objective: Callable, params: Any, batch: Any) -> tuple[Any, Any]:
    if not isinstance(objective, Objective):
        return objective(params, batch), jnp.nan
    inputs, targets = batch
    outputs = objective.model(params, inputs)
    return objective.loss(outputs, targets), _accuracy(outputs, targets)


def check_run(data: Dataset, epochs: int, batch_size: int, devices: int = 1) -> None:
    """Raise a ``ValueError`` unless there is at least one batch, which the devices can share."""
    checks.whole("epochs", epochs)
    checks.whole("batch_size", batch_size)
    examples = count_rows(data.train[0])
    if batch_size > examples:
        raise ValueError(
            f"a batch of {batch_size} is larger than the {examples} training examples: "
            "take a smaller batch_size"
        )
    if batch_size % devices:
        raise ValueError(
            f"a batch of {batch_size} cannot be shared evenly by {devices} devices: take a "
            f"batch_size that is a multiple of {devices}, or fewer devices"
        )


def on_device(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    """Inputs and as many targets, their leaves as arrays."""
    inputs, targets = jax.tree.map(jnp.asarray, tuple(pair))
    of_inputs, of_targets = count_rows(inputs), count_rows(targets)
    if of_inputs != of_targets:
        raise ValueError(f"{of_inputs} inputs need as many targets, got {of_targets}")
    return inputs, targets


def strongly_typed(tree: Any) -> Any:
    """The tree as arrays without weak types, which a compiled program tells from strong ones."""
    arrays = jax.tree.map(jnp.asarray, tree)
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), arrays)


def shapes(arrays: Any) -> tuple[Any, tuple]:
    """Structure and shapes of arrays, by which a program compiled for them is found again."""
    leaves, structure = jax.tree.flatten(
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arrays)
    )
    return structure, tuple(leaves)


def precision() -> tuple:
    """The settings of JAX on which a compiled program hangs."""
    return tuple(
        getattr(jax.config, name) for name in ("jax_enable_x64", "jax_default_matmul_precision")
    )


def split_over(mesh: Mesh | None, tree: Any) -> Any:
    """Arrays whose first axis is to be split over all devices of the mesh."""
    if mesh is None:
        return tree
    rows = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.tree.map(partial(jax.lax.with_sharding_constraint, shardings=rows), tree)


def copied_to(mesh: Mesh | None, tree: Any) -> Any:
    """Arrays that every device of the mesh is to hold whole.

    Where the mesh spans processes, each of them has the arrays and fills its own devices.
    """
    if mesh is None:
        return tree
    whole = NamedSharding(mesh, PartitionSpec())
    if whole.is_fully_addressable:
        return jax.device_put(tree, whole)
    return jax.tree.map(partial(_filled_by_each_process, whole), tree)


def _filled_by_each_process(whole: NamedSharding, array: jax.Array) -> jax.Array:
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = _filled_by_each_process(whole, jax.random.key_data(array))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    local = np.asarray(array)
    return jax.make_array_from_callback(local.shape, whole, local.__getitem__)


def automatic(mesh: Mesh | None) -> Mesh | None:
    """The same devices with axes that the compiler may split arrays over as it likes."""
    return None if mesh is None else Mesh(mesh.devices, mesh.axis_names)


def _accuracy(outputs: Any, targets: Any) -> Any:
    labels = jnp.issubdtype(targets.dtype, jnp.integer) and targets.shape == outputs.shape[:-1]
    if not labels:
        return jnp.nan
    right = (jnp.argmax(outputs, axis=-1) == targets) & counts(targets)
    return jnp.sum(right) / jnp.maximum(jnp.sum(counts(targets)), 1)
