"""The studies: each computes, in cells, what a figure or a claim of the sources needs.

A study is a module with ``TITLE``, ``CLAIMS``, ``SCALES`` (from ``quick`` to ``gpu``, each a
NamedTuple of settings, among them the ``minutes`` that it takes), ``cells(settings)`` (name -> a
function that computes one piece, as plain numbers, or an ``engine.Cell``), ``figure(results)`` and
``verdicts(results)``. Minutes are those of one CPU core at the quick and the laptop scale, and of
one H100 at the gpu scale, cells one after the other.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from types import ModuleType

from matplotlib.figure import Figure

from soaa_edu import checks, engine, plotting
from soaa_edu.engine import Place, Unfinished
from soaa_edu.storage import StoredFileError, save_json
from soaa_edu.studies.tables import as_text
from soaa_edu.studies.verdicts import Verdict

NAMES = (
    "newton_on_quadratics",
    "newton_on_mnist",
    "inverting_gpt4",
    "gauss_newton_on_mnist",
    "curvature_spectra",
    "adaptive_damping",
    "kronecker_products",
    "psgd_criterion",
    "large_batch_race",
    "soaa_costs",
    "soaa_ablation",
    "soaa_and_cat",
    "soaa_race",
    "batch_sizes",
    "damping_grids",
    "dataset_sizes",
    "batch_over_dataset",
    "early_refreshes",
)
SCALES = ("quick", "laptop", "gpu")
FIRST = ("damping_grids", "batch_sizes", "early_refreshes")
"""Where a short time on a GPU should go first."""


def get(name: str) -> ModuleType:
    """The module of a study.

    Raises:
        ValueError: there is no such study.
    """
    checks.one_of("the study", name, NAMES)
    return import_module(f"soaa_edu.studies.{name}")


def in_plan_order() -> list[str]:
    """The studies in the order in which they should be computed where time is short."""
    return sorted(NAMES, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


def results_folder() -> Path:
    """``figures/`` of the checkout that this library is in, or of the current folder."""
    checkout = Path(__file__).parents[2]
    root = checkout if (checkout / "pyproject.toml").exists() else Path.cwd()
    return root / "figures"


def run(name: str, scale: str) -> dict:
    """Compute a study in this process and keep nothing of it on disk.

    Returns:
        Its results, as described in ``soaa_edu.engine.results``.
    """
    study = begun(name, scale)
    with engine.here() as place:
        engine.compute([study], place)
    return engine.finish(study)


def reproduce(
    name: str,
    scale: str,
    folder: Path | None = None,
    *,
    place: Place | None = None,
    deadline: float = float("inf"),
) -> Unfinished:
    """Compute a study, going on with what an interrupted run left.

    Every cell is kept in ``NAME.SCALE.unfinished.json``. Once all are there, ``NAME.SCALE.json``
    and ``NAME.SCALE.png`` take its place.

    Args:
        name: one of ``NAMES``.
        scale: one of ``SCALES``.
        folder: where the files go, by default ``results_folder()``.
        place: where cells are computed, by default in this process.
        deadline: on the clock of ``time.monotonic``; no cell begins that would end later.

    Returns:
        The study, with its results and what is missing of it.

    Raises:
        BlockingIOError: another process computes the same study into the same folder.
        StoredFileError: unfinished cells of other settings lie there.
        ValueError: an unknown study or scale.
    """
    (study,) = _reproduce([name], scale, folder, place, deadline)
    return study


def planned(scale: str, folder: Path | None = None) -> list[Unfinished]:
    """All studies as they stand at a scale, in the order of the plan; finished ones with all cells.

    Raises:
        StoredFileError: a file of theirs cannot be read, or has unfinished cells of other settings.
        ValueError: an unknown scale.
    """
    folder = folder or results_folder()
    studies = []
    for name in in_plan_order():
        path = folder / f"{name}.{scale}.json"
        study = begun(name, scale, folder)
        if path.exists():
            study = study._replace(results=engine.read(path))
        studies.append(study)
    return studies


def plan_table(scale: str, folder: Path | None = None) -> str:
    """The plan in lines: cells finished, on which devices, minutes in all and those that remain."""
    rows = []
    for study in planned(scale, folder):
        rows.append(
            {
                "study": study.name,
                "cells": f"{len(study.cells) - len(study.missing)} of {len(study.cells)}",
                "minutes": f"{sum(study.seconds.values()) / 60:.1f}",
                "left": f"{engine.remaining(study) / 60:.1f}",
                "computed on": ", ".join(engine.devices(study.results)) or "-",
            }
        )
    return as_text(rows)


def carry_out(
    scale: str,
    folder: Path | None = None,
    *,
    place: Place | None = None,
    deadline: float = float("inf"),
) -> list[Unfinished]:
    """Compute what the plan still lacks, in its order; arguments and errors are ``reproduce``'s."""
    kept = folder or results_folder()
    todo = [name for name in in_plan_order() if not (kept / f"{name}.{scale}.json").exists()]
    return _reproduce(todo, scale, folder, place, deadline)


