"""Physics-informed networks: what errors first and second order reach in equal time (claim L6).

A network learns Poisson's equation in two dimensions, or Burgers' with ν = 0.1/π, as least squares
of its residuals, in float64: Gauss-Newton with Levenberg's and Marquardt's damping solved exactly
and by conjugate gradients, L-BFGS with optax's zoom line search, SOAP, and Adam. The points are
drawn once for each seed, the same for all methods, and every step takes all of them. What is told
is the error of the solution, not the loss: relative, in L², on a grid of 101 by 101 points.

Every run has as many seconds as every other, compilation left out, and the rates of Adam and SOAP
fall along a cosine of the seconds gone. On a CPU these are seconds of the processor, all threads
together, so that other work on the machine lengthens the study and leaves the race as it is. Each
method has three tries on a seed of its own, of a rate, of a first λ or of L-BFGS's memory, and
starts anew on other seeds. Adam at its best rate has one more run, ten times as long.

Budget: at the laptop scale ten cells of eight runs of five seconds, Adam's long ones, and two
minutes of compilation; it is computed with XLA's threads off (``XLA_FLAGS=
--xla_cpu_multi_thread_eigen=false``), two processes beside each other. The gpu scale takes the
time of the clock, ten times the points, and networks of 4,000 parameters; by arithmetic, not
measured.
"""

from collections.abc import Callable
from functools import partial
from math import cos, pi
from time import perf_counter, process_time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from soaa_edu import differential_equations as equations
from soaa_edu.engine import Cell
from soaa_edu.models import mlp
from soaa_edu.optimizers import (
    Optimizer,
    first_order,
    hessian_free,
    levenberg_marquardt,
    newton,
    soap,
)
from soaa_edu.studies import results as stored
from soaa_edu.studies.methods import METHODS, label
from soaa_edu.studies.results import capped, name
from soaa_edu.studies.tables import as_text
from soaa_edu.studies.verdicts import Clause, Verdict, judge, measured

TITLE = "Physics-informed networks, first and second order in equal time"
CLAIMS = ("L6",)
EQUATIONS: dict[str, Callable[[], equations.Equation]] = {
    "poisson": equations.poisson,
    "burgers": equations.burgers,
}
TUNED: dict[str, tuple[float, ...]] = {
    "gauss_newton_dense": (0.1, 1.0, 10.0),
    "levenberg_marquardt": (0.1, 1.0, 10.0),
    "lbfgs": (10, 30, 90),
    "soap": (1e-3, 3e-3, 1e-2),
    "adam_cosine": (3e-3, 1e-2, 3e-2),
}
"""What is tried: the first λ, L-BFGS's memory in steps, or the rate at the start."""
TUNING_SEED = 1000
MOST_ITERATIONS = 100
ADAPTED = {"decrease": 1 / 3, "increase": 3.0}
LEAST_CHUNKS = 100


class Settings(NamedTuple):
    """What a scale runs, and what it costs; the laptop's by default.

    ``poisson`` and ``burgers`` are the widths of the hidden layers that learn each equation.
    """

    poisson: tuple[int, ...] = (64,)
    burgers: tuple[int, ...] = (16, 16, 16)
    interior: int = 24
    boundary: int = 32
    methods: tuple[str, ...] = tuple(TUNED)
    tries: int = 3
    seeds: int = 5
    seconds: float = 5.0
    marks: int = 16
    longer: float = 10.0
    minutes: float = 12.0


SCALES = {
    "quick": Settings(
        poisson=(16,),
        burgers=(8, 8),
        interior=12,
        boundary=12,
        methods=("gauss_newton_dense", "lbfgs", "soap", "adam_cosine"),
        tries=1,
        seeds=3,
        seconds=0.5,
        marks=6,
        longer=2.0,
        minutes=1.5,
    ),
    "laptop": Settings(),
    "gpu": Settings(
        poisson=(64, 64),
        burgers=(64, 64),
        interior=80,
        boundary=100,
        seconds=20.0,
        minutes=30.0,
    ),
}


