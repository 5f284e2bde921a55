import json
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pytest
from filelock import FileLock

from soaa_edu import studies
from soaa_edu.provenance import provenance
from soaa_edu.storage import StoredFileError
from soaa_edu.studies.verdicts import HOLDS, Part, judge


class Settings(NamedTuple):
    size: int
    budget: str


class Broken(Exception):
    pass


@pytest.fixture
def fake(monkeypatch):
    """A study of two cells that counts its work and fails in cells named in ``fails``."""
    study = SimpleNamespace(
        TITLE="A fake",
        CLAIMS=("F1",),
        SCALES=dict.fromkeys(studies.SCALES, Settings(3, "0 s")),
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
        parts = [Part("the sum", *2 * (sum(results["cells"]["second"]["numbers"]),), 0.5)]
        return [judge("F1", parts, seeds=3, least_seeds=3, settled_by="")]

    study.cells = lambda settings: {
        name: lambda name=name: compute(name, settings) for name in ("first", "second")
    }
    study.figure, study.verdicts = figure, verdicts
    monkeypatch.setitem(sys.modules, "soaa_edu.studies.fake", study)
    monkeypatch.setattr(studies, "NAMES", (*studies.NAMES, "fake"))
    return study


def interrupted(fake, folder):
    """A run that computes the first cell and breaks in the second."""
    fake.fails = {"second"}
    with pytest.raises(Broken):
        studies.reproduce("fake", "quick", folder)
    fake.fails = set()


@pytest.mark.parametrize("name", studies.NAMES)
def test_every_study_follows_the_protocol(name):
    study = studies.get(name)
    assert study.TITLE
    assert isinstance(study.CLAIMS, tuple)
    assert tuple(study.SCALES) == studies.SCALES == ("quick", "laptop", "gpu")
    for settings in study.SCALES.values():
        assert isinstance(settings, tuple)
        assert isinstance(settings.budget, str)
    assert all(callable(part) for part in (study.cells, study.figure, study.verdicts))


def test_no_claim_belongs_to_two_studies():
    claims = [claim for name in studies.NAMES for claim in studies.get(name).CLAIMS]
    assert len(set(claims)) == len(claims)


def test_results_stand_in_the_figures_of_the_checkout():
    assert studies.results_folder() == Path(__file__).parents[2] / "figures"


def test_a_run_tells_where_its_numbers_come_from(fake):
    results = studies.run("fake", "laptop")
    assert (results["study"], results["scale"]) == ("fake", "laptop")
    assert results["settings"] == {"size": 3, "budget": "0 s"}
    assert set(results["provenance"]) == set(provenance())
    np.testing.assert_array_equal(results["cells"]["second"]["numbers"], np.arange(3) / 3)


def test_reproduce_leaves_the_numbers_the_picture_and_the_lock_alone(fake, tmp_path):
    results = studies.reproduce("fake", "quick", tmp_path)
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"fake.quick.json", "fake.quick.png", "fake.quick.lock"}
    assert not any(path.is_dir() for path in (tmp_path / "unfinished").iterdir())
    assert (tmp_path / "fake.quick.png").read_bytes().startswith(b"\x89PNG")
    assert results == json.loads((tmp_path / "fake.quick.json").read_text())
    assert results["cells"]["first"] == {"numbers": [0, 0.333333, 0.666667], "lost": None}
    assert [verdict.answer for verdict in studies.verdicts(results)] == [HOLDS]


def test_an_interrupted_study_resumes_where_it_stopped(fake, tmp_path):
    whole = studies.reproduce("fake", "quick", tmp_path / "whole")
    fake.computed.clear()
    interrupted(fake, tmp_path)
    assert (tmp_path / "unfinished" / "fake.quick" / "first.json").exists()
    assert not (tmp_path / "fake.quick.json").exists()
    resumed = studies.reproduce("fake", "quick", tmp_path)
    assert fake.computed == ["first", "second"]
    assert resumed["cells"] == whole["cells"]
    assert not (tmp_path / "unfinished" / "fake.quick").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from soaa_edu import studies

