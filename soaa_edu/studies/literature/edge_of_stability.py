"""Does training settle where its curvature makes the step unstable? (claim L7).

Full batches of 2,000 digits, averaged to 14 by 14 pixels, centred and divided by ten times their
standard deviation so that curvature starts low; two hidden layers of tanh, squared error against
one-hot targets. Gradient descent and Adam at three rates each, and SGD on 64 digits drawn anew at
each step, beside them. Between stretches of steps, Lanczos gives the largest eigenvalue of the
Hessian on all digits, and of Adam's preconditioned Hessian P^-½ H P^-½ with P = diag(√v̂ + ε).

Gradient descent is unstable above λ = 2/η on a quadratic, Adam with its preconditioner held still
above (2 + 2 β₁) / ((1 - β₁) η), which is 38/η at β₁ = 0.9 (Cohen et al. 2021 and 2022). The scale
of the pixels, the rates and the lengths of the runs were chosen on a seed that is not among those
of the study.

At the gpu scale there are all digits and wider layers. By arithmetic, not measured: 0.5 ms a step
on all digits and 30 ms a measurement, 63 runs of 4,000 to 6,700 steps; 8 minutes of an H100.
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
from soaa_edu.curvature import Matvec, hessian_matvec
from soaa_edu.data import mnist
from soaa_edu.linear_solvers import lanczos, ritz
from soaa_edu.models import Model, mlp
from soaa_edu.objective import Objective, squared_error
from soaa_edu.studies import results as stored
from soaa_edu.studies.methods import label
from soaa_edu.studies.tables import as_text
from soaa_edu.studies.verdicts import Clause, Verdict, judge, mean_and_spread, measured

TITLE = "The edge of stability"
CLAIMS = ("L7",)
B1, B2, EPS = 0.9, 0.999, 1e-8
FIRST_SEED = 100
NOISY_BATCH = 64
METHODS = ("gradient_descent", "adam", "sgd")
AT_THE_EDGE = METHODS[:2]
COLORS = (plotting.BLUE, plotting.VERMILLION, plotting.GREEN)


class Settings(NamedTuple):
    """What a scale runs, and what it costs; the laptop's by default.

    Attributes:
        images: digits, all of them in every full batch.
        hidden: width of both hidden layers.
        rates: of gradient descent and of SGD.
        adam_rates: of Adam.
        time: η times the number of steps of gradient descent and SGD.
        adam_steps: of every run of Adam.
        stretches: between measurements.
        iterations: of Lanczos.
    """

    images: int = 2000
    hidden: int = 32
    rates: tuple[float, ...] = (0.15, 0.2, 0.25)
    adam_rates: tuple[float, ...] = (0.002, 0.005, 0.01)
    time: float = 1000.0
    adam_steps: int = 4000
    stretches: int = 60
    iterations: int = 24
    seeds: int = 6
    minutes: float = 13.0


SCALES = {
    "quick": Settings(
        images=100,
        hidden=8,
        rates=(0.25, 0.4),
        adam_rates=(0.02,),
        time=200.0,
        adam_steps=600,
        stretches=10,
        iterations=12,
        seeds=3,
        minutes=1.0,
    ),
    "laptop": Settings(),
    "gpu": Settings(images=60_000, hidden=128, stretches=100, seeds=7, minutes=8.0),
}


def digits(images: int) -> tuple[jax.Array, jax.Array]:
    """Inputs ``(images, 196)`` and one-hot targets ``(images, 10)``."""
    pixels, labels = mnist(images).train
    means = np.asarray(pixels).reshape(images, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(images, -1)
    centred = means - means.mean(axis=0)
    return jnp.asarray(0.1 * centred / centred.std()), jax.nn.one_hot(labels, 10)


def network(hidden: int) -> Model:
    """Two hidden layers of tanh."""
    return mlp([196, hidden, hidden, 10], jnp.tanh)


def rates(settings: Settings, method: str) -> tuple[float, ...]:
    """The rates that a method runs at."""
    return settings.adam_rates if method == "adam" else settings.rates


def edge(method: str, rate: float) -> float:
    """The curvature above which a quadratic makes the method unstable: 2/η, or Adam's 38/η."""
    return (2 + 2 * B1) / ((1 - B1) * rate) if method == "adam" else 2 / rate


def transformation(method: str, rate: Any) -> optax.GradientTransformation:
    """The method itself, as optax has it."""
    return optax.adam(rate, B1, B2, EPS) if method == "adam" else optax.sgd(rate)


def preconditioner(state: Any) -> Any:
    """The diagonal of Adam's P = √v̂ + ε, v̂ = v / (1 - β₂ᵗ), from its state in optax."""
    adam = state[0]
    corrected = optax.tree.bias_correction(adam.nu, B2, jnp.maximum(adam.count, 1))
    return jax.tree.map(lambda v: jnp.sqrt(v) + EPS, corrected)


