import re

import numpy as np
import pytest

from soaa_edu.data import text
from soaa_edu.data.text import grammar
from soaa_edu.data.text.automaton import BLOCK, TEST


@pytest.fixture(scope="module")
def language():
    return text.language()


class Parser:
    """Reads sentences by the rules in the docstring of the grammar, by recursive descent."""

    def __init__(self, tokens):
        self.tokens, self.place = tokens, 0

    def sees(self, part):
        return self.tokens[self.place][0] == part

    def take(self, part):
        found, *agreement = self.tokens[self.place]
        assert found == part
        self.place += 1
        return tuple(agreement)

    def may_take(self, part):
        return self.sees(part) and [self.take(part)]

    def sentence(self):
        if self.may_take("adverb"):
            self.take(",")
        self.clause()
        while self.may_take(","):
            self.take("conjunction")
            self.clause()
        self.take(".")

    def clause(self):
        subject = self.phrase()
        if self.sees("pronoun"):
            self.relative(subject, 1)
        assert self.take("verb") == subject
        if self.sees("determiner") or self.may_take("preposition"):
            self.object(0)
        else:
            self.may_take("adverb")

    def phrase(self):
        (number,) = self.take("determiner")
        adjectives = []
        while self.sees("adjective"):
            adjectives += self.take("adjective")
        noun_class, noun_number = self.take("noun")
        assert noun_number == number
        assert set(adjectives) <= {noun_class}
        return noun_class, number

    def relative(self, head, depth):
        self.take("pronoun")
        assert self.take("verb") == head
        if self.sees("determiner"):
            inner = self.phrase()
            if self.sees("pronoun"):
                assert depth < 2
                self.relative(inner, depth + 1)
        else:
            self.may_take("adverb")

    def object(self, depth):
        head = self.phrase()
        if self.may_take("preposition"):
            self.object(0)
        elif self.may_take("pronoun"):
            assert depth < 2
            assert self.take("verb") == head
            if self.sees("determiner"):
                self.object(depth + 1)
            else:
                self.may_take("adverb")
        else:
            self.may_take("adverb")


def test_what_was_written_can_be_parsed_back(language):
    words = language.lexicon
    classes = dict(zip(words.words, (words.classes[c] for c in words.word_class)))
    assert len(classes) == len(words.words)
    sentences = set()
    for row in language.windows(300, 400):
        for sentence in text.decode(row).split(". ")[:-1]:
            tokens = [
                (token,) if token in ",." else classes[token]
                for token in re.findall(r"[a-z]+|, ?", sentence.replace(", ", ","))
            ]
            parser = Parser([*tokens, (".",)])
            parser.sentence()
            assert parser.place == len(parser.tokens)
            sentences.add(sentence)
    assert len(sentences) > 1000


def test_no_slot_has_two_ways_to_write_the_same(language):
    arcs = grammar.arcs()
    assert len({arc[:3] for arc in arcs}) == len(arcs) == np.count_nonzero(language.arc)
    np.testing.assert_allclose(language.arc.sum(axis=(1, 2)), 1, rtol=1e-12)


def test_a_large_lexicon_has_zipf_frequencies_in_every_class(language):
    words = language.lexicon
    assert len(set(words.words)) == len(words.words) > 50_000
    for index in range(len(words.classes)):
        p = np.sort(words.probability[words.word_class == index])[::-1]
        assert p.sum() == pytest.approx(1)
        np.testing.assert_allclose(p * np.arange(1, len(p) + 1), p[0])


def test_noun_classes_differ_in_taste(language):
    words = language.lexicon
    verbs = [
        words.probability[words.word_class == words.classes.index(("verb", c, 0))] for c in (0, 1)
    ]
    assert np.abs(verbs[0] - verbs[1]).sum() > 0.5


def extended(rows):
    """Each row with each symbol of the alphabet after it."""
    after = np.tile(np.arange(text.VOCABULARY), len(rows))
    return np.column_stack([np.repeat(rows, text.VOCABULARY, axis=0), after])