class Settings(NamedTuple):
    size: int
    budget: str

sys.modules["soaa_edu.studies.fake"] = SimpleNamespace(
    SCALES={"quick": Settings(3, "0 s")},
    cells=lambda settings: {
        "first": lambda: {"numbers": np.arange(settings.size) / 3, "lost": np.nan},
        "second": lambda: os.kill(os.getpid(), signal.SIGKILL),
    },
)
studies.NAMES += ("fake",)
studies.reproduce("fake", "quick", Path(sys.argv[1]))
"""


def test_a_killed_study_resumes_where_it_stopped(fake, tmp_path):
    whole = studies.reproduce("fake", "quick", tmp_path / "whole")
    fake.computed.clear()
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not list(tmp_path.glob("*.json"))
    resumed = studies.reproduce("fake", "quick", tmp_path)
    assert fake.computed == ["second"]
    assert list(resumed["cells"]) == ["first", "second"]
    assert resumed["cells"] == whole["cells"]


def test_a_study_that_another_process_computes_is_left_to_it(fake, tmp_path):
    stored = studies.reproduce("fake", "quick", tmp_path)
    interrupted(fake, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    fake.computed.clear()
    message = "another process computes fake at the scale quick into .*: wait for it to end, or gi"
    with FileLock(tmp_path / "unfinished" / "fake.quick.lock"):
        with pytest.raises(BlockingIOError, match=message):
            studies.reproduce("fake", "quick", tmp_path)
        assert not fake.computed
        assert before == {path: path.read_bytes() for path in before}
        studies.reproduce("fake", "laptop", tmp_path)
        studies.reproduce("fake", "quick", tmp_path / "elsewhere")
    fake.computed.clear()
    assert studies.reproduce("fake", "quick", tmp_path)["cells"] == stored["cells"]
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
    interrupted(fake, tmp_path)
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


def test_cells_of_other_settings_are_thrown_away(fake, tmp_path):
    interrupted(fake, tmp_path)
    fake.SCALES = fake.SCALES | {"quick": Settings(5, "0 s")}
    results = studies.reproduce("fake", "quick", tmp_path)
    assert fake.computed == ["first", "first", "second"]
    assert len(results["cells"]["first"]["numbers"]) == 5


def test_cells_of_another_version_are_thrown_away(fake, tmp_path, monkeypatch):
    interrupted(fake, tmp_path)
    monkeypatch.setattr(studies, "provenance", lambda: {**provenance(), "jax": "0.0.1"})
    studies.reproduce("fake", "quick", tmp_path)
    assert fake.computed == ["first", "first", "second"]


def test_a_new_estimate_of_the_budget_throws_nothing_away(fake, tmp_path):
    interrupted(fake, tmp_path)
    fake.SCALES = fake.SCALES | {"quick": Settings(3, "1 h")}
    assert studies.reproduce("fake", "quick", tmp_path)["settings"]["budget"] == "1 h"
    assert fake.computed == ["first", "second"]


def test_a_finished_study_is_computed_anew(fake, tmp_path):
    for _ in range(2):
        studies.reproduce("fake", "quick", tmp_path)
    assert fake.computed == ["first", "second"] * 2


@pytest.mark.parametrize("use", [studies.run, studies.reproduce, studies.stored])
def test_an_unknown_study_or_scale_is_named_with_those_there_are(use):
    with pytest.raises(
        ValueError, match=r"the study must be one of 'newton_on_quadratics', .*'no'"
    ):
        use("no", "quick")
    with pytest.raises(ValueError, match="scale must be one of 'quick', 'laptop', 'gpu', got 'no'"):
        use("inverting_gpt4", "no")


def test_what_is_stored_comes_back(fake, tmp_path):
    results = studies.reproduce("fake", "quick", tmp_path)
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
