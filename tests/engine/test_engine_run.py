import sys
import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from soaa_edu import engine
from soaa_edu.engine import Cell, Place
from soaa_edu.engine import run as engine_run

HERE = {"device": "here"}


class Settings(NamedTuple):
    size: int
    minutes: float


@pytest.fixture
def study(monkeypatch):
    """Builds the module of a study out of cells, for a scale of a minute, and takes it up."""

    def build(name="made_up", minutes=1.0, folder=None, **cells):
        module = SimpleNamespace(
            SCALES={"quick": Settings(3, minutes)}, cells=lambda settings: cells
        )
        monkeypatch.setitem(sys.modules, name, module)
        return engine.take_up(name, "quick", folder)

    monkeypatch.setattr(engine_run, "origin", lambda: HERE)
    return build


class Clock:
    """A clock that jobs move, in place of the machine's."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def job(self, seconds, numbers=0):
        def run():
            self.now += seconds
            return numbers

        return run


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


def computed(study, **options):
    with engine.here() as place:
        engine.compute([study], place, **options)
    return list(study.results["cells"])


def test_a_share_is_a_part_of_the_study_s_minutes(study):
    of = study(minutes=2.0, a=Cell(int, share=3.0), b=int)
    assert of.seconds == {"a": 90.0, "b": 30.0}
    assert engine.remaining(of) == 120.0


def test_all_cells_are_computed_in_order_where_there_is_time(study):
    assert computed(study(b=int, a=int)) == ["b", "a"]


def test_no_cell_begins_that_would_not_end_in_time_but_a_smaller_one_may(study, clock):
    of = study(large=Cell(clock.job(40), 40), small=Cell(clock.job(20), 20))
    assert computed(of, deadline=30.0) == ["small"]
    assert of.missing == ["large"]


def test_estimates_follow_what_cells_took_on_this_device(study, clock, monkeypatch):
    monkeypatch.setattr("soaa_edu.engine.cells.origin", lambda: HERE)
    of = study(**{name: clock.job(40) for name in "abc"})
    assert of.seconds["a"] == 20.0
    assert computed(of, deadline=105.0) == ["a", "b"]
    assert engine.remaining(of) == pytest.approx(40.0)


def test_a_cell_gets_the_numbers_of_those_it_needs_once_they_are_there(study):
    of = study(
        sum=Cell(lambda one, two: one + two, needs=("one", "two")), one=lambda: 1, two=lambda: 2
    )
    assert computed(of) == ["one", "two", "sum"]
    assert of.results["cells"]["sum"] == 3
    assert list(engine.finish(of)["cells"]) == ["sum", "one", "two"]


def test_a_cell_that_fails_stops_no_other_and_is_named(study, tmp_path):
    def fail():
        raise ValueError("no")

    of = study(
        folder=tmp_path, bad=fail, needing=Cell(int, needs=("bad",)), good=lambda: 7, worse=fail
    )
    with pytest.raises(ValueError, match="no") as caught:
        computed(of)
    assert "in bad of made_up; failed in all: bad of made_up, worse" in str(caught.value.__notes__)
    assert list(engine.take_up("made_up", "quick", tmp_path).results["cells"]) == ["good"]


def test_studies_come_one_after_the_other_and_are_told_as_soon_as_they_are_done(study):
    told = []
    studies = [study("first", a=lambda: told.append("a")), study("second", b=lambda: None)]
    with engine.here() as place:
        engine.compute(studies, place, finished=lambda study: told.append(study.name))
    assert told == ["a", "first", "second"]


def test_the_end_of_a_study_that_fails_stops_no_other(study):
    def broken(study):
        if study.name == "first":
            raise ValueError("no picture")

    studies = [study("first", a=int), study("second", b=int)]
    with engine.here() as place, pytest.raises(ValueError, match="no picture") as caught:
        engine.compute(studies, place, finished=broken)
    assert "the end of first" in str(caught.value.__notes__)
    assert not studies[1].missing


def test_a_study_without_timed_cells_takes_the_pace_of_the_others(study, clock, monkeypatch):
    monkeypatch.setattr("soaa_edu.engine.cells.origin", lambda: HERE)
    studies = [study("first", a=clock.job(180)), study("second", b=clock.job(100), c=int)]
    with engine.here() as place:
        engine.compute(studies, place, deadline=250.0)
    assert studies[0].results["cells"] == {"a": 0}
    assert studies[1].missing == ["b", "c"]


def test_what_runs_at_the_deadline_is_given_up_and_told(study, capsys):
    asked, given_up = [], []

    class Endless:
        def submit(self, function, *arguments):
            future = Future()
            if function is engine_run.origin:
                future.set_result(HERE)
            asked.append(arguments)
            return future

    of = study(a=int, b=int, minutes=0.001)
    engine.compute(
        [of],
        Place(Endless(), 2, lambda: given_up.append(True)),
        deadline=time.monotonic() + 0.1,
    )
    assert [cell for _, _, cell, _ in asked[1:]] == ["a", "b"]
    assert given_up == [True]
    assert "given up, since the time is over: a, b" in capsys.readouterr().out
    assert of.missing == ["a", "b"]


def test_cells_of_one_study_share_what_they_compile(study):
    of = study(a=int)
    assert engine.cells_of("made_up", Settings(3, 1.0)) is of.cells
    assert engine.cells_of("made_up", Settings(4, 1.0)) is not of.cells
