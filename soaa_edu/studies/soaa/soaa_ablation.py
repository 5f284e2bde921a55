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
from soaa_edu.optimizers import Optimizer, first_order
from soaa_edu.studies import methods
from soaa_edu.studies import results as stored
from soaa_edu.studies.methods import METHODS, label
from soaa_edu.studies.networks import NETWORKS, SHORT, SIZES, Size, task
from soaa_edu.studies.race import Task, finer_races, races
from soaa_edu.studies.runs import training_run
from soaa_edu.studies.searches import FINE_TUNING_SEEDS, MOST_CURVES, Grid, grid_around
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
CHECKPOINTS = 10
VARIANTS: dict[str, dict[str, Any]] = {
    "soaa": {},
    "soaa_still": {"gamma": 0.0},
    "soaa_sherman_morrison": {"fisher": "sherman_morrison"},
    "soaa_second_moment": {"variance": "second_moment"},
    "soaa_gamma_low": {"gamma": 0.05},
    "soaa_gamma_high": {"gamma": 0.75},
}
TUNED = (*VARIANTS, "tadam", "adam")
BORROWERS = ("adam_with_dt", "adam_with_others_dt")
FIELD = (*TUNED, *BORROWERS)
REFINED_METHODS = ("soaa", "soaa_still")


class Settings(NamedTuple):
    """What a scale runs, and what it costs; the laptop's by default."""

    networks: tuple[str, ...] = ("mlp", "decoder")
    size: dict[str, Any] = SIZES["laptop"]._replace(characters=204_800)._asdict()
    tuning_values: int = 9
    seeds: int = 5
    refined: tuple[str, ...] = ("mlp",)
    refined_seeds: int = 50
    minutes: float = 40.0


SCALES = {
    "quick": Settings(
        size=SIZES["quick"]._asdict(), tuning_values=1, seeds=3, refined=(), minutes=2.0
    ),
    "laptop": Settings(),
    "gpu": Settings(
        networks=("decoder",),
        size=SIZES["gpu"]._replace(characters=5_000_000)._asdict(),
        tuning_values=5,
        seeds=3,
        refined=(),
        minutes=13.0,
    ),
}


def grid(method: str, values: int) -> Grid:
    """Learning rates, the same for all."""
    return {"learning_rate": grid_around(4e-3, 2.0, values)}


def build(method: str, given: Task, learning_rate: Any) -> Optimizer:
    """One of the tuned methods."""
    name = "soaa" if method in VARIANTS else method
    numbers = {"learning_rate": learning_rate, **VARIANTS.get(method, {})}
    return methods.build(name, given.objective, given.steps, **numbers)


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
        given.load(),
        epochs=given.epochs,
        batch_size=given.batch_size,
        key=train_key,
        evaluate=False,
        progress=False,
    )
    return np.concatenate([[1.0], history.info["trust_scale"][:-1]])


def cells(settings: Settings) -> dict[str, Cell]:
    """One cell for each method on each network; two of them take over what SOAA's had tuned."""
    found: dict[str, Cell] = {}
    for network in settings.networks:
        given = task(network, Size(**settings.size), CHECKPOINTS)
        points = partial(grid, values=settings.tuning_values)
        found |= races([given], TUNED, build, points, seeds=settings.seeds)
        if network in settings.refined:
            found |= finer_races(
                [given],
                REFINED_METHODS,
                build,
                seeds=settings.refined_seeds,
                tuning_seeds=FINE_TUNING_SEEDS,
            )
        for search in [{}, stored.REFINED] if network in settings.refined else [{}]:
            tuned, recorded = (
                stored.name(**of, **given.labels, **search)
                for of in ({"method": "soaa"}, {"dt": "soaa"})
            )
            found[recorded] = Cell(partial(_recorded, given), needs=(tuned,))
            for method in BORROWERS:
                found[stored.name(method=method, **given.labels, **search)] = Cell(
                    partial(_on_soaas_schedule, method, given), needs=(tuned, recorded)
                )
    return found


def _recorded(given: Task, tuned: dict[str, Any]) -> dict[str, Any]:
    """SOAA's dt on each of its runs, ``(seeds, steps)``."""
    rate = tuned["search"]["best"]["learning_rate"]
    return {"dt": [recorded_scales(given, rate, seed) for seed in range(len(tuned["runs"]))]}


def _on_soaas_schedule(
    method: str, given: Task, tuned: dict[str, Any], recorded: dict[str, Any]
) -> dict[str, Any]:
    """Adam with SOAA's learning rate and its dt of the same run, or of the next seed's."""
    scales = recorded["dt"]
    if method == "adam_with_others_dt":
        scales = [*scales[1:], scales[0]]
    best = tuned["search"]["best"]
    runs = [
        training_run(
            adam_on_schedule(given, best["learning_rate"], schedule),
            seed,
            given.load(),
            given.epochs,
            given.batch_size,
            given.last,
            curves=seed < MOST_CURVES,
        )
        for seed, schedule in enumerate(scales)
    ]
    return {"search": {"best": best}, "runs": runs}


def networks_of(results: dict) -> list[str]:
    """The networks that these results are about."""
    return stored.values_of(results, "network", method="soaa")