def cells(settings: Settings) -> dict[str, Cell]:
    """One for each method on each equation, and Adam's long run for each equation."""
    runs = settings.seeds + settings.tries
    found = {}
    for equation in EQUATIONS:
        for method in settings.methods:
            found[name(method=method, equation=equation)] = Cell(
                partial(compete, settings, method, equation), share=runs
            )
        adam = name(method="adam_cosine", equation=equation)
        found[name(long="adam_cosine", equation=equation)] = Cell(
            partial(go_on, settings, equation), share=settings.longer, needs=(adam,)
        )
    return found


class Race(NamedTuple):
    """An equation to be solved by a network: what a seed starts from, and how a run is judged."""

    objective: Any
    start: Callable[[int], tuple[Any, Any]]
    error: Callable[[Any], Any]


def race(settings: Settings, equation: str) -> Race:
    """The race on an equation; ``start(seed)`` gives the parameters and the points."""
    solved = EQUATIONS[equation]()
    network = mlp([2, *getattr(settings, equation), 1], jnp.tanh)

    def start(seed: int) -> tuple[Any, Any]:
        init_key, points_key = jax.random.split(jax.random.key(seed))
        points = equations.collocation(
            solved, points_key, interior=settings.interior, boundary=settings.boundary
        )
        return network.init(init_key), points

    error = jax.jit(partial(equations.relative_error, solved, network))
    return Race(equations.as_least_squares(solved, network), start, error)


def build(method: str, objective: Any, tuned: Any, fall: Any = 1.0) -> Optimizer:
    """A method of the race at what is tuned of it; ``fall`` is the share left of a rate."""
    if method == "gauss_newton_dense":
        damping = levenberg_marquardt(tuned, **ADAPTED)
        return newton(objective, curvature="gauss_newton", damping=damping)
    if method == "levenberg_marquardt":
        return hessian_free(
            objective,
            curvature="gauss_newton",
            damping=levenberg_marquardt(tuned, **ADAPTED),
            max_iterations=MOST_ITERATIONS,
        )
    if method == "lbfgs":
        return lbfgs(objective, int(tuned))
    make = {"soap": soap, "adam_cosine": optax.adam}[method]
    return first_order(objective, make(tuned * fall))


def lbfgs(objective: Any, memory: int) -> Optimizer:
    """optax's L-BFGS, which keeps from its line search the loss and the gradient it ends with."""
    transformation = optax.lbfgs(memory_size=memory)

    def step(params: Any, state: Any, batch: Any, key: Any) -> tuple[Any, Any, dict]:
        def value_fn(p: Any) -> Any:
            return objective(p, batch)

        value, gradient = optax.value_and_grad_from_state(value_fn)(params, state=state)
        updates, state = transformation.update(
            gradient, state, params, value=value, grad=gradient, value_fn=value_fn
        )
        return optax.apply_updates(params, updates), state, {"loss": value}

    return Optimizer(transformation.init, step, objective)


def steps_of(method: str, objective: Any) -> Callable:
    """``(params, state, batch, tuned, fall, count) -> (params, state, info)``, compiled once.

    L-BFGS's memory is a size of arrays, so each has a program of its own.
    """

    def take(
        params: Any, state: Any, batch: Any, tuned: Any, fall: Any, count: Any
    ) -> tuple[Any, Any, Any]:
        optimizer = build(method, objective, tuned, fall)
        first = optimizer.step(params, state, batch, None)

        def again(_: Any, carry: tuple) -> tuple[Any, Any, dict]:
            params, state, _info = carry
            return optimizer.step(params, state, batch, None)

        return jax.lax.fori_loop(1, count, again, first)

    return jax.jit(take, static_argnums=(3,) if method == "lbfgs" else ())


