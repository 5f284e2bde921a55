"""Character-level data sets: a synthetic language with a known entropy, and published text."""

from soaa_edu.data.text.alphabet import (
    MASK,
    PADDING,
    START,
    UNKNOWN,
    VOCABULARY,
    decode,
    encode,
)
from soaa_edu.data.text.automaton import Language, language, synthetic
from soaa_edu.data.text.published import imdb, squad, tiny_shakespeare, trivia_qa
from soaa_edu.data.text.rows import masked, next_character, padded, text_to_model, windows

__all__ = [
    "MASK",
    "PADDING",
    "START",
    "UNKNOWN",
    "VOCABULARY",
    "Language",
    "decode",
    "encode",
    "imdb",
    "language",
    "masked",
    "next_character",
    "padded",
    "squad",
    "synthetic",
    "text_to_model",
    "tiny_shakespeare",
    "trivia_qa",
    "windows",
]
