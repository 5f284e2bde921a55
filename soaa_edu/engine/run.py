"""The run of studies: which cell comes next, what is kept, and when there is no time for more."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from tqdm import tqdm

from soaa_edu.engine.cells import Cell, cells_of, compute_cell, estimates, origin
from soaa_edu.engine.executors import Place
from soaa_edu.engine.results import add, begun, in_order, read_to_go_on, seconds_on
from soaa_edu.storage import save_json


class Unfinished(NamedTuple):
    """A study on its way.

    Attributes:
        module: the study's.
        scale: at which it is computed.
        cells: all of it.
        seconds: an estimate for each.
        results: what is there of it; cells are added.
        folder: where its cells are kept until all are there, ``None`` where they are not.
    """

    module: str
    scale: str
    cells: Mapping[str, Cell]
    seconds: Mapping[str, float]
    results: dict[str, Any]
    folder: Path | None

    @property
    def name(self) -> str:
        """Of the study."""
        return self.results["study"]

    @property
    def missing(self) -> list[str]:
        """The cells that are not there, in the study's order."""
        return [cell for cell in self.cells if cell not in self.results["cells"]]


def take_up(module: str, scale: str, folder: Path | None = None) -> Unfinished:
    """A study as the last run left it in a folder, or without any cell.

    Raises:
        StoredFileError: what is there was computed with other settings, or cannot be read.
    """
    settings = import_module(module).SCALES[scale]
    name = module.rpartition(".")[2]
    cells = cells_of(module, settings)
    study = Unfinished(
        module, scale, cells, estimates(cells, settings), begun(name, scale, settings), folder
    )
    if folder is None or not _file(study, folder).exists():
        return study
    return study._replace(results=read_to_go_on(_file(study, folder), settings))


def forget(study: Unfinished) -> None:
    """Remove what is kept of a study on its way."""
    if study.folder is not None:
        _file(study, study.folder).unlink(missing_ok=True)


@contextmanager
def alone(name: str, scale: str, folder: Path) -> Iterator[None]:
    """Keeps other processes away from a study's files, and clears what killed ones left half done.

    The lock's file stays there: were it removed, a process that has it open and one that makes it
    anew would both hold it. The system drops the lock of a process that dies.

    Raises:
        BlockingIOError: another process is at it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / f".{name}.{scale}.lock"
    try:
        with FileLock(lock).acquire(timeout=0):
            for draft in folder.glob(f".{name}.{scale}.*"):
                if draft != lock:
                    draft.unlink()
            yield
    except Timeout as error:
        raise BlockingIOError(
            f"another process computes {name} at the scale {scale} into {folder}: wait for it to "
            "end, or give another --output"
        ) from error


def compute(
    studies: Sequence[Unfinished],
    place: Place,
    *,
    deadline: float = float("inf"),
    finished: Callable[[Unfinished], Any] = lambda study: None,
    progress: bool = False,
) -> None:
    """Compute what is missing, the first study first, as long as there is time.

    No cell begins that would not end in time by its estimate, times how much longer than estimated
    the cells before took on the same device; a smaller one may take its turn. What still runs at
    the deadline is given up, where it runs in another process. A cell that fails stops no other.

    Args:
        studies: cells are added to their results, and to their files.
        place: where cells are computed.
        deadline: on the clock of ``time.monotonic``.
        finished: called with each study as soon as it has all its cells.
        progress: show a progress bar.

    Raises:
        Exception: that of the first cell that failed, with a note of its name, after all others.
    """
    todo = [(study, cell) for study in studies for cell in study.missing]
    running: dict[Future, tuple[Unfinished, str]] = {}
    failed: list[tuple[str, BaseException]] = []
    for study in studies:
        if not study.missing:
            finished(study)
    if not todo:
        return
    device = place.executor.submit(origin).result()["device"]
    with _bar(studies, progress) as bar:
        while True:
            while len(running) < place.at_once:
                chosen = _next(todo, device, deadline - time.monotonic())
                if chosen is None:
                    break
                todo.remove(chosen)
                study, cell = chosen
                needed = tuple(study.results["cells"][name] for name in study.cells[cell].needs)
                arguments = study.module, study.scale, cell, needed
                bar.set_postfix_str(", ".join([*(c for _, c in running.values()), cell]))
                running[place.executor.submit(compute_cell, *arguments)] = chosen
            if not running:
                break
            left = None if deadline == float("inf") else max(deadline - time.monotonic(), 0)
            done, _ = wait(running, timeout=left, return_when=FIRST_COMPLETED)
            if not done:
                place.give_up()
                given_up = ", ".join(cell for _, cell in running.values())
                tqdm.write(f"given up, since the time is over: {given_up}")
                break
            for future in done:
                study, cell = running.pop(future)
                error = future.exception()
                if error is None:
                    add(study.results, cell, future.result())
                    if study.folder is not None:
                        save_json(_file(study, study.folder), study.results)
                    if not study.missing:
                        finished(study)
                else:
                    failed.append((f"{cell} of {study.name}", error))
                bar.update()
    if failed:
        names, errors = zip(*failed, strict=True)
        errors[0].add_note(f"in the cell {names[0]}; failed in all: {', '.join(names)}")
        raise errors[0]


def finish(study: Unfinished) -> dict[str, Any]:
    """The results of a study that has all its cells, in its order."""
    return in_order(study.results, study.cells)


def remaining(study: Unfinished) -> float:
    """Seconds that the missing cells take, one after the other, on the device of the last one."""
    device = study.results["origins"][-1]["device"] if study.results["origins"] else ""
    return _pace(study, device) * sum(study.seconds[cell] for cell in study.missing)


def _file(study: Unfinished, folder: Path) -> Path:
    return folder / f"{study.name}.{study.scale}.unfinished.json"


def _next(
    todo: Sequence[tuple[Unfinished, str]], device: str, seconds: float
) -> tuple[Unfinished, str] | None:
    """The first cell that has what it needs and ends within so many seconds."""
    for study, cell in todo:
        ready = all(name in study.results["cells"] for name in study.cells[cell].needs)
        if ready and study.seconds[cell] * _pace(study, device) <= seconds:
            return study, cell
    return None


def _pace(study: Unfinished, device: str) -> float:
    """How much longer than estimated its cells took on a device; 1 where none was timed there."""
    taken = seconds_on(study.results, device)
    expected = sum(study.seconds[cell] for cell in taken if cell in study.cells)
    return sum(taken.values()) / expected if expected else 1.0


def _bar(studies: Sequence[Unfinished], progress: bool) -> tqdm:
    return tqdm(
        total=sum(len(study.cells) for study in studies),
        initial=sum(len(study.cells) - len(study.missing) for study in studies),
        desc=", ".join(f"{study.name} ({study.scale})" for study in studies[:1]),
        unit="cell",
        disable=not progress,
    )
