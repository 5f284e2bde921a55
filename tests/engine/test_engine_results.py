import json
import sys
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest

from soaa_edu import engine
from soaa_edu.engine import results as kept
from soaa_edu.engine.cells import Computed
from soaa_edu.storage import StoredFileError

CPU = {"device": "cpu", "jax": "0.10.2", "commit": "abc"}
CARD = {"device": "NVIDIA H100", "jax": "0.11.2", "commit": "abc"}


class Settings(NamedTuple):
    size: int
    widths: tuple
    minutes: float


SETTINGS = Settings(3, (1, 2), 1.0)


@pytest.fixture
def mixed():
    """Results of two cells from a CPU and one from a GPU."""
    results = kept.begun("made_up", "gpu", SETTINGS)
    for cell, origin in {"a": CPU, "b": CARD, "c": CPU}.items():
        kept.add(results, cell, Computed([1.0], 2.0, "2026-11-26T00:00:00+00:00", origin))
    return results


@pytest.fixture
def path(tmp_path, mixed):
    """Their file."""
    path = tmp_path / "made_up.gpu.unfinished.json"
    path.write_text(json.dumps(mixed))
    return path


def test_each_cell_tells_where_and_when_it_was_computed(mixed):
    assert mixed["origins"] == [CPU, CARD]
    assert mixed["made"]["b"] == [1, 2.0, "2026-11-26T00:00:00+00:00"]
    assert mixed["made"]["c"][0] == 0


def test_devices_are_told_for_all_cells_or_some(mixed):
    assert engine.devices(mixed) == ["cpu", "NVIDIA H100"]
    assert engine.devices(mixed, ["a", "c"]) == ["cpu"]
    assert kept.seconds_on(mixed, "cpu") == {"a": 2.0, "c": 2.0}


def test_timings_from_several_devices_are_not_to_be_compared(mixed):
    assert engine.device_note(mixed, ["a", "c"]) == ""
    assert engine.device_note(mixed) == (
        "Timed on different devices, not to be compared: cpu, NVIDIA H100."
    )


def test_results_come_back_from_their_file(path, mixed):
    assert engine.read(path) == mixed
    assert kept.read_to_go_on(path, SETTINGS._replace(minutes=2.0))["settings"]["minutes"] == 2.0


@pytest.mark.parametrize(
    "content, found", [({"study": "made_up"}, "1"), ({"format": 3}, "3"), ([1], "none")]
)
def test_results_of_another_format_are_refused_and_left(path, content, found):
    path.write_text(json.dumps(content))
    with pytest.raises(StoredFileError, match=f"has the format {found}, and this version .*move"):
        engine.read(path)
    assert json.loads(path.read_text()) == content


def test_results_that_lack_a_part_are_refused(path, mixed):
    del mixed["settings"], mixed["made"]
    path.write_text(json.dumps(mixed))
    with pytest.raises(StoredFileError, match="lacks made, settings: restore it, or move it away"):
        engine.read(path)


def test_results_of_other_settings_are_refused_and_left(path):
    before = path.read_bytes()
    message = r"other settings \(size was 3 and is 4; widths was \[1, 2\] and is \[1\]\): move it"
    with pytest.raises(StoredFileError, match=message):
        kept.read_to_go_on(path, Settings(4, (1,), 1.0))
    assert path.read_bytes() == before


def test_a_study_goes_on_elsewhere_with_the_cells_of_another_machine(path, monkeypatch):
    module = SimpleNamespace(
        SCALES={"gpu": SETTINGS}, cells=lambda settings: dict.fromkeys("abcd", lambda: np.arange(2))
    )
    monkeypatch.setitem(sys.modules, "made_up", module)
    study = engine.take_up("made_up", "gpu", path.parent)
    assert study.missing == ["d"]
    with engine.here() as place:
        engine.compute([study], place)
    whole = engine.finish(study)
    assert whole["cells"] == {"a": [1.0], "b": [1.0], "c": [1.0], "d": [0, 1]}
    assert engine.devices(whole, "ab") == ["cpu", "NVIDIA H100"]
    assert engine.read(path)["cells"] == whole["cells"]
    engine.forget(study)
    assert not path.exists()
