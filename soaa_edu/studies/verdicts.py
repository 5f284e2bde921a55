"""From numbers to a verdict, by rules fixed before the numbers.

A claim is split into clauses, each with one statistic and one margin: the smallest difference that
a practitioner would act on, never zero. The first clause is the primary one, with which the claim
stands or falls. Where a clause is read on several networks, all of its readings count.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

HOLDS = "holds"
IN_PART = "holds in part"
DOES_NOT_HOLD = "does not hold"
OPEN = "open"
YES, NO, NO_DIFFERENCE = "yes", "no", "no difference"
LEAST_SEEDS = 3
CONFIDENCE = 0.95
ON_THE_LIMIT = 0.001
SIDES = ("above", "below", "at least", "at most", "within")

Interval = tuple[float, float, float]


class Reading(NamedTuple):
    """A clause's statistic in one place, such as on one network.

    Attributes:
        where: the place, or an empty string where there is one alone.
        interval_at: confidence -> the interval's low end, the estimate and the high end. For the
            units ``"%"`` and ``"times"`` they are logarithms of a ratio.
        seeds: how many independent numbers it rests on; 0 for one without any error.
    """

    where: str
    interval_at: Callable[[float], Interval]
    seeds: int


def measured(values: Any, where: str = "") -> Reading:
    """The mean of ``values``, one for each seed."""
    values = np.asarray(values, float)

    def interval_at(confidence: float) -> Interval:
        low, high = interval(values, confidence)
        return low, float(values.mean()), high

    return Reading(where, interval_at, len(values))


def known(value: Any, where: str = "") -> Reading:
    """A number that has no error, such as one of bytes."""
    return Reading(where, lambda _: (float(value),) * 3, 0)


class Clause(NamedTuple):
    """One sentence of a source, and how it is measured.

    Attributes:
        says: the sentence, in few words.
        statistic: what is measured: zero, or a ratio of one, means no difference.
        asks: where the sentence wants it, with the margin within which a difference is none:
            ``"above 1 %"`` and ``"below 1 %"`` claim a difference, ``"at least 1 %"`` and
            ``"at most 1 %"`` that there is none to the other side, ``"within 1 %"`` that there is
            none at all. The unit is ``%`` or ``times``, of a ratio; ``points``, of a share in per
            cent; or any other, in which the statistic is as it stands.
        readings: the statistic, place by place.
    """

    says: str
    statistic: str
    asks: str
    readings: Sequence[Reading]

    @property
    def side(self) -> str:
        """One of ``SIDES``."""
        return _asked(self)[1]

    @property
    def margin(self) -> float:
        """In the unit."""
        return float(_asked(self)[2])

    @property
    def unit(self) -> str:
        """Of the margin, or an empty string."""
        return _asked(self)[3]


def _asked(clause: Clause) -> re.Match:
    found = re.fullmatch(rf"({'|'.join(SIDES)}) (\S+) ?(.*)", clause.asks)
    if found is None or not float(found[2]) > 0:
        raise ValueError(
            f"{clause.says!r} asks for {clause.asks!r}: say a side of {', '.join(SIDES)}, a margin "
            "above zero and its unit, as in 'above 1 %'"
        )
    return found


class Answered(NamedTuple):
    """A reading's simultaneous interval, and what it says of the clause."""

    where: str
    interval: Interval
    answer: str


class Judged(NamedTuple):
    """A clause with its answers."""

    clause: Clause
    readings: tuple[Answered, ...]

    @property
    def answer(self) -> str:
        """Of the whole clause; ``"holds in part"`` where it is a yes in some places alone."""
        answers = {reading.answer for reading in self.readings}
        if answers == {YES}:
            return YES
        if YES in answers:
            return IN_PART
        if OPEN in answers or not answers:
            return OPEN
        return NO_DIFFERENCE if answers == {NO_DIFFERENCE} else NO

    def __str__(self) -> str:
        """In one line: the answer, the sentence, each reading with its interval, the margin."""
        mixed = len({reading.answer for reading in self.readings}) > 1
        found = "; ".join(_reading_text(r, self.clause.unit, mixed) for r in self.readings)
        margin = f"margin {self.clause.margin:g} {self.clause.unit}".rstrip()
        answer = "in part" if self.answer == IN_PART else self.answer
        return f"{answer}: {self.clause.says}; {self.clause.statistic} {found} ({margin})"


class Verdict(NamedTuple):
    """What the numbers say of a claim.

    Attributes:
        claim: its name in the ledger, such as ``"S1"``.
        answer: one of the four.
        clauses: the primary one first.
        findings: other numbers that a reader may want, none of which decides.
        seeds: how many there were, such as ``"3"`` or ``"5 to 50"``; empty where nothing has an
            error.
        closes: what would close an open reading, or an empty string.
    """

    claim: str
    answer: str
    clauses: tuple[Judged, ...]
    findings: tuple[str, ...]
    seeds: str
    closes: str

    @property
    def counts(self) -> str:
        """How many readings have each answer, such as ``"4 yes, 2 no"``."""
        answers = [reading.answer for clause in self.clauses for reading in clause.readings]
        kinds = (YES, NO, NO_DIFFERENCE, OPEN)
        return ", ".join(f"{answers.count(kind)} {kind}" for kind in kinds if kind in answers)


