"""The ledger: what the sources claim, which study settles it, and the verdict."""

from html import escape
from pathlib import Path
from typing import NamedTuple

from soaa_edu import checks, studies
from soaa_edu.studies.verdicts import OPEN, Verdict


class Claim(NamedTuple):
    """A claim of one of the sources.

    Attributes:
        quote: what is claimed, in the source's own words.
        reported: what the source shows for it.
        study: the name of the study that settles it.
    """

    quote: str
    reported: str
    study: str


LEDGER = {
    "S1": Claim(
        "Very effective in (convex) quadratic problems",
        "x* = A⁻¹b after one step, a derivation",
        "newton_on_quadratics",
    ),
    "S2": Claim(
        "Newton - doesn't converge",
        "training loss 2.305, test accuracy 0.1028 (Fig. 1)",
        "newton_on_mnist",
    ),
    "S3": Claim(
        "SGD: ~6mins; Newton: ~6h.", "21,257 s against 222 s for SGD (Fig. 2)", "newton_on_mnist"
    ),
    "S4": Claim(
        "In order to make Hessian PD - We add “damping” parameter λ",
        "λ = 32: 0.2837 / 0.9003 against SGD's 0.2121 / 0.9138 (Figs. 3, 5)",
        "newton_on_mnist",
    ),
    "S5": Claim("Newton with damping - still slow", "34,933 s (Fig. 4)", "newton_on_mnist"),
    "S6": Claim(
        "Speed is on par with that of SGD!",
        "Hessian-free, λ = 32: 244 s, 0.2614 / 0.9099 (Figs. 6-8)",
        "gauss_newton_on_mnist",
    ),
    "S7": Claim(
        "Guaranteed to be positive semidefinite.",
        "of Gauss-Newton, while the Hessian “might not be”; a derivation",
        "curvature_spectra",
    ),
    "S8": Claim(
        "Gauss-Newton receives best results",
        "λ = 4: 246 s, 0.2049 / 0.9239 (Figs. 9-11)",
        "gauss_newton_on_mnist",
    ),
    "S9": Claim(
        "Calculate inversion of Hessian need ~5 × 10³⁶ floating point parameters, ~4 × 10²⁷ GB",
        "arithmetic with GPT-4's 1.7 × 10¹² parameters of 8 bytes",
        "inverting_gpt4",
    ),
    "S10": Claim(
        "Levenberg-Marquardt method for adjusting damping parameter",
        "future work",
        "adaptive_damping",
    ),
    "S11": Claim(
        "Newton-Lanczos method for calculating trust region", "future work", "adaptive_damping"
    ),
    "P1": Claim(
        "For various architectures, second-order optimization methods, including K-FAC and "
        "Shampoo, outperform first-order optimization methods for larger batch sizes.",
        "accuracy against batch size (Fig. 1)",
        "batch_sizes",
    ),
    "P2": Claim(
        "The quality of curvature is determined by the number of iterations and is independent of "
        "batch-size.",
        "c(P) along training (Fig. 2)",
        "psgd_criterion",
    ),
    "P3": Claim(
        "If the dataset size is very large, the benefits of second-order optimization can be "
        "negligible.",
        "training curves of a character-level language model (Fig. 3)",
        "dataset_sizes",
    ),
    "P4": Claim(
        "Ratio of batch size to dataset size determines the importance of Second-order Information",
        "Fig. 4; the sentence above it says the opposite of its caption",
        "batch_over_dataset",
    ),
    "P5": Claim(
        "if we update the curvature matrix only during 1 epoch (= 0.3% = 2500 iterations), we need "
        "not to update the curvature matrix after that.",
        "Shampoo on DeiT-small, share of frequent refresh and later interval (Table 1)",
        "early_refreshes",
    ),
    "P6": Claim(
        "The smaller the batch size, the smaller the optimal damping. … Damping is also "
        "proportional to batch size and learning rate.",
        "heat maps of learning rate and damping (Fig. 5)",
        "damping_grids",
    ),
    "P7": Claim(
        "Second-order optimization updates parameters by a preconditioned gradient",
        "C⁻ᵉ ∇L for Gauss-Newton, K-FAC and Shampoo alike (Eq. 1 and three definitions)",
        "kronecker_products",
    ),
    "A1": Claim(
        "SOAA achieves a computational complexity of O(n), similar to that of first-order methods "
        "such as Adam.",
        "prose, and “a memory footprint similar to first-order methods”",
        "soaa_costs",
    ),
    "A2": Claim(
        "SOAA demonstrated faster convergence … compared to standard optimizers such as Adam, "
        "AdamW",
        "prose, no figure survives",
        "soaa_race",
    ),
    "A3": Claim(
        "… and greater stability compared to standard optimizers such as Adam, AdamW",
        "mean and standard deviation over three runs",
        "soaa_race",
    ),
    "A4": Claim(
        "When compared to memory-efficient optimizers like 8bit-Adam and GaLore, … lower final "
        "loss … at the cost of higher memory consumption.",
        "prose",
        "soaa_race",
    ),
    "A5": Claim(
        "In CPU-based training scenarios, SOAA showed significant improvements over standard Adam "
        "and AdamW, particularly in terms of training speed.",
        "prose, and “comparable training speeds” to their fused versions",
        "soaa_costs",
    ),
    "A6": Claim(
        "This adaptive trust-region mechanism ensures that SOAA remains stable during training, "
        "… still allowing for dynamic adjustments in response to changes in the loss landscape.",
        "Algorithm 1",
        "soaa_ablation",
    ),
    "A7": Claim(
        "This approach captures second-order curvature information while avoiding the "
        "computational burden of a full matrix inversion",
        "the diagonal Fisher; line 9 of Algorithm 1 takes a maximum",
        "soaa_ablation",
    ),
    "A8": Claim(
        "testing SOAA on both encoder and decoder architectures, … its effectiveness across "
        "diverse NLP tasks",
        "SQuAD, TriviaQA and IMDB, BERT and Llama 2",
        "soaa_race",
    ),
    "A9": Claim(
        "Our method builds upon … consistently adaptive trust-region methods",
        "Hamad & Hinder (2024) cited",
        "soaa_and_cat",
    ),
    "A10": Claim(
        "8bit-Adam enables fine-tuning large models with up to 75% less GPU memory usage … This "
        "memory reduction makes 8-bit optimizers up to 4 times faster in training.",
        "prose, and that SOAA “consumed more memory than both 8-bit optimizers and GaLore”",
        "soaa_race",
    ),
    "L1": Claim(
        "full GN updates yield substantial gains over existing optimizers, achieving a 5.4x "
        "reduction in training iterations compared to strong baselines like SOAP and Muon. … a "
        "precise layerwise GN preconditioner … nearly matches the performance of the full GN "
        "method",
        "Abreu et al. (2026): transformers of up to 150M parameters",
        "exact_gauss_newton",
    ),
    "L2": Claim(
        "KL-Shampoo does not rely on Adam to attain competitive performance … Across our "
        "experiments, KL-Shampoo consistently outperforms SOAP, Shampoo, and even KL-SOAP",
        "Lin et al. (2026): pre-training of language models",
        "grafting",
    ),
    "L3": Claim(
        "grafting from Adam mitigates the staleness and mis-scaling of the preconditioner's "
        "eigenvalues and … correcting the eigenvalues directly eliminates the need for learning "
        "rate grafting",
        "Eschenhagen et al. (2025): Shampoo on three AlgoPerf workloads",
        "grafting",
    ),
    "L4": Claim(
        "It is therefore possible to interpret Muon with momentum turned off as a kind of "
        "“instantaneous” or “accumulation-free” Shampoo.",
        "a factor of 1.35 on the NanoGPT speed-run (Jordan et al. 2024), “a FLOP overhead below "
        "1%”, and an outside finding that Shampoo is ahead per token (Eschenhagen et al. 2026)",
        "muon",
    ),
    "L6": Claim(
        "(quasi) second-order optimization methods inherently mitigate gradient conflicts, thereby "
        "consistently outperforming the widely used Adam optimizer",
        "of physics-informed networks: SOAP's accuracy 2 to 10 times that of methods before it on "
        "10 equations (arXiv 2502.00604)",
        "differential_equations",
    ),
    "L7": Claim(
        "the maximum eigenvalue of the training loss Hessian hovers just above the value 2/(step "
        "size), and the training loss behaves non-monotonically over short timescales, yet "
        "consistently decreases over long timescales.",
        "of full-batch gradient descent (Cohen et al. 2021); for Adam with β₁ = 0.9 the "
        "preconditioned Hessian's at 38/η (Cohen et al. 2022)",
        "edge_of_stability",
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

    @property
    def said(self) -> str:
        """The source's sentence, and what it shows for it."""
        return f"“{self.claim.quote}”: {self.claim.reported}"

    def __str__(self) -> str:
        lines = [f"{self.name}  {self.answer}", f"    {self.said}"]
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
            ("the source says", escape(self.said)),
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
        lines.append(f"| {name} | “{found.claim.quote}” | {found.answer} | {primary} |")
    return "\n".join(lines)