def roughness(results: dict, method: str, network: str) -> np.ndarray:
    """Root mean square change of the loss from a stretch to the next, over the second half."""
    loss = stored.over_runs(results, "loss", method=method, network=network)
    return np.sqrt(np.mean(np.diff(loss[:, loss.shape[1] // 2 :]) ** 2, axis=1))


def verdicts(results: dict) -> list[Verdict]:
    """A6 and A7."""
    networks = networks_of(results)

    def against(rival: str) -> list[Reading]:
        return [measured(log_ratio(results, n, rival), SHORT[n]) for n in networks]

    losses = [
        f"{NETWORKS[n]}: "
        + ", ".join(
            f"{label(m)} {mean_and_spread(stored.final_loss(results, method=m, network=n), 4)}"
            for m in FIELD
        )
        for n in networks
    ]
    beside = "SOAA's loss beside that"
    trust_region = [
        Clause(
            "the trust region follows the observed loss",
            f"{beside} of Adam with the dt of another run:",
            "below 1 %",
            against("adam_with_others_dt"),
        ),
        Clause(
            "and converges faster by it",
            f"{beside} with dt = 1:",
            "below 1 %",
            against("soaa_still"),
        ),
        Clause(
            "and steadier",
            "changes of the loss from stretch to stretch beside those with dt = 1:",
            "below 10 %",
            [measured(log_roughness(results, n), SHORT[n]) for n in networks],
        ),
    ]
    fisher = [
        Clause(
            "the diagonal Fisher brings curvature into the step",
            "share of coordinates in which it decides:",
            "above 1 points",
            [measured(share(results, n, "soaa"), SHORT[n]) for n in networks],
        )
    ]
    other_form = [
        f"{NETWORKS[n]}, {label('soaa_sherman_morrison')}: the Fisher decides in "
        f"{100 * share(results, n, 'soaa_sherman_morrison').mean():.0f} % of coordinates"
        for n in networks
    ]
    nothing_else = [
        f"{NETWORKS[n]}: SOAA's loss beside that of Adam with SOAA's own dt, "
        f"{100 * np.expm1(log_ratio(results, n, 'adam_with_dt').mean()):+.4f} %"
        for n in networks
    ]
    return [
        judge("A6", trust_region, findings=losses),
        judge("A7", fisher, findings=[*other_form, *nothing_else]),
    ]


def rows(results: dict, network: str) -> list[dict[str, str]]:
    """Tuned learning rate, final losses and roughness of every variant."""
    found = []
    for method in FIELD:
        at = {"method": method, "network": network}
        below = one_answer(log_ratio(results, network, method), "below 1 %")
        found.append(
            {
                "method": label(method),
                "learning rate": f"{stored.search(results, **at)['best']['learning_rate']:.2g}",
                "loss": mean_and_spread(stored.final_loss(results, **at), 4),
                "SOAA below it": "" if method == "soaa" else below,
                "roughness": f"{roughness(results, method, network).mean():.4f}",
            }
        )
    return found


def draw_trust_scale(axes: Axes, results: dict, network: str) -> None:
    """dt of one run step by step, its mean over seeds, and its two bounds."""
    scales = np.array(stored.one(results, dt="soaa", network=network)["dt"])
    steps = scales.shape[1]
    axes.plot(
        scales[0], color=METHODS["soaa"]["color"], linewidth=0.4, alpha=0.6, label="dt, one run"
    )
    smooth = plotting.binned(scales, min(steps, 40))
    x = stored.middles(smooth.shape[1], steps)
    plotting.band(axes, x, smooth, label="dt, means", color=plotting.BLACK)
    for name, text in (("trust_scale_low", "its bounds"), ("trust_scale_high", None)):
        bound = stored.info(results, name, method="soaa", network=network)[0]
        x = stored.middles(len(bound), steps)
        axes.plot(x, bound, color=plotting.BLUE, linestyle="--", label=text)
    axes.set(xlabel="step", ylabel="dt", title=NETWORKS[network])


def draw_share(axes: Axes, results: dict, network: str) -> None:
    """Share of coordinates in which the Fisher decides, in both forms."""
    for method in ("soaa", "soaa_sherman_morrison"):
        at = {"method": method, "network": network}
        decided = stored.info(results, "curvature_share", **at)
        x = stored.middles(decided.shape[1], stored.steps(results, **at))
        plotting.band(axes, x, decided, **METHODS[method])
    axes.set(xlabel="step", ylabel="share of coordinates with dt F > √ŝ", ylim=(-0.02, 1.02))


def draw_losses(axes: Axes, results: dict, network: str) -> None:
    """Training loss over that with dt = 1, which is Adam's, at the same step and seed."""

    def losses(method: str) -> np.ndarray:
        loss = stored.over_runs(results, "loss", method=method, network=network)
        return plotting.binned(loss, 2 * CHECKPOINTS)

    steps = stored.steps(results, method="soaa", network=network)
    x = stored.middles(2 * CHECKPOINTS, steps)
    for method in ("soaa", "adam_with_dt", "adam_with_others_dt"):
        plotting.band(axes, x, losses(method) / losses("soaa_still"), **METHODS[method])
    axes.axhline(1, **METHODS["soaa_still"])
    axes.set(xlabel="step", ylabel="training loss over that with dt = 1")


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
    return stored.beside(results, "soaa", rival, network=network)


def log_roughness(results: dict, network: str) -> np.ndarray:
    """Log of the roughness of SOAA's loss over that with dt = 1, one for each seed."""
    return np.log(roughness(results, "soaa", network)) - np.log(
        roughness(results, "soaa_still", network)
    )


def share(results: dict, network: str, method: str) -> np.ndarray:
    """Share of coordinates, over the whole run, in which the Fisher decides, by seed."""
    return stored.info(results, "curvature_share", method=method, network=network).mean(axis=1)
