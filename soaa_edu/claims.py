"""The ledger: what the sources claim, which study settles it, and the verdict."""

from html import escape
from pathlib import Path
from typing import NamedTuple

from soaa_edu import checks, studies
from soaa_edu.studies.verdicts import OPEN, Verdict


class Claim(NamedTuple):
    """A claim of one of the sources.

    Attributes:
        text: what is claimed.
        reported: what the source shows for it.
        study: the name of the study that settles it.
    """

    text: str
    reported: str
    study: str


LEDGER = {
    "S1": Claim(
        "Newton solves a convex quadratic in one step", "a derivation", "newton_on_quadratics"
    ),
    "S2": Claim(
        "undamped Newton does not converge on MNIST",
        "training loss 2.305, test accuracy 0.1028 (Fig. 1)",
        "newton_on_mnist",
    ),
    "S3": Claim(
        "and undamped Newton is slow", "21,257 s against 222 s for SGD (Fig. 2)", "newton_on_mnist"
    ),
    "S4": Claim(
        "damping of 32 makes Newton converge, a little behind SGD",
        "0.2837 / 0.9003 against 0.2121 / 0.9138 (Figs. 3, 5)",
        "newton_on_mnist",
    ),
    "S5": Claim("damped Newton is still slow", "34,933 s (Fig. 4)", "newton_on_mnist"),
    "S6": Claim(
        "Hessian-free with damping of 32 is as fast as SGD and as good",
        "244 s, 0.2614 / 0.9099 (Figs. 6-8)",
        "gauss_newton_on_mnist",
    ),
    "S7": Claim(
        "Gauss-Newton is positive semidefinite, the Hessian is not",
        "a derivation",
        "curvature_spectra",
    ),
    "S8": Claim(
        "Gauss-Newton with damping of 4 is the best of all",
        "246 s, 0.2049 / 0.9239 (Figs. 9-11)",
        "gauss_newton_on_mnist",
    ),
    "S9": Claim(
        "inverting GPT-4's Hessian takes about 5e36 operations and 4e27 GB",
        "arithmetic with 1.7e12 parameters of 8 bytes",
        "inverting_gpt4",
    ),
    "S10": Claim(
        "Levenberg-Marquardt should adjust the damping", "future work", "adaptive_damping"
    ),
    "S11": Claim("Newton-Lanczos should set a trust region", "future work", "adaptive_damping"),
    "P1": Claim(
        "second-order methods win at large batch, for various architectures",
        "accuracy against batch size (Fig. 1)",
        "batch_sizes",
    ),
    "P2": Claim(
        "PSGD's curvature depends on the number of iterations, not on the batch size, so it does "
        "not suit large batches",
        "c(P) along training (Fig. 2)",
        "psgd_criterion",
    ),
    "P3": Claim(
        "with a very large dataset the benefit of second order is negligible",
        "training curves of a character-level language model (Fig. 3)",
        "dataset_sizes",
    ),
    "P4": Claim(
        "the ratio of batch size to dataset size decides how much second order gains",
        "Fig. 4; the sentence above it says the opposite of its caption",
        "batch_over_dataset",
    ),
    "P5": Claim(
        "curvature matters early: refreshing it often for 0.3 % of training is enough",
        "Shampoo on DeiT-small, share of frequent refresh and later interval (Table 1)",
        "early_refreshes",
    ),
    "P6": Claim(
        "the smaller the batch, the smaller the best damping, in proportion, and damping is tied "
        "to the learning rate",
        "heat maps of learning rate and damping (Fig. 5)",
        "damping_grids",
    ),
    "P7": Claim(
        "Gauss-Newton, K-FAC and Shampoo as one formula, with C⁻ᵉ",
        "Eq. 1 and three definitions",
        "kronecker_products",
    ),
    "A1": Claim("O(n) time and memory, like Adam", "prose", "soaa_costs"),
    "A2": Claim("converges faster than Adam and AdamW", "prose, no figure survives", "soaa_race"),
    "A3": Claim("more stable", "mean and standard deviation over three runs", "soaa_race"),
    "A4": Claim("lower loss than 8-bit Adam and GaLore, at more memory", "prose", "soaa_race"),
    "A5": Claim(
        "on a CPU faster than Adam and AdamW, level with their fused versions",
        "prose",
        "soaa_costs",
    ),
    "A6": Claim(
        "the trust region adapts to the loss and steadies training", "Algorithm 1", "soaa_ablation"
    ),
    "A7": Claim(
        "the diagonal Fisher brings curvature into the step",
        "Algorithm 1, line 9 takes a maximum",
        "soaa_ablation",
    ),
    "A8": Claim(
        "suits encoders and decoders alike",
        "SQuAD, TriviaQA and IMDB, BERT and Llama 2",
        "soaa_race",
    ),
    "A9": Claim(
        "rests on consistently adaptive trust regions",
        "Hamad & Hinder (2024) cited",
        "soaa_and_cat",
    ),
    "A10": Claim(
        "8-bit Adam saves up to 75 % of optimizer memory and trains up to 4 times faster; GaLore "
        "and 8-bit Adam need less memory than SOAA",
        "prose",
        "soaa_race",
    ),
}


