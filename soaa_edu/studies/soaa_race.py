"""SOAA against Adam, AdamW, 8-bit Adam, GaLore, K-FAC and Shampoo (claims A2-A4, A8 and A10).

An MLP, an encoder and a decoder, small enough for a laptop. Every method has one number to tune,
the damping for K-FAC and the learning rate for the others, on the same nine tries and a seed of its
own; all else is the library's default, but AdamW's decay is 0.01, GaLore's rank a quarter of the
network's width with a refresh every 50 steps, and K-FAC takes a learning rate of 0.1 and clips, as
in the race at large batches. Learning rates are constant, as in the paper; Adam with a cosine
schedule stands beside them, since SOAA's trust region brings a schedule of its own.

At the gpu scale the decoder has 4.8 million parameters and takes 610 steps of 16,384 characters,
each seen once. A method is one program of five runs, for five tries and three seeds. By arithmetic,
not measured: a run is 3e14 operations, 10 seconds of an H100, a method 2 minutes with its
compilation, and all eight with their costs 19, two calls of ten minutes. The paper's Llama 2, of 7
billion parameters, would take 4e17 operations a run for as many tokens, three hours of such a card.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import scipy.stats
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from soaa_edu import plotting
from soaa_edu.engine import device_note
from soaa_edu.optimizers import (
    Optimizer,
    adam_8bit,
    first_order,
    galore,
    kfac,
    shampoo,
    soaa,
)
from soaa_edu.studies import results as stored
from soaa_edu.studies.networks import NETWORKS, SHORT, SIZES, Size, Task, task
from soaa_edu.studies.runs import middles, state_bytes
from soaa_edu.studies.searches import grid_around, tuned_runs
from soaa_edu.studies.tables import as_text
from soaa_edu.studies.verdicts import (
    Clause,
    Interval,
    Reading,
    Verdict,
    judge,
    known,
    mean_and_spread,
    measured,
)

TITLE = "SOAA against Adam and its relatives"
CLAIMS = ("A2", "A3", "A4", "A8", "A10")
LOSS_MARGIN = 1.0
CLAIMED_SAVING = 0.75
CHECKPOINTS = 10
RIVALS = ("adam", "adamw")
FRUGAL = ("adam_8bit", "galore")
WEIGHT_DECAY = 0.01
KFAC_LEARNING_RATE = 0.1
KFAC_CLIP = 1e-2
METHODS: dict[str, dict[str, Any]] = {
    "adam": {"label": "Adam", "color": plotting.BLACK},
    "adamw": {"label": "AdamW", "color": plotting.BLACK, "linestyle": ":"},
    "cosine": {"label": "Adam, cosine schedule", "color": plotting.BLACK, "linestyle": "--"},
    "soaa": {"label": "SOAA", "color": plotting.VERMILLION},
    "adam_8bit": {"label": "8-bit Adam", "color": plotting.SKY},
    "galore": {"label": "GaLore", "color": plotting.GREEN},
    "kfac": {"label": "K-FAC", "color": plotting.BLUE},
    "shampoo": {"label": "Shampoo", "color": plotting.PURPLE},
}
"""How each method looks in every picture."""


class Settings(NamedTuple):
    """What a scale runs, and what it costs on two CPU cores."""

    networks: tuple[str, ...]
    size: dict[str, Any]
    tuning_values: int
    seeds: int
    timed_steps: int
    minutes: float


SCALES = {
    "quick": Settings(
        ("mlp", "decoder"),
        SIZES["quick"]._asdict(),
        1,
        3,
        8,
        2.0,
    ),
    "laptop": Settings(
        tuple(NETWORKS),
        SIZES["laptop"]._asdict(),
        9,
        5,
        20,
        60.0,
    ),
    "gpu": Settings(("decoder",), SIZES["gpu"]._asdict(), 5, 3, 100, 19.0),
}
MIDDLES = dict.fromkeys(METHODS, 4e-3) | {"kfac": 0.03}
GRID_RATIO = 2.0


def transformation(method: str, value: Any, steps: int, rank: int) -> Any:
    """A first-order method with its learning rate, for a run of ``steps``."""
    schedule = optax.cosine_decay_schedule(1.0, steps)
    made: dict[str, Callable[[], Any]] = {
        "adam": lambda: optax.adam(value),
        "adamw": lambda: optax.adamw(value, weight_decay=WEIGHT_DECAY),
        "cosine": lambda: optax.adam(lambda count: value * schedule(count)),
        "soaa": lambda: soaa(value, total_steps=steps),
        "adam_8bit": lambda: adam_8bit(value),
        "galore": lambda: galore(value, rank=rank, refresh_every=50),
        "shampoo": lambda: shampoo(value),
    }
    return made[method]()


def build(method: str, given: Task, value: Any) -> Optimizer:
    """A method with its tuned number: the damping of K-FAC, the learning rate of the others."""
    if method == "kfac":
        return kfac(
            given.objective,
            learning_rate=KFAC_LEARNING_RATE,
            damping=value,
            kl_clip=KFAC_CLIP,
        )
    return first_order(
        given.objective, transformation(method, value, given.steps, _rank(given.objective.model))
    )


def _rank(model: Any) -> int:
    """A quarter of what the first layer puts out."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    return max(params[model.dense_layers[0]]["weight"].shape[1] // 4, 1)


