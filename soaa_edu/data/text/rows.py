"""Rows of text to learn from: the next character, or the characters under a mask."""

import numpy as np

from soaa_edu import checks
from soaa_edu.data.dataset import Dataset
from soaa_edu.data.text.alphabet import (
    FIRST_CHARACTER,
    MASK,
    PADDING,
    START,
    VOCABULARY,
    encode,
)

IGNORED = -1


def windows(ids: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """A long text cut into rows, with the next character as the target at each place.

    Args:
        ids: the text, whole numbers ``(characters,)``.
        length: characters in a row, T. What is left over at the end is dropped.

    Returns:
        ``(x, y)``, both int32 ``(n, T)``: ``y`` is the text row by row, and ``x`` the character
        before each, ``START`` before the first of all.

    Raises:
        ValueError: the text has fewer than ``length`` characters.
    """
    checks.whole("length", length)
    count = len(ids) // length
    if count == 0:
        raise ValueError(
            f"the text has {len(ids)} characters, fewer than a window of {length}: "
            "give more text or a smaller length"
        )
    targets = np.asarray(ids[: count * length], np.int32)
    inputs = np.concatenate([np.array([START], np.int32), targets[:-1]])
    return inputs.reshape(count, length), targets.reshape(count, length)


def next_character(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows that each begin anew, with the next character as the target at each place.

    Args:
        rows: ids ``(n, T)``, ``PADDING`` where a row has ended.

    Returns:
        ``(x, y)``, both int32 ``(n, T)``: ``x`` is ``START`` and then the row without its last
        character; ``y`` is the row, with -1, which the loss ignores, in place of padding.
    """
    inputs = np.empty(rows.shape, np.int32)
    inputs[:, :1], inputs[:, 1:] = START, rows[:, :-1]
    targets = rows.astype(np.int32)
    targets[rows == PADDING] = IGNORED
    return inputs, targets


def padded(texts: list[str], length: int) -> np.ndarray:
    """Texts as rows of ids, int32 ``(n, length)``: the beginning of each, then ``PADDING``."""
    checks.whole("length", length)
    rows = np.full((len(texts), length), PADDING, np.int32)
    for row, text in zip(rows, texts):
        ids = encode(text[:length])
        row[: len(ids)] = ids
    return rows


def text_to_model(ids: np.ndarray, length: int, held_out: float = 0.1) -> Dataset:
    """A long text as next-character windows, the end of it held out as the test set.

    Args:
        ids: the text, whole numbers ``(characters,)``.
        length: characters in a row, T.
        held_out: the share of the text, at its end, that is kept for the test set.

    Raises:
        ValueError: either part is shorter than one window.
    """
    kept = len(ids) - int(held_out * len(ids))
    return Dataset(windows(ids[:kept], length), windows(ids[kept:], length))


def masked(data: Dataset, seed: int = 0, share: float = 0.15) -> Dataset:
    """The masked-character task on the text of any next-character data set.

    As in BERT (Devlin et al. 2019) ``share`` of the characters are asked for, each with that
    probability; of these 80% are hidden by ``MASK``, 10% replaced by a character drawn at random,
    and 10% left as they are. The draw is made once: every epoch sees the same masks.

    Args:
        data: next-character windows. Their targets ``(n, T)`` are the text.
        seed: of the draw; the training set and the test set have a stream each.
        share: the share of characters asked for, above zero and below one.

    Returns:
        ``Dataset`` of int32 ``(n, T)``: in ``x`` the text with its masks, ``PADDING`` where there
        is none; in ``y`` the character where one is asked for, and -1, which the loss ignores,
        everywhere else.

    Raises:
        ValueError: ``share`` is not between zero and one, or the targets are labels, not text.
    """
    checks.positive("share", share)
    checks.fraction("share", share)
    halves = [half for half in data if half is not None]
    if any(np.ndim(targets) != 2 for _, targets in halves):
        raise ValueError("masked needs text to model, with targets (n, T): these are labels (n,)")
    return Dataset(
        *(
            _mask(np.asarray(targets), np.random.default_rng([seed, stream]), share)
            for stream, (_, targets) in enumerate(halves)
        )
    )


def _mask(
    text: np.ndarray, rng: np.random.Generator, share: float
) -> tuple[np.ndarray, np.ndarray]:
    there = text != IGNORED
    asked = there & (rng.random(text.shape, np.float32) < share)
    fate = rng.random(text.shape, np.float32)
    others = rng.integers(FIRST_CHARACTER, VOCABULARY, text.shape, np.int32)
    inputs = np.where(there, text, PADDING)
    inputs = np.where(asked & (fate < 0.8), MASK, inputs)
    inputs = np.where(asked & (fate >= 0.9), others, inputs)
    return inputs.astype(np.int32), np.where(asked, text, IGNORED).astype(np.int32)
