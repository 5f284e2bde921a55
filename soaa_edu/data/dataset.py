"""The one shape in which data reaches ``train``."""

from typing import Any, NamedTuple


class Dataset(NamedTuple):
    """Training pairs and, where there are any, test pairs.

    ``Dataset(train=(x, y))`` is enough for arrays of your own; examples stand along the first axis.

    Attributes:
        train: inputs ``(n, ...)`` and targets ``(n, ...)``.
        test: inputs ``(m, ...)`` and targets ``(m, ...)``, or ``None``.
    """

    train: tuple[Any, Any]
    test: tuple[Any, Any] | None = None
