"""What a step of SOAA costs beside Adam's: time and memory against n, fused and not (A1 and A5).

The update alone is timed on one long vector of n parameters. On the three networks of the race it
is timed compiled as one program ("fused") and one array operation at a time; a training step is a
compiled gradient and either update.

At the gpu scale the networks are those of the race there, of up to 4.8 million parameters. By
arithmetic, not measured: 24 small programs, 4 minutes of an H100.
"""

import time
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
from soaa_edu.optimizers import soaa
from soaa_edu.studies import results as stored
from soaa_edu.studies.methods import METHODS, label
from soaa_edu.studies.networks import NETWORKS, SHORT, SIZES, Size, task
from soaa_edu.studies.verdicts import Clause, Verdict, judge, known, measured
from soaa_edu.timing import both_ways

TITLE = "What a step of SOAA costs"
CLAIMS = ("A1", "A5")
FIELD = ("adam", "adamw", "soaa")
TOTAL_STEPS = 1000
OUT_OF_CACHE = 10**6
ROUNDS = 5


class Settings(NamedTuple):
    """What a scale runs, and what it costs; the laptop's by default."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    size: dict[str, Any] = SIZES["laptop"]._asdict()
    parameters: tuple[int, ...] = (10**4, 10**5, 10**6, 10**7, 10**8)
    repeats: int = 10
    minutes: float = 3.0


SCALES = {
    "quick": Settings(
        networks=("mlp", "decoder"),
        size=Size(512, 1, 128, (32,), 4096, 32, 16, 16, 1)._asdict(),
        parameters=(10**4, 10**5, 10**6, 3 * 10**6),
        repeats=5,
        minutes=0.75,
    ),
    "laptop": Settings(),
    "gpu": Settings(
        size=SIZES["gpu"]._replace(characters=1_000_000)._asdict(), repeats=20, minutes=4.0
    ),
}


def transformation(method: str) -> Any:
    """One of the three, with a learning rate that changes no timing."""
    if method == "soaa":
        return soaa(1e-3, total_steps=TOTAL_STEPS)
    return optax.adam(1e-3) if method == "adam" else optax.adamw(1e-3)


def cells(settings: Settings) -> dict[str, Callable[[], Any]]:
    """One cell for each number of parameters and one for each network."""
    found: dict[str, Callable[[], Any]] = {
        stored.name(update=n): partial(_updates, n, settings.repeats) for n in settings.parameters
    }
    for network in settings.networks:
        found[stored.name(network=network)] = partial(_ways, network, settings)
    return found


def _updates(n: int, repeats: int) -> dict[str, Any]:
    """Seconds of a compiled update of n parameters, method after method, and bytes of state."""
    steps = max(2, 10**6 // n)
    gradient = jnp.asarray(np.random.default_rng(0).normal(size=n), jnp.float32)
    seconds: dict[str, list[float]] = {}
    state_bytes = {}
    for method in FIELD:
        program, state = _many_updates(transformation(method), gradient, steps)
        state_bytes[method] = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        carry = (jnp.zeros(n), state)
        seconds[method] = []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            carry = jax.block_until_ready(program(carry, gradient))
            seconds[method].append((time.perf_counter() - began) / steps)
    return {
        "seconds": {method: values[1:] for method, values in seconds.items()},
        "state_bytes": state_bytes,
        "parameter_bytes": gradient.nbytes,
    }


def _many_updates(rule: Any, gradient: Any, steps: int) -> tuple[Callable, Any]:
    takes_loss = isinstance(rule, optax.GradientTransformationExtraArgs)
    extra = {"value": jnp.ones(())} if takes_loss else {}

    def loop(carry: tuple, gradient: Any) -> tuple:
        def update(carry: tuple, _: Any) -> tuple[tuple, None]:
            params, state = carry
            updates, state = rule.update(gradient + 1e-3 * params, state, params, **extra)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(update, carry, None, length=steps)[0]

    return jax.jit(loop, donate_argnums=0), rule.init(gradient)


def _ways(network: str, settings: Settings) -> dict[str, Any]:
    """Seconds of the gradient, and of every method's update both ways, one for each round."""
    given = task(network, Size(**settings.size))
    params = given.init()
    train = given.load().train
    batch = jax.tree.map(lambda array: jnp.asarray(array[: given.batch_size]), train)
    gradient = jax.jit(jax.grad(given.objective))
    gradients = gradient(params, batch)
    of_gradient = []
    ways: dict[str, dict[str, list[float]]] = {
        method: {"one_by_one": [], "fused": []} for method in FIELD
    }
    for _ in range(ROUNDS):
        for method, kept in ways.items():
            timed = both_ways(transformation(method), params, gradients, repeats=settings.repeats)
            kept["one_by_one"].append(np.median(timed.one_by_one))
            kept["fused"].append(np.median(timed.fused))
        began = time.perf_counter()
        for _ in range(settings.repeats):
            jax.block_until_ready(gradient(params, batch))
        of_gradient.append((time.perf_counter() - began) / settings.repeats)
    return {
        "gradient": of_gradient,
        **ways,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    }


def numbers_of_parameters(results: dict) -> list[int]:
    """Every n that was timed, ascending."""
    return sorted(int(n) for n in stored.values_of(results, "update"))