def begun(name: str, scale: str, folder: Path | None = None) -> Unfinished:
    """A study as the last run left it in a folder, or without any cell.

    Raises:
        StoredFileError: what is there was computed with other settings, or cannot be read.
        ValueError: an unknown study or scale.
    """
    checks.one_of("scale", scale, SCALES)
    get(name)
    return engine.take_up(f"{__name__}.{name}", scale, folder)


def _reproduce(
    names: Sequence[str], scale: str, folder: Path | None, place: Place | None, deadline: float
) -> list[Unfinished]:
    folder = folder or results_folder()
    checks.one_of("scale", scale, SCALES)

    def keep(study: Unfinished) -> None:
        """Store the results and the picture of a study that has all its cells."""
        results = engine.finish(study)
        path = folder / f"{study.name}.{scale}.json"
        save_json(path, results)
        plotting.save(figure(study.name, results), path.with_suffix(".png"))
        engine.forget(study)

    with ExitStack() as stack:
        for name in names:
            get(name)
            stack.enter_context(engine.alone(name, scale, folder))
        studies = [begun(name, scale, folder) for name in names]
        place = place or stack.enter_context(engine.here())
        engine.compute(studies, place, deadline=deadline, finished=keep, progress=True)
    return studies


def stored(name: str, scale: str, folder: Path | None = None) -> dict:
    """The results that ``reproduce`` kept.

    Raises:
        soaa_edu.storage.StoredFileError: there are none; the message says how to compute them.
        ValueError: an unknown study or scale.
    """
    checks.one_of("scale", scale, SCALES)
    get(name)
    path = (folder or results_folder()) / f"{name}.{scale}.json"
    if not path.exists():
        raise StoredFileError(
            f"no {scale} results of {name} are stored: soaa-edu reproduce {name} --scale {scale}"
        )
    return engine.read(path)


def largest_stored(name: str, folder: Path | None = None) -> dict | None:
    """The stored results of the largest scale there is, or ``None``."""
    for scale in reversed(SCALES):
        if ((folder or results_folder()) / f"{name}.{scale}.json").exists():
            return stored(name, scale, folder)
    return None


def redraw(name: str, folder: Path | None = None) -> list[Path]:
    """Draw a study's pictures anew from its stored results, without computing anything.

    Args:
        name: one of ``NAMES``.
        folder: where results are stored, by default ``results_folder()``.

    Returns:
        The pictures, one for each scale that is stored.

    Raises:
        ValueError: an unknown study.
    """
    get(name)
    folder = folder or results_folder()
    found = [folder / f"{name}.{scale}.json" for scale in SCALES]
    pictures = [path.with_suffix(".png") for path in found if path.exists()]
    for picture in pictures:
        plotting.save(figure(name, engine.read(picture.with_suffix(".json"))), picture)
    return pictures


def figure(name: str, results: dict) -> Figure:
    """The study's picture, in the book's style."""
    plotting.use_style()
    return get(name).figure(results)


def verdicts(results: dict) -> list[Verdict]:
    """What results say of the study's claims."""
    return get(results["study"]).verdicts(results)
