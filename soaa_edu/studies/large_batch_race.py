"""K-FAC, Shampoo, SOAP and PSGD against Adam at batch 4,096, on an MLP, a CNN and a ViT.

No claim of the sources hangs on this study; claim P1 sweeps the batch size. Every method has one
number to tune, with the same nine tries. All else is the library's default, but preconditioners are
renewed every 5 steps, since an epoch has 14, and K-FAC clips: in a first try without it, every run
on the CNN with a damping below 0.1 was lost.

At the gpu scale the MLP and the ViT are trained for 20 epochs; the study of batch sizes has the
CNN, and larger networks. A method on a network is one program of nine runs, for its tries and its
seeds. By arithmetic, not measured: 10 programs with 5 to 10 seconds for their runs, and 10 more to
time single runs; 9 minutes of an H100.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from soaa_edu import plotting
from soaa_edu.data import Dataset, mnist
from soaa_edu.engine import device_note
from soaa_edu.models import Model, cnn, mlp, vit
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.optimizers import Optimizer, first_order, kfac, psgd, shampoo, soap
from soaa_edu.studies import results as stored
from soaa_edu.studies.runs import epochs_in_turn, middles, state_bytes
from soaa_edu.studies.searches import grid_around, tuned_runs
from soaa_edu.studies.tables import as_text
from soaa_edu.studies.verdicts import Verdict, mean_and_spread, one_answer

TITLE = "K-FAC, Shampoo, SOAP and PSGD against Adam at batch 4,096"
CLAIMS = ()
RENEW_EVERY = 5
KFAC_LEARNING_RATE = 0.1
KFAC_CLIP = 1e-2
METHODS = {
    "adam": {"label": "Adam", "color": plotting.BLACK, "linestyle": "--"},
    "kfac": {"label": "K-FAC", "color": plotting.BLUE},
    "shampoo": {"label": "Shampoo", "color": plotting.VERMILLION},
    "soap": {"label": "SOAP", "color": plotting.GREEN},
    "psgd": {"label": "PSGD", "color": plotting.PURPLE},
}
"""How each method looks in every picture."""
MODELS = {"mlp": "MLP 784-256-256-10, tanh", "cnn": "CNN", "vit": "ViT"}


class Settings(NamedTuple):
    """What a scale runs, and what it costs on two CPU cores."""

    train_size: int | None
    batch_size: int
    epochs: dict[str, int]
    tuning_values: int
    seeds: int
    timed_steps: int
    minutes: float


SCALES = {
    "quick": Settings(2048, 256, {"mlp": 1}, 1, 2, 8, 1.0),
    "laptop": Settings(None, 4096, {"mlp": 3, "cnn": 3, "vit": 1}, 9, 3, 5, 75.0),
    "gpu": Settings(None, 4096, {"mlp": 20, "vit": 20}, 9, 5, 140, 9.0),
}


def network(name: str) -> Model:
    """One of the three networks, at its size in the book."""
    if name == "mlp":
        return mlp([784, 256, 256, 10], jnp.tanh)
    return cnn() if name == "cnn" else vit()


def build(method: str, objective: Objective, value: float) -> Optimizer:
    """A method with its tuned number: the damping of K-FAC, the learning rate of the others."""
    if method == "kfac":
        return kfac(
            objective,
            learning_rate=KFAC_LEARNING_RATE,
            damping=value,
            invert_every=RENEW_EVERY,
            kl_clip=KFAC_CLIP,
        )
    transformations: dict[str, Callable] = {
        "adam": optax.adam,
        "shampoo": partial(shampoo, refresh_every=RENEW_EVERY),
        "soap": partial(soap, refresh_every=RENEW_EVERY),
        "psgd": psgd,
    }
    return first_order(objective, transformations[method](value))


MIDDLES = {"adam": 3e-3, "kfac": 0.03, "shampoo": 3e-3, "soap": 3e-3, "psgd": 3e-3}
GRID_RATIO = 2.0


def cells(settings: Settings) -> dict[str, Callable[[], Any]]:
    """One cell for each method on each network, and one for the timing of each network."""
    data = mnist(settings.train_size)
    objectives = {name: Objective(network(name), softmax_cross_entropy) for name in settings.epochs}
    found: dict[str, Callable[[], Any]] = {}
    for model, objective in objectives.items():
        for method in METHODS:
            found[f"{method}_on_{model}"] = partial(
                tuned_runs,
                partial(build, method, objective),
                grid_around(MIDDLES[method], GRID_RATIO, settings.tuning_values),
                data,
                epochs=settings.epochs[model],
                batch_size=settings.batch_size,
                seeds=settings.seeds,
            )
    for model, objective in objectives.items():
        found[f"cost_on_{model}"] = partial(_costs, objective, settings, data)
    return found


def _costs(objective: Any, settings: Settings, data: Dataset) -> dict[str, Any]:
    """Seconds of a step, one for each of three repeats in turn, and bytes of state."""
    params = objective.model.init(jax.random.key(0))
    size = settings.timed_steps * settings.batch_size
    few = Dataset(train=jax.tree.map(lambda array: array[:size], data.train))
    optimizers = {method: build(method, objective, MIDDLES[method]) for method in METHODS}

    taken = epochs_in_turn(optimizers, few, settings.batch_size)
    steps = len(few.train[0]) // settings.batch_size
    return {
        "seconds_a_step": {m: [s / steps for s in times] for m, times in taken.items()},
        "bytes": {method: state_bytes(o, params) for method, o in optimizers.items()},
        "parameter_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
    }


def models_of(results: dict) -> list[str]:
    """The networks that these results are about."""
    return [name for name in MODELS if f"adam_on_{name}" in results["cells"]]


def over_runs(results: dict, method: str, model: str, key: str) -> np.ndarray:
    """A tuned method's numbers, seeds along the first axis."""
    return stored.over_runs(results, f"{method}_on_{model}", key)