def seconds_of_updates(results: dict, method: str) -> np.ndarray:
    """Seconds of an update, ``(numbers of parameters, repeats)``."""
    cells = [stored.one(results, update=n) for n in numbers_of_parameters(results)]
    return np.array([cell["seconds"][method] for cell in cells])


def exponents(results: dict, method: str) -> np.ndarray:
    """The slope of log seconds against log n where the caches are too small, for each repeat."""
    n = np.array(numbers_of_parameters(results))
    large = n >= OUT_OF_CACHE
    seconds = seconds_of_updates(results, method)[large]
    return np.polyfit(np.log(n[large]), np.log(seconds), 1)[0]


def training_seconds(results: dict, network: str, method: str, way: str) -> np.ndarray:
    """Seconds of a compiled gradient and an update in one of the two ways, for each round."""
    cell = stored.one(results, network=network)
    return np.array(cell["gradient"]) + np.array(cell[method][way])


def networks_of(results: dict) -> list[str]:
    """The networks that these results are about."""
    return stored.values_of(results, "network")


def verdicts(results: dict) -> list[Verdict]:
    """A1 and A5."""
    n = numbers_of_parameters(results)
    cells = [stored.one(results, update=size) for size in n]
    updates = np.log(seconds_of_updates(results, "soaa") / seconds_of_updates(results, "adam"))
    largest = cells[-1]["state_bytes"]
    cost = [
        Clause(
            "complexity O(n)",
            "exponent of n in the seconds of an update, less 1:",
            "at most 0.1",
            [measured(exponents(results, "soaa") - 1)],
        ),
        Clause(
            "memory like Adam's",
            "bytes of state over those of Adam:",
            "at most 1.1 times",
            [known(np.log(largest["soaa"] / largest["adam"]))],
        ),
        Clause(
            "time like Adam's",
            "seconds of an update over those of Adam:",
            "at most 1.1 times",
            [
                measured(row, f"n = {size:.0e}")
                for size, row in zip(n, updates)
                if size >= OUT_OF_CACHE
            ],
        ),
    ]
    speed = [
        _beside(results, "faster than Adam and AdamW", "one_by_one", "below 1.1 times"),
        _beside(results, "level with fused Adam and AdamW", "fused", "at most 1.1 times"),
    ]
    return [
        judge("A1", cost),
        judge("A5", speed, findings=_mixed(results)),
    ]


def _beside(results: dict, says: str, way: str, asks: str) -> Clause:
    how = "fused" if way == "fused" else "one operation at a time"
    readings = [
        measured(
            np.log(training_seconds(results, network, "soaa", way))
            - np.log(training_seconds(results, network, rival, way)),
            f"{label(rival)}, {SHORT[network]}",
        )
        for network in networks_of(results)
        for rival in ("adam", "adamw")
    ]
    statistic = f"seconds of a step, {how}, over those of"
    return Clause(says, statistic, asks, readings)


def _mixed(results: dict) -> list[str]:
    """SOAA fused beside Adam that is not, which is another comparison."""
    found = []
    for network in networks_of(results):
        fused = np.median(training_seconds(results, network, "soaa", "fused"))
        one_by_one = np.median(training_seconds(results, network, "adam", "one_by_one"))
        found.append(
            "a step of SOAA, fused, over one of Adam, one operation at a time, "
            f"{NETWORKS[network]}: {fused / one_by_one:.2f}"
        )
    return found


def draw_updates(axes: Axes, results: dict) -> None:
    """Seconds of an update against n, with a line of slope one."""
    n = np.array(numbers_of_parameters(results))
    for method in FIELD:
        median = np.median(seconds_of_updates(results, method), axis=1)
        axes.plot(n, median, marker="o", **METHODS[method])
    last = np.median(seconds_of_updates(results, "soaa")[-1])
    axes.plot(n, last * n / n[-1], color="0.6", linestyle=":", label="proportional to n")
    axes.set(xlabel="parameters n", ylabel="seconds of an update", xscale="log", yscale="log")
    axes.legend()


def draw_ways(axes: Axes, results: dict) -> None:
    """Milliseconds of a training step, fused and one operation at a time, on each network."""
    networks = networks_of(results)
    places = np.arange(len(networks))
    for k, method in enumerate(FIELD):
        for way, marker in (("one_by_one", "o"), ("fused", "s")):
            seconds = [np.median(training_seconds(results, n, method, way)) for n in networks]
            name = f"{label(method)}, {'fused' if way == 'fused' else 'one by one'}"
            axes.plot(
                places + 0.15 * (k - 1),
                1e3 * np.array(seconds),
                marker,
                color=(plotting.BLACK, plotting.SKY, plotting.ORANGE)[k],
                label=name,
                fillstyle="full" if way == "fused" else "none",
            )
    axes.set_xticks(places, [NETWORKS[network].split()[0].rstrip(",") for network in networks])
    axes.set(xlabel="network", ylabel="ms of a training step", xlim=(-0.5, len(networks) - 0.5))
    axes.set_yscale("log")
    axes.legend(fontsize=8)


def figure(results: dict) -> Figure:
    """The update against n, and training steps in both ways."""
    drawing, axes = plt.subplots(1, 2, figsize=(11, 4.2))
    draw_updates(axes[0], results)
    draw_ways(axes[1], results)
    return drawing
