"""Rehearsals: each cell of a study compiled at its true shapes and run for two steps."""

import time
from collections.abc import Iterator
from concurrent.futures import TimeoutError
from typing import Any, NamedTuple

from soaa_edu.engine.cells import compute_cell
from soaa_edu.engine.executors import processes
from soaa_edu.engine.run import Unfinished
from soaa_edu.training import rehearsal


class Rehearsed(NamedTuple):
    """What a rehearsal showed of a cell.

    Attributes:
        cell: its name.
        seconds: that it took, most of them for compilation.
        programs: ``training.dry_run.Program``, one for each that it trained with.
        error: what went wrong, if anything did.
    """

    cell: str
    seconds: float
    programs: list[Any]
    error: str | None


def rehearse(study: Unfinished, patience: float) -> Iterator[Rehearsed]:
    """Rehearse each cell of a study, in a process of its own, for so many seconds at most.

    A cell that takes longer does more than training, which a rehearsal does not shorten. It ends
    the rehearsal of its study, whose other cells would do the same.
    """
    found: dict[str, Any] = {}
    with processes(1) as place:
        for name, cell in study.cells.items():
            missing = [other for other in cell.needs if other not in found]
            if missing:
                yield Rehearsed(name, 0.0, [], f"needs {', '.join(missing)}")
                continue
            began = time.monotonic()
            needed = tuple(found[other] for other in cell.needs)
            asked = place.executor.submit(rehearse_cell, study.module, study.scale, name, needed)
            try:
                found[name], programs = asked.result(patience)
            except TimeoutError:
                yield Rehearsed(name, patience, [], f"not done after {patience:.0f} s")
                return
            except Exception as failure:
                error = f"{type(failure).__name__}: {failure}"
                yield Rehearsed(name, time.monotonic() - began, [], error)
            else:
                yield Rehearsed(name, time.monotonic() - began, programs, None)


def rehearse_cell(study: str, scale: str, name: str, needed: tuple) -> tuple[Any, list[Any]]:
    """The numbers of a rehearsed cell, and the programs that it trained with."""
    with rehearsal() as programs:
        numbers = compute_cell(study, scale, name, needed).numbers
    return numbers, list(programs.values())
