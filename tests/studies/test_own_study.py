import os
import subprocess
import sys
from pathlib import Path

import pytest

from soaa_edu import cli, engine, studies
from soaa_edu.storage import StoredFileError
from soaa_edu.studies.verdicts import HOLDS

STUDY = """
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt

from soaa_edu.engine import Cell

HERE = Path(__file__).parent


class Settings(NamedTuple):
    size: int = 3
    minutes: float = 0.0


SCALES = {"quick": Settings(), "laptop": Settings(4)}


def counted(cell, *needed, size):
    if (HERE / f"{cell} fails").exists():
        raise OSError(f"no luck with {cell}")
    with (HERE / "computed").open("a") as file:
        file.write(f"{cell} ")
    return {"numbers": [1.5 * k for k in range(size)], "of": sum(map(len, needed))}


def cells(settings):
    return {
        "method=a seed=0": lambda: counted("a", size=settings.size),
        "method=b seed=0": Cell(
            lambda first: counted("b", first, size=settings.size), needs=("method=a seed=0",)
        ),
    }


def figure(results):
    drawing, axes = plt.subplots()
    for cell in results["cells"].values():
        axes.plot(cell["numbers"])
    return drawing
"""
VERDICTS = """

from soaa_edu.studies.results import one
from soaa_edu.studies.verdicts import Clause, judge, known


def verdicts(results):
    last = one(results, method="b")["numbers"][-1]
    return [judge("M1", [Clause("large", "the last:", "above 1", [known(last)])])]
"""
NUMBERS = [0, 1.5, 3.0]


@pytest.fixture
def path(tmp_path, close_figures):
    """A study's file in a folder of its own."""
    return written(tmp_path / "mine")


