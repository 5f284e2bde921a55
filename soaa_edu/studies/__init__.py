"""The studies: each computes, in cells, what a figure or a claim of the sources needs.

A study is a module with ``TITLE``, ``CLAIMS``, ``SCALES`` (from ``quick`` to ``gpu``, each a
NamedTuple of settings, among them the ``minutes`` that it takes), ``cells(settings)`` (name -> a
function that computes one piece, as plain numbers, or an ``engine.Cell``), ``figure(results)`` and
``verdicts(results)``. Minutes are those of one CPU core at the quick and the laptop scale, and of
one H100 at the gpu scale, cells one after the other.

Beside the studies of the book, any file of Python code with ``SCALES``, ``cells`` and ``figure`` is
one: where a study's name is asked for, its path ``my_study.py`` does too.

What studies share: ``methods`` (one table of them), ``race`` (tasks and methods to cells),
``searches`` and ``runs`` (what a cell computes), ``results`` (numbers by their labels),
``panels`` and ``tables`` (what is shown), ``verdicts`` (what they say).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

from matplotlib.figure import Figure

from soaa_edu import checks, engine, plotting
from soaa_edu.engine import Place, Unfinished
from soaa_edu.storage import StoredFileError, save_json
from soaa_edu.studies.tables import as_text
from soaa_edu.studies.verdicts import Verdict

SOURCES = {
    "slides": (
        "newton_on_quadratics",
        "newton_on_mnist",
        "inverting_gpt4",
        "gauss_newton_on_mnist",
        "curvature_spectra",
        "adaptive_damping",
    ),
    "poster": (
        "kronecker_products",
        "psgd_criterion",
        "large_batch_race",
        "batch_sizes",
        "damping_grids",
        "dataset_sizes",
        "batch_over_dataset",
        "early_refreshes",
    ),
    "soaa": ("soaa_costs", "soaa_ablation", "soaa_and_cat", "soaa_race"),
    "literature": (
        "exact_gauss_newton",
        "grafting",
        "muon",
        "differential_equations",
        "edge_of_stability",
    ),
}
"""The studies of each source, a folder each."""
NAMES = tuple(name for names in SOURCES.values() for name in names)
SCALES = ("quick", "laptop", "gpu")
FIRST = ("damping_grids", "batch_sizes", "early_refreshes")
"""Where a short time on a GPU should go first."""


def get(name: str | Path) -> ModuleType:
    """The module of a study.

    Args:
        name: one of ``NAMES``, or the path of a study's file, which ends in ``.py``.

    Raises:
        ValueError: there is no such study, or its file lacks something.
    """
    module = engine.module_of(_module(name))
    lacking = [part for part in ("SCALES", "cells", "figure") if not hasattr(module, part)]
    if lacking:
        raise ValueError(
            f"{name} has no {' and no '.join(lacking)}: a study has SCALES (scale -> settings), "
            "cells(settings) and figure(results)"
        )
    return module


def _module(name: str | Path) -> str:
    """The dotted name of a study's module, or the path of its file."""
    if str(name).endswith(".py"):
        return str(Path(name).resolve())
    checks.one_of("the study", str(name), NAMES)
    (source,) = (source for source, names in SOURCES.items() if name in names)
    return f"{__name__}.{source}.{name}"


def _path(name: str | Path, scale: str, folder: Path | None) -> Path:
    """Where a study's results lie; those of a file, by default in ``figures/`` beside it."""
    if str(name).endswith(".py"):
        folder = folder or Path(name).resolve().parent / "figures"
        return folder / f"{Path(name).stem}.{scale}.json"
    return (folder or results_folder()) / f"{name}.{scale}.json"


