"""The run of studies: which cell comes next, what is kept, and when there is no time for more."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from tqdm import tqdm

from soaa_edu.engine.cells import Cell, cells_of, compute_cell, estimates, module_of, origin
from soaa_edu.engine.executors import Place
from soaa_edu.engine.results import add, begun, in_order, read_to_go_on, seconds_on
from soaa_edu.storage import save_json


class Unfinished(NamedTuple):
    """A study on its way.

    Attributes:
        module: the study's, or its file.
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
    settings = module_of(module).SCALES[scale]
    name = Path(module).stem if module.endswith(".py") else module.rpartition(".")[2]
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
    its study's cells took on the same device, or those of all; a smaller one may take its turn.
    What still runs at the deadline is given up, where it runs in another process. A cell that fails
    stops no other.

    Args:
        studies: cells are added to their results, and to their files.
        place: where cells are computed.
        deadline: on the clock of ``time.monotonic``.
        finished: called with each study as soon as it has all its cells; it may fail as a cell may.
        progress: show a progress bar.

    Raises:
        Exception: that of the first cell that failed, with a note of its name, after all others.
    """
    failed: dict[str, Exception] = {}

    def tell_if_done(study: Unfinished) -> None:
        if not study.missing:
            try:
                finished(study)
            except Exception as error:
                failed[f"the end of {study.name}"] = error

    for study in studies:
        tell_if_done(study)
    todo = [(study, cell) for study in studies for cell in study.missing]
    running: dict[Future, tuple[Unfinished, str]] = {}
    device = place.executor.submit(origin).result()["device"] if todo else ""
    with _bar(studies, progress) as bar:
        while True:
            while len(running) < place.at_once:
                chosen = _next(todo, studies, device, deadline - time.monotonic())
                if chosen is None:
                    break
                todo.remove(chosen)
                bar.set_postfix_str(_names([*running.values(), chosen]))
                running[_submit(place, *chosen)] = chosen
            if not running:
                break
            left = None if deadline == float("inf") else max(deadline - time.monotonic(), 0)
            done, _ = wait(running, timeout=left, return_when=FIRST_COMPLETED)
            if not done:
                place.give_up()
                tqdm.write(f"given up, since the time is over: {_names(running.values())}")
                break
            for future in done:
                study, cell = running.pop(future)
                try:
                    add(study.results, cell, future.result())
                except Exception as error:
                    failed[f"{cell} of {study.name}"] = error
                else:
                    _keep(study)
                    tell_if_done(study)
                bar.update()
    for name, failure in failed.items():
        failure.add_note(f"in {name}; failed in all: {', '.join(failed)}")
        raise failure


def finish(study: Unfinished) -> dict[str, Any]:
    """The results of a study that has all its cells, in its order."""
    return in_order(study.results, study.cells)


def remaining(study: Unfinished) -> float:
    """Seconds that the missing cells take, one after the other, on the device of the last one."""
    device = study.results["origins"][-1]["device"] if study.results["origins"] else ""
    return (_pace([study], device) or 1.0) * sum(study.seconds[cell] for cell in study.missing)


def _file(study: Unfinished, folder: Path) -> Path:
    return folder / f"{study.name}.{study.scale}.unfinished.json"


def _keep(study: Unfinished) -> None:
    if study.folder is not None:
        save_json(_file(study, study.folder), study.results)


def _submit(place: Place, study: Unfinished, cell: str) -> Future:
    needed = tuple(study.results["cells"][name] for name in study.cells[cell].needs)
    return place.executor.submit(compute_cell, study.module, study.scale, cell, needed)


def _names(cells: Iterable[tuple[Unfinished, str]]) -> str:
    return ", ".join(cell for _, cell in cells)


def _next(
    todo: Sequence[tuple[Unfinished, str]],
    studies: Sequence[Unfinished],
    device: str,
    seconds: float,
) -> tuple[Unfinished, str] | None:
    """The first cell that has what it needs and ends within so many seconds."""
    of_all = _pace(studies, device) or 1.0
    for study, cell in todo:
        ready = all(name in study.results["cells"] for name in study.cells[cell].needs)
        pace = _pace([study], device) or of_all
        if ready and study.seconds[cell] * pace <= seconds:
            return study, cell
    return None


def _pace(studies: Sequence[Unfinished], device: str) -> float | None:
    """How much longer than estimated cells took on a device; ``None`` where none was timed there.

    Studies of no time at all tell nothing of it.
    """
    taken = expected = 0.0
    for study in studies:
        for cell, seconds in seconds_on(study.results, device).items():
            if study.seconds.get(cell):
                taken += seconds
                expected += study.seconds[cell]
    return taken / expected if expected else None


def _bar(studies: Sequence[Unfinished], progress: bool) -> tqdm:
    return tqdm(
        total=sum(len(study.cells) for study in studies),
        initial=sum(len(study.cells) - len(study.missing) for study in studies),
        desc=", ".join(f"{study.name} ({study.scale})" for study in studies[:1]),
        unit="cell",
        disable=not progress,
    )
