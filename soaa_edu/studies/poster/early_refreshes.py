"""How early and how often Shampoo's roots must be refreshed (claim P5, Table 1).

A small ViT on MNIST is trained with Shampoo. Its statistics L and R take in every gradient, but the
roots L⁻ᵉ and R⁻ᵉ are refreshed often only for a first share of training, and after that at a longer
interval or never; the first step refreshes in any case. The learning rate falls along a cosine. It
is tuned once for each form of Shampoo, with and without grafting, on frequent refreshes throughout,
and then holds for the form's whole table. It is tuned anew where the roots are never refreshed
again, so that a failure there is not merely too large a learning rate.

The poster has refreshes early or at long intervals, and never as many of both. So as many as are
early are also spread evenly over all of training, or kept for its end.

The poster's steps are 750,000 and its *often* is every 10 of them, so that its shares of 0.01 to
10 % are 7, 22, 75 and more refreshes. At the laptop scale training takes 512 steps and *often* is
every 5 of them; 1 % is two refreshes. At the gpu scale training takes 14,055 steps and *often* is
every 10. There 0.3 % is five refreshes, and the other shares are those that give the poster's 8,
23, 75 and 141 refreshes; the later intervals are the poster's in proportion to all steps.

The quick scale has an MLP in place of the transformer. Only its 784 pixels are more than a block of
256; no axis of the transformers is.

Budget: at the quick scale 15 runs of a fraction of a second; at the laptop scale some 170 runs of
4 seconds, 13 min on one CPU core.

At the gpu scale the ViT has 139,000 parameters and Shampoo is grafted. All runs of a cell go side
by side, up to 15 at once, and those of one call compute roots in the steps in which one of them is
due. Two programs serve the twelve or so calls of 14,055 steps; by arithmetic, not measured, a step
takes 3 ms on an H100 and the whole 9 minutes.

Shares and intervals are traced, so that runs with different ones share a program.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
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
from soaa_edu.engine import Cell
from soaa_edu.models import Model, mlp, vit
from soaa_edu.objective import Objective, softmax_cross_entropy
from soaa_edu.optimizers import Optimizer, first_order, shampoo
from soaa_edu.studies import panels
from soaa_edu.studies import results as stored
from soaa_edu.studies.poster.field import rising_and_falling
from soaa_edu.studies.results import capped, middles
from soaa_edu.studies.runs import BATCH_SIZE
from soaa_edu.studies.searches import grid_around, tuned
from soaa_edu.studies.tables import as_text
from soaa_edu.studies.verdicts import Clause, Verdict, judge, mean_and_spread, measured
from soaa_edu.training import sweep

TITLE = "Refreshing Shampoo's roots early, evenly or late"
CLAIMS = ("P5",)
POSTERS_SHARE = 0.003
GENEROUS_SHARE = 0.1
NEVER = 1e9
FIRST_STEP_ONLY = 1.0
RATE_RATIO = 2.0
MOST_POINTS = 64
POINTS_DRAWN = 32
LARGEST_BLOCK = 256
TUNING = 3.0
"""The share of a cell that tunes, one of the others being 1."""
FORMS: dict[str, dict[str, Any]] = {
    "grafted": {"label": "grafted", "grafting": "adam", "middle": 8e-3},
    "plain": {"label": "without grafting", "grafting": None, "middle": 3e-2},
}
"""The forms of Shampoo, and the middle of the learning rates tried."""
PLACES = {
    "early": {"label": "all early", "color": plotting.VERMILLION, "marker": "o"},
    "even": {"label": "spread evenly", "color": plotting.BLUE, "marker": "s"},
    "late": {"label": "all at the end", "color": plotting.BLACK, "marker": "^"},
}
"""How each placement of the refreshes looks in every picture."""


class Settings(NamedTuple):
    """What a scale runs, and what it costs; the laptop's by default."""

    forms: tuple[str, ...] = tuple(FORMS)
    width: int = 16
    depth: int = 2
    images: int = 16_384
    epochs: int = 2
    frequent: int = 5
    shares: tuple[float, ...] = (0.0, 0.01, 0.03, 0.1)
    intervals: tuple[int, ...] = (15, 150)
    tries: int = 9
    seeds: int = 3
    warm_up: int = 0
    minutes: float = 13.0

    @property
    def steps(self) -> int:
        """Of a whole run."""
        return self.images // BATCH_SIZE * self.epochs