def judge(claim: str, clauses: Sequence[Clause], *, findings: Sequence[str] = ()) -> Verdict:
    """The verdict that the clauses carry.

    Intervals are simultaneous over all readings that have an error, by Bonferroni. With fewer than
    three seeds, nothing that has an error is settled.

    Args:
        claim: its name in the ledger.
        clauses: at most four, the primary one first.
        findings: other numbers, in words.

    Raises:
        ValueError: no clause, more than four, a margin that is not positive, or an unknown side.
    """
    if not 1 <= len(clauses) <= 4:
        raise ValueError(f"{claim} has {len(clauses)} clauses: split it into one to four")
    random = sum(reading.seeds > 0 for clause in clauses for reading in clause.readings)
    confidence = 1 - (1 - CONFIDENCE) / max(random, 1)
    judged = tuple(_judged(clause, confidence) for clause in clauses)
    primary = judged[0].answer
    if primary in (NO, NO_DIFFERENCE):
        answer = DOES_NOT_HOLD
    elif primary == OPEN:
        answer = OPEN
    else:
        answer = HOLDS if all(clause.answer == YES for clause in judged) else IN_PART
    counted = sorted({r.seeds for clause in clauses for r in clause.readings if r.seeds})
    seeds = " to ".join(map(str, dict.fromkeys(counted[:1] + counted[-1:])))
    return Verdict(claim, answer, judged, tuple(findings), seeds, _closes(judged, confidence))


def one_answer(values: Any, asks: str) -> str:
    """What ``values``, one for each seed, say of a single clause: its answer, as in a table."""
    clause = Clause("", "", asks, [measured(values)])
    return _judged(clause, CONFIDENCE).answer


def _judged(clause: Clause, confidence: float) -> Judged:
    answered = []
    for reading in clause.readings:
        found = reading.interval_at(confidence)
        settled = reading.seeds == 0 or reading.seeds >= LEAST_SEEDS
        answer = (
            _answer(found[0], found[2], clause.side, _inner_margin(clause)) if settled else OPEN
        )
        answered.append(Answered(reading.where, found, answer))
    return Judged(clause, tuple(answered))


def _answer(low: float, high: float, side: str, margin: float) -> str:
    """An interval that leaves no room for the difference claimed is a *no*, wherever it ends."""
    if side in ("below", "at most"):
        low, high = -high, -low
    within = -margin <= low and high <= margin
    if side == "within":
        return YES if within else NO if low > margin or high < -margin else OPEN
    if side in ("at least", "at most"):
        return YES if low >= -margin else NO if high < -margin else OPEN
    if within:
        return NO_DIFFERENCE
    return YES if low > margin else NO if high < margin else OPEN


def _inner_margin(clause: Clause) -> float:
    """The margin on the scale of the readings."""
    scales: dict[str, Callable] = {
        "%": lambda margin: np.log1p(margin / 100),
        "times": np.log,
        "points": lambda margin: margin / 100,
    }
    return float(scales.get(clause.unit, float)(clause.margin))


def in_unit(value: float, unit: str) -> float:
    """A number as it is told: a log ratio in per cent or times, a share in points."""
    scales: dict[str, Callable] = {
        "%": lambda v: 100 * np.expm1(v),
        "times": np.exp,
        "points": lambda v: 100 * v,
    }
    return float(scales.get(unit, float)(value))


def _reading_text(reading: Answered, unit: str, with_answer: bool) -> str:
    low, middle, high = (in_unit(value, unit) for value in reading.interval)
    sign = "+" if unit in ("%", "points") else ""
    number = f"{middle:{sign}.3g} {unit}".rstrip()
    if low < high:
        number += f" [{low:.3g}, {high:.3g}]"
    text = f"{reading.answer}, {number}" if with_answer else number
    return f"{reading.where}: {text}" if reading.where else text


def _closes(judged: Sequence[Judged], confidence: float) -> str:
    """How many seeds would close the open readings, were their estimates and spreads right.

    An interval closes a reading once half of it is shorter than the way from its middle to what
    the clause asks for. Where that way is short, seeds are counted first to make it as short as the
    margin.
    """
    needed = []
    for each in judged:
        margin = _inner_margin(each.clause)
        for reading, found in zip(each.clause.readings, each.readings, strict=True):
            if found.answer == OPEN:
                low, middle, high = found.interval
                if reading.seeds < LEAST_SEEDS or not np.isfinite(high - low):
                    return f"at least {LEAST_SEEDS} seeds"
                if _to_the_limit(middle, each.clause.side, margin) < ON_THE_LIMIT * margin:
                    return "no number of seeds, since an estimate lies on the limit itself,"
                student = scipy.stats.t.ppf((1 + confidence) / 2, reading.seeds - 1)
                spread = (high - low) / 2 / student * reading.seeds**0.5
                far = _to_the_limit(middle, each.clause.side, margin)
                few = _enough(spread, max(far, margin), confidence)
                enough = few > reading.seeds
                needed.append(few if enough else _enough(spread, far, confidence))
    return f"about {_rounded_up(max([*needed, LEAST_SEEDS])):,} seeds" if needed else ""


def _enough(spread: float, half: float, confidence: float) -> int:
    """How many seeds of that spread make an interval of so much to each side."""
    normal = scipy.stats.norm.ppf((1 + confidence) / 2)
    seeds = max(LEAST_SEEDS, int((normal * spread / half) ** 2))
    while scipy.stats.t.ppf((1 + confidence) / 2, seeds - 1) * spread / seeds**0.5 > half:
        seeds += 1
    return seeds


def _to_the_limit(middle: float, side: str, margin: float) -> float:
    """How far an estimate is from the value that parts a yes from anything else."""
    if side == "within":
        return abs(abs(middle) - margin)
    limit = {"above": margin, "below": -margin, "at least": -margin, "at most": margin}[side]
    return abs(middle - limit)


def _rounded_up(number: float) -> int:
    """To one significant digit and a half: 37 -> 40, 120 -> 150."""
    power = 10 ** np.floor(np.log10(max(number, 1)))
    return int(np.ceil(number / power * 2) / 2 * power) or 1


def interval(values: Any, confidence: float = CONFIDENCE) -> tuple[float, float]:
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
