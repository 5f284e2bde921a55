import re

import pytest

from soaa_edu import claims, studies
from soaa_edu.storage import save_json
from soaa_edu.studies.verdicts import Clause, judge, measured


@pytest.fixture
def folder(tmp_path):
    """A folder with the results of one study."""
    studies.reproduce("inverting_gpt4", "quick", tmp_path)
    return tmp_path


def test_every_claim_has_a_study_and_every_study_its_claims():
    settled = {claim: name for name in studies.NAMES for claim in studies.get(name).CLAIMS}
    assert settled == {name: claim.study for name, claim in claims.LEDGER.items()}


def test_a_claim_is_reported_with_its_verdict_source_and_clauses(folder):
    first, source, *clauses = claims.report("S9", folder=folder).splitlines()
    assert first == "S9  holds in part (1 yes, 1 no; quick scale, a preview)"
    assert source == f"    “{claims.LEDGER['S9'].quote}”: {claims.LEDGER['S9'].reported}"
    assert re.match(
        r"    yes: about 5e\+36 operations; .* 1.02 times \(margin 2 times\)$", clauses[0]
    )
    assert re.match(r"    no: about 4e\+27 GB of memory; .* \(margin 2 times\)$", clauses[1])


def test_the_full_report_adds_the_findings(folder):
    short, full = (claims.report("S9", folder=folder, full=full) for full in (False, True))
    assert full.startswith(short)
    assert "8 bytes for each of n³ numbers would be" in full.removeprefix(short)


def test_a_larger_scale_is_no_preview(folder):
    studies.reproduce("inverting_gpt4", "laptop", folder)
    assert "(1 yes, 1 no; laptop scale)" in claims.report("S9", folder=folder)


def test_a_claim_that_nobody_computed_names_the_command(tmp_path):
    first, _ = claims.report("S1", folder=tmp_path).splitlines()
    assert first == "S1  not computed yet: soaa-edu reproduce newton_on_quadratics"
    assert "not computed yet" in claims.card("S1", tmp_path)._repr_html_()


def test_an_open_claim_says_what_would_close_it(folder, monkeypatch):
    clause = Clause("it is so", "it is", "above 1", [measured([0.0, 1, 2, 3, 4])])
    monkeypatch.setattr(studies, "verdicts", lambda results: [judge("S9", [clause])])
    first = claims.report("S9", folder=folder).splitlines()[0]
    assert re.search(r"^S9  open \(1 open; .*5 seeds; about \d+ seeds would close it\)$", first)


def test_a_notebook_shows_a_claim_as_a_table_with_the_findings_folded(folder):
    page = claims.card("S9", folder)._repr_html_()
    assert page.count("<tr>") == 4
    assert "<strong>holds in part" in page
    assert page.index("<details>") > page.index("</table>")
    assert "the slides&#x27; figure" in page
    assert "8 bytes for each of n³ numbers would be" in page[page.index("<details>") :]


def test_no_stored_verdict_takes_more_than_six_lines_or_names_a_scale_that_would_settle_it():
    for name in claims.LEDGER:
        assert len(str(claims.card(name)).splitlines()) <= 6
        assert not re.search(r"(quick|laptop|gpu) scale", claims.card(name).full.partition(")")[2])


def test_all_claims_are_reported_in_the_ledgers_order(folder):
    report = claims.report(folder=folder)
    assert re.findall(r"^(\w+)  ", report, re.MULTILINE) == list(claims.LEDGER)


def test_an_unknown_claim_is_refused():
    with pytest.raises(ValueError, match=r"the claim must be one of 'S1', .*got 'S99'"):
        claims.report("S1", "S99")


def test_the_verdict_is_computed_from_the_stored_numbers(folder):
    path = folder / "inverting_gpt4.quick.json"
    results = studies.stored("inverting_gpt4", "quick", folder)
    results["cells"]["arithmetic"]["gigabytes"] = [3e27, 4e27, 5e27]
    save_json(path, results)
    assert "S9  holds (2 yes;" in claims.report("S9", folder=folder)


def test_the_table_has_a_row_for_every_claim_with_its_primary_clause(folder):
    head, _, *rows = claims.table(folder).splitlines()
    assert len(rows) == len(claims.LEDGER)
    assert all(row.count("|") == head.count("|") == 5 for row in rows)
    row = rows[list(claims.LEDGER).index("S9")]
    assert row.startswith(
        f"| S9 | “{claims.LEDGER['S9'].quote}” | holds in part (1 yes, 1 no; quick"
    )
    assert "| yes: about 5e+36 operations; " in row
    assert rows[0].endswith("| not computed yet: soaa-edu reproduce newton_on_quadratics |  |")