def preconditioned(matvec: Matvec, diagonal: Any) -> Matvec:
    """v -> P^-½ H P^-½ v, whose eigenvalues are those of P⁻¹ H."""

    def scale(v: Any) -> Any:
        return jax.tree.map(lambda u, p: u / jnp.sqrt(p), v, diagonal)

    return lambda v: scale(matvec(scale(v)))


def largest(matvec: Matvec, like: Any, iterations: int) -> jax.Array:
    """The largest eigenvalue, by Lanczos from a random start."""
    keys = optax.tree.split_key_like(jax.random.key(0), like)
    start = jax.tree.map(lambda key, p: jax.random.normal(key, p.shape, p.dtype), keys, like)
    return ritz(lanczos(matvec, start, iterations))[0][-1]


def cells(settings: Settings) -> dict[str, Callable[[], Any]]:
    """One cell for each method, rate and seed; runs of a method share a compiled program."""
    programs = {method: _program(method, settings) for method in METHODS}
    return {
        stored.name(method=method, rate=rate, seed=seed): partial(
            _run, programs[method], method, rate, seed, settings
        )
        for method in METHODS
        for rate in rates(settings, method)
        for seed in range(settings.seeds)
    }


def _program(method: str, settings: Settings) -> Callable[..., Any]:
    """(params, rate, steps of a stretch, key, batch) -> what was measured after each stretch."""
    objective = Objective(network(settings.hidden), squared_error)

    def measure(params: Any, state: Any, batch: Any) -> dict[str, jax.Array]:
        matvec = hessian_matvec(lambda p: objective(p, batch), params)
        found = {"sharpness": largest(matvec, params, settings.iterations)}
        if method == "adam":
            scaled = preconditioned(matvec, preconditioner(state))
            found["preconditioned"] = largest(scaled, params, settings.iterations)
        return found

    @jax.jit
    def program(params: Any, rate: Any, steps: Any, key: Any, batch: Any) -> Any:
        optimizer = transformation(method, rate)

        def step(i: Any, carry: Any) -> Any:
            params, state, key, before, total, rising = carry
            seen = batch
            if method == "sgd":
                key, draw = jax.random.split(key)
                rows = jax.random.randint(draw, (NOISY_BATCH,), 0, settings.images)
                seen = jax.tree.map(lambda array: array[rows], batch)
            loss, gradient = jax.value_and_grad(objective)(params, seen)
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return params, state, key, loss, total + loss, rising + (loss > before)

        def stretch(carry: Any, _: Any) -> Any:
            *carry, total, rising = jax.lax.fori_loop(0, steps, step, (*carry, 0.0, 0))
            params, state = carry[:2]
            told = {"loss": total / steps, "rising": rising / steps}
            return tuple(carry), told | measure(params, state, batch)

        state = optimizer.init(params)
        first = (params, state, key, jnp.inf)
        _, told = jax.lax.scan(stretch, first, length=settings.stretches)
        matvec = hessian_matvec(lambda p: objective(p, batch), params)
        return told | {"start": largest(matvec, params, settings.iterations)}

    return program


def _run(
    program: Callable[..., Any], method: str, rate: float, seed: int, settings: Settings
) -> dict[str, Any]:
    init_key, draw_key = jax.random.split(jax.random.key(FIRST_SEED + seed))
    params = network(settings.hidden).init(init_key)
    steps = settings.adam_steps if method == "adam" else round(settings.time / rate)
    stretch = steps // settings.stretches
    told = program(params, rate, stretch, draw_key, digits(settings.images))
    return {"steps": stretch * settings.stretches, **told}


def relative(results: dict, method: str, rate: float) -> np.ndarray:
    """Curvature over the edge, Adam's preconditioned, ``(seeds, stretches)``."""
    key = "preconditioned" if method == "adam" else "sharpness"
    return stored.over_runs(results, key, method=method, rate=rate) / edge(method, rate)


