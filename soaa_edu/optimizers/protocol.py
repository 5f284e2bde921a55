"""The words every method trains through."""

from collections.abc import Callable
from typing import Any, NamedTuple

Params = Any
State = Any
Batch = tuple[Any, Any]
Key = Any
Info = dict[str, Any]


class Optimizer(NamedTuple):
    """A method of training.

    Attributes:
        init: ``params -> state``.
        step: ``(params, state, batch, key) -> (params, state, info)``. ``info`` is a flat dict of
            scalars with ``"loss"``, before the step, and what else the method reports.
        objective: what is minimised, ``(params, batch) -> scalar``. With it ``train`` can evaluate
            on test data.
    """

    init: Callable[[Params], State]
    step: Callable[[Params, State, Batch, Key], tuple[Params, State, Info]]
    objective: Any = None