def test_the_probabilities_of_the_next_character_sum_to_one(language):
    row = language.windows(1, 120, seed=3)
    for place in range(0, 120, 4):
        p = np.exp(-language.surprise(extended(row[:, :place]))[:, -1])
        assert p.sum() == pytest.approx(1, rel=1e-10)
        assert np.argmax(p) >= 4 and p[row[0, place]] > 0


def test_entropy_is_that_of_all_texts_of_a_length(language):
    rows = np.zeros((1, 0), int)
    for length in range(1, 7):
        rows = extended(rows)
        surprise = language.surprise(rows)
        possible = np.isfinite(surprise).all(axis=1)
        rows, total = rows[possible], surprise[possible].sum(axis=1)
        p = np.exp(-total)
        assert p.sum() == pytest.approx(1, rel=1e-9)
        assert language.entropy(length) * length == pytest.approx(p @ total, rel=1e-9)


@pytest.mark.parametrize("length", [64, 200])
def test_entropy_is_the_mean_surprise_of_what_is_written(language, length):
    surprise = language.surprise(language.windows(8000, length, seed=1))
    mean = surprise.mean(axis=1)
    assert np.isfinite(surprise).all() and surprise.min() > -1e-9
    assert abs(mean.mean() - language.entropy(length)) < 4 * mean.std() / np.sqrt(len(mean))


def test_what_the_language_cannot_write_is_infinitely_surprising(language):
    row = language.windows(1, 40)
    finite = language.surprise(row)[0]
    for wrong in (text.encode(".")[0], text.encode("Q")[0], text.MASK):
        broken = row.copy()
        broken[0, 3] = wrong
        surprise = language.surprise(broken)[0]
        np.testing.assert_array_equal(surprise[:3], finite[:3])
        assert np.isinf(surprise[3:]).all()


def test_agreement_across_a_relative_clause_is_enforced(language):
    word = {}
    for spelled, index in zip(language.lexicon.words, language.lexicon.word_class):
        word.setdefault(language.lexicon.classes[index], spelled)

    def surprise(main_verb):
        order = [("determiner", 0), ("noun", 2, 0), ("pronoun",), ("verb", 2, 0)]
        order += [("determiner", 1), ("noun", 1, 1), main_verb]
        ids = text.encode(" ".join(word[one] for one in order) + " ")
        return language.surprise(ids[None])[0]

    assert np.isfinite(surprise(("verb", 2, 0))).all()
    for wrong in (("verb", 1, 1), ("verb", 2, 1), ("verb", 0, 0)):
        assert np.isinf(surprise(wrong)[-1])


def test_more_rows_begin_with_the_same_rows(language):
    few, many = language.windows(10, 32), language.windows(BLOCK + 10, 32)
    np.testing.assert_array_equal(few, many[:10])
    assert len(np.unique(many, axis=0)) > BLOCK
    assert few.dtype == np.uint8


def test_a_data_set_of_the_language():
    small, large = (text.synthetic(size, length=32, test_characters=320) for size in (1000, 2000))
    assert [part.shape for half in small for part in half] == [
        (32, 32),
        (32, 32),
        (10, 32),
        (10, 32),
    ]
    assert {part.dtype for half in small for part in half} == {np.dtype(np.int32)}
    x, y = small.train
    assert (x[:, 0] == text.START).all()
    np.testing.assert_array_equal(x[:, 1:], y[:, :-1])
    np.testing.assert_array_equal(y, large.train[1][:32])
    np.testing.assert_array_equal(small.test[1], large.test[1])
    np.testing.assert_array_equal(small.test[1], text.language().windows(10, 32, stream=TEST))
    assert (small.test[1] != y[:10]).any()


def test_another_seed_is_another_language(language):
    other = text.language(1)
    assert set(other.lexicon.words) != set(language.lexicon.words)
    assert np.isinf(language.surprise(other.windows(20, 64))).any()


@pytest.mark.parametrize("name", ["characters", "length", "test_characters"])
@pytest.mark.parametrize("value", [0, -1, 1.5])
def test_impossible_sizes_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} must be a whole number"):
        text.synthetic(**({"characters": 100} | {name: value}))
