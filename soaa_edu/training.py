"""``train``: whole epochs compiled, data on the device, everything a method tells kept."""

import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from soaa_edu import checks
from soaa_edu.data import Dataset
from soaa_edu.objective import Objective, counts
from soaa_edu.optimizers import Optimizer
from soaa_edu.provenance import provenance
from soaa_edu.storage import StoredFileError, load_tree, save_tree


class History(NamedTuple):
    """What happened in a training run. A run that diverged holds infinity or ``nan`` from there.

    Attributes:
        loss: on the batch before each step, ``(steps,)``.
        test_loss: after each epoch, ``(epochs,)``; ``nan`` where nothing was evaluated.
        test_accuracy: share of right answers after each epoch, ``(epochs,)``; ``nan`` likewise,
            and where the targets are not labels.
        seconds: of each epoch's steps, compilation and evaluation left out, ``(epochs,)``.
        params: at the end.
        info: whatever else the method told at each step, name -> ``(steps,)``.
    """

    loss: np.ndarray
    test_loss: np.ndarray
    test_accuracy: np.ndarray
    seconds: np.ndarray
    params: Any
    info: dict[str, np.ndarray]

    @property
    def diverged_at(self) -> int | None:
        """The first step whose loss is not finite, or ``None``.

        The number of steps, where the last one of them left parameters that are not finite.
        """
        lost = np.flatnonzero(~np.isfinite(self.loss))
        if len(lost):
            return int(lost[0])
        sound = all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(self.params))
        return None if sound else len(self.loss)

    def save(self, path: Path | str) -> None:
        """Write everything, with its provenance, to an ``.npz`` file, whole or not at all."""
        save_tree(path, self._asdict(), provenance())

    @classmethod
    def load(cls, path: Path | str) -> "History":
        """Read what ``save`` wrote.

        Raises:
            soaa_edu.storage.StoredFileError: the file is missing, truncated or of another kind.
        """
        tree, _ = load_tree(path)
        if not isinstance(tree, dict) or set(tree) != set(cls._fields):
            raise StoredFileError(
                f"{path} holds something else: give a file that History.save wrote"
            )
        return cls(**tree)


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

    Raises:
        ValueError: a batch larger than the data, inputs and targets of different lengths, or no
            whole number of epochs or examples.
    """
    checks.whole("epochs", epochs)
    checks.whole("batch_size", batch_size)
    train_set = _on_device(data.train)
    steps = len(train_set[0]) // batch_size
    if steps == 0:
        raise ValueError(
            f"a batch of {batch_size} is larger than the {len(train_set[0])} training examples: "
            "take a smaller batch_size"
        )
    measure = None
    if evaluate and data.test is not None and optimizer.objective is not None:
        test_set = _on_device(data.test)
        measure = partial(_evaluate, optimizer.objective, batch=test_set)

    params = _strongly_typed(params)
    state = _strongly_typed(optimizer.init(params))
    keys = jax.random.split(key, epochs)
    run_epoch = _compiled_epoch(optimizer.step, batch_size, (params, state, train_set, keys[0]))
    nothing = np.full(epochs, np.nan)
    test_loss, test_accuracy, seconds = nothing.copy(), nothing.copy(), nothing.copy()
    told: list[dict[str, np.ndarray]] = []
    bar = tqdm(range(epochs), desc="training", unit="epoch", disable=not progress)
    for epoch in bar:
        began = time.perf_counter()
        params, state, info = jax.block_until_ready(
            run_epoch(params, state, train_set, keys[epoch])
        )
        seconds[epoch] = time.perf_counter() - began
        told.append(jax.tree.map(np.asarray, info))
        if measure is not None:
            test_loss[epoch], test_accuracy[epoch] = measure(params)
        bar.set_postfix(loss=f"{told[-1]['loss'].mean():.4g}")
        if not np.isfinite(told[-1]["loss"][-1]):
            bar.close()
            break
    info = {name: _filled([part[name] for part in told], epochs * steps) for name in told[0]}
    return History(info.pop("loss"), test_loss, test_accuracy, seconds, params, info)


def _epoch(
    optimizer_step: Callable,
    batch_size: int,
    params: Any,
    state: Any,
    train_set: Any,
    key: jax.Array,
) -> tuple[Any, Any, dict]:
    order_key, step_key = jax.random.split(key)
    examples = len(train_set[0])
    steps = examples // batch_size
    order = jax.random.permutation(order_key, examples)[: steps * batch_size]

    def step(carry: tuple, chosen: tuple) -> tuple[tuple, dict]:
        (params, state), (rows, key) = carry, chosen
        batch = jax.tree.map(lambda array: array[rows], train_set)
        params, state, info = optimizer_step(params, state, batch, key)
        return (params, state), info

    (params, state), info = jax.lax.scan(
        step,
        (params, state),
        (order.reshape(steps, batch_size), jax.random.split(step_key, steps)),
    )
    return params, state, info


def _compiled_epoch(optimizer_step: Callable, batch_size: int, arguments: tuple) -> Callable:
    leaves, structure = jax.tree.flatten(
        jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), arguments
        )
    )
    precision = tuple(
        getattr(jax.config, name) for name in ("jax_enable_x64", "jax_default_matmul_precision")
    )
    return _compile(optimizer_step, batch_size, structure, tuple(leaves), precision)


@lru_cache(maxsize=64)
def _compile(
    optimizer_step: Callable, batch_size: int, structure: Any, leaves: tuple, precision: tuple
) -> Callable:
    arguments = jax.tree.unflatten(structure, leaves)
    return jax.jit(partial(_epoch, optimizer_step, batch_size)).lower(*arguments).compile()


@partial(jax.jit, static_argnums=0)
def _evaluate(objective: Callable, params: Any, batch: Any) -> tuple[Any, Any]:
    if not isinstance(objective, Objective):
        return objective(params, batch), jnp.nan
    inputs, targets = batch
    outputs = objective.model(params, inputs)
    return objective.loss(outputs, targets), _accuracy(outputs, targets)


def _accuracy(outputs: Any, targets: Any) -> Any:
    labels = jnp.issubdtype(targets.dtype, jnp.integer) and targets.shape == outputs.shape[:-1]
    if not labels:
        return jnp.nan
    right = (jnp.argmax(outputs, axis=-1) == targets) & counts(targets)
    return jnp.sum(right) / jnp.maximum(jnp.sum(counts(targets)), 1)


def _on_device(pair: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    inputs, targets = (jnp.asarray(array) for array in pair)
    if len(inputs) != len(targets):
        raise ValueError(f"{len(inputs)} inputs need as many targets, got {len(targets)}")
    return inputs, targets


def _strongly_typed(tree: Any) -> Any:
    """The tree as arrays without weak types, which a compiled program tells from strong ones."""
    arrays = jax.tree.map(jnp.asarray, tree)
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), arrays)


def _filled(parts: list[np.ndarray], steps: int) -> np.ndarray:
    """All parts in a row, ``nan`` for the steps that were not taken."""
    taken = np.concatenate(parts)
    if len(taken) == steps:
        return taken
    return np.concatenate([taken, np.full(steps - len(taken), np.nan)])
