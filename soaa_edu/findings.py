"""What the stored results say, in a few sentences and on a page: README's findings, RESULTS.md."""

from collections import Counter
from pathlib import Path

import numpy as np

from soaa_edu import claims, studies
from soaa_edu.studies import (
    batch_sizes,
    gauss_newton_on_mnist,
    large_batch_race,
    soaa_ablation,
    soaa_race,
)
from soaa_edu.studies.runs import SLIDES, SLIDES_STEPS, seconds_a_step
from soaa_edu.studies.verdicts import in_unit

WORDS = ("holds", "holds in part", "does not hold", "open")


def counts(folder: Path | None = None) -> str:
    """How many claims have each verdict, in a sentence.

    Args:
        folder: where results are stored.
    """
    verdicts = (claims.card(name, folder).verdict for name in claims.LEDGER)
    found = Counter(verdict.answer for verdict in verdicts if verdict is not None)
    hold, in_part, fail, unsettled = (found[word] for word in WORDS)
    return (
        f"Of the {len(claims.LEDGER)} claims {hold} hold, {in_part} hold in part, {fail} do not, "
        f"and {unsettled} are open."
    )


def sentences(folder: Path | None = None) -> list[str]:
    """Five findings, each with its number, from the laptop scale."""
    gauss_newton, race, soaa, ablation = (
        studies.stored(name, "laptop", folder)
        for name in (
            "gauss_newton_on_mnist",
            "large_batch_race",
            "soaa_race",
            "soaa_ablation",
        )
    )
    run = SLIDES_STEPS * seconds_a_step(gauss_newton, "damped").mean()
    hours = SLIDES["damped"]["seconds"] / 3600
    lead = np.mean(
        gauss_newton_on_mnist.paired(gauss_newton, "sgd", "final_loss")
        - gauss_newton_on_mnist.paired(gauss_newton, "gauss_newton", "final_loss")
    )
    kfac, adam = (
        large_batch_race.over_runs(race, m, "mlp", "final_loss").mean() for m in ("kfac", "adam")
    )
    cost = {m: np.mean(race["cells"]["cost_on_mlp"]["seconds_a_step"][m]) for m in ("kfac", "adam")}
    beside = {
        network: in_unit(soaa_race.log_ratio(soaa, network, "soaa", "adam").mean(), "%")
        for network in ("mlp", "decoder")
    }
    decides = 100 * max(
        soaa_ablation.share(ablation, network, "soaa").max()
        for network in soaa_ablation.networks_of(ablation)
    )
    (criterion,) = claims.card("P2", folder).verdict.clauses  # type: ignore[union-attr]
    times = in_unit(criterion.readings[0].interval[1], "times")
    return [
        f"Newton's damped run, for which the slides need {hours:.1f} hours, takes "
        f"{run:.0f} seconds when the same step is solved the short way.",
        f"At batch 64 Gauss-Newton ends {lead:.4f} nats below SGD over "
        f"{len(gauss_newton_on_mnist.paired(gauss_newton, 'sgd', 'final_loss'))} pairs of seeds.",
        f"At batch 4,096 K-FAC ends an MLP's three epochs at a loss of {kfac:.3f} and Adam at "
        f"{adam:.3f}; a step of K-FAC takes {cost['kfac'] / cost['adam']:.1f} of Adam's.",
        f"SOAA's loss is {beside['mlp']:+.0f} % beside Adam's on an MLP and "
        f"{beside['decoder']:+.1f} % on a decoder, and its Fisher decides in {decides:.0f} % of "
        "the coordinates.",
        f"After as many iterations, PSGD's matrix from batches of 4,096 misses its best by "
        f"{times:.2f} times what it does from batches of 64: the batch size counts.",
    ]


def page(folder: Path | None = None) -> str:
    """RESULTS.md: the tables and the ledger, from the stored results.

    Args:
        folder: where results are stored.

    Raises:
        soaa_edu.storage.StoredFileError: laptop results that a table needs are not stored.
    """

    def stored(name: str) -> dict:
        return studies.stored(name, "laptop", folder)

    slides = gauss_newton_on_mnist.slides_table(
        stored("gauss_newton_on_mnist"), stored("newton_on_mnist")
    )
    sizes = stored("batch_sizes")
    ends = [batch_sizes.table(sizes, "mlp", size) for size in (64, 16_384)]
    parts = [
        "# Results",
        "Made by `soaa-edu results` from the numbers in `figures/`; a test holds it to them.",
        "## The slides' experiments",
        "784-10-10 on MNIST, batches of 64, seven epochs. The slides' numbers come from a V100 and "
        "ours from two CPU cores; the loss is the mean of the last epoch, and ours are means over "
        "five seeds (three for undamped Newton).",
        _as_block(slides),
        "## Large batches",
        "Batch 4,096: three epochs of an MLP and a CNN, one of a vision transformer, each method "
        "with nine tries for its one number, then three fresh seeds. *Below Adam* asks for 1 % of "
        "the loss; *Adam steps* are seconds of a step over those of Adam.",
        _as_block(large_batch_race.table(stored("large_batch_race"))),
        "## SOAA",
        "An MLP (MNIST, three epochs), a small encoder and a small decoder (characters, 400 "
        "steps): nine tries for each method's one number, then five fresh seeds.",
        _as_block(soaa_race.table(stored("soaa_race"))),
        "## Batch sizes",
        "An MLP that sees 32,768 images three times, each method tuned at each batch size. The "
        "cost of a step was timed in the same process.",
        *map(_as_block, ends),
        "![Accuracy and loss against the batch size](figures/batch_sizes.laptop.png)",
        "## The ledger",
        f"{counts(folder)} `soaa-edu claims --full` prints every number.",
        claims.table(folder),
    ]
    return "\n\n".join(parts) + "\n"


def _as_block(text: str) -> str:
    return f"```text\n{text}\n```"
