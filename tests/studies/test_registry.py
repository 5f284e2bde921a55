import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from filelock import FileLock

from soaa_edu import engine, studies
from soaa_edu.engine import cells
from soaa_edu.provenance import provenance
from soaa_edu.storage import StoredFileError
from soaa_edu.studies import results as stored
from soaa_edu.studies.verdicts import HOLDS, Clause, judge, known


class Settings(NamedTuple):
    size: int
    minutes: float


class Broken(Exception):
    pass


@pytest.fixture
def fake(monkeypatch):
    """A study of two cells that counts its work and fails in cells named in ``fails``.

    The second needs the first.
    """
    study = SimpleNamespace(
        TITLE="A fake",
        CLAIMS=("F1",),
        SCALES=dict.fromkeys(studies.SCALES, Settings(3, 1.0)),
        fails=set(),
        computed=[],
    )

    def compute(name, settings):
        if name in study.fails:
            raise Broken
        study.computed.append(name)
        return {"numbers": np.arange(settings.size) / 3, "lost": np.nan}

    def figure(results):
        drawing, axes = plt.subplots()
        axes.plot(results["cells"]["first"]["numbers"])
        return drawing

    def verdicts(results):
        total = known(sum(results["cells"]["second"]["numbers"]))
        return [judge("F1", [Clause("large", "the sum:", "above 0.5", [total])])]

    study.cells = lambda settings: {
        "first": lambda: compute("first", settings),
        "second": engine.Cell(lambda first: compute("second", settings), needs=("first",)),
    }
    study.figure, study.verdicts = figure, verdicts
    monkeypatch.setitem(sys.modules, "soaa_edu.studies.fakes.fake", study)
    monkeypatch.setitem(studies.SOURCES, "fakes", ("fake",))
    monkeypatch.setattr(studies, "NAMES", (*studies.NAMES, "fake"))
    return study


def interrupted(fake, folder):
    """A run that computes the first cell and breaks in the second."""
    fake.fails = {"second"}
    with pytest.raises(Broken):
        studies.reproduce("fake", "quick", folder)
    fake.fails = set()


def stored_cells(folder):
    return studies.stored("fake", "quick", folder)["cells"]


@pytest.mark.parametrize("name", studies.NAMES)
def test_every_study_follows_the_protocol(name):
    study = studies.get(name)
    assert study.TITLE
    assert isinstance(study.CLAIMS, tuple)
    assert tuple(study.SCALES) == studies.SCALES == ("quick", "laptop", "gpu")
    for settings in study.SCALES.values():
        assert isinstance(settings, tuple)
        assert settings.minutes >= 0
    assert all(callable(part) for part in (study.cells, study.figure, study.verdicts))


@pytest.mark.parametrize("name", studies.NAMES)
def test_cells_are_named_by_their_labels_after_those_that_they_need(name):
    words = {"solver", "arithmetic"}
    for scale in studies.SCALES:
        seen = set()
        for cell, (_, share, needs) in studies.begun(name, scale).cells.items():
            assert cell in words or cell == stored.name(**stored.labels_of(cell))
            assert {*needs} <= seen
            assert share > 0
            seen.add(cell)


@pytest.mark.parametrize("name", studies.NAMES)
def test_stored_results_have_the_cells_that_the_study_computes(name):
    results = studies.stored(name, "laptop")
    assert list(results["cells"]) == list(studies.begun(name, "laptop").cells)
    assert {verdict.claim for verdict in studies.verdicts(results)} == {*studies.get(name).CLAIMS}


def test_no_claim_belongs_to_two_studies():
    claims = [claim for name in studies.NAMES for claim in studies.get(name).CLAIMS]
    assert len(set(claims)) == len(claims)


def test_results_stand_in_the_figures_of_the_checkout():
    assert studies.results_folder() == Path(__file__).parents[2] / "figures"


def test_a_run_tells_where_its_numbers_come_from(fake):
    results = studies.run("fake", "laptop")
    assert (results["study"], results["scale"]) == ("fake", "laptop")
    assert results["settings"] == {"size": 3, "minutes": 1.0}
    (origin,) = results["origins"]
    assert set(origin) == set(provenance()) - {"time"}
    assert results["cells"]["second"]["numbers"] == [0, 0.333333, 0.666667]