def against_adam(results: dict, method: str, model: str) -> str:
    """Whether a method's last epoch lies below Adam's by 1 % or more, from all its seeds."""
    losses = (over_runs(results, m, model, "final_loss") for m in (method, "adam"))
    return one_answer(stored.log_ratio(*losses), "below", 1.0, "%")


def rows(results: dict, methods: Sequence[str] = tuple(METHODS)) -> list[dict[str, str]]:
    """Loss, accuracy, cost and the comparison with Adam, one for each network and method."""
    found = []
    for model in models_of(results):
        costs = results["cells"][f"cost_on_{model}"]
        adam_seconds = np.mean(costs["seconds_a_step"]["adam"])
        for method in methods:
            accuracy = over_runs(results, method, model, "test_accuracy")[:, -1]
            found.append(
                {
                    "network": model.upper(),
                    "method": METHODS[method]["label"],
                    "tuned": f"{results['cells'][f'{method}_on_{model}']['search']['best']:.2g}",
                    "loss": mean_and_spread(over_runs(results, method, model, "final_loss"), 3),
                    "accuracy": mean_and_spread(accuracy, 3),
                    "below Adam": "" if method == "adam" else against_adam(results, method, model),
                    "Adam steps": f"{np.mean(costs['seconds_a_step'][method]) / adam_seconds:.1f}",
                    "state/params": f"{costs['bytes'][method] / costs['parameter_bytes']:.1f}",
                }
            )
    return found


def table(results: dict, methods: Sequence[str] = tuple(METHODS)) -> str:
    """The rows as text."""
    timed = [f"cost_on_{model}" for model in models_of(results)]
    return as_text(rows(results, methods), device_note(results, timed))


def draw_losses(
    axes: Axes,
    results: dict,
    model: str,
    methods: Sequence[str] = tuple(METHODS),
    seconds: bool = False,
) -> None:
    """Training loss against steps, or against seconds at the timed seconds of a step."""
    costs = results["cells"][f"cost_on_{model}"]["seconds_a_step"]
    for method in methods:
        loss = over_runs(results, method, model, "loss")
        x = middles(loss.shape[1], int(over_runs(results, method, model, "steps")[0]))
        plotting.band(axes, x * (np.mean(costs[method]) if seconds else 1), loss, **METHODS[method])
    axes.set(xlabel="seconds" if seconds else "step", ylabel="training loss (nats)", yscale="log")
    axes.set_title(MODELS[model])


def figure(results: dict) -> Figure:
    """Loss against steps above, against seconds below, a column for each network."""
    models = models_of(results)
    drawing, axes = plt.subplots(
        2, len(models), figsize=(4.2 * len(models) + 1, 6.5), squeeze=False
    )
    for column, model in enumerate(models):
        draw_losses(axes[0, column], results, model)
        draw_losses(axes[1, column], results, model, seconds=True)
    axes[0, 0].legend()
    return drawing


def verdicts(results: dict) -> list[Verdict]:
    """No claim is settled here."""
    return []
