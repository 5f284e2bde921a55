"""SOAA taken apart: what each of its parts changes (claims A6 and A7).

SOAA, itself with dt = 1 (γ = 0), with the other readings of the variance and of the Fisher, with
other γ, TAdam and Adam, each with its learning rate tuned on the same nine tries. Two more methods
take over what SOAA had tuned: Adam with the dt that SOAA recorded on the same run, in which nothing
but the Fisher differs, and Adam with the dt that SOAA recorded on another seed, in which dt no
longer follows the loss.

At the gpu scale the decoder has 4.8 million parameters and takes 305 steps of 16,384 characters. A
variant is one program of five runs, for five tries and three seeds; each schedule that Adam takes
over is one more. By arithmetic, not measured: 8 programs of 80 seconds with their runs and 7 of 30;
13 minutes of an H100.
"""

from collections.abc import Callable
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
from soaa_edu.engine import Cell
from soaa_edu.optimizers import Optimizer, first_order, soaa, tadam
from soaa_edu.studies import results as stored
from soaa_edu.studies.networks import NETWORKS, SHORT, SIZES, Size, Task, task
from soaa_edu.studies.results import REFINED
from soaa_edu.studies.runs import (
    middles,
    training_run,
)
from soaa_edu.studies.searches import MOST_CURVES, grid_around, refined, tuned_runs
from soaa_edu.studies.verdicts import (
    Clause,
    Reading,
    Verdict,
    judge,
    mean_and_spread,
    measured,
    one_answer,
)
from soaa_edu.training import train

TITLE = "What each part of SOAA changes"
CLAIMS = ("A6", "A7")
SHARE = 1.0
LOSS_MARGIN = 1.0
ROUGHNESS_MARGIN = 10.0
CHECKPOINTS = 10
LEARNING_RATE = 4e-3
GRID_RATIO = 2.0
METHODS: dict[str, dict[str, Any]] = {
    "soaa": {"label": "SOAA", "color": plotting.VERMILLION},
    "still": {"label": "SOAA, dt = 1", "color": plotting.BLUE},
    "adam": {"label": "Adam", "color": plotting.BLACK},
    "scheduled": {"label": "Adam with SOAA's dt", "color": plotting.GREEN},
    "borrowed": {"label": "Adam with another run's dt", "color": plotting.PURPLE},
    "sherman_morrison": {"label": "SOAA, Sherman-Morrison", "color": plotting.ORANGE},
    "second_moment": {"label": "SOAA, v = s", "color": plotting.SKY},
    "gamma_low": {"label": "SOAA, γ = 0.05", "color": plotting.BLUE, "linestyle": ":"},
    "gamma_high": {"label": "SOAA, γ = 0.75", "color": plotting.BLUE, "linestyle": "--"},
    "tadam": {"label": "TAdam", "color": plotting.YELLOW},
}
"""How each method looks in every picture."""
VARIANTS: dict[str, dict[str, Any]] = {
    "soaa": {},
    "still": {"gamma": 0.0},
    "sherman_morrison": {"fisher": "sherman_morrison"},
    "second_moment": {"variance": "second_moment"},
    "gamma_low": {"gamma": 0.05},
    "gamma_high": {"gamma": 0.75},
}
REFINED_METHODS = ("soaa", "still")
TUNED = (*VARIANTS, "tadam", "adam")


class Settings(NamedTuple):
    """What a scale runs, and what it costs on two CPU cores."""

    networks: tuple[str, ...]
    size: dict[str, Any]
    tuning_values: int
    seeds: int
    refined: tuple[str, ...]
    refined_seeds: int
    minutes: float


SCALES = {
    "quick": Settings(
        ("mlp", "decoder"),
        SIZES["quick"]._asdict(),
        1,
        3,
        (),
        0,
        2.0,
    ),
    "laptop": Settings(
        ("mlp", "decoder"),
        SIZES["laptop"]._replace(characters=204_800)._asdict(),
        9,
        5,
        (),
        0,
        20.0,
    ),
    "gpu": Settings(
        ("decoder",), SIZES["gpu"]._replace(characters=5_000_000)._asdict(), 5, 3, (), 0, 13.0
    ),
}


def build(method: str, given: Task, learning_rate: Any) -> Optimizer:
    """One of the tuned methods."""
    if method == "adam":
        return first_order(given.objective, optax.adam(learning_rate))
    if method == "tadam":
        return first_order(given.objective, tadam(learning_rate, total_steps=given.steps))
    return first_order(
        given.objective, soaa(learning_rate, total_steps=given.steps, **VARIANTS[method])
    )


def adam_on_schedule(given: Task, learning_rate: float, scales: Any) -> Optimizer:
    """Adam whose step number t is ``scales[t]`` times as long."""
    scales = jnp.asarray(scales, jnp.float32)
    return first_order(given.objective, optax.adam(lambda count: learning_rate * scales[count]))


