"""A dry run: every program compiled at its true shapes, and run for two steps where that is quick.

So a study for a large machine is tried on a small one, before time there is spent on it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import numpy as np

from soaa_edu.training.memory import free_on_host, needed

STEPS = 2
QUICK = 2e10
"""Operations that a CPU does in a second."""


class Program(NamedTuple):
    """A program that was rehearsed.

    Attributes:
        runs: trained side by side.
        gigabytes: that it takes, its data included.
        ran: whether it was run, too.
    """

    runs: int
    gigabytes: float
    ran: bool


_programs: ContextVar[dict[int, Program] | None] = ContextVar("rehearsed programs", default=None)


@contextmanager
def rehearsal() -> Iterator[dict[int, Program]]:
    """Within, ``train`` and ``sweep`` take two steps of one epoch, at their data's true shapes.

    Runs of a sweep go side by side, as on an accelerator. Their results have their full length, the
    last of the two steps repeated. A program of a sweep that would need more memory than is free,
    or minutes, is compiled and not run, and gives zeros.

    Yields:
        The programs, under numbers that tell them apart; each is added as soon as it is compiled.
    """
    programs: dict[int, Program] = {}
    before = _programs.set(programs)
    try:
        yield programs
    finally:
        _programs.reset(before)


def rehearsing() -> dict[int, Program] | None:
    """The programs of the rehearsal that is going on, or ``None``."""
    return _programs.get()


def shortened(steps: Any, axis: int) -> Any:
    """Arrays cut to the first steps of a rehearsal along an axis; as they are outside one."""
    if rehearsing() is None:
        return steps
    return jax.tree.map(lambda array: array[(slice(None),) * axis + (slice(STEPS),)], steps)


def filled(values: np.ndarray, length: int) -> np.ndarray:
    """Numbers along the last axis, the last one repeated until there are so many."""
    missing = [(0, 0)] * (values.ndim - 1) + [(0, length - values.shape[-1])]
    return np.pad(values, missing, mode="edge")


def note(program: Any, arguments: Any, runs: int = 1) -> None:
    """Add a compiled program to the rehearsal that is going on."""
    programs = rehearsing()
    if programs is not None:
        data = sum(array.nbytes for array in jax.tree.leaves(arguments))
        taken = (needed(program) + data) / 1e9
        programs[id(program)] = Program(runs, taken, is_quick(program))


def is_quick(program: Any) -> bool:
    """Whether a compiled program fits into this machine's free memory, and ends in seconds.

    The compiler counts the operations in the body of a loop once.
    """
    counted = (program.cost_analysis() or {}).get("flops", 0.0)
    return needed(program) < free_on_host() and counted < QUICK