def test_reproduce_leaves_the_numbers_the_picture_and_the_lock_alone(fake, tmp_path):
    study = studies.reproduce("fake", "quick", tmp_path)
    assert not study.missing
    files = {path.name for path in tmp_path.rglob("*")}
    assert files == {"fake.quick.json", "fake.quick.png", ".fake.quick.lock"}
    assert (tmp_path / "fake.quick.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((tmp_path / "fake.quick.json").read_text())
    assert results == engine.finish(study)
    assert results["cells"]["first"] == {"numbers": [0, 0.333333, 0.666667], "lost": None}
    assert [verdict.answer for verdict in studies.verdicts(results)] == [HOLDS]


def test_an_interrupted_study_resumes_where_it_stopped(fake, tmp_path):
    studies.reproduce("fake", "quick", tmp_path / "whole")
    fake.computed.clear()
    interrupted(fake, tmp_path)
    assert list(engine.read(tmp_path / "fake.quick.unfinished.json")["cells"]) == ["first"]
    assert not (tmp_path / "fake.quick.json").exists()
    studies.reproduce("fake", "quick", tmp_path)
    assert fake.computed == ["first", "second"]
    whole, resumed = (stored_cells(folder) for folder in (tmp_path / "whole", tmp_path))
    assert resumed == whole
    assert not (tmp_path / "fake.quick.unfinished.json").exists()


def test_no_time_leaves_the_study_as_it_is(fake, tmp_path):
    study = studies.reproduce("fake", "quick", tmp_path, deadline=time.monotonic())
    assert study.missing == ["first", "second"]
    assert not list(tmp_path.glob("fake*"))


def test_a_study_killed_before_its_picture_only_lacks_that(fake, tmp_path):
    draw, fake.figure = fake.figure, lambda results: 1 / 0
    with pytest.raises(ZeroDivisionError):
        studies.reproduce("fake", "quick", tmp_path)
    fake.figure = draw
    studies.reproduce("fake", "quick", tmp_path)
    assert fake.computed == ["first", "second"]
    assert (tmp_path / "fake.quick.png").exists()


def test_a_study_that_another_process_computes_is_left_to_it(fake, tmp_path):
    studies.reproduce("fake", "quick", tmp_path)
    stored = stored_cells(tmp_path)
    interrupted(fake, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    fake.computed.clear()
    message = "another process computes fake at the scale quick into .*: wait for it to end, or gi"
    with FileLock(tmp_path / ".fake.quick.lock"):
        with pytest.raises(BlockingIOError, match=message):
            studies.reproduce("fake", "quick", tmp_path)
        assert not fake.computed
        assert before == {path: path.read_bytes() for path in before}
        studies.reproduce("fake", "laptop", tmp_path)
        studies.reproduce("fake", "quick", tmp_path / "elsewhere")
    fake.computed.clear()
    studies.reproduce("fake", "quick", tmp_path)
    assert stored_cells(tmp_path) == stored
    assert fake.computed == ["second"]


def test_nobody_else_computes_a_study_until_it_is_done(fake, tmp_path):
    refused = []

    def figure(results):
        try:
            studies.reproduce("fake", "quick", tmp_path)
        except BlockingIOError as error:
            refused.append(error)
        return draw(results)

    draw, fake.figure = fake.figure, figure
    studies.reproduce("fake", "quick", tmp_path)
    assert len(refused) == 1
    assert fake.computed == ["first", "second"]


def test_progress_shows_the_cell_and_counts_those_kept(fake, tmp_path, capfd):
    fake.fails = {"second"}
    with pytest.raises(Broken):
        studies.reproduce("fake", "quick", tmp_path)
    fake.fails = set()
    shown = capfd.readouterr().err
    assert "0/2" in shown
    assert "first" in shown
    studies.reproduce("fake", "quick", tmp_path)
    shown = capfd.readouterr().err
    assert "0/2" not in shown
    assert "1/2" in shown
    assert "2/2" in shown
    assert "second" in shown
    assert "first" not in shown


def test_cells_of_other_settings_are_refused_and_kept(fake, tmp_path):
    interrupted(fake, tmp_path)
    kept = (tmp_path / "fake.quick.unfinished.json").read_bytes()
    fake.SCALES = fake.SCALES | {"quick": Settings(5, 1.0)}
    with pytest.raises(StoredFileError, match=r"size was 3 and is 5.: move it away to begin anew"):
        studies.reproduce("fake", "quick", tmp_path)
    assert fake.computed == ["first"]
    assert (tmp_path / "fake.quick.unfinished.json").read_bytes() == kept


def test_cells_of_another_version_keep_their_origin(fake, tmp_path, monkeypatch):
    interrupted(fake, tmp_path)
    other = {**cells.origin(), "jax": "0.0.1"}
    monkeypatch.setattr(cells, "origin", lambda: other)
    results = engine.finish(studies.reproduce("fake", "quick", tmp_path))
    assert fake.computed == ["first", "second"]
    assert [origin["jax"] for origin in results["origins"]] == [jax.__version__, "0.0.1"]
    assert [results["made"][cell][0] for cell in ("first", "second")] == [0, 1]


def test_a_new_estimate_of_the_minutes_throws_nothing_away(fake, tmp_path):
    interrupted(fake, tmp_path)
    fake.SCALES = fake.SCALES | {"quick": Settings(3, 60.0)}
    study = studies.reproduce("fake", "quick", tmp_path)
    assert study.results["settings"]["minutes"] == 60.0
    assert fake.computed == ["first", "second"]


def test_a_finished_study_is_computed_anew_but_not_by_the_plan(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "NAMES", ("fake",))
    for _ in range(2):
        studies.reproduce("fake", "quick", tmp_path)
    assert fake.computed == ["first", "second"] * 2
    assert studies.carry_out("quick", tmp_path) == []


def test_the_plan_goes_on_with_what_is_there_in_its_order(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "NAMES", ("inverting_gpt4", "fake"))
    monkeypatch.setattr(studies, "FIRST", ("fake",))
    interrupted(fake, tmp_path)
    lines = studies.plan_table("quick", tmp_path).splitlines()
    assert [line.split()[:6] for line in lines[1:]] == [
        ["fake", "1", "of", "2", "1.0", f"{left(fake, tmp_path):.1f}"],
        ["inverting_gpt4", "0", "of", "1", "0.0", "0.0"],
    ]
    done = studies.carry_out("quick", tmp_path)
    assert [study.name for study in done] == ["fake", "inverting_gpt4"]
    assert fake.computed == ["first", "second"]
    assert "2 of 2" in studies.plan_table("quick", tmp_path)


def left(fake, folder):
    """Minutes that the rest of the interrupted study takes by the pace of its first cell."""
    ((_, seconds, _),) = engine.read(folder / "fake.quick.unfinished.json")["made"].values()
    return seconds / 60


@pytest.mark.parametrize("use", [studies.run, studies.reproduce, studies.stored])
def test_an_unknown_study_or_scale_is_named_with_those_there_are(use):
    with pytest.raises(
        ValueError, match=r"the study must be one of 'newton_on_quadratics', .*'no'"
    ):
        use("no", "quick")
    with pytest.raises(ValueError, match="scale must be one of 'quick', 'laptop', 'gpu', got 'no'"):
        use("inverting_gpt4", "no")


def test_what_is_stored_comes_back(fake, tmp_path):
    results = engine.finish(studies.reproduce("fake", "quick", tmp_path))
    assert studies.stored("fake", "quick", tmp_path) == results


def test_what_is_not_stored_is_answered_with_the_command(tmp_path):
    command = "soaa-edu reproduce inverting_gpt4 --scale laptop"
    with pytest.raises(StoredFileError, match=command):
        studies.stored("inverting_gpt4", "laptop", tmp_path)


def test_the_largest_scale_stored_is_taken(fake, tmp_path):
    assert studies.largest_stored("fake", tmp_path) is None
    for scale in ("laptop", "quick"):
        studies.reproduce("fake", scale, tmp_path)
    assert studies.largest_stored("fake", tmp_path)["scale"] == "laptop"
