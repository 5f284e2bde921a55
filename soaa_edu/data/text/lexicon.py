"""The words of the synthetic language: stems of open syllables, endings that agree."""

from typing import NamedTuple

import numpy as np

from soaa_edu.data.text.grammar import NOUN_CLASSES, NUMBERS, WordClass

ONSETS = [*"bdfgklmprtvz", "bl", "br", "dr", "gr", "kl", "kr", "pl", "pr", "tr"]
VOWELS = "aeiou"
SYLLABLES = [onset + vowel for onset in ONSETS for vowel in VOWELS]

CLOSED = {"determiner": 6, "preposition": 30, "conjunction": 8, "pronoun": 4}
NOUNS, VERBS, ADJECTIVES, ADVERBS = 4000, 3000, 3000, 2000
STEMS = 20_000
SHORT_SHARE = 0.2
TASTE = 1.5

NOUN_ENDINGS = ("", "s")
VERB_ENDINGS = (("n", "ns"), ("h", "hi"), ("sh", "shi"), ("x", "xo"))
ADJECTIVE_ENDINGS = ("c", "y", "nu", "ha")
ADVERB_ENDING = "wis"


class Lexicon(NamedTuple):
    """Words by class, each class a run of them with probabilities that sum to one.

    Attributes:
        classes: the word classes, C of them.
        words: W distinct words, class after class.
        word_class: ``(W,)``, the index of each word's class.
        probability: ``(W,)``, of each word in its class.
    """

    classes: list[WordClass]
    words: list[str]
    word_class: np.ndarray
    probability: np.ndarray


def build(rng: np.random.Generator) -> Lexicon:
    """A lexicon drawn anew.

    Every stem is a row of open syllables and belongs to one lexeme. An ending begins with a letter
    that no stem has, so it can be told from the stem; the endings of a part of speech differ. So a
    word has one class only.

    In each class the r-th most frequent word has a probability in proportion to 1/r (Zipf). The
    most frequent fifth of a part of speech has two syllables, the others have three. Each noun
    class has its own taste in verbs and adjectives: the common order of their frequencies with
    noise, log-normal of deviation ``TASTE``.
    """
    short, middle, long = (iter(_stems(rng, syllables)) for syllables in (1, 2, 3))

    def stems(count: int) -> list[str]:
        brief = int(SHORT_SHARE * count)
        return [next(middle) for _ in range(brief)] + [next(long) for _ in range(count - brief)]

    groups: dict[WordClass, tuple[list[str], np.ndarray]] = {}

    def add(word_class: WordClass, words: list[str], ranks: np.ndarray) -> None:
        frequency = 1 / (1 + ranks)
        groups[word_class] = words, frequency / frequency.sum()

    for number in NUMBERS:
        count = CLOSED["determiner"]
        add(("determiner", number), [next(short) for _ in range(count)], np.arange(count))
    for part in ("preposition", "conjunction", "pronoun"):
        add((part,), [next(short) for _ in range(CLOSED[part])], np.arange(CLOSED[part]))
    add(("adverb",), [stem + ADVERB_ENDING for stem in stems(ADVERBS)], np.arange(ADVERBS))
    verbs, adjectives = stems(VERBS), stems(ADJECTIVES)
    for noun_class in range(NOUN_CLASSES):
        nouns = stems(NOUNS)
        ending = ADJECTIVE_ENDINGS[noun_class]
        add(("adjective", noun_class), [s + ending for s in adjectives], _taste(rng, ADJECTIVES))
        verb_ranks = _taste(rng, VERBS)
        for number in NUMBERS:
            ending = NOUN_ENDINGS[number]
            add(("noun", noun_class, number), [s + ending for s in nouns], np.arange(NOUNS))
            ending = VERB_ENDINGS[noun_class][number]
            add(("verb", noun_class, number), [s + ending for s in verbs], verb_ranks)
    sizes = [len(words) for words, _ in groups.values()]
    return Lexicon(
        classes=list(groups),
        words=[word for words, _ in groups.values() for word in words],
        word_class=np.repeat(np.arange(len(groups)), sizes),
        probability=np.concatenate([frequency for _, frequency in groups.values()]),
    )


def _stems(rng: np.random.Generator, syllables: int) -> list[str]:
    """Stems of so many syllables, all different, in random order, at most ``STEMS``."""
    possible = len(SYLLABLES) ** syllables
    drawn = rng.choice(possible, min(possible, STEMS), replace=False)
    places = np.unravel_index(drawn, (len(SYLLABLES),) * syllables)
    return ["".join(SYLLABLES[i] for i in stem) for stem in zip(*places)]


def _taste(rng: np.random.Generator, count: int) -> np.ndarray:
    noisy = np.log1p(np.arange(count)) + rng.normal(scale=TASTE, size=count)
    return np.argsort(np.argsort(noisy))
