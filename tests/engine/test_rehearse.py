import numpy as np
import pytest

from soaa_edu import cli, engine, studies
from soaa_edu.engine.rehearse import rehearse_cell


@pytest.fixture
def lines(capsys):
    """The status of a rehearsal and the lines it prints."""

    def rehearse(*arguments):
        status = cli.main(["rehearse", *arguments])
        return status, capsys.readouterr().out.splitlines()

    return rehearse


def test_every_program_of_a_study_is_compiled(lines):
    status, told = lines("early_refreshes", "--scale", "quick")
    assert status == 0
    assert told[0] == "early_refreshes (quick)"
    cells = [line.split(":")[0].strip() for line in told[1:]]
    assert cells == list(studies.begun("early_refreshes", "quick").cells)
    assert all("at once" in line or "no new program" in line for line in told[1:])


def test_a_program_of_the_gpu_scale_compiles_at_its_true_shapes():
    numbers, programs = rehearse_cell(
        "soaa_edu.studies.poster.damping_grids", "gpu", "method=gauss_newton batch=64", ()
    )
    assert [program.runs for program in programs] == [7 * 7 * 3]
    assert np.shape(numbers["loss"]) == (7, 7, 3)
    assert 1 < programs[0].gigabytes < 20


def test_a_cell_that_fails_stops_no_other_and_one_that_takes_long_ends_the_study():
    study = engine.take_up("jobs", "quick")
    told = {r.cell: r.error for r in engine.rehearse(study, patience=12.0)}
    assert told == {
        "fails": "FileNotFoundError: no such thing",
        "waits": "needs fails",
        "fine": None,
        "endless": "not done after 12 s",
    }