def written(folder, text=STUDY, name="my_study.py"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def computed(path):
    return (path.parent / "computed").read_text().split()


def test_a_study_from_a_file_is_reproduced_into_figures_beside_it_and_read_back(path):
    study = studies.reproduce(str(path), "quick")
    assert (study.name, study.missing) == ("my_study", [])
    figures = path.parent / "figures"
    assert {file.name for file in figures.iterdir()} == {
        "my_study.quick.json",
        "my_study.quick.png",
        ".my_study.quick.lock",
    }
    results = studies.stored(str(path), "quick")
    assert results == engine.finish(study) == studies.largest_stored(str(path))
    assert (results["study"], results["settings"]) == ("my_study", {"size": 3, "minutes": 0.0})
    assert results["cells"] == {
        "method=a seed=0": {"numbers": NUMBERS, "of": 0},
        "method=b seed=0": {"numbers": NUMBERS, "of": 2},
    }
    assert results["cells"] == studies.run(str(path), "quick")["cells"]


def test_its_results_may_go_elsewhere(path, tmp_path):
    studies.reproduce(str(path), "laptop", tmp_path / "there")
    assert studies.stored(str(path), "laptop", tmp_path / "there")["settings"]["size"] == 4
    assert not (path.parent / "figures").exists()
    with pytest.raises(StoredFileError, match=r"reproduce .*/my_study.py --scale laptop"):
        studies.stored(str(path), "laptop")
    assert studies.largest_stored(str(path)) is None


def test_a_path_may_begin_in_the_current_folder(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    studies.reproduce("my_study.py", "quick")
    assert studies.stored("my_study.py", "quick") == studies.stored(str(path), "quick")
    assert studies.get("my_study.py") is studies.get(str(path))


def test_it_is_drawn_anew_from_what_is_stored_alone(path):
    for scale in ("quick", "laptop"):
        studies.reproduce(str(path), scale)
    pictures = [path.parent / "figures" / f"my_study.{s}.png" for s in ("quick", "laptop")]
    for picture in pictures:
        picture.unlink()
    before = computed(path)
    assert not any(picture.exists() for picture in pictures)
    assert studies.redraw(str(path)) == pictures
    assert all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert computed(path) == before


@pytest.mark.parametrize("workers", [None, 1])
def test_an_interrupted_one_resumes_where_it_stopped(path, workers):
    marker = path.parent / "b fails"
    marker.touch()
    with engine.here() if workers is None else engine.processes(workers) as place:
        with pytest.raises(OSError, match="no luck with b"):
            studies.reproduce(str(path), "quick", place=place)
        assert studies.begun(str(path), "quick", path.parent / "figures").missing == [
            "method=b seed=0"
        ]
        marker.unlink()
        studies.reproduce(str(path), "quick", place=place)
    assert computed(path) == ["a", "b"]
    assert studies.stored(str(path), "quick")["cells"]["method=b seed=0"]["numbers"] == NUMBERS
    assert not list((path.parent / "figures").glob("*.unfinished.json"))


def test_a_killed_one_resumes_where_it_stopped(path):
    killing = STUDY.replace('raise OSError(f"no luck with {cell}")', "os.kill(os.getpid(), 9)")
    written(path.parent, f"import os\n{killing}")
    (path.parent / "b fails").touch()
    half_written = path.parent / "figures" / ".my_study.quick.unfinished.json.x"
    half_written.parent.mkdir()
    half_written.touch()
    command = [sys.executable, "-m", "soaa_edu", "reproduce", str(path)]
    killed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    assert not half_written.exists()
    assert not (path.parent / "figures" / "my_study.quick.json").exists()
    (path.parent / "b fails").unlink()
    study = studies.reproduce(str(path), "quick")
    assert computed(path) == ["a", "b"]
    assert list(study.results["cells"]) == ["method=a seed=0", "method=b seed=0"]
    assert studies.stored(str(path), "quick")["cells"] == study.results["cells"]


def test_verdicts_are_told_where_it_has_them(path):
    results = studies.run(str(path), "quick")
    assert studies.verdicts(results, str(path)) == []
    with_verdicts = str(written(path.parent, STUDY + VERDICTS, "with_verdicts.py"))
    (verdict,) = studies.verdicts(results, with_verdicts)
    assert (verdict.claim, verdict.answer) == ("M1", HOLDS)


@pytest.mark.parametrize("use", [studies.run, studies.reproduce, studies.stored, studies.begun])
def test_a_file_that_is_missing_is_named(use, tmp_path):
    missing = str(tmp_path / "no_such.py")
    with pytest.raises(ValueError, match=r"no_such.py is not there: give the path of a study's fi"):
        use(missing, "quick")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "lacking, words",
    [
        (["SCALES"], "no SCALES"),
        (["cells"], "no cells"),
        (["figure"], "no figure"),
        (["SCALES", "figure"], "no SCALES and no figure"),
    ],
)
def test_a_file_that_lacks_a_part_is_told_what_a_study_has(path, lacking, words):
    text = STUDY + "".join(f"\ndel {part}" for part in lacking)
    lacks = written(path.parent, text, "lacks.py")
    with pytest.raises(ValueError, match=rf"lacks.py has {words}: a study has SCALES \(scale"):
        studies.reproduce(str(lacks), "quick")


def test_a_scale_that_the_file_lacks_is_answered_with_those_it_has(path):
    with pytest.raises(ValueError, match=r"my_study.py has no gpu scale: take one of quick, lap"):
        studies.reproduce(str(path), "gpu")
    with pytest.raises(ValueError, match=r"scale must be one of 'quick', 'laptop', 'gpu'"):
        studies.reproduce(str(path), "huge")
    assert not (path.parent / "figures").exists()


def test_settings_without_an_estimate_of_their_time_are_told_to_have_one(path):
    text = STUDY.replace("minutes: float = 0.0", "hours: float = 0.0")
    timeless = written(path.parent, text, "timeless.py")
    with pytest.raises(ValueError, match=r"quick settings of .*timeless.py have no minutes: give"):
        studies.reproduce(str(timeless), "quick")


def test_a_file_that_fails_is_read_again_at_the_next_try(path):
    broken = written(path.parent, "import no_such_module", "broken.py")
    for _ in range(2):
        with pytest.raises(ModuleNotFoundError, match="no_such_module"):
            studies.get(str(broken))


def test_two_files_of_the_same_name_are_two_studies(path, tmp_path):
    other = written(tmp_path / "other", STUDY.replace("1.5 * k", "2.5 * k"))
    for each in (path, other, path):
        studies.reproduce(str(each), "quick")
    found = [
        studies.stored(str(each), "quick")["cells"]["method=a seed=0"]["numbers"]
        for each in (path, other)
    ]
    assert found == [NUMBERS, [0, 2.5, 5.0]]
    assert computed(other) == ["a", "b"]


def test_a_changed_file_is_read_anew_and_an_unchanged_one_is_not(path):
    module = studies.get(str(path))
    assert studies.get(str(path)) is module
    studies.reproduce(str(path), "quick")
    before = path.stat()
    written(path.parent, STUDY.replace("1.5 * k", "2.5 * k"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert studies.get(str(path)) is not module
    studies.reproduce(str(path), "quick")
    results = studies.stored(str(path), "quick")
    assert results["cells"]["method=a seed=0"]["numbers"] == [0, 2.5, 5.0]


def test_a_path_may_be_a_path_or_its_text(path):
    studies.reproduce(path, "quick")
    assert studies.stored(path, "quick") == studies.stored(str(path), "quick")


def test_the_command_reproduces_it_tells_its_verdicts_and_draws_it(path, capsys):
    named = str(written(path.parent, STUDY + VERDICTS, "named.py"))
    figures = path.parent / "figures"
    assert cli.main(["reproduce", named]) == 0
    stored, verdict, clause = capsys.readouterr().out.splitlines()
    assert stored == f"{figures}/named.quick.json and .png"
    assert verdict == "    M1: holds"
    assert clause.startswith("        yes: ")
    assert cli.main(["reproduce", str(path), "--output", str(path.parent / "there")]) == 0
    assert capsys.readouterr().out == f"{path.parent}/there/my_study.quick.json and .png\n"
    assert cli.main(["draw", named]) == 0
    assert capsys.readouterr().out == f"{figures}/named.quick.png\n"


def test_the_command_computes_it_in_two_worker_processes(path, capsys):
    assert cli.main(["reproduce", str(path), "--workers", "2"]) == 0
    results = studies.stored(str(path), "quick")
    assert results["cells"] == studies.run(str(path), "quick")["cells"]
    assert computed(path) == ["a", "b"] * 2


@pytest.mark.parametrize(
    "file, scale, message",
    [
        ("no_such.py", "quick", "no_such.py is not there"),
        ("my_study.py", "gpu", "my_study.py has no gpu scale: take one of quick, laptop"),
        ("my_study.py", "huge", "scale must be one of 'quick'"),
        ("empty.py", "quick", "empty.py has no SCALES and no cells and no figure"),
    ],
)
def test_the_command_answers_a_mistake_in_one_line_with_status_2(
    path, capsys, file, scale, message
):
    written(path.parent, "", "empty.py")
    assert cli.main(["reproduce", str(path.parent / file), "--scale", scale]) == 2
    err = capsys.readouterr().err
    assert err.startswith("soaa-edu: ")
    assert message in err
    assert err.count("\n") == 1


def test_the_file_of_the_page_is_a_study(tmp_path, close_figures):
    shown = Path(__file__).parents[2] / "book" / "my_study.py"
    path = tmp_path / shown.name
    path.write_text(shown.read_text())
    module = studies.get(path)
    few = {"rows": 256, "batch_sizes": (64,), "epochs": 1, "tries": 1, "seeds": 3}
    module.SCALES["quick"] = module.Settings(**few)
    study = studies.reproduce(path, "quick")
    assert list(study.cells) == [
        *(f"method={m} batch=64" for m in module.FIELD),
        "cost=step batch=64",
    ]
    (verdict,) = studies.verdicts(study.results, path)
    assert verdict.clauses[0].clause.says == "K-FAC pays"
    assert (tmp_path / "figures" / "my_study.quick.png").exists()