class Card(NamedTuple):
    """A claim beside its numbers, in at most six lines; a notebook shows it as a small table.

    Attributes:
        name: in the ledger.
        claim: what the source says and shows.
        verdict: what the stored numbers say, or ``None`` where there are none.
        scale: at which these were computed.
    """

    name: str
    claim: Claim
    verdict: Verdict | None
    scale: str

    @property
    def answer(self) -> str:
        """The verdict in a few words, with the count of its readings."""
        if self.verdict is None:
            return f"not computed yet: soaa-edu reproduce {self.claim.study}"
        preview = ", a preview" if self.scale == "quick" else ""
        seeds = f", {self.verdict.seeds} seeds" if self.verdict.seeds else ""
        closes = f"; {self.verdict.closes} would close it" if self.verdict.answer == OPEN else ""
        return (
            f"{self.verdict.answer} ({self.verdict.counts}; {self.scale} scale{preview}{seeds}"
            f"{closes})"
        )

    def __str__(self) -> str:
        lines = [f"{self.name}  {self.answer}", f"    {self.claim.text}: {self.claim.reported}"]
        if self.verdict is not None:
            lines += [f"    {clause}" for clause in self.verdict.clauses]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    @property
    def full(self) -> str:
        """The same with every finding."""
        findings = self.verdict.findings if self.verdict is not None else ()
        return "\n".join([str(self), *(f"      {finding}" for finding in findings)])

    def _repr_html_(self) -> str:
        rows = [
            ("the source says", escape(f"{self.claim.text}: {self.claim.reported}")),
            ("we find", f"<strong>{escape(self.answer)}</strong>"),
        ]
        findings = ""
        if self.verdict is not None:
            for judged in self.verdict.clauses:
                answer, _, rest = str(judged).partition(": ")
                rows.append((escape(answer), escape(rest)))
            if self.verdict.findings:
                items = "".join(f"<li>{escape(finding)}</li>" for finding in self.verdict.findings)
                findings = f"<details><summary>more numbers</summary><ul>{items}</ul></details>"
        cells = "".join(
            f'<tr><th style="text-align:left;white-space:nowrap">{head}</th>'
            f'<td style="text-align:left">{text}</td></tr>'
            for head, text in rows
        )
        return f"<div><strong>{self.name}</strong><table>{cells}</table>{findings}</div>"


def card(name: str, folder: Path | None = None) -> Card:
    """A claim with the verdict of its study's largest stored results.

    Args:
        name: such as ``"S1"``.
        folder: where results are stored.

    Raises:
        ValueError: an unknown claim.
    """
    checks.one_of("the claim", name, tuple(LEDGER))
    claim = LEDGER[name]
    results = studies.largest_stored(claim.study, folder)
    if results is None:
        return Card(name, claim, None, "")
    (verdict,) = (v for v in studies.verdicts(results) if v.claim == name)
    return Card(name, claim, verdict, results["scale"])


def report(*names: str, folder: Path | None = None, full: bool = False) -> str:
    """Claims with their verdicts, each in at most six lines.

    Args:
        names: such as ``"S1"``; all of them by default.
        folder: where results are stored.
        full: add every other number that the studies tell.

    Raises:
        ValueError: an unknown claim.
    """
    cards = [card(name, folder) for name in names or LEDGER]
    return "\n\n".join(each.full if full else str(each) for each in cards)


def table(folder: Path | None = None) -> str:
    """The whole ledger in Markdown: each claim, its verdict, and its primary clause in numbers.

    Args:
        folder: where results are stored.
    """
    lines = ["| | the source claims | verdict | primary clause |", "|---|---|---|---|"]
    for name in LEDGER:
        found = card(name, folder)
        primary = "" if found.verdict is None else str(found.verdict.clauses[0])
        lines.append(f"| {name} | {found.claim.text} | {found.answer} | {primary} |")
    return "\n".join(lines)
