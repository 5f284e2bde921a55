"""Cells: the pieces that a study is computed in, each on its own, anywhere."""

import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from soaa_edu.precision import exact_products
from soaa_edu.provenance import provenance
from soaa_edu.storage import plain


class Cell(NamedTuple):
    """A piece of a study.

    Attributes:
        compute: gives plain numbers, from those of the cells in ``needs``, in their order.
        share: of the study's time, in any unit that all its cells have in common.
        needs: names of cells that have to be computed before.
    """

    compute: Callable[..., Any]
    share: float = 1.0
    needs: tuple[str, ...] = ()


class Computed(NamedTuple):
    """What became of a cell.

    Attributes:
        numbers: as JSON gives them back.
        seconds: that it took, compilation included.
        time: when it was done.
        origin: versions, device and commit.
    """

    numbers: Any
    seconds: float
    time: str
    origin: dict[str, Any]


_made: deque[tuple[Callable, Any, dict[str, Cell]]] = deque(maxlen=4)


def module_of(study: str) -> ModuleType:
    """The module of a study: by its dotted name, or from the file that ends in ``.py``.

    Raises:
        ValueError: there is no such file.
    """
    if not study.endswith(".py"):
        return import_module(study)
    path = Path(study).resolve()
    if not path.exists():
        raise ValueError(f"{study} is not there: give the path of a study's file")
    name = f"{path} of {path.stat().st_mtime_ns}"
    if name not in sys.modules:
        spec = spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ValueError(f"{study} cannot be read as a module: give a file of Python code")
        module = module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def cells_of(study: str, settings: Any) -> dict[str, Cell]:
    """The cells of a study, a module or a file, at such settings.

    They are made once in a process: what one of them compiles, the next may use.
    """
    make = module_of(study).cells
    for by, of, cells in _made:
        if by is make and of == settings:
            return cells
    found = make(settings)
    cells = {name: c if isinstance(c, Cell) else Cell(c) for name, c in found.items()}
    _made.append((make, settings, cells))
    return cells


def estimates(cells: Mapping[str, Cell], settings: Any) -> dict[str, float]:
    """Seconds that each cell takes: its share of the study's minutes."""
    whole = sum(cell.share for cell in cells.values())
    return {name: 60 * settings.minutes * cell.share / whole for name, cell in cells.items()}


def compute_cell(study: str, scale: str, name: str, needed: tuple) -> Computed:
    """Compute a cell in this process, with products as precise as the device has them."""
    cell = cells_of(study, module_of(study).SCALES[scale])[name]
    began = time.perf_counter()
    with exact_products():
        numbers = plain(cell.compute(*needed))
    seconds = time.perf_counter() - began
    done = datetime.now(UTC).isoformat(timespec="seconds")
    return Computed(numbers, seconds, done, origin())


def origin() -> dict[str, Any]:
    """Versions, device and commit of this process: its provenance, but for the time."""
    return {name: value for name, value in provenance().items() if name != "time"}