SCALES = {
    "quick": Settings(
        forms=("grafted",),
        depth=0,
        images=3200,
        shares=(0.0, 0.1),
        intervals=(25,),
        tries=1,
        minutes=0.25,
    ),
    "laptop": Settings(),
    "gpu": Settings(
        forms=("grafted",),
        width=64,
        depth=4,
        images=60_000,
        epochs=15,
        frequent=10,
        shares=(0.0, 0.003, 0.005, 0.016, 0.053, 0.1),
        intervals=(56, 187, 562),
        warm_up=500,
        minutes=9.0,
    ),
}


class Schedule(NamedTuple):
    """When the roots are refreshed, in steps; all are floats, so that a program can trace them.

    Attributes:
        early: the frequent interval holds before this step,
        late: and from this step on;
        interval: holds between the two.
    """

    early: float
    interval: float
    late: float = NEVER

    def refreshes(self, frequent: int, steps: int) -> int:
        """How many there are in so many steps, the first step's included."""
        count, latest = 0, -np.inf
        for step in range(steps):
            often = step < self.early or step >= self.late
            if step - latest >= (frequent if often else self.interval):
                count, latest = count + 1, step
        return count


THROUGHOUT = Schedule(NEVER, NEVER)
FIRST_ALONE = Schedule(FIRST_STEP_ONLY, NEVER)


def then_every(share: float, later: float, settings: Settings) -> Schedule:
    """Frequent for a share of training, then at a later interval."""
    return Schedule(max(share * settings.steps, FIRST_STEP_ONLY), float(later))


