"""The one shape in which data reaches ``train``."""

from typing import Any, NamedTuple

import jax


class Dataset(NamedTuple):
    """Training pairs and, where there are any, test pairs.

    ``Dataset(train=(x, y))`` is enough for arrays of your own; examples stand along the first axis.
    Inputs and targets may also be dicts or tuples of arrays, which are cut into batches alike.

    Attributes:
        train: inputs ``(n, ...)`` and targets ``(n, ...)``.
        test: inputs ``(m, ...)`` and targets ``(m, ...)``, or ``None``.
    """

    train: tuple[Any, Any]
    test: tuple[Any, Any] | None = None


def count_rows(tree: Any) -> int:
    """The length that all arrays of a tree have along their first axis.

    Raises:
        ValueError: there is no array, or they differ.
    """
    lengths = {len(leaf) for leaf in jax.tree.leaves(tree)}
    if len(lengths) != 1:
        raise ValueError(
            f"the arrays of a data set need one length along their first axis, got "
            f"{sorted(lengths) or 'no array'}"
        )
    return lengths.pop()
