"""The studies: each computes, in cells, what a figure or a claim of the sources needs.

A study is a module with ``TITLE``, ``CLAIMS``, ``SCALES`` (from ``quick`` to ``gpu``, each a
NamedTuple of settings), ``cells(settings)`` (name -> a function that computes one piece, as plain
numbers), ``figure(results)`` and ``verdicts(results)``.
"""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock, Timeout
from matplotlib.figure import Figure
from tqdm import tqdm

from soaa_edu import checks, plotting
from soaa_edu.provenance import provenance
from soaa_edu.storage import StoredFileError, load_json, plain, save_json
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


def get(name: str) -> ModuleType:
    """The module of a study.

    Raises:
        ValueError: there is no such study.
    """
    checks.one_of("the study", name, NAMES)
    return import_module(f"soaa_edu.studies.{name}")


def results_folder() -> Path:
    """``figures/`` of the checkout that this library is in, or of the current folder."""
    checkout = Path(__file__).parents[2]
    root = checkout if (checkout / "pyproject.toml").exists() else Path.cwd()
    return root / "figures"


def run(name: str, scale: str, *, keep: Path | None = None, progress: bool = False) -> dict:
    """Compute a study.

    Args:
        name: one of ``NAMES``.
        scale: ``"quick"``, ``"laptop"`` or ``"gpu"``.
        keep: a folder in which every finished cell is kept, so that an interrupted study resumes.
            What another version, device or setting left there is thrown away.
        progress: show a progress bar, with the cell that is computed and the time left.

    Returns:
        A dict with the study's name, scale, settings, its ``cells`` and their provenance.
    """
    checks.one_of("scale", scale, SCALES)
    study = get(name)
    settings = study.SCALES[scale]
    origin = provenance()
    if keep is not None:
        _clear_if_stale(keep, {**settings._asdict(), "budget": None, **_environment(origin)})
    cells = study.cells(settings)
    finished = {} if keep is None else _kept(keep, cells)
    todo = {cell: compute for cell, compute in cells.items() if cell not in finished}
    with tqdm(
        total=len(cells),
        initial=len(finished),
        desc=f"{name} ({scale})",
        unit="cell",
        disable=not progress,
    ) as bar:
        for cell, compute in todo.items():
            bar.set_postfix_str(cell)
            finished[cell] = compute() if keep is None else _computed(keep, cell, compute)
            bar.update()
    return {
        "study": name,
        "scale": scale,
        "settings": settings._asdict(),
        "provenance": origin,
        "cells": {cell: finished[cell] for cell in cells},
    }


def reproduce(name: str, scale: str, folder: Path | None = None) -> dict:
    """Compute a study, resuming what was interrupted; keep its numbers and its picture.

    Writes ``NAME.SCALE.json`` and ``NAME.SCALE.png`` to ``folder``, by default
    ``results_folder()``, and finished cells to its ``unfinished``.

    Raises:
        BlockingIOError: another process computes the same study into the same folder.
        ValueError: an unknown study or scale.
    """
    checks.one_of("scale", scale, SCALES)
    get(name)
    folder = folder or results_folder()
    keep = folder / "unfinished" / f"{name}.{scale}"
    path = folder / f"{name}.{scale}.json"
    with _locked(name, scale, keep):
        results = run(name, scale, keep=keep, progress=True)
        save_json(path, results)
        results = load_json(path)
        plotting.save(figure(name, results), path.with_suffix(".png"))
        shutil.rmtree(keep)
    return results


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
    return load_json(path)


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
        plotting.save(figure(name, load_json(picture.with_suffix(".json"))), picture)
    return pictures


def figure(name: str, results: dict) -> Figure:
    """The study's picture, in the book's style."""
    plotting.use_style()
    return get(name).figure(results)


def verdicts(results: dict) -> list[Verdict]:
    """What results say of the study's claims."""
    return get(results["study"]).verdicts(results)


def _environment(origin: dict[str, Any]) -> dict[str, Any]:
    return {key: origin[key] for key in ("soaa-edu", "jax", "jaxlib", "platform", "device")}


def _clear_if_stale(folder: Path, fingerprint: dict[str, Any]) -> None:
    path = folder / "made_with.json"
    if path.exists() and load_json(path) == plain(fingerprint):
        return
    shutil.rmtree(folder, ignore_errors=True)
    save_json(path, fingerprint)


def _kept(folder: Path, cells: dict[str, Callable]) -> dict[str, Any]:
    """The cells that an interrupted run finished."""
    paths = {cell: folder / f"{cell}.json" for cell in cells}
    return {cell: load_json(path) for cell, path in paths.items() if path.exists()}


def _computed(folder: Path, cell: str, compute: Callable) -> Any:
    """A cell as it comes back from its file, so that a resumed study ends in the same numbers."""
    path = folder / f"{cell}.json"
    save_json(path, compute())
    return load_json(path)


def _locked(name: str, scale: str, keep: Path) -> AbstractContextManager:
    """Keeps other processes away from a study's unfinished cells.

    The lock's file lies beside their folder and stays there: were it removed, a process that has
    it open and one that makes it anew would both hold it. The system drops the lock of a process
    that dies.
    """
    keep.parent.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(f"{keep}.lock").acquire(timeout=0)
    except Timeout as error:
        raise BlockingIOError(
            f"another process computes {name} at the scale {scale} into {keep.parent.parent}: wait "
            "for it to end, or give another --output"
        ) from error