def cells(settings: Settings) -> dict[str, Callable[[], Any]]:
    """One cell for each method on each network, and one for the costs on each network."""
    tasks = {name: task(name, Size(**settings.size)) for name in settings.networks}
    found: dict[str, Callable[[], Any]] = {}
    for network, given in tasks.items():
        for method in METHODS:
            found[f"{method}_on_{network}"] = partial(_race, method, given, settings)
    for network, given in tasks.items():
        found[f"cost_on_{network}"] = partial(_costs, given, settings.timed_steps)
    return found


def _race(method: str, given: Task, settings: Settings) -> dict[str, Any]:
    return tuned_runs(
        partial(build, method, given),
        grid_around(MIDDLES[method], GRID_RATIO, settings.tuning_values),
        given.data,
        epochs=given.epochs,
        batch_size=given.batch_size,
        seeds=settings.seeds,
        last=given.steps // CHECKPOINTS,
    )


def _costs(given: Task, steps: int) -> dict[str, Any]:
    """Seconds of a step for each of five repeats in turn, bytes of state and of peak memory."""
    params = given.init()
    batch = jax.tree.map(lambda array: jnp.asarray(array[: given.batch_size]), given.data.train)
    optimizers = {method: build(method, given, MIDDLES[method]) for method in METHODS}
    compiled = {m: _same_batch_again(o, params, batch, steps) for m, o in optimizers.items()}

    def seconds(method: str) -> float:
        state = optimizers[method].init(params)
        began = time.perf_counter()
        jax.block_until_ready(compiled[method](params, state, batch))
        return (time.perf_counter() - began) / steps

    rounds = [{method: seconds(method) for method in METHODS} for _ in range(6)][1:]
    return {
        "seconds_a_step": {method: [times[method] for times in rounds] for method in METHODS},
        "bytes": {method: state_bytes(o, params) for method, o in optimizers.items()},
        "peak_bytes": {method: peak_bytes(program) for method, program in compiled.items()},
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


def networks_of(results: dict) -> list[str]:
    """The networks that these results are about."""
    return [name for name in NETWORKS if f"adam_on_{name}" in results["cells"]]


def over_runs(results: dict, method: str, network: str, key: str) -> np.ndarray:
    """A tuned method's numbers, seeds along the first axis."""
    return stored.over_runs(results, f"{method}_on_{network}", key)


def checkpoints(results: dict, method: str, network: str, count: int = CHECKPOINTS) -> np.ndarray:
    """Means of the training loss over stretches of the run, ``(seeds, count)``."""
    return plotting.binned(over_runs(results, method, network, "loss"), count)


def checkpoint_steps(results: dict, method: str, network: str, count: int = CHECKPOINTS) -> Any:
    """The middles of those stretches, in steps, ``(count,)``."""
    points = over_runs(results, method, network, "loss").shape[1]
    steps = int(over_runs(results, method, network, "steps")[0])
    return plotting.binned(middles(points, steps), count)


def label(method: str) -> str:
    """What a method is called in the book."""
    return METHODS[method]["label"]


def bytes_ratio(results: dict, network: str, key: str, method: str, rival: str) -> float:
    """Bytes of one method over those of another."""
    costs = results["cells"][f"cost_on_{network}"][key]
    return costs[method] / costs[rival]


def seconds_ratio(results: dict, network: str, method: str, rival: str) -> np.ndarray:
    """Seconds of a step of one method over those of another, one for each timed repeat."""
    seconds = results["cells"][f"cost_on_{network}"]["seconds_a_step"]
    return np.array(seconds[method]) / np.array(seconds[rival])


def verdicts(results: dict) -> list[Verdict]:
    """A2, A3, A4, A8 and A10."""
    networks = networks_of(results)
    seeds = len(results["cells"][f"soaa_on_{networks[0]}"]["runs"])
    transformers = [n for n in networks if n != "mlp"]

    def loss(says: str, rival: str, side: str = "below", on: Sequence[str] = networks) -> Clause:
        readings = [measured(log_ratio(results, n, "soaa", rival), SHORT[n]) for n in on]
        statistic = f"SOAA's loss beside that of {label(rival)}:"
        return Clause(says, statistic, side, LOSS_MARGIN, "%", readings)

    def spread(rival: str) -> Clause:
        readings = [spread_beside(results, n, rival) for n in networks]
        statistic = f"spread over seeds beside that of {label(rival)}:"
        return Clause(
            f"more stable than {label(rival)}", statistic, "below", 1.1, "times", readings
        )

    more_memory = Clause(
        "at more memory",
        "SOAA's state over that of",
        "above",
        1.1,
        "times",
        [
            known(
                np.log(bytes_ratio(results, n, "bytes", "soaa", rival)),
                f"{label(rival)}, {SHORT[n]}",
            )
            for rival in FRUGAL
            for n in networks
        ],
    )
    losses = [
        f"{NETWORKS[n]}: "
        + ", ".join(
            f"{label(m)} {mean_and_spread(over_runs(results, m, n, 'final_loss'), 3)}"
            for m in METHODS
        )
        for n in networks
    ]
    claims = {
        "A2": [loss("faster than Adam", "adam"), loss("than AdamW", "adamw")],
        "A3": [spread("adam"), spread("adamw")],
        "A4": [
            loss("lower loss than 8-bit Adam", "adam_8bit"),
            loss("than GaLore", "galore"),
            more_memory,
        ],
        "A8": [loss("as good on encoders and decoders", "adam", "at most", transformers)],
        "A10": _eight_bits(results, networks),
    }
    return [
        judge(claim, clauses, seeds=seeds, findings=losses if claim == "A2" else ())
        for claim, clauses in claims.items()
    ]


def rows(results: dict, network: str) -> list[dict[str, str]]:
    """Losses, seconds of a step and memory of every method on a network."""
    costs = results["cells"][f"cost_on_{network}"]
    found = []
    for method in METHODS:
        second = seconds_ratio(results, network, method, "adam")
        search = results["cells"][f"{method}_on_{network}"]["search"]
        found.append(
            {
                "method": label(method),
                "tuned": f"{search['best']:.2g}",
                "loss": mean_and_spread(over_runs(results, method, network, "final_loss"), 3),
                "test loss": mean_and_spread(
                    over_runs(results, method, network, "test_loss")[:, -1], 3
                ),
                "Adam steps": f"{np.median(second):.2f}",
                "state/params": f"{costs['bytes'][method] / costs['parameter_bytes']:.2f}",
                "peak MB": f"{costs['peak_bytes'][method] / 1e6:.1f}",
            }
        )
    return found


def table(results: dict) -> str:
    """The rows of every network as text."""
    networks = networks_of(results)
    found = [{"network": n, **row} for n in networks for row in rows(results, n)]
    return as_text(found, device_note(results, [f"cost_on_{n}" for n in networks]))


def draw_losses(
    axes: Axes, results: dict, network: str, methods: Sequence[str] = tuple(METHODS)
) -> None:
    """Training loss against steps, a band for the seeds."""
    for method in methods:
        x = checkpoint_steps(results, method, network, 2 * CHECKPOINTS)
        loss = checkpoints(results, method, network, 2 * CHECKPOINTS)
        plotting.band(axes, x, loss, **METHODS[method])
    axes.set(xlabel="step", ylabel="training loss (nats)", yscale="log", title=NETWORKS[network])


def draw_spreads(axes: Axes, results: dict, network: str) -> None:
    """Standard deviation over seeds at each checkpoint."""
    for method in (*RIVALS, "soaa"):
        spread = checkpoints(results, method, network).std(axis=0, ddof=1)
        x = checkpoint_steps(results, method, network)
        axes.plot(x, spread, marker="o", **METHODS[method])
    axes.set(xlabel="step", ylabel="standard deviation over seeds (nats)", yscale="log")


def figure(results: dict) -> Figure:
    """Losses above, spreads over seeds below, a column for each network."""
    networks = networks_of(results)
    drawing, axes = plt.subplots(
        2, len(networks), figsize=(4.3 * len(networks) + 1, 7), squeeze=False
    )
    for column, network in enumerate(networks):
        draw_losses(axes[0, column], results, network)
        draw_spreads(axes[1, column], results, network)
    axes[0, -1].legend(fontsize=8)
    axes[1, -1].legend(fontsize=8)
    return drawing


def log_ratio(results: dict, network: str, method: str, rival: str) -> np.ndarray:
    """Log of a method's final loss over a rival's, one for each seed."""
    losses = (over_runs(results, m, network, "final_loss") for m in (method, rival))
    return stored.log_ratio(*losses)


def spread_beside(results: dict, network: str, rival: str) -> Reading:
    """The log ratio of SOAA's standard deviation over a rival's, a mean over checkpoints.

    The interval is that of a single checkpoint (an F distribution), as if all moved together.
    """
    spreads = [
        np.log(checkpoints(results, method, network).std(axis=0, ddof=1))
        for method in ("soaa", rival)
    ]
    estimate = float(np.mean(spreads[0] - spreads[1]))
    seeds = len(over_runs(results, "soaa", network, "final_loss"))

    def interval_at(confidence: float) -> Interval:
        quantile = scipy.stats.f.ppf((1 + confidence) / 2, seeds - 1, seeds - 1)
        half = 0.5 * float(np.log(quantile)) if seeds > 1 else np.inf
        return estimate - half, estimate, estimate + half

    return Reading(SHORT[network], interval_at, seeds)


def _eight_bits(results: dict, networks: Sequence[str]) -> list[Clause]:
    """State saved, time gained, and the peak memory of 8-bit Adam and GaLore beside SOAA's."""

    def saved(network: str) -> Reading:
        share = 1 - bytes_ratio(results, network, "bytes", "adam_8bit", "adam")
        return known(share - CLAIMED_SAVING, SHORT[network])

    def faster(network: str) -> Reading:
        return measured(
            np.log(seconds_ratio(results, network, "adam", "adam_8bit")), SHORT[network]
        )

    def less(network: str, method: str) -> Reading:
        peak = bytes_ratio(results, network, "peak_bytes", method, "soaa")
        return known(np.log(peak), f"{label(method)}, {SHORT[network]}")

    return [
        Clause(
            "8-bit Adam saves up to 75 % of the optimizer's memory",
            "the share of Adam's state that it saves, less 75 %:",
            "same",
            5.0,
            "points",
            [saved(n) for n in networks],
        ),
        Clause(
            "and trains up to 4 times faster",
            "Adam's seconds of a step over its own:",
            "above",
            1.1,
            "times",
            [faster(n) for n in networks],
        ),
        Clause(
            "it and GaLore need less memory than SOAA",
            "peak memory beside SOAA's:",
            "below",
            1.0,
            "%",
            [less(n, method) for method in FRUGAL for n in networks],
        ),
    ]
