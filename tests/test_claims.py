import re

import pytest

from soaa_edu import claims, studies
from soaa_edu.storage import save_json
from soaa_edu.studies.verdicts import Part, judge


@pytest.fixture
def folder(tmp_path):
    """A folder with the results of one study."""
    studies.reproduce("inverting_gpt4", "quick", tmp_path)
    return tmp_path


def test_every_claim_has_a_study_and_every_study_its_claims():
    settled = {claim: name for name in studies.NAMES for claim in studies.get(name).CLAIMS}
    assert settled == {name: claim.study for name, claim in claims.LEDGER.items()}


def test_a_claim_is_reported_with_its_source_numbers_and_verdict(folder):
    first, source, verdict, *numbers = claims.report("S9", folder=folder).splitlines()
    assert first == f"S9  {claims.LEDGER['S9'].text}"
    assert source == f"    source: {claims.LEDGER['S9'].reported}"
    assert verdict == "    verdict: holds in part (quick scale, a preview, seeds: 0)"
    assert re.match(r"      yes: .*operations.* below 2$", numbers[0])
    assert re.match(r"      no: .*gigabytes.* below 2$", numbers[1])


def test_a_larger_scale_is_no_preview(folder):
    studies.reproduce("inverting_gpt4", "laptop", folder)
    assert "(laptop scale, seeds: 0)" in claims.report("S9", folder=folder)


def test_a_claim_that_nobody_computed_names_the_command(tmp_path):
    last = claims.report("S1", folder=tmp_path).splitlines()[-1]
    assert last == "    not computed yet: soaa-edu reproduce newton_on_quadratics"


def test_an_open_claim_says_what_would_settle_it(folder, monkeypatch):
    parts = [Part("it", 0, 2, 1.0)]
    verdict = judge("S9", parts, seeds=3, least_seeds=3, settled_by="a thousand seeds")
    monkeypatch.setattr(studies, "verdicts", lambda results: [verdict])
    last = claims.report("S9", folder=folder).splitlines()[-1]
    assert last == "      would be settled by a thousand seeds"


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
    assert "verdict: holds (" in claims.report("S9", folder=folder)


def test_the_table_has_a_row_for_every_claim_and_a_number_for_each_answer(folder):
    head, _, *rows = claims.table(folder).splitlines()
    assert head.count("|") == 5
    assert len(rows) == len(claims.LEDGER)
    row = rows[list(claims.LEDGER).index("S9")]
    assert row.startswith(f"| S9 | {claims.LEDGER['S9'].text} | holds in part (quick) | yes: ")
    assert row.count("<br>no: ") == 1
    assert rows[0] == f"| S1 | {claims.LEDGER['S1'].text} | not computed yet | |"