def clock() -> float:
    """Seconds of the processor, or of the wall where something else computes."""
    return process_time() if jax.default_backend() == "cpu" else perf_counter()


def timed_run(
    settings: Settings,
    method: str,
    there: Race,
    take: Callable,
    tuned: Any,
    seed: int,
    longer: float,
) -> dict[str, Any]:
    """A run of ``settings.seconds`` times ``longer``: what it reached at spaced times."""
    params, batch = there.start(seed)
    state = build(method, there.objective, tuned).init(params)
    jax.block_until_ready(take(params, state, batch, tuned, 1.0, 1))
    whole = settings.seconds * longer
    marks = np.geomspace(whole / LEAST_CHUNKS, whole, settings.marks)
    steps, gone, count = 0, 0.0, 1
    kept: dict[str, list] = {}
    for mark in marks:
        while gone < mark:
            fall = 0.5 * (1 + cos(pi * min(gone / whole, 1)))
            began = clock()
            params, state, info = take(params, state, batch, tuned, fall, count)
            jax.block_until_ready(params)
            gone += clock() - began
            steps += count
            left = min(mark - gone, whole / LEAST_CHUNKS)
            count = max(1, int(left * steps / gone))
        reached = {"seconds": gone, "steps": steps, "error": there.error(params), **info}
        for key, value in reached.items():
            kept.setdefault(key, []).append(float(value))
    return {**kept, "final_error": float(capped(kept["error"][-1]))}


def compete(settings: Settings, method: str, equation: str) -> dict[str, Any]:
    """A method's tries on a seed of its own, and its runs at the best of them."""
    points = TUNED[method][: settings.tries] if settings.tries > 1 else TUNED[method][1:2]
    with jax.enable_x64(True):
        there = race(settings, equation)
        take = steps_of(method, there.objective)
        go = partial(timed_run, settings, method, there, take, longer=1.0)
        scores = [go(point, seed=TUNING_SEED)["final_error"] for point in points]
        best = points[int(np.argmin(scores))]
        runs = [go(best, seed=seed) for seed in range(settings.seeds)]
    return {"search": {"points": list(points), "scores": scores, "best": best}, "runs": runs}


def go_on(settings: Settings, equation: str, found: Any) -> dict[str, Any]:
    """Adam at its best rate for ``settings.longer`` times the seconds, on the first seed."""
    with jax.enable_x64(True):
        there = race(settings, equation)
        take = steps_of("adam_cosine", there.objective)
        best = found["search"]["best"]
        return timed_run(settings, "adam_cosine", there, take, best, 0, settings.longer)


def errors(results: dict, method: str, equation: str) -> np.ndarray:
    """Errors at the end, one for each seed; that of a lost run counts as 10."""
    return stored.over_runs(results, "final_error", method=method, equation=equation)


def against(
    results: dict, method: str, rival: str, equation: str, share: float = 1.0
) -> np.ndarray:
    """Log of a method's error over a rival's, seed by seed; the method has a share of the time."""
    at = {"method": method, "equation": equation}
    seconds, curves = (stored.over_runs(results, key, **at) for key in ("seconds", "error"))
    in_time = seconds <= share * seconds[:, -1:]
    last = np.maximum(in_time.sum(axis=1) - 1, 0)
    reached = np.take_along_axis(curves, last[:, None], axis=1)[:, 0]
    return stored.log_ratio(reached, errors(results, rival, equation))