def placed(place: str, share: float, settings: Settings) -> Schedule:
    """As many refreshes as a share of training has, all early, spread evenly or all at the end.

    The first step's refresh stays where it is.
    """
    early = then_every(share, NEVER, settings)
    if place == "early":
        return early
    count = early.refreshes(settings.frequent, settings.steps)
    if place == "even":
        return Schedule(FIRST_STEP_ONLY, float(-(-settings.steps // count)))
    late = settings.steps - settings.frequent * (count - 1)
    return Schedule(FIRST_STEP_ONLY, NEVER, float(late))


def every(schedule: Schedule, frequent: int) -> Callable[[Any], Any]:
    """Shampoo's ``refresh_every``: steps taken -> interval."""

    def refresh_every(steps: Any) -> Any:
        often = (steps < schedule.early) | (steps >= schedule.late)
        return jnp.where(often, frequent, schedule.interval)

    return refresh_every


def digits(settings: Settings) -> Dataset:
    """MNIST, with no more test images than training images."""
    whole = mnist(settings.images)
    return Dataset(whole.train, jax.tree.map(lambda array: array[: settings.images], whole.test))


def network(settings: Settings) -> Model:
    """The transformer; with no blocks, an MLP of one hidden layer, which compiles far sooner."""
    if settings.depth == 0:
        return mlp([784, settings.width, 10])
    return vit(width=settings.width, depth=settings.depth)


@cache
def builder(form: str, settings: Settings) -> Callable[..., Optimizer]:
    """``(learning_rate, early, interval, late) -> Optimizer``, one for a form and a scale."""
    objective = Objective(network(settings), softmax_cross_entropy)

    def build(learning_rate: Any, early: Any, interval: Any, late: Any) -> Optimizer:
        refresh_every = every(Schedule(early, interval, late), settings.frequent)
        if settings.warm_up:
            rate = rising_and_falling(learning_rate, settings.steps, settings.warm_up)
        else:
            rate = optax.cosine_decay_schedule(learning_rate, settings.steps)
        grafting = FORMS[form]["grafting"]
        transformation = shampoo(
            rate, refresh_every=refresh_every, grafting=grafting, block_size=LARGEST_BLOCK
        )
        return first_order(objective, transformation)

    return build


def cells(settings: Settings) -> dict[str, Callable[[], Any] | Cell]:
    """For each form the tuning, the placements, a cell for each share, and the tuning anew."""
    found: dict[str, Callable[[], Any] | Cell] = {}
    for form in settings.forms:
        tuning = stored.name(form=form, refreshes="throughout")
        found[tuning] = Cell(partial(_tuned, form, THROUGHOUT, settings), share=TUNING)
        for place in ("even", "late"):
            found[stored.name(form=form, refreshes=place)] = Cell(
                partial(_placements, form, place, settings), needs=(tuning,)
            )
        for share in settings.shares:
            found[stored.name(form=form, share=f"{share:g}")] = Cell(
                partial(_at_share, form, share, settings), needs=(tuning,)
            )
        if settings.tries > 1:
            found[stored.name(form=form, refreshes="retuned")] = Cell(
                partial(_tuned, form, FIRST_ALONE, settings), share=TUNING
            )
    return found


def _tuned(form: str, schedule: Schedule, settings: Settings) -> dict[str, Any]:
    """The search for a learning rate with one schedule, and the runs at the best."""
    rates = grid_around(FORMS[form]["middle"], RATE_RATIO, settings.tries)
    return tuned(
        builder(form, settings),
        {"learning_rate": rates, **{name: [v] for name, v in schedule._asdict().items()}},
        digits(settings),
        epochs=settings.epochs,
        batch_size=BATCH_SIZE,
        seeds=settings.seeds,
    )


def _at_share(form: str, share: float, settings: Settings, tuning: dict) -> dict[str, Any]:
    intervals = (*settings.intervals, NEVER)
    schedules = [then_every(share, later, settings) for later in intervals]
    return with_each(form, schedules, settings, tuning)


def _placements(form: str, place: str, settings: Settings, tuning: dict) -> dict[str, Any]:
    shares = [share for share in settings.shares if share > 0]
    return with_each(form, [placed(place, share, settings) for share in shares], settings, tuning)


def with_each(
    form: str, schedules: Sequence[Schedule], settings: Settings, tuning: dict
) -> dict[str, Any]:
    """Runs at the tuned rate; losses and accuracies ``(schedules, seeds, ...)``.

    The schedules differ in one number alone.
    """
    rate = tuning["search"]["best"]["learning_rate"]
    of_each = zip(*schedules, strict=True)
    named = zip(Schedule._fields, ([*dict.fromkeys(values)] for values in of_each), strict=True)
    build = builder(form, settings)
    start: Any = build(rate, *FIRST_ALONE).objective
    swept = sweep(
        build,
        {"learning_rate": [rate], **dict(named)},
        start.model.init,
        digits(settings),
        epochs=settings.epochs,
        batch_size=BATCH_SIZE,
        keys=jnp.stack([jax.random.key(seed) for seed in range(settings.seeds)]),
    )
    shape = (len(schedules), settings.seeds, -1)
    losses = swept["loss"].reshape(shape)
    return {
        "refreshes": [s.refreshes(settings.frequent, settings.steps) for s in schedules],
        "loss": plotting.binned(losses, min(settings.steps, MOST_POINTS)),
        "final_loss": losses[..., -(settings.steps // settings.epochs) :].mean(axis=-1),
        "test_accuracy": swept["test_accuracy"].reshape(shape),
    }


def settings_of(results: dict) -> Settings:
    """The settings that these results were computed with."""
    return Settings(**results["settings"])


def throughout(results: dict, form: str, key: str) -> np.ndarray:
    """Numbers of the runs with frequent refreshes to the end, seeds along the first axis."""
    return stored.over_runs(results, key, form=form, refreshes="throughout")


def retuned(results: dict, form: str) -> np.ndarray:
    """Accuracies with the first step's refresh alone and a learning rate tuned for that."""
    return stored.final_accuracy(results, form=form, refreshes="retuned")


def accuracies(results: dict, form: str, share: float) -> np.ndarray:
    """Test accuracy at the end, ``(later intervals, seeds)``; that of a diverged run counts as 0.

    The last of the later intervals is *never*. At a share of 1 there is one row.
    """
    if share == 1:
        return _last(throughout(results, form, "test_accuracy"))[None]
    return _last(np.array(_of_share(results, form, share)["test_accuracy"], float))


def refreshes(results: dict, form: str, share: float) -> list[int]:
    """How many refreshes a run has, one for each later interval."""
    if share == 1:
        settings = settings_of(results)
        return [THROUGHOUT.refreshes(settings.frequent, settings.steps)]
    return _of_share(results, form, share)["refreshes"]


def _of_share(results: dict, form: str, share: float) -> dict[str, Any]:
    return stored.one(results, form=form, share=f"{share:g}")


def shares_placed(results: dict) -> list[float]:
    """The shares whose refreshes were also placed elsewhere."""
    return [share for share in results["settings"]["shares"] if share > 0]


def placed_numbers(results: dict, form: str, place: str, key: str) -> np.ndarray:
    """Numbers of the runs with as many refreshes as each share has, ``(shares, seeds, ...)``."""
    if place == "early":
        shares = shares_placed(results)
        return np.array([_of_share(results, form, share)[key][-1] for share in shares], float)
    return np.array(stored.one(results, form=form, refreshes=place)[key], float)


def claimed_shares(results: dict) -> list[float]:
    """The shares that stand for the claim: the poster's, and the largest of its table.

    Of the poster's 0.3 % the study takes the next larger share that it has. A tenth is generous:
    if even that loses accuracy, early refreshes are not enough here.
    """
    least = min(share for share in shares_placed(results) if share >= POSTERS_SHARE)
    return sorted({least, GENEROUS_SHARE})


def accuracy_lost(results: dict, form: str, share: float) -> np.ndarray:
    """Accuracy lost to frequent refreshes throughout when they end early, one for each seed."""
    return accuracies(results, form, 1)[0] - accuracies(results, form, share)[-1]


def gained_by_early(results: dict, form: str, share: float) -> np.ndarray:
    """Log of the loss with refreshes spread evenly over that with as many early, by seed."""
    place = shares_placed(results).index(share)
    even, early = (
        capped(placed_numbers(results, form, place_, "final_loss")[place])
        for place_ in ("even", "early")
    )
    return np.log(even) - np.log(early)


def verdicts(results: dict) -> list[Verdict]:
    """P5: early refreshes are enough, and better than as many spread evenly."""
    lost, early, findings = [], [], []
    for form in results["settings"]["forms"]:
        name = FORMS[form]["label"]
        for share in claimed_shares(results):
            count = refreshes(results, form, share)[-1]
            where = f"{name}, {count} in the first {_percent(share)}"
            lost.append(measured(accuracy_lost(results, form, share), where))
            early.append(measured(gained_by_early(results, form, share), where))
        alone = accuracies(results, form, 0)[-1]
        findings.append(
            f"{name}, accuracy with refreshes throughout: "
            f"{mean_and_spread(accuracies(results, form, 1)[0])}, with the first step's alone: "
            f"{mean_and_spread(alone)}"
        )
        if stored.select(results, form=form, refreshes="retuned"):
            findings[-1] += f", tuned for that: {mean_and_spread(retuned(results, form))}"
    clauses = [
        Clause(
            "after frequent updates early we need none",
            "accuracy lost to updates throughout:",
            "at most 1 points",
            lost,
        ),
        Clause(
            "it is early that it should be updated",
            "loss with as many spread evenly, beside that with them early:",
            "above 1 %",
            early,
        ),
    ]
    return [judge("P5", clauses, findings=findings)]


def table(results: dict, form: str) -> str:
    """Accuracy in per cent and the number of refreshes, as the poster's Table 1 is laid out."""
    settings = settings_of(results)
    rows = []
    for i, later in enumerate((*settings.intervals, NEVER)):
        row = {"then every": _later(later)}
        for share in (*settings.shares, 1):
            at = min(i, len(refreshes(results, form, share)) - 1)
            accuracy = 100 * accuracies(results, form, share)[at]
            count = refreshes(results, form, share)[at]
            row[_percent(share)] = f"{mean_and_spread(accuracy, 1)} ({count})"
        rows.append(row)
    return as_text(rows)


def draw_table(axes: Axes, results: dict, form: str) -> None:
    """The table as a heat map, with the accuracies and beneath them the numbers of refreshes."""
    settings = settings_of(results)
    shares, intervals = (*settings.shares, 1), (*settings.intervals, NEVER)
    of_shares = [accuracies(results, form, share).mean(axis=1) for share in shares]
    means = 100 * np.array([np.resize(column, len(intervals)) for column in of_shares]).T
    counts = np.array([np.resize(refreshes(results, form, s), len(intervals)) for s in shares]).T
    low, high = _range(results)
    panels.heat_map(
        axes,
        means,
        [_later(later) for later in intervals],
        [_percent(share) for share in shares],
        lambda row, column: f"{means[row, column]:.1f}\n({counts[row, column]})",
        cmap="cividis",
        vmin=low,
        vmax=high,
    )
    axes.set(
        xlabel=f"share of training with a refresh every {settings.frequent} steps",
        ylabel="then a refresh every",
        title=f"Shampoo {FORMS[form]['label']}: test accuracy (%)\nand number of refreshes",
    )


def draw_placements(axes: Axes, results: dict, form: str) -> None:
    """Training loss against the number of refreshes, wherever in training they are."""
    counts = [refreshes(results, form, share)[-1] for share in shares_placed(results)]
    for place, style in PLACES.items():
        losses = capped(placed_numbers(results, form, place, "final_loss"))
        plotting.band(axes, counts, losses.T, markersize=4, **style)
    best = capped(throughout(results, form, "final_loss")).mean()
    axes.axhline(best, color=plotting.GREEN, linestyle="--", label="frequent throughout")
    axes.set_xscale("log")
    axes.set_xticks(counts, [str(count) for count in counts], minor=False)
    axes.xaxis.set_minor_formatter("")
    axes.set(xlabel="number of refreshes", ylabel="training loss, last epoch (nats)")
    axes.set(title=f"Shampoo {FORMS[form]['label']}: where they are")


def draw_curves(axes: Axes, results: dict, form: str) -> None:
    """Training loss against steps: refreshes throughout, early, spread evenly, and one alone."""
    steps = settings_of(results).steps
    share = claimed_shares(results)[-1]
    place = shares_placed(results).index(share)
    count = refreshes(results, form, share)[-1]
    alone = np.array(_of_share(results, form, 0)["loss"][-1], float)
    lines = [
        (throughout(results, form, "loss"), "frequent throughout", plotting.GREEN, "--"),
        (
            placed_numbers(results, form, "early", "loss")[place],
            f"{count} early",
            plotting.VERMILLION,
            "-",
        ),
        (
            placed_numbers(results, form, "even", "loss")[place],
            f"{count} spread evenly",
            plotting.BLUE,
            "-",
        ),
        (alone, "at the first step alone", plotting.PURPLE, ":"),
    ]
    for losses, label, color, style in lines:
        points = losses.shape[-1]
        x, means = (
            plotting.binned(values, min(points, POINTS_DRAWN))
            for values in (middles(points, steps), capped(losses))
        )
        plotting.band(axes, x, means, label=label, color=color, linestyle=style)
    axes.set(xlabel="step", ylabel="training loss (nats)", yscale="log")
    axes.set(title=f"Shampoo {FORMS[form]['label']}: along training")


def figure(results: dict) -> Figure:
    """A row for each form: its table, the placements, and curves of training."""
    forms = results["settings"]["forms"]
    drawing, axes = plt.subplots(
        len(forms), 3, figsize=(15, 4.2 * len(forms)), squeeze=False, width_ratios=(1.3, 1, 1)
    )
    for row, form in zip(axes, forms, strict=True):
        for panel, draw in zip(row, (draw_table, draw_placements, draw_curves), strict=True):
            draw(panel, results, form)
    for panel in axes[0, 1:]:
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncol=2)
    return drawing


def _range(results: dict) -> tuple[float, float]:
    """The lowest and highest mean accuracy in per cent, of all forms together."""
    forms, shares = results["settings"]["forms"], results["settings"]["shares"]
    means = [accuracies(results, f, s).mean(axis=1) for f in forms for s in (*shares, 1)]
    found = 100 * np.concatenate(means)
    return min(found.min(), found.max() - 1), found.max()


def _last(measured: np.ndarray) -> np.ndarray:
    return np.nan_to_num(measured[..., -1])


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _later(interval: float) -> str:
    return "never" if interval == NEVER else f"{interval:,}"
