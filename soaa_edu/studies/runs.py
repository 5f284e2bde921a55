"""What studies on MNIST share: the slides' network, runs, tuning, timing, and their pictures."""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes

from soaa_edu import plotting
from soaa_edu.data import Dataset, mnist
from soaa_edu.models import mlp
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.optimizers import Optimizer
from soaa_edu.studies.results import capped, over_runs
from soaa_edu.training import History, train

BATCH_SIZE = 64
MOST_POINTS = 140
LIBRARY_CUTOFF = "undamped_9.5e-03"
SLIDES_STEPS = 7 * 937
SLIDES = {
    "sgd": {"loss": 0.2121, "accuracy": 0.9138, "seconds": 222},
    LIBRARY_CUTOFF: {"loss": 2.305, "accuracy": 0.1028, "seconds": 21_257},
    "damped": {"loss": 0.2837, "accuracy": 0.9003, "seconds": 34_933},
    "hessian_free": {"loss": 0.2614, "accuracy": 0.9099, "seconds": 244},
    "gauss_newton": {"loss": 0.2049, "accuracy": 0.9239, "seconds": 246},
}
"""Training loss, test accuracy and seconds on a V100 that the slides' report gives."""

STYLES: dict[str, dict[str, str]] = {
    "sgd": {"label": "SGD, 0.1", "color": plotting.BLUE},
    "slow_sgd": {"label": "SGD, 0.5/32", "color": plotting.SKY, "linestyle": "--"},
    "matched_sgd": {"label": "SGD, 0.5/4", "color": plotting.SKY},
    "damped": {"label": "Newton, λ = 32", "color": plotting.VERMILLION},
    LIBRARY_CUTOFF: {"label": "Newton, λ = 0", "color": plotting.PURPLE},
    "hessian_free": {"label": "Hessian-free, λ = 32", "color": plotting.ORANGE},
    "gauss_newton": {"label": "Gauss-Newton, λ = 4", "color": plotting.GREEN},
    "tuned_sgd": {"label": "SGD, tuned", "color": plotting.BLUE, "linestyle": "--"},
    "tuned_adam": {"label": "Adam, tuned", "color": plotting.BLACK, "linestyle": "--"},
    "tuned_gauss_newton": {
        "label": "Gauss-Newton, tuned λ",
        "color": plotting.GREEN,
        "linestyle": "--",
    },
    "levenberg_marquardt": {
        "label": "Gauss-Newton, Levenberg-Marquardt",
        "color": plotting.PURPLE,
        "linestyle": "-.",
    },
    "trust_region": {
        "label": "Newton-Lanczos trust region",
        "color": plotting.VERMILLION,
        "linestyle": ":",
    },
}
"""How each method looks in every picture."""


def slides_objective() -> Objective:
    """784-10-10 with ReLU and softmax cross-entropy."""
    return Objective(mlp([784, 10, 10]), softmax_cross_entropy)


