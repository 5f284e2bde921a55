"""Checks of hyperparameters. A traced value has no number yet and passes."""

import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def concrete(value: Any) -> float | None:
    """``value`` as a Python float; ``nan`` for what is no number, ``None`` if traced."""
    if isinstance(value, bool | np.bool | str):
        return math.nan
    try:
        return float(value)
    except jax.errors.ConcretizationTypeError:
        return None
    except (TypeError, ValueError):
        return math.nan


def positive(name: str, value: Any) -> Any:
    """The number as a Python float, or as it is if traced.

    A NumPy number would widen the arrays it meets once float64 is enabled; Python's don't.

    Raises:
        ValueError: it is no finite number above zero.
    """
    return _number(name, value, lambda x: math.isfinite(x) and x > 0, "a finite number above zero")


def not_negative(name: str, value: Any) -> Any:
    """Like ``positive``, zero included."""
    return _number(
        name, value, lambda x: math.isfinite(x) and x >= 0, "a finite number, zero or more"
    )


def fraction(name: str, value: Any) -> Any:
    """Like ``positive``, for numbers of zero or more and below one."""
    return _number(name, value, lambda x: 0 <= x < 1, "a number of zero or more and below one")


def whole(name: str, value: Any) -> Any:
    """A whole number as a Python int, or as it is if traced.

    Raises:
        ValueError: it is no whole number of one or more.
    """
    if isinstance(value, jax.core.Tracer) and jnp.issubdtype(value.dtype, jnp.integer):
        return value
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if number < 1:
        raise ValueError(f"{name} must be a whole number of one or more, got {value!r}")
    return number


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is among ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def _number(name: str, value: Any, fits: Callable[[float], bool], what: str) -> Any:
    number = concrete(value)
    if number is None and jnp.shape(value) == ():
        return value
    if number is None or not fits(number):
        got = "a function" if callable(value) else f"{value!r}"
        raise ValueError(f"{name} must be {what}, got {got}")
    return number
