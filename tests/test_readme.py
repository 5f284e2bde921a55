"""What README and RESULTS.md say in numbers is what the stored results say."""

from pathlib import Path

from soaa_edu import claims, findings

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_results_page_is_computed_from_the_stored_results():
    assert (ROOT / "RESULTS.md").read_text() == findings.page()


def test_the_findings_are_computed_from_the_stored_results():
    assert len(findings.sentences()) == 5
    assert all(f"- {sentence}\n" in README for sentence in findings.sentences())
    assert findings.counts() in README


def test_the_counts_are_those_of_the_whole_ledger():
    found = [claims.card(name).verdict.answer for name in claims.LEDGER]
    numbers = [int(word) for word in findings.counts().split() if word.isdigit()]
    assert numbers == [len(found), *map(found.count, findings.WORDS)]


def test_the_readme_is_read_in_a_few_minutes():
    assert len(README.splitlines()) <= 110
