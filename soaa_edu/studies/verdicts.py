"""From numbers to a verdict: each part of a claim is an interval on one side of a threshold."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

HOLDS = "holds"
IN_PART = "holds in part"
DOES_NOT_HOLD = "does not hold here"
UNSETTLED = "cannot be settled at this scale"


class Part(NamedTuple):
    """One thing a claim says: that a statistic lies above, or below, a threshold.

    Attributes:
        says: the statement, in words.
        low: lower end of the statistic's interval.
        high: its upper end.
        threshold: fixed before the study is run.
        above: whether the claim wants the statistic above the threshold.
    """

    says: str
    low: float
    high: float
    threshold: float
    above: bool = True

    @property
    def holds(self) -> bool | None:
        """Whether the whole interval is on the claim's side, or none of it, or neither."""
        if self.low > self.threshold:
            return self.above
        if self.high < self.threshold:
            return not self.above
        return None

    def __str__(self) -> str:
        answer = {True: "yes", False: "no", None: "open"}[self.holds]
        side = "above" if self.above else "below"
        return f"{answer}: {self.says}, [{self.low:.4g}, {self.high:.4g}] {side} {self.threshold:g}"


class Verdict(NamedTuple):
    """What the numbers say of a claim.

    Attributes:
        claim: its name in the ledger, such as ``"S1"``.
        answer: one of the four.
        parts: what was tested.
        notes: other numbers a reader needs to judge.
        seeds: how many seeds there were.
        settled_by: for a claim left open, what would settle it.
    """

    claim: str
    answer: str
    parts: tuple[Part, ...]
    notes: tuple[str, ...]
    seeds: int
    settled_by: str


def judge(
    claim: str,
    parts: Sequence[Part],
    *,
    seeds: int,
    least_seeds: int,
    settled_by: str,
    notes: Sequence[str] = (),
) -> Verdict:
    """The verdict that the parts carry.

    With enough seeds, true and false parts together make *holds in part*, even where another part
    is open; otherwise one open part leaves the claim open. With too few seeds, or no part,
    it stays open.
    """
    answers = {part.holds for part in parts}
    if seeds < least_seeds:
        answer = UNSETTLED
    elif {True, False} <= answers:
        answer = IN_PART
    elif None in answers or not answers:
        answer = UNSETTLED
    else:
        answer = HOLDS if True in answers else DOES_NOT_HOLD
    return Verdict(claim, answer, tuple(parts), tuple(notes), seeds, settled_by)


def interval(values: Any, confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval for the mean of ``values``, one for each seed; everything for one seed."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return -np.inf, np.inf
    half = scipy.stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1)
    half /= np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def mean_and_spread(values: Any, digits: int = 4) -> str:
    """``mean ± standard deviation`` over seeds."""
    values = np.asarray(values, float)
    spread = values.std(ddof=1) if len(values) > 1 else np.nan
    return f"{values.mean():.{digits}f} ± {spread:.{digits}f}"
