import jax.numpy as jnp
import numpy as np
import pytest

from soaa_edu.data import Dataset, text


def test_the_alphabet_is_four_symbols_the_newline_and_printable_ascii():
    printable = "\n" + "".join(map(chr, range(32, 127)))
    assert [text.PADDING, text.MASK, text.START, text.UNKNOWN] == [0, 1, 2, 3]
    np.testing.assert_array_equal(text.encode(printable), np.arange(4, text.VOCABULARY))
    assert text.VOCABULARY == 100
    assert text.encode(printable).dtype == np.uint8
    assert text.decode(text.encode(printable)) == printable


@pytest.mark.parametrize("character", ["é", "\t", "\x00", "\x7f", "€", "🙂", "\ud800"])
def test_other_characters_are_unknown(character):
    ids = text.encode(f"a{character}b")
    assert ids[1] == text.UNKNOWN
    assert text.decode(ids) == "a\ufffdb"


def test_symbols_are_decoded_as_marks_that_can_be_seen():
    assert text.decode([text.START, *text.encode("ab"), text.MASK, text.PADDING]) == "▸ab█·"


def test_windows_are_the_text_and_the_character_before():
    x, y = text.windows(text.encode("abcdefgh"), 3)
    assert [text.decode(row) for row in y] == ["abc", "def"]
    assert [text.decode(row) for row in x] == ["▸ab", "cde"]
    assert x.dtype == y.dtype == np.int32


def test_a_text_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match="has 2 characters, fewer than a window of 3: give more"):
        text.windows(text.encode("ab"), 3)


def test_rows_that_begin_anew_ask_for_no_padding():
    x, y = text.next_character(text.padded(["abc", "d"], 3))
    assert [text.decode(row) for row in x] == ["▸ab", "▸d·"]
    np.testing.assert_array_equal(y, [text.encode("abc"), [text.encode("d")[0], -1, -1]])


def test_padded_texts_are_cut_off_or_filled():
    rows = text.padded(["abcd", "", "é"], 2)
    assert [text.decode(row) for row in rows] == ["ab", "··", "\ufffd·"]
    assert rows.dtype == np.int32


def test_the_end_of_a_text_is_held_out():
    data = text.text_to_model(text.encode("a" * 90 + "b" * 10), 5)
    assert [part.shape for half in data for part in half] == [(18, 5), (18, 5), (2, 5), (2, 5)]
    assert (data.train[1] == text.encode("a")).all() and (data.test[1] == text.encode("b")).all()
    assert data.test[0][0, 0] == text.START


@pytest.fixture(scope="module")
def padded_text():
    """Rows of text with a tenth of them padding."""
    rng = np.random.default_rng(0)
    rows = rng.integers(4, text.VOCABULARY, (4000, 50))
    rows[:, 45:] = text.PADDING
    return Dataset(text.next_character(rows), text.next_character(rows[:200]))


@pytest.mark.parametrize("share", [0.15, 0.5])
def test_masks_follow_bert(padded_text, share):
    x, y = text.masked(padded_text, share=share).train
    original = padded_text.train[1]
    there, asked = original >= 0, y >= 0
    count = asked.sum()

    def near(part, whole, probability):
        error = 5 * np.sqrt(probability * (1 - probability) / whole)
        assert abs(part / whole - probability) < error

    assert not (asked & ~there).any()
    near(count, there.sum(), share)
    np.testing.assert_array_equal(y[asked], original[asked])
    np.testing.assert_array_equal(x[there & ~asked], original[there & ~asked])
    assert (x[~there] == text.PADDING).all() and (y[~asked] == -1).all()
    hidden = x[asked] == text.MASK
    other = ~hidden & (x[asked] != original[asked])
    near(hidden.sum(), count, 0.8)
    near(other.sum(), count, 0.1 * 95 / 96)
    assert set(np.unique(x[asked][other])) == set(range(4, text.VOCABULARY))
    assert x.dtype == y.dtype == np.int32


def test_masks_come_from_the_seed_and_differ_between_the_halves(padded_text):
    one, again, other = (text.masked(padded_text, seed) for seed in (1, 1, 2))
    for halves in zip(one, again):
        np.testing.assert_array_equal(*[half[0] for half in halves])
    assert (one.train[0] != other.train[0]).any()
    assert (one.train[0][:200] != one.test[0]).any()


def test_masks_take_jax_arrays_and_no_test_set(padded_text):
    x, y = padded_text.train
    data = text.masked(Dataset((jnp.asarray(x), jnp.asarray(y))))
    assert data.test is None
    np.testing.assert_array_equal(data.train[0], text.masked(padded_text).train[0])


def test_labels_cannot_be_masked():
    data = Dataset((np.zeros((3, 4), np.int32), np.zeros(3, np.int32)))
    with pytest.raises(ValueError, match="text to model"):
        text.masked(data)


@pytest.mark.parametrize("share", [0, 1, -0.1, 2])
def test_an_impossible_share_is_refused(padded_text, share):
    with pytest.raises(ValueError, match="share must be"):
        text.masked(padded_text, share=share)


@pytest.mark.parametrize("length", [0, -3, 2.5])
def test_an_impossible_length_is_refused(length):
    with pytest.raises(ValueError, match="length must be a whole number"):
        text.windows(text.encode("abcdef"), length)
    with pytest.raises(ValueError, match="length must be a whole number"):
        text.padded(["abc"], length)


@pytest.mark.parametrize("ids", [[-1], [77, 100], [200]])
def test_what_is_no_id_is_not_decoded(ids):
    with pytest.raises(ValueError, match="is no id, which go from 0 to 99"):
        text.decode(np.array(ids))