def at_the_end(results: dict, method: str, rate: float) -> np.ndarray:
    """The median of curvature over the edge in the last half of training, one for each seed."""
    values = relative(results, method, rate)
    return np.median(values[:, values.shape[1] // 2 :], axis=1)


def sharpened(results: dict, method: str, rate: float) -> np.ndarray:
    """The median curvature of the last half over that of the start, one for each seed."""
    start = stored.over_runs(results, "start", method=method, rate=rate)
    return at_the_end(results, method, rate) * edge(method, rate) / start


def fall(results: dict, method: str, rate: float) -> np.ndarray:
    """Log of the loss of the last stretch over that of the middle one, one for each seed."""
    loss = stored.over_runs(results, "loss", method=method, rate=rate)
    return np.log(loss[:, -1] / loss[:, loss.shape[1] // 2])


def rising(results: dict, method: str, rate: float) -> np.ndarray:
    """The share of steps in the last half at which the loss rises, one for each seed."""
    shares = stored.over_runs(results, "rising", method=method, rate=rate)
    return shares[:, shares.shape[1] // 2 :].mean(axis=1)


def places(results: dict, *methods: str) -> list[tuple[str, float]]:
    """The methods with their rates."""
    found = ((m, r) for m in methods for r in stored.values_of(results, "rate", method=m))
    return [(method, float(rate)) for method, rate in found]


def _words(method: str, rate: float) -> str:
    return f"{label(method)}, η = {rate:g}"


def verdicts(results: dict) -> list[Verdict]:
    """L7: curvature near the edge for both methods, and a loss that falls there, but not always."""

    def near(method: str, says: str, threshold: str) -> Clause:
        readings = [
            measured(np.log(at_the_end(results, method, rate)), f"η = {rate:g}")
            for _, rate in places(results, method)
        ]
        return Clause(
            says, f"its median in the last half beside {threshold}:", "within 10 %", readings
        )

    both = places(results, *AT_THE_EDGE)
    clauses = [
        near("gradient_descent", "gradient descent's sharpness hovers at 2/η", "2/η"),
        near("adam", "Adam's preconditioned sharpness at 38/η", "38/η"),
        Clause(
            "the loss does not fall at every step",
            "steps of the last half at which it rises:",
            "above 1 points",
            [measured(rising(results, *place), _words(*place)) for place in both],
        ),
        Clause(
            "and yet falls over many",
            "the loss of the last stretch beside the middle one's:",
            "below 10 %",
            [measured(fall(results, *place), _words(*place)) for place in both],
        ),
    ]
    findings = [
        f"{_words(*place)}: sharpness over that of the start {mean_and_spread(rise, 2)}"
        for place in places(results, "gradient_descent")
        for rise in [sharpened(results, *place)]
    ]
    findings += [
        f"{_words(*place)}, {NOISY_BATCH} digits: sharpness over 2/η {mean_and_spread(ratio, 3)}"
        for place in places(results, "sgd")
        for ratio in [at_the_end(results, *place)]
    ]
    return [judge("L7", clauses, findings=findings)]


def table(results: dict) -> str:
    """The edge, curvature beside it, and what the loss does there."""
    rows = []
    for method, rate in places(results, *METHODS):
        loss = stored.over_runs(results, "loss", method=method, rate=rate)[:, -1]
        rows.append(
            {
                "method": label(method),
                "η": f"{rate:g}",
                "steps": f"{stored.steps(results, method=method, rate=rate):,}",
                "edge": f"{edge(method, rate):,.4g}",
                "curvature / edge": mean_and_spread(at_the_end(results, method, rate), 3),
                "steps up, %": mean_and_spread(100 * rising(results, method, rate), 1),
                "loss": mean_and_spread(loss, 4),
            }
        )
    return as_text(rows)


def draw_curvature(axes: Axes, results: dict, method: str) -> None:
    """Curvature over the edge along training, a band over seeds for every rate."""
    _draw(axes, results, method, lambda rate: relative(results, method, rate))
    axes.axhline(1, color="0.3", linestyle="--", linewidth=1)
    edges = {"adam": "$P^{-1}H$'s λ over $38/η$", "sgd": "λ over $2/η$"}
    axes.set(title=label(method), ylim=(0, 1.3), ylabel=edges.get(method, edges["sgd"]))


def draw_loss(axes: Axes, results: dict, method: str) -> None:
    """Loss along training, means over stretches."""
    _draw(axes, results, method, lambda rate: _losses(results, method, rate))
    axes.set(yscale="log", ylabel="training loss, ½ squared error", xlabel="step")


def _losses(results: dict, method: str, rate: float) -> np.ndarray:
    return stored.over_runs(results, "loss", method=method, rate=rate)


def _draw(axes: Axes, results: dict, method: str, values: Callable[[float], np.ndarray]) -> None:
    for (_, rate), color in zip(places(results, method), COLORS, strict=False):
        found = values(rate)
        ends = np.arange(1, found.shape[1] + 1) / found.shape[1]
        steps = ends * stored.steps(results, method=method, rate=rate)
        plotting.band(axes, steps, found, label=f"η = {rate:g}", color=color)


def figure(results: dict) -> Figure:
    """Curvature over the edge, and the loss, for each method."""
    drawing, axes = plt.subplots(2, len(METHODS), figsize=(12, 6.4), sharex="col")
    for (above, below), method in zip(axes.T, METHODS, strict=True):
        draw_curvature(above, results, method)
        draw_loss(below, results, method)
        above.set_xlabel("step")
        above.legend(loc="lower right")
    return drawing
