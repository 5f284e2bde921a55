"""Honest timing: compiled first, in turn, waiting for the device."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import jax
import numpy as np


def in_turn(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each call, ``(rounds,)``; they take turns, and a first round goes untimed."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for timed in [False] + [True] * rounds:
        for name, call in calls.items():
            began = perf_counter()
            jax.block_until_ready(call())
            if timed:
                seconds[name].append(perf_counter() - began)
    return {name: np.array(values) for name, values in seconds.items()}


def table(seconds: dict[str, np.ndarray], per: int = 1) -> None:
    """Print mean and median in milliseconds, and multiples of the first row, pair by pair."""
    first = next(iter(seconds.values()))
    width = max(map(len, seconds))
    print(f"{'':{width}}   mean ms  median ms  times the first (median of pairs)")
    for name, values in seconds.items():
        mean, median = 1e3 * values.mean() / per, 1e3 * np.median(values) / per
        print(f"{name:{width}} {mean:9.3f} {median:10.3f} {np.median(values / first):9.2f}")
