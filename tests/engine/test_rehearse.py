import jobs
import pytest

from soaa_edu import cli, engine, studies


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


def test_cells_that_fail_or_take_long_are_told_and_do_not_stop_the_others():
    study = engine.take_up("jobs", "quick")
    told = {r.cell: r.error for r in engine.rehearse(study, patience=12.0)}
    assert told == {
        "fails": "FileNotFoundError: no such thing",
        "waits": "needs fails",
        "endless": "not done after 12 s",
        "fine": None,
    }
    assert jobs.SCALES["quick"].minutes > 0
