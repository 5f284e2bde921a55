"""A race: methods that learn the same tasks, each tuned on as many tries, on the same fresh seeds.

A study says which tasks, which methods, how each is built and where its search begins; its cells,
one for each method on each task, and the cells that time a step are made here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from soaa_edu.data import Dataset
from soaa_edu.engine import Cell
from soaa_edu.objective import Objective
from soaa_edu.optimizers import Optimizer
from soaa_edu.studies.results import REFINED, name
from soaa_edu.studies.runs import epochs_in_turn, state_bytes
from soaa_edu.studies.searches import Grid, middle, refined, tuned

Build = Callable[..., Optimizer]
"""``(method, task, **point) -> Optimizer``."""
ROUNDS = 5


class Task(NamedTuple):
    """What is learned, from what, and for how long.

    Attributes:
        labels: of its cells, such as ``{"network": "mlp", "batch": 64}``.
        objective: the network and its loss.
        load: gives the data.
        examples: in its training set.
        epochs: passes over them.
        batch_size: examples a step.
        last: steps at the end whose mean loss counts, ``None`` for the last epoch's.
    """

    labels: Mapping[str, Any]
    objective: Objective
    load: Callable[[], Dataset]
    examples: int
    epochs: int
    batch_size: int
    last: int | None = None

    @property
    def steps_an_epoch(self) -> int:
        """Of whole batches."""
        return self.examples // self.batch_size

    @property
    def steps(self) -> int:
        """Of a whole run."""
        return self.epochs * self.steps_an_epoch

    def init(self) -> Any:
        """Parameters at the start, always the same."""
        model: Any = self.objective.model
        return model.init(jax.random.key(0))


def races(
    tasks: Iterable[Task],
    methods: Sequence[str],
    build: Build,
    grid: Callable[[str], Grid],
    *,
    seeds: int,
    tuning_seeds: int = 1,
    share: Callable[[Task], float] = lambda task: 1.0,
) -> dict[str, Cell]:
    """A cell for each method on each task: its search, and runs of the best point on fresh seeds.

    Args:
        tasks: to learn.
        methods: that learn them.
        build: makes a method for a task, at a point of its grid.
        grid: a method's points.
        seeds: of the runs at the best point.
        tuning_seeds: of the search, others than those.
        share: of the study's time that a cell on a task takes.
    """
    return {
        name(method=method, **task.labels): Cell(
            partial(
                learn, method, task, build, grid(method), seeds=seeds, tuning_seeds=tuning_seeds
            ),
            share=share(task),
        )
        for task in tasks
        for method in methods
    }


def finer_races(
    tasks: Iterable[Task], methods: Sequence[str], build: Build, *, seeds: int, tuning_seeds: int
) -> dict[str, Cell]:
    """Cells that search again around what those of ``races`` found, on a grid finer by √2."""

    def again(method: str, task: Task, found: dict[str, Any]) -> dict[str, Any]:
        made = partial(build, method, task)
        lengths = _lengths(task)
        return refined(made, task.load(), found, seeds=seeds, tuning_seeds=tuning_seeds, **lengths)

    cells = {}
    for task in tasks:
        for method in methods:
            coarse = name(method=method, **task.labels)
            cells[f"{coarse} {name(**REFINED)}"] = Cell(
                partial(again, method, task), needs=(coarse,)
            )
    return cells


def learn(
    method: str, task: Task, build: Build, grid: Grid, *, seeds: int, tuning_seeds: int = 1
) -> dict[str, Any]:
    """The numbers of a cell of ``races``."""
    return tuned(
        partial(build, method, task),
        grid,
        task.load(),
        seeds=seeds,
        tuning_seeds=tuning_seeds,
        **_lengths(task),
    )


def _lengths(task: Task) -> dict[str, Any]:
    return {"epochs": task.epochs, "batch_size": task.batch_size, "last": task.last}


def costs(
    tasks: Iterable[Task],
    methods: Sequence[str],
    build: Build,
    grid: Callable[[str], Grid],
    measure: Callable[..., dict[str, Any]],
    *,
    share: float = 1.0,
) -> dict[str, Cell]:
    """A cell for each task, in which the methods are timed beside each other.

    Args:
        tasks: whose steps are timed.
        methods: each in the middle of its grid.
        build: as for ``races``.
        grid: a method's points.
        measure: ``epoch_costs`` or ``step_costs`` with its steps.
        share: of the study's time that a cell takes.
    """
    return {
        name(cost="step", **task.labels): Cell(
            partial(measure, task, {m: build(m, task, **middle(grid(m))) for m in methods}),
            share=share,
        )
        for task in tasks
    }


def epoch_costs(
    task: Task, optimizers: Mapping[str, Optimizer], *, steps: int = 0
) -> dict[str, Any]:
    """Seconds of a step in epochs of so many, for each of three repeats in turn, and bytes.

    ``steps`` of zero are a whole epoch's.
    """
    data = task.load()
    size = (steps or task.steps_an_epoch) * task.batch_size
    few = Dataset(jax.tree.map(lambda array: array[:size], data.train), data.test)
    taken = epochs_in_turn(dict(optimizers), few, task.batch_size)
    an_epoch = size // task.batch_size
    return {
        "seconds_a_step": {m: [s / an_epoch for s in times] for m, times in taken.items()},
        **_bytes(task, optimizers),
    }


def step_costs(task: Task, optimizers: Mapping[str, Optimizer], *, steps: int) -> dict[str, Any]:
    """Seconds of a step on one batch for each of five repeats in turn; bytes, and their peak."""
    params = task.init()
    batch = jax.tree.map(lambda array: jnp.asarray(array[: task.batch_size]), task.load().train)
    programs = {m: _same_batch_again(o, params, batch, steps) for m, o in optimizers.items()}

    def seconds(method: str) -> float:
        state = optimizers[method].init(params)
        began = perf_counter()
        jax.block_until_ready(programs[method](params, state, batch))
        return (perf_counter() - began) / steps

    rounds = [{method: seconds(method) for method in optimizers} for _ in range(ROUNDS + 1)][1:]
    return {
        "seconds_a_step": {method: [times[method] for times in rounds] for method in optimizers},
        "peak_bytes": {method: peak_bytes(program) for method, program in programs.items()},
        **_bytes(task, optimizers),
    }


def _bytes(task: Task, optimizers: Mapping[str, Optimizer]) -> dict[str, Any]:
    params = task.init()
    return {
        "bytes": {method: state_bytes(o, params) for method, o in optimizers.items()},
        "parameter_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
    }


def _same_batch_again(optimizer: Optimizer, params: Any, batch: Any, steps: int) -> Any:
    """A compiled program of ``steps`` steps."""

    def loop(params: Any, state: Any, batch: Any) -> tuple[Any, Any]:
        def step(carry: tuple, key: Any) -> tuple[tuple, None]:
            params, state, _ = optimizer.step(carry[0], carry[1], batch, key)
            return (params, state), None

        keys = jax.random.split(jax.random.key(0), steps)
        return jax.lax.scan(step, (params, state), keys)[0]

    return jax.jit(loop).lower(params, optimizer.init(params), batch).compile()


def peak_bytes(program: Any) -> int:
    """What XLA plans to hold at most while a compiled program runs."""
    plan = program.memory_analysis()
    return int(plan.argument_size_in_bytes + plan.output_size_in_bytes + plan.temp_size_in_bytes)