def training_run(
    optimizer: Optimizer,
    seed: int,
    data: Dataset,
    epochs: int,
    batch_size: int = BATCH_SIZE,
    last: int | None = None,
    curves: bool = True,
) -> dict[str, Any]:
    """One run as plain numbers, its curves in stretches; methods share start and order by seed.

    The final loss is the mean over the ``last`` steps, or over the last epoch.
    """
    init_key, train_key = jax.random.split(jax.random.key(seed))
    history = train(
        optimizer,
        optimizer.objective.model.init(init_key),
        data,
        epochs=epochs,
        batch_size=batch_size,
        key=train_key,
        progress=False,
    )
    return {
        **record(history, last or len(history.loss) // epochs, curves),
        "seconds": history.seconds.sum(),
    }


def seconds_of_steps(optimizer: Optimizer, steps: int, repeats: int) -> np.ndarray:
    """Seconds of a step, the mean over an epoch of ``steps``, for each repeat after a first."""
    key = jax.random.key(0)
    history = train(
        optimizer,
        optimizer.objective.model.init(key),
        mnist(steps * BATCH_SIZE),
        epochs=repeats + 1,
        batch_size=BATCH_SIZE,
        key=key,
        evaluate=False,
        progress=False,
    )
    return history.seconds[1:] / steps


def seconds_of_dispatched_steps(optimizer: Optimizer, steps: int, repeats: int) -> np.ndarray:
    """Seconds of a step that the host sends to the device one by one, reading each loss."""
    key = jax.random.key(0)
    images, labels = mnist(BATCH_SIZE).train
    batch = (jnp.asarray(images), jnp.asarray(labels))
    params = optimizer.objective.model.init(key)
    state = optimizer.init(params)
    step = jax.jit(optimizer.step)
    seconds = []
    for _ in range(repeats + 1):
        began = perf_counter()
        for _ in range(steps):
            params, state, info = step(params, state, batch, key)
            float(info["loss"])
        seconds.append((perf_counter() - began) / steps)
    return np.array(seconds[1:])


def epochs_in_turn(
    optimizers: dict[str, Optimizer], data: Dataset, batch_size: int
) -> dict[str, list[float]]:
    """Seconds of an epoch of each method, taking turns, for three repeats after a first."""
    key = jax.random.key(1)

    def seconds(optimizer: Optimizer) -> float:
        params = optimizer.objective.model.init(jax.random.key(0))
        history = train(
            optimizer,
            params,
            data,
            epochs=1,
            batch_size=batch_size,
            key=key,
            evaluate=False,
            progress=False,
        )
        return float(history.seconds[0])

    rounds = [{name: seconds(o) for name, o in optimizers.items()} for _ in range(4)][1:]
    return {name: [times[name] for times in rounds] for name in optimizers}


def record(history: History, last: int, curves: bool = True) -> dict[str, Any]:
    """A run as plain numbers, its curves in stretches; the final loss over the last steps."""
    ends = {
        "steps": len(history.loss),
        "final_loss": history.loss[-last:].mean(),
        "diverged_at": history.diverged_at,
        "test_loss": history.test_loss,
        "test_accuracy": history.test_accuracy,
    }
    if not curves:
        return ends
    points = -(-ends["steps"] // -(-ends["steps"] // MOST_POINTS))
    return {
        **ends,
        "loss": plotting.binned(history.loss, points),
        "info": {name: plotting.binned(told, points) for name, told in history.info.items()},
    }


def one_program(build: Callable[[Any], Optimizer]) -> Callable[[float], Optimizer]:
    """``build`` with its number kept in the state: all values share one compiled program."""

    def step(params: Any, state: Any, batch: Any, key: Any) -> tuple[Any, Any, dict]:
        value, inner = state
        params, inner, info = build(value).step(params, inner, batch, key)
        return params, (value, inner), info

    def at(value: float) -> Optimizer:
        optimizer = build(value)

        def init(params: Any) -> tuple[jax.Array, Any]:
            return jnp.asarray(value, jnp.float32), optimizer.init(params)

        return Optimizer(init, step, optimizer.objective)

    return at


def state_bytes(optimizer: Optimizer, params: Any) -> int:
    """What the state of an optimizer takes in memory."""
    shapes = jax.tree.leaves(jax.eval_shape(optimizer.init, params))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in shapes)


def over_tuned_seeds(results: dict, method: str, batch_size: int, key: str) -> np.ndarray:
    """A tuned method's numbers at a batch size, seeds along the first axis."""
    return over_runs(results, f"{method}_at_{batch_size}", key)


def over_seeds(results: dict, method: str, key: str) -> np.ndarray:
    """A method's numbers, seeds along the first axis."""
    found = (cell for name, cell in results["cells"].items() if name.rpartition(".")[0] == method)
    return np.array([cell[key] for cell in found], float)


def final_loss(results: dict, method: str) -> np.ndarray:
    """Mean loss of the last epoch, one for each seed; a diverged run counts as 10."""
    return capped(over_seeds(results, method, "final_loss"))


def final_accuracy(results: dict, method: str) -> np.ndarray:
    """Test accuracy after the last epoch, one for each seed; a diverged run counts as 0."""
    return np.nan_to_num(over_seeds(results, method, "test_accuracy")[:, -1])


def seconds_a_step(results: dict, method: str) -> np.ndarray:
    """Seconds of a step, one for each timed repeat."""
    return np.array(results["cells"]["timing"]["seconds_a_step"][method])


def loss_against_steps(axes: Axes, results: dict, methods: Sequence[str]) -> None:
    """Training loss, means over stretches of steps, against steps."""
    for method in methods:
        loss = over_seeds(results, method, "loss")
        x = middles(loss.shape[1], int(over_seeds(results, method, "steps")[0]))
        plotting.band(axes, x, loss, **STYLES[method])
    axes.set(xlabel="step", ylabel="training loss (nats)")
    axes.legend()


def loss_against_seconds(axes: Axes, results: dict, methods: Sequence[str]) -> None:
    """The same loss against seconds, at the timed seconds of a step."""
    for method in methods:
        loss = over_seeds(results, method, "loss")
        x = middles(loss.shape[1], int(over_seeds(results, method, "steps")[0]))
        x = x * seconds_a_step(results, method).mean()
        plotting.band(axes, x, loss, **STYLES[method])
    axes.set(xlabel="seconds, compilation left out", ylabel="training loss (nats)", xscale="log")
    axes.legend()


def accuracy_against_epochs(axes: Axes, results: dict, methods: Sequence[str]) -> None:
    """Test accuracy after each epoch."""
    for method in methods:
        accuracy = over_seeds(results, method, "test_accuracy")
        x = np.arange(1, accuracy.shape[1] + 1)
        plotting.band(axes, x, accuracy, marker="o", markersize=4, **STYLES[method])
    axes.set(xlabel="epoch", ylabel="test accuracy", xticks=x)
    axes.legend()


def middles(points: int, steps: int) -> np.ndarray:
    """The middles, in steps, of as many consecutive stretches of a run."""
    return plotting.binned(np.arange(steps) + 0.5, points)
