"""What the stored results say, in a few sentences and on a page: README's findings, RESULTS.md."""

from collections import Counter
from pathlib import Path

import numpy as np

from soaa_edu import claims, studies
from soaa_edu.studies.poster import batch_sizes, large_batch_race
from soaa_edu.studies.results import beside, cost, final_loss, in_adam_steps
from soaa_edu.studies.slides import gauss_newton_on_mnist
from soaa_edu.studies.slides.network import REPORTED, SLIDES_STEPS
from soaa_edu.studies.soaa import soaa_ablation, soaa_race
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
    run = SLIDES_STEPS * cost(gauss_newton, "seconds_a_step", "newton").mean()
    hours = REPORTED["newton"]["seconds"] / 3600
    sgd, curved = (
        gauss_newton_on_mnist.paired(gauss_newton, method, "final_loss")
        for method in ("sgd_at_0.1", "gauss_newton_at_4")
    )
    kfac, adam = (final_loss(race, method=m, network="mlp").mean() for m in ("kfac", "adam"))
    of_step = np.median(in_adam_steps(race, "kfac", network="mlp"))
    on_mlp, on_decoder = (
        in_unit(beside(soaa, "soaa", "adam", network=network).mean(), "%")
        for network in ("mlp", "decoder")
    )
    decides = 100 * max(
        soaa_ablation.share(ablation, network, "soaa").max()
        for network in soaa_ablation.networks_of(ablation)
    )
    criterion, _ = claims.card("P2", folder).verdict.clauses  # type: ignore[union-attr]
    times = in_unit(criterion.readings[0].interval[1], "times")
    return [
        f"Newton's damped run, for which the slides need {hours:.1f} hours, takes "
        f"{run:.0f} seconds when the same step is solved the short way.",
        f"At batch 64 Gauss-Newton ends {np.mean(sgd - curved):.4f} nats below SGD over "
        f"{len(sgd)} pairs of seeds.",
        f"At batch 4,096 K-FAC ends an MLP's three epochs at a loss of {kfac:.3f} and Adam at "
        f"{adam:.3f}; a step of K-FAC takes {of_step:.1f} of Adam's.",
        f"SOAA's loss is {on_mlp:+.0f} % beside Adam's on an MLP and "
        f"{on_decoder:+.1f} % on a decoder, and its Fisher decides in {decides:.0f} % of "
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
