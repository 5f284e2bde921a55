"""``sweep``: one compiled program trains a whole grid of hyperparameters and seeds."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import product
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from soaa_edu.data import Dataset, count_rows
from soaa_edu.optimizers import Optimizer
from soaa_edu.training.dry_run import filled, is_quick, note, rehearsing, shortened
from soaa_edu.training.epoch import (
    automatic,
    check_run,
    copied_to,
    draw_order,
    measure,
    on_device,
    precision,
    run_epoch,
    shapes,
    strongly_typed,
)
from soaa_edu.training.memory import exhausted, free_memory, needed

MOST_AT_ONCE = 256
MEASURED = ("test_loss", "test_accuracy")
"""What is measured after each epoch; all else is at each step."""


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

    Side by side, a method renews its preconditioner as rarely as it does alone. Where the grid
    makes the interval a float, it does so in the steps in which one of the runs is due.

    A run whose loss is no longer finite stands still from that step on, and all its results from
    there is ``nan``.

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
        mesh: devices that share the runs, of one process or of several (``jax.distributed``), which
            all call with the same arguments and get the same answer.

    Returns:
        ``loss`` and what else a method's ``Info`` has at each step, ``(*grid, keys, steps)``, the
        grid's axes in its order; ``test_loss`` and ``test_accuracy``, ``(*grid, keys, epochs)``.
        ``nan`` where a run has none.

    Raises:
        MemoryError: a single run needs more memory than a device has.
        ValueError: a bad value in the grid, an empty axis, a single key in place of an array, or
            what ``train`` raises.
    """
    check_run(data, epochs, batch_size)
    keys = jnp.asarray(keys)
    _check_keys(keys)
    axes = {name: [_plain(value) for value in values] for name, values in grid.items()}
    for name, values in axes.items():
        if not values:
            raise ValueError(f"the grid has no values of {name}: give at least one")
    points = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    for point in points:
        build(**point)

    mesh = automatic(mesh)
    train_set = on_device(data.train)
    test_set = on_device(data.test) if evaluate and data.test is not None else None
    data_sets = copied_to(mesh, (train_set, test_set))
    start = params if callable(params) else strongly_typed(params)
    of_keys = _stacked(
        [_run_start(start, key, epochs, count_rows(train_set[0]), batch_size) for key in keys]
    )
    steps = epochs * (count_rows(train_set[0]) // batch_size)

    results = {}
    for fixed, places in _by_program(points).items():
        runs = [(place, k) for place in places for k in range(len(keys))]
        numbers = {
            name: np.asarray([points[place][name] for place, _ in runs])
            for name in axes
            if name not in dict(fixed)
        }
        which = np.array([k for _, k in runs])
        plan = Plan(build, fixed, jax.random.key_impl(keys), mesh)
        found = _train_all(plan, numbers, which, of_keys, data_sets)
        for i, run in enumerate(runs):
            results[run] = {
                name: filled(array[i], epochs if name in MEASURED else steps)
                for name, array in found.items()
            }
    return _in_order(results, (*map(len, axes.values()), len(keys)))


class RunStart(NamedTuple):
    """Where the run of a key starts, and what its steps take.

    They wait in the host's memory, where runs are picked from them without a program.

    Attributes:
        params: at the start.
        order: the examples of each step, ``(epochs, steps, batch_size)``.
        keys: the data of one for each step, ``(epochs, steps, ...)``.
    """

    params: Any
    order: Any
    keys: Any


class Plan(NamedTuple):
    """What is fixed in a compiled program.

    Attributes:
        build: ``(**point) -> Optimizer``.
        fixed: the part of every point that is not given as arrays, pairs of name and value.
        kind: of the keys.
        mesh: devices that share the runs.
    """

    build: Callable[..., Optimizer]
    fixed: tuple
    kind: Any
    mesh: Mesh | None


def side_by_side(device: Any) -> int:
    """How many runs a device may take at once, if its memory holds them."""
    on_cpu = device.platform == "cpu" and rehearsing() is None
    return 1 if on_cpu else MOST_AT_ONCE


def _check_keys(keys: jax.Array) -> None:
    row = keys.ndim == 1 and len(keys) > 0
    if not (row and jnp.issubdtype(keys.dtype, jax.dtypes.prng_key)):
        raise ValueError(
            f"keys must be a row of keys, got {keys.dtype} of shape {keys.shape}: "
            "try jax.random.split(jax.random.key(0), 3)"
        )


def _plain(value: Any) -> Any:
    """A number of JAX or NumPy as one of Python."""
    return value.item() if isinstance(value, np.generic | np.ndarray | jax.Array) else value


def _by_program(points: list[dict]) -> dict[tuple, list[int]]:
    """What a program keeps fixed -> the places of the points that it serves."""
    groups: dict[tuple, list[int]] = {}
    for place, point in enumerate(points):
        fixed = tuple((n, v) for n, v in point.items() if not isinstance(v, float) or v == 0)
        groups.setdefault(fixed, []).append(place)
    return groups


def _in_order(results: dict[tuple, dict], shape: tuple) -> dict[str, np.ndarray]:
    """Results of runs by their place and key, as arrays of such a shape."""
    runs = [results[run] for run in sorted(results)]
    stacked = {
        name: np.stack([run.get(name, np.full_like(run["loss"], np.nan)) for run in runs])
        for name in dict.fromkeys(name for run in runs for name in run)
    }
    return {name: array.reshape(*shape, -1) for name, array in stacked.items()}


def _run_start(start: Any, key: jax.Array, epochs: int, examples: int, batch_size: int) -> RunStart:
    if callable(start):
        init_key, key = jax.random.split(key)
        start = strongly_typed(jax.jit(start)(init_key))
    drawn = [draw_order(k, examples, batch_size) for k in jax.random.split(key, epochs)]
    order, keys = _stacked([(rows, jax.random.key_data(keys)) for rows, keys in drawn])
    if rehearsing() is not None:
        order, keys = order[:1], keys[:1]
    return RunStart(start, *shortened((order, keys), axis=1))


def _stacked(trees: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *parts: np.stack(parts), *trees)


def _train_all(
    plan: Plan,
    numbers: dict[str, np.ndarray],
    which: np.ndarray,
    of_keys: RunStart,
    data_sets: tuple,
) -> dict[str, np.ndarray]:
    """The results of every run, ``(runs, steps)`` or ``(runs, epochs)``, in chunks that fit.

    ``which`` says with which key a run begins, ``(runs,)``.
    """
    runs = len(which)

    def arguments(first: int, at_once: int) -> tuple:
        """Those of so many runs; the last one is repeated where no more are left."""
        chosen = np.minimum(np.arange(first, first + at_once), runs - 1)
        own = jax.tree.map(lambda array: array[chosen], numbers)
        begun = jax.tree.map(lambda array: array[which[chosen]], of_keys)
        return (*copied_to(plan.mesh, jax.tree.map(jnp.asarray, (own, begun))), data_sets)

    device, devices = jax.devices()[0], 1
    if plan.mesh is not None:
        device, devices = plan.mesh.local_devices[0], plan.mesh.size
    program_key = plan, *shapes(arguments(0, devices)), precision()
    at_once = max(_evenly(runs, devices, side_by_side(device)), _most_compiled.get(program_key, 0))
    while True:
        try:
            found = _in_chunks(plan, arguments, runs, at_once, free_memory(device))
            break
        except MemoryError:
            if at_once == devices:
                raise
            at_once = _evenly(runs, devices, -(-at_once // (2 * devices)))
    _most_compiled[program_key] = at_once
    return jax.tree.map(lambda *parts: np.concatenate(parts)[:runs], *found)


_most_compiled: dict[tuple, int] = {}
"""What distinguishes a program but the number of its runs -> the largest number that fitted.

Some runs in vain cost less than compiling a smaller program.
"""


def _evenly(runs: int, devices: int, most: int) -> int:
    """How many runs all devices take at once, in the fewest chunks, with ``most`` for each."""
    chunks = -(-runs // (devices * most))
    return devices * -(-runs // (devices * chunks))


def _in_chunks(
    plan: Plan, arguments: Callable[[int, int], tuple], runs: int, at_once: int, free: float
) -> list[dict[str, np.ndarray]]:
    """The results of each chunk.

    Raises:
        MemoryError: there is too little for so many runs at once.
    """
    try:
        program = _compile(plan, *shapes(arguments(0, at_once)), precision())
        if rehearsing() is not None:
            return [_rehearsed(program, arguments(0, at_once), at_once)] * -(-runs // at_once)
        alone = 1 if plan.mesh is None else plan.mesh.size
        if at_once > alone and needed(program) > free:
            raise MemoryError
        return [
            jax.tree.map(np.asarray, program(*arguments(first, at_once)))
            for first in range(0, runs, at_once)
        ]
    except jax.errors.JaxRuntimeError as error:
        if exhausted(error):
            raise MemoryError(
                "the device has too little memory for a run of this sweep: take a smaller "
                "batch_size or network, or evaluate=False"
            ) from error
        raise


def _rehearsed(program: Any, arguments: tuple, runs: int) -> dict[str, np.ndarray]:
    """The results of a program's first steps, or zeros where it would take long."""
    note(program, arguments, runs)
    if is_quick(program):
        return jax.tree.map(np.asarray, program(*arguments))
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), program.out_info)


@lru_cache(maxsize=64)
def _compile(plan: Plan, structure: Any, leaves: tuple, precision: tuple) -> Callable:
    """A program of all the runs that it is given, each device taking its share.

    Numbers are weakly typed, as Python's are: they never change the type of the parameters.
    """
    numbers, begun, data_sets = jax.tree.unflatten(structure, leaves)
    weak = jax.tree.map(lambda x: x.update(weak_type=True), numbers)

    def share(numbers: dict, begun: RunStart, data_sets: tuple) -> dict:
        def run(numbers: dict, begun: RunStart) -> dict:
            return _run(plan, numbers, begun, *data_sets)

        if len(begun.keys) > 1:
            return jax.vmap(run)(numbers, begun)
        found = run(*jax.tree.map(lambda array: array[0], (numbers, begun)))
        return jax.tree.map(lambda array: array[None], found)

    if plan.mesh is None:
        return jax.jit(share).lower(weak, begun, data_sets).compile()
    runs, whole = PartitionSpec(plan.mesh.axis_names), PartitionSpec()
    shared = jax.shard_map(
        share,
        mesh=plan.mesh,
        in_specs=(runs, runs, whole),
        out_specs=runs,
        check_vma=False,
    )
    on_all = NamedSharding(plan.mesh, whole)
    return jax.jit(shared, out_shardings=on_all).lower(weak, begun, data_sets).compile()


def _run(
    plan: Plan, numbers: dict, begun: RunStart, train_set: tuple, test_set: tuple | None
) -> dict[str, Any]:
    """One run: its results at each step, ``(steps,)``, and after each epoch, ``(epochs,)``."""
    optimizer = plan.build(**numbers, **dict(plan.fixed))

    def guarded(params: Any, state: Any, batch: Any, key: jax.Array) -> tuple[Any, Any, dict]:
        """Counters of the state go on in a run that stands still, so that all runs share them."""
        alive, inner = state
        moved, inner, info = optimizer.step(params, inner, batch, key)
        alive &= jnp.isfinite(info["loss"])
        params = jax.tree.map(lambda new, old: jnp.where(alive, new, old), moved, params)
        info = jax.tree.map(lambda x: jnp.where(alive, x, jnp.nan), info)
        return params, (alive, inner), info

    def epoch(carry: tuple, drawn: tuple) -> tuple[tuple, tuple]:
        (params, state), (order, keys) = carry, drawn
        params, state, info = run_epoch(guarded, params, state, train_set, order, keys)
        measured: tuple[Any, Any] = (jnp.nan, jnp.nan)
        if test_set is not None and optimizer.objective is not None:
            measured = measure(optimizer.objective, params, test_set)
        alive, _ = state
        loss, accuracy = (jnp.where(alive, value, jnp.nan) for value in measured)
        return (params, state), (info, {"test_loss": loss, "test_accuracy": accuracy})

    state = (jnp.asarray(True), strongly_typed(optimizer.init(begun.params)))
    drawn = begun.order, jax.random.wrap_key_data(begun.keys, impl=plan.kind)
    _, (steps, epochs) = jax.lax.scan(epoch, (begun.params, state), drawn)
    return {**jax.tree.map(lambda x: x.reshape(-1), steps), **epochs}