def recorded_scales(given: Task, learning_rate: float, seed: int) -> np.ndarray:
    """The dt with which SOAA took each step of a run."""
    init_key, train_key = jax.random.split(jax.random.key(seed))
    optimizer = build("soaa", given, learning_rate)
    history = train(
        optimizer,
        optimizer.objective.model.init(init_key),
        given.data,
        epochs=given.epochs,
        batch_size=given.batch_size,
        key=train_key,
        evaluate=False,
        progress=False,
    )
    return np.concatenate([[1.0], history.info["trust_scale"][:-1]])


def cells(settings: Settings) -> dict[str, Callable[..., Any] | Cell]:
    """One cell for each method on each network; SOAA's holds the two that take over its dt."""
    found: dict[str, Callable[..., Any] | Cell] = {}
    for network in settings.networks:
        given = task(network, Size(**settings.size))
        for method in TUNED:
            name = f"{method}_on_{network}"
            borrow = partial(_with_schedules, given) if method == "soaa" else _alone
            length: dict[str, Any] = {
                "epochs": given.epochs,
                "batch_size": given.batch_size,
                "last": given.steps // CHECKPOINTS,
            }
            grid = grid_around(LEARNING_RATE, GRID_RATIO, settings.tuning_values)
            tune = partial(tuned_runs, partial(build, method, given), grid, given.data, **length)
            found[name] = partial(_then, borrow, partial(tune, seeds=settings.seeds))
            if network in settings.refined and method in REFINED_METHODS:
                at = partial(build, method, given)
                again = partial(refined, at, given.data, seeds=settings.refined_seeds, **length)
                found[name + REFINED] = Cell(partial(_then, borrow, again), needs=(name,))
    return found


def _then(borrow: Callable, tune: Callable, *found: Any) -> dict[str, Any]:
    return borrow(tune(*found))


def _alone(found: dict[str, Any]) -> dict[str, Any]:
    return found


def _with_schedules(given: Task, found: dict[str, Any]) -> dict[str, Any]:
    """SOAA's runs, and those of Adam with the dt of each, and of the next one."""
    learning_rate = found["search"]["best"]
    seeds = len(found["runs"])
    scales = [recorded_scales(given, learning_rate, seed) for seed in range(seeds)]
    others = [*scales[1:], scales[0]]

    def runs(schedules: list[np.ndarray]) -> list[dict[str, Any]]:
        return [
            training_run(
                adam_on_schedule(given, learning_rate, schedule),
                seed,
                given.data,
                given.epochs,
                given.batch_size,
                given.steps // CHECKPOINTS,
                curves=seed < MOST_CURVES,
            )
            for seed, schedule in enumerate(schedules)
        ]

    kept = scales[:MOST_CURVES]
    return {**found, "scheduled": runs(scales), "borrowed": runs(others), "dt": kept}


def networks_of(results: dict) -> list[str]:
    """The networks that these results are about."""
    return [name for name in NETWORKS if f"soaa_on_{name}" in results["cells"]]


def over_runs(results: dict, method: str, network: str, key: str) -> np.ndarray:
    """A method's numbers, seeds along the first axis."""
    if method in TUNED:
        return stored.over_runs(results, f"{method}_on_{network}", key)
    runs = stored.latest(results, f"soaa_on_{network}")[method]
    return np.array([run[key] for run in runs if key in run], float)


def told(results: dict, method: str, network: str, name: str) -> np.ndarray:
    """What a method told along its runs, means over stretches of steps, ``(seeds, points)``."""
    runs = stored.latest(results, f"{method}_on_{network}")["runs"]
    return np.array([run["info"][name] for run in runs if "info" in run], float)


