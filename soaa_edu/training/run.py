"""``train``: whole epochs compiled, data on the device, each step's ``Info`` kept."""

import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from soaa_edu.data import Dataset, count_rows
from soaa_edu.optimizers import Optimizer
from soaa_edu.training.dry_run import note, rehearsing, shortened
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
from soaa_edu.training.history import History


def train(
    optimizer: Optimizer,
    params: Any,
    data: Dataset,
    *,
    epochs: int,
    batch_size: int,
    key: jax.Array,
    evaluate: bool = True,
    progress: bool = True,
    mesh: Mesh | None = None,
    resume: History | None = None,
) -> History:
    """Train for whole epochs, reshuffled each time, the last partial batch dropped.

    An epoch is one compiled program, reused as long as the optimizer and the shapes are the same.
    A run whose loss is no longer finite at the end of an epoch stops there; the steps it did not
    take are ``nan``.

    Args:
        optimizer: those with the same ``step`` are compiled once.
        params: any pytree of arrays.
        data: examples along the first axis.
        epochs: how often every example is seen.
        batch_size: examples a step.
        key: for the order of the examples and for methods that draw.
        evaluate: measure loss and accuracy on the test set after each epoch.
        progress: show a progress bar.
        mesh: devices that share each batch; everything else is held whole by each of them. They may
            belong to several processes (``jax.distributed``), which all call with the same
            arguments.
        resume: what an earlier call gave that had fewer ``epochs`` and was otherwise the same. The
            run goes on from its parameters and state, and gives the numbers of one that was never
            stopped. ``params`` then says only what form they have.

    Raises:
        ValueError: a batch larger than the data, or one that the devices cannot share evenly,
            inputs and targets of different lengths, no whole number of epochs or examples, or
            nothing to resume.
    """
    _check_resumed(resume, epochs)
    mesh = automatic(mesh)
    check_run(data, epochs, batch_size, 1 if mesh is None else mesh.size)
    train_set = copied_to(mesh, on_device(data.train))
    evaluated = None
    if evaluate and data.test is not None and optimizer.objective is not None:
        test_set = copied_to(mesh, on_device(data.test))
        evaluated = partial(_measure, _Static(optimizer.objective), batch=test_set)

    params = strongly_typed(params if resume is None else resume.params)
    begun = optimizer.init(params) if resume is None else resume.state
    params, state = copied_to(mesh, (params, strongly_typed(begun)))
    done = 0 if resume is None else len(resume.seconds)
    keys = jax.random.split(key, epochs)

    def drawn(epoch: int) -> tuple[jax.Array, jax.Array]:
        order = draw_order(keys[epoch], count_rows(train_set[0]), batch_size)
        return copied_to(mesh, shortened(order, axis=0))

    order = drawn(done)
    arguments = params, state, train_set, *order
    one_epoch = _compile(optimizer.step, mesh, *shapes(arguments), precision())
    note(one_epoch, arguments)
    nothing = np.full(epochs, np.nan)
    test_loss, test_accuracy, seconds = nothing.copy(), nothing.copy(), nothing.copy()
    infos: list[dict[str, np.ndarray]] = []
    if resume is not None:
        test_loss[:done], test_accuracy[:done] = resume.test_loss, resume.test_accuracy
        seconds[:done] = resume.seconds
        infos.append({"loss": resume.loss, **resume.info})
    bar = tqdm(
        range(done, epochs),
        desc="training",
        unit="epoch",
        disable=not progress,
        initial=done,
        total=epochs,
    )
    for epoch in bar:
        order = order if epoch == done else drawn(epoch)
        began = time.perf_counter()
        params, state, info = jax.block_until_ready(one_epoch(params, state, train_set, *order))
        seconds[epoch] = time.perf_counter() - began
        infos.append(jax.tree.map(np.asarray, info))
        if evaluated is not None:
            test_loss[epoch], test_accuracy[epoch] = evaluated(params)
        bar.set_postfix(loss=f"{infos[-1]['loss'].mean():.4g}")
        if rehearsing() is not None or not np.isfinite(infos[-1]["loss"][-1]):
            bar.close()
            break
    steps = epochs * (count_rows(train_set[0]) // batch_size)
    info = {name: _filled([part[name] for part in infos], steps) for name in infos[0]}
    loss = info.pop("loss")
    return History(loss, test_loss, test_accuracy, seconds, params, info, state)


def _check_resumed(resume: History | None, epochs: int) -> None:
    if resume is None:
        return
    if resume.state is None:
        raise ValueError(
            "this history has no optimizer state to resume from: it was loaded from a file, which "
            "holds none; load the state you saved beside it and give history._replace(state=state)"
        )
    if resume.diverged_at is not None:
        raise ValueError(f"this history diverged at step {resume.diverged_at}: start anew")
    if len(resume.seconds) >= epochs:
        raise ValueError(
            f"this history has {len(resume.seconds)} epochs already: epochs is the number of all, "
            f"got {epochs}"
        )


@lru_cache(maxsize=64)
def _compile(
    optimizer_step: Callable,
    mesh: Mesh | None,
    structure: Any,
    leaves: tuple,
    precision: tuple,
) -> Callable:
    arguments = jax.tree.unflatten(structure, leaves)
    results = None
    if mesh is not None:
        params, state, train_set, *_ = jax.tree.map(lambda x: x.sharding, arguments)
        results = (params, state, jax.tree.leaves(train_set)[0])
    epoch = partial(run_epoch, optimizer_step, mesh=mesh)
    return jax.jit(epoch, out_shardings=results).lower(*arguments).compile()


class _Static:
    """An objective as a static argument: equal to others by value, or if it can't, by identity."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective
        try:
            self.value = hash(objective)
        except TypeError:
            self.value = id(objective)

    def __hash__(self) -> int:
        return self.value

    def __eq__(self, other: Any) -> bool:
        same = self.objective is other.objective
        return same or (self.value == other.value and bool(self.objective == other.objective))


@partial(jax.jit, static_argnums=0)
def _measure(static: _Static, params: Any, batch: Any) -> tuple[Any, Any]:
    return measure(static.objective, params, batch)


def _filled(parts: list[np.ndarray], steps: int) -> np.ndarray:
    """All parts in a row, ``nan`` for the steps that were not taken."""
    taken = np.concatenate(parts)
    if len(taken) == steps:
        return taken
    return np.concatenate([taken, np.full(steps - len(taken), np.nan)])