def verdicts(results: dict) -> list[Verdict]:
    """L6: Gauss-Newton, SOAP and L-BFGS against Adam, Gauss-Newton in a tenth of the time too."""

    def readings(method: str, rival: str, share: float = 1.0) -> list:
        return [measured(against(results, method, rival, at, share), at) for at in EQUATIONS]

    clauses = [
        Clause(
            "second order reaches errors that Adam does not",
            "Gauss-Newton's error over Adam's:",
            "below 2 times",
            readings("gauss_newton_dense", "adam_cosine"),
        ),
        Clause(
            "and not in ten times as many seconds either",
            "Gauss-Newton's error after a tenth of them over Adam's:",
            "below 2 times",
            readings("gauss_newton_dense", "adam_cosine", 0.1),
        ),
        Clause(
            "a matrix for every layer does it too",
            "SOAP's error over Adam's:",
            "below 2 times",
            readings("soap", "adam_cosine"),
        ),
        Clause(
            "pairs of gradients are not enough",
            "Gauss-Newton's error over L-BFGS's:",
            "below 2 times",
            readings("gauss_newton_dense", "lbfgs"),
        ),
    ]
    findings = []
    for equation in EQUATIONS:
        for method in results["settings"]["methods"]:
            found = errors(results, method, equation)
            best = stored.search(results, method=method, equation=equation)["best"]
            findings.append(
                f"{equation}, {label(method)} at {best:g}: error {_middle(found):.1e}, from "
                f"{found.min():.1e} to {found.max():.1e}"
            )
        long = stored.one(results, long="adam_cosine", equation=equation)
        findings.append(
            f"{equation}, Adam in {results['settings']['longer']:g} times the seconds, one seed: "
            f"error {long['final_error']:.1e} after {long['steps'][-1]:,.0f} steps"
        )
    return [judge("L6", clauses, findings=findings)]


def _middle(found: np.ndarray) -> float:
    """The geometric mean."""
    return float(np.exp(np.log(found).mean()))


def rows(results: dict, equation: str) -> list[dict[str, str]]:
    """What every method was tuned to, reached, and took, on an equation."""
    found = []
    for method in results["settings"]["methods"]:
        at = {"method": method, "equation": equation}
        ends = errors(results, **at)
        steps, seconds = (
            stored.over_runs(results, key, **at)[:, -1] for key in ("steps", "seconds")
        )
        found.append(
            {
                "method": label(method),
                "tuned": f"{stored.search(results, **at)['best']:g}",
                "error": f"{_middle(ends):.1e}",
                "from": f"{ends.min():.1e}",
                "to": f"{ends.max():.1e}",
                "steps": f"{np.median(steps):,.0f}",
                "ms/step": f"{1e3 * np.median(seconds / steps):.2f}",
            }
        )
    return found


def table(results: dict) -> str:
    """The rows of all equations as text."""
    return "\n\n".join(f"{equation}\n{as_text(rows(results, equation))}" for equation in EQUATIONS)


def draw_errors(axes: Axes, results: dict, equation: str, against: str = "seconds") -> None:
    """Errors against seconds, or steps: the middle of the seeds, and all between their ends."""
    for method in results["settings"]["methods"]:
        at = {"method": method, "equation": equation}
        x = np.median(stored.over_runs(results, against, **at), axis=0)
        found = np.log(stored.over_runs(results, "error", **at))
        look = METHODS[method]
        axes.plot(x, np.exp(found.mean(axis=0)), **look)
        low, high = np.exp(found.min(axis=0)), np.exp(found.max(axis=0))
        axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
    long = stored.one(results, long="adam_cosine", equation=equation)
    look = METHODS["adam_cosine"] | {"label": "", "linewidth": 0.8}
    axes.plot(long[against], long["error"], **look)
    axes.set(xscale="log", yscale="log", ylabel="relative error, L²")
    axes.set_xlabel("seconds, compilation left out" if against == "seconds" else "step")
    axes.set_title(f"{equation.capitalize()}'{'' if equation.endswith('s') else 's'} equation")


def figure(results: dict) -> Figure:
    """Errors against seconds, a panel for each equation; the thin line is Adam's long run."""
    drawing, axes = plt.subplots(1, len(EQUATIONS), figsize=(12.4, 4.4))
    for panel, equation in zip(axes, EQUATIONS, strict=True):
        draw_errors(panel, results, equation)
    axes[-1].legend(fontsize=8)
    return drawing
