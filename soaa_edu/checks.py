"""Checks of hyperparameters. A traced value has no number yet and passes."""

import math
import operator
from typing import Any

import jax
import numpy as np


def concrete(value: Any) -> float | None:
    """``value`` as a Python float; ``nan`` for text and truth values, ``None`` if traced."""
    try:
        return math.nan if isinstance(value, bool | np.bool | str) else float(value)
    except jax.errors.ConcretizationTypeError:
        return None


def positive(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless ``value`` is a finite number above zero."""
    number = concrete(value)
    if number is not None and not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be a finite number above zero, got {value}")


def not_negative(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless ``value`` is a finite number of zero or more."""
    number = concrete(value)
    if number is not None and not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name} must be a finite number, zero or more, got {value}")


def whole(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless ``value`` is a whole number of one or more."""
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"{name} must be a whole number of one or more, got {value!r}")


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is among ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def fraction(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless ``value`` is a number of zero or more and below one."""
    number = concrete(value)
    if number is not None and not 0 <= number < 1:
        raise ValueError(f"{name} must be a number of zero or more and below one, got {value}")
