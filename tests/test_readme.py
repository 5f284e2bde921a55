"""What the README says in numbers is what the stored results say."""

from pathlib import Path

from soaa_edu import claims, studies
from soaa_edu.studies import batch_sizes, large_batch_race, soaa_race
from soaa_edu.studies.gauss_newton_on_mnist import slides_table

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_slides_table_is_computed_from_the_stored_results():
    names = ("gauss_newton_on_mnist", "newton_on_mnist")
    assert slides_table(*(studies.stored(name, "laptop") for name in names)) in README


def test_the_large_batch_table_is_computed_from_the_stored_results():
    assert large_batch_race.table(studies.stored("large_batch_race", "laptop")) in README


def test_the_soaa_table_is_computed_from_the_stored_results():
    assert soaa_race.table(studies.stored("soaa_race", "laptop")) in README


def test_the_ledger_is_computed_from_the_stored_results():
    assert claims.table() in README


def test_the_batch_size_tables_are_computed_from_the_stored_results():
    results = studies.stored("batch_sizes", "laptop")
    assert all(batch_sizes.table(results, "mlp", size) in README for size in (64, 16_384))
