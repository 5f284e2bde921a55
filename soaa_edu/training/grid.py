"""``sweep``: one compiled program trains a whole grid of hyperparameters and seeds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from soaa_edu.data import Dataset
from soaa_edu.optimizers import Optimizer
from soaa_edu.training.epoch import (
    automatic,
    check_run,
    measure,
    on_device,
    precision,
    run_epoch,
    strongly_typed,
)

MOST_AT_ONCE = 256


def sweep(
    build: Callable[..., Optimizer],
    grid: Mapping[str, Sequence],
    params: Any,
    data: Dataset,
    *,
    epochs: int,
    batch_size: int,
    keys: jax.Array,
    evaluate: bool = True,
    mesh: Mesh | None = None,
) -> dict[str, np.ndarray]:
    """Train at every point of a grid with every key, each run as ``train`` does it.

    Runs differ in numbers alone, so one compiled program serves them all: many side by side
    (``vmap``) on an accelerator, as many as its memory holds; one after the other on a CPU, where
    nothing is gained by more. It is kept for the next call with the same ``build`` and shapes.
    Values that are no floats, such as intervals or names, and a float of zero, which may choose
    another algorithm, get a program each.

    A run whose loss is no longer finite stands still from there, and its losses are ``nan``.

    Args:
        build: ``(**point) -> Optimizer``. It sees floats as traced arrays.
        grid: name of an argument of ``build`` -> its values.
        params: any pytree of arrays, or ``key -> params``, such as ``model.init``. Then each key
            is split in two, the first for the start and the second for training.
        data: examples along the first axis.
        epochs: how often every example is seen.
        batch_size: examples a step.
        keys: for the order of the examples and for methods that draw, ``(keys,)``.
        evaluate: measure loss and accuracy on the test set after each epoch.
        mesh: devices that share the runs.

    Returns:
        ``loss`` and whatever else the method tells at each step, ``(*grid, keys, steps)``, the
        grid's axes in its order; ``test_loss`` and ``test_accuracy``, ``(*grid, keys, epochs)``,
        ``nan`` where nothing was evaluated.

    Raises:
        ValueError: a bad value in the grid, an empty axis, a single key in place of an array, or
            what ``train`` raises.
    """
    check_run(data, epochs, batch_size)
    axes = {name: [_plain(value) for value in values] for name, values in grid.items()}
    for name, values in axes.items():
        if not values:
            raise ValueError(f"the grid has no values of {name}: give at least one")
    if jnp.ndim(keys) != 1:
        raise ValueError(
            f"keys must be an array of keys, got shape {jnp.shape(keys)}: try jax.random.split(key)"
        )
    points = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    objectives = [build(**point).objective for point in points]
    test = data.test if evaluate and objectives[0] is not None else None
    sets = (on_device(data.train), None if test is None else on_device(test))
    make = params if callable(params) else None
    start = None if callable(params) else strongly_typed(params)

    devices = automatic(mesh)
    results: list[Any] = [None] * (len(points) * len(keys))
    for fixed, places in _by_program(points):
        runs = [(place * len(keys) + k, place, k) for place in places for k in range(len(keys))]
        names = [name for name in axes if name not in dict(fixed)]
        program, at_once = _program(
            build, fixed, make, epochs, batch_size, devices, len(runs), (names, start, sets, keys)
        )
        for first in range(0, len(runs), at_once):
            chunk = runs[first : first + at_once]
            filled = chunk + chunk[-1:] * (at_once - len(chunk))
            numbers = {name: _floats([points[p][name] for _, p, _ in filled]) for name in names}
            chosen = keys[np.array([k for *_, k in filled])]
            told = jax.tree.map(np.asarray, program(numbers, chosen, start, sets))
            for i, (where, *_) in enumerate(chunk):
                results[where] = {name: array[i] for name, array in told.items()}
    shape = (*(len(values) for values in axes.values()), len(keys))
    stacked = {name: np.stack([run[name] for run in results]) for name in results[0]}
    return {name: array.reshape(*shape, *array.shape[1:]) for name, array in stacked.items()}


def _plain(value: Any) -> Any:
    """A number of JAX or NumPy as one of Python."""
    return value.item() if isinstance(value, np.generic | np.ndarray | jax.Array) else value


def _floats(values: list[float]) -> jax.Array:
    return jnp.asarray(values, jnp.result_type(float))


def _by_program(points: list[dict]) -> Iterator[tuple[tuple, list[int]]]:
    """What a program keeps fixed, and the places of the points that it serves."""
    groups: dict[tuple, list[int]] = {}
    for place, point in enumerate(points):
        fixed = tuple((n, v) for n, v in point.items() if not isinstance(v, float) or v == 0)
        groups.setdefault(fixed, []).append(place)
    yield from groups.items()


def _program(
    build: Callable,
    fixed: tuple,
    make: Callable | None,
    epochs: int,
    batch_size: int,
    mesh: Mesh | None,
    runs: int,
    given: tuple,
) -> tuple[Callable, int]:
    """The compiled program, and how many runs it takes at once: as many as memory holds."""
    names, start, sets, keys = given
    device = (jax.devices() if mesh is None else mesh.devices.flat)[0]
    devices = 1 if mesh is None else mesh.size
    each = min(side_by_side(device), -(-runs // devices))
    while True:
        at_once = devices * each
        arguments = (
            {name: jax.ShapeDtypeStruct((at_once,), jnp.result_type(float)) for name in names},
            jax.ShapeDtypeStruct((at_once, *keys.shape[1:]), keys.dtype),
            *jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (start, sets)),
        )
        leaves, structure = jax.tree.flatten(arguments)
        program = _compile(
            build, fixed, make, epochs, batch_size, mesh, structure, tuple(leaves), precision()
        )
        if each == 1 or _needed(program) <= free_memory(device):
            return program, at_once
        each = -(-each // 2)


def side_by_side(device: Any) -> int:
    """How many runs a device may take at once, if its memory holds them."""
    return 1 if device.platform == "cpu" else MOST_AT_ONCE


def free_memory(device: Any) -> float:
    """Bytes that are free on a device, infinity where it does not tell."""
    told = device.memory_stats() or {}
    return told.get("bytes_limit", np.inf) - told.get("bytes_in_use", 0)


def _needed(program: Any) -> int:
    """Bytes that a compiled program takes beside its arguments."""
    plan = program.memory_analysis()
    return 0 if plan is None else plan.temp_size_in_bytes + plan.output_size_in_bytes


@lru_cache(maxsize=64)
def _compile(
    build: Callable,
    fixed: tuple,
    make: Callable | None,
    epochs: int,
    batch_size: int,
    mesh: Mesh | None,
    structure: Any,
    leaves: tuple,
    precision: tuple,
) -> Callable:
    """A program of the runs that it is given, each device taking its share."""
    arguments = jax.tree.unflatten(structure, leaves)

    def run(numbers: dict, key: jax.Array, start: Any, sets: tuple) -> dict:
        params = start
        if make is not None:
            init_key, key = jax.random.split(key)
            params = strongly_typed(make(init_key))
        return _whole_run(build(**numbers, **dict(fixed)), params, sets, epochs, batch_size, key)

    def share(numbers: dict, keys: jax.Array, start: Any, sets: tuple) -> dict:
        if len(keys) > 1:
            return jax.vmap(run, in_axes=(0, 0, None, None))(numbers, keys, start, sets)
        (numbers, key) = jax.tree.map(lambda array: array[0], (numbers, keys))
        return jax.tree.map(lambda array: array[None], run(numbers, key, start, sets))

    if mesh is not None:
        runs, everything = PartitionSpec(mesh.axis_names), PartitionSpec()
        share = jax.shard_map(
            share,
            mesh=mesh,
            in_specs=(runs, runs, everything, everything),
            out_specs=runs,
            check_vma=False,
        )
    return jax.jit(share).lower(*arguments).compile()


def _whole_run(
    optimizer: Optimizer, params: Any, sets: tuple, epochs: int, batch_size: int, key: jax.Array
) -> dict[str, Any]:
    train_set, test_set = sets

    def guarded(params: Any, state: Any, batch: Any, key: jax.Array) -> tuple[Any, Any, dict]:
        """Counters of the state go on in a run that stands still, so that all runs share them."""
        alive, inner = state
        moved, inner, info = optimizer.step(params, inner, batch, key)
        info = jax.tree.map(lambda told: jnp.where(alive, told, jnp.nan), info)
        alive &= jnp.isfinite(info["loss"])
        params = jax.tree.map(lambda new, old: jnp.where(alive, new, old), moved, params)
        return params, (alive, inner), info

    def epoch(carry: tuple, key: jax.Array) -> tuple[tuple, dict]:
        params, state, info = run_epoch(guarded, batch_size, carry[0], carry[1], train_set, key)
        measured: tuple[Any, Any] = (jnp.nan, jnp.nan)
        if test_set is not None:
            measured = measure(optimizer.objective, params, test_set)
        loss, accuracy = (jnp.where(state[0], value, jnp.nan) for value in measured)
        return (params, state), {**info, "test_loss": loss, "test_accuracy": accuracy}

    state = (jnp.asarray(True), strongly_typed(optimizer.init(params)))
    _, told = jax.lax.scan(epoch, (params, state), jax.random.split(key, epochs))
    after = {name: told.pop(name) for name in ("test_loss", "test_accuracy")}
    return {**{name: array.reshape(-1) for name, array in told.items()}, **after}