def in_plan_order() -> list[str]:
    """The studies in the order in which they should be computed where time is short."""
    return sorted(NAMES, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


def results_folder() -> Path:
    """``figures/`` of the checkout that this library is in, or of the current folder."""
    checkout = Path(__file__).parents[2]
    root = checkout if (checkout / "pyproject.toml").exists() else Path.cwd()
    return root / "figures"


def run(name: str | Path, scale: str) -> dict:
    """Compute a study in this process and keep nothing of it on disk.

    Returns:
        Its results, as described in ``soaa_edu.engine.results``.
    """
    study = begun(name, scale)
    with engine.here() as place:
        engine.compute([study], place)
    return engine.finish(study)


def reproduce(
    name: str | Path,
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
        name: one of ``NAMES``, or the path of a study's file.
        scale: one of ``SCALES``.
        folder: where the files go, by default ``results_folder()``, or ``figures/`` beside the
            study's file.
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


def begun(name: str | Path, scale: str, folder: Path | None = None) -> Unfinished:
    """A study as the last run left it in a folder, or without any cell.

    Raises:
        StoredFileError: what is there was computed with other settings, or cannot be read.
        ValueError: an unknown study or scale.
    """
    check_scale(name, scale)
    return engine.take_up(_module(name), scale, folder)


def check_scale(name: str | Path, scale: str) -> None:
    """Make sure that a study has a scale.

    Raises:
        ValueError: an unknown study or scale, or settings without ``minutes``.
    """
    checks.one_of("scale", scale, SCALES)
    found = get(name).SCALES
    if scale not in found:
        raise ValueError(f"{name} has no {scale} scale: take one of {', '.join(found)}")
    if not hasattr(found[scale], "minutes"):
        raise ValueError(
            f"the {scale} settings of {name} have no minutes: give an estimate, such as 1.0"
        )


def _reproduce(
    names: Sequence[str | Path],
    scale: str,
    folder: Path | None,
    place: Place | None,
    deadline: float,
) -> list[Unfinished]:
    begun_of: dict[str, str | Path] = {}

    def keep(study: Unfinished) -> None:
        """Store the results and the picture of a study that has all its cells."""
        results = engine.finish(study)
        name = begun_of[study.module]
        path = _path(name, scale, folder)
        save_json(path, results)
        plotting.save(figure(name, results), path.with_suffix(".png"))
        engine.forget(study)

    with ExitStack() as stack:
        studies = []
        for name in names:
            check_scale(name, scale)
            path = _path(name, scale, folder)
            stack.enter_context(engine.alone(Path(name).stem, scale, path.parent))
            study = begun(name, scale, path.parent)
            begun_of[study.module] = name
            studies.append(study)
        place = place or stack.enter_context(engine.here())
        engine.compute(studies, place, deadline=deadline, finished=keep, progress=True)
    return studies


def stored(name: str | Path, scale: str, folder: Path | None = None) -> dict:
    """The results that ``reproduce`` kept.

    Raises:
        soaa_edu.storage.StoredFileError: there are none; the message says how to compute them.
        ValueError: an unknown study or scale.
    """
    check_scale(name, scale)
    path = _path(name, scale, folder)
    if not path.exists():
        raise StoredFileError(
            f"no {scale} results of {name} are stored: soaa-edu reproduce {name} --scale {scale}"
        )
    return engine.read(path)


def largest_stored(name: str | Path, folder: Path | None = None) -> dict | None:
    """The stored results of the largest scale there is, or ``None``."""
    for scale in reversed(SCALES):
        if _path(name, scale, folder).exists():
            return stored(name, scale, folder)
    return None


def redraw(name: str | Path, folder: Path | None = None) -> list[Path]:
    """Draw a study's pictures anew from its stored results, without computing anything.

    Args:
        name: one of ``NAMES``, or the path of a study's file.
        folder: where results are stored, by default where ``reproduce`` puts them.

    Returns:
        The pictures, one for each scale that is stored.

    Raises:
        ValueError: an unknown study.
    """
    get(name)
    found = [_path(name, scale, folder) for scale in SCALES]
    pictures = [path.with_suffix(".png") for path in found if path.exists()]
    for picture in pictures:
        plotting.save(figure(name, engine.read(picture.with_suffix(".json"))), picture)
    return pictures


def figure(name: str | Path, results: dict) -> Figure:
    """The study's picture, in the book's style."""
    plotting.use_style()
    return get(name).figure(results)


def verdicts(results: dict, name: str | None = None) -> list[Verdict]:
    """What results say of the study's claims; its name is the one in the results, if not given."""
    study = get(name or results["study"])
    return study.verdicts(results) if hasattr(study, "verdicts") else []
