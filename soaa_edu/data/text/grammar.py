"""The grammar of the synthetic language, as the arcs of a finite automaton.

In the usual notation, ``a`` and ``b`` being agreements (noun class and number):

    sentence  -> [adverb ","] clause {"," conjunction clause} "."
    clause    -> phrase(a) [relative(a)] verb(a) [object | adverb | preposition phrase(b)]
    phrase(a) -> determiner(number of a) {adjective(class of a)} noun(a)
    relative(a) -> pronoun verb(a) [phrase(b) [relative(b)] | adverb]

and an object may have a relative clause, an adverb or a preposition phrase after it. At most two
relative clauses stand one in another. So a verb may have to agree with a noun many words back.
"""

from collections.abc import Iterator
from typing import NamedTuple

NOUN_CLASSES = 4
SINGULAR, PLURAL = NUMBERS = (0, 1)
SEPARATORS = (" ", ", ", ". ")
DEEPEST_RELATIVE = 2
CLASS_SHARES = (0.4, 0.3, 0.2, 0.1)

Agreement = tuple[int, ...]
WordClass = tuple[str | int, ...]


class Slot(NamedTuple):
    """Where in a sentence the next word stands, and all it must remember.

    Attributes:
        name: the part of the sentence.
        head: agreement of the noun that was last spoken of.
        number: number of the noun that a determiner has announced.
        pending: agreement of the subject whose verb is still to come, while in a relative clause.
        depth: how many relative clauses are open.
        subject: whether the phrase is the subject of its clause.
    """

    name: str
    head: Agreement = ()
    number: int = SINGULAR
    pending: Agreement = ()
    depth: int = 0
    subject: bool = False


class Arc(NamedTuple):
    """One word of a class, with the separator that follows it and the slot of the next word."""

    source: Slot
    word_class: WordClass
    separator: str
    target: Slot
    probability: float


Choice = tuple[float, WordClass, str, Slot]

SENTENCE = Slot("sentence")
_CLAUSE = Slot("clause")
_CONJUNCTION = Slot("conjunction")


def arcs() -> list[Arc]:
    """Every arc of the automaton, those of ``SENTENCE``, where each sentence begins, first."""
    found: dict[Slot, list[Arc]] = {}
    waiting = [SENTENCE]
    while waiting:
        slot = waiting.pop()
        if slot in found:
            continue
        choices = list(_choices(slot))
        total = sum(weight for weight, *_ in choices)
        found[slot] = [
            Arc(slot, word_class, separator, target, weight / total)
            for weight, word_class, separator, target in choices
        ]
        waiting += [arc.target for arc in found[slot]]
    return [arc for outgoing in found.values() for arc in outgoing]


def _choices(slot: Slot) -> Iterator[Choice]:
    match slot.name:
        case "sentence":
            yield 0.1, ("adverb",), ", ", _CLAUSE
            yield from _determiners(0.9, Slot("modifier", subject=True))
        case "clause":
            yield from _determiners(1, Slot("modifier", subject=True))
        case "conjunction":
            yield 1, ("conjunction",), " ", _CLAUSE
        case "modifier":
            for noun_class, share in enumerate(CLASS_SHARES):
                yield from _adjective_or_noun(share, slot, (noun_class, slot.number), 0.3)
        case "noun":
            yield from _adjective_or_noun(1, slot, slot.head, 0.15)
        case "after subject":
            yield from _verb(0.65, slot.head)
            yield 0.35, ("pronoun",), " ", Slot("inner verb", slot.head, pending=slot.head, depth=1)
        case "inner verb":
            verb = _agreeing("verb", slot.head)
            yield 0.7, verb, " ", slot._replace(name="inner object", head=())
            if not slot.pending:
                yield from _ends(0.3, verb)
        case "inner object":
            yield from _determiners(0.7, slot._replace(name="modifier"))
            if not slot.pending:
                yield from _ends(0.3, ("adverb",))
            else:
                yield 0.1, ("adverb",), " ", Slot("resumption", pending=slot.pending)
                yield from _verb(0.2, slot.pending)
        case "after inner object":
            yield from _verb(0.75, slot.pending)
            yield from _deeper(0.25, slot)
        case "resumption":
            yield from _verb(1, slot.pending)
        case "after verb":
            yield from _determiners(0.7, Slot("modifier"))
            yield 0.15, ("preposition",), " ", Slot("phrase")
            yield from _ends(0.15, ("adverb",))
        case "phrase":
            yield from _determiners(1, Slot("modifier"))
        case "after object":
            yield 0.4, ("preposition",), " ", Slot("phrase")
            yield from _ends(0.3, ("adverb",))
            yield from _deeper(0.3, slot)


def _determiners(weight: float, modifier: Slot) -> Iterator[Choice]:
    yield 0.6 * weight, ("determiner", SINGULAR), " ", modifier._replace(number=SINGULAR)
    yield 0.4 * weight, ("determiner", PLURAL), " ", modifier._replace(number=PLURAL)


def _adjective_or_noun(
    weight: float, slot: Slot, agreement: Agreement, adjectives: float
) -> Iterator[Choice]:
    noun = _agreeing("noun", agreement)
    after = slot._replace(head=agreement, number=SINGULAR)
    yield adjectives * weight, ("adjective", agreement[0]), " ", after._replace(name="noun")
    weight *= 1 - adjectives
    if slot.subject:
        yield weight, noun, " ", Slot("after subject", agreement)
    elif slot.pending:
        yield weight, noun, " ", after._replace(name="after inner object")
    else:
        yield 0.4 * weight, noun, " ", after._replace(name="after object")
        yield from _ends(0.6 * weight, noun)


def _verb(weight: float, agreement: Agreement) -> Iterator[Choice]:
    verb = _agreeing("verb", agreement)
    yield 0.7 * weight, verb, " ", Slot("after verb")
    yield from _ends(0.3 * weight, verb)


def _deeper(weight: float, slot: Slot) -> Iterator[Choice]:
    if slot.depth < DEEPEST_RELATIVE:
        yield weight, ("pronoun",), " ", slot._replace(name="inner verb", depth=slot.depth + 1)


def _ends(weight: float, word_class: WordClass) -> Iterator[Choice]:
    yield 0.75 * weight, word_class, ". ", SENTENCE
    yield 0.25 * weight, word_class, ", ", _CONJUNCTION


def _agreeing(part: str, agreement: Agreement) -> WordClass:
    return (part, *agreement)
