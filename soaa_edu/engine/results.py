"""Results of a study, finished or not: its cells, and where and when each was computed.

A dict of ``study``, ``scale``, ``settings``, ``cells`` (name -> numbers), ``origins`` (every
distinct provenance once) and ``made`` (name of a cell -> the place of its origin, the seconds it
took and when it was done), as it is stored. Seconds are ``None`` where nobody took them.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from soaa_edu.engine.cells import Computed
from soaa_edu.storage import StoredFileError, load_json, plain

FORMAT = 2


def begun(study: str, scale: str, settings: Any) -> dict[str, Any]:
    """Results without any cell."""
    return {
        "format": FORMAT,
        "study": study,
        "scale": scale,
        "settings": plain(settings),
        "origins": [],
        "made": {},
        "cells": {},
    }


def add(results: dict, cell: str, computed: Computed) -> None:
    """Put a cell in, with its origin."""
    if computed.origin not in results["origins"]:
        results["origins"].append(computed.origin)
    results["cells"][cell] = computed.numbers
    origin = results["origins"].index(computed.origin)
    results["made"][cell] = [origin, plain(computed.seconds), computed.time]


def seconds_on(results: dict, device: str) -> dict[str, float]:
    """Seconds that cells took on a device, where they were taken."""
    return {
        cell: seconds
        for cell, (place, seconds, _) in results["made"].items()
        if seconds is not None and results["origins"][place]["device"] == device
    }


def in_order(results: dict, cells: Iterable[str]) -> dict[str, Any]:
    """The same results with these cells alone, in this order."""
    chosen = list(cells)
    return {**results, **{of: {c: results[of][c] for c in chosen} for of in ("made", "cells")}}


def read(path: Path) -> dict[str, Any]:
    """Results from a file.

    Raises:
        StoredFileError: it cannot be read, or another version of the library wrote it.
    """
    results = load_json(path)
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        found = results.get("format", 1) if isinstance(results, dict) else "none"
        raise StoredFileError(
            f"{path} has the format {found}, and this version of soaa-edu reads {FORMAT}: take the "
            "version that wrote it, or move the file away and compute it again"
        )
    lacking = begun("", "", {}).keys() - results.keys()
    if lacking:
        raise StoredFileError(
            f"{path} lacks {', '.join(sorted(lacking))}: restore it, or move it away and compute "
            "it again"
        )
    return results


def read_to_go_on(path: Path, settings: Any) -> dict[str, Any]:
    """Unfinished results from a file, for settings that must be those of its cells.

    Raises:
        StoredFileError: they are not, it cannot be read, or another version wrote it.
    """
    results = read(path)
    now = plain(settings)
    differing = [
        f"{name} was {results['settings'].get(name)!r} and is {now.get(name)!r}"
        for name in {**results["settings"], **now}
        if name != "minutes" and results["settings"].get(name) != now.get(name)
    ]
    if differing:
        raise StoredFileError(
            f"{path} was computed with other settings ({'; '.join(differing)}): move it away to "
            "begin anew, or go on with the version that wrote it"
        )
    return {**results, "settings": now}


def devices(results: dict, cells: Iterable[str] | None = None) -> list[str]:
    """The devices that computed these cells, or all, each once."""
    made = results.get("made", {})
    chosen = made if cells is None else [cell for cell in cells if cell in made]
    return list(dict.fromkeys(results["origins"][made[cell][0]]["device"] for cell in chosen))


def device_note(results: dict, cells: Iterable[str] | None = None) -> str:
    """A warning below timings that come from several devices; nothing where they don't."""
    found = devices(results, cells)
    if len(found) < 2:
        return ""
    return f"Timed on different devices, not to be compared: {', '.join(found)}."
