"""A synthetic language whose true entropy is known, so that a loss has a floor."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from soaa_edu import checks
from soaa_edu.data.dataset import Dataset
from soaa_edu.data.text import grammar, lexicon, trie
from soaa_edu.data.text.alphabet import VOCABULARY, encode
from soaa_edu.data.text.rows import next_character

TRAIN, TEST = 0, 1
BLOCK = 8192

_A, _SPACE = (int(encode(character)[0]) for character in "a ")
_SEPARATOR_INDEX = np.full(VOCABULARY, -1)
_SEPARATOR_INDEX[[encode(text)[0] for text in grammar.SEPARATORS]] = range(len(grammar.SEPARATORS))


class Language(NamedTuple):
    """A finite automaton that writes sentences, Q slots of the grammar by the words that fill them.

    The text alone gives its derivation away: a word ends at the first character that is no letter,
    it belongs to one class, and no slot of the grammar has two arcs with the same class of word and
    the same separator. So the slot is known at every place, and with it the probability of every
    next character.

    Attributes:
        lexicon: the words.
        trie: the words as a tree of V nodes.
        slots: the slots of the grammar, Q of them, the beginning of a sentence first.
        arc: ``(Q, C, 3)``, in each slot the probability of a class of word and a separator.
        target: ``(Q, C, 3)``, the slot that follows.
    """

    lexicon: lexicon.Lexicon
    trie: trie.Trie
    slots: list[grammar.Slot]
    arc: np.ndarray
    target: np.ndarray

    def windows(self, count: int, length: int, seed: int = 0, stream: int = TRAIN) -> np.ndarray:
        """Rows of text, independent of each other, that each begin at a sentence.

        A row goes on from sentence to sentence and is cut off at its length. The first rows are the
        same whatever the count.

        Args:
            count: rows, n.
            length: characters in a row, T.
            seed: of the draws.
            stream: ``TRAIN`` or ``TEST``, two independent streams of draws.

        Returns:
            ids, uint8 ``(n, T)``.
        """
        checks.whole("count", count)
        checks.whole("length", length)
        text = np.empty((count, length), np.uint8)
        block = _speaker(self)
        for number, start in enumerate(range(0, count, BLOCK)):
            rng = np.random.default_rng([seed, stream, length, number])
            rows = text[start : start + BLOCK]
            rows[:] = block(rng, length)[: len(rows)]
        return text

    def surprise(self, windows: np.ndarray) -> np.ndarray:
        """-log p of each character given those before it in its row, in nats.

        Args:
            windows: ids ``(n, T)`` of rows that each begin at a sentence.

        Returns:
            ``(n, T)``; infinite from the first character on that the language cannot write.
        """
        windows = np.asarray(windows)
        share = self.arc.sum(axis=2)
        slot, node = np.zeros((2, len(windows)), np.intp)
        log_mass, pause, dead = np.zeros(len(windows)), *np.zeros((2, len(windows)), bool)
        surprise = np.empty(windows.shape)
        for place, character in enumerate(windows.T.astype(np.intp)):
            letter = character - _A
            spells = (letter >= 0) & (letter < 26) & ~pause
            child = np.where(spells, self.trie.child[node, np.where(spells, letter, 0)], 0)
            mass = np.einsum("nc,nc->n", share[slot], self.trie.mass[child]) * (child > 0)

            separator = _SEPARATOR_INDEX[character]
            closes = (separator >= 0) & ~pause
            word_class = self.trie.word_class[node]
            word = self.arc[slot, word_class, separator] * self.trie.word_probability[node]
            breathes = pause & (character == _SPACE)

            with np.errstate(divide="ignore", invalid="ignore"):
                log_next = np.where(breathes, 0, np.log(np.where(closes, word, mass)))
                step = log_mass - log_next
            dead |= ~np.isfinite(step)
            surprise[:, place] = np.where(dead, np.inf, step)
            slot = np.where(closes, self.target[slot, word_class, separator], slot)
            node = child
            pause = closes & (separator > 0)
            log_mass = np.where(closes | breathes | dead, 0, log_next)
        return surprise

    def entropy(self, length: int) -> float:
        """The expected surprise per character, in nats, over rows of ``length`` from a sentence on.

        It is exact. With α_t(q) the probability that a word begins at place t in slot q, and
        h_q(k) the expected surprise of the k-th character from there while that word lasts,

            entropy = 1/T Σ_t Σ_q α_t(q) Σ_{k < T - t} h_q(k)

        and α follows from the words' lengths and the arcs. No model that sees only the row has a
        lower expected loss.

        Args:
            length: characters in a row, T.
        """
        checks.whole("length", length)
        spelling, ending, lengths = _word_surprise(self)
        longest = spelling.shape[1]
        from_start = np.cumsum(np.pad(spelling + ending, ((0, 0), (0, length))), axis=1)
        source, word_class, separator = np.nonzero(self.arc)
        probability = self.arc[source, word_class, separator]
        target = self.target[source, word_class, separator]
        pause = np.array([len(text) for text in grammar.SEPARATORS])[separator]
        reach = longest + pause.max()
        slots = len(self.slots)
        cells = (np.arange(longest)[:, None] + pause) * slots + target
        begins = np.zeros((length + reach, slots))
        begins[0, 0] = 1
        total = 0.0
        for place in range(length):
            total += begins[place] @ from_start[:, length - place - 1]
            flow = begins[place, source] * probability * lengths[:, word_class]
            arrivals = np.bincount(cells.ravel(), flow.ravel(), minlength=reach * slots)
            begins[place : place + reach] += arrivals.reshape(reach, slots)
        return float(total / length)


@lru_cache(maxsize=4)
def language(seed: int = 0) -> Language:
    """The language with the lexicon of a seed. The grammar is always the same."""
    words = lexicon.build(np.random.default_rng(seed))
    arcs = grammar.arcs()
    slots = list(dict.fromkeys(arc.source for arc in arcs))
    number = {slot: q for q, slot in enumerate(slots)}
    cells = (
        [number[arc.source] for arc in arcs],
        [words.classes.index(arc.word_class) for arc in arcs],
        [grammar.SEPARATORS.index(arc.separator) for arc in arcs],
    )
    shape = len(slots), len(words.classes), len(grammar.SEPARATORS)
    probability, target = np.zeros(shape), np.zeros(shape, np.intp)
    probability[cells] = [arc.probability for arc in arcs]
    target[cells] = [number[arc.target] for arc in arcs]
    return Language(words, trie.build(words), slots, probability, target)


def synthetic(
    characters: int, *, length: int = 64, seed: int = 0, test_characters: int = 100_000
) -> Dataset:
    """Text of a synthetic language, to learn the next character from.

    Every row begins at a sentence, so ``language(seed).entropy(length)`` is the lowest expected
    loss, exactly. A longer training set begins with the rows of a shorter one; the test set has its
    own draws and does not depend on the training set's size.

    Args:
        characters: training characters, rounded up to whole rows.
        length: characters in a row, T.
        seed: of the lexicon and of the draws.
        test_characters: characters of the test set, rounded up to whole rows.

    Returns:
        ``Dataset`` with ``x`` and ``y`` int32 ``(n, T)``: ``y`` is the text, ``x`` the character
        before each, ``START`` at the beginning of a row.
    """
    checks.whole("characters", characters)
    checks.whole("length", length)
    checks.whole("test_characters", test_characters)
    speech = language(seed)
    train, test = (
        next_character(speech.windows(-(-wanted // length), length, seed, stream))
        for wanted, stream in ((characters, TRAIN), (test_characters, TEST))
    )
    return Dataset(train, test)


def _speaker(language: Language) -> Callable[[np.random.Generator, int], np.ndarray]:
    """``(rng, length) -> uint8 (BLOCK, length)``: draws a block of rows, word by word."""
    arcs = language.arc.reshape(len(language.slots), -1)
    source, arc = np.nonzero(arcs)
    draw_arc = _drawer(source, arcs[source, arc])
    target = language.target.reshape(arcs.shape)[source, arc]
    arc_class, arc_separator = np.divmod(arc, len(grammar.SEPARATORS))
    draw_word = _drawer(language.lexicon.word_class, language.lexicon.probability)
    spelled = np.array(language.lexicon.words, "S")
    lengths = np.char.str_len(spelled)
    letters = spelled.view(np.uint8).reshape(len(spelled), -1) - np.uint8(ord("a") - _A)
    longest = letters.shape[1]
    separators = np.array([encode(separator.ljust(2)) for separator in grammar.SEPARATORS])
    separator_lengths = np.array([len(separator) for separator in grammar.SEPARATORS])

    def block(rng: np.random.Generator, length: int) -> np.ndarray:
        width = length + longest + 2
        text = np.empty(BLOCK * width, np.uint8)
        place = np.arange(BLOCK) * width
        end = place + length
        slot = np.zeros(BLOCK, np.intp)
        while len(place):
            arc = draw_arc(rng, slot)
            word, separator = draw_word(rng, arc_class[arc]), arc_separator[arc]
            text[place[:, None] + np.arange(longest)] = letters[word]
            place = place + lengths[word]
            text[place[:, None] + np.arange(2)] = separators[separator]
            place = place + separator_lengths[separator]
            going = place < end
            place, end, slot = place[going], end[going], target[arc][going]
        return text.reshape(BLOCK, width)[:, :length]

    return block


def _drawer(
    group: np.ndarray, probability: np.ndarray
) -> Callable[[np.random.Generator, np.ndarray], np.ndarray]:
    """``(rng, groups) -> members``, one drawn from each; members stand group after group."""
    steps = np.cumsum(probability)
    first = np.searchsorted(group, np.arange(group[-1] + 2))

    def draw(rng: np.random.Generator, groups: np.ndarray) -> np.ndarray:
        found = np.searchsorted(steps, groups + rng.random(len(groups)), "right")
        return np.clip(found, first[groups], first[groups + 1] - 1)

    return draw


def _word_surprise(language: Language) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Expected surprise of the k-th character of a word, ``(Q, K)``: of letters, of its end.

    And the probability of each word length, ``(K, C)``, in each class.
    """
    tree, (slots, classes, _) = language.trie, language.arc.shape
    longest = tree.depth.max() + 1
    shares, kind = np.unique(language.arc.sum(axis=2), axis=0, return_inverse=True)
    mass = tree.mass @ shares.T
    log_mass = np.log(np.where(mass > 0, mass, 1))
    letters = mass * (log_mass[tree.parent] - log_mass)
    spelling = np.zeros((longest, len(shares)))
    np.add.at(spelling, tree.depth[1:] - 1, letters[1:])

    ends = np.flatnonzero(tree.word_probability)
    p, cell = tree.word_probability[ends], (tree.depth[ends], tree.word_class[ends])
    lengths, own = np.zeros((2, longest, classes))
    np.add.at(lengths, cell, p)
    np.add.at(own, cell, p * np.log(p))
    known = np.zeros((longest, classes, len(shares)))
    np.add.at(known, cell, p[:, None] * log_mass[ends])

    arc = language.arc
    share, log_arc = arc.sum(axis=2), np.log(np.where(arc > 0, arc, 1))
    ending = np.einsum("qc,kcq->qk", share, known[:, :, kind.reshape(slots)])
    ending -= np.einsum("qcs,qcs,kc->qk", arc, log_arc, lengths) + share @ own.T
    return spelling.T[kind.reshape(slots)], ending, lengths