def roughness(results: dict, method: str, network: str) -> np.ndarray:
    """Root mean square change of the loss from a stretch to the next, over the second half."""
    loss = over_runs(results, method, network, "loss")
    return np.sqrt(np.mean(np.diff(loss[:, loss.shape[1] // 2 :]) ** 2, axis=1))


def verdicts(results: dict) -> list[Verdict]:
    """A6 and A7."""
    networks = networks_of(results)
    seeds = min(stored.seeds_of(results, f"soaa_on_{network}") for network in networks)

    def against(rival: str) -> list[Reading]:
        return [measured(log_ratio(results, n, rival), SHORT[n]) for n in networks]

    losses = [
        f"{NETWORKS[n]}: "
        + ", ".join(
            f"{style['label']} {mean_and_spread(over_runs(results, m, n, 'final_loss'), 4)}"
            for m, style in METHODS.items()
        )
        for n in networks
    ]
    beside = "SOAA's loss beside that"
    trust_region = [
        Clause(
            "the trust region follows the observed loss",
            f"{beside} of Adam with the dt of another run:",
            "below",
            LOSS_MARGIN,
            "%",
            against("borrowed"),
        ),
        Clause(
            "and converges faster by it",
            f"{beside} with dt = 1:",
            "below",
            LOSS_MARGIN,
            "%",
            against("still"),
        ),
        Clause(
            "and steadier",
            "changes of the loss from stretch to stretch beside those with dt = 1:",
            "below",
            ROUGHNESS_MARGIN,
            "%",
            [measured(log_roughness(results, n), SHORT[n]) for n in networks],
        ),
    ]
    fisher = [
        Clause(
            "the diagonal Fisher brings curvature into the step",
            "share of coordinates in which it decides:",
            "above",
            SHARE,
            "points",
            [measured(share(results, n, "soaa"), SHORT[n]) for n in networks],
        )
    ]
    other_form = [
        f"{NETWORKS[n]}, {METHODS['sherman_morrison']['label']}: the Fisher decides in "
        f"{100 * share(results, n, 'sherman_morrison').mean():.0f} % of coordinates"
        for n in networks
    ]
    nothing_else = [
        f"{NETWORKS[n]}: SOAA's loss beside that of Adam with SOAA's own dt, "
        f"{100 * np.expm1(log_ratio(results, n, 'scheduled').mean()):+.4f} %"
        for n in networks
    ]
    return [
        judge("A6", trust_region, seeds=seeds, findings=losses),
        judge("A7", fisher, seeds=seeds, findings=[*other_form, *nothing_else]),
    ]


def rows(results: dict, network: str) -> list[dict[str, str]]:
    """Tuned learning rate, final losses and roughness of every variant."""
    found = []
    for method, style in METHODS.items():
        cell = stored.latest(results, f"{method if method in TUNED else 'soaa'}_on_{network}")
        found.append(
            {
                "method": style["label"],
                "learning rate": f"{cell['search']['best']:.2g}",
                "loss": mean_and_spread(over_runs(results, method, network, "final_loss"), 4),
                "SOAA below it": ""
                if method == "soaa"
                else one_answer(log_ratio(results, network, method), "below", LOSS_MARGIN, "%"),
                "roughness": f"{roughness(results, method, network).mean():.4f}",
            }
        )
    return found


def draw_trust_scale(axes: Axes, results: dict, network: str) -> None:
    """dt of one run step by step, its mean over seeds, and its two bounds."""
    scales = np.array(stored.latest(results, f"soaa_on_{network}")["dt"])
    steps = scales.shape[1]
    axes.plot(scales[0], color=plotting.VERMILLION, linewidth=0.4, alpha=0.6, label="dt, one run")
    smooth = plotting.binned(scales, min(steps, 40))
    x = middles(smooth.shape[1], steps)
    plotting.band(axes, x, smooth, label="dt, means", color=plotting.BLACK)
    for name, text in (("trust_scale_low", "lower bound"), ("trust_scale_high", "upper bound")):
        bound = told(results, "soaa", network, name)[0]
        x = middles(len(bound), steps)
        axes.plot(x, bound, color=plotting.BLUE, linestyle="--", label=text)
    axes.set(xlabel="step", ylabel="dt", title=NETWORKS[network])


def draw_share(axes: Axes, results: dict, network: str) -> None:
    """Share of coordinates in which the Fisher decides, in both forms."""
    for method in ("soaa", "sherman_morrison"):
        share = told(results, method, network, "curvature_share")
        steps = int(over_runs(results, method, network, "steps")[0])
        plotting.band(axes, middles(share.shape[1], steps), share, **METHODS[method])
    axes.set(xlabel="step", ylabel="share of coordinates with dt F > √ŝ", ylim=(-0.02, 1.02))


def draw_losses(
    axes: Axes, results: dict, network: str, methods: Any = ("adam", "still", "scheduled", "soaa")
) -> None:
    """Training loss against steps."""
    for method in methods:
        loss = over_runs(results, method, network, "loss")
        x = middles(loss.shape[1], int(over_runs(results, method, network, "steps")[0]))
        x, loss = (plotting.binned(values, 2 * CHECKPOINTS) for values in (x, loss))
        plotting.band(axes, x, loss, **METHODS[method])
    axes.set(xlabel="step", ylabel="training loss (nats)", yscale="log")


def figure(results: dict) -> Figure:
    """dt and its bounds, the Fisher's share, and losses, a column for each network."""
    networks = networks_of(results)
    drawing, axes = plt.subplots(3, len(networks), figsize=(5 * len(networks), 9), squeeze=False)
    for column, network in enumerate(networks):
        draw_trust_scale(axes[0, column], results, network)
        draw_share(axes[1, column], results, network)
        draw_losses(axes[2, column], results, network)
    for row in axes:
        row[-1].legend(fontsize=8)
    return drawing


def log_ratio(results: dict, network: str, rival: str) -> np.ndarray:
    """Log of SOAA's final loss over a rival's, one for each seed."""
    losses = (over_runs(results, m, network, "final_loss") for m in ("soaa", rival))
    return stored.log_ratio(*losses)


def log_roughness(results: dict, network: str) -> np.ndarray:
    """Log of the roughness of SOAA's loss over that with dt = 1, one for each seed."""
    return np.log(roughness(results, "soaa", network)) - np.log(
        roughness(results, "still", network)
    )


def share(results: dict, network: str, method: str) -> np.ndarray:
    """Share of coordinates, over the whole run, in which the Fisher decides, by seed."""
    return told(results, method, network, "curvature_share").mean(axis=1)
