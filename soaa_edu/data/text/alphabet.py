"""One alphabet for all text: four symbols, the newline and the printable ASCII characters."""

import numpy as np

PADDING, MASK, START, UNKNOWN = range(4)
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
FIRST_CHARACTER = 4
VOCABULARY = FIRST_CHARACTER + len(CHARACTERS)

_GLYPHS = np.array(list("·█▸\ufffd" + CHARACTERS))
_IDS = np.full(128, UNKNOWN, np.uint8)
_IDS[[ord(character) for character in CHARACTERS]] = np.arange(FIRST_CHARACTER, VOCABULARY)


def encode(text: str) -> np.ndarray:
    """The id of each character, uint8 ``(len(text),)``; ``UNKNOWN`` if it is not in the alphabet.

    Ids 0 to 3 are padding, mask, start and unknown; 4 is the newline, 5 to 99 the printable ASCII
    characters in their own order.
    """
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    return np.where(codes < 128, _IDS[codes % 128], np.uint8(UNKNOWN))


def decode(ids: np.ndarray) -> str:
    """The text of a row of ids ``(n,)``, the four symbols as ``·``, ``█``, ``▸`` and ``�``.

    Raises:
        ValueError: an id that stands for nothing, such as the -1 of a target that does not count.
    """
    row = np.asarray(ids)
    strange = row[(row < 0) | (row >= VOCABULARY)]
    if strange.size:
        raise ValueError(
            f"{strange.flat[0]} is no id, which go from 0 to {VOCABULARY - 1}: decode the inputs, "
            "or leave out the targets of -1, which don't count"
        )
    return "".join(_GLYPHS[row])
